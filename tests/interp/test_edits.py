"""Edits of a head's inputs and pattern, of the middle residual; shared stems; gradients.

The oracle is `bare`: the model itself under an attention function of the tests' own.
"""

import bare
import families
import pytest
import torch
from families import FAMILIES

from interp.backends.hf import HFModel
from interp.checks import check_edits
from interp.errors import SiteError
from interp.sites import Edit, Head, Site
from interp.trace import RowRead, SiteRead

CONTEXT, LAYER, HEAD = 26, 1, 3


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    hf = families.tiny(request.param)
    return HFModel(hf), hf


@pytest.fixture(scope="module")
def llama():
    hf = families.tiny("llama")
    return HFModel(hf), hf


def tokens(n, seed=1):
    return torch.randint(3, 120, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


CONTEXT_IDS, SUFFIX = tokens(CONTEXT), tokens(7, 5)


@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_an_edited_input_is_that_of_one_query_head(pair, kind):
    """Under grouped keys, too: the head that shares them is left alone."""
    model, hf = pair
    value = torch.linspace(-1, 1, model.spec.d_head).repeat(2, 1) * torch.tensor([[1.0], [-2.0]])
    edit = Edit(Site(kind, LAYER, HEAD), "replace", value, rows=(1,), positions=(2, 4))

    def change(stage, *parts):
        if stage == "inputs":
            dict(zip("qkv", parts, strict=True))[kind][HEAD, [CONTEXT + 2, CONTEXT + 4]] = value

    every = [range(len(SUFFIX))] * 3
    trace = model.extend(model.prefill(CONTEXT_IDS), [SUFFIX] * 3, edits=[edit], logits=every)
    got = trace.logits.view(3, len(SUFFIX), -1)
    plain = bare.run(hf, CONTEXT_IDS + SUFFIX)[CONTEXT:]
    edited = bare.run(hf, CONTEXT_IDS + SUFFIX, {LAYER: change})[CONTEXT:]
    assert torch.allclose(got[0], plain, atol=2e-4) and torch.allclose(got[2], plain, atol=2e-4)
    assert torch.allclose(got[1], edited, atol=2e-4)
    assert (edited - plain).abs().max() > 2e-3
    assert trace.writes == (2,)


@pytest.mark.parametrize("op", ["uniform", "sink"])
def test_patterns_that_replace_a_row(pair, op):
    model, hf = pair
    edit = Edit(Site("pattern", LAYER, HEAD), op, positions=(3, 6))

    def change(stage, *parts):
        if stage == "weights":
            weights, visible = parts
            for row in (CONTEXT + 3, CONTEXT + 6):
                seen = visible[row].nonzero()[:, 0]
                weights[HEAD, row] = 0
                if op == "sink":
                    weights[HEAD, row, seen[0]] = 1
                else:
                    weights[HEAD, row, seen] = 1 / len(seen)

    every = [range(len(SUFFIX))]
    got = model.extend(model.prefill(CONTEXT_IDS), [SUFFIX], edits=[edit], logits=every).logits
    expected = bare.run(hf, CONTEXT_IDS + SUFFIX, {LAYER: change})[CONTEXT:]
    assert torch.allclose(got, expected, atol=2e-4)


def test_a_zero_query_is_the_uniform_pattern_unless_a_sink_was_learned(pair):
    model, _ = pair
    prefix = model.prefill(CONTEXT_IDS)
    edits = [
        Edit(Site("q", LAYER, HEAD), "zero", rows=(0,)),
        Edit(Site("pattern", LAYER, HEAD), "uniform", rows=(1,)),
    ]
    logits = model.extend(prefix, [SUFFIX] * 2, edits=edits).logits
    same = torch.allclose(logits[0], logits[1], atol=1e-4)
    assert same != model.spec.has_sinks


def test_inputs_of_heads_can_be_read_and_put_back(pair):
    """What is read from one prompt stands in another after a replacement; k by its own group."""
    model, _ = pair
    other = [*SUFFIX[:3], *tokens(4, 9)]
    sites = tuple(Site(kind, LAYER, HEAD) for kind in ("q", "k", "v"))
    where = ((4, 5),) * 2
    read = SiteRead(sites, where)
    prefix = model.prefill(CONTEXT_IDS)
    taken = model.extend(prefix, [SUFFIX, other], read=[read]).sites
    groups = model.extend(prefix, [SUFFIX, other], read=[SiteRead((Site("k", LAYER),), where)])
    kv = model.spec.kv_head(HEAD)
    assert torch.equal(groups.sites[Site("k", LAYER)][:, kv], taken[sites[1]])
    edits = [Edit(s, "resample", taken[s][2:], rows=(0,), positions=(4, 5)) for s in sites[:1]]
    after = model.extend(prefix, [SUFFIX, other], read=[read], edits=edits).sites
    assert torch.allclose(after[sites[0]][:2], taken[sites[0]][2:], atol=1e-5)


def test_the_middle_residual_is_where_the_feed_forward_part_reads(pair):
    model, _ = pair
    prefix = model.prefill(CONTEXT_IDS)
    mid, post = Site("resid_mid", LAYER), Site("resid_post", LAYER)
    everywhere = (tuple(range(len(SUFFIX))),) * 2
    if model.anatomy.writers[LAYER] is None:
        with pytest.raises(SiteError, match="side by side"):
            model.extend(prefix, [SUFFIX] * 2, read=[SiteRead((mid,), everywhere)])
        return
    value = torch.linspace(-2, 2, model.spec.d_model)
    edit = Edit(mid, "replace", value, rows=(1,), positions=(2, 6))
    reads = SiteRead((mid, post, Site("resid_pre", LAYER), Site("attn_out", LAYER)), everywhere)
    sites = model.extend(prefix, [SUFFIX] * 2, read=[reads], edits=[edit]).sites
    n = len(SUFFIX)
    assert torch.allclose(sites[mid][[n + 2, n + 6]], value.expand(2, -1), atol=1e-4)
    norm = model.anatomy.post_norms[LAYER]
    out = sites[Site("attn_out", LAYER)][:n]
    out = out if norm is None else norm.module(out).detach()
    made = sites[Site("resid_pre", LAYER)][:n] + model.anatomy.residual_multiplier * out
    assert torch.allclose(made, sites[mid][:n], atol=1e-4)
    # the two edited places hold the same residual, so the layer makes the same of both
    assert torch.allclose(sites[post][n + 2], sites[post][n + 6], atol=1e-4)
    assert not torch.allclose(sites[post][2], sites[post][n + 2], atol=1e-2)


def test_parallel_layers_have_no_middle_residual():
    model = HFModel(families.tiny("gpt_neox"))
    assert model.anatomy.writers == (None,) * 3
    assert all(HFModel(families.tiny(f)).anatomy.writers[0] for f in ("llama", "olmo2", "gemma2"))


def many_edits(model):
    """One row for each layer and kind of edit, rows without any, and one edited twice."""
    d, width = torch.ones(model.spec.d_head), torch.ones(model.spec.d_model)
    edits, row = [], 1
    for layer in range(model.spec.n_layers):
        for site, op, value in (
            (Site("z", layer, 1), "zero", None),
            (Site("q", layer, 2), "replace", d),
            (Site("pattern", layer, 0), "uniform", None),
            (Site("resid_pre", layer), "add", width),
            (Site("mlp_out", layer), "zero", None),
            (Site("k", layer, 3), "replace", d),
        ):
            edits.append(Edit(site, op, value, rows=(row,), positions=(1, 5)))
            row += 1
    edits.append(Edit(Site("z", 2, 2), "zero", rows=(1, 2)))
    return edits, row + 2


def test_rows_on_a_common_stem_equal_each_row_alone(pair, monkeypatch):
    model, _ = pair
    monkeypatch.setattr("interp.backends.hf.PACK", 40)
    edits, n_rows = many_edits(model)
    prefix, other = model.prefill(CONTEXT_IDS), tokens(5, 8)
    suffixes = [*[SUFFIX] * n_rows, other, other]
    at = [*[CONTEXT] * n_rows, 11, 11]
    edits.append(Edit(Site("z", 2, 0), "zero", rows=(n_rows,)))
    together = model.extend(prefix, suffixes, at=at, edits=edits).logits
    for row in (0, 1, 2, 3, 5, 8, 12, 17, 18, n_rows, n_rows + 1):
        own = [
            Edit(e.site, e.op, e.value, (0,), e.positions) for e in edits if row in (e.rows or ())
        ]
        alone = model.extend(prefix, [suffixes[row]], at=[at[row]], edits=own).logits[0]
        assert torch.allclose(together[row], alone, atol=2e-4), row
    assert not any("forward" in layer.__dict__ for layer in model.anatomy.layers)


def test_the_stem_saves_the_layers_below_the_edits(llama):
    model, hf = llama
    prefix, runs = model.prefill(CONTEXT_IDS), []
    hooks = [
        hf.model.layers[i].mlp.register_forward_pre_hook(lambda _m, a, i=i: runs.append(i))
        for i in range(3)
    ]
    edits = [Edit(Site("z", 2, h % 4), "zero", rows=(h,)) for h in range(8)]
    model.extend(prefix, [SUFFIX] * 9, edits=edits)
    assert runs == [0, 1, 2]  # the stem's two, then the packed rows' last one
    runs.clear()
    model.extend(prefix, [SUFFIX] * 9, edits=edits, read=[RowRead(((0,), *((),) * 8))])
    assert runs == [0, 1, 2]
    for hook in hooks:
        hook.remove()


GRADIENT_SITES = ("z", "q", "k", "v", "resid_pre", "resid_mid", "attn_out", "mlp_out")


def test_gradients_are_those_of_finite_differences(pair):
    """An `add` edit, which shares no code with the backward pass, moves the objective as told."""
    model, hf = pair
    prefix = model.prefill(CONTEXT_IDS)
    sites = [
        Site(kind, LAYER)
        for kind in GRADIENT_SITES
        if kind != "resid_mid" or model.anatomy.writers[LAYER] is not None
    ]
    asking = [p.requires_grad for p in hf.parameters()]
    found = model.gradients(
        prefix, SUFFIX, sites=sites, objective=lambda logits, _: logits[0, 5] - logits[0, 9]
    )
    assert [p.requires_grad for p in hf.parameters()] == asking
    assert all(p.grad is None for p in hf.parameters())
    step, generator = 2e-3, torch.Generator().manual_seed(3)
    for site in sites:
        per_head = site.kind in ("q", "k", "v", "z")
        head = HEAD if site.kind in ("q", "z") else 0 if per_head else None
        width = model.spec.d_head if per_head else model.spec.d_model
        direction = torch.randn(width, generator=generator)
        # k and v are shared by a group: all of its query heads are moved together
        group = range(model.spec.n_groups) if site.kind in ("k", "v") else [head]
        edits = [
            Edit(Site(site.kind, LAYER, h), "add", sign * step * direction, (row,), (4,))
            for row, sign in enumerate((1, -1))
            for h in group
        ]
        up, down = model.extend(prefix, [SUFFIX] * 2, edits=edits).logits
        slope = ((up[5] - up[9]) - (down[5] - down[9])) / (2 * step)
        grad = found.grads[site][4] if head is None else found.grads[site][4, head]
        assert float(grad @ direction) == pytest.approx(float(slope), rel=0.05, abs=2e-2), site


def test_gradients_reach_an_objective_on_activations(llama):
    model, _ = llama
    q, z = Site("q", 2), Site("z", 0)
    found = model.gradients(
        model.prefill(CONTEXT_IDS), SUFFIX, sites=[z, q],
        objective=lambda _, seen: seen[q][-1, 1].sum(),
    )  # fmt: skip
    assert torch.equal(found.grads[q][-1, 1], torch.ones(model.spec.d_head))
    assert found.grads[q].count_nonzero() == model.spec.d_head
    assert found.grads[z].abs().sum() > 0
    assert found.value == pytest.approx(found.activations[q][-1, 1].sum().item(), rel=1e-4)


def test_cached_keys_cannot_be_edited_for_one_head(llama):
    model, _ = llama
    edit = Edit(Site("k", 0, 1), "zero")
    with pytest.raises(SiteError, match="shared by heads"):
        model.prefill(CONTEXT_IDS, edits=[edit])
    with pytest.raises(SiteError, match="shared by heads"):
        model.generate(model.prefill(CONTEXT_IDS), [SUFFIX], max_new_tokens=2, edits=[edit])


def test_an_edit_is_checked_to_change_what_it_names_and_nothing_else(pair):
    model, _ = pair
    prefix = model.prefill(CONTEXT_IDS)
    good = [
        Edit(Site("pattern", 0, 1), "uniform", positions=(2, 3)),
        Edit(Site("z", 1, 0), "zero", positions=(4,)),
        Edit(Site("q", 1, 2), "zero"),
    ]
    assert check_edits(model, prefix, SUFFIX, good).passed
    site = Site("z", 1, 0)
    own = model.extend(prefix, [SUFFIX], read=[SiteRead((site,), ((4,),))]).sites[site]
    idle = Edit(site, "replace", own, positions=(4,))
    found = check_edits(model, prefix, SUFFIX, [idle])
    assert not found.passed and str(Head(1, 0)) in found.detail


def test_what_the_feed_forward_part_is_given_leads_to_what_it_returns(pair):
    """Read, and put into another token's place: that token's output follows."""
    model, _ = pair
    given, made = Site("mlp_in", LAYER), Site("mlp_out", LAYER)
    everywhere = (tuple(range(len(SUFFIX))),)
    plain = model.extend(None, [SUFFIX], read=[SiteRead((given, made), everywhere)]).sites
    module = model.anatomy.mlp[LAYER]
    with torch.no_grad():
        out = module(plain[given][None])
    out = out[0] if isinstance(out, tuple) else out
    assert torch.allclose(out[0], plain[made], atol=1e-4)
    edit = Edit(given, "replace", plain[given][2], positions=(5,))
    edited = model.extend(None, [SUFFIX], read=[SiteRead((made,), everywhere)], edits=[edit]).sites
    assert torch.allclose(edited[made][5], plain[made][2], atol=1e-4)
