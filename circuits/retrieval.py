"""Scan a model for retrieval heads: the heads that look up a needle in a long context.

Wu et al. 2024, arXiv 2404.15574. One prefill holds a whole length x depth grid of needles; the
answers are teacher-forced behind it and all scores come from the same rows. We differ from the
published protocol in: many needles instead of three, several in one context, intervals over
needles, the answer's own tokens (no fuzzy span search), a position counting once, and no average
over trials in which nothing could be scored. `circuits.wu2024` is the protocol as published.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attention.keeping import AttentionKeeper
from circuits.attention.record import AttentionRecord
from circuits.measure import Outcome, measure
from circuits.plan import ScanPlan, ScanSettings, make_plan
from circuits.roles import role_scores
from circuits.scan_result import ScanResult
from circuits.shelf import Part, Shelf, model_label
from circuits.uncertainty import bootstrap, settled
from interp.store import provenance
from interp.trace import Prefix

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
BATCH = 12
"""Trials that run, and are saved, together."""


def scan(
    model: "HFModel",
    settings: ScanSettings | None = None,
    *,
    parts: str | Path | None = None,
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
    shelf = Shelf(parts, label | model_label(model))
    report = progress or (lambda *_: None)
    total, n_done = plan.n_trials, 0
    finished: list[Part] = []
    seen_stacks: set[int] = set()
    keeper = AttentionKeeper(model, plan, shelf)
    for i, (context, trials) in enumerate(zip(plan.contexts, plan.trials, strict=True)):
        if context.index not in seen_stacks and _enough(finished, seen_stacks, settings):
            break
        seen_stacks.add(context.index)
        prefix: Prefix | None = None
        for start in range(0, len(trials), BATCH):
            batch = trials[start : start + BATCH]
            name = f"c{i:03d}-b{start // BATCH:02d}"
            done = shelf.read(name)
            if done is None:
                if prefix is None:
                    report(n_done, total, f"reading context {i + 1}")
                    prefix = model.prefill(context.tokens)
                report(n_done, total, f"asking in context {i + 1}")
                outcomes = measure(
                    model, prefix, context, batch, plan.fmt,
                    generate=settings.generate, seed=settings.seed,
                )  # fmt: skip
                done = Part(_stacked(outcomes), [_row(o, context) for o in outcomes])
                shelf.write(name, done)
            finished.append(done)
            n_done += len(batch)
            report(n_done, total, "")
        if i in keeper.waiting:
            report(n_done, total, "keeping attention")
            keeper.keep(i, prefix, finished)
    seconds = time.monotonic() - started
    return _result(model, plan, finished, keeper.record(), seconds, n_done < total)


def _enough(finished: list[Part], stacks: set[int], settings: ScanSettings) -> bool:
    """Whether the top set is settled already, judged on whole haystacks only."""
    if not settings.stop_early or len(stacks) < settings.min_haystacks:
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
