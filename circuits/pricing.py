"""What an experiment runs, told before it runs: its phases as lists of forwards.

A price is made from a plan and the model's sizes alone. Phases say which context they belong to
(contexts are what workers share out) and whether they are sure: an early stop takes contexts away,
questions that the model fails add generated text, and neither is known beforehand.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from circuits.cost import (
    TERMS,
    Forward,
    Sizes,
    Suffix,
    extend,
    generate,
    grow,
    operations,
    prefill,
    total,
)
from circuits.cost_limits import Memory, Spread, memory
from circuits.interventions import N_NEW
from circuits.retrieval import BATCH

if TYPE_CHECKING:
    from circuits.cost_machine import Machine
    from circuits.plan import ScanPlan
    from probes.grid import Trial


@dataclass(frozen=True)
class Phase:
    """A stretch of work.

    Attributes:
        unit: number of the context (entity set, block of text) that it belongs to; None for what is
            done once for all.
        stage: units of a stage can be shared out; the next stage waits for all of them.
        sure: it will be run; others may be.
        seconds: time that is no forward's, measured elsewhere (training a dictionary, say).
    """

    name: str
    work: tuple[Forward, ...]
    unit: int | None = None
    sure: bool = True
    stage: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Price:
    """Phases of an experiment, and what its reader should know.

    Attributes:
        n_cached: tokens whose keys and values are held at one time, at most.
        counts: plain figures of the plan, by name.
        notes: what the price takes for granted, and what is not in it.
        held: bytes held beside keys and values (dictionaries, activations).
        unit: what workers share out.
    """

    of: str
    phases: tuple[Phase, ...]
    n_cached: float
    counts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    held: float = 0.0
    unit: str = "contexts"

    @property
    def n_units(self) -> int:
        """How many there are to share out, in all stages."""
        return len({(p.stage, p.unit) for p in self.phases if p.unit is not None})

    def chosen(self, *, sure: bool) -> list[Phase]:
        """Phases that will be run; with `sure` false, those that may be run too."""
        return [p for p in self.phases if p.sure or not sure]

    def work(self, *, sure: bool = False) -> list[Forward]:
        """Forwards of all phases."""
        return [one for p in self.chosen(sure=sure) for one in p.work]

    def amounts(self, sizes: Sizes, *, sure: bool = False) -> dict[str, float]:
        """Amounts of each term of `circuits.cost.TERMS`."""
        return total(sizes, self.work(sure=sure))

    def memory(self, sizes: Sizes) -> Memory:
        """Bytes at most."""
        found = memory(sizes, self.n_cached, self.work())
        return Memory(found.weights, found.cached, found.working + self.held)

    def spread(
        self, sizes: Sizes, machine: "Machine", *, sure: bool = False, alone: float = 0.0
    ) -> Spread:
        """Seconds of every context and of the rest, for any number of workers.

        Args:
            alone: seconds that every worker spends besides: loading the model, planning.
        """
        stages: dict[int, dict[int, float]] = {}
        serial = alone
        for phase in self.chosen(sure=sure):
            seconds = machine.seconds(total(sizes, phase.work)) + phase.seconds
            if phase.unit is None:
                serial += seconds
            else:
                units = stages.setdefault(phase.stage, {})
                units[phase.unit] = units.get(phase.unit, 0.0) + seconds
        return Spread(tuple(tuple(stages[k].values()) for k in sorted(stages)), serial)


def repeated(price: Price, times: int) -> Price:
    """The same with so many times as many units; what is done once is done once."""
    phases = list(price.phases)
    units = [p for p in phases if p.unit is not None]
    more = max((p.unit for p in units if p.unit is not None), default=0) + 1
    for k in range(1, times):
        phases += [replace(p, unit=p.unit + k * more) for p in units if p.unit is not None]
    return replace(price, phases=tuple(phases))


def count(price: Price, sizes: Sizes, *, sure: bool = False) -> dict[str, float]:
    """Forwards, tokens and operations of a price."""
    work = price.work(sure=sure)
    return {
        "forwards": sum(one.times for one in work),
        "tokens": sum(one.n_new * one.times for one in work),
        "operations": operations(sizes, total(sizes, work)),
    }


def by_phase(
    price: Price, sizes: Sizes, machine: "Machine", *, sure: bool = False
) -> dict[str, float]:
    """Seconds by name of phase, all contexts together."""
    found: dict[str, float] = {}
    for phase in price.chosen(sure=sure):
        seconds = machine.seconds(total(sizes, phase.work)) + phase.seconds
        found[phase.name] = found.get(phase.name, 0.0) + seconds
    return found


def shares(price: Price, sizes: Sizes, machine: "Machine") -> dict[str, float]:
    """Share of each term in the time of all forwards."""
    seconds = machine.by_term(price.amounts(sizes))
    whole = sum(seconds.values()) or 1.0
    return {name: seconds[name] / whole for name in TERMS}


# -- a scan -----------------------------------------------------------------------------------


def price_scan(
    sizes: Sizes, plan: "ScanPlan", *, generated: Collection[str] | None = None
) -> Price:
    """A scan, all contexts and all kept attention; contexts after an early stop are not sure.

    Args:
        generated: names of the trials whose answers are generated; all when None.
    """
    from circuits.measure import NULL_QUESTION

    settings, null = plan.settings, plan.fmt.tail(NULL_QUESTION)
    kept: dict[int, list[Trial]] = {}
    for place, trial in plan.kept_trials:
        kept.setdefault(place, []).append(trial)
    stacks = list(dict.fromkeys(c.index for c in plan.contexts))
    phases: list[Phase] = []
    for i, (context, trials) in enumerate(zip(plan.contexts, plan.trials, strict=True)):
        order = stacks.index(context.index)
        sure = not settings.stop_early or order < settings.min_haystacks
        phases.append(Phase("contexts", tuple(prefill(len(context.tokens))), i, sure))
        phases.append(Phase("questions", tuple(_asked(sizes, trials, null)), i, sure))
        said = [t for t in trials if generated is None or t.name in generated]
        if settings.generate and said:
            phases.append(Phase("generated text", tuple(_said(sizes, said, null)), i, False))
        if i in kept:
            work = [one for trial in kept[i] for one in _kept(sizes, trial)]
            work += _map(kept[i][0]) if i == min(kept) else []
            phases.append(Phase("kept attention", tuple(work), i, sure))
    shortest = min((t for group in plan.trials for t in group), key=lambda t: t.length)
    phases.append(Phase("random tokens, figure", tuple(_rest(sizes, shortest))))
    # the first trial that is mapped is read on behind its context, in a cache of its own
    grown = kept[min(kept)][0].length if kept else 0
    return Price(
        "scan", tuple(phases), max(len(c.tokens) for c in plan.contexts) + grown,
        counts=_counts(plan), notes=_told(plan),
    )  # fmt: skip


def _counts(plan: "ScanPlan") -> dict[str, Any]:
    return {
        "contexts": len(plan.contexts),
        "lengths": list(plan.lengths),
        "needles per context": len(plan.contexts[0].planted),
        "trials": plan.n_trials,
        "tokens if every cell ran alone": sum(
            t.length + len(t.suffix) + len(t.answer) for g in plan.trials for t in g
        ),
    }


def _told(plan: "ScanPlan") -> tuple[str, ...]:
    notes = []
    if plan.settings.stop_early:
        notes.append(
            f"least: it stops after {plan.settings.min_haystacks} haystacks; most: it never does"
        )
    if plan.settings.generate:
        notes.append(
            f"least: every answer is forced right; most: all are generated, {N_NEW} tokens each, "
            "and read again"
        )
    return (*notes, *plan.warnings)


def _asked(
    sizes: Sizes, trials: Sequence["Trial"], null: Any, *, behind: int = 0
) -> Iterable[Forward]:
    """The answers forced, an empty question at every length beside them."""
    for start in range(0, len(trials), BATCH):
        batch = trials[start : start + BATCH]
        suffixes = [
            Suffix(
                len(t.suffix) + len(t.answer) - 1 + behind, t.length, logits=len(t.answer),
                rows=len(t.answer) + len(t.question),
            )
            for t in batch
        ]  # fmt: skip
        suffixes += [
            Suffix(len(null.tokens), n, logits=0, rows=len(null.question))
            for n in sorted({t.length for t in batch})
        ]
        yield from extend(sizes, suffixes)


def _said(sizes: Sizes, trials: Sequence["Trial"], null: Any) -> Iterable[Forward]:
    """All of them generated, then read again behind what was said before the answer."""
    for start in range(0, len(trials), BATCH):
        batch = trials[start : start + BATCH]
        yield from generate(sizes, [Suffix(len(t.suffix), t.length) for t in batch], N_NEW)
    yield from _asked(sizes, trials, null, behind=N_NEW // 2)


def _kept(sizes: Sizes, trial: "Trial") -> Iterable[Forward]:
    """Whole rows of all heads, a group of heads at a time; then what their keys write."""
    from circuits.attention.capture import MEMORY, QUESTION_ROWS

    n, heads = len(trial.suffix) + len(trial.answer) - 1, sizes.n_layers * sizes.n_heads
    rows = min(QUESTION_ROWS, len(trial.question)) + len(trial.answer)
    together = max(1, MEMORY // (4 * rows * (trial.length + n)))
    for start in range(0, heads, together):
        group = min(together, heads - start)
        yield Forward(n, trial.length, logits=1, rows=rows, whole=rows * group)
    yield Forward(n, trial.length, logits=1, rows=len(trial.answer))


def _map(trial: "Trial") -> list[Forward]:
    """Every query of one trial run again behind its beginning, rows of some heads kept whole.

    What the trial asks behind its context is read first.
    """
    from circuits.attention.keeping import N_MAPS
    from circuits.attention.window import QUERIES

    n_tokens = trial.length + len(trial.suffix) + len(trial.answer) - 1
    starts = range(0, n_tokens, QUERIES)
    return grow(trial.length, n_tokens - 1 - trial.length) + [
        Forward(n, s, logits=1, rows=n, whole=n * N_MAPS, plain=s == 0)
        for s, n in zip(starts, (min(QUERIES, n_tokens - s) for s in starts), strict=True)
    ]


def _rest(sizes: Sizes, trial: "Trial") -> Iterable[Forward]:
    """Scores on random tokens, and the rows of one trial for the figure."""
    yield from role_work(sizes)
    yield from prefill(trial.length)
    n = len(trial.suffix) + len(trial.answer) - 1
    yield Forward(n, trial.length, logits=1, rows=len(trial.answer))


def role_work(sizes: Sizes) -> list[Forward]:
    """Random tokens read, and read again: see `circuits.roles`."""
    from circuits.roles import N_RANDOM, N_SEQUENCES

    # no token comes twice, so a small vocabulary bounds a sequence too
    n = min(N_RANDOM, sizes.d_vocab - 1)
    n = n if sizes.limit is None else min(n, (sizes.limit - 1) // 2)
    once = [*prefill(n + 1), Forward(n, n + 1, logits=1, rows=n)]
    return once * N_SEQUENCES
