"""A whole run on a tiny model: counts against one position after another, resume, refusals."""

import numpy as np
import pytest
import torch
from families import tiny
from texts import space_tokenizer, texts

import interp
from circuits import FeatureGraph, GraphSettings, function_tokens
from circuits.edge_rules import parse_rule
from interp.errors import PromptError, ResultError, SiteError, UnknownNameError
from interp.sites import Site
from probes.feature_files import write_dictionary
from probes.features import Dictionary

SMALL = {"length": 24, "skip_first": 2, "blocks": 4, "draws": 20, "top": 4}


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return interp.load(tiny("llama"), tokenizer=space_tokenizer(), check=False)


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory, model):
    width = 48
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(width, model.spec.d_model, generator=generator)
    made = Dictionary(
        "made", "topk", rows.T.contiguous(), torch.zeros(width), rows,
        torch.zeros(model.spec.d_model), site=Site("resid_post", 1), k=3,
    )  # fmt: skip
    return str(write_dictionary(made, tmp_path_factory.mktemp("features") / "made")), made


@pytest.fixture(scope="module")
def graph(model, dictionary):
    return function_tokens(model, texts(80), features=dictionary[0], **SMALL)


def test_counts_are_those_of_whole_forwards_of_each_window(model, dictionary, graph):
    expected = np.zeros((model.spec.d_vocab, 48), int)
    occurrences = np.zeros(model.spec.d_vocab, int)
    for text in texts(80):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        for start in range(0, len(ids), SMALL["length"]):
            window = ids[start : start + SMALL["length"]]
            with torch.no_grad():
                out = model.hf(torch.tensor([window]), output_hidden_states=True)
            z = dictionary[1].encode(out.hidden_states[2][0])
            for position in range(SMALL["skip_first"], len(window)):
                occurrences[window[position]] += 1
                expected[window[position]] += (z[position] > 0).numpy()
    counts = graph.station("L1").counts
    found = np.zeros_like(expected)
    found[counts.token, counts.feature] = counts.count
    assert np.array_equal(found, expected)
    assert np.array_equal(counts.occurrences, occurrences)


def test_function_tokens_are_the_most_frequent_that_make_the_cut(graph):
    t = graph.tokens
    chosen = t[t["function"]]
    assert chosen["share"].sum() >= 0.40 > chosen["share"].iloc[:-1].sum()
    assert t["class"][t["text"].str.contains("the")].iloc[0] == "function word"


def test_every_table_and_figure_is_there_and_survives_saving(tmp_path, graph):
    from apps.graph_figures import FIGURES
    from apps.graph_page import page

    back = FeatureGraph.load(graph.save(tmp_path / "run"))
    assert back.settings == graph.settings and list(back.stations) == ["L1"]
    for name, frame in graph.station().tables.items():
        assert back.station().tables[name].shape == frame.shape, name
    assert back.to_frame().equals(graph.to_frame())
    assert back.station().dictionary.digest == graph.station().dictionary.digest
    for kind in FIGURES:
        options = {"m": 10} if kind == "classes" else {}
        assert back.figure(kind, **options).data, kind
    html = page(back)
    assert "plotly" in html and "Table 1" in html and "blind null" in html


def test_coverage_stays_below_the_blind_null(graph):
    """Frequent tokens reach no more than the same positions would, blind to the token."""
    coverage = graph.station().tables["coverage"]
    assert (coverage["of_alive"] <= coverage["null_high"] + 0.05).all()


def test_edges_and_networkx_follow_the_rule(tmp_path, graph):
    counts = graph.station().counts
    edges = graph.edges(rule="count>=2")
    assert len(edges) == int((counts.count >= 2).sum())
    net = graph.to_networkx(rule="any", n_tokens=3, n_features=10)
    tokens = graph.tokens["id"].head(3).tolist()
    assert {n for n, k in net.nodes(data="bipartite") if k == 0} == {f"t{i}" for i in tokens}
    assert sum(k == 1 for _, k in net.nodes(data="bipartite")) <= 10
    for a, b, about in net.edges(data=True):
        token, feature = (int(x[1:]) for x in sorted((a, b), reverse=True))
        at = (counts.token == token) & (counts.feature == feature)
        assert about["count"] == counts.count[at][0]
    assert graph.export(tmp_path / "g.graphml", n_tokens=3).exists()
    assert graph.export(tmp_path / "g.parquet").exists()
    with pytest.raises(ResultError, match=r"\.parquet or \.graphml"):
        graph.export(tmp_path / "g.csv")
    with pytest.raises(ResultError, match="too many"):
        graph.to_networkx(most=1)
    assert parse_rule("any").at == 1


def test_trained_dictionaries_and_the_shuffled_control(tmp_path, model):
    trained = {"layers": (0, 1), "d_dict": 40, "k": 4, "steps": 6, "batch": 64}
    options = SMALL | trained | {
        "train_tokens": 500, "control": "shuffled", "control_tokens": 300,
    }  # fmt: skip
    long = texts(80, seed=1) * 2
    whole = function_tokens(model, long, parts=tmp_path / "a", **options)
    assert list(whole.stations) == ["L0", "L1", "L0-shuffled", "L1-shuffled"]
    for s in whole.stations.values():
        assert s.quality["fvu"] > 0 and s.counts.n_positions > 0
    stopped = {"n": 0}

    def stop(done, total, what):
        if what == "positions counted":
            stopped["n"] += 1
            if stopped["n"] == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function_tokens(model, long, parts=tmp_path / "b", progress=stop, **options)
    resumed = function_tokens(model, long, parts=tmp_path / "b", **options)
    for key, s in whole.stations.items():
        other = resumed.station(key)
        assert other.dictionary.digest == s.dictionary.digest
        assert np.array_equal(other.counts.count, s.counts.count)
    with pytest.raises(ResultError, match="another run"):
        function_tokens(model, texts(80, seed=2), parts=tmp_path / "b", **options)


TRAINED = {"features": (), "train_tokens": 200}
REFUSED = {
    "no text": (PromptError, "no text|nothing", {"corpus": []}),
    "too few tokens": (PromptError, "positions in 24 documents", {"tokens": 10**7}),
    "one document": (PromptError, "too few", {"corpus": texts(1)}),
    "an iterator": (PromptError, "read twice", {"corpus": iter(texts())}),
    "no such layer": (SiteError, "no layer 9", {"layers": (9,)} | TRAINED),
    "no such rule": (UnknownNameError, "edge rule", {"rule": "often"}),
    "no such control": (UnknownNameError, "control", {"control": "random"}),
    "a cut of 2": (PromptError, "between 0 and 1", {"cut": 2.0}),
    "no dictionary there": (ResultError, "does not exist|no such|not", {"features": "nowhere"}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_line(model, dictionary, case):
    error, words, options = REFUSED[case]
    options = {"features": dictionary[0]} | options
    corpus = options.pop("corpus", None)
    with pytest.raises(error, match=words) as found:
        function_tokens(model, texts() if corpus is None else corpus, **(SMALL | options))
    assert "\n" not in str(found.value)


def test_a_dictionary_of_another_width_is_refused(tmp_path, model):
    wide = Dictionary(
        "wide", "relu", torch.eye(99), torch.zeros(99), torch.eye(99), torch.zeros(99),
        site=Site("resid_post", 0),
    )  # fmt: skip
    where = write_dictionary(wide, tmp_path / "wide")
    with pytest.raises(SiteError, match="99"):
        function_tokens(model, texts(), features=str(where), **SMALL)


def test_settings_are_frozen_and_named():
    with pytest.raises(AttributeError):
        GraphSettings().cut = 0.5
