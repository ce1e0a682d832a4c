"""One study, measured: preflight, layer sweep, main design, controls; records and no conclusions.

Whatever is concluded (`circuits.binding_analysis`) is computed from these records alone, so that a
saved run can be judged again without the model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from circuits.binding_labels import ABSENT, label
from circuits.binding_plan import BindSettings
from circuits.shelf import Job, Part

if TYPE_CHECKING:
    from circuits.competence import Ready
    from circuits.interchange import SetRun
    from interp.backends.hf import HFModel

SWEEP, MAIN, CONTROL = "sweep", "main", "control"
STAGES = (SWEEP, MAIN, CONTROL)
OFFSET = {SWEEP: 1000, MAIN: 2000, CONTROL: 3000}
"""First entity set: stages share none, so that a layer is not chosen on the sets it is used on."""

COLUMNS = [
    "stage", "design", "layer", "set", "donor", "i_p", "i_l", "i_r", "i_n", "top", "said",
    "label", "mass", "p_said", "self_change",
]  # fmt: skip
ARRAYS = ("logits", "unpatched", "words")
"""Of each evaluation, in the order of the record's fields."""


@dataclass(frozen=True, eq=False)
class Records:
    """Evaluations of a study.

    Attributes:
        rows: one row an evaluation, see `COLUMNS`.
        logits: `[case, n]` of the candidates, in the same order.
        unpatched: `[case, n]` of the same recipient question as it is.
        words: `[case, n]` answer tokens of the candidates.
    """

    rows: pd.DataFrame
    logits: np.ndarray
    unpatched: np.ndarray
    words: np.ndarray

    def of(self, stage: str, **equal: Any) -> "Records":
        """The records of a stage, and of a design or layer."""
        keep = (self.rows["stage"] == stage).to_numpy()
        for column, value in equal.items():
            keep = keep & (self.rows[column] == value).to_numpy()
        return Records(
            self.rows[keep].reset_index(drop=True), self.logits[keep], self.unpatched[keep],
            self.words[keep],
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)


def stage_jobs(
    model: "HFModel",
    ready: "Ready",
    settings: BindSettings,
    stage: str,
    *,
    layers: Sequence[int],
) -> list[Job]:
    """A job for each entity set of a stage; see `records_of`."""
    designs, n_sets, repeats, n_recipients = _programme(settings, stage)

    def make(k: int) -> Part:
        from circuits.interchange import run_set  # viewing a saved run needs no torch

        entity_set = ready.sampler(collisions=settings.collisions).draw(
            OFFSET[stage] + k, designs, seed=settings.seed, repeats=repeats
        )
        run = run_set(
            model, ready.writer, ready.answers, entity_set, layers=layers,
            n_recipients=n_recipients, collisions=settings.collisions, seed=settings.seed,
        )  # fmt: skip
        return _part(run, stage)

    name = f"{safe(ready.study.key)}-{stage}"
    return [Job(f"{name}-{k}", partial(make, k)) for k in range(n_sets if designs else 0)]


def records_of(parts: Iterable[Part]) -> list[Records]:
    """Records of each entity set."""
    return [
        Records(pd.DataFrame(part.rows, columns=COLUMNS), *(part.values[name] for name in ARRAYS))
        for part in parts
    ]


def n_parts(settings: BindSettings) -> int:
    """Entity sets of all stages of a study: what its progress counts."""
    found = (_programme(settings, stage) for stage in STAGES)
    return sum(n_sets if designs else 0 for designs, n_sets, _, _ in found)


def joined(records: Sequence[Records]) -> Records:
    """All records of a study."""
    if not records:
        return Records(pd.DataFrame(columns=COLUMNS), *(np.zeros((0, 0)) for _ in ARRAYS))
    rows = pd.concat([r.rows for r in records], ignore_index=True)
    return Records(rows, *(np.concatenate([getattr(r, name) for r in records]) for name in ARRAYS))


def safe(key: str) -> str:
    """A study's key as a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in key)


def _programme(settings: BindSettings, stage: str) -> tuple[tuple[str, ...], int, int, int]:
    """Designs, entity sets, donors of each design and recipients of each donor question."""
    if stage == SWEEP:
        if settings.layer >= 0:
            return (), 0, 0, 0
        return ("main", "absent_answer"), settings.n_sweep, 1, 1
    if stage == MAIN:
        return ("main",), settings.n_sets, settings.donors, settings.n_recipients
    return settings.controls, settings.n_controls, 1, 1


def _part(run: "SetRun", stage: str) -> Part:
    """Plain rows and arrays of an entity set."""
    rows = []
    for case, reading in zip(run.cases, run.readings, strict=True):
        i_l, i_r = (ABSENT if i is None else i for i in (case.i_l, case.i_r))
        rows.append({
            "stage": stage, "design": case.design, "layer": case.layer, "set": case.set_index,
            "donor": case.donor, "i_p": case.i_p, "i_l": i_l, "i_r": i_r, "i_n": case.i_n,
            "top": reading.top, "said": case.said,
            "label": label(
                reading.top, run.candidates, case.said,
                i_p=case.i_p, i_l=i_l, i_r=i_r, i_n=case.i_n,
            ),
            "mass": float(np.exp(reading.logits - reading.total).sum()),
            "p_said": float(np.exp(reading.said - reading.total)),
            "self_change": run.self_change,
        })  # fmt: skip
    logits = np.stack([r.logits for r in run.readings])
    unpatched = np.stack([run.unpatched[c.i_n].logits for c in run.cases])
    words = np.tile(np.array(run.candidates), (len(rows), 1))
    return Part({"logits": logits, "unpatched": unpatched, "words": words}, rows)
