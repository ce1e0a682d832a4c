"""The figures of a binding run, with Plotly; pure functions of the saved result.

Shares of labels by position and layer, controls, pointers beside fake pointers, and all studies by
the place of their target; what was fitted is in `apps.binding_fit_figures`. Groups count from 1.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps import binding_fit_figures as fits
from apps import figure_parts as parts
from apps.binding_fit_figures import DASHES, MARKS, full_name, marks, not_measured, number, titled
from apps.validation_parts import VERDICTS, Mark, between, hover, wrapped
from circuits.binding_findings import AGREED_LEAST, CONTROLS, COPIED_MOST
from circuits.binding_labels import LABELS, POINTERS
from circuits.statistics import clopper_pearson
from interp.errors import ResultError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from circuits.binding_result import BindingResult, StudyResult

ASKED = "group that the donor asked for, i_P"
BOUNDS = {name: (0.0, COPIED_MOST) for name, row in CONTROLS.items() if row[1] == "copied"}
BOUNDS |= {"agree_all": (AGREED_LEAST, 1.0)}
"""Design: the shares with which it passes; the others have no bound."""
PASSED = {
    True: ("holds", VERDICTS["supported"]),
    False: ("fails", VERDICTS["unsupported"]),
    None: ("undecided", VERDICTS["inconclusive"]),
}
LAYERS = (
    (Mark("used", "#0072B2", "circle", "●"), -0.14),
    (Mark("next", "#CC79A7", "diamond-open", "◇"), 0.14),
)
"""The layer used and the one behind it: how they are drawn, how far from their row's middle."""


def draw(
    result: "BindingResult", kind: str = "positions", *, study: str = "", **options: Any
) -> go.Figure:
    """One figure of a binding run; `kind` is a name in `FIGURES`, `study` as in `result.study`.

    What was not measured is said in the figure; the functions themselves raise ResultError.

    Raises:
        UnknownNameError: no such figure, or no such study.
    """
    if kind not in FIGURES:
        raise UnknownNameError("figure", kind, FIGURES)
    of = result.study(study)
    try:
        return FIGURES[kind][0](result, of, **options)
    except ResultError as error:
        fig = titled(go.Figure(), full_name(result, of), f"{kind}: {error}", height=10)
        fig.update_xaxes(visible=False)
        return fig.update_yaxes(visible=False)


# -- shares -----------------------------------------------------------------------------------


