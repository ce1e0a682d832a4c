import html
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from apps.validation_figures import FIGURES, draw
from circuits.statistics import cluster_interval
from circuits.validation_result import DENOISE, ValidationResult
from interp.errors import ResultError, UnknownNameError
from interp.store import Provenance

LAYERS, HEADS, NO_ATTENTION = 4, 6, 1
QUESTIONS, DRAWS = 12, 99
METRICS = ("logprob", "logit_diff", "exact")
CANDIDATES = ["L3H5", "L2H1", "L0H0"]
BAD = "<script>alert(1)</script>"
HARM = {"top": -3.0, "bottom": -0.2, "sink": -0.4, "random": -0.1}


def provenance(model="toy"):
    return Provenance(
        model, "made in a test", None, None, None, "0" * 8, "Toy", LAYERS, HEADS, "float32",
        "cpu", "rows", {"numpy": "2"}, "2026-01-01T00:00:00+00:00", 1.5, None,
    )  # fmt: skip


def all_sets(ablations, k):
    """Top, bottom, sink and random sets of every run; other sizes for the first ablation."""
    rows = []
    for name in ablations:
        sizes = (k, 1, 2 * k) if name == ablations[0] else (k,)
        for size in sizes:
            roles = ("top", "bottom", "sink") if size == k else ("top", "bottom")
            rows += [(name, role, size, 0, "L0H0") for role in roles]
            n = DRAWS if size == k else 5
            rows += [(name, "random", size, i, "L1H1") for i in range(n)]
    return pd.DataFrame(rows, columns=["ablation", "role", "k", "draw", "heads"])


def measured(sets, start, twin, k, rng):
    """Values of every set: the harm of its role, scaled by its size, with noise."""
    out = np.empty((len(sets), *start.shape))
    for i, row in enumerate(sets.itertuples()):
        back = row.ablation == DENOISE
        change = HARM[row.role] * row.k / k * (-1 if back else 1)
        noise = rng.normal(size=start.shape) * 0.2
        out[i] = (twin if back else start) + change + noise
    return out


def side_runs(cases, how, rng):
    """Direct effects of the candidates, and specificity."""
    direct = [
        {"head": head, "needle": needle, "total": -0.1, "direct": -0.2,
         "total_diff": rng.normal(-1, 0.3), "direct_diff": rng.normal(-2, 0.3),
         "direct_diff_frozen": rng.normal(-2.2, 0.3)}
        for needle in cases["needle"][cases["kept"]] for head in CANDIDATES
    ]  # fmt: skip
    roles = [("top", 0), ("bottom", 0), ("sink", 0), *(("random", i) for i in range(5))]
    other = [
        {"kind": kind, "probe": f"{kind} {i}", "role": role, "draw": draw_, "ablation": how,
         "baseline": -2.0, "change": rng.normal(-0.1, 0.05)}
        for kind in ("plain text", "known facts") for i in range(4) for role, draw_ in roles
    ]  # fmt: skip
    return pd.DataFrame(direct), pd.DataFrame(other)


def validation(ablations=("mean", "zero", "resample"), *, shape=(LAYERS, HEADS), back=True):
    """Six needles asked about twice; one question is not answered, one has no twin."""
    rng = np.random.default_rng(0)
    k = len(CANDIDATES)
    cases = pd.DataFrame(
        {
            "needle": [f"needle{i % 6}" for i in range(QUESTIONS)],
            "n_answer": [1 + i % 3 for i in range(QUESTIONS)],
            "twin": [i != 4 for i in range(QUESTIONS)],
            "kept": [i != 7 for i in range(QUESTIONS)],
        }
    )
    sets = all_sets((*ablations, *([DENOISE] if back else [])), k)
    start = rng.normal(-0.5, 0.1, (QUESTIONS, len(METRICS)))
    twin = start - 10
    values = measured(sets, start, twin, k, rng)
    values[sets["ablation"].isin(["resample", DENOISE]).to_numpy(), 4] = np.nan
    twin[4] = np.nan
    alone = start + rng.normal(0, 0.3, (*shape, 1, 1)) + rng.normal(0, 0.05, (*shape, *start.shape))
    alone[NO_ATTENTION] = np.nan
    scores = rng.random(shape)
    scores[NO_ATTENTION] = np.nan
    direct, other = side_runs(cases, ablations[0], rng)
    settings = {
        "top": k, "ablations": list(ablations), "scope": "suffix", "metric": "logprob",
        "smallest": 0.1, "alpha": 0.05, "seed": 0, "heads": CANDIDATES,
        "source": "copy score of a scan", "alone_ablation": ablations[0],
    }  # fmt: skip
    return ValidationResult(
        settings, provenance(), cases, sets, METRICS, values, start, twin, alone, scores, direct,
        other, ("a note",),
    )  # fmt: skip


