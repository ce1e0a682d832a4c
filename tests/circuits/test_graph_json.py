"""Attribution-graph files: read back, checked, and damaged on purpose."""

import json

import numpy as np
import pytest
from reactivations import FUNCTION, TOKENS, dictionary, model

from circuits import graph_json
from circuits.graph_json import (
    check_graph_json,
    cumulative,
    influences,
    pair,
    unpair,
    write_graph_json,
)
from circuits.reactivation_prompt import trace_prompt
from interp.errors import ResultError


@pytest.fixture(scope="module")
def trace():
    return trace_prompt(model(), dictionary(layer=0), TOKENS, function=FUNCTION, target=17)


def write(trace, folder, **options):
    return write_graph_json(trace, folder, slug="prompt", model_name="tiny", **options)


def test_a_graph_of_layer_zero_is_read_back_whole(trace, tmp_path):
    """Layer 0 is where errors once took the names of features."""
    path = write(trace, tmp_path)
    counts = check_graph_json(path)
    n = len(TOKENS)
    assert counts["embedding"] == n and counts["mlp reconstruction error"] == n - 1
    assert counts["logit"] == 1
    assert counts["cross layer transcoder"] == len(trace.features)
    graph = json.loads(path.read_text("utf-8"))
    logit = next(x for x in graph["nodes"] if x["feature_type"] == "logit")
    assert logit["node_id"] == f"4_17_{n - 1}" and logit["is_target_logit"]
    assert logit["clerp"] == f'Output "<17>" (p={trace.about["p"]:.3f})'
    assert graph["nodes"][2]["node_id"] == f"E_{TOKENS[2]}_2"


def test_links_into_a_feature_add_up_to_its_activation(trace, tmp_path):
    graph = json.loads(write(trace, tmp_path).read_text("utf-8"))
    into = {}
    for link in graph["links"]:
        into[link["target"]] = into.get(link["target"], 0) + link["weight"]
    features = [x for x in graph["nodes"] if x["feature_type"] == "cross layer transcoder"]
    for node in features:
        assert into[node["node_id"]] == pytest.approx(node["activation"], abs=1e-4)
    weights = {(x["source"], x["target"]): x["weight"] for x in graph["links"]}
    for r in trace.features.itertuples():
        name = f"0_{r.feature}_{r.position}"
        assert weights[name, f"4_17_{len(TOKENS) - 1}"] == pytest.approx(r.attribution, rel=1e-4)


def test_the_same_trace_gives_the_same_file_and_the_list_holds_each_graph_once(trace, tmp_path):
    first = write(trace, tmp_path).read_bytes()
    assert write(trace, tmp_path).read_bytes() == first
    write_graph_json(trace, tmp_path, slug="another", model_name="tiny")
    listed = json.loads((tmp_path / "graph-metadata.json").read_text("utf-8"))["graphs"]
    assert [g["slug"] for g in listed] == ["another", "prompt"]


def test_a_cap_keeps_the_largest_and_tells_what_it_dropped(trace, tmp_path):
    fixed = 2 * len(TOKENS) + 1
    path = write(trace, tmp_path, most=fixed + 80)
    counts = check_graph_json(path)
    assert counts["cross layer transcoder"] == 80
    about = json.loads(path.read_text("utf-8"))["metadata"]["mnemoscope"]
    assert about["dropped_features"] == len(trace.features) - 80 > 0
    with pytest.raises(ResultError, match="no room"):
        write(trace, tmp_path, most=fixed)
    with pytest.raises(ResultError, match="cannot name a graph"):
        write_graph_json(trace, tmp_path, slug="../up", model_name="tiny")


def test_influence_is_the_power_series():
    rng = np.random.default_rng(0)
    matrix = np.tril(rng.normal(size=(7, 7)), -1)
    start = np.array([0, 0, 0, 0, 0, 0.3, 0.7])
    size = np.abs(matrix)
    size[1:] /= size[1:].sum(1, keepdims=True)
    expected, now = np.zeros(7), start
    for _ in range(7):
        now = now @ size
        expected += now
    np.testing.assert_allclose(influences(matrix, start), expected)
    shares = cumulative(expected)
    order = np.argsort(-expected)
    np.testing.assert_allclose(shares[order], np.cumsum(expected[order]) / expected.sum())
    with pytest.raises(ResultError, match="circle"):
        influences(np.array([[0, 1.0], [1.0, 0]]), np.ones(2))


def test_pairing_is_one_to_one():
    pairs = [(a, b) for a in range(40) for b in range(40)] + [(41, 1 << 20), (1 << 20, 3)]
    assert len({pair(*p) for p in pairs}) == len(pairs)
    assert [unpair(pair(*p)) for p in pairs] == pairs


def _first(graph, kind):
    return next(n for n in graph["nodes"] if n["feature_type"] == kind)


DAMAGE = {
    "a link without an end": (lambda g: g["nodes"].pop(5), "link ends at"),
    "a node twice": (lambda g: g["nodes"].append(g["nodes"][0]), "there twice"),
    "another feature": (
        lambda g: _first(g, graph_json.FEATURE).update(feature=1), "is that of layer"),
    "a place outside": (lambda g: g["nodes"][0].update(ctx_idx=99), "stands at 99"),
    "no influence": (lambda g: g["nodes"][0].update(influence=None), "influence"),
    "a field missing": (lambda g: g["links"][0].pop("weight"), "weight is missing"),
    "no number": (lambda g: g["links"][0].update(weight=float("nan")), "NaN is no number"),
    "no nodes": (lambda g: g.pop("nodes"), "no attribution graph"),
}  # fmt: skip


@pytest.mark.parametrize("damage,match", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_told(trace, tmp_path, damage, match):
    path = write(trace, tmp_path)
    graph = json.loads(path.read_text("utf-8"))
    damage(graph)
    path.write_text(json.dumps(graph), "utf-8")
    with pytest.raises(ResultError, match=match):
        check_graph_json(path)
