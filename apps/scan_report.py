"""The end of a scan: save the run, write its page, print the ranked heads."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.console import Lines, print_table, say
from interp.errors import ResultError

if TYPE_CHECKING:
    from circuits.scan_result import ScanResult

PAGE = "page.html"


def finish(result: "ScanResult", folder: Path, lines: Lines, *, as_json: bool) -> None:
    """Save, draw and print.

    Raises:
        ResultError: no trial passed (the run is saved all the same), or nothing can be written.
    """
    from apps.page import write_page

    result.save(folder)
    page = write_page(result, folder / PAGE)
    if as_json:
        say(json.dumps(summary(result, folder)))
    elif result.trials["passed"].any():
        _print(result, lines)
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")
    if not result.trials["passed"].any():
        raise ResultError(result.diagnosis())


def summary(result: "ScanResult", folder: Path) -> dict[str, Any]:
    """The result in plain values, for `--json`."""
    reliability = result.reliability() if result.trials["passed"].any() else None
    heads = []
    if result.trials["needle"][result.gated()].nunique() > 1:
        frame = result.to_frame().head(result.settings["top"])
        heads = json.loads(frame.to_json(orient="records"))
    return {
        "folder": str(folder),
        "model": result.provenance.model,
        "yields": result.yields(),
        "heads": heads,
        "split_half": None if reliability is None else vars(reliability),
        "notes": list(result.notes),
        "seconds": result.provenance.seconds,
    }


def _print(result: "ScanResult", lines: Lines) -> None:
    yields = result.yields()
    lines.say(
        f"{yields['trials']:.0f} trials, {yields['passed']:.0%} answered "
        f"({yields['forced']:.0%} word for word under teacher forcing)"
    )
    for note in result.notes:
        lines.say(f"note: {note}")
    k = result.settings["top"]
    rows = [
        [
            str(i + 1),
            r["name"],
            f"{r['score']:.2f}",
            f"{r['low']:.2f}-{r['high']:.2f}",
            f"{r['p_top']:.2f}",
            *(f"{r[m]:.2f}" if m in r else "-" for m in ("mass", "query_focus", "write")),
            r["roles"],
        ]
        for i, r in enumerate(result.to_frame().head(k).to_dict("records"))
    ]
    columns = ["", "head", "copy", "95% interval", f"P(top {k})", "mass", "query", "write", "roles"]
    print_table(f"Retrieval heads of {result.provenance.model}", columns, rows)
    reliability = result.reliability()
    if reliability is not None:
        lines.say(
            f"split-half: the halves of the needles share {reliability.overlap:.1f} of the top "
            f"{k}; correlation {reliability.pearson:.3f}"
        )
    above = int((result.mean("copy") >= result.settings["threshold"]).sum())
    lines.say(f"{above} of {result.mean('copy').size} heads are at or above the published 0.1")
