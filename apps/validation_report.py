"""The end of a validation: save the run, write its page, print findings and negative heads."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Lines, print_table, say
from interp.errors import ResultError

if TYPE_CHECKING:
    from circuits.effects import Finding
    from circuits.validation_result import ValidationResult

PAGE = "page.html"
N_NEGATIVE = 5
COLUMNS = ["claim", "verdict", "before", "after", "random sets, 95 %", "effect, 95 % interval",
           "p (Holm)", "n"]  # fmt: skip


def finish(result: "ValidationResult", folder: Path, lines: Lines, *, as_json: bool) -> None:
    """Save, draw and print.

    Raises:
        ResultError: no effect could be measured (the run is saved all the same), or nothing can
            be written.
    """
    from apps.validation_page import write_page

    result.save(folder)
    page = write_page(result, folder / PAGE)
    if as_json:
        say(json.dumps(summary(result, folder), allow_nan=False))
    else:
        _print(result, lines)
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")
    if not result.findings:
        raise ResultError("no effect could be measured: " + "; ".join(result.missing().values()))


def summary(result: "ValidationResult", folder: Path) -> dict[str, Any]:
    """The result in plain values, for `--json`; None where there is no number."""
    return _plain(
        {
            "folder": str(folder),
            "model": result.provenance.model,
            "heads": [str(h) for h in result.heads],
            "metric": result.settings["metric"],
            "scope": result.settings["scope"],
            "questions": int(result.kept.sum()),
            "needles": int(result.cases["needle"][result.kept].nunique()),
            "findings": [asdict(f) for f in result.findings],
            "missing": result.missing(),
            "agreement": result.agreement(),
            "negative_heads": _negative(result),
            "score_against_effect": _correlation(result),
            "notes": list(result.notes),
            "seconds": result.provenance.seconds,
            "command": result.settings.get("command", ""),
            "machine": result.settings.get("machine", result.provenance.device),
            "created": result.provenance.created,
        }
    )


def _correlation(result: "ValidationResult") -> dict[str, float] | None:
    """Rank correlation of score and harm with its p; None where it is not defined."""
    try:
        found = result.score_against_effect()
    except ResultError:
        return None
    return None if found is None else dict(zip(("rho", "p"), found, strict=True))


def _negative(result: "ValidationResult") -> list[dict[Any, Any]] | None:
    """Heads without which the answer gains; None where single heads were not ablated."""
    from apps.validation_parts import negative_heads

    if not result.alone.size:
        return None
    columns = ["name", "effect", "low", "high", "p", "p_holm"]
    return negative_heads(result.alone_frame())[columns].to_dict("records")


def _print(result: "ValidationResult", lines: Lines) -> None:
    from apps import validation_parts as own

    words, unit = own.metric_unit(result)
    lines.say(
        f"{words}, {unit}; mean over {own.questions(result)} that the unablated model answers; "
        f"scope {result.settings['scope']}; n: questions/needles/random sets"
    )
    if result.findings:
        title = f"Validation of {own.candidates(result)} of {result.provenance.model}"
        print_table(title, COLUMNS, [_row(f) for f in result.findings])
    for why, runs in _reasons(result).items():
        lines.say(f"{', '.join(runs)}: {why}")
    if agreement := result.agreement():
        lines.say(agreement)
    if result.alone.size:
        frame = result.alone_frame()
        worst = own.negative_heads(frame).head(N_NEGATIVE)
        pairs = zip(worst["name"], worst["effect"], strict=True)
        named = ", ".join(f"{name} {own.signed(effect)}" for name, effect in pairs)
        lines.say(own.negative_words(result, frame) + (f" First: {named}." if named else ""))
    for note in (*result.notes, *result.missing().values()):
        lines.say(f"note: {note}")


def _row(finding: "Finding") -> list[str]:
    from apps.validation_parts import between, claim_word, run_name, signed

    e = finding.effect
    return [
        f"{claim_word(finding)}\n({run_name(finding)})", finding.verdict, f"{e.baseline:.2f}",
        f"{e.treated:.2f}", f"{e.control:.2f}\n{between(e.control_low, e.control_high)}",
        f"{signed(e.effect)}\n{between(e.low, e.high)}", f"{e.p_holm:.3g}",
        f"{e.n_trials}/{e.n_clusters}/{e.n_draws}",
    ]  # fmt: skip


def _reasons(result: "ValidationResult") -> dict[str, list[str]]:
    """What decided each verdict, and the runs that it decided."""
    from apps.validation_parts import run_name

    runs: dict[str, list[str]] = {}
    for finding in result.findings:
        why = finding.reason.partition(": ")[2]
        runs.setdefault(f"{finding.verdict}, {why}", []).append(run_name(finding))
    return runs


def _plain(value: Any) -> Any:
    """Without NaN, which JSON has no word for, and without numpy's numbers."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
