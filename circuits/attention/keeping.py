"""While a scan runs: keep the attention of some of its trials, as parts that can be resumed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from circuits.attention.capture import capture_rows
from circuits.attention.record import AttentionRecord, PooledMaps, TrialRows
from circuits.attention.window import pooled_maps
from circuits.shelf import Part, Shelf
from circuits.uncertainty import top
from interp.sites import Head
from interp.trace import Prefix
from probes.grid import Trial

if TYPE_CHECKING:
    from circuits.plan import ScanPlan
    from interp.backends.hf import HFModel

N_MAPS = 16
"""Heads whose whole map is kept, of one trial."""


class AttentionKeeper:
    """Rows of chosen trials, read while the scan has their context at hand.

    Attributes:
        waiting: trials still to be kept, by place of their context in the plan.
    """

    def __init__(self, model: "HFModel", plan: "ScanPlan", shelf: Shelf) -> None:
        self.model, self.plan, self.shelf = model, plan, shelf
        self.waiting: dict[int, list[Trial]] = {}
        for place, trial in plan.kept_trials:
            self.waiting.setdefault(place, []).append(trial)
        self._rows: list[TrialRows] = []
        self._maps: PooledMaps | None = None

    def keep(self, place: int, prefix: Prefix | None, finished: Sequence[Part]) -> None:
        """Keep the trials of one context; it is read here if it was not (a resumed scan)."""
        trials, context = self.waiting.pop(place), self.plan.contexts[place]
        held = [] if prefix is None else [prefix]

        def read() -> Prefix:
            if not held:
                held.append(self.model.prefill(context.tokens))
            return held[0]

        for trial in trials:

            def rows(trial: Trial = trial) -> Part:
                seed = self.plan.settings.seed
                made = capture_rows(self.model, read(), context, trial, place=place, seed=seed)
                return Part(made.arrays(), [made.about()])

            part = self.shelf.kept(f"attention-{trial.name}", rows)
            self._rows.append(TrialRows.of(part.rows[0], part.values))
        if self._maps is None:

            def maps() -> Part:
                made = pooled_maps(self.model, read(), context, trials[0], best_heads(finished))
                return Part({"values": made.values}, [made.about()])

            part = self.shelf.kept("attention-maps", maps)
            self._maps = PooledMaps.of(part.rows[0], part.values["values"])

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
