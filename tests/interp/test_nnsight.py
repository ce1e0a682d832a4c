"""nnsight: a user's wrapper stays as it was, other families by source hooks, the remote path."""

import pytest
import torch
import transformers

import interp
from interp.backends.outline import output_projection
from interp.errors import ModelError, SiteError
from interp.sites import Edit, Head, Site
from interp.trace import RowRead, SiteRead
from tests.interp.tiny import tiny_model, tiny_tokenizer

TOKENS = torch.randint(3, 120, (20,), generator=torch.Generator().manual_seed(1))
N_CONTEXT = 14
SMALL = {"vocab_size": 120, "bos_token_id": 1, "eos_token_id": 2}
GPT = {**SMALL, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
FALCON = {**SMALL, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
OTHERS = {
    "bloom": ("Bloom", {**SMALL, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon": ("Falcon", FALCON),
    "falcon, grouped": ("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("Falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "gptj": ("GPTJ", GPT),
    "codegen": ("CodeGen", GPT),
    "gpt_neo": ("GPTNeo", {**SMALL, "hidden_size": 32, "num_layers": 3, "num_heads": 4,
                           "attention_types": [[["global", "local", "global"], 1]],
                           "window_size": 8, "max_position_embeddings": 64}),
    "mpt": ("Mpt", {**SMALL, "d_model": 32, "n_layers": 3, "n_heads": 4}),
}  # fmt: skip
"""Families whose attention does not go through transformers' shared dispatch."""


def other(family):
    name, settings = OTHERS[family]
    config = getattr(transformers, f"{name}Config")(**settings)
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(8)
    return model


@pytest.fixture(scope="module", params=OTHERS)
def pair(request):
    hf = other(request.param)
    return request.param, hf, interp.load(hf, tokenizer=tiny_tokenizer(), backend="nnsight")


def eager(hf, tokens=TOKENS):
    with torch.no_grad():
        return hf(tokens[None], use_cache=False, output_attentions=True)


def test_rows_logits_and_residuals_of_other_families_are_those_of_eager_attention(pair):
    _, hf, model = pair
    out = eager(hf)
    n = len(TOKENS)
    suffix, where = TOKENS[N_CONTEXT:].tolist(), (tuple(range(n - N_CONTEXT)),)
    read = [
        RowRead(where, keys=(torch.arange(n).expand(n - N_CONTEXT, -1),), whole=(Head(1, 2),)),
        SiteRead((Site("resid_pre", 1), Site("resid_post", 0)), where),
    ]
    trace = model.extend(model.prefill(TOKENS[:N_CONTEXT]), [suffix], read=read, logits=where)
    attention = torch.stack(out.attentions)[:, 0, :, N_CONTEXT:]
    rows = trace.rows[0]
    assert torch.allclose(trace.logits, out.logits[0, N_CONTEXT:], atol=1e-4)
    assert torch.allclose(rows.at_keys, attention, atol=1e-5)
    assert torch.equal(rows.argmax, attention.argmax(-1))
    with torch.no_grad():
        middle = hf(TOKENS[None], use_cache=False, output_hidden_states=True).hidden_states[1]
    for site in read[1].sites:
        assert torch.allclose(trace.sites[site], middle[0, N_CONTEXT:], atol=1e-4)


def test_ablating_a_head_of_other_families_is_zero_before_the_projection(pair):
    """In the suffix alone, and everywhere; the oracle is a torch hook on the bare model."""
    _, hf, model = pair
    projection = output_projection(model.anatomy.attention[1])
    edit = [Edit(Site("z", 1, 2), "zero")]
    suffix = TOKENS[N_CONTEXT:].tolist()
    everywhere = model.prefill(TOKENS[:N_CONTEXT], edits=edit)
    plain = eager(hf).logits[0, -1]
    for prefix, start in ((model.prefill(TOKENS[:N_CONTEXT]), N_CONTEXT), (everywhere, 0)):

        def zero(_module, args, start=start):
            z = args[0].clone()
            z[:, start:, 16:24] = 0
            return (z, *args[1:])

        hook = projection.register_forward_pre_hook(zero)
        want = eager(hf).logits[0, -1]
        hook.remove()
        trace = model.extend(prefix, [suffix], edits=edit)
        assert torch.allclose(trace.logits[0], want, atol=1e-4)
        assert trace.writes == (len(suffix),)
        assert (want - plain).abs().max() > 1e-3


def test_pattern_edits_of_other_families_let_each_value_through_alone(pair):
    """Cutting all keys but one shows that key's value; eager weights then make the outputs."""
    _, hf, model = pair
    n, site, pattern = len(TOKENS), Site("z", 1, 2), Site("pattern", 1, 2)
    window = model.spec.windows[1] or n
    keys = range(max(0, n - window), n)
    edits = [
        Edit(pattern, "knockout", rows=(i,), positions=(-1,), keys=tuple(set(range(n)) - {key}))
        for i, key in enumerate(keys)
    ]
    edits.append(Edit(pattern, "uniform", rows=(len(keys),), positions=(-1,)))
    edits.append(Edit(pattern, "sink", rows=(len(keys) + 1,), positions=(-1,)))
    rows = [TOKENS.tolist()] * (len(keys) + 3)
    read = SiteRead((site,), ((-1,),) * len(rows))
    z = model.extend(None, rows, read=[read], edits=edits).sites[site]
    values, uniform, sink, plain = z[: len(keys)], *z[len(keys) :]
    weights = eager(hf).attentions[1][0, 2, -1]
    assert torch.allclose(weights[list(keys)] @ values, plain, atol=1e-5)
    assert torch.allclose(values.mean(0), uniform, atol=1e-5)
    assert torch.allclose(values[0], sink, atol=1e-5)
    assert (plain - uniform).abs().max() > 1e-3


def test_contributions_of_other_families_add_up_to_what_their_attention_returns(pair):
    family, hf, model = pair
    direction = torch.linspace(-1, 1, 32)
    read = RowRead(((3, 11),), directions=direction.expand(2, -1), through_final_norm=False)
    if family == "bloom":
        with pytest.raises(SiteError, match="more than project its heads' outputs"):
            model.extend(None, [TOKENS[:12].tolist()], read=[read])
        return
    rows = model.extend(None, [TOKENS[:12].tolist()], read=[read]).rows[0]
    for layer in range(3):
        projection = output_projection(model.anatomy.attention[layer])
        seen = []
        hook = projection.register_forward_hook(lambda _m, _a, out, seen=seen: seen.append(out))
        eager(hf, TOKENS[:12])
        hook.remove()
        out = seen[0][0, [3, 11]]
        out = out if projection.bias is None else out - projection.bias
        assert torch.allclose(rows.toward_all[layer].sum(0), out @ direction, atol=1e-4)


def test_what_a_source_does_not_show_is_refused(pair):
    family, _, model = pair
    if family.split(",")[0] in ("bloom", "falcon", "mpt"):
        with pytest.raises(SiteError, match="shows no q of heads"):
            model.extend(None, [[5, 6]], edits=[Edit(Site("q", 1, 0), "zero")])
    else:
        read = SiteRead((Site("q", 1), Site("v", 1)), ((0, 1),))
        assert model.extend(None, [[5, 6]], read=[read]).sites[Site("q", 1)].shape == (2, 4, 8)
    attn_out = SiteRead((Site("attn_out", 1),), ((0,),))
    if family == "bloom":
        with pytest.raises(SiteError, match="do not return what they add alone"):
            model.extend(None, [[5, 6]], read=[attn_out])
    else:
        model.extend(None, [[5, 6]], read=[attn_out])


def test_a_family_outside_the_dispatch_is_run_by_what_it_came_in():
    from nnsight import NNsight

    hf = other("bloom")
    with pytest.raises(ModelError, match="shared dispatch.*backend='nnsight' or 'lens'"):
        interp.load(hf, tokenizer=tiny_tokenizer())
    assert interp.load(NNsight(hf), tokenizer=tiny_tokenizer()).name == "nnsight"
    with pytest.raises(ModelError, match="shared dispatch"):
        interp.load(NNsight(other("bloom")), tokenizer=tiny_tokenizer(), backend="hf")


# -- what a user brings ---------------------------------------------------------------------------


def wrappers():
    from nnsight import LanguageModel, NNsight, TransformersModel

    yield NNsight(tiny_model())
    yield TransformersModel(tiny_model(), tokenizer=tiny_tokenizer())
    with pytest.warns(FutureWarning, match="TransformersModel"):
        old = LanguageModel(tiny_model(), tokenizer=tiny_tokenizer())
    yield old


def state(wrapper):
    module = wrapper._module
    with wrapper.trace(TOKENS[None], use_cache=False):
        logits = wrapper.output.logits.save()
    return {
        "logits": logits.detach(),
        "dicts": [sorted(m.__dict__) for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()],
        "training": [m.training for m in module.modules()],
        "config": (module.config.to_dict(), module.config._attn_implementation),
        "weights": [(id(p), p.requires_grad) for p in module.parameters()],
    }


@pytest.mark.parametrize("backend", [None, "nnsight"])
def test_a_users_wrapper_is_left_as_it_was(backend):
    for wrapper in wrappers():
        wrapper._module.model.layers[0].train()
        before = state(wrapper)
        model = interp.load(wrapper, tokenizer=tiny_tokenizer(), backend=backend)
        assert model.name == (backend or "hf")
        assert f"live {type(wrapper).__name__} of the caller" in model.source.detail
        edit = Edit(Site("z", 1, 2), "zero")
        model.extend(model.prefill(TOKENS), [[5, 6]], edits=[edit], read=[RowRead(((0, 1),))])
        after = state(wrapper)
        assert torch.equal(after.pop("logits"), before.pop("logits"))
        assert after == before
        mine = {p.data_ptr() for p in model.hf.parameters()}
        assert mine == {p.data_ptr() for p in wrapper._module.parameters()}


def test_a_wrapper_with_an_edit_left_on_is_refused_and_told_where():
    from nnsight import NNsight

    wrapper = NNsight(tiny_model())
    with wrapper.edit(inplace=True):
        wrapper.model.layers[1].mlp.output[:] = 0
    with pytest.raises(ModelError, match=r"begins at L1\.(mlp_out|resid_post); take its edits off"):
        interp.load(wrapper, tokenizer=tiny_tokenizer())
    wrapper.clear_edits()
    assert interp.load(wrapper, tokenizer=tiny_tokenizer()).name == "hf"


def test_wrappers_that_cannot_be_measured_are_refused():
    from nnsight import NNsight

    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(tiny_model().config)
    with pytest.raises(ModelError, match="are not loaded; make it with dispatch=True"):
        interp.load(NNsight(empty), tokenizer=tiny_tokenizer())
    with pytest.raises(ModelError, match="transformers model, a TransformerBridge or an nnsight"):
        interp.load(NNsight(torch.nn.Linear(2, 2)), tokenizer=tiny_tokenizer())
    with pytest.raises(ModelError, match="live NNsight needs tokenizer="):
        interp.load(NNsight(tiny_model()))


# -- elsewhere ------------------------------------------------------------------------------------


def test_a_trace_that_travels_brings_the_same_back():
    """Serialised, taken apart where our modules are hidden, run, and returned: nnsight's rehearsal.

    The service itself was not reached from here.
    """
    from nnsight import TransformersModel

    wrapper = TransformersModel(tiny_model(), tokenizer=tiny_tokenizer())
    here = interp.load(wrapper)
    there = interp.load(wrapper, backend="nnsight", remote="local", check=False)
    suffix, where = TOKENS[N_CONTEXT:].tolist(), (tuple(range(6)),)
    read = [
        RowRead(where, keys=(torch.arange(20).expand(6, -1),), whole=(Head(1, 2),)),
        SiteRead((Site("q", 1), Site("z", 0), Site("resid_mid", 1)), where),
    ]
    edits = [
        Edit(Site("z", 0, 1), "zero"),
        Edit(Site("k", 1, 2), "zero", positions=(1,)),
        Edit(Site("resid_mid", 0), "add", torch.linspace(-1, 1, 32), positions=(2,)),
    ]
    a, b = (
        m.extend(m.prefill(TOKENS[:N_CONTEXT]), [suffix], read=read, edits=edits)
        for m in (here, there)
    )
    assert torch.allclose(a.logits, b.logits, atol=1e-4)
    assert torch.allclose(a.rows[0].at_keys, b.rows[0].at_keys, atol=1e-5)
    assert a.writes == b.writes
    for site, want in a.sites.items():
        assert torch.allclose(want, b.sites[site], atol=1e-4)


def test_what_has_no_name_on_a_service_cannot_be_sent_there():
    from nnsight import NNsight

    with pytest.raises(ModelError, match="has no name on a service"):
        interp.load(NNsight(tiny_model()), tokenizer=tiny_tokenizer(), backend="nnsight",
                    remote=True)  # fmt: skip
    with pytest.raises(ModelError, match="remote= is for nnsight wrappers"):
        interp.load(tiny_model(), tokenizer=tiny_tokenizer(), remote=True)
