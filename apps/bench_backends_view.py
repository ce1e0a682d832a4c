"""The bench of backends, shown: tables for the console, and one for the README."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apps.console import markdown_table, print_table, say

TIMES = {
    "scan hf": "`hf` backend: the scan",
    "question hf": "the same, a question once the context is read",
    "scan lens": "`lens` backend: the scan",
    "scan nnsight": "`nnsight` backend: the scan",
    "plain transformers": "transformers, `output_attentions=True`: a question",
    "plain lens": "TransformerLens, `run_with_cache` of patterns: a question",
    "plain nnsight": "nnsight, a trace saving `attn.output[1]`: a question",
}
PEAKS = {
    "bare": "bare forward",
    "hf": "`hf` backend",
    "lens": "`lens` backend",
    "nnsight": "`nnsight` backend",
    "plain transformers": "transformers, `output_attentions=True`",
    "plain lens": "TransformerLens, `run_with_cache` of patterns",
    "plain nnsight": "nnsight, a trace saving `attn.output[1]`",
}
AGREED: dict[str, tuple[str, Callable[[float], str]]] = {
    "score": ("any score", "{:.0e}".format),
    "mass": ("mass of a row", "{:.0e}".format),
    "logit": ("a logit", "{:.0e}".format),
    "same argmax": ("rows with the same argmax", "{:.2%}".format),
}
MEMORY = "memory beyond the weights, MB"


def show(record: dict[str, Any], output: Path | None, *, as_json: bool) -> None:
    """Into a file where one is named, and on the console."""
    if output is not None:
        output.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if as_json:
        say(json.dumps(record))
        return
    rows = record["lengths"]
    columns = ["tokens of context", *(f"{row['length']}" for row in rows)]
    asked = ["questions of the scan", *(f"{row['questions']}" for row in rows)]
    bare = ["bare forward, seconds", *(f"{row['bare forward, seconds']:.2f}" for row in rows)]
    times = [[v, *_cells([row["ratio"][k] for row in rows], _ratio)] for k, v in TIMES.items()]
    print_table("time / bare forward of context and question", columns, [asked, bare, *times])
    if all(MEMORY in row for row in rows):
        peaks = [[v, *_cells([row[MEMORY][k] for row in rows], _mb)] for k, v in PEAKS.items()]
        print_table("peak memory beyond the weights for one question, MB", columns, peaks)
    print_table("largest difference from the `hf` backend", columns, _agreement(rows))
    for words in _reasons(rows):
        say(words)


def markdown(record: Mapping[str, Any]) -> str:
    """The block of the README: time and memory of each way, and how far they agree."""
    rows = record["lengths"]
    columns = ["", *(f"{row['length']:,}" for row in rows)]
    cells = [[told, *(_both(row, key) for row in rows)] for key, told in TIMES.items()]
    bare = [f"{row['bare forward, seconds']:.1f} s{_peak(row, 'bare')}" for row in rows]
    asked = [f"{row['questions']}" for row in rows]
    table = [["bare forward (the unit)", *bare], ["questions of the scan", *asked], *cells]
    found = [a for row in rows for a in row["agreement"].values() if not isinstance(a, str)]
    worst = {k: max(a[k] for a in found if k in a) for k in ("score", "mass", "logit")}
    same = min(a["same argmax"] for a in found)
    words = (
        "Time by the bare forward (transformers, sdpa) of context and question; in brackets MB "
        "beyond the weights for one question, at the peak. A whole backend runs a forward for the "
        "context, for each question, and for an empty one. Largest difference from `hf` in any "
        f"score {worst['score']:.0e}, in a row's mass {worst['mass']:.0e}, in a logit "
        f"{worst['logit']:.0e}; same argmax in {same:.2%} of rows or more. "
        f"`{record['command']}`, {record['model']}, {record['machine']}, "
        f"{record['provenance']['created'][:10]}."
    )
    return f"{markdown_table(columns, table)}\n\n{words}"


def _both(row: Mapping[str, Any], key: str) -> str:
    """Ratio and memory of a way at one length; the memory of a scan is that of its backend."""
    value = row["ratio"][key]
    if isinstance(value, str):
        return value
    return _ratio(value) + ("" if key == "question hf" else _peak(row, key.removeprefix("scan ")))


def _peak(row: Mapping[str, Any], way: str) -> str:
    peak = row.get(MEMORY, {}).get(way)
    return f" ({_mb(peak)})" if isinstance(peak, float) else ""


def _mb(value: float) -> str:
    return f"{value:,.0f}"


def _agreement(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line for each way and quantity; a plain reading has rows, but no scores."""
    lines = []
    for key in TIMES:
        found = [row["agreement"].get(key) for row in rows]
        if None not in found:
            for what, (told, shown) in AGREED.items():
                if what != "score" or key.startswith("scan"):
                    cells = [a if isinstance(a, str) else shown(a[what]) for a in found]
                    lines.append([f"{key}: {told}", *map(_brief, cells)])
    return lines


def _brief(cell: str) -> str:
    """A reason is told below the table; in a cell it has no room."""
    return "not run" if cell.startswith("not run") else cell


def _cells(values: list[float | str], shown: Callable[[float], str]) -> list[str]:
    return [_brief(v) if isinstance(v, str) else shown(v) for v in values]


def _reasons(rows: list[dict[str, Any]]) -> list[str]:
    return [
        f"{row['length']} tokens, {key}: {value}"
        for row in rows
        for key, value in row["ratio"].items()
        if isinstance(value, str)
    ]


def _ratio(value: float) -> str:
    return f"{value:.2f}"
