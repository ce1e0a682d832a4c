"""The end of the commands about features: save, write the page, print tables."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Lines, markdown_table, print_frame, say

if TYPE_CHECKING:
    import pandas as pd

    from circuits.effects_result import FeatureEffects
    from circuits.graph_result import FeatureGraph
    from circuits.steering import Steering

PAGE = "page.html"


def finish(result: "FeatureGraph", folder: Path, lines: Lines, *, as_json: bool) -> None:
    """Save a graph run, draw and print.

    Raises:
        ResultError: nothing can be written.
    """
    from apps.graph_page import answer
    from apps.graph_page import page as html
    from apps.html_parts import write_whole

    result.save(folder)
    page = write_whole(folder / PAGE, html(result))
    if as_json:
        say(json.dumps(summary(result, folder), allow_nan=False))
    elif not lines.quiet:
        print_frame("dictionaries", result.to_frame())
        for s in result.stations.values():
            names = ["rank", "text", "cumulative_share", "of_alive", "null_high", "content_mean"]
            print_frame(f"{s.key}: features reached by the most frequent tokens",
                  s.tables["coverage"][names])  # fmt: skip
            print_frame(f"{s.key}: beyond frequency?", _verdict(s.tables["verdict"]))
        say(answer(result))
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")


def summary(result: "FeatureGraph", folder: Path) -> dict[str, Any]:
    """The result in plain values, for `--json`; None where there is no number."""
    return {
        "folder": str(folder),
        "model": result.provenance.model,
        "text": result.text,
        "function_tokens": int(result.tokens["function"].sum()),
        "dictionaries": _rows(result.to_frame()),
        "tables": {
            s.key: {name: _rows(s.tables[name]) for name in ("coverage", "sensitivity", "verdict")}
            for s in result.stations.values()
        },
        "markdown": markdown(result),
        "settings": result.settings,
        "seconds": result.provenance.seconds,
        "command": result.settings.get("command", ""),
        "machine": result.settings.get("machine", result.provenance.device),
        "created": result.provenance.created,
    }


def markdown(result: "FeatureGraph") -> str:
    """The headline beside its nulls, one row a dictionary, for a README."""
    rows = []
    for s in result.stations.values():
        t = s.tables["coverage"].iloc[-1]
        judged = s.tables["verdict"].iloc[0]
        rows.append([
            s.key, f"{s.quality['fvu']:.2f}", _recovered(s.quality["ce_recovered"]),
            f"{t['cumulative_share']:.1%}", f"{t['of_alive']:.1%}", f"{t['null_high']:.1%}",
            f"{t['content_mean']:.1%}", _ratio(judged, "occurrences"), _ratio(judged, "documents"),
            judged["verdict"],
        ])  # fmt: skip
    columns = [
        "dictionary", "FVU", "CE recovered", "positions of the top tokens", "features reached",
        "blind null", "random content tokens",
        "degree at equal occurrences, function / other (95 %)", "at equal documents",
        "beyond frequency",
    ]  # fmt: skip
    return markdown_table(columns, rows)


def _ratio(judged: "pd.Series", form: str) -> str:
    ratio, low, high = (judged[f"{form}_{part}"] for part in ("ratio", "low", "high"))
    return f"{ratio:.2f} ({low:.2f} to {high:.2f})"


def show_effects(
    result: "FeatureEffects", folder: Path, lines: Lines, *, as_json: bool
) -> None:  # fmt: skip
    """Print findings and contrasts; write the page beside the result."""
    import pandas as pd

    from apps.effects_page import page as html
    from apps.html_parts import write_whole

    page = write_whole(folder / PAGE, html(result))
    if as_json:
        say(json.dumps({
            "folder": str(folder), "station": result.station, "findings": result.findings,
            "contrasts": result.contrasts, "settings": result.settings,
            "provenance": vars(result.provenance),
        }))  # fmt: skip
    elif not lines.quiet:
        print_frame("features taken away", result.to_frame())
        print_frame("function against content token, equally far", pd.DataFrame(result.contrasts))
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")


def show_steering(
    found: "Steering", model: Any, output: Path | None, lines: Lines, *, as_json: bool
) -> None:
    """Print rates with intervals and what the bisection said; write JSON where asked."""
    import pandas as pd

    from apps.options import command_line, machine
    from interp.store import provenance, write_json

    plain = {
        "settings": asdict(found.settings), "baseline": found.baseline, "rows": found.rows,
        "bisection": found.bisection, "command": command_line("steer"), "machine": machine(model),
        "provenance": vars(provenance(model, seconds=0.0)),
    }  # fmt: skip
    if output is not None:
        write_json(output, plain)
    if as_json:
        say(json.dumps(plain))
        return
    print_frame("rates of success", pd.DataFrame([found.baseline, *found.rows]))
    print_frame("bisection for the smallest k", pd.DataFrame(found.bisection))
    if not lines.quiet and output is not None:
        lines.say(f"result: {output.resolve()}")


def _recovered(value: float | None) -> str:
    """None where taking the site away does no harm, as in a model that knows nothing."""
    return "-" if value is None else f"{value:.2f}"


def _verdict(frame: "pd.DataFrame") -> "pd.DataFrame":
    names = ["class", "verdict", "occurrences_ratio", "occurrences_low", "occurrences_high",
             "documents_ratio", "occurrences_n_members"]  # fmt: skip
    return frame[[n for n in names if n in frame]]


def _rows(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    # pandas writes NaN, which JSON has no word for, as null
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return rows
