"""Runs as the explorer is given them: plain values, and one block of packed arrays.

Never a T x T array: sparse rows, region sums, pooled maps. What does not fit the budget is left
out, trial by trial, and the page says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from apps.explorer.binding_data import binding_data
from apps.explorer.feature_data import feature_data
from apps.explorer.layout import GUARD, as_plain
from apps.explorer.packing import Packer, as_text
from apps.explorer.planes import Plane, planes_of
from apps.result_kinds import Kind
from circuits.attention.record import REGIONS, AttentionRecord, TrialRows
from interp.errors import ResultError

VERSION = 1
BUDGET = 4_500_000
"""Bytes of compressed arrays for attention: with plotly.js a page stays near 10 MB."""
RATIO = 0.75
"""Compressed share of attention rows; measured .6 to .7 on smollm2-135m."""
TRIAL_COLUMNS = ("trial", "length", "depth", "needle", "value", "generated", "passed", "logprob")


@dataclass(frozen=True, eq=False)
class OpenRun:
    """A run to be shown: its label, kind and result."""

    label: str
    kind: Kind
    result: Any


@dataclass(frozen=True, eq=False)
class Payload:
    """What a face of the explorer is given."""

    about: dict[str, Any]
    block: bytes
    left_out: Mapping[str, int] = field(default_factory=dict)

    def as_plain(self) -> dict[str, Any]:
        """One object of plain values; the block as text."""
        return {**self.about, "block": as_text(self.block)}


def build(runs: Sequence[OpenRun], *, live: Mapping[str, Any] | None = None) -> Payload:
    """Everything that the explorer shows of some runs.

    Args:
        live: what an attached model can do, see `apps.explorer.live`; None without one.

    Raises:
        ResultError: no run, or none that holds anything the explorer shows.
    """
    if not runs:
        raise ResultError("nothing to explore; name one or more run folders")
    packer, left = Packer(), {}
    share = BUDGET // max(1, sum(getattr(r.result, "attention", None) is not None for r in runs))
    told = []
    for i, run in enumerate(runs):
        plain, missing = _run(run, f"r{i}", packer, share)
        told.append(plain)
        if missing:
            left[run.label] = missing
    if not any(r["planes"] or r["trials"] or r["binding"] or r["features"] for r in told):
        kinds = ", ".join(sorted({r.kind.word for r in runs}))
        raise ResultError(
            f"the explorer has no view for these runs ({kinds}); open a scan, validation, binding "
            "or graph run, or read them with: mnemoscope report RUN"
        )
    about = {
        "version": VERSION, "layout": as_plain(), "guard": GUARD, "regions": REGIONS, "runs": told,
        "live": dict(live) if live else None,
    }  # fmt: skip
    return Payload(about, packer.packed(), left)


def _run(run: OpenRun, key: str, packer: Packer, budget: int) -> tuple[dict[str, Any], int]:
    result, made = run.result, run.result.provenance
    record = getattr(result, "attention", None)
    attention, missing = _attention(record, packer, budget)
    plain = {
        "id": key, "label": run.label, "kind": run.kind.name, "word": run.kind.word,
        "model": made.model, "weights": made.weight_hash or made.model, "created": made.created,
        "layers": made.n_layers, "heads": made.n_heads,
        "kv_heads": getattr(made, "n_kv_heads", None),
        "answer": run.kind.answer(result), "notes": list(getattr(result, "notes", ())),
        "command": result.settings.get("command", ""),
        "planes": [_plane(p, packer) for p in planes_of(run.kind.name, result)],
        "sets": _sets(run), "roles": _roles(run),
        "trials": _trials(run, packer),
        "attention": attention, "left_out": missing,
        "binding": binding_data(result) if run.kind.name == "binding" else None,
        "features": feature_data(result, packer) if run.kind.name == "function-tokens" else None,
    }  # fmt: skip
    return plain, missing


def _plane(plane: Plane, packer: Packer) -> dict[str, Any]:
    words = ("name", "title", "group", "about", "centred", "threshold")
    plain = {n: getattr(plane, n) for n in words}
    arrays = {n: packer.add(getattr(plane, n)) for n in ("values", "low", "high", "q")}
    return plain | arrays


def _sets(run: OpenRun) -> list[dict[str, Any]]:
    """Sets of heads that the run itself names."""
    result = run.result
    if run.kind.name == "scan" and result.trials["passed"].any():
        return [{"name": f"top {result.settings['top']} by copy score",
                 "heads": [str(h) for h in _top(result)]}]  # fmt: skip
    if run.kind.name == "validation":
        return [{"name": "validated heads", "heads": [str(h) for h in result.heads]}]
    if run.kind.name == "circuit":
        return [{"name": "heads of the circuit", "heads": list(result.settings["heads"])}]
    return []


def _top(result: Any) -> list[Any]:
    """The best heads; a single answered needle has no intervals, but a mean."""
    from circuits.uncertainty import top
    from interp.sites import Head

    mean = result.mean("copy")
    return [Head(*divmod(int(i), mean.shape[1]))
            for i in top(mean.reshape(-1), result.settings["top"])]  # fmt: skip


def _roles(run: OpenRun) -> list[str]:
    """Role labels of all heads, head after head."""
    if run.kind.name != "scan" or not run.result.trials["passed"].any():
        return []
    return [name.replace("+", ", ") for row in run.result.labels for name in row]


def _trials(run: OpenRun, packer: Packer) -> dict[str, Any] | None:
    """Needle trials: what was asked and answered, and the copy score of every head in each."""
    if run.kind.name != "scan":
        return None
    table = run.result.trials
    columns = {c: [_plain(v) for v in table[c].tolist()] for c in TRIAL_COLUMNS if c in table}
    fired = np.rint(np.nan_to_num(run.result.values["copy"]) * 255).astype(np.uint8)
    return columns | {"fired": packer.add(fired)}


def _plain(value: Any) -> Any:
    """JSON has no NaN; what a preset does not measure is missing."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _attention(
    record: AttentionRecord | None, packer: Packer, budget: int
) -> tuple[dict[str, Any] | None, int]:
    """Rows of as many trials as fit, in order; and how many were left out."""
    if record is None:
        return None, 0
    kept: list[TrialRows] = []
    used = 0.0
    for trial in record.trials:
        size = RATIO * sum(a.nbytes for a in trial.arrays().values())
        if kept and used + size > budget:
            break
        used += size
        kept.append(trial)
    maps = record.maps
    return {
        "contexts": {str(i): list(record.contexts[i]) for i in {t.context for t in kept}},
        "trials": [_rows(t, packer) for t in kept],
        "maps": None if maps is None else maps.about() | {"values": packer.add(maps.values)},
    }, len(record.trials) - len(kept)


def _rows(trial: TrialRows, packer: Packer) -> dict[str, Any]:
    return trial.about() | {name: packer.add(a) for name, a in trial.arrays().items()}
