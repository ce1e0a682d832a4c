"""A whole run on a tiny model: the index against loops over whole forwards, heads, saving."""

import itertools
from dataclasses import replace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from reactivations import dictionary
from texts import space_tokenizer, texts

import interp
from circuits import function_tokens
from circuits.head_sets import HeadSet, read_heads
from circuits.reactivation_corpus import (
    feature_names,
    reactivation,
)
from circuits.reactivation_plan import ReactivationSettings, check_reactivation
from circuits.reactivation_result import ReactivationResult
from circuits.reactivation_tables import attribution_tables, head_tables, layer_overlap
from interp.errors import PromptError, ResultError, UnknownNameError
from interp.sites import Head
from probes.feature_files import write_dictionary

GRAPH = {"length": 24, "skip_first": 2, "blocks": 4, "draws": 20, "top": 4}
SETTINGS = ReactivationSettings(
    tokens=0, shuffles=4, densest=0.55, n_predictions=6, context=12, n_features=6, n_exact=3
)


@pytest.fixture(scope="module")
def model():
    return interp.load(tiny("llama"), tokenizer=space_tokenizer(), check=False)


@pytest.fixture(scope="module")
def graph(tmp_path_factory, model):
    where = write_dictionary(dictionary(), tmp_path_factory.mktemp("features") / "made")
    return function_tokens(model, texts(30), features=str(where), **GRAPH)


@pytest.fixture(scope="module")
def result(model, graph):
    return reactivation(model, graph, texts(20, seed=5), SETTINGS, heads=read_heads("L0H1,L1H3"))


def firings(model, graph):
    """Every window's tokens and active features, by whole forwards of the bare model."""
    counts = graph.station().counts
    dense = counts.firing / counts.n_positions > SETTINGS.densest
    for document, text in enumerate(texts(20, seed=5)):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        for start in range(0, len(ids), 24):
            window = ids[start : start + 24]
            with torch.no_grad():
                out = model.hf(torch.tensor([window]), output_hidden_states=True, use_cache=False)
            z = dictionary().encode(out.hidden_states[2][0])
            active = [set(np.flatnonzero((row > 0).numpy() & ~dense)) for row in z]
            yield document, window[2:], active[2:]


def test_the_index_counts_what_whole_forwards_show(model, graph, result):
    function = graph.function_mask(model.spec.d_vocab)
    at_function = total = positions = 0
    links = {}
    for _, tokens, active in firings(model, graph):
        positions += len(tokens)
        for j, own in enumerate(active):
            for f in own:
                before = [i for i in range(j) if f in active[i] and not function[tokens[i]]]
                if before:
                    total += 1
                    at_function += function[tokens[j]]
                    token = tokens[j] if function[tokens[j]] else -1
                    links[f, token] = links.get((f, token), 0) + 1
    assert result.answer.count("often") == 3
    row = result.tables["index"].iloc[0]
    assert (row["source"], row["control"], row["n"]) == ("any source", "shuffled labels", total)
    assert row["observed"] == pytest.approx(at_function / total)
    assert result.text["positions"] == positions
    found = result.tables["links"].groupby(["feature", "token"])["count"].sum()
    assert found.to_dict() == links


def test_predictions_are_of_content_tokens_and_cells_cover_all_features(model, graph, result):
    cells = result.tables["attribution"]
    assert cells["share"].sum() == pytest.approx(1)
    assert result.text["predictions"] == 6
    exact = result.tables["exact"]
    assert len(exact) == 18 and np.isfinite(exact["exact"]).all()
    assert result.tables["agreement"].set_index(["carrier", "kind"]).loc[("all", "all"), "n"] == 18
    assert set(result.tables["contrasts"]["apart"]) <= {"all", "last", "1-4", "5-12"}


def test_contrasts_are_paired_means():
    rows = []
    for trial in range(4):
        for kind, size in (("re-activated", 6.0 + trial), ("new", 2.0)):
            rows.append({
                "what": "cell", "trial": trial, "document": trial, "carrier": "function",
                "kind": kind, "apart": "last", "n": 2, "size": size, "signed": -1.0,
            })  # fmt: skip
    tables = attribution_tables([rows])
    row = tables["contrasts"].set_index(["contrast", "apart"])
    found = row.loc[("re-activated - new, function", "all"), "mean"]
    assert found == pytest.approx(np.mean([(6 + t - 2) / 2 for t in range(4)]))
    assert tables["attribution"]["signed"].tolist() == [-0.5, -0.5]
    assert "exact" not in tables


def test_heads_are_ranked_by_share_and_joined_with_retrieval_heads(result):
    heads = result.tables["heads"]
    every = heads[heads["carrier"] == "all"]
    assert len(every) == 8 and every["share"].is_monotonic_decreasing
    assert every["top"].sum() == pytest.approx(1)
    assert set(every[every["retrieval"]]["head"]) == {"L0H1", "L1H3"}
    overlap = result.tables["overlap"]
    row = overlap[overlap["carrier"] == "all"].iloc[0]
    assert row["set"] == "retrieval heads (2 of 2 in layers below)" and len(overlap) == 3
    top = every["head"].head(2).tolist()
    assert row["overlap"] == len({"L0H1", "L1H3"} & set(top))


