"""Traces of a prompt against the bare model: finite differences, hooks, sums of contributions."""

import networkx as nx
import numpy as np
import pytest
import torch
from reactivations import FUNCTION, TOKENS, dictionary, model

from circuits.prompt_trace import NEW, REACTIVATED
from circuits.reactivation_prompt import OBJECTIVES, agreement, trace_prompt
from interp.errors import PromptError, ResultError, SiteError, UnknownNameError
from interp.sites import Head, Site
from interp.trace import SiteRead


@pytest.fixture(scope="module")
def trace():
    return trace_prompt(model(), dictionary(), TOKENS, function=FUNCTION, target=17,
                        heads=[Head(0, 1), Head(1, 2)], n_features=10, n_exact=8)  # fmt: skip


def changed(position, vector, *, layer=1):
    """Logits of the bare model with a vector added to the residual behind a layer."""
    hf = model().hf

    def hook(_module, _args, output):
        x = (output[0] if isinstance(output, tuple) else output).clone()
        x[:, position] += vector
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = hf.model.layers[layer].register_forward_hook(hook)
    try:
        with torch.no_grad():
            return hf(torch.tensor([TOKENS]), use_cache=False).logits[0, -1]
    finally:
        handle.remove()


def test_active_features_and_their_kinds_are_those_of_a_loop(trace):
    site, d = Site("resid_post", 1), dictionary()
    read = [SiteRead((site,), (tuple(range(len(TOKENS))),))]
    z = d.encode(model().extend(None, [TOKENS], read=read).sites[site])
    rows = trace.features.set_index(["position", "feature"])
    expected = [(p, f) for p in range(1, len(TOKENS)) for f in range(24) if z[p, f] > 0]
    assert sorted(rows.index) == expected
    for p, f in expected:
        row = rows.loc[(p, f)]
        before = [q for q in range(1, p) if z[q, f] > 0 and not FUNCTION[TOKENS[q]]]
        assert row["activation"] == pytest.approx(z[p, f].item(), rel=1e-4)
        assert row["kind"] == (REACTIVATED if before else NEW)
        assert (row["first"], row["nearest"]) == ((before[0], before[-1]) if before else (-1, -1))
    assert trace.positions["reactivated"].sum() == (rows["kind"] == REACTIVATED).sum() > 10


def test_attribution_is_the_slope_of_the_logit(trace):
    d, step = dictionary(), 2e-3
    rows = trace.features.sort_values("attribution", key=abs, ascending=False).head(4)
    for r in rows.itertuples():
        vector = step * r.activation * d.W_dec[r.feature]
        up, down = (changed(r.position, sign * vector)[17].item() for sign in (1, -1))
        assert r.attribution == pytest.approx((up - down) / (2 * step), rel=0.03, abs=2e-3)


def test_exact_ablation_is_a_hook_on_the_bare_model(trace):
    d, before = dictionary(), changed(0, torch.zeros(32))[17]
    rows = trace.features[trace.features["exact"].notna()]
    size = trace.features["attribution"].abs()
    kinds = [size[trace.features["kind"] == kind] for kind in (REACTIVATED, NEW)]
    assert set(rows.index) == {i for s in kinds for i in s.nlargest(4).index}
    for r in rows.itertuples():
        after = changed(r.position, -r.activation * d.W_dec[r.feature])[17]
        assert r.exact == pytest.approx((before - after).item(), abs=2e-4)
    assert trace.agreement["n"] == 8
    assert trace.agreement["rho"] == agreement(
        trace.features["attribution"].to_numpy(), trace.features["exact"].to_numpy()
    )["rho"]  # fmt: skip


def test_attributions_of_features_errors_and_bias_are_that_of_the_residual(trace):
    """Gradient x activation is linear: the parts of a position add up to the whole."""
    site, d = Site("resid_post", 1), dictionary()
    found = model().gradients(None, TOKENS, sites=[site], objective=lambda z, _: z[0, 17])
    whole = (found.activations[site] * found.grads[site]).sum(-1).numpy()
    bias = (found.grads[site] @ d.b_dec).numpy()
    parts = (trace.positions["attribution"] + trace.positions["error"]).to_numpy()
    np.testing.assert_allclose(parts[1:], (whole - bias)[1:], atol=2e-4)
    assert np.isnan(trace.positions["error"][0])  # read over


def test_heads_over_all_keys_bring_what_attention_writes_along_the_encoder():
    """With every token content and every feature active, sources are all earlier positions."""
    d = dictionary()
    positions = tuple(range(len(TOKENS)))
    sites = (Site("attn_out", 0), Site("attn_out", 1))
    wrote = model().extend(None, [TOKENS], read=[SiteRead(sites, (positions,))]).sites
    everything = np.zeros(120, bool)
    trace = trace_prompt(model(), d, TOKENS, function=everything, n_features=500, skip_first=0)
    traced = trace.features[trace.features["traced"]].reset_index(drop=True)
    whole = trace.heads.groupby(["position", "feature"])["whole"]
    assert trace.carried.shape == (2, 4, len(traced)) and len(whole) == len(traced)
    complete = traced[traced["n_sources"] == traced["position"]]
    assert len(complete) > 3
    own = _own_key(d, complete)
    for i, r in complete.iterrows():
        direct = sum(float(wrote[s][r["position"]] @ d.W_enc[:, int(r["feature"])]) for s in sites)
        brought = trace.carried[:, :, i].sum() + own[i]
        assert brought == pytest.approx(direct, abs=1e-4)


