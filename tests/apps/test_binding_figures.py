"""Figures of binding runs, on records drawn with numpy: no model, every number counted again."""

from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from apps.binding_figures import FIGURES, draw
from apps.binding_fit_figures import MARKS
from circuits.binding_across import hypotheses
from circuits.binding_analysis import competence, conclude
from circuits.binding_findings import CONTROLS as CONTROLS_ORDER
from circuits.binding_findings import COPIED_MOST
from circuits.binding_labels import ABSENT, LABELS, POINTERS, label
from circuits.binding_layer import LayerChoice, choose_layer
from circuits.binding_plan import CONTROLS, BindSettings
from circuits.binding_result import BindingResult, StudyResult
from circuits.binding_study import CONTROL, MAIN, SWEEP, Records, joined
from interp.errors import UnknownNameError
from interp.store import Provenance

BAD = '<script>alert("x")</script>'
LAYERS, TAKEOVER = 6, 5
MADE = Provenance(
    "toy", "made in a test", None, None, "0", "1", "ToyForCausalLM", LAYERS, 4, "float32", "cpu",
    "sdpa", {"mnemoscope": "0.1.0"}, "2026-11-24T00:00:00+00:00", 1.0, None,
)  # fmt: skip

# -- a world of records -----------------------------------------------------------------------


def case(rng, n, design, layer, pull):
    """One evaluation: indices by design, logits of the mixture with noise, its record's row."""
    p, left, right, own = (int(i) for i in rng.permutation(n)[:4])
    if design == "main" and layer < TAKEOVER - 1 and layer < 3:
        pull = {}  # early layers hold no pointer: the recipient's own answer stays
    l_at, r_at = left, right
    if design in ("absent_query", "all_new"):
        l_at = ABSENT
    if design in ("absent_answer", "all_new"):
        r_at = ABSENT
    if design in ("agree_pl", "agree_all"):
        l_at = p
    if design in ("agree_pr", "agree_all"):
        r_at = p
    if design == "agree_lr":
        r_at = l_at
    logits = rng.normal(0, 1.2, n)
    distance = np.abs(np.arange(n) - p)
    edge = abs(2 * p / (n - 1) - 1)
    logits += pull.get("positional", 0) * np.exp(-(distance**2) / (0.3 + 2 * (1 - edge)))
    for name, at in (("lexical", l_at), ("reflexive", r_at)):
        if at != ABSENT:
            logits[at] += pull.get(name, 0)
    if not pull:
        logits[own] += 8
    return {
        "design": design,
        "layer": layer,
        "i_p": p,
        "i_l": l_at,
        "i_r": r_at,
        "i_n": own,
    }, logits


def stage_records(rng, n, stage, designs, layers, *, sets, cases, pull):
    """Records of a stage; the words of a set are its own, the answer said is R's or an alien."""
    rows, logits, unpatched, words = [], [], [], []
    for k in range(sets):
        pool = rng.permutation(np.arange(10, 10 + 2 * n))[:n]
        for design in designs:
            for layer in layers:
                for _ in range(cases):
                    row, y = case(rng, n, design, layer, pull)
                    said = int(pool[row["i_r"]]) if row["i_r"] != ABSENT else 5
                    if layer >= TAKEOVER and row["i_r"] != ABSENT:
                        y[row["i_r"]] += 30
                    top = said if layer >= TAKEOVER else int(pool[y.argmax()])
                    if layer < TAKEOVER and rng.random() < 0.04:
                        top = 1  # some other token of the vocabulary
                    indices = {i: row[i] for i in ("i_p", "i_l", "i_r", "i_n")}
                    rows.append(row | {
                        "stage": stage, "set": k, "donor": 0, "top": top, "said": said,
                        "label": label(top, pool.tolist(), said, **indices),
                        "mass": 0.9, "p_said": 0.1, "self_change": 1e-6,
                    })  # fmt: skip
                    logits.append(y)
                    unpatched.append(rng.normal(0, 1, n) + 6 * (np.arange(n) == row["i_n"]))
                    words.append(pool)
    return Records(pd.DataFrame(rows), *(np.stack(v) for v in (logits, unpatched, words)))