def positions(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """Which pointer was followed, by position: all labels stacked, the mechanisms with bands."""
    table = fits.measured(study).shares()
    shown = [name for name in LABELS if table["share"][table["label"] == name].max() > 0]
    fig = make_subplots(
        2, 1, shared_xaxes=True, vertical_spacing=0.09,
        subplot_titles=["all evaluations", "the mechanisms, with 95 % intervals"],
    )  # fmt: skip
    for name in shown:
        fig.add_trace(_area(table[table["label"] == name], MARKS[name]), 1, 1)
    for name in POINTERS:
        fig.add_traces(_curve(table[table["label"] == name], name), rows=2, cols=1)
    one = "" if table["low"].notna().any() else "no intervals: one entity set"
    titled(
        fig, full_name(result, study), _position_words(study),
        f"last token exchanged entering layer {study.layer}", one,
        f"{' to '.join(dict.fromkeys(str(table['n'].agg(k)) for k in ('min', 'max')))} evaluations "
        "a position",
        height=620, panels=True,
    )  # fmt: skip
    fits.group_axis(fig, study.n, "")
    fits.group_axis(fig, study.n, ASKED, row=2, col=1)
    fig.update_yaxes(title="share of evaluations", range=[-0.03, 1.03], zeroline=False)
    return fig.update_layout(hovermode="x unified")


def _position_words(study: "StudyResult") -> str:
    """How often the position is followed at both ends of the context, and between them."""
    rows = study.records.of("main", design="main", layer=study.layer).rows
    followed, end = rows["label"] == "positional", rows["i_p"].isin([0, study.n - 1])
    told = [f"{part.mean():.0%}" if len(part) else "–" for part in (followed[end], followed[~end])]
    return f"position followed in {told[0]} at the ends, {told[1]} between"


def _area(part: "pd.DataFrame", mark: Mark) -> go.Scatter:
    return go.Scatter(
        x=part["i_p"] + 1, y=part["share"], name=mark.words, stackgroup="shares", mode="lines",
        line={"color": "#fff", "width": 1}, fillcolor=mark.colour, legendgroup=mark.words,
        customdata=_share_words(part, mark.words), hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _curve(part: "pd.DataFrame", name: str) -> list[go.Scatter]:
    mark, x = MARKS[name], part["i_p"] + 1
    look: dict[str, Any] = {"legendgroup": mark.words, "showlegend": False, "name": mark.words}
    return [
        fits.ribbon(x, part["low"], part["high"], mark.colour, **look),
        marks(x, part["share"], mark, _share_words(part, name), dash=DASHES[name], **look),
    ]


def _share_words(part: "pd.DataFrame", name: str) -> list[str]:
    return [
        f"{name} {r['share']:.0%} ({between(r['low'], r['high'])}), n = {r['n']}"
        for r in part.to_dict("records")
    ]


def sweep(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """Shares by the layer entered; where answers are copied, and where pointers were read."""
    table = study.sweep()
    if table.empty:
        raise not_measured("no layers were swept" if study.layer is None else "the layer was given")
    fig = go.Figure()
    chosen, over = (study.conclusion["layer"][k] for k in ("layer", "takeover"))
    for layer, words, colour in ((chosen, "used", parts.MARK), (over, "taken over", "#E69F00")):
        if layer is not None:
            mark = Mark(f"layer {layer}: {words}", colour, "line-ns", "|")
            ends = ([layer, layer], [0, 1], mark, [mark.words] * 2)
            fig.add_trace(marks(*ends, dash="solid", size=1))
    for name in [n for n in LABELS if n != "copied" and table[n].max() > 0]:
        fig.add_trace(_by_layer(table, name, DASHES.get(name, "solid"), MARKS[name]))
    copied = Mark("copied, of absent answers", parts.INK, "x", "✖")
    fig.add_trace(_by_layer(table, "copied", "dash", copied))
    finding = (
        "no layer is free of copied answers and holds a pointer" if chosen is None
        else f"a pointer entering layer {chosen}, the answer itself from {over} on"
    )  # fmt: skip
    titled(
        fig, full_name(result, study), finding, study.conclusion["layer"]["reason"],
        f"{table['n_main'].max()} evaluations a layer in the main design, "
        f"{table['n_absent'].max()} where the donor's answer is absent", height=360,
    )  # fmt: skip
    fig.update_xaxes(title="layer that the exchanged vector enters", zeroline=False)
    return fig.update_yaxes(title="share of evaluations", range=[-0.03, 1.03], zeroline=False)


def _by_layer(table: "pd.DataFrame", name: str, dash: str, mark: Mark) -> go.Scatter:
    of = "n_absent" if name == "copied" else "n_main"
    pairs = zip(table["layer"], table[name], table[of], strict=True)
    words = [hover(f"layer {k}", f"{mark.words} {share:.0%}", f"n = {n}") for k, share, n in pairs]
    size = 7 if name in (*POINTERS, "copied") else 5
    return marks(table["layer"], table[name], mark, words, dash=dash, size=size)


def competence(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """Whether the model does the task, by position; what the mixture predicts of it."""
    able = study.conclusion["competence"]
    told, why = fits.part_or_reason(study, "behaviour")
    why = "nothing was patched" if study.layer is None else why
    titles = ["answered rightly", "probability of the right answer among the candidates"]
    n_rows = 1 if told is None else 2
    fig = make_subplots(
        n_rows, 1, shared_xaxes=True, vertical_spacing=0.14, subplot_titles=titles[:n_rows]
    )
    fig.add_trace(_accuracy(study.preflight), 1, 1)
    for level, name, dash in ((able["chance"], "chance", "dot"), (able["floor"], "floor", "dash")):
        grey = Mark(f"{name} {level:.0%}", "#7A8794", "line-ns", "|")
        ends = ([0.6, study.n + 0.4], [level, level], grey, [grey.words] * 2)
        fig.add_trace(marks(*ends, dash=dash, size=1), 1, 1)
    if told is not None:
        fig.add_traces(fits.behaviour(told), rows=2, cols=1)
        why = fits.behaviour_words(told)
    low, high = (number(able[k]) for k in ("low", "high"))
    titled(
        fig, full_name(result, study),
        f"{able['accuracy']:.0%} right ({between(low, high)}), chance {able['chance']:.0%}",
        f"whiskers: 95 % Clopper-Pearson, {study.preflight['set'].nunique()} contexts", why,
        height=290 * n_rows, panels=True,
    )  # fmt: skip
    fits.group_axis(fig, study.n, "", row=1, col=1)
    fits.group_axis(fig, study.n, "group asked for", row=n_rows, col=1)
    fig.update_yaxes(title="probability", range=[-0.03, 1.03], zeroline=False)
    return fig.update_yaxes(title="share of questions", row=1, col=1)


def _accuracy(asked: "pd.DataFrame") -> go.Scatter:
    """Share of right answers by group; a context asks for each once, so cases are independent."""
    right, n = (asked.groupby("group")["right"].agg(how).to_numpy(int) for how in ("sum", "count"))
    low, high = np.array([clopper_pearson(*pair) for pair in zip(right, n, strict=True)]).T
    x = np.unique(asked["group"]) + 1
    words = [
        hover(f"group {i}", f"{k} of {m} right", f"95 % interval {between(a, b)}")
        for i, k, m, a, b in zip(x, right, n, low, high, strict=True)
    ]
    ink = Mark("accuracy", parts.INK, "circle", "●")
    return marks(x, right / n, ink, words, dash="solid", sure_y=(low, high))


# -- rows -------------------------------------------------------------------------------------


def controls(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """What every control design showed, at the layer used and one later; grey: what passes."""
    rows = fits.measured(study).conclusion.get("controls") or []
    names = [name for name in CONTROLS if any(c["design"] == name for c in rows)]
    if not names:
        raise not_measured("no control design was run")
    fig = go.Figure(_bounds(names))
    for layer, (mark, aside) in zip(sorted({c["layer"] for c in rows}), LAYERS, strict=False):
        some = [c for c in rows if c["layer"] == layer]
        y = [names.index(c["design"]) + aside for c in some]
        fig.add_trace(_hits(some, y, mark))
    here = {c["design"]: c for c in rows if c["layer"] == study.layer}
    judged = [c["passed"] for c in here.values() if c["passed"] is not None]
    titled(
        fig, full_name(result, study),
        f"{sum(judged)} of {len(judged)} controls that can be judged hold, layer {study.layer}",
        f"share of evaluations; whiskers: {fits.SURE}", height=58 * len(names) + 20,
    )  # fmt: skip
    fits.rows_axis(fig, [_control_label(name, here.get(name)) for name in names])
    fig.update_xaxes(title="share of evaluations", range=[-0.03, 1.03], zeroline=False)
    return fig.update_layout(bargap=0)


def _bounds(names: list[str]) -> go.Bar:
    low, high = np.array([BOUNDS.get(name, (0.0, 0.0)) for name in names]).T
    return go.Bar(
        x=high - low, base=low, y=list(range(len(names))), orientation="h", width=0.7,
        marker={"color": "#DDDFE3"}, name="where a control passes", hoverinfo="skip",
    )  # fmt: skip


def _hits(rows: list[dict[str, Any]], y: list[float], mark: Mark) -> go.Scatter:
    """What the designs showed at one layer."""
    x, low, high = ([number(c[k]) for c in rows] for k in ("hit", "low", "high"))
    words = [
        hover(f"{c['design']}, layer {c['layer']}", f"{_counted(c['design'])} {c['hit']:.0%}",
              f"95 % interval {between(a, b)}", f"n = {c['n']}")
        for c, a, b in zip(rows, low, high, strict=True)
    ]  # fmt: skip
    return marks(x, y, mark, words, name=f"entering layer {rows[0]['layer']}", sure_x=(low, high))


def _control_label(name: str, found: dict[str, Any] | None) -> str:
    told, mark = PASSED[None if found is None else found["passed"]]
    told = "not run" if found is None else told if name in BOUNDS else "no bound"
    verdict = f'<span style="color:{mark.colour}">{mark.sign} {told}</span>'
    return f"<b>{name}</b>, {_counted(name)}: {verdict}<br>{wrapped(CONTROLS[name][0], width=44)}"


def _counted(design: str) -> str:
    return "copied answers" if CONTROLS[design][1] == "copied" else "hits"


def pointers(result: "BindingResult", study: "StudyResult") -> go.Figure:
    """Each mechanism's group: probability before and after the patch, beside fake pointers."""
    found = {f["effect"]["name"]: f for f in fits.measured(study).conclusion.get("findings") or []}
    if not found:
        raise not_measured("no mechanism can be told from the others on 2 entity sets or more")
    at = {name: i for i, name in enumerate(POINTERS)}
    effects = [f["effect"] for f in found.values()]
    y = [at[e["name"]] for e in effects]
    fig = go.Figure([_fakes(effects, y), _unpatched(effects, y)])
    fig.add_traces([_patched(f, at[name]) for name, f in found.items()])
    named = study.conclusion["verdict"]["named"]
    titled(
        fig, full_name(result, study),
        f"followed beyond chance: {', '.join(named)}" if named else "no mechanism is named",
        f"probability of the group that a mechanism alone predicts, layer {study.layer}",
        "grey: 95 % of fake pointers", "whiskers: 95 % interval of the change from unpatched",
        height=236,
    )  # fmt: skip
    fits.rows_axis(fig, [_pointer_label(name, found.get(name)) for name in POINTERS])
    fig.update_xaxes(title="probability", rangemode="tozero", zeroline=False)
    return fig.update_layout(bargap=0)


def _fakes(effects: list[dict[str, Any]], y: list[int]) -> go.Bar:
    low, high = (np.array([e[k] for e in effects]) for k in ("control_low", "control_high"))
    words = [
        hover(f"fake {e['name']} pointers", f"mean {e['control']:.3f}",
              f"95 % of {e['n_draws']} draws {between(e['control_low'], e['control_high'])}")
        for e in effects
    ]  # fmt: skip
    return go.Bar(
        x=high - low, base=low, y=y, orientation="h", width=0.6, name="fake pointers",
        marker={"color": parts.GREY, "line": {"color": "#7A8794", "width": 1.5}},
        customdata=words, hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _unpatched(effects: list[dict[str, Any]], y: list[int]) -> go.Scatter:
    ink = Mark("unpatched", parts.INK, "line-ns-open", "|")
    words = [hover("unpatched", f"probability {e['baseline']:.3f}") for e in effects]
    fig = marks([e["baseline"] for e in effects], y, ink, words, size=22)
    return fig.update(marker_line={"width": 3, "color": parts.INK})


def _patched(finding: dict[str, Any], y: int) -> go.Scatter:
    e = finding["effect"]
    ends = tuple([e["baseline"] + e[end]] for end in ("low", "high"))
    words = hover(finding["claim"], f"verdict: {finding['verdict']}", finding["reason"])
    return marks([e["treated"]], [y], MARKS[e["name"]], [words], size=12, sure_x=ends)


def _pointer_label(name: str, finding: dict[str, Any] | None) -> str:
    told = "– not told apart" if finding is None else _verdict(finding["verdict"])
    return f'<b style="color:{MARKS[name].colour}">{MARKS[name].sign} {name}</b><br>{told}'


def _verdict(verdict: str) -> str:
    mark = VERDICTS[verdict]
    return f'<span style="color:{mark.colour}">{mark.sign} {mark.words}</span>'


# -- all studies ------------------------------------------------------------------------------


def targets(result: "BindingResult", study: "StudyResult") -> go.Figure:  # noqa: ARG001
    """All studies by the place of their target: whether causal attention foretells the pointer."""
    tested = {h["study"]: h for h in result.hypotheses}
    places = {
        place: [s for s in result.studies.values() if s.place == place and s.layer is not None]
        for place in ("first", "middle", "last")
    }
    places = {place: some for place, some in places.items() if some}
    if not places:
        raise not_measured("no study found a layer with a pointer")
    heights = [len(some) for some in places.values()]
    fig = make_subplots(
        len(places), 1, row_heights=heights, shared_xaxes=True,
        vertical_spacing=0.9 / (sum(heights) + len(heights)),
        subplot_titles=[_predicted(place, some, tested) for place, some in places.items()],
    )  # fmt: skip
    for row, some in enumerate(places.values(), start=1):
        for name in POINTERS:
            fig.add_trace(_overall(some, name, first=row == 1), row, 1)
        labels = [_study_label(s, tested.get(s.key)) for s in some]
        fits.rows_axis(fig, labels, row=row, col=1)
    holds = sum(h["verdict"] == "supported" for h in tested.values())
    left = len(result.studies) - sum(heights)
    titled(
        fig, f"{result.provenance.model}, all studies: {len(result.studies)}",
        f"causal attention foretells {holds} of {len(tested)} tested",
        f"share of evaluations; whiskers: {fits.SURE}",
        f"{left} without a layer of pointers left out" if left else "",
        height=56 * sum(heights) + 60 * len(heights), panels=True,
    )  # fmt: skip
    fig.update_xaxes(range=[-0.03, 1.03], zeroline=False)
    return fig.update_xaxes(title="share of evaluations", row=len(places), col=1)


def _predicted(place: str, some: list["StudyResult"], tested: dict[str, Any]) -> str:
    said = [tested[s.key]["predicted"] for s in some if s.key in tested]
    return f"target {place}" + (f": predicted {said[0]}" if said else "")


def _study_label(study: "StudyResult", tested: dict[str, Any] | None) -> str:
    told = "– not tested" if tested is None else _verdict(tested["verdict"])
    return f"{wrapped(fits.study_name(study), width=40)}<br>{told}"


def _overall(some: list["StudyResult"], name: str, *, first: bool) -> go.Scatter:
    """One mechanism's share in each study of a panel."""
    mark, aside = MARKS[name], {"positional": -0.2, "lexical": 0.0, "reflexive": 0.2}[name]
    found = [
        next(r for r in s.shares("design").to_dict("records") if r["label"] == name) for s in some
    ]
    x, low, high = ([f[k] for f in found] for k in ("share", "low", "high"))
    words = [
        hover(fits.study_name(s), f"{name} {f['share']:.0%} ({between(f['low'], f['high'])})",
              f"n = {f['n']}") for s, f in zip(some, found, strict=True)
    ]  # fmt: skip
    look = {"legendgroup": name, "showlegend": first}
    return marks(x, np.arange(len(some)) + aside, mark, words, sure_x=(low, high), **look)


FIGURES: dict[str, tuple[Callable[..., go.Figure], str]] = {
    "positions": (positions, "which pointer is followed, by the position asked for"),
    "sweep": (sweep, "the same by layer, and where answers are copied"),
    "competence": (competence, "accuracy by position, and what the mixture predicts of it"),
    "width": (fits.width, "how far the positional pointer spreads"),
    "weights": (fits.weights, "logits that each mechanism adds to its group"),
    "variants": (fits.variants, "similarity of every variant of the mixture, and its ceiling"),
    "controls": (controls, "what every control design showed"),
    "pointers": (pointers, "probability of each mechanism's group beside fake pointers"),
    "cases": (fits.cases, "mixture within prompts or between prompts"),
    "targets": (targets, "all studies by the place of their target"),
}