def _own_key(d, rows):
    """What heads bring from the position itself, which is no source: weight x value, by hand."""
    m, out = model(), {}
    prefix = m.prefill(TOKENS)
    hf = m.hf
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        attention = hf(torch.tensor([TOKENS]), output_attentions=True, use_cache=False).attentions
    hf.set_attn_implementation(before)
    for i, r in rows.iterrows():
        p, direction = int(r["position"]), d.W_enc[:, int(r["feature"])]
        total = 0.0
        for layer in (0, 1):
            out_proj = hf.model.layers[layer].self_attn.o_proj.weight.detach()
            z = torch.stack([
                attention[layer][0, h, p, p] * prefix.values[layer][0, h // 2, p] for h in range(4)
            ])  # fmt: skip
            total += float(direction @ (out_proj @ z.flatten()))
        out[i] = total
    return out


def test_layers_above_the_site_carry_nothing():
    at_pre = trace_prompt(model(), dictionary(kind="resid_pre"), TOKENS, function=FUNCTION)
    assert at_pre.carried.shape[0] == 1
    at_first = trace_prompt(model(), dictionary(layer=0, kind="resid_pre"), TOKENS,
                            function=FUNCTION)  # fmt: skip
    assert at_first.carried.shape[0] == 0 and at_first.heads.empty


def test_the_next_token_is_the_one_in_the_prompt_or_the_most_likely():
    inner = trace_prompt(model(), dictionary(), TOKENS, function=FUNCTION, position=9, n_exact=0)
    assert inner.about["target"] == TOKENS[10] and len(inner.positions) == 10
    with torch.no_grad():
        logits = model().hf(torch.tensor([TOKENS])).logits[0, -1]
    last = trace_prompt(model(), dictionary(), TOKENS, function=FUNCTION, n_exact=0)
    assert last.about["target"] == int(logits.argmax())
    assert last.about["value"] == pytest.approx(logits.max().item(), abs=1e-4)
    assert last.about["p"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_its_formula(name):
    with torch.no_grad():
        row = model().hf(torch.tensor([TOKENS])).logits[0, -1].double()
    formula = {"logit": row[5], "centred": row[5] - row.mean(),
               "log-prob": row[5] - row.logsumexp(0)}  # fmt: skip
    found = trace_prompt(model(), dictionary(), TOKENS, function=FUNCTION, target=5, n_exact=0,
                         objective=name)  # fmt: skip
    assert found.about["value"] == pytest.approx(formula[name].item(), abs=1e-4)


def test_the_graph_holds_activations_carriers_and_attributions(trace, tmp_path):
    graph = trace.to_networkx(most=60)
    nx.write_graphml(graph, tmp_path / "trace.graphml")
    again = nx.read_graphml(tmp_path / "trace.graphml")
    assert set(again.nodes) == set(graph.nodes)
    rows = trace.features.set_index(["position", "feature"])
    kinds = {"active": 0, "re-activation": 0, "attribution": 0}
    for a, b, edge in graph.edges(data=True):
        kinds[edge["kind"]] += 1
        if edge["kind"] == "attribution":
            f, p = (int(x) for x in a[1:].split("@"))
            assert edge["weight"] == rows.loc[(p, f), "attribution"] and b == "logit17"
        if edge["kind"] == "re-activation":
            (f, i), (g, j) = ([int(x) for x in n[1:].split("@")] for n in (a, b))
            assert f == g and i < j and not FUNCTION[TOKENS[i]]
            listed = trace.heads.query("position == @j and feature == @f and source == @i")
            assert edge["weight"] == pytest.approx(listed["contribution"].sum())
            assert edge["retrieval"] == (edge["head"] in ("L0H1", "L1H2"))
    assert all(kinds.values()) and kinds["active"] == kinds["attribution"] == 60
    assert set(trace.to_frame()["feature"]) <= set(trace.features["feature"])


def test_features_left_out_are_not_looked_at(trace):
    gone = np.zeros(24, bool)
    gone[trace.features["feature"].iloc[0]] = True
    found = trace_prompt(model(), dictionary(), TOKENS, function=FUNCTION, target=17, left_out=gone)
    assert not found.features["feature"].isin(np.flatnonzero(gone)).any()
    np.testing.assert_allclose(found.positions["error"], trace.positions["error"], atol=1e-5)


REFUSED = {
    "a position outside": ({"position": 40}, PromptError, "outside"),
    "too short a prompt": ({"position": 1}, PromptError, "needs 3"),
    "an objective": ({"objective": "probability"}, UnknownNameError, "objective"),
    "a head that is not there": ({"heads": [Head(9, 0)]}, SiteError, "no head"),
}


@pytest.mark.parametrize("options,error,match", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        trace_prompt(model(), dictionary(), TOKENS, function=FUNCTION, **options)


def test_dictionaries_of_other_sites_are_refused():
    for made in (dictionary(kind="mlp_out"), dictionary(out_site=Site("mlp_out", 1))):
        with pytest.raises(ResultError, match="no autoencoder of the residual"):
            trace_prompt(model(), made, TOKENS, function=FUNCTION)
