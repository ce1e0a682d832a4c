"""The engine against the bare model: every family, every read and edit, no shared code."""

import families
import pytest
import torch
from families import FAMILIES

from interp.backends.hf import HFModel
from interp.errors import ModelError, SiteError
from interp.sites import Edit, Head, Site
from interp.trace import RowRead, SiteRead

N_CONTEXT = 40
AT = [40, 23, 31]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    hf = families.tiny(request.param)
    return HFModel(hf), hf


@pytest.fixture(scope="module")
def llama():
    hf = families.tiny("llama")
    return HFModel(hf), hf


def _tokens(n, seed=1):
    return torch.randint(3, 120, (n,), generator=torch.Generator().manual_seed(seed))


SUFFIXES = [_tokens(n, n).tolist() for n in (5, 9, 3)]


def _bare(hf, tokens, **kwargs):
    """One whole forward of the bare model with transformers' own eager attention."""
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        out = hf(torch.as_tensor(tokens)[None], use_cache=False, **kwargs)
    hf.set_attn_implementation(before)
    return out


def _all_rows(suffixes, at):
    width = max(a + len(s) for s, a in zip(suffixes, at, strict=True))
    keys = []
    for s, a in zip(suffixes, at, strict=True):
        row = torch.full((width,), -1)
        row[: a + len(s)] = torch.arange(a + len(s))
        keys.append(row.expand(len(s), -1))
    return RowRead(tuple(tuple(range(len(s))) for s in suffixes), keys=tuple(keys))


def test_rows_and_logits_equal_eager_forwards_of_each_suffix_alone(pair):
    model, hf = pair
    context = _tokens(N_CONTEXT)
    prefix = model.prefill(context, chunk=16)
    trace = model.extend(
        prefix,
        SUFFIXES,
        at=AT,
        read=[_all_rows(SUFFIXES, AT)],
        logits=[range(len(s)) for s in SUFFIXES],
    )
    start = 0
    for suffix, at in zip(SUFFIXES, AT, strict=True):
        out = _bare(hf, [*context[:at].tolist(), *suffix], output_attentions=True)
        stop = start + len(suffix)
        attention = torch.stack(out.attentions)[:, 0, :, at:]
        rows = trace.rows[0]
        assert torch.allclose(trace.logits[start:stop], out.logits[0, at:], atol=1e-4)
        ours = rows.at_keys[:, :, start:stop, : at + len(suffix)]
        assert torch.allclose(ours, attention, atol=1e-5)
        assert torch.equal(rows.argmax[:, :, start:stop], attention.argmax(-1))
        assert torch.allclose(rows.top[:, :, start:stop], attention.amax(-1), atol=1e-5)
        start = stop


