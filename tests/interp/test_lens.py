"""TransformerLens: a user's bridge stays as it was, wrong ones are refused, names go both ways."""

import subprocess
import sys
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers

import interp
from interp.backends import lens, versions
from interp.backends.hf import HFModel
from interp.bundled import model_path
from interp.errors import ModelError, SiteError, UnknownNameError
from interp.fingerprint import weight_hash
from interp.hook_names import HOOKS, hook_name, lens_heads, ranked_heads, site_at
from interp.sites import SITE_KINDS, Edit, Head, Site
from interp.trace import RowRead, SiteRead, everything
from tests.interp.tiny import save_folder, tiny_model, tiny_tokenizer

TOKENS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(1))


def bridge_of(hf):
    return lens.boot(hf, HFModel(hf).spec)


@pytest.fixture
def bridge():
    made = bridge_of(tiny_model())
    made.tokenizer = tiny_tokenizer()
    return made


def state(bridge):
    """What a user could see of a bridge."""
    model = bridge.original_model
    points = {n: len(p.fwd_hooks) + len(p.bwd_hooks) for n, p in bridge.hook_dict.items()}
    with torch.no_grad():
        logits = bridge(TOKENS)
    return {
        "logits": logits,
        "hooks": points,
        "torch hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) for m in bridge.modules()
        ],
        "training": [m.training for m in bridge.modules()],
        "classes": [type(m) for m in bridge.modules()],
        "attention": model.config._attn_implementation,
        "config": (model.config.to_dict(), dict(vars(bridge.cfg))),
        "weights": [(id(p), p.requires_grad) for p in bridge.parameters()],
    }


def same(a, b):
    assert torch.equal(a.pop("logits"), b.pop("logits"))
    assert a == b


@pytest.mark.parametrize("backend", [None, "hf", "lens", "nnsight"])
def test_a_users_bridge_is_left_as_it_was(bridge, backend):
    seen = []
    bridge.add_perma_hook("blocks.1.hook_resid_post", lambda x, hook: seen.append(x.shape))
    bridge.train()
    before = state(bridge)
    model = interp.load(bridge, backend=backend)
    assert model.name == (backend or "hf")
    prefix = model.prefill(TOKENS[0])
    edit = Edit(Site("z", 1, 2), "zero")
    model.extend(prefix, [[5, 6]], edits=[edit], read=[RowRead(((0, 1),))])
    model.generate(prefix, [[5, 6]], max_new_tokens=2)
    same(state(bridge), before)
    assert seen


def test_the_engine_shares_the_bridges_weights(bridge):
    model = interp.load(bridge)
    mine = {p.data_ptr() for p in model.hf.parameters()}
    assert mine <= {p.data_ptr() for p in bridge.original_model.parameters()}
    assert model.source.weight_hash == weight_hash(tiny_model())
    assert "TransformerBridge of the caller" in model.source.detail


