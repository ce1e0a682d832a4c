"""While a scan runs: keep the attention of some of its trials, as parts that can be resumed."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from circuits.attention.capture import capture_rows
from circuits.attention.record import AttentionRecord, PooledMaps, TrialRows
from circuits.attention.window import pooled_maps
from circuits.shelf import Job, Part
from circuits.uncertainty import top
from interp.sites import Head
from interp.trace import Prefix
from probes.grid import Trial

if TYPE_CHECKING:
    from circuits.plan import ScanPlan
    from interp.backends.hf import HFModel

MAPS = "attention-maps"
N_MAPS = 16
"""Heads whose whole map is kept, of one trial."""


class AttentionKeeper:
    """Rows of chosen trials, read while the scan has their context at hand.

    Args:
        prefix: gives the context at a place of the plan, read.
    """

    def __init__(self, model: "HFModel", plan: "ScanPlan", prefix: Callable[[int], Prefix]) -> None:
        self.model, self.plan, self.prefix = model, plan, prefix
        self._trials: dict[int, list[Trial]] = {}
        for place, trial in plan.kept_trials:
            self._trials.setdefault(place, []).append(trial)
        self._waiting: list[tuple[int, int]] = []
        self._mapped = False
        self._rows: list[TrialRows] = []
        self._maps: PooledMaps | None = None

    def pass_by(self, place: int, n_finished: int) -> None:
        """A context was asked; so many parts of the scan were finished then."""
        if place in self._trials:
            self._waiting.append((place, n_finished))

    def jobs(self, finished: Sequence[Part]) -> list[Job]:
        """What is to be read in the contexts passed by; once also the maps of the best heads."""
        found = []
        for place, n in self._waiting:
            group = f"c{place:03d}"
            for trial in self._trials[place]:
                found.append(
                    Job(f"attention-{trial.name}", partial(self._read_rows, place, trial), group)
                )
            if not self._mapped and place == self._waiting[0][0]:
                heads = best_heads(finished[:n])
                found.append(Job(MAPS, partial(self._read_maps, place, heads), group))
        return found

    def keep(self, parts: Mapping[str, Part]) -> None:
        """Take what the jobs have read."""
        for name, part in parts.items():
            if name == MAPS:
                self._maps = PooledMaps.of(part.rows[0], part.values["values"])
                self._mapped = True
            else:
                self._rows.append(TrialRows.of(part.rows[0], part.values))
        self._waiting = []

    def _read_rows(self, place: int, trial: Trial) -> Part:
        context, seed = self.plan.contexts[place], self.plan.settings.seed
        made = capture_rows(self.model, self.prefix(place), context, trial, place=place, seed=seed)
        return Part(made.arrays(), [made.about()])

    def _read_maps(self, place: int, heads: tuple[Head, ...]) -> Part:
        context, trial = self.plan.contexts[place], self._trials[place][0]
        made = pooled_maps(self.model, self.prefix(place), context, trial, heads)
        return Part({"values": made.values}, [made.about()])

    def record(self) -> AttentionRecord | None:
        """What was kept; None where nothing was asked for."""
        if not self._rows:
            return None
        decode = self.model.tokenizer.decode
        places = {rows.context for rows in self._rows}
        contexts = {
            i: tuple(decode([t]) for t in self.plan.contexts[i].tokens) for i in sorted(places)
        }
        return AttentionRecord(contexts, tuple(self._rows), self._maps)


def best_heads(finished: Sequence[Part], n: int = N_MAPS) -> tuple[Head, ...]:
    """The heads with the highest copy score so far; by mass where nothing was answered."""
    passed = np.array([r["passed"] for part in finished for r in part.rows])
    name = "copy" if passed.any() else "mass"
    values = np.concatenate([part.values[name] for part in finished])
    mean = values[passed if passed.any() else slice(None)].mean(0)
    return tuple(Head(*divmod(int(i), mean.shape[1])) for i in top(mean.reshape(-1), n))
