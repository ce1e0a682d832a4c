"""Quality: against plain sums over dense features, and against what must hold of two extremes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from interp.backends.hf import HFModel
from interp.errors import PromptError, ResultError, SiteError
from interp.sites import Site
from probes.feature_quality import ce_recovered, quality
from probes.features import Dictionary

WIDTH, LAYER = 16, 1


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # a random model predicts nothing much: make the sites matter
        hf.lm_head.weight.mul_(20)
    return HFModel(hf)


def windows(n=3):
    g = torch.Generator().manual_seed(1)
    return [torch.randint(50, (length,), generator=g).tolist() for length in (12, 20, 9)[:n]]


def identity(site, **changes):
    """Both signs of every entry as a feature: gives back what it is given."""
    eye = torch.eye(WIDTH)
    fields = dict(
        name="identity", activation="relu", W_enc=torch.cat([eye, -eye], 1),
        b_enc=torch.zeros(2 * WIDTH), W_dec=torch.cat([eye, -eye]), b_dec=torch.zeros(WIDTH),
        site=site,
    )  # fmt: skip
    return Dictionary(**{**fields, **changes})


def random_dictionary(activation="topk", d_out=WIDTH, **changes):
    g = torch.Generator().manual_seed(5)
    return Dictionary(
        name="random", activation=activation, W_enc=torch.randn(WIDTH, 40, generator=g),
        b_enc=torch.randn(40, generator=g) - 4, W_dec=torch.randn(40, d_out, generator=g),
        b_dec=torch.randn(d_out, generator=g), k=3, site=Site("resid_post", LAYER), **changes,
    )  # fmt: skip


@pytest.mark.parametrize("block", [3, 100])
@pytest.mark.parametrize("d_out", [WIDTH, 11])
def test_quality_is_plain_sums_over_dense_features(block, d_out):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(31, WIDTH, generator=g), torch.randn(31, d_out, generator=g) + 2
    d = random_dictionary(d_out=d_out)
    y = x if d_out == WIDTH else y
    got = quality(d, x, None if y is x else y.half().numpy(), block=block)
    y = y if y is x else y.half().float()
    z = d.encode(x)
    made = z @ d.W_dec + d.b_dec
    assert got.fvu == pytest.approx(
        ((made - y) ** 2).sum().item() / ((y - y.mean(0)) ** 2).sum().item(), rel=1e-4
    )
    assert got.l0 == pytest.approx((z > 0).sum(1).float().mean().item())
    assert got.dead == pytest.approx((z > 0).any(0).logical_not().float().mean().item())
    assert 0 < got.dead < 1
    assert got.cosine == pytest.approx(F.cosine_similarity(made, y).mean().item(), abs=1e-5)
    assert got.n_rows == 31


def test_quality_refuses_what_it_cannot_measure():
    d = random_dictionary()
    with pytest.raises(ResultError, match="no rows"):
        quality(d, torch.zeros(0, WIDTH))
    with pytest.raises(ResultError, match="do not vary"):
        quality(d, torch.ones(4, WIDTH))
    with pytest.raises(ResultError, match="4 rows and 3 targets"):
        quality(d, torch.ones(4, WIDTH), torch.ones(3, WIDTH))
    with pytest.raises(ResultError, match="is a transcoder; give the targets"):
        quality(random_dictionary(d_out=5), torch.ones(4, WIDTH))
    with pytest.raises(SiteError, match="width 16"):
        quality(d, torch.ones(4, WIDTH + 1))


def bare_loss(model, skip_first, change=None):
    """Mean loss by the bare model, one window at a time, a hook at the layer's output."""
    losses = []
    for window in windows():
        hook = None
        if change is not None:

            def put(_module, _args, out):
                first = (out[0] if isinstance(out, tuple) else out).clone()
                first[:, skip_first:] = change(first[:, skip_first:])
                return (first, *out[1:]) if isinstance(out, tuple) else first

            hook = model.hf.model.layers[LAYER].register_forward_hook(put)
        with torch.no_grad():
            logits = model.hf(torch.tensor([window])).logits[0]
        if hook is not None:
            hook.remove()
        losses += F.cross_entropy(
            logits[skip_first:-1], torch.tensor(window[skip_first + 1 :]), reduction="none"
        ).tolist()
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("site", [Site("resid_post", LAYER), Site("mlp_out", 0)])
def test_an_identity_recovers_everything(model, site):
    got = ce_recovered(model, identity(site), windows())
    assert got.spliced == pytest.approx(got.original, abs=1e-4)
    assert got.n_tokens == (12 - 5) + (20 - 5) + (9 - 5)
    for ablated in (got.mean_ablated, got.zero_ablated):
        assert abs(ablated - got.original) > 1e-3
    for share in (got.recovered, got.recovered_from_zero):
        assert share is None or share == pytest.approx(1, abs=0.01)