def single_head():
    """One candidate, one ablation, no controls but random sets."""
    result = validation(("zero",), back=False)
    sets = result.sets.assign(k=1)
    keep = (sets["role"].isin(["top", "random"]) & (result.sets["k"] == 3)).to_numpy()
    return replace(
        result,
        settings=result.settings | {"heads": ["L3H5"], "top": 1},
        sets=sets[keep].reset_index(drop=True),
        values=result.values[keep],
    )


@pytest.fixture(scope="module")
def result():
    return validation()


def by_row(fig, name):
    """Points of one kind by the label of their row: value, low, high."""
    out = {}
    for trace in fig.data:
        if not trace.name.startswith(name):
            continue
        labels = [re.sub("<[^>]+>", " ", t) for t in _axis(fig, trace).ticktext]
        for i, (x, y) in enumerate(zip(trace.x, trace.y, strict=True)):
            bars = trace.error_x
            ends = (x, x) if bars.array is None else (x - bars.arrayminus[i], x + bars.array[i])
            out[labels[round(y)].strip()] = (x, *ends)
    return out


def _axis(fig, trace):
    return fig.layout[(trace.yaxis or "y").replace("y", "yaxis")]


def test_effects_shows_each_finding_with_its_interval_and_verdict(result):
    fig = draw(result, "effects")
    shown = by_row(fig, "top 3")
    assert len(shown) == len(result.findings) == 4
    for finding in result.findings:
        e = finding.effect
        run = DENOISE if e.direction == "denoising" else e.ablation
        label = next(name for name in shown if name.startswith(run))
        assert label.endswith(finding.verdict)
        np.testing.assert_allclose(shown[label], [e.effect, e.low, e.high])


def test_effects_puts_directions_and_verdicts_apart(result):
    fig = draw(result, "effects")
    assert [a.text[:9] for a in fig.layout.annotations] == ["taken awa", "put back:"]
    assert {f.verdict for f in result.findings} == {"supported"}
    one = draw(replace(result, settings=result.settings | {"smallest": 5.0}), "effects")
    signs = {re.search("[●◆✖]", t)[0] for f in (fig, one) for t in f.layout.yaxis.ticktext}
    symbols = {t.marker.symbol for f in (fig, one) for t in f.data if t.name.startswith("top")}
    assert len(signs) == len(symbols) == 2
    assert len(draw(validation(back=False), "effects").layout.annotations) == 1


def test_the_grey_band_is_what_random_sets_do(result):
    bands = [t for t in draw(result, "effects").data if t.name == "random sets"]
    base, width = (np.concatenate([getattr(b, k) for b in bands]) for k in ("base", "x"))
    for finding, low, size in zip(result.findings, base, width, strict=True):
        e = finding.effect
        run = DENOISE if e.direction == "denoising" else e.ablation
        here = (result.sets["ablation"] == run) & (result.sets["k"] == 3)
        here &= result.sets["role"] == "random"
        good = result.kept & ~np.isnan(result.values[here.to_numpy(), :, 0]).any(0)
        means = result.values[here.to_numpy(), :, 0][:, good].mean(1)
        expected = np.percentile(means, [2.5, 97.5]) - e.baseline
        np.testing.assert_allclose([low, low + size], expected)