def test_booting_leaves_the_transformers_model_alone():
    hf = tiny_model()
    hf.train()
    before = hf.config.to_dict(), hf.config._attn_implementation, [type(m) for m in hf.modules()]
    with torch.no_grad():
        logits = hf.eval()(TOKENS).logits
    hf.train()
    model = interp.load(hf, tokenizer=tiny_tokenizer(), backend="lens")
    model.extend(None, [[5, 6, 7]], edits=[Edit(Site("pattern", 0, 1), "uniform")])
    after = hf.config.to_dict(), hf.config._attn_implementation, [type(m) for m in hf.modules()]
    assert after == before and hf.training
    with torch.no_grad():
        assert torch.equal(hf.eval()(TOKENS).logits, logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_bridge_that_disagrees_is_refused_and_told_where(family):
    bridge = bridge_of(families.tiny(family))
    bridge.tokenizer = tiny_tokenizer()
    interp.load(bridge)

    def halve(z, hook):
        z = z.clone()
        z[:, :, 2] *= 0.5
        return z

    def shift(x, hook):
        return x + torch.linspace(-1, 1, x.shape[-1])

    bridge.add_perma_hook("blocks.1.attn.hook_z", halve)
    with pytest.raises(ModelError, match=r"begins at L1\.attn_out; take its permanent hooks off"):
        interp.load(bridge)
    bridge.reset_hooks(including_permanent=True)
    bridge.add_perma_hook("blocks.0.hook_resid_pre", shift)
    with pytest.raises(ModelError, match=r"begins at L0\.(resid_pre|attn_out)"):
        interp.load(bridge)
    bridge.reset_hooks(including_permanent=True)
    bridge.add_perma_hook("unembed.hook_in", lambda x, hook: 2 * x)
    with pytest.raises(ModelError, match="all layers agree"):
        interp.load(bridge)
    assert interp.load(bridge, check=False).name == "hf"


def test_processed_weights_are_taken_where_they_have_a_plain_counterpart():
    for family, fits in (("llama", True), ("gpt2", False)):
        bridge = bridge_of(families.tiny(family))
        bridge.tokenizer = tiny_tokenizer()
        bridge.enable_compatibility_mode(disable_warnings=True)
        if fits:
            model = interp.load(bridge)
            want = bridge(TOKENS[:1]).log_softmax(-1)[0]
            got = model.extend(None, TOKENS[:1].tolist(), logits=[range(12)]).logits.log_softmax(-1)
            assert torch.allclose(got, want, atol=1e-3)
        else:
            with pytest.raises(ModelError, match="load it before enable_compatibility_mode"):
                interp.load(bridge)


def test_a_bridge_of_a_family_outside_the_dispatch_is_run_as_it_is():
    settings = {"vocab_size": 120, "bos_token_id": 1, "eos_token_id": 2, "rotary_dim": 4}
    config = transformers.GPTJConfig(n_embd=32, n_layer=2, n_head=4, n_positions=64, **settings)
    config._attn_implementation = "eager"
    hf = transformers.GPTJForCausalLM(config).eval()
    plain = interp.load(hf, tokenizer=tiny_tokenizer(), backend="lens")
    model = interp.load(plain.tap.bridge, tokenizer=tiny_tokenizer())
    assert model.name == "lens" and model.tap.bridge is plain.tap.bridge
    with torch.no_grad():
        out = hf(TOKENS[:1], output_attentions=True)
    read = RowRead(((3, 11),), keys=(torch.arange(12).expand(2, -1),))
    trace = model.extend(None, TOKENS[:1].tolist(), read=[read], logits=[range(12)])
    attention = torch.stack(out.attentions)[:, 0][:, :, [3, 11]]
    assert torch.allclose(trace.rows[0].at_keys, attention, atol=1e-5)
    assert torch.allclose(trace.logits, out.logits[0], atol=1e-4)


def test_a_bridge_that_has_lost_a_weight_is_refused(bridge):
    norm = bridge.original_model.model.norm._modules["_original_component"]
    del norm.weight
    with pytest.raises(
        ModelError, match=r"lacks 1 weights of LlamaForCausalLM \(model\.norm\.weight"
    ):
        interp.load(bridge)


def test_what_is_no_bridge_of_a_transformers_model_is_refused(bridge):
    old = type("HookedTransformer", (), {"__module__": "transformer_lens.HookedTransformer"})()
    with pytest.raises(ModelError, match="HookedTransformer wraps no transformers model"):
        interp.load(old, tokenizer=tiny_tokenizer())
    with pytest.raises(UnknownNameError, match="did you mean lens"):
        interp.load(bridge, backend="lense")
    with pytest.raises(ModelError, match="remote= is for nnsight wrappers"):
        interp.load(bridge, backend="lens", remote=True)
    bridge.tokenizer = None
    with pytest.raises(ModelError, match="live TransformerBridge needs tokenizer="):
        interp.load(bridge)


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        (
            "transformer-lens",
            "2.18.0",
            "differs; pip install 'transformer-lens>=3.9,<5.0'",
        ),
        ("transformer-lens", "5.0.1", "whose interface differs"),
        ("nnsight", "0.7.1", "whose interface differs; pip install 'nnsight>=0.8,<0.9'"),
    ],
)
def test_other_versions_are_told_before_the_import(monkeypatch, package, version, said):
    versions.need(package)
    monkeypatch.setattr(versions.metadata, "version", lambda name: version)
    with pytest.raises(ModelError, match=said):
        versions.need(package)
    model, name = tiny_model(), {"nnsight": "nnsight"}.get(package, "lens")
    with pytest.raises(ModelError, match=said):
        interp.load(model, tokenizer=tiny_tokenizer(), backend=name)


def test_a_missing_library_is_told():
    with pytest.raises(ModelError, match="is not installed; pip install"):
        versions.NEEDED["nowhere-lens"] = ((1, 0), (2, 0))
        try:
            versions.need("nowhere-lens")
        finally:
            del versions.NEEDED["nowhere-lens"]


