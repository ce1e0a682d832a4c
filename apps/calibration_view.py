"""What a calibration found, for a terminal, for the README, and as a figure.

Each says over how many models and seeds a number is. Power and false positives of a detector are
those at its usual threshold; its AUROC needs none.
"""

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from apps import html_parts as h
from apps.console import markdown_table, print_table
from apps.result_kinds import KINDS
from circuits.calibration_truth import TESTS, THRESHOLDS, TRUTHS

if TYPE_CHECKING:
    import pandas as pd

    from circuits.calibration_result import CalibrationResult

SEQUENTIAL, GREY, INK = "Cividis", "#c9ccd1", "#1f2933"
DETECTOR_COLUMNS = ("detector", "called at", "AUROC", "false positives", "power")
TEST_COLUMNS = ("test", "right", "true claims supported", "others supported")


def print_tables(result: "CalibrationResult") -> None:
    """Rates of detectors and tests, then every wrong verdict with its reason."""
    found, summary = result.provenance.model, result.summary()
    for which, words in TRUTHS.items():
        rows = _detector_rows([r for r in summary["detectors"] if r["truth"] == which])
        print_table(f"Detectors of {words} ({found})", list(DETECTOR_COLUMNS), rows)
    print_table(f"Causal tests ({found})", list(TEST_COLUMNS), _test_rows(summary["tests"]))
    wrong = [
        [f"{r['model']} {r['seed']}", r["claim"], r["test"], str(r["expected"]), r["verdict"],
         r["reason"]]
        for r in result.mistakes().to_dict("records")
    ]  # fmt: skip
    if wrong:
        columns = ["model, seed", "claim", "test", "right is", "verdict", "reason"]
        print_table(f"{len(wrong)} wrong verdicts", columns, wrong)
    repair = [
        [r["model"], f"{r['total']:.2f}", f"{r['direct']:.2f}",
         f"{r['low']:.2f} to {r['high']:.2f}", "yes" if r["seen"] else "no",
         "yes" if r["expected"] else "no"]
        for r in _repair(result).to_dict("records")
    ]  # fmt: skip
    columns = ["model", "total", "direct", "made good", "repair seen", "repair is there"]
    print_table("Does another head make good for the copying one? (nats)", columns, repair)


def markdown(result: "CalibrationResult") -> str:
    """The tables in short: detectors of causal heads, and tests."""
    summary, made = result.summary(), result.provenance
    attends, causal = (
        [r for r in summary["detectors"] if r["truth"] == which] for which in ("attends", "causal")
    )
    columns = [
        "detector",
        "called at",
        "AUROC: who attends",
        "AUROC: who matters",
        *DETECTOR_COLUMNS[3:],
    ]
    rows = [
        [*row[:2], _number(first["auroc"]), *row[2:]]
        for first, row in zip(attends, _detector_rows(causal), strict=True)
    ]
    repaired = result.repair["right"]
    note = (
        f"{made.model}, {result.settings['n_heads']} heads a layer, ablated in scope "
        f"{result.settings['scope']}; false positives and power of detectors are about heads that "
        f"matter, with 95 % Clopper-Pearson intervals; direct against total effects tell repair "
        f"from none in {repaired.sum()} of {len(repaired)} copying heads. mnemoscope "
        f"{made.versions['mnemoscope']}, torch {made.versions['torch']}, {made.created[:10]}, "
        f"{made.seconds / 60:.0f} minutes on {made.device}."
    )
    tables = (
        markdown_table(columns, rows),
        markdown_table(list(TEST_COLUMNS), _test_rows(summary["tests"])),
    )
    return "\n\n".join([*tables, note]) + "\n"


def page(result: "CalibrationResult") -> str:
    """One offline page: rates, the figure, every wrong verdict with its reason."""
    return h.document(title(result), body(result))


def title(_: "CalibrationResult") -> str:
    """What the page is about."""
    return "Calibration on models whose circuit is known"


def answer(result: "CalibrationResult") -> str:
    """How many verdicts are right, and what detectors are fooled by."""
    judged = result.claims["right"].notna()
    right = int(result.claims.loc[judged, "right"].sum())
    return (
        f"On {result.provenance.model}, {right} of {int(judged.sum())} verdicts of causal tests "
        "are the ones that the construction demands. Detectors that read attention alone also call "
        "heads that look at the needle and write nothing that matters."
    )


def body(result: "CalibrationResult") -> Iterator[h.Part]:
    """The page without its title."""
    summary = result.summary()
    yield from h.head(answer(result), KINDS["calibration"].caveats)
    yield from ("<h2>Causal tests</h2>", h.table(TEST_COLUMNS, _test_rows(summary["tests"])))
    for which, words in TRUTHS.items():
        rows = _detector_rows([r for r in summary["detectors"] if r["truth"] == which])
        yield from (f"<h2>Detectors of {h.safe(words)}</h2>", h.table(DETECTOR_COLUMNS, rows))
    caption = {"calibration": "Detectors and tests, model by model and claim by claim."}
    yield from ("<h2>Figure</h2>", *h.figures(lambda _: draw(result), caption))
    wrong = result.mistakes()[["model", "seed", "claim", "test", "expected", "verdict", "reason"]]
    yield "<h2>Wrong verdicts</h2>"
    yield h.table([str(c) for c in wrong], wrong.astype(str).to_numpy().tolist())
    yield from h.made_by(result.settings, result.provenance)


