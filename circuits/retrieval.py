"""Scan a model for retrieval heads: the heads that look up a needle in a long context.

Wu et al. 2024, arXiv 2404.15574. One prefill holds a whole length x depth grid of needles; the
answers are teacher-forced behind it and all scores come from the same rows. We differ from the
published protocol in: many needles instead of three, several in one context, intervals over
needles, the answer's own tokens (no fuzzy span search), a position counting once, and no average
over trials in which nothing could be scored. `circuits.wu2024` is the protocol as published.
"""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attention.keeping import AttentionKeeper
from circuits.attention.record import AttentionRecord
from circuits.measure import Outcome, measure
from circuits.plan import ScanPlan, ScanSettings, make_plan
from circuits.roles import role_scores
from circuits.scan_result import ScanResult
from circuits.shelf import Job, Part, Parts, model_label, open_shelf
from circuits.tally import Progress, Tally
from circuits.uncertainty import bootstrap, settled
from interp.store import provenance
from interp.trace import Prefix

if TYPE_CHECKING:
    from interp.backends.hf import HFModel
    from probes.grid import Trial

BATCH = 12
"""Trials that run, and are saved, together."""


def scan(
    model: "HFModel",
    settings: ScanSettings | None = None,
    *,
    parts: Parts = None,
    progress: Progress | None = None,
    **options: Any,
) -> ScanResult:
    """Score every head of a model.

    Args:
        settings: a `ScanSettings`, or give its fields as keywords.
        parts: a folder in which finished trials are kept; a scan that finds its own trials
            there goes on after them.
        progress: called with trials done, trials planned, and what is running.

    Raises:
        PromptError, UnknownNameError: bad settings, before anything runs.
        ResultError: `parts` belongs to other settings or another model.
    """
    started = time.monotonic()
    settings = settings or ScanSettings(**options)
    plan = make_plan(model, settings)
    label = {"settings": settings.as_dict() | {"lengths": list(plan.lengths)}}
    shelf = open_shelf(parts, label | model_label(model))
    work = _Work(model, plan, progress)
    keeper = AttentionKeeper(model, plan, work.prefix)
    finished: list[Part] = []
    seen_stacks: set[int] = set()
    enough = False
    for wave in _waves(plan, shelf.width):
        if enough := _enough(plan, wave[0], finished, seen_stacks):
            break
        made = shelf.parts([job for i in wave for job in work.jobs(i)], work.tick)
        for i in wave:
            # of several contexts run at a time, those behind the stop do not count
            if enough := _enough(plan, i, finished, seen_stacks):
                break
            seen_stacks.add(plan.contexts[i].index)
            finished += [made[job.name] for job in work.jobs(i)]
            keeper.pass_by(i, len(finished))
        if rows := keeper.jobs(finished):
            work.tally.tell("keeping attention")
            keeper.keep(shelf.parts(rows))
        if enough:
            break
    shelf.finish()
    seconds = time.monotonic() - started
    return _result(model, plan, finished, keeper.record(), seconds, enough)


class _Work:
    """Trials of a plan as jobs, and the context at hand: only one is kept."""

    def __init__(self, model: "HFModel", plan: ScanPlan, progress: Progress | None) -> None:
        self.model, self.plan = model, plan
        self.tally = Tally(progress, plan.n_trials)
        self.sizes: dict[str, int] = {}
        self._held: tuple[int, Prefix] | None = None

    def jobs(self, place: int) -> list[Job]:
        """Batches of trials of one context."""
        trials = self.plan.trials[place]
        found = []
        for start in range(0, len(trials), BATCH):
            batch = trials[start : start + BATCH]
            name = f"c{place:03d}-b{start // BATCH:02d}"
            self.sizes[name] = len(batch)
            found.append(Job(name, partial(self._ask, place, batch), f"c{place:03d}"))
        return found

    def prefix(self, place: int) -> Prefix:
        """A context, read; once while it is at hand."""
        if self._held is None or self._held[0] != place:
            self._held = None  # its memory is free before the next one is read
            self.tally.tell(f"reading context {place + 1}")
            self._held = place, self.model.prefill(self.plan.contexts[place].tokens)
        return self._held[1]

    def tick(self, job: Job) -> None:
        """A batch is done."""
        self.tally.tick(n=self.sizes[job.name])

    def _ask(self, place: int, batch: Sequence["Trial"]) -> Part:
        settings, context = self.plan.settings, self.plan.contexts[place]
        prefix = self.prefix(place)
        self.tally.tell(f"asking in context {place + 1}")
        outcomes = measure(
            self.model, prefix, context, batch, self.plan.fmt,
            generate=settings.generate, seed=settings.seed,
        )  # fmt: skip
        return Part(_stacked(outcomes), [_row(o, context) for o in outcomes])