def test_losses_are_those_of_the_bare_model_with_a_hook(model):
    d = random_dictionary()
    got = ce_recovered(model, d, windows(), skip_first=2)
    own, n = bare_loss(model, 2)
    assert (got.original, got.n_tokens) == (pytest.approx(own, abs=1e-4), n)
    spliced, _ = bare_loss(model, 2, lambda x: d.decode(d.encode(x[0]))[None])
    assert got.spliced == pytest.approx(spliced, abs=1e-3)
    zero, _ = bare_loss(model, 2, torch.zeros_like)
    assert got.zero_ablated == pytest.approx(zero, abs=1e-4)
    seen = []
    bare_loss(model, 2, lambda x: seen.append(x[0]) or x)
    mean, _ = bare_loss(model, 2, lambda x: torch.cat(seen).mean(0).expand_as(x))
    assert got.mean_ablated == pytest.approx(mean, abs=1e-4)
    assert got.recovered == pytest.approx((mean - spliced) / (mean - own), abs=1e-2)


def test_a_dictionary_of_nothing_equals_the_ablation(model):
    site = Site("resid_post", LAYER)
    nothing = identity(site, W_dec=torch.zeros(2 * WIDTH, WIDTH))
    got = ce_recovered(model, nothing, windows())
    assert got.spliced == pytest.approx(got.zero_ablated, abs=1e-5)
    assert got.recovered_from_zero == pytest.approx(0, abs=1e-4)


def test_a_transcoder_that_is_the_feed_forward_part_recovers_everything(model):
    """The MLP of layer 1 with its gate and activation linearised away is a skip, and no feature."""
    mlp = model.hf.model.layers[LAYER].mlp
    linear = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    d = identity(
        Site("mlp_in", LAYER), out_site=Site("mlp_out", LAYER),
        W_dec=torch.zeros(2 * WIDTH, WIDTH), skip=linear,
    )  # fmt: skip
    forward = mlp.forward
    mlp.forward = lambda x: x @ linear
    try:
        got = ce_recovered(model, d, windows())
    finally:
        mlp.forward = forward
    assert got.spliced == pytest.approx(got.original, abs=1e-4)
    assert abs(got.zero_ablated - got.original) > 1e-2


def test_an_ablation_without_harm_gives_no_share():
    from probes.feature_quality import CrossEntropy

    got = CrossEntropy(2.0, 2.5, mean_ablated=2.0, zero_ablated=4.0, n_tokens=9)
    assert got.recovered is None and got.recovered_from_zero == pytest.approx(0.75)


def test_what_does_not_fit_the_model_is_refused(model):
    d = random_dictionary()
    with pytest.raises(SiteError, match="layer 9, this model has layers 0-2"):
        ce_recovered(model, replace(d, site=Site("resid_post", 9)), windows())
    with pytest.raises(PromptError, match="more than 21 tokens"):
        ce_recovered(model, d, windows(), skip_first=20)
