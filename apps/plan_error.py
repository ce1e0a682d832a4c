"""How far the predictions of `mnemoscope plan` were off, from the committed bench of them."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
MEASURED = "bench_plan_cpu.json"
UNKNOWN = "how far such predictions are off was not measured for this model: mnemoscope bench plan"


def measured_error(model: str, of: str, *, results: Path = RESULTS) -> str:
    """One line on the error for a model, of one experiment and of all."""
    found = committed(results)
    if found is None or found["model"] != model:
        return UNKNOWN
    own = [r["time off"] for r in found["runs"] if r["of"] == of]
    whole = found["time off"]
    told = f"; {of}: {', '.join(f'{x:+.0%}' for x in own)}" if own else ""
    return (
        f"measured error: predictions of time were off by {whole['median']:.0%} (median), "
        f"{whole['worst']:.0%} (worst) in {len(found['runs'])} runs{told}; of memory by "
        f"{_shares(found['memory off'])}; {found['machine']}, {found['created'][:10]}; measure "
        "yours: mnemoscope bench plan"
    )


def committed(results: Path = RESULTS) -> dict[str, Any] | None:
    """The committed bench, None where there is none."""
    path = results / MEASURED
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _shares(off: dict[str, float] | None) -> str:
    if off is None:
        return "an unknown amount"
    return f"{off['median']:.0%} (median), {off['worst']:.0%} (worst)"


def bench_plan(results: Path = RESULTS) -> str:
    """The block of the README: predicted beside measured, run by run."""
    from apps.console import markdown_table

    found = committed(results)
    if found is None:
        return "Not measured yet: `mnemoscope bench plan`."
    rows = [
        [
            r["run"], f"{r['predicted seconds']:.0f}", f"{r['seconds']:.0f}",
            f"{r['time off']:+.0%}", _mib(r["predicted MiB"]), _mib(r["MiB"]),
            "" if r["memory off"] is None else f"{r['memory off']:+.0%}",
        ]
        for r in found["runs"]
    ]  # fmt: skip
    columns = ["run", "predicted, s", "measured, s", "off", "predicted, MiB", "measured, MiB",
               "off"]  # fmt: skip
    words = (
        f"Time off by {_shares(found['time off'])}, memory beyond the weights by "
        f"{_shares(found['memory off'])}; the constants of the machine are timed before each "
        f"prediction, none is fitted. `{found['command']}`, {found['machine']}, "
        f"{found['created'][:10]}."
    )
    return f"{markdown_table(columns, rows)}\n\n{words}"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"
