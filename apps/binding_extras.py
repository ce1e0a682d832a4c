"""Tables of a binding page beside the main ones: heads, older measurements, studies compared."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.binding_fit_figures import number, study_name
from apps.validation_parts import between
from circuits.binding_labels import POINTERS

if TYPE_CHECKING:
    from circuits.binding_result import BindingResult, StudyResult

N_HEADS = 8


def heads(study: "StudyResult") -> Iterator[str]:
    """The first writers and readers of the pointer."""
    found = study.conclusion["heads"]
    yield (
        f"<p>One head at a time, at the last token, in {found['n_pairs']} pairs of "
        f"{found['n_sets']} entity sets. Written: probability that goes from the recipient's own "
        "answer to the donor's pointers when this head's output is the donor's. Read: probability "
        "that moves when this head may not look at the target tokens (control: at as many other "
        f"entities). All heads from layer {found['layer']} on at once: "
        f"{found['read_all']['effect']:.2f}, control {found['read_all']['control']:.2f}.</p>"
    )
    for part, title in (("write", "writes the pointer"), ("read", "reads with it")):
        extra = ["control"] if part == "read" else []
        columns = [title, "effect", "95 % interval", *extra, *(f"{m}, change" for m in POINTERS)]
        yield h.table(columns, [
            [f"L{row['layer']}H{row['head']}", float(row["effect"]),
             between(number(row["low"]), number(row["high"])), *(float(row[k]) for k in extra),
             *(float(row[m]) for m in POINTERS)]
            for row in found[part][:N_HEADS]
        ])  # fmt: skip


def classics(study: "StudyResult") -> Iterator[str]:
    """Every older measurement: its title, source and rows."""
    for found in study.conclusion["classics"].values():
        yield f"<h4>{h.safe(found['title'])}</h4><p>{h.safe(h.sentence(found['source']))}</p>"
        if "reason" in found:
            yield h.note(h.sentence(f"not measured: {found['reason']}"))
            continue
        for name in (k for k, rows in found.items() if _is_table(rows)):
            rows = found[name]
            columns = [c.replace("_", " ") for c in rows[0]]
            yield h.table(columns, [[_cell(v) for v in row.values()] for row in rows])


def across(result: "BindingResult") -> Iterator[str]:
    """Fits carried to other studies, and what longer inputs change."""
    if result.transfers:
        yield "<h2>Mixtures carried to other studies</h2>"
        columns = ["fitted to", "scored on", "held out", "similarity", "own fit", "uniform"]
        yield h.table(columns, [
            [_name(result, t["source"]), _name(result, t["target"]), t["held_out"],
             float(t["jss"]), float(t["own"]), float(t["uniform"])]
            for t in result.transfers
        ])  # fmt: skip
    if result.longer_inputs:
        yield "<h2>Longer inputs</h2>"
        columns = ["study", "sentences between groups", "accuracy", "without filler",
                   "error of the predicted change", "error of predicting none"]  # fmt: skip
        yield h.table(columns, [
            [_name(result, row["study"]), str(row["sentences"]), float(row["accuracy"]),
             float(row["accuracy_without"]), number(row.get("error")), number(row.get("still"))]
            for row in result.longer_inputs
        ])  # fmt: skip


def _name(result: "BindingResult", key: str) -> str:
    return str(study_name(result.studies[key]))


def _is_table(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict)


def _cell(value: Any) -> Any:
    """A value of a row; cells with an interval are written out."""
    if isinstance(value, dict) and "mean" in value:
        return f"{value['mean']:.2f} ({between(number(value['low']), number(value['high']))})"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v:.2f}" for k, v in value.items())
    return float(value) if isinstance(value, float) else "–" if value is None else str(value)