def draw(result: "CalibrationResult") -> go.Figure:
    """AUROC of detectors on the heads that matter; right verdicts of tests on each claim."""
    areas, (share, words) = _areas(result), _verdicts(result)
    fig = make_subplots(
        2, 1, row_heights=[len(areas) + 1, len(share) + 1], vertical_spacing=0.2,
        subplot_titles=[
            "AUROC of each detector, heads that matter against all others",
            "verdicts right / judged; grey: no verdict is right or wrong there",
        ],
    )  # fmt: skip
    # one head ahead of a true one among a hundred is .99: two decimals would round it away
    numbers = areas.map(lambda v: "–" if np.isnan(v) else f"{v:.3f}")
    for row, (table, text) in enumerate(((areas, numbers), (share, words)), start=1):
        for trace in _cells(table, text, "AUROC" if row == 1 else "right"):
            fig.add_trace(trace, row, 1)
    name = html.escape(result.provenance.model)
    seeds, n_heads = result.settings["seeds"], result.settings["n_heads"]
    below = f"{n_heads} heads a layer, ablated in scope {result.settings['scope']}; seeds: {seeds}"
    title = {
        "text": f"{name}: detectors and causal tests against the known circuit",
        "subtitle": {"text": below}, "x": 0.01, "y": 1, "pad": {"t": 16}, "yanchor": "top",
        "yref": "container",
    }  # fmt: skip
    fig.update_xaxes(tickangle=-35, showgrid=False)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    return fig.update_layout(
        title=title, template="plotly_white", font={"size": 13, "color": INK}, width=1100,
        height=420 + 30 * (len(areas) + len(share)),
        margin={"l": 110, "r": 30, "t": 110, "b": 60},
        coloraxis={"colorscale": SEQUENTIAL, "cmin": 0, "cmax": 1,
                   "colorbar": {"title": {"text": "AUROC,<br>share"}}},
    )  # fmt: skip


# -- tables -----------------------------------------------------------------------------------


def _detector_rows(part: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [r["detector"], r["threshold"].replace(">=", "≥"), _number(r["auroc"]),
         _rate(r, "fpr"), _rate(r, "power")]
        for r in part
    ]  # fmt: skip


def _test_rows(part: list[dict[str, Any]]) -> list[list[str]]:
    return [[r["test"], *(_rate(r, name) for name in ("right", "power", "false"))] for r in part]


def _rate(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.1%} ({row[f'{name}_of']}; {low:.1%} to {high:.1%})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _repair(result: "CalibrationResult") -> "pd.DataFrame":
    """One row a model: means over seeds; seen where every seed shows it."""
    means = {k: "mean" for k in ("total", "direct", "low", "high")}
    groups = result.repair.groupby("model", sort=False)
    return groups.agg(means | {"seen": "all", "expected": "all"}).reset_index()


# -- figure -----------------------------------------------------------------------------------


def _areas(result: "CalibrationResult") -> "pd.DataFrame":
    """AUROC on the causal truth, detectors by models."""
    part = result.detectors[result.detectors["truth"] == "causal"]
    table = part.pivot(index="detector", columns="model", values="auroc")
    known = [name for name in THRESHOLDS if name in table.index]
    return table.reindex(index=known, columns=result.settings["models"])


def _verdicts(result: "CalibrationResult") -> "tuple[pd.DataFrame, pd.DataFrame]":
    """Share of right verdicts, tests by claims, and `right/judged` in words."""
    frame = result.claims.assign(
        where=result.claims["model"] + ": " + result.claims["claim"],
        right=result.claims["right"].astype(float),
    )
    cells = frame.groupby(["test", "where"], sort=False)["right"]
    judged, right = cells.count().unstack(), cells.sum().unstack()
    tests = [name for name in TESTS if name in judged.index]
    judged, right = judged.loc[tests], right.loc[tests]
    share = (right / judged).where(judged > 0)
    words = right.astype(int).astype(str) + "/" + judged.astype(int).astype(str)
    return share, words.where(judged > 0, "–")


def _cells(table: "pd.DataFrame", text: "pd.DataFrame", name: str) -> list[go.Heatmap]:
    """A heat map with its numbers written in, and grey cells where there is none."""
    values = table.to_numpy(float)
    missing = np.isnan(values)
    x, y = list(table.columns), list(table.index)
    shared = {"x": x, "y": y, "xgap": 2, "ygap": 2, "hoverongaps": False}
    filled = go.Heatmap(
        z=values, text=np.where(missing, "", text), texttemplate="%{text}", name=name,
        coloraxis="coloraxis",
        hovertemplate="%{y}<br>%{x}<br>" + name + " %{z:.3f}<extra></extra>", **shared,
    )  # fmt: skip
    empty = go.Heatmap(
        z=np.where(missing, 0.0, np.nan), colorscale=[[0, GREY], [1, GREY]],
        showscale=False, name="not judged", text=np.where(missing, text, ""),
        texttemplate="%{text}",
        hovertemplate="%{y}<br>%{x}<br>not judged<extra></extra>", **shared,
    )  # fmt: skip
    return [filled, empty]