def test_control_sets_are_marked_where_they_were_run(result):
    fig = draw(result, "effects")
    for role, name in (("bottom", "bottom 3"), ("sink", "sink-heavy 3")):
        shown = by_row(fig, name)
        assert len(shown) == 4
        for label, (x, *_) in shown.items():
            assert x == result.effect(label.split()[0], role=role).effect
    assert by_row(draw(single_head(), "effects"), "bottom") == {}


def test_curve_is_the_mean_of_each_size_beside_the_baseline(result):
    traces = {t.name: t for t in draw(result, "curve").data}
    table = result.curve().set_index(["role", "k"])
    for role in ("top", "bottom", "random"):
        assert list(traces[role].x) == [1, 3, 6]
        expected = [table.loc[(role, k), "value"] for k in (1, 3, 6)]
        np.testing.assert_allclose(traces[role].y, expected)
    low, high = traces["random low"], traces["random high"]
    np.testing.assert_allclose(low.y, table.loc["random"]["low"])
    np.testing.assert_allclose(high.y, table.loc["random"]["high"])
    baseline = next(t for name, t in traces.items() if name.startswith("no ablation"))
    assert baseline.y[0] == result.start[result.kept, 0].mean()


def test_alone_maps_single_heads_about_zero(result):
    fig = draw(result, "alone")
    expected = (result.alone - result.start)[:, :, result.kept, 0].mean(2)
    np.testing.assert_allclose(fig.data[0].z, expected)
    assert fig.data[0].zmin == -fig.data[0].zmax
    assert fig.data[0].zmax == pytest.approx(np.nanmax(np.abs(expected)))
    assert [s.name for s in fig.layout.shapes] == CANDIDATES
    assert (fig.layout.shapes[0].x0, fig.layout.shapes[0].y0) == (4.5, 2.5)
    assert list(fig.data[-1].text) == ["1", "2", "3"]
    shown = ~np.isnan(np.array(fig.data[1].z))
    assert fig.data[1].name == "not applicable"
    assert shown[NO_ATTENTION].all()
    assert shown.sum() == HEADS


def test_repair_shows_total_beside_direct(result):
    fig = draw(result, "repair")
    columns = {
        "total": "total_diff", "direct": "direct_diff", "direct, norm frozen": "direct_diff_frozen"
    }  # fmt: skip
    assert [t.name for t in fig.data] == list(columns)
    for trace in fig.data:
        for i, head in enumerate(CANDIDATES):
            mine = result.direct[result.direct["head"] == head]
            values = mine[columns[trace.name]].to_numpy()
            sure = cluster_interval(values, mine["needle"].to_numpy(), seed=0)
            assert trace.x[i] == pytest.approx(values.mean())
            assert trace.x[i] + trace.error_x.array[i] == pytest.approx(sure.high)
            assert trace.x[i] - trace.error_x.arrayminus[i] == pytest.approx(sure.low)
    unknown = replace(result, direct=result.direct.assign(direct_diff_frozen=None))
    assert len(draw(unknown, "repair").data) == 2


def test_score_against_harm_marks_candidates_and_says_rho(result):
    fig = draw(result, "score_effect")
    others, chosen = fig.data
    frame = result.alone_frame().set_index("name")
    assert len(others.x) + len(chosen.x) == (LAYERS - 1) * HEADS
    for x, y, rank in zip(chosen.x, chosen.y, chosen.text, strict=True):
        row = frame.loc[CANDIDATES[int(rank) - 1]]
        assert (x, y) == (row.score, -row.effect)
    rho, p = result.score_against_effect()
    said = fig.layout.title.subtitle.text.replace("<br>", " ")
    assert f"rho {rho:+.2f} over 18 heads, p {p:.2g}" in said