def _waves(plan: ScanPlan, width: int) -> Iterator[Sequence[int]]:
    """Contexts that are run together: one, or as many as there are workers.

    More than the first few may turn out not to be needed; without early stopping all are.
    """
    n = len(plan.contexts)
    if width == 1:
        yield from ([i] for i in range(n))
        return
    least = sum(c.index < plan.settings.min_haystacks for c in plan.contexts)
    first = max(width, least) if plan.settings.stop_early else n
    yield range(min(first, n))
    for start in range(first, n, width):
        yield range(start, min(start + width, n))


def _enough(plan: ScanPlan, place: int, finished: list[Part], stacks: set[int]) -> bool:
    """Whether the top set is settled before a context, judged on whole haystacks only."""
    settings = plan.settings
    if not settings.stop_early or len(stacks) < settings.min_haystacks:
        return False
    if plan.contexts[place].index in stacks:
        return False
    rows = [r for d in finished for r in d.rows]
    keep = np.array([r["passed"] for r in rows])
    needles = [r["needle"] for r in rows if r["passed"]]
    if len(set(needles)) < 4:
        return False
    copy = np.concatenate([d.values["copy"] for d in finished])[keep]
    flat = copy.reshape(len(copy), -1)
    return settled(bootstrap(flat, needles, k=settings.top, seed=settings.seed))


def _row(outcome: Outcome, context: Any) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "trial": trial.name,
        "context": trial.context,
        "haystack": context.haystack,
        "needle": trial.needle,
        "kind": trial.kind,
        "language": trial.language,
        "value": trial.value,
        "length": trial.length,
        "depth": trial.depth,
        "true_depth": round(trial.true_depth, 4),
        "n_competing": sum(p.stop <= trial.length for p in context.planted) - 1,
        "similarity": context.similarity[trial.planted] if context.similarity else 0.0,
        "n_answer": len(trial.answer),
        "n_suffix": len(trial.suffix) + len(trial.answer),
        "forced": outcome.forced,
        "logprob": outcome.logprob,
        "generated": outcome.generated,
        "exact": outcome.exact,
        "rouge": outcome.rouge,
        "passed": outcome.passed,
        "scored_on": outcome.scored_on,
    }


def _stacked(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    return {n: np.stack([o.scores[n] for o in outcomes]) for n in outcomes[0].scores}


def _result(
    model: "HFModel", plan: ScanPlan, finished: list[Part], attention: AttentionRecord | None,
    seconds: float, early: bool,
) -> ScanResult:  # fmt: skip
    import pandas as pd

    settings = plan.settings
    names = finished[0].values
    values = {n: np.concatenate([d.values[n] for d in finished]) for n in names}
    notes = list(plan.warnings)
    if early:
        notes.append(
            f"stopped after {sum(len(d.rows) for d in finished)} of {plan.n_trials} trials: "
            f"the top {settings.top} are settled"
        )
    if "write" not in values:
        notes.append("write score: not applicable to this architecture")
    roles = role_scores(model, seed=settings.seed)
    trials = pd.DataFrame([r for d in finished for r in d.rows])
    kept = settings.as_dict() | {
        "lengths": list(plan.lengths),
        "style": plan.fmt.style,
        "context_length": model.spec.context_length,
    }
    result = ScanResult(
        kept, provenance(model, seconds=seconds), trials, values, roles, {}, tuple(notes), attention
    )
    return _with_rows(model, plan, result)


def _with_rows(model: "HFModel", plan: ScanPlan, result: ScanResult) -> ScanResult:
    """Add the attention of the best heads over one needle's neighbourhood, for the figure."""
    from dataclasses import replace

    from circuits.neighbourhood import neighbourhood

    if not result.trials["passed"].any():
        return result
    return replace(result, rows=neighbourhood(model, plan, result))