def questions(rng, n, accuracy, contexts=6):
    """A preflight: every group asked for once in each context."""
    rows = []
    for k in range(contexts):
        for g in range(n):
            right = bool(rng.random() < accuracy)
            rows.append({"set": k, "group": g, "right": right, "first": right, "chosen": g,
                         "p_answer": 0.8 * right + 0.05, "mass": 0.9, "said": "x"})  # fmt: skip
    return pd.DataFrame(rows)


PULL = (("positional", 4.0), ("lexical", 1.5), ("reflexive", 3.0))
FIRST = (("positional", 2.0), ("reflexive", 4.0))
LAST = (("positional", 2.0), ("lexical", 4.0))


def study(
    *, task="music", target="genre", place="middle", n=5, accuracy=1.0, pull=None, sets=6, cases=20,
    seed=0, swept=True,
):  # fmt: skip
    """A study of drawn records, concluded by the code that concludes of real ones."""
    rng = np.random.default_rng(seed)
    settings, pull = BindSettings(bootstrap=2), dict(PULL if pull is None else pull)
    asked = questions(rng, n, accuracy)
    able = competence(asked, settings.floor)
    records, choice = [], LayerChoice(4, None, "given")
    if not able["passed"]:
        choice = LayerChoice(None, None, able["reason"])
    elif swept:
        records.append(stage_records(rng, n, SWEEP, ("main", "absent_answer"), range(LAYERS + 1),
                                     sets=3, cases=6, pull=pull))  # fmt: skip
        choice = choose_layer(joined(records))
    if choice.layer is not None:
        at = choice.layer
        records.append(stage_records(rng, n, MAIN, ("main",), [at], sets=sets, cases=cases,
                                     pull=pull))  # fmt: skip
        records.append(stage_records(rng, n, CONTROL, CONTROLS, [at, at + 1], sets=4, cases=5,
                                     pull=pull))  # fmt: skip
    whole = joined(records)
    found = conclude(whole, choice, settings, n=n, able=able)
    roles = ("musician", "instrument")
    return StudyResult(
        f"{task}-{target}|{'+'.join(roles)}-n{n}", task, target, roles, place, n, 0,
        {"style": "plain", "form": "space", "dropped": ["gong"]}, asked, whole, found,
    )  # fmt: skip


def run(*studies, **settings):
    """A result of studies."""
    return BindingResult(
        asdict(BindSettings()) | settings, MADE, {s.key: s for s in studies}, hypotheses(studies)
    )


@cache
def made(**options):
    """A result of one study, made once."""
    return run(study(**options))


@cache
def four():
    """Targets at every place, and one study that the preflight refuses."""
    return run(
        study(cases=12),
        study(target="musician", place="first", pull=FIRST, cases=12),
        study(target="instrument", place="last", pull=LAST, cases=12),
        study(task="boxes", target="thing", accuracy=0.1),
    )  # fmt: skip


def main_of(result):
    """Main records of its first study, as plain lists of rows, logits and words."""
    s = result.study()
    return s, s.records.of(MAIN, design="main", layer=s.layer)


def traces(fig):
    """Traces by name; a name that two share holds the last."""
    return {t.name: t for t in fig.data}


def told(fig):
    """Title and what is beneath it, on one line each."""
    title = fig.layout.title
    return [(t.text or "").replace("<br>", " ") for t in (title, title.subtitle)]