def test_the_overlap_is_that_of_all_sets_with_as_many_heads_in_each_layer():
    ours, theirs = [Head(0, 0), Head(0, 1), Head(1, 2)], [Head(0, 1), Head(0, 3), Head(1, 2)]
    both, expected, p = layer_overlap(ours, theirs, n_heads=4)
    sets = [
        len({*(Head(0, h) for h in a), Head(1, b)} & set(theirs))
        for a in itertools.combinations(range(4), 2)
        for b in range(4)
    ]
    assert both == 2
    assert expected == pytest.approx(np.mean(sets))
    assert p == pytest.approx(np.mean(np.array(sets) >= 2))


def test_scores_of_a_scan_are_compared_within_layers():
    rng = np.random.default_rng(0)
    share = rng.normal(size=(3, 5, 40)).astype(np.float32) + np.arange(5)[None, :, None]
    scores = np.vstack([np.tile(np.arange(5.0), (3, 1)), np.full((1, 5), 9.0)])
    order = np.argsort(-scores.ravel(), kind="stable")
    heads = HeadSet(tuple(Head(*divmod(int(i), 5)) for i in order[5:8]), scores, "made", "json")
    trial = {"share": share, "weight": share, "function": np.arange(40) % 2}
    tables = head_tables([trial], heads)
    rows = tables["overlap"].set_index(["carrier", "k"]).loc["all"]
    own = rows.loc[5]
    best = [Head(*divmod(i, 5)) for i in np.argsort(-scores[:3].ravel(), kind="stable")[:5]]
    ours = [Head.parse(h) for h in tables["heads"].query("carrier == 'all'")["head"].head(5)]
    assert own["overlap"] == len(set(best) & set(ours))
    assert rows.index.tolist() == [3, 5, 10]
    assert own["rho"] > 0.9 and own["p_rho"] < 0.01


def test_a_run_is_saved_and_read_back_and_gone_on_with(model, graph, result, tmp_path):
    again = reactivation(model, graph, texts(20, seed=5), SETTINGS, parts=tmp_path / "parts",
                         heads=read_heads("L0H1,L1H3"))  # fmt: skip
    third = reactivation(model, graph, texts(20, seed=5), SETTINGS, parts=tmp_path / "parts",
                         heads=read_heads("L0H1,L1H3"))  # fmt: skip
    back = ReactivationResult.load(again.save(tmp_path / "run"))
    for other in (again, third, back):
        for name, frame in result.tables.items():
            pd.testing.assert_frame_equal(frame, other.tables[name], check_dtype=False)
    assert back.answer == result.answer and back.names == result.names
    with pytest.raises(ResultError, match="another text"):
        reactivation(model, graph, texts(20, seed=6), SETTINGS, parts=tmp_path / "parts",
                     heads=read_heads("L0H1,L1H3"))  # fmt: skip
    (tmp_path / "run" / "links.parquet").unlink()
    with pytest.raises(ResultError, match="damaged"):
        ReactivationResult.load(tmp_path / "run")


def test_the_graph_leads_from_content_through_features_to_carriers(result, tmp_path):
    graph = result.to_networkx(n_features=8, n_carriers=5)
    kinds = nx.get_node_attributes(graph, "kind")
    assert sum(k == "feature" for k in kinds.values()) <= 8
    assert 0 < sum(k == "carrier" for k in kinds.values()) <= 5
    for node, kind in kinds.items():
        if kind == "feature":
            into = sum(d["count"] for *_, d in graph.in_edges(node, data=True))
            assert into == sum(d["count"] for *_, d in graph.out_edges(node, data=True)) > 0
    nx.write_graphml(graph, tmp_path / "corpus.graphml")


def test_features_are_named_by_the_tokens_that_excite_them_most(graph):
    counts = graph.station().counts
    feature = int(counts.feature[0])
    own = counts.feature == feature
    best = counts.token[own][np.argmax(counts.largest[own])]
    text = graph.tokens.set_index("id").loc[int(best), "text"]
    assert feature_names(graph, "L1", [feature])[feature].split()[0] == text


REFUSED = {
    "an objective": ({"objective": "loss"}, UnknownNameError),
    "no shuffles": ({"shuffles": 0}, PromptError),
    "a share": ({"densest": 0.0}, PromptError),
}


@pytest.mark.parametrize("options,error", REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_followed_are_refused(options, error):
    with pytest.raises(error):
        check_reactivation(ReactivationSettings(**options))


def test_too_little_text_for_predictions_is_refused(model, graph):
    settings = ReactivationSettings(context=200)
    with pytest.raises(PromptError, match="give more text"):
        reactivation(model, graph, texts(3), settings)
    with pytest.raises(ResultError, match="no feature came back"):
        reactivation(model, graph, texts(20), replace(SETTINGS, densest=1e-9))