def test_neither_library_is_imported_unless_it_is_used(tmp_path):
    save_folder(tmp_path / "model")
    code = (
        "import sys, interp\n"
        f"m = interp.load({str(tmp_path / 'model')!r}, device='cpu')\n"
        "m.extend(m.prefill([3, 4, 5]), [[6, 7]])\n"
        "print(sorted({'transformer_lens', 'nnsight'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert out.stdout.strip() == "[]", out.stderr


@pytest.mark.real
def test_a_bridge_booted_by_transformer_lens_itself_is_taken(real):
    """As a user boots one: from a folder, by `boot_transformers`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with lens.quiet():
        from transformer_lens.model_bridge import TransformerBridge

        folder = model_path("smollm2-135m")
        bridge = TransformerBridge.boot_transformers(
            "local/smollm2-135m",
            hf_model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device="cpu",
        )
    model = interp.load(bridge)
    assert model.name == "hf" and model.source.weight_hash == real.source.weight_hash
    ids = model.tokenizer("The harbour master wrote 4711 on the slate.")["input_ids"]
    with torch.no_grad():
        want = bridge(torch.tensor([ids]))[0, -1]
    assert torch.allclose(model.prefill(ids).logits, want, atol=2e-3)


# -- names ----------------------------------------------------------------------------------------


def test_names_go_both_ways():
    for kind in SITE_KINDS:
        assert site_at(hook_name(Site(kind, 5))) == Site(kind, 5)
    assert hook_name(Site("z", 5, 3)) == "blocks.5.attn.hook_z"
    assert site_at("blocks.5.attn.hook_z", 3) == Site("z", 5, 3)
    assert site_at("blocks.0.hook_out") == Site("resid_post", 0)
    assert hook_name(Site("q", 1), rotary=False) == "blocks.1.attn.hook_q"
    assert site_at("blocks.1.attn.hook_q", rotary=False) == Site("q", 1)
    with pytest.raises(SiteError, match="hook_rot_q"):
        site_at("blocks.1.attn.hook_q")
    with pytest.raises(SiteError, match="is no site here; known: blocks"):
        site_at("blocks.1.mlp.hook_pre")
    with pytest.raises(SiteError, match="is no site here"):
        site_at("ln_final.hook_scale")


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "gpt2", "mixtral"])
def test_a_hook_point_holds_what_the_site_of_its_name_reads(family):
    """The bridge's own cache against our engine, by name; the middle residual among them."""
    hf = families.tiny(family)
    model, bridge = HFModel(hf), bridge_of(hf)
    _, cache = bridge.run_with_cache(TOKENS[:1])
    rotary = family != "gpt2"
    sites = [Site(kind, 1) for kind in HOOKS if kind != "pattern"]
    seen = model.extend(
        None, TOKENS[:1].tolist(), read=[SiteRead(tuple(sites), (range(12),))]
    ).sites
    for site in sites:
        name = hook_name(site, rotary=rotary)
        assert torch.allclose(cache[name][0], seen[site], atol=1e-4), name


def test_heads_go_both_ways():
    scores = torch.tensor([[0.1, 0.9, torch.nan], [0.5, 0.2, 0.9]])
    assert ranked_heads(scores, 3) == [Head(0, 1), Head(1, 2), Head(1, 0)]
    assert len(ranked_heads(np.asarray(scores))) == 5
    assert lens_heads([Head(0, 1), Head(1, 2)]) == [(0, 1), (1, 2)]
    with pytest.raises(SiteError, match=r"\[layer, head\] expected"):
        ranked_heads(scores[0])


# -- the activation cache -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_an_activation_cache_of_ours_is_that_of_the_bridge(family):
    hf = families.tiny(family)
    model, bridge = HFModel(hf), bridge_of(hf)
    read = everything(model.spec, 12, batch=2)
    cache = model.extend(None, TOKENS.tolist(), read=read).to_activation_cache(bridge, batch=2)
    _, theirs = bridge.run_with_cache(TOKENS)
    assert {hook_name(Site("z", 2)), hook_name(Site("pattern", 0)), "ln_final.hook_scale"} <= set(
        cache.keys()
    )
    for name, value in cache.items():
        if name in theirs.cache_dict:
            assert value.shape == theirs[name].shape, name
            assert torch.allclose(value, theirs[name], atol=1e-4), name
    ours, want = (c.stack_head_results(layer=-1) for c in (cache, theirs))
    assert torch.allclose(ours, want, atol=1e-4)
    a, b = (c.logit_attrs(x, 7) for c, x in ((cache, ours), (theirs, want)))
    assert torch.allclose(a, b, atol=1e-4)


def test_a_cache_without_a_bridge_has_names_and_shapes():
    model = HFModel(tiny_model())
    trace = model.extend(None, TOKENS.tolist(), read=everything(model.spec, 12, batch=2))
    cache = trace.to_activation_cache(batch=2)
    assert cache["blocks.1.attn.hook_z"].shape == (2, 12, 4, 8)
    assert cache["blocks.1.attn.hook_pattern"].shape == (2, 4, 12, 12)
    assert torch.allclose(cache["pattern", 0].sum(-1), torch.ones(2, 4, 12), atol=1e-5)


def test_a_trace_of_parts_makes_no_cache():
    model = HFModel(tiny_model())
    one = model.extend(None, [[5, 6, 7]], read=[SiteRead((Site("z", 0, 1),), ((0, 1, 2),))])
    with pytest.raises(SiteError, match=r"read L0\.z in place of L0H1\.z"):
        one.to_activation_cache()
    uneven = model.extend(None, [[5, 6], [7]], read=[SiteRead((Site("z", 0),), ((0, 1), (0,)))])
    with pytest.raises(SiteError, match="no 2 sequences of one length"):
        uneven.to_activation_cache(batch=2)
    rows = model.extend(None, [[5, 6]], read=[RowRead(((0, 1),), whole=(Head(0, 1),))])
    with pytest.raises(SiteError, match="rows of every head"):
        rows.to_activation_cache()
