import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from apps.figure_parts import ranking
from apps.figures import FIGURES, draw
from circuits.scan_result import ScanResult
from interp.errors import ResultError, UnknownNameError
from interp.store import Provenance

LAYERS, HEADS, TRIALS, NO_ATTENTION = 4, 6, 16, 1


def provenance(model="toy"):
    return Provenance(
        model, "made in a test", None, None, None, "0" * 8, "Toy", LAYERS, HEADS, "float32",
        "cpu", "rows", {"numpy": "2"}, "2026-01-01T00:00:00+00:00", 1.5, None,
    )  # fmt: skip


def scan_result(layers=LAYERS, heads=HEADS, *, tokens=("a", " b", "\n", "c"), passed=None):
    """Scores drawn at random; one layer has no attention."""
    rng = np.random.default_rng(0)
    shape = (TRIALS, layers, heads)
    scale = rng.random((layers, heads)) ** 2
    values = {
        "copy": rng.random(shape) * scale,
        "copy_exact": rng.random(shape) * scale,
        "query_focus": rng.normal(size=shape) * 0.2,
        "write": rng.normal(size=shape),
    }
    roles = {n: rng.random((3, layers, heads)) for n in ("induction", "previous", "sink")}
    for array in (*values.values(), *roles.values()):
        array[:, NO_ATTENTION] = np.nan
    trials = pd.DataFrame(
        {
            "trial": [f"t{i}" for i in range(TRIALS)],
            "needle": [f"needle{i % 8}" for i in range(TRIALS)],
            "value": "42",
            "length": [512 if i % 2 else 1024 for i in range(TRIALS)],
            "depth": [(i // 2) % 4 / 4 for i in range(TRIALS)],
            "passed": [i % 5 > 0 for i in range(TRIALS)] if passed is None else passed,
            "generated": "I do not know",
            "rouge": 0.7,
        }
    )
    trials["forced"] = trials["exact"] = trials["passed"]
    rows = {
        "trial": "t1", "tokens": list(tokens), "first": 10, "needle": [11, 14],
        "answer": [12, 14], "produced": ["\n", tokens[-1]], "heads": ["L0H1", "L2H3"],
        "weights": rng.random((2, 2, len(tokens))).round(4).tolist(),
    }  # fmt: skip
    settings = {"top": 5, "threshold": 0.1, "seed": 0, "lengths": [512, 1024]}
    return ScanResult(
        settings, provenance(), trials, {k: v.astype(np.float32) for k, v in values.items()},
        {k: v.astype(np.float32) for k, v in roles.items()}, rows,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result():
    return scan_result()


def top_names(result, metric, k):
    mean = result.values[metric][result.trials["passed"]].mean(0)
    order = sorted(np.ndindex(mean.shape), key=lambda i: -np.nan_to_num(mean[i], nan=-9))
    return [f"L{a}H{b}" for a, b in order[:k]]


@pytest.mark.parametrize("metric", ["copy", "write", "query_focus"])
def test_map_shows_the_means_and_outlines_the_top(result, metric):
    fig = draw(result, "map", metric=metric)
    expected = result.values[metric][result.trials["passed"]].mean(0)
    np.testing.assert_allclose(fig.data[0].z, expected, rtol=1e-5)
    boxes = {s.name: (s.x0, s.y0) for s in fig.layout.shapes}
    assert list(boxes) == top_names(result, metric, 5)
    for name, (x, y) in boxes.items():
        assert name == f"L{y + 0.5:g}H{x + 0.5:g}"
    assert list(fig.data[-1].text) == ["1", "2", "3", "4", "5"]


def test_scales_suit_the_score(result):
    copy, write = (draw(result, "map", metric=m).data[0] for m in ("copy", "write"))
    assert copy.zmin == 0
    assert copy.zmax >= np.nanmax(copy.z)
    assert write.zmin == -write.zmax
    assert copy.colorscale != write.colorscale


def test_layers_without_attention_are_marked(result):
    hatched = draw(result, "map").data[1]
    assert hatched.name == "not applicable"
    shown = ~np.isnan(np.array(hatched.z))
    assert shown[NO_ATTENTION].all()
    assert shown.sum() == HEADS


def test_whiskers_are_the_bootstrap_bounds(result):
    sure = result.uncertainty("copy")
    fig = draw(result, "ranked", n=7)
    seen = {}
    for bar in fig.data:
        for name, x, up, down in zip(
            bar.y, bar.x, bar.error_x.array, bar.error_x.arrayminus, strict=True
        ):
            layer, head = name[1:].split("H")
            i = int(layer) * HEADS + int(head)
            expected = [sure.low[i], sure.mean[i], sure.high[i]]
            np.testing.assert_allclose([x - down, x, x + up], expected, rtol=1e-5)
            seen[name] = x
    assert sorted(seen, key=lambda n: -seen[n]) == top_names(result, "copy", 7)
    assert list(fig.layout.yaxis.categoryarray) == top_names(result, "copy", 7)[::-1]
    assert fig.layout.shapes[0].x0 == 0.1


def test_bars_are_coloured_by_the_strongest_other_role(result):
    means = {n: v.mean(0) for n, v in result.roles.items()}
    shown = {"attention sink": "sink", "previous token": "previous", "induction": "induction"}
    for bar in draw(result, "ranked", n=10).data:
        for name in bar.y:
            at = tuple(int(p) for p in name[1:].split("H"))
            assert max(means, key=lambda n, at=at: means[n][at]) == shown[bar.name]


def test_grid_counts_answers_and_means_one_head(result):
    share, copy = draw(result, "grid", head="L2H3").data
    for y, depth in enumerate([0, 0.25, 0.5, 0.75]):
        for x, length in enumerate([512, 1024]):
            t = result.trials
            cell = ((t["depth"] == depth) & (t["length"] == length)).to_numpy()
            good = cell & t["passed"].to_numpy()
            assert share.z[y][x] == good.sum() / cell.sum()
            assert share.text[y][x] == f"{good.sum()}/{cell.sum()}"
            mean = result.values["copy"][good, 2, 3].mean() if good.any() else np.nan
            np.testing.assert_allclose(copy.z[y][x], mean, rtol=1e-5)
    with pytest.raises(ResultError, match="4 layers of 6 heads"):
        draw(result, "grid", head="L9H0")


def test_agreement_shows_both_matrices(result):
    _, matrix = result.agreement(top=20)
    for trace, expected in zip(draw(result, "agreement").data, matrix, strict=True):
        np.testing.assert_allclose(trace.z, expected)


def test_profile_leaves_out_layers_without_attention(result):
    most, mean, count = draw(result, "profile").data
    score = result.mean("copy")[[0, 2, 3]]
    assert list(most.y) == [0, 2, 3]
    np.testing.assert_allclose(most.x, score.max(1), rtol=1e-6)
    np.testing.assert_allclose(mean.x, score.mean(1), rtol=1e-6)
    assert list(count.x) == (score >= 0.1).sum(1).tolist()


def test_attention_boxes_the_answer_and_switches_heads(result):
    fig = draw(result, "attention", head="2.3")
    assert np.array_equal(fig.data[0].z, result.rows["weights"][1])
    box = next(s for s in fig.layout.shapes if s.name == "answer")
    assert (box.x0, box.x1) == (1.5, 3.5)
    assert list(fig.layout.xaxis.ticktext) == ["a", "␣b", "⏎", "c"]
    menu = fig.layout.updatemenus[0]
    assert menu.active == 1
    for button, weights, name in zip(
        menu.buttons, result.rows["weights"], ("L0H1", "L2H3"), strict=True
    ):
        assert np.array_equal(button.args[0]["z"][0], weights)
        assert name in button.args[1]["title.text"]
    with pytest.raises(ResultError, match="heads kept: L0H1, L2H3"):
        draw(result, "attention", head="L3H3")
    with pytest.raises(ResultError, match="no attention rows"):
        draw(replace(result, rows={}), "attention")


@pytest.mark.parametrize("kind", FIGURES)
def test_every_title_names_the_model_and_draws_large_and_small(kind):
    for size in ((4, 6), (12, 12), (32, 32)):
        fig = draw(scan_result(*size), kind)
        assert fig.layout.title.text.startswith("toy: ")
        assert "16" in fig.layout.title.subtitle.text
        json.loads(fig.to_json())


def test_unknown_names_suggest(result):
    with pytest.raises(UnknownNameError, match="did you mean map"):
        draw(result, "maps")
    with pytest.raises(UnknownNameError, match="did you mean copy"):
        draw(result, "map", metric="copi")


def test_no_interval_is_not_drawn_as_one():
    one = scan_result(passed=[i == 1 for i in range(TRIALS)])
    assert ranking(one)["low"].isna().all()
    fig = draw(one, "ranked")
    assert all(bar.error_x.array is None for bar in fig.data)
    assert "no interval" in fig.layout.title.subtitle.text
    assert draw(scan_result(), "ranked", metric="induction").data[0].error_x.array is None
