"""Weights of heads against hand computations in numpy; heads into TransformerLens and back."""

import families
import numpy as np
import pytest
import torch

import circuits
from circuits.head_sets import HeadSet
from circuits.lens_heads import from_lens, to_lens
from circuits.weight_circuits import MODES, direct_attribution, read_weights
from circuits.weight_result import WeightCircuits
from interp.backends.hf import HFModel
from interp.backends.lens import boot
from interp.errors import ResultError, SiteError
from interp.loading import Source
from interp.sites import Head

HEADS, SENDERS = [Head(2, 1), Head(1, 3)], [Head(0, 0), Head(1, 0)]


def under(family):
    source = Source("live", family, family, None, None, "0", "0")
    return HFModel(families.tiny(family), source=source)


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt2", "olmo2"])
def model(request):
    return under(request.param)


def array(tensor):
    return tensor.detach().double().numpy()


def by_hand(model, head):
    """`W_Q, W_K, W_V, W_O` of one head for row vectors, with the gains of the norms around them."""
    layer, spec = model.anatomy.layers[head.layer], model.spec
    q, kv, d = head.head, spec.kv_head(head.head), spec.d_head
    if hasattr(layer, "attn"):  # gpt2: one matrix, stored input by output, and a centring norm
        joint = array(layer.attn.c_attn.weight).reshape(32, 3, 4, d)
        centre = np.eye(32) - 1 / 32
        gain = centre @ np.diag(array(layer.ln_1.weight))
        w_q, w_k, w_v = (gain @ joint[:, i, q] for i in range(3))
        return w_q, w_k, w_v, array(layer.attn.c_proj.weight)[q * d : (q + 1) * d]
    attn = layer.self_attn
    cut = {"q": q, "k": kv, "v": kv}
    w = {n: array(getattr(attn, f"{n}_proj").weight).T[:, i * d : (i + 1) * d]
         for n, i in cut.items()}  # fmt: skip
    out = array(attn.o_proj.weight).T[q * d : (q + 1) * d]
    name = type(layer).__name__
    plus = 1 if "Gemma" in name else 0
    if "Olmo2" not in name:
        gain = np.diag(array(layer.input_layernorm.weight) + plus)
        w = {n: gain @ x for n, x in w.items()}
    if "Gemma" in name or "Olmo2" in name:
        out = out @ np.diag(array(layer.post_attention_layernorm.weight) + plus)
    return w["q"], w["k"], w["v"], out


def unembedding(model):
    core = getattr(model.hf, "model", None) or model.hf.transformer
    norm = getattr(core, "norm", None) or core.ln_f
    gain = np.diag(array(norm.weight) + (1 if "Gemma" in type(norm).__name__ else 0))
    if hasattr(core, "ln_f"):
        gain = (np.eye(32) - 1 / 32) @ gain
    return gain @ array(model.hf.get_output_embeddings().weight).T


def positive(matrix):
    values = np.linalg.eigvals(matrix)
    return values.real.sum() / np.abs(values).sum()


def test_copying_and_matching_are_those_of_the_whole_token_by_token_circuit(model):
    """Eigenvalues of the whole 120 x 120 matrix, and not of a small one that has the same."""
    found = read_weights(model, HEADS, senders=SENDERS, n_random=20).to_frame("heads")
    scores = {(row.head, row.kind): row.score for row in found.itertuples()}
    assert len(scores) == 2 * len({*HEADS, *SENDERS})
    embed, unembed = array(model.hf.get_input_embeddings().weight), unembedding(model)
    for head in (*HEADS, *SENDERS):
        w_q, w_k, w_v, w_o = by_hand(model, head)
        copying = positive(embed @ w_v @ w_o @ unembed)
        matching = positive(embed @ w_q @ w_k.T @ embed.T)
        assert scores[str(head), "copying"] == pytest.approx(copying, abs=2e-3)
        assert scores[str(head), "matching"] == pytest.approx(matching, abs=2e-3)
    assert found["score"].between(-1, 1).all() and found["p_random"].between(0, 1).all()


