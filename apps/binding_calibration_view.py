"""The calibration of the binding detector, as a table for the console and for the README."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apps import html_parts as h
from apps.console import markdown_table, print_table
from apps.result_kinds import KINDS

if TYPE_CHECKING:
    from circuits.binding_calibration_result import BindingCalibration

COLUMNS = [
    "planted model", "truth", "named (seeds)", "right", "within or between prompts",
    "weights off", "width off, groups",
]  # fmt: skip


def print_tables(result: "BindingCalibration") -> None:
    """The table on the console, and the counts under it."""
    print_table("Binding detector on compiled models", COLUMNS, _rows(result))
    print(_words(result))


def markdown(result: "BindingCalibration") -> str:
    """Table and counts for the README."""
    return f"{markdown_table(COLUMNS, _rows(result))}\n\n{_words(result)}"


def title(_: "BindingCalibration") -> str:
    """What a page of it is about."""
    return "Calibration of the binding detector on compiled models"


def answer(result: "BindingCalibration") -> str:
    """The counts."""
    return _words(result)


def body(result: "BindingCalibration") -> Iterator[h.Part]:
    """A page without its title."""
    yield from h.head(answer(result), KINDS["binding-calibration"].caveats)
    rows = [[cell.strip("`") for cell in row] for row in _rows(result)]
    yield from ("<h2>Verdicts</h2>", h.table(COLUMNS, rows))
    yield from h.made_by(result.settings, result.provenance)


def _rows(result: "BindingCalibration") -> list[list[str]]:
    out = []
    for name, part in result.rows.groupby("model", sort=False):
        first = part.iloc[0]
        said = [n or "abstained" for n in part["named"]]
        told = "; ".join(f"{s} ({said.count(s)})" for s in dict.fromkeys(said))
        placed = list(part["where"].dropna())
        out.append([
            f"`{name}`", first["mechanisms"] or "none: abstain", told,
            f"{int(part['right'].sum())}/{len(part)}", ", ".join(dict.fromkeys(placed)) or "-",
            _most(part["weights_off"], "{:.2%}"), _most(part["sigma_off"], "{:.3f}"),
        ])  # fmt: skip
    return out


def _most(values: Any, how: str) -> str:
    found = values.dropna()
    return how.format(found.max()) if len(found) else "-"


def _words(result: "BindingCalibration") -> str:
    found, made = result.summary(), result.provenance
    right, wrong = found["right"], found["mislabelled"]
    low, high = right["interval"]
    return (
        f"Right {right['k']}/{right['n']} ({low:.1%} to {high:.1%}), a mechanism named that is "
        f"not there {wrong['k']}/{wrong['n']}; mixture placed rightly "
        f"{found['where_right']['k']}/{found['where_right']['n']}. "
        f"{result.settings['seeds']} seeds, n = {result.settings['n']}. "
        f"mnemoscope {made.versions['mnemoscope']}, torch {made.versions['torch']}, "
        f"{made.created[:10]}, {made.seconds / 60:.0f} minutes on {made.device}."
    )
