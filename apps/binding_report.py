"""The end of a binding run: save it, write its page, print the table of studies and verdicts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Lines, markdown_table, print_table, say

if TYPE_CHECKING:
    from circuits.binding_result import BindingResult

PAGE = "page.html"


def finish(result: "BindingResult", folder: Path, lines: Lines, *, as_json: bool) -> None:
    """Save, draw and print.

    Raises:
        ResultError: nothing can be written.
    """
    from apps.binding_page import page as html
    from apps.html_parts import write_whole

    result.save(folder)
    page = write_whole(folder / PAGE, html(result))
    if as_json:
        say(json.dumps(summary(result, folder), allow_nan=False))
    else:
        _print(result, lines)
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")


def summary(result: "BindingResult", folder: Path) -> dict[str, Any]:
    """The result in plain values, for `--json`; None where there is no number."""
    # pandas writes NaN, which JSON has no word for, as null
    rows = json.loads(result.to_frame().to_json(orient="records"))
    return {
        "folder": str(folder),
        "model": result.provenance.model,
        "studies": [
            {"study": key} | row | {"ceiling": _ceiling(s), **s.conclusion["verdict"]}
            for (key, s), row in zip(result.studies.items(), rows, strict=True)
        ],
        "hypotheses": result.hypotheses,
        "markdown": markdown(result),
        "seconds": result.provenance.seconds,
        "command": result.settings.get("command", ""),
        "machine": result.settings.get("machine", result.provenance.device),
        "created": result.provenance.created,
    }


def markdown(result: "BindingResult") -> str:
    """The table of studies for a README, and what it is from."""
    from apps.binding_page import COLUMNS, JSS, overview

    made, versions = result.provenance, result.provenance.versions
    command = result.settings.get("command", "")
    used = ", ".join(f"{k} {versions[k]}" for k in ("torch", "transformers") if k in versions)
    facts = (
        f"{made.model}; shares of patched evaluations; {JSS}",
        f"`{command}`" if command else "",
        ", ".join(w for w in (result.settings.get("machine", made.device), used) if w),
        made.created[:10],
    )
    return f"{markdown_table(COLUMNS, overview(result))}\n\n{'; '.join(f for f in facts if f)}."


def _ceiling(study: Any) -> float | None:
    """Similarity that cases so few allow, where it was simulated."""
    from apps.binding_fit_figures import part_or_reason

    found, _ = part_or_reason(study, "ceiling")
    return None if found is None else float(found["matched"][0])


def _print(result: "BindingResult", lines: Lines) -> None:
    from apps.binding_fit_figures import study_name
    from apps.binding_page import COLUMNS, answer, overview
    from circuits.binding_labels import POINTERS

    narrow = [name[0].upper() if name in POINTERS else name for name in COLUMNS]
    rows = [[*row[:-1], row[-1].replace(", ", "\n")] for row in overview(result)]
    print_table(f"Binding in {result.provenance.model}", narrow, rows)
    lines.say("P, L, R: shares of positional, lexical and reflexive answers")
    lines.say(answer(result))
    for study in result.studies.values():
        lines.say(f"{study_name(study)}: {study.verdict}")
        for note in study.conclusion["verdict"]["notes"]:
            lines.say(f"  note: {note}")
    for test in result.hypotheses:
        lines.say(
            f"target {test['place']}, {test['predicted']}: {test['verdict']} "
            f"({study_name(result.studies[test['study']])})"
        )