def test_specificity_sets_other_text_beside_the_answers(result):
    fig = draw(result, "specificity")
    top = by_row(fig, "top 3")
    here = (result.sets["ablation"] == "mean") & (result.sets["role"] == "top")
    row = np.flatnonzero(here & (result.sets["k"] == 3))[0]
    change = (result.values[row] - result.start)[:, 0] / result.cases["n_answer"].to_numpy()
    answers, plain, facts = top
    np.testing.assert_allclose(top[answers][0], change[result.kept].mean())
    other = result.specificity[result.specificity["role"] == "top"].groupby("kind")["change"]
    np.testing.assert_allclose(top[plain][0], other.mean()["plain text"])
    np.testing.assert_allclose(top[facts][0], other.mean()["known facts"])
    assert plain.endswith("(before -2.00)")
    drawn = result.specificity[result.specificity["role"] == "random"]
    means = drawn[drawn["kind"] == "plain text"].groupby("draw")["change"].mean()
    band = fig.data[0]
    expected = np.percentile(means, [2.5, 97.5])
    np.testing.assert_allclose([band.base[1], band.base[1] + band.x[1]], expected)


def test_agreement_is_a_table_of_ablations_and_roles(result):
    heat = draw(result, "agreement").data[0]
    assert list(heat.y) == ["mean", "zero", "resample"]
    for i, name in enumerate(heat.y):
        for j, role in enumerate(("top", "bottom", "sink")):
            effect = result.effect(name, role=role)
            assert heat.z[i][j] == effect.effect
            assert float(heat.text[i][j]) == pytest.approx(effect.effect, abs=0.005)
        assert heat.z[i][3] == pytest.approx(effect.control - effect.baseline)
    assert heat.zmin == -heat.zmax


@pytest.fixture(scope="module")
def shapes(result):
    return result, validation(shape=(12, 12)), single_head()


@pytest.mark.parametrize("kind", FIGURES)
def test_every_title_names_the_model_and_its_lines_fit(kind, shapes):
    for made in shapes:
        fig = draw(made, kind)
        title, below = fig.layout.title.text, fig.layout.title.subtitle.text
        assert title.startswith("toy: ")
        assert "questions about 6 needles" in below.replace("<br>", " ")
        assert all(len(html.unescape(line)) <= 58 for line in below.split("<br>"))
        json.loads(fig.to_json())


@pytest.mark.parametrize("kind", FIGURES)
def test_text_from_outside_is_escaped(kind, result):
    """Model, source of the heads, needles and kinds of text may hold markup."""
    bad = replace(
        result,
        provenance=provenance(BAD),
        settings=result.settings | {"source": BAD},
        cases=result.cases.assign(needle=[f"{BAD}{n}" for n in result.cases["needle"]]),
        specificity=result.specificity.assign(
            kind=result.specificity["kind"].replace("plain text", BAD)
        ),
    )
    fig = draw(bad, kind)
    assert "<script" not in fig.to_json().replace("\\u003c", "<")
    assert fig.layout.title.text.startswith("&lt;script&gt;")


def test_unknown_names_suggest(result):
    with pytest.raises(UnknownNameError, match="did you mean effects"):
        draw(result, "effect")
    for kind in ("curve", "alone"):
        with pytest.raises(UnknownNameError, match="did you mean logprob"):
            draw(result, kind, metric="logprop")


def test_what_was_not_measured_is_refused_in_one_line(result):
    none = np.empty(0)
    lost = pd.DataFrame()
    for kind, without, words in (
        ("alone", {"alone": none}, "single heads were not ablated"),
        ("score_effect", {"alone": none}, "single heads were not ablated"),
        ("score_effect", {"scores": none}, "came without scores"),
        ("repair", {"direct": lost}, "direct effects were not measured"),
        ("repair", {"direct": result.direct[["head", "needle"]]}, "with a counterfactual value"),
        ("specificity", {"specificity": lost}, "were not measured"),
        ("curve", {"values": result.values * np.nan}, "no curve"),
        ("effects", {"values": result.values * np.nan}, "no effect could be measured"),
        ("agreement", {"values": result.values * np.nan}, "none to compare"),
    ):
        with pytest.raises(ResultError, match=words) as error:
            draw(replace(result, **without), kind)
        assert "\n" not in str(error.value)