def test_prefill_in_chunks_equals_prefill_at_once_and_the_bare_forward(pair):
    model, hf = pair
    context = _tokens(N_CONTEXT)
    whole, chunked = model.prefill(context), model.prefill(context, chunk=7)
    assert torch.allclose(whole.logits, _bare(hf, context).logits[0, -1], atol=1e-4)
    assert torch.allclose(whole.logits, chunked.logits, atol=1e-4)
    for a, b in zip(whole.keys, chunked.keys, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_contributions_sum_to_what_the_heads_write(pair):
    """Per-key contributions add up to the head, and heads to attn_out, along one direction."""
    model, hf = pair
    context, suffix = _tokens(30), _tokens(6, 5).tolist()
    unembed = hf.get_output_embeddings().weight.detach().float()
    directions = (unembed[5] - unembed[7]).expand(6, -1)
    everywhere = (tuple(range(6)),)
    sites = tuple(Site("attn_out", layer) for layer in range(3)) + (Site("resid_post", 2),)
    trace = model.extend(
        model.prefill(context),
        [suffix],
        read=[
            RowRead(everywhere, keys=(torch.arange(36).expand(6, -1),), directions=directions),
            SiteRead(sites, everywhere),
        ],
    )
    rows, norm = trace.rows[0], model.anatomy.final_norm
    assert torch.allclose(rows.toward.sum(-1), rows.toward_all, atol=1e-5)
    folded = norm.fold(directions)
    scale = norm.scale(trace.sites[Site("resid_post", 2)][None])[0, :, 0]
    for layer in range(3):
        out = trace.sites[Site("attn_out", layer)]
        post = model.anatomy.post_norms[layer]
        out = out if post is None else post.module(out)
        bias = getattr(model.anatomy.projections[layer], "bias", None)
        out = out if bias is None else out - bias
        direct = (out * model.anatomy.residual_multiplier * folded).sum(-1) / scale
        assert torch.allclose(rows.toward_all[layer].sum(0), direct, atol=1e-4)


def test_edits_of_single_rows_equal_hooks_on_the_bare_model(pair):
    model, hf = pair
    context, suffix = _tokens(30), _tokens(6, 5).tolist()
    d_head, width = model.spec.d_head, model.spec.d_model
    edits = [
        Edit(Site("z", 1, 2), "zero", rows=(1,), positions=(3, 4)),
        Edit(Site("resid_pre", 2), "replace", torch.ones(width), rows=(2,), positions=(-1,)),
    ]
    trace = model.extend(model.prefill(context), [suffix] * 3, edits=edits, logits=[range(6)] * 3)

    def zero_head(_module, args):
        z = args[0].clone()
        z[:, 33:35, 2 * d_head : 3 * d_head] = 0
        return (z,)

    def ones(_module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[:, -1] = 1
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    full = [*context.tolist(), *suffix]
    expected = [_bare(hf, full).logits[0, 30:]]
    hook = model.anatomy.projections[1].register_forward_pre_hook(zero_head)
    expected.append(_bare(hf, full).logits[0, 30:])
    hook.remove()
    hook = model.anatomy.layers[2].register_forward_pre_hook(ones, with_kwargs=True)
    expected.append(_bare(hf, full).logits[0, 30:])
    hook.remove()
    assert trace.writes == (2, 1)
    assert torch.allclose(trace.logits, torch.cat(expected), atol=1e-4)
    assert (expected[1] - expected[0]).abs().max() > 0.05
    assert (expected[2] - expected[0]).abs().max() > 0.05


def test_greedy_generation_equals_whole_forwards(pair):
    model, hf = pair
    context = _tokens(30)
    prefix = model.prefill(context)
    texts = model.generate(prefix, SUFFIXES, at=[30, 12, 30], max_new_tokens=6)
    for suffix, at, got in zip(SUFFIXES, [30, 12, 30], texts, strict=True):
        ids = [*context[:at].tolist(), *suffix]
        for _ in range(6):
            ids.append(int(_bare(hf, ids).logits[0, -1].argmax()))
        assert got == ids[-6:]


def test_generation_stops_at_a_stop_token(llama):
    model, _ = llama
    prefix = model.prefill(_tokens(30))
    free = model.generate(prefix, SUFFIXES[:1], max_new_tokens=6)[0]
    cut = model.generate(prefix, SUFFIXES[:1], max_new_tokens=6, stop=[free[2]])[0]
    assert cut == free[: free.index(free[2])]


def test_everywhere_edit_acts_in_the_prefill(llama):
    model, hf = llama
    context, suffix = _tokens(30), SUFFIXES[0]
    edit = Edit(Site("z", 0, 1), "zero")
    prefix = model.prefill(context, edits=[edit], chunk=9)
    trace = model.extend(prefix, [suffix], edits=[edit])
    d = model.spec.d_head

    def zero(_module, args):
        z = args[0].clone()
        z[..., d : 2 * d] = 0
        return (z,)

    hook = model.anatomy.projections[0].register_forward_pre_hook(zero)
    expected = _bare(hf, [*context.tolist(), *suffix]).logits[0, -1]
    hook.remove()
    assert torch.allclose(trace.logits[0], expected, atol=1e-4)
    assert prefix.trace.writes == (30,)


def test_pattern_edits_change_the_output_as_the_formula_says(llama):
    model, _ = llama
    context, suffix, head = _tokens(30), _tokens(4, 9).tolist(), Head(1, 2)
    prefix = model.prefill(context)
    site, position = Site("z", 1, 2), ((3,),) * 3
    plain = model.extend(
        prefix, [suffix], read=[RowRead(((3,),), whole=(head,)), SiteRead((site,), ((3,),))]
    )
    edits = [
        Edit(Site("pattern", 1, 2), "uniform", rows=(1,), positions=(3,)),
        Edit(Site("pattern", 1, 2), "knockout", rows=(2,), positions=(3,), keys=(0, 5, 33)),
    ]
    z = model.extend(prefix, [suffix] * 3, read=[SiteRead((site,), position)], edits=edits)
    z = z.sites[site]
    full = model.prefill([*context.tolist(), *suffix])
    values = full.values[1][0, model.spec.kv_head(2)]
    weights = plain.rows[0].whole[head][0]
    assert torch.allclose(z[0], weights @ values, atol=1e-5)
    assert torch.allclose(z[1], values.mean(0), atol=1e-5)
    kept = weights.clone()
    kept[[0, 5, 33]] = 0
    assert torch.allclose(z[2], kept / kept.sum() @ values, atol=1e-5)


def test_crop_is_the_shorter_context(llama):
    model, _ = llama
    context = _tokens(30)
    long, short = model.prefill(context), model.prefill(context[:17])
    a = model.extend(long.crop(17), SUFFIXES).logits
    b = model.extend(short, SUFFIXES).logits
    assert torch.allclose(a, b, atol=1e-5)
    with pytest.raises(SiteError, match="crop a prefix of 30"):
        long.crop(31)


def test_a_grown_prefix_is_that_of_one_prefill(pair):
    model, _ = pair
    context = _tokens(N_CONTEXT)
    whole, start = model.prefill(context), model.prefill(context[:22])
    grown = model.grow(start, context[22:])
    assert torch.equal(grown.tokens, context) and len(start) == 22
    assert torch.allclose(grown.logits, whole.logits, atol=1e-4)
    a, b = (model.extend(p, SUFFIXES).logits for p in (grown, whole))
    assert torch.allclose(a, b, atol=1e-4)
    assert model.grow(start, []) is start


def test_the_model_is_left_as_it_was(llama):
    model, hf = llama
    before, ids = hf.config._attn_implementation, _tokens(12)[None]
    with torch.no_grad():
        expected = hf(ids).logits
    prefix = model.prefill(ids[0])
    model.extend(prefix, SUFFIXES, edits=[Edit(Site("z", 0, 0), "zero")])
    assert hf.config._attn_implementation == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, expected)


def test_reading_does_not_write_into_the_prefix(llama):
    model, _ = llama
    prefix = model.prefill(_tokens(30))
    before = [k.clone() for k in prefix.keys]
    model.generate(prefix, SUFFIXES, max_new_tokens=3)
    assert all(torch.equal(a, b) for a, b in zip(before, prefix.keys, strict=True))


def test_row_order_is_the_callers_whatever_the_packing(llama):
    model, _ = llama
    prefix = model.prefill(_tokens(N_CONTEXT))
    read = RowRead(((2, 0), (1,), (-1, 0)))
    rows = model.extend(prefix, SUFFIXES, at=AT, read=[read]).rows[0]
    assert rows.suffix.tolist() == [0, 0, 1, 2, 2]
    assert rows.position.tolist() == [42, 40, 24, 33, 31]


REFUSED = {
    "a layer that is not there": Edit(Site("z", 9, 0), "zero"),
    "a head that is not there": Edit(Site("z", 0, 7), "zero"),
    "a value of another width": Edit(Site("resid_pre", 0), "add", torch.ones(3)),
    "a position outside the suffix": Edit(Site("z", 0, 0), "zero", positions=(50,)),
    "a row that is not there": Edit(Site("z", 0, 0), "zero", rows=(4,)),
}


@pytest.mark.parametrize("edit", REFUSED.values(), ids=REFUSED)
def test_bad_edits_raise_before_the_forward(llama, edit):
    model, _ = llama
    with pytest.raises(SiteError):
        model.extend(model.prefill(_tokens(10)), SUFFIXES, edits=[edit])


def test_an_edit_that_changes_nothing_is_an_error(llama):
    model, _ = llama
    prefix = model.prefill(_tokens(10))
    edit = Edit(Site("z", 0, 0), "zero", rows=())
    with pytest.raises(SiteError, match="changed nothing"):
        model.extend(prefix, SUFFIXES, edits=[edit])


def test_a_context_longer_than_the_models_is_refused(llama):
    model, _ = llama
    with pytest.raises(ModelError, match="made for 256"):
        model.prefill(_tokens(257))


def test_a_model_outside_the_shared_dispatch_is_refused():
    import transformers

    config = transformers.BloomConfig(vocab_size=120, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ModelError, match="shared dispatch"):
        HFModel(transformers.BloomForCausalLM(config).eval())


@pytest.mark.real
def test_rows_of_the_real_model_equal_eager_attention(real):
    """600 tokens of context, 13 of suffix: patterns to 1e-5, same argmax, logits to 1e-3."""
    text = "In the middle of the night the harbour master wrote 4711 on the slate. " * 40
    ids = real.tokenizer(text)["input_ids"][:613]
    out = _bare(real.hf, ids, output_attentions=True)
    prefix = real.prefill(ids[:600], chunk=256)
    trace = real.extend(
        prefix, [ids[600:]], read=[_all_rows([ids[600:]], [600])], logits=[range(13)]
    )
    attention = torch.stack(out.attentions)[:, 0, :, 600:]
    assert torch.allclose(trace.rows[0].at_keys, attention, atol=1e-5)
    assert torch.equal(trace.rows[0].argmax, attention.argmax(-1))
    assert torch.allclose(trace.logits, out.logits[0, 600:], atol=1e-3)


def test_layers_above_the_last_read_are_left_out_when_no_logits_are_wanted(pair):
    """The same activations, and none of the layers above is run."""
    model, _ = pair
    tokens, suffixes = list(range(5, 25)), [[3, 4, 5], [6, 7]]
    prefix = model.prefill(tokens)
    sites = (Site("resid_pre", 1), Site("z", 0))
    read = SiteRead(sites, ((-1,), (0, 1)))
    whole = model.extend(prefix, suffixes, read=[read])
    seen = []
    last = model.anatomy.layers[-1]
    before = last.forward
    last.forward = lambda *a, **k: seen.append(1) or before(*a, **k)
    try:
        short = model.extend(prefix, suffixes, read=[read], logits=[(), ()])
    finally:
        del last.forward
    for site in sites:
        assert torch.allclose(short.sites[site], whole.sites[site], atol=1e-5)
    assert short.logits.shape[0] == 0 and not seen


def test_sequences_without_a_prefix_equal_bare_forwards(pair):
    """Three in one packed forward; edits and gradients count from position 0 too."""
    model, hf = pair
    value = torch.linspace(-2, 2, model.spec.d_model)
    edit = Edit(Site("resid_post", 0), "add", value, (1,), (0, 2))
    everywhere = [range(len(s)) for s in SUFFIXES]
    read = SiteRead((Site("resid_pre", 1),), tuple(map(tuple, everywhere)))
    trace = model.extend(None, SUFFIXES, read=[read], logits=everywhere)
    edited = model.extend(None, SUFFIXES, edits=[edit], logits=everywhere)
    start = 0
    for i, suffix in enumerate(SUFFIXES):
        stop = start + len(suffix)
        out = _bare(hf, suffix, output_hidden_states=True)
        assert torch.allclose(trace.logits[start:stop], out.logits[0], atol=1e-4)
        own = trace.sites[Site("resid_pre", 1)][start:stop]
        assert torch.allclose(own, out.hidden_states[1][0], atol=1e-4)
        same = torch.allclose(edited.logits[start:stop], out.logits[0], atol=1e-4)
        assert same is (i != 1)
        start = stop
    found = model.gradients(
        None, SUFFIXES[0], sites=[Site("resid_pre", 0)], objective=lambda logits, _: logits.sum()
    )
    assert torch.allclose(found.logits[0], trace.logits[len(SUFFIXES[0]) - 1], atol=1e-4)
