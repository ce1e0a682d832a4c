"""How often is the binding detector right? On transformers whose mechanism was compiled by hand.

Every planted model (`probes.planted_binding`) goes the way of any other, from its task file to the
verdict. Held against the truth: which mechanisms are named, whether it abstains where it ought to,
whether the mixture is placed within or between prompts, and the fitted parameters.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from circuits.binding_calibration_result import BindingCalibration
from circuits.binding_mixture import KERNEL
from circuits.binding_result import StudyResult
from circuits.binding_run import binding
from circuits.mixture import MixtureFit
from circuits.shelf import Shelf
from interp.errors import PromptError, UnknownNameError
from interp.store import Provenance, provenance
from probes.planted_binding import PLANTED_BINDING, BindingTruth, build

Progress = Callable[[int, int, str], None]

OPTIONS: dict[str, Any] = {
    "style": "completion", "n_sets": 8, "donors": 8, "n_controls": 8, "heads": False,
    "bootstrap": 10,
}  # fmt: skip
"""Of `circuits.binding`. Compiled prompts have one layout; no interval of a fit is judged."""

WEIGHTS_WITHIN, SIGMA_WITHIN = 0.02, 0.05
"""How near a fit has to come: share of a weight, groups."""
EXACT = (
    "mixture", "positional", "positional_sharp", "lexical", "reflexive", "mixing", "capitals",
)  # fmt: skip
"""Models in which every prompt follows the formula itself, so that its parameters can be asked for:
not `switching` (each prompt follows one term), `word_prior` (a term more), `bf16` (rounded).
"""


def calibrate_binding(
    *,
    models: Sequence[str] = tuple(PLANTED_BINDING),
    seeds: int = 3,
    n: int = 8,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> BindingCalibration:
    """Run the detector on compiled models and hold what it says against the truth.

    Raises:
        UnknownNameError: no such model.
        PromptError: no seed.
    """
    import pandas as pd

    for name in models:
        if name not in PLANTED_BINDING:
            raise UnknownNameError("planted binding model", name, PLANTED_BINDING)
    if seeds < 1:
        raise PromptError(f"a calibration needs one seed or more, got {seeds}")
    settings: dict[str, Any] = {"models": list(models), "seeds": seeds, "n": n, **OPTIONS}
    shelf, start, rows = Shelf(folder, settings), time.perf_counter(), []
    jobs = [(name, seed) for name in models for seed in range(seeds)]
    for k, (name, seed) in enumerate(jobs):
        rows += shelf.kept_rows(f"{name}-{seed}", partial(_one, name, seed, n))
        if progress is not None:
            progress(k + 1, len(jobs), name)
    made = rows[-1]["_made"] | {"model": "planted", "seconds": time.perf_counter() - start}
    frame = pd.DataFrame([{k: v for k, v in row.items() if k != "_made"} for row in rows])
    return BindingCalibration(settings, Provenance(**made), frame)


def _one(name: str, seed: int, n: int) -> list[dict[str, Any]]:
    """A row; what made it is under `_made`."""
    import torch

    import interp

    planted, start = build(name, n=n, seed=seed), time.perf_counter()
    live: Any = planted.model
    if name == "bf16":
        live = live.to(torch.bfloat16)
    model = interp.load(live, tokenizer=planted.tokenizer)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "task.json"
        path.write_text(json.dumps(planted.task), "utf-8")
        study = binding(model, tasks=str(path), n=n, seed=seed, **OPTIONS).study()
    seconds = time.perf_counter() - start
    made = vars(provenance(model, seconds=seconds))
    held = _held(study, planted.truth)
    return [{"model": name, "seed": seed, **held, "seconds": seconds, "_made": made}]


def _held(study: StudyResult, truth: BindingTruth) -> dict[str, Any]:
    """What was said, against what is true."""
    found, verdict = study.conclusion, study.conclusion["verdict"]
    named, mechanisms = verdict["named"], list(truth.mechanisms)
    due = truth.expected == "abstain"
    right = verdict["abstained"] if due else set(named) == set(mechanisms)
    where = found.get("mixture", {}).get("case_level", {}).get("verdict")
    place = next((w for w in ("within prompts", "between prompts") if w in truth.notes), None)
    weights, sigma = _errors(found, truth)
    return {
        "expected": truth.expected, "mechanisms": ", ".join(mechanisms),
        "abstained": verdict["abstained"], "named": ", ".join(named), "right": bool(right),
        "mislabelled": bool(set(named) - set(mechanisms)), "where": where,
        "where_right": None if place is None or where is None else where == place,
        "weights_off": weights, "sigma_off": sigma,
    }  # fmt: skip


def _errors(found: dict[str, Any], truth: BindingTruth) -> tuple[float | None, float | None]:
    """Largest error of a weight as a share of it, and of the width in groups."""
    fields = found.get("mixture", {}).get("fit")
    if truth.row.name not in EXACT or not fields:
        return None, None
    assert truth.kernel == KERNEL
    fit = MixtureFit(**fields)
    pairs = [(fit.w_pos, truth.w_pos)]
    pairs += [*zip(fit.w_lex or (), truth.w_lex, strict=True)]
    pairs += [*zip(fit.w_ref or (), truth.w_ref, strict=True)]
    off = [abs(a / b - 1) for a, b in pairs if a is not None and b]
    sigma = float(np.abs(fit.sigma() - truth.sigma).max()) if truth.w_pos else None
    return (max(off) if off else None), sigma