def test_composition_scores_are_ratios_of_norms_of_whole_matrices(model):
    result = read_weights(model, HEADS, senders=SENDERS, n_random=20)
    pairs = result.to_frame()
    above = [(s, r) for r in HEADS for s in SENDERS if s.layer < r.layer]
    assert len(pairs) == len(MODES) * len(above)
    for sender, receiver in above:
        _, _, w_v, w_o = by_hand(model, sender)
        r_q, r_k, r_v, r_o = by_hand(model, receiver)
        whole = {"Q": r_q @ r_k.T, "K": r_k @ r_q.T, "V": r_v @ r_o}
        earlier = [h for h in model.spec.heads() if h.layer < receiver.layer]
        for mode, right in whole.items():
            scores = []
            for head in earlier:
                left = np.multiply(1, by_hand(model, head)[2] @ by_hand(model, head)[3])
                norms = np.linalg.norm(left) * np.linalg.norm(right)
                scores.append(np.linalg.norm(left @ right) / norms)
            row = pairs[(pairs.sender == str(sender)) & (pairs.receiver == str(receiver))
                        & (pairs["mode"] == mode)].iloc[0]  # fmt: skip
            own = scores[earlier.index(sender)]
            assert row.score == pytest.approx(own, abs=1e-4)
            assert row.p_heads == pytest.approx(np.mean(np.array(scores) >= own - 1e-6), abs=1e-9)
            assert 0 <= row.score <= 1 and row.n_earlier == len(earlier)
    assert w_v.shape == w_o.T.shape


def test_the_chance_level_is_that_of_random_matrices():
    """Drawn here, with numpy's generator, from the same shapes."""
    model = under("llama")
    row = read_weights(model, HEADS, senders=SENDERS, n_random=400).to_frame().iloc[0]
    rng, d = np.random.default_rng(0), model.spec.d_head
    draws = []
    for _ in range(400):
        a, b, c, e = (rng.normal(size=(32, d)) for _ in range(4))
        left, right = a @ b.T, c @ e.T
        norms = np.linalg.norm(left) * np.linalg.norm(right)
        draws.append(np.linalg.norm(left @ right) / norms)
    assert row.chance == pytest.approx(np.mean(draws), abs=0.01)
    assert row.chance_low == pytest.approx(np.percentile(draws, 2.5), abs=0.02)
    assert row.excess == pytest.approx(row.score - row.chance)


def test_a_planted_composition_stands_out():
    """The receiver's keys are made to read the one direction that the sender writes."""
    model = under("llama")
    direction = torch.zeros(32)
    direction[7] = 1.0
    with torch.no_grad():
        out = model.anatomy.layers[0].self_attn.o_proj.weight
        out[:, :12] = direction[:, None] * torch.linspace(1, 2, 12)
        model.anatomy.layers[2].self_attn.k_proj.weight[:12] = (
            torch.linspace(1, 2, 12)[:, None] * direction
        )
    pairs = read_weights(model, [Head(2, 1)], senders=[Head(0, 0), Head(0, 1)]).to_frame()
    best = pairs.iloc[0]
    assert (best.sender, best.receiver, best["mode"]) == ("L0H0", "L2H1", "K")
    assert best.score == pytest.approx(1, abs=1e-4)
    assert best.p_heads == pytest.approx(1 / 8) and best.p_random < 0.01
    assert pairs[pairs.sender == "L0H1"].score.max() < 0.6


def test_a_head_that_writes_nothing_scores_zero_not_nothing():
    model = under("llama")
    layer = model.anatomy.layers[0].self_attn
    with torch.no_grad():
        layer.o_proj.weight[:, : model.spec.d_head] = 0
    result = read_weights(model, HEADS, senders=SENDERS, n_random=20)
    silent = [r for r in result.heads if (r["head"], r["kind"]) == ("L0H0", "copying")]
    assert [r["score"] for r in silent] == [0.0]
    assert {r["score"] for r in result.pairs if r["sender"] == "L0H0"} == {0.0}
    assert all(r["score"] > 0 for r in result.pairs if r["sender"] == "L1H0")


def test_a_users_bridge_gives_the_same_and_is_left_alone():
    model = under("llama")
    bridge = boot(model.hf, model.spec)
    with torch.no_grad():
        before = bridge(torch.tensor([[3, 4, 5]]))
    own = read_weights(model, HEADS, senders=SENDERS, n_random=20)
    theirs = read_weights(model, HEADS, senders=SENDERS, n_random=20, bridge=bridge)
    assert own.pairs == theirs.pairs and own.heads == theirs.heads
    with torch.no_grad():
        assert torch.equal(bridge(torch.tensor([[3, 4, 5]])), before)


