"""Training: gradients against automatic differentiation, planted features, and interruptions."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from interp.errors import PromptError, ResultError
from interp.sites import Site
from probes.feature_batches import batch_rows
from probes.feature_quality import quality
from probes.feature_steps import Rule, Weights, initial, step
from probes.feature_training import TrainSettings, train_dictionary

SITE = Site("resid_post", 1)
SMALL = TrainSettings(d_dict=24, k=3, steps=40, batch=64, lr=3e-3, warmup=5, dead_after=8, aux_k=4)
D, ATOMS, ACTIVE = 32, 64, 3


def planted(n=12_000, seed=0, d_out=None):
    """Sums of three of 64 random unit directions, and the sums of as many others."""
    g = torch.Generator().manual_seed(seed)
    world = torch.Generator().manual_seed(99)
    atoms = F.normalize(torch.randn(ATOMS, D, generator=world), dim=1)
    others = F.normalize(torch.randn(ATOMS, d_out or D, generator=world), dim=1)
    which = torch.rand(n, ATOMS, generator=g).topk(ACTIVE, dim=1).indices
    z = torch.zeros(n, ATOMS).scatter(1, which, torch.rand(n, ACTIVE, generator=g) + 0.5)
    return atoms, z @ atoms, z @ others


def small_rows(n=300, d=10, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def train(x, settings=SMALL, **more):
    return train_dictionary(x, settings, site=SITE, name="d", **more)


def dense_loss(weights, x, y, rule, dead):
    """The loss over dense features, for automatic differentiation."""
    z = (x @ weights.encoder.T + weights.bias).relu()
    if rule.activation == "topk":
        border = z.topk(rule.k, dim=1).values[:, -1:]
    else:
        border = z.flatten().topk(rule.k * len(x)).values[-1]
    kept = z * (z >= border)
    left = y - (kept @ weights.decoder + weights.offset)
    loss = left.square().mean()
    if len(dead):
        own = z[:, dead]
        border = own.topk(min(rule.aux_k, len(dead)), dim=1).values[:, -1:]
        rest = left.detach()
        missed = rest - (own * (own >= border)) @ weights.decoder[dead]
        loss = loss + rule.aux_coefficient * missed.square().sum() / (
            (rest - rest.mean(0)).square().sum()
        )
    return loss, kept


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("dead", [[], [1, 4, 5, 9, 17]])
def test_gradients_are_those_of_the_dense_loss(activation, dead):
    rule = Rule(activation, k=3, aux_k=2, aux_coefficient=0.7, half=False)
    g = torch.Generator().manual_seed(4)
    weights = initial(10, 20, 7, tied=False, seed=2)
    weights = replace(weights, bias=torch.randn(20, generator=g) * 0.1)
    x, y = torch.randn(30, 10, generator=g), torch.randn(30, 7, generator=g)
    dead = torch.tensor(dead, dtype=torch.long)
    got = step(weights, x, y, rule, dead=dead)
    grown = Weights(*(w.clone().requires_grad_() for w in weights.all()))
    loss, kept = dense_loss(grown, x, y, rule, dead)
    for ours, theirs in zip(
        got.gradients.all(), torch.autograd.grad(loss, grown.all()), strict=True
    ):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    dense = torch.zeros_like(kept)
    dense[got.fired.row, got.fired.latent] = got.fired.value
    torch.testing.assert_close(dense, kept.detach())
    assert got.least == pytest.approx(kept[kept > 0].min().item())


@pytest.mark.parametrize("share", [0.5, 0.99, 1.5])
def test_the_border_of_the_last_batch_only_saves_time(share):
    rule = Rule("batchtopk", k=3, aux_k=2, aux_coefficient=0, half=False)
    weights, x = initial(10, 20, 10, tied=True, seed=2), small_rows(50)
    none = torch.zeros(0, dtype=torch.long)
    plain = step(weights, x, x, rule, dead=none)
    aided = step(weights, x, x, rule, dead=none, border=plain.least * share)
    for a, b in zip(plain.gradients.all(), aided.gradients.all(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_half_precision_only_chooses(activation):
    rule = Rule(activation, k=3, aux_k=2, aux_coefficient=0.1, half=True)
    weights, x = initial(10, 20, 10, tied=True, seed=2), small_rows(50)
    got = step(weights, x, x, rule, dead=torch.tensor([3, 5]))
    pre = x @ weights.encoder.T + weights.bias
    torch.testing.assert_close(got.fired.value, pre[got.fired.row, got.fired.latent])
    full = step(weights, x, x, replace(rule, half=False), dead=torch.tensor([3, 5]))
    assert got.fvu == pytest.approx(full.fvu, rel=0.02)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_planted_features_are_found(activation):
    atoms, x, _ = planted()
    settings = TrainSettings(
        d_dict=96, k=ACTIVE, activation=activation, steps=700, batch=512, lr=3e-3, dead_after=50
    )
    dictionary = train(x, settings)
    best = (F.normalize(dictionary.W_dec, dim=1) @ atoms.T).amax(0)
    assert (best > 0.9).float().mean() > 0.95
    fresh = quality(dictionary, planted(2000, seed=5)[1])
    assert fresh.l0 == pytest.approx(ACTIVE, abs=0.2) and fresh.fvu < 0.15
    assert dictionary.activation == {"batchtopk": "jumprelu"}.get(activation, "topk")
    assert dictionary.about["trained_as"] == activation


def test_a_transcoder_reconstructs_its_targets():
    _, x, y = planted(d_out=20)
    settings = TrainSettings(d_dict=96, k=ACTIVE, steps=700, batch=512, lr=3e-3, dead_after=50)
    dictionary = train(x * 2 + 1, settings, targets=y * 7 - 3, out_site=Site("mlp_out", 1))
    _, x, y = planted(2000, seed=5, d_out=20)
    assert dictionary.is_transcoder and dictionary.d_out == 20
    assert quality(dictionary, x * 2 + 1, y * 7 - 3).fvu < 0.3


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_the_dictionary_reads_raw_rows(activation):
    """Shifted and stretched rows give the same features, stretched alike, and directions of one."""
    x = small_rows(600)
    settings = replace(SMALL, activation=activation)
    plain, moved = train(x, settings), train(x * 8 + 2.5, settings)
    a, b = plain.encode(x), moved.encode(x * 8 + 2.5)
    assert (a > 0).any() and ((a > 0) == (b > 0)).float().mean() > 0.995
    both = (a > 0) & (b > 0)
    torch.testing.assert_close(b[both], 8 * a[both], rtol=0.02, atol=0.05)
    torch.testing.assert_close(moved.W_dec, plain.W_dec, atol=0.01, rtol=0)
    torch.testing.assert_close(moved.W_dec.norm(dim=1), torch.ones(24))
    record = plain.about["training"]
    assert record["fvu"] == pytest.approx(quality(plain, x).fvu, rel=0.1)
    assert record["steps"] == 40 and record["rows"] == 600 and record["left_out"] == 0


def stopping(at):
    def progress(done, total, what):
        if done == at:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
@pytest.mark.parametrize("mapped", [False, True])
def test_an_interrupted_run_ends_with_the_same_weights(activation, mapped, tmp_path):
    x = small_rows()
    settings = replace(SMALL, activation=activation, dead_after=4)
    if mapped:
        np.save(tmp_path / "x.npy", x.half().numpy())
        x = np.load(tmp_path / "x.npy", mmap_mode="r")
    whole = train(x, settings)
    for at in (3, 17, 38):  # before any checkpoint, after the first, between the last two
        with pytest.raises(KeyboardInterrupt):
            train(x, settings, parts=tmp_path / "parts", every=10, progress=stopping(at))
    seen = []
    again = train(
        x, settings, parts=tmp_path / "parts", every=10, progress=lambda *told: seen.append(told)
    )
    assert [done for done, _, _ in seen] == list(range(31, 41))
    assert again.digest == whole.digest and again.about == whole.about
    assert [p.name for p in (tmp_path / "parts").iterdir()] == ["training.safetensors"]
    assert train(x, settings, parts=tmp_path / "parts").digest == whole.digest


def test_progress_tells_how_it_goes():
    seen = []
    train(small_rows(), progress=lambda *told: seen.append(told))
    assert [s[:2] for s in seen] == [(n, 40) for n in range(1, 41)]
    assert seen[-1][2].startswith("d: FVU 0.") and "L0 3.0" in seen[-1][2]


@pytest.mark.parametrize("change", [{"lr": 1e-3}, {"k": 4}, {"seed": 1}, {"dtype": "bfloat16"}])
def test_a_checkpoint_of_other_settings_is_refused(change, tmp_path):
    train(small_rows(), parts=tmp_path)
    with pytest.raises(ResultError, match=f"another training \\({next(iter(change))} differ"):
        train(small_rows(), replace(SMALL, **change), parts=tmp_path)


def test_a_checkpoint_of_other_rows_or_a_damaged_one_is_refused(tmp_path):
    train(small_rows(), parts=tmp_path)
    with pytest.raises(ResultError, match="rows differ"):
        train(small_rows(seed=3), parts=tmp_path)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ResultError, match="is damaged; remove it"):
        train(small_rows(), parts=tmp_path)


def test_outliers_take_no_part():
    x = small_rows()
    spoiled = torch.cat([x[:100], torch.full((5, 10), 400.0), x[100:]])
    plain, dictionary = train(x), train(spoiled)
    assert dictionary.about["training"]["left_out"] == 5
    assert dictionary.digest == plain.digest


def test_seeds_differ_and_repeat():
    x = small_rows()
    assert train(x).digest == train(x).digest != train(x, replace(SMALL, seed=1)).digest


def test_an_epoch_uses_every_row_once():
    kept = np.arange(5, 100)
    batches = [batch_rows(kept, 10, at, seed=3) for at in range(18)]
    first, second = np.concatenate(batches[:9]), np.concatenate(batches[9:])
    for epoch in (first, second):
        assert len(set(epoch)) == 90 and set(epoch) <= set(kept)
    assert first.tolist() != second.tolist()
    assert batches[4].tolist() == batch_rows(kept, 10, 4, seed=3).tolist()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"k": 25}, "k = 25 of 24 latents"),
        ({"k": 0}, "k = 0, expected 1 or more"),
        ({"steps": 0}, "steps = 0"),
        ({"decay": 1.5}, "decay = 1.5"),
        ({"activation": "relu"}, "activation = 'relu', expected batchtopk or topk"),
        ({"dtype": "float16"}, "dtype = 'float16'"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, told):
    with pytest.raises(PromptError) as error:
        TrainSettings(**{**asdict(SMALL), **change})
    assert told in str(error.value)


def test_rows_that_cannot_be_learned_from_are_refused():
    x = small_rows()
    with pytest.raises(PromptError, match="63 usable rows of activations are fewer than a batch"):
        train(x[:63])
    with pytest.raises(PromptError, match="60 usable rows"):
        train(torch.cat([x[:60], torch.full((9, 10), 400.0)]))
    with pytest.raises(ResultError, match="row 7 of the activations is not finite"):
        train(x.index_fill(0, torch.tensor(7), torch.nan))
    with pytest.raises(ResultError, match="do not vary"):
        train(torch.ones(100, 10))
    with pytest.raises(ResultError, match="300 inputs and 200 targets"):
        train(x, targets=x[:200])
    with pytest.raises(ResultError, match=r"expected \[row, width\]"):
        train(x[None])
