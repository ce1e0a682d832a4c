"""Figures, pages and printed ends of patching runs and circuits, on a planted model."""

import json
import re

import numpy as np
import pytest
import worlds

from apps.circuit_figures import CIRCUIT_FIGURES, PATCH_FIGURES, draw_circuit, draw_patch
from apps.circuit_report import circuit_page, finish_circuit, finish_patch, patch_page
from apps.console import Lines
from circuits.circuit import find_circuit
from circuits.patching import patch
from interp.errors import ResultError, UnknownNameError

COMMON = {"n_needles": 3, "length": 101, "prompts": tuple(worlds.PROMPTS.items())}


@pytest.fixture(scope="module")
def traced():
    model, truth = worlds.world("induction_pair")
    return find_circuit(model, truth.heads("copy"), receivers=1, senders=3, n_random=4, **COMMON)


@pytest.fixture(scope="module")
def patched():
    model, _ = worlds.world("induction_pair")
    return patch(model, layers=0, n_confirm=4, sites=("resid_pre", "mlp_out", "z"), **COMMON)


@pytest.mark.parametrize("kind", PATCH_FIGURES)
def test_patch_figures_draw(patched, kind):
    assert patched.figure(kind).data


def test_patched_sites_hold_the_shares(patched):
    fig = draw_patch(patched, "sites")
    frame = patched.to_frame("share").set_index(["direction", "site", "layer", "class"])["effect"]
    heat = fig.data[0]
    want = frame["noising", "resid_pre", 0, "value"]
    assert heat.z[0][list(heat.x).index("value")] == pytest.approx(want)
    assert fig.layout.coloraxis.cmin == -fig.layout.coloraxis.cmax


def test_screen_is_the_mean_over_questions(patched):
    fig = draw_patch(patched, "screen")
    for heat, way in zip(fig.data, patched.screen, strict=True):
        assert np.allclose(heat.z, patched.screen[way].mean(0).sum(0))


@pytest.mark.parametrize("kind", CIRCUIT_FIGURES)
def test_circuit_figures_draw(traced, kind):
    assert traced.figure(kind).data


def test_the_graph_shows_every_node_and_edge(traced):
    fig, graph = draw_circuit(traced), traced.graph()
    nodes = fig.data[-1]
    assert set(nodes.text) == set(graph.nodes)
    channels = sum(len(f["channel"].split(",")) for _, _, f in graph.edges(data=True))
    assert len(fig.data) - 1 == channels


def test_faithfulness_ends_at_one(traced):
    fig = draw_circuit(traced, "faithfulness")
    line = next(t for t in fig.data if t.name.startswith("attribution"))
    assert line.x[-1] == 1 and line.y[-1] == pytest.approx(1, abs=0.01)


def test_unknown_figures_and_missing_data_are_refused(patched, traced):
    with pytest.raises(UnknownNameError, match="did you mean sites"):
        draw_patch(patched, "site")
    with pytest.raises(UnknownNameError):
        draw_circuit(traced, "map")
    model, _ = worlds.world("induction_pair")
    heads = patch(model, sites=("z",), n_confirm=2, **COMMON)
    with pytest.raises(ResultError, match="only heads"):
        draw_patch(heads, "sites")
    sites = patch(model, sites=("resid_pre",), layers=2, **COMMON)
    with pytest.raises(ResultError, match="add z"):
        draw_patch(sites, "screen")
    with pytest.raises(ResultError, match="add z"):
        draw_patch(sites, "confirmed")


def test_pages_are_offline_and_say_the_answer(patched, traced):
    for page in (patch_page(patched), circuit_page(traced)):
        text = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert 'src="http' not in text and 'href="http' not in text
        assert text.count("<h1>") == 1
    assert "logit difference" in patch_page(patched)
    assert "pass the minimality test" in circuit_page(traced)


def test_the_ends_print_and_give_json(patched, traced, tmp_path, capsys):
    finish_patch(patched, tmp_path / "p", Lines(quiet=True), as_json=True)
    assert json.loads(capsys.readouterr().out)["largest"]
    finish_circuit(traced, tmp_path / "c", Lines(quiet=True), as_json=True)
    assert json.loads(capsys.readouterr().out)["areas"]["random"]
    finish_patch(patched, tmp_path / "p", Lines(quiet=False), as_json=False)
    finish_circuit(traced, tmp_path / "c", Lines(quiet=False), as_json=False)
    out = capsys.readouterr().out
    assert "rank agreement" in out and "CPR" in out
    assert (tmp_path / "c" / "page.html").stat().st_size > 10**6
