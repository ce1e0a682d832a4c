"""The calibration of the graph's verdicts, as a table for the console and for the README."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from apps import html_parts as h
from apps.console import markdown_table, print_table
from apps.result_kinds import KINDS
from probes.planted_features import WORLDS

if TYPE_CHECKING:
    from circuits.graph_calibration import GraphCalibration

COLUMNS = [
    "planted world", "class is wider", "verdicts (seeds)", "right",
    "ratio as counted", "ratio beyond shuffled labels", "planted hubs found", "false hubs",
]  # fmt: skip


def print_tables(result: "GraphCalibration") -> None:
    """The table on the console, and the counts under it."""
    print_table("Verdicts on planted token-feature worlds", COLUMNS, _rows(result))
    print(_words(result))


def markdown(result: "GraphCalibration") -> str:
    """Table and counts for the README."""
    return f"{markdown_table(COLUMNS, _rows(result))}\n\n{_words(result)}"


def title(_: "GraphCalibration") -> str:
    """What a page of it is about."""
    return "Calibration of verdicts on planted token-feature worlds"


def answer(result: "GraphCalibration") -> str:
    """The counts."""
    return _words(result)


def body(result: "GraphCalibration") -> Iterator[h.Part]:
    """A page without its title."""
    yield from h.head(answer(result), KINDS["graph-calibration"].caveats)
    rows = [[cell.strip("`") for cell in row] for row in _rows(result)]
    yield from ("<h2>Verdicts</h2>", h.table(COLUMNS, rows))
    yield from h.made_by(result.settings, result.provenance)


def _rows(result: "GraphCalibration") -> list[list[str]]:
    out = []
    for name, part in result.rows.groupby("world", sort=False):
        said = list(part["verdict"])
        told = "; ".join(f"{s} ({said.count(s)})" for s in dict.fromkeys(said))
        hubs = int(part["hubs"].sum())
        out.append([
            f"`{name}`", "yes" if part["expected"].iloc[0] else "no", told,
            f"{int(part['right'].sum())}/{len(part)}", f"{part['without_shuffle'].mean():.2f}",
            f"{part['ratio'].mean():.2f}", f"{int(part['found'].sum())}/{hubs}" if hubs else "-",
            str(int(part["false_hubs"].sum())) if WORLDS[str(name)].blind else "-",
        ])  # fmt: skip
    return out


def _words(result: "GraphCalibration") -> str:
    found, made = result.summary(), result.provenance
    right, wrong = found["right"], found["supported where not wider"]
    low, high = right["interval"]
    return (
        f"Right {right['k']}/{right['n']} ({low:.1%} to {high:.1%}), supported where the class is "
        f"not wider {wrong['k']}/{wrong['n']}; a hub named in a blind world "
        f"{found['blind worlds with a hub']['k']}/{found['blind worlds with a hub']['n']}; planted "
        f"hubs found {found['hubs found']['k']}/{found['hubs found']['n']}. "
        f"mnemoscope {made.versions['mnemoscope']}, {made.created[:10]}, "
        f"{made.seconds / 60:.0f} minutes on {made.device}."
    )