def test_results_say_what_was_asked_and_bad_input_is_refused(tmp_path):
    model = under("llama")
    result = read_weights(model, HEADS, n_random=20)
    assert "the earlier ones among the heads given" in result.notes[0]
    assert {(r["sender"], r["receiver"]) for r in result.pairs} == {("L1H3", "L2H1")}
    assert isinstance(result, WeightCircuits) and "matching" in result._repr_html_()
    back = WeightCircuits.load(result.save(tmp_path / "run"))
    assert back.heads == result.heads and back.pairs == result.pairs
    assert back.provenance == result.provenance and back.settings == result.settings
    for kind in ("heads", "pairs"):
        frame, drawn = back.to_frame(kind), back.figure(kind).data
        assert sum(len(d.x) for d in drawn if d.type == "scatter") == min(len(frame), 24)
    with pytest.raises(ResultError, match="not 'maps'"):
        back.figure("maps")
    assert result.settings["senders"] == ["L2H1", "L1H3"]
    with pytest.raises(ResultError, match="pairs and heads, not 'edges'"):
        result.to_frame("edges")
    with pytest.raises(SiteError, match="no head L9H0"):
        read_weights(model, ["L9H0"])
    with pytest.raises(ResultError, match="20 random matrices or more"):
        read_weights(model, HEADS, n_random=5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_direct_attribution_is_that_of_a_bridge_with_folded_norms(family):
    """TransformerLens' own `logit_attrs`, in the mode in which it takes the final norm in."""
    model = under(family)
    tokens = torch.randint(3, 120, (14,), generator=torch.Generator().manual_seed(1)).tolist()
    ours = direct_attribution(model, tokens[:9], tokens[9:], answer=5, other=9)
    bridge = boot(families.tiny(family), model.spec)
    bridge.enable_compatibility_mode(disable_warnings=True, fold_value_biases=False)
    _, cache = bridge.run_with_cache(torch.tensor([tokens]))
    stack = cache.stack_head_results(layer=-1, pos_slice=-1)
    theirs = cache.logit_attrs(stack, tokens=5, incorrect_tokens=9, pos_slice=-1)
    assert ours.shape == (3, 4)
    assert np.allclose(ours.reshape(-1), theirs[:, 0].detach().numpy(), atol=1e-3)


def test_heads_travel_to_transformer_lens_and_back():
    lens = to_lens("L2H1,L0H3,L2H0", top=3)
    assert lens.heads == ((2, 1), (0, 3), (2, 0)) and lens.labels[0] == "L2H1"
    assert lens.names == ("blocks.0.attn.hook_z", "blocks.2.attn.hook_z")
    assert to_lens(["L2H1"], kind="pattern").names == ("blocks.2.attn.hook_pattern",)
    bridge = boot(families.tiny("llama"), under("llama").spec)
    _, cache = bridge.run_with_cache(torch.tensor([[3, 4, 5]]), names_filter=list(lens.names))
    assert set(cache.keys()) >= set(lens.names)
    scores = torch.tensor([[0.1, 0.9], [torch.nan, 0.3]])
    back = from_lens(scores, top=2)
    assert isinstance(back, HeadSet) and back.heads == (Head(0, 1), Head(1, 1))
    assert from_lens(lens.heads).heads == (Head(2, 1), Head(0, 3), Head(2, 0))
    with pytest.raises(ResultError, match="no head has a score"):
        from_lens(torch.full((2, 2), torch.nan))
    assert circuits.to_lens is to_lens and circuits.from_lens is from_lens


@pytest.mark.real
def test_a_real_head_copies_as_much_as_its_weights_say(real):
    """L23H2 of the bundled model, in numpy, from the checkpoint's matrices alone."""
    head = Head(23, 2)
    found = read_weights(real, [head], senders=[Head(16, 1)], n_random=20)
    w_q, w_k, w_v, w_o = by_hand(real, head)
    norm = real.hf.model.norm.weight
    embed = array(real.hf.get_input_embeddings().weight)
    unembed = np.diag(array(norm)) @ array(real.hf.get_output_embeddings().weight).T
    scores = {row["kind"]: row["score"] for row in found.heads if row["head"] == str(head)}
    assert scores["copying"] == pytest.approx(positive(w_o @ (unembed @ embed) @ w_v), abs=5e-3)
    assert scores["matching"] == pytest.approx(positive(w_k.T @ (embed.T @ embed) @ w_q), abs=5e-3)
    _, _, v, o = by_hand(real, Head(16, 1))
    left, right = v @ o, w_k @ w_q.T
    k = next(row["score"] for row in found.pairs if row["mode"] == "K")
    norms = np.linalg.norm(left) * np.linalg.norm(right)
    assert k == pytest.approx(np.linalg.norm(left @ right) / norms, abs=1e-4)