def softmax(y):
    """Row by row."""
    e = np.exp(y - y.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def changed(result, **parts):
    """The same result with other parts of its first study's mixture; None takes one out."""
    s = result.study()
    mixture = {k: v for k, v in (s.conclusion["mixture"] | parts).items() if v is not None}
    other = replace(s, conclusion=s.conclusion | {"mixture": mixture})
    return replace(result, studies=dict(result.studies) | {s.key: other})


# -- data of figures --------------------------------------------------------------------------


def test_positions_stack_the_counted_labels():
    result = made()
    s, main = main_of(result)
    fig = draw(result)
    rows = main.rows.to_dict("records")
    occurring = {r["label"] for r in rows}
    areas = [t for t in fig.data if t.stackgroup]
    assert [MARKS[name].words for name in LABELS if name in occurring] == [t.name for t in areas]
    total = np.zeros(s.n)
    for name, area in zip([name for name in LABELS if name in occurring], areas, strict=True):
        want = []
        for p in range(s.n):
            here = [r["label"] for r in rows if r["i_p"] == p]
            want.append(here.count(name) / len(here))
            assert f"n = {len(here)}" in area.customdata[p]
        assert list(area.x) == list(range(1, s.n + 1))
        assert np.allclose(area.y, want)
        total += area.y
    assert np.allclose(total, 1)
    ends = [r["label"] == "positional" for r in rows if r["i_p"] in (0, s.n - 1)]
    assert f"{np.mean(ends):.0%} at the ends" in told(fig)[0]


def test_position_bands_are_intervals_over_sets():
    result = made()
    _, main = main_of(result)
    here = main.rows[main.rows["i_p"] == 2]
    means = [(g["label"] == "reflexive").tolist() for _, g in here.groupby("set")]
    rng = np.random.default_rng(1)
    draws = [
        np.mean(sum((means[k] for k in rng.integers(0, len(means), len(means))), []))
        for _ in range(4000)
    ]
    fig = draw(result)
    band = next(t for t in fig.data if t.fill == "toself" and t.name == "reflexive")
    ends = sorted(y for x, y in zip(band.x, band.y, strict=True) if x == 3)
    assert np.allclose(ends, np.percentile(draws, [2.5, 97.5]), atol=0.03)


def test_sweep_counts_labels_by_layer_and_marks_both_layers():
    result = made()
    s = result.study()
    rows = [r for r in s.records.rows.to_dict("records") if r["stage"] == SWEEP]
    found = traces(draw(result, "sweep"))
    for layer in range(LAYERS + 1):
        main = [r["label"] for r in rows if r["layer"] == layer and r["design"] == "main"]
        absent = [r["label"] for r in rows if r["layer"] == layer and r["design"] != "main"]
        assert found["positional"].y[layer] == main.count("positional") / len(main)
        copied = found["copied, of absent answers"]
        assert copied.y[layer] == absent.count("copied") / len(absent)
    assert copied.line.dash == "dash"
    assert list(found[f"layer {s.layer}: used"].x) == [s.layer, s.layer]
    assert list(found[f"layer {TAKEOVER}: taken over"].x) == [TAKEOVER, TAKEOVER]


def test_competence_counts_answers_with_exact_intervals():
    result = made(accuracy=0.8)
    s = result.study()
    fig = draw(result, "competence")
    line = traces(fig)["accuracy"]
    for g in range(s.n):
        right = [r["right"] for r in s.preflight.to_dict("records") if r["group"] == g]
        k, n = sum(right), len(right)
        assert line.y[g] == k / n
        low = beta.ppf(0.025, k, n - k + 1) if k else 0.0
        assert line.error_y.arrayminus[g] == pytest.approx(k / n - low)
    assert traces(fig)["chance 20%"].y[0] == 1 / s.n
    assert traces(fig)["floor 50%"].y[0] == 0.5


def test_predicted_behaviour_is_the_formula_at_equal_pointers():
    result = made()
    s = result.study()
    fit = s.conclusion["mixture"]["fit"]
    want, groups = [], np.arange(s.n)
    for i in range(s.n):
        bell = np.exp(-((groups - i) ** 2) / (2 * (sigma_of(fit, i) ** 2 + 1e-6)))
        y = fit["w_pos"] * bell / bell.sum()
        y[i] += fit["w_lex"][i] + fit["w_ref"][i]
        want.append(softmax(y[None])[0, i])
    found = traces(draw(result, "competence"))
    assert np.allclose(found["probability, predicted"].y, want)
    asked = s.preflight.assign(own=s.preflight["p_answer"] / s.preflight["mass"])
    measured = [asked["own"][asked["group"] == g].mean() for g in range(s.n)]
    assert np.allclose(found["probability, measured"].y, measured)


def sigma_of(fit, i):
    """The formula of the width."""
    x = i / fit["n"]
    return abs(fit["alpha"] * x * x + fit["beta"] * x + fit["gamma"])


def test_width_is_the_curve_with_its_intervals():
    result = made()
    mixture = result.study().conclusion["mixture"]
    fig = draw(result, "width")
    line = traces(fig)["sigma, kernel discrete"]
    assert np.allclose(line.y, [sigma_of(mixture["fit"], i) for i in range(5)])
    band = fig.data[0]
    for e in mixture["intervals"]["estimates"]:
        if e["name"] == "sigma":
            ends = [y for x, y in zip(band.x, band.y, strict=True) if x == e["index"] + 1]
            assert sorted(ends) == pytest.approx([e["low"], e["high"]])
    assert "convention discrete" in told(fig)[1]


def test_weights_are_the_gates_and_the_peak_of_the_kernel():
    result = made()
    mixture = result.study().conclusion["mixture"]
    fit, found = mixture["fit"], traces(draw(result, "weights"))
    assert np.allclose(found["lexical"].y, fit["w_lex"])
    assert np.allclose(found["reflexive"].y, fit["w_ref"])
    groups = np.arange(5)
    peaks = [
        fit["w_pos"] / np.exp(-((groups - i) ** 2) / (2 * sigma_of(fit, i) ** 2)).sum()
        for i in range(5)
    ]
    assert np.allclose(found["positional"].y, peaks, rtol=1e-4)
    sure = {(e["name"], e["index"]): e for e in mixture["intervals"]["estimates"]}
    e = sure["w_ref", 1]
    bars = found["reflexive"].error_y
    assert bars.array[1] == pytest.approx(max(0, e["high"] - e["value"]))
    assert bars.arrayminus[1] == pytest.approx(max(0, e["value"] - e["low"]))
    without = draw(changed(result, weights=None), "weights")
    assert np.allclose(traces(without)["positional"].y, found["positional"].y)


def test_variants_show_every_similarity_beside_the_ceiling():
    result = made()
    mixture = result.study().conclusion["mixture"]
    fig = draw(result, "variants")
    found, rows = traces(fig), mixture["variants"]
    assert list(found["cells fitted"].x) == [r["jss"] for r in rows]
    assert list(found["cells held out"].x) == [r["jss_cells"] for r in rows]
    held = [r["jss_positions"] for r in rows]
    assert [None if np.isnan(v) else v for v in found["positions held out"].x] == held
    assert [r["variant"] for r in rows] == list(fig.layout.yaxis.ticktext)
    for name in ("one_hot", "matched"):
        mean, low, high = mixture["ceiling"][name]
        band = next(t for t in fig.data if t.name.startswith(f"ceiling, {name.replace('_', '-')}"))
        assert f"{mean:.2f}" in band.name
        assert min(band.x) <= low and max(band.x) >= high
    uniform = next(r["jss"] for r in rows if r["variant"] == "uniform")
    assert list(found[f"uniform {uniform:.2f}"].x) == [uniform, uniform]
    low, high = fig.layout.xaxis.range
    assert all(low < v < high for t in fig.data for v in t.x if not np.isnan(v))


def test_controls_count_hits_at_both_layers():
    result = made()
    s = result.study()
    fig = draw(result, "controls")
    stage = s.records.of(CONTROL)
    for layer in (s.layer, s.layer + 1):
        marks = traces(fig)[f"entering layer {layer}"]
        for design in CONTROLS:
            if design in ("absent_query", "agree_lr"):  # other columns are counted there
                continue
            hits = [
                r["top"] == (r["said"] if r["i_r"] == ABSENT else words[r["i_p"]])
                for r, words in zip(stage.rows.to_dict("records"), stage.words, strict=True)
                if r["design"] == design and r["layer"] == layer
            ]
            row = list(CONTROLS_ORDER).index(design)
            shown = [x for x, y in zip(marks.x, marks.y, strict=True) if round(y) == row]
            assert shown == [pytest.approx(np.mean(hits))], design
    labels = fig.layout.yaxis.ticktext
    assert "holds" in labels[0] and "no bound" in labels[list(CONTROLS_ORDER).index("agree_pl")]
    passes = traces(fig)["where a control passes"]
    assert (passes.base[0], passes.x[0]) == (0, COPIED_MOST)


def test_pointers_show_probabilities_before_and_after():
    result = made()
    _, main = main_of(result)
    fig = draw(result, "pointers")
    found, at = traces(fig), np.arange(len(main))
    for row, (name, column) in enumerate(POINTERS.items()):
        index = main.rows[column].to_numpy()
        assert found[name].x[0] == pytest.approx(softmax(main.logits)[at, index].mean())
        before = softmax(main.unpatched)[at, index].mean()
        assert found["unpatched"].x[row] == pytest.approx(before)
        assert "supported" in fig.layout.yaxis.ticktext[row]
    fakes = found["fake pointers"]
    for finding, base, width in zip(
        result.study().conclusion["findings"], fakes.base, fakes.x, strict=True
    ):
        assert base == finding["effect"]["control_low"]
        assert base + width == pytest.approx(finding["effect"]["control_high"])


def test_cases_show_entropy_inside_prompts():
    result = made()
    _, main = main_of(result)
    found = result.study().conclusion["mixture"]["case_level"]
    assert found["pooled"] == "cells"
    cells = [tuple(c) for c in main.rows[["i_p", "i_l", "i_r"]].to_numpy().tolist()]
    p = softmax(main.logits)
    each = -(p * np.log2(p)).sum(1)
    fig = draw(result, "cases")
    bars = fig.data[0]
    inside = np.mean([e for e, c in zip(each, cells, strict=True) if cells.count(c) > 1])
    assert bars.x[1] == pytest.approx(inside)
    assert bars.x[0] == found["entropy_of_mean"]
    owners = [t for t in fig.data if t.name in (*POINTERS, "own answer", "other")]
    assert len(owners) == 5
    assert np.allclose(np.sum([t.y for t in owners], axis=0), 1)
    alone = draw(changed(result, responsibilities=None), "cases")
    assert len(alone.data) == 1
    assert "responsibilities not measured: this run has no" in told(alone)[1]


def test_targets_show_every_study_by_place():
    result = four()
    fig = draw(result, "targets")
    places = {"first": 1, "middle": 2, "last": 3}
    for s in result.studies.values():
        if s.layer is None:
            assert not any(s.task in t for a in places.values() for t in axis(fig, a).ticktext)
            continue
        row = places[s.place]
        label = axis(fig, row).ticktext[0]
        verdict = next(h["verdict"] for h in result.hypotheses if h["study"] == s.key)
        assert s.target in label and verdict in label
        labels = s.records.of(MAIN).rows["label"].tolist()
        for name in POINTERS:
            mark = next(t for t in fig.data if t.name == name and (t.yaxis or "y") == y_name(row))
            assert mark.x[0] == pytest.approx(labels.count(name) / len(labels))
    assert "1 without a layer of pointers left out" in told(fig)[1]
    titles = [a.text for a in fig.layout.annotations]
    assert "target first: predicted reflexive above lexical" in titles


def axis(fig, row):
    return fig.layout["yaxis" if row == 1 else f"yaxis{row}"]


def y_name(row):
    return "y" if row == 1 else f"y{row}"


# -- what all figures keep --------------------------------------------------------------------


@pytest.mark.parametrize("kind", FIGURES)
def test_titles_say_model_study_and_finding(kind):
    fig = draw(made(), kind)
    words = told(fig)[0]
    of = ("toy",) if kind == "targets" else ("toy", "music", "genre", "n = 5")
    assert all(w in words for w in of)
    assert "<br>" in fig.layout.title.text
    assert fig.layout.height > fig.layout.margin.t + fig.layout.margin.b


def test_a_mechanism_has_one_colour():
    for kind in FIGURES:
        for t in draw(made(), kind).data:
            if t.name in POINTERS and getattr(t, "fill", "") != "toself":
                area = t.stackgroup if t.type == "scatter" else None
                colour = t.fillcolor if area else t.marker.color
                assert colour == MARKS[t.name].colour, kind
    assert len({m.colour for m in MARKS.values()}) == len(LABELS)


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean positions"):
        draw(made(), "position")
    with pytest.raises(UnknownNameError, match="study"):
        made().figure("positions", study="chess")


def test_a_study_is_chosen_by_part_of_its_key():
    fig = four().figure("positions", study="instrument|")
    assert "instrument by" in fig.layout.title.text


@pytest.mark.parametrize("kind", FIGURES)
def test_a_refused_study_says_why(kind):
    result = run(study(task="boxes", accuracy=0.1))
    fig = draw(result, kind)
    text = told(fig)[0]
    if kind == "competence":
        assert len(traces(fig)["accuracy"].y) == 5
        return
    assert "not measured: " in text and not fig.data
    if kind not in ("sweep", "targets"):
        assert "there is no binding to explain" in text


@pytest.mark.parametrize(
    ("part", "kinds"),
    [("intervals", ()), ("ceiling", ()), ("variants", ("variants",)), ("weights", ()),
     ("case_level", ("cases",)), ("responsibilities", ()), ("behaviour", ()), ("kernels", ())],
)  # fmt: skip
@pytest.mark.parametrize("gone", [None, {"reason": "too few cases"}, "too few cases"])
def test_parts_that_are_missing_are_named_and_tolerated(part, kinds, gone):
    result = changed(made(), **{part: gone})
    for kind in ("competence", "width", "weights", "variants", "cases"):
        fig = draw(result, kind)
        assert bool(fig.data) == (kind not in kinds)
        if kind in kinds:
            why = "this run has no" if gone is None else "too few cases"
            assert f"not measured: {why}" in told(fig)[0]


def test_a_mixture_that_could_not_be_fitted_says_so():
    result = made()
    s = result.study()
    bare = replace(s, conclusion=s.conclusion | {"mixture": {"reason": "P = L in every cell"}})
    result = replace(result, studies={s.key: bare})
    for kind in ("width", "weights", "variants", "cases"):
        assert "P = L in every cell" in told(draw(result, kind))[0]
    assert draw(result, "positions").data


def test_one_entity_set_has_no_intervals():
    result = run(study(sets=1, cases=60))
    fig = draw(result)
    assert "no intervals: one entity set" in told(fig)[1]
    assert "not measured" in told(draw(result, "pointers"))[0]
    assert "6 are needed" in told(draw(result, "width"))[1]


def test_a_given_layer_was_not_swept():
    result = made(swept=False)
    assert "the layer was given" in told(draw(result, "sweep"))[0]
    assert draw(result, "controls").data


def test_texts_from_outside_are_escaped():
    s = study(task=BAD, target=BAD)
    result = replace(run(s), provenance=replace(MADE, model=BAD))
    for kind in FIGURES:
        fig = draw(result, kind)
        assert BAD not in fig.layout.title.text and "<script" not in fig.layout.title.text
        assert "<script" not in str(fig.layout.yaxis.ticktext)
        assert "<script" not in str([t.customdata for t in fig.data])


def test_a_loaded_run_gives_the_same_figures(tmp_path):
    result = four()
    again = BindingResult.load(result.save(tmp_path / "run"))
    for kind in FIGURES:
        assert draw(again, kind).to_json() == draw(result, kind).to_json()
