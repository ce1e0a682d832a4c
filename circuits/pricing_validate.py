"""What a validation runs: every ablation and direction, on every question that the model answers.

Rows of one question share what lies below the lowest edited layer, so heads high up are cheap to
ablate. Prefixes are kept for the scene at hand alone: with more than one, each is read once for the
questions as they are and once for everything else. How many questions the unablated model answers
is not known beforehand; only those go on.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from circuits.cost import Forward, Sizes, Suffix, extend, generate, grow, prefill
from circuits.interventions import N_NEW, ROWS
from circuits.pricing import Phase, Price

if TYPE_CHECKING:
    from circuits.ablations import Ablation
    from circuits.validation_plan import NamedSet, ValidationPlan
    from probes.cases import Case, Scene

KNOWN_FACTS = 24
"""Facts asked, of which those that the model knows are run: all, here."""
FACT_TOKENS = 12
"""Tokens of a fact with its answer, about."""


def price_validate(
    sizes: Sizes, plan: "ValidationPlan", *, answered: Sequence[bool] | None = None
) -> Price:
    """A validation of the sets of a plan.

    Args:
        answered: for each question in order, whether it counts; all when None.
    """
    flags = [True] * plan.n_cases if answered is None else list(answered)
    jobs = _Jobs(sizes, plan, dict(zip(_keys(plan), flags, strict=True)))
    phases = [*jobs.before(), *jobs.ablations(), *jobs.alone(), *jobs.plain_text()]
    settings = plan.settings
    # a context, its twin, and one that was read on to the answer
    return Price(
        "validate", tuple(phases), 3 * max(len(s.context.tokens) for s in plan.scenes),
        counts={
            "contexts": len(plan.scenes), "questions": plan.n_cases,
            "tokens of context": len(plan.scenes[0].context.tokens),
            "heads": settings.top, "sets": len(plan.main), "sets of the curve": len(plan.curve),
            "ablations": list(settings.ablations), "scope": settings.scope,
        },
        notes=(
            "least: no question is answered, and it stops; most: all are; time in between is in "
            "proportion to the questions answered",
            *plan.notes,
        ),
    )  # fmt: skip


def _keys(plan: "ValidationPlan") -> list[tuple[int, int]]:
    return [(s.context.index, c.trial.planted) for s in plan.scenes for c in s.cases]


class _Jobs:
    """Phases of one plan."""

    def __init__(self, sizes: Sizes, plan: "ValidationPlan", kept: dict) -> None:
        self.sizes, self.plan, self.kept, self.settings = sizes, plan, kept, plan.settings

    def before(self) -> list[Phase]:
        """Mean outputs, and the questions as they are; then a check of every ablation."""
        from circuits.ablations import ABLATIONS

        means = any(ABLATIONS[n].needs == "means" for n in self.settings.ablations)
        work = [one for s in self.plan.reference for one in self._mean(s)] if means else []
        found = [Phase("mean outputs", tuple(work))]
        for i, scene in enumerate(self.plan.scenes):
            own = prefill(len(scene.context.tokens)) * 2
            for case in scene.cases:
                sides = 1 + case.twin
                own += [f for _ in range(sides) for f in self._run(case, [()], None)]
            found.append(Phase("questions as they are", tuple(own), i))
        check = [f for _ in self.settings.ablations for f in self._check()]
        return [*found, Phase("check of the edits", tuple(check), None, sure=False)]

    def ablations(self) -> list[Phase]:
        """Every ablation, and outputs put back."""
        from circuits.ablations import ABLATIONS

        names, found = self.settings.ablations, []
        for i, scene in enumerate(self.plan.scenes):
            for k, name in enumerate(names):
                sets = (*self.plan.main, *(self.plan.curve if k == 0 else ()))
                work = self._job(scene, sets, ABLATIONS[name])
                found.append(Phase(f"{name} ablation", tuple(work), i, sure=False))
            work = self._job(scene, self.plan.main, ABLATIONS["resample"], on_twin=True)
            found.append(Phase("outputs put back", tuple(work), i, sure=False))
            if len(self.plan.scenes) > 1:
                again = prefill(len(scene.context.tokens)) * 2
                found.append(Phase("contexts read again", tuple(again), i, sure=False))
        return found

    def alone(self) -> list[Phase]:
        """Every head of the model by itself; direct against total effects of the best."""
        heads = [(layer,) for layer in range(self.sizes.n_layers)]
        every = [h for h in heads for _ in range(self.sizes.n_heads)]
        top = self.settings.top
        found = []
        for i, scene in enumerate(self.plan.scenes):
            alone: list[Forward] = []
            direct: list[Forward] = []
            for case in self._counted(scene):
                alone += self._run(case, every, None, decode=True)
                best = [self._layers(s) for s in self.plan.main if s.role == "top"][0]
                rows = [(), *((layer,) for layer in best), *((layer,) for layer in best)]
                direct += self._run(case, rows[: 1 + 2 * top], None, decode=True)
                direct += self._run(case, [()], None, decode=True)
            if self.settings.alone:
                found.append(Phase("every head alone", tuple(alone), i, sure=False))
            found.append(Phase("direct effects", tuple(direct), i, sure=False))
        return found

    def plain_text(self) -> list[Phase]:
        """The first ablation on text, facts and copies."""
        from circuits.specificity import COPY_TOKENS, N_COPIES, N_TEXTS, TEXT_TOKENS

        if not self.settings.specificity:
            return []
        n = self.settings.n_curve
        sets = [self._layers(s) for s in self.plan.main if s.role != "random" or s.draw < n]
        work: list[Forward] = []
        kinds = ((N_TEXTS, TEXT_TOKENS - 1, TEXT_TOKENS // 2 + 1),
                 (N_COPIES, 2 * COPY_TOKENS - 1, COPY_TOKENS - 1),
                 (KNOWN_FACTS, FACT_TOKENS, 2))  # fmt: skip
        for times, n_tokens, scored in kinds:
            once = [Forward(1, plain=True), *self._rows([(), *sets], n_tokens, 1, scored)]
            work += once * times
        return [Phase("plain text, facts, copies", tuple(work), None, sure=False)]

    # -- parts ------------------------------------------------------------------------------

    def _job(
        self, scene: "Scene", sets: Sequence["NamedSet"], how: "Ablation", *, on_twin: bool = False
    ) -> Iterable[Forward]:
        if self.settings.scope == "everywhere" and not on_twin:
            yield from self._everywhere(scene, len(sets), how)
            return
        twins = how.needs == "twin"
        for case in self._counted(scene):
            if twins and not case.twin:
                continue
            if twins:
                yield from self._run(case, [()], None)
            yield from self._run(case, [self._layers(s) for s in sets], how)
            if self.settings.generate and not on_twin:
                yield from self._said(case, sets)

    def _everywhere(self, scene: "Scene", n_sets: int, how: "Ablation") -> Iterable[Forward]:
        once = prefill(len(scene.context.tokens))
        yield from once * (n_sets + (how.needs == "twin"))
        for case in scene.cases:
            yield from self._run(case, [()], None) * n_sets

    def _said(self, case: "Case", sets: Sequence["NamedSet"]) -> list[Forward]:
        drawn = [
            s for s in sets
            if s.k == self.settings.top
            and (s.role != "random" or s.draw < self.settings.n_generated)
        ]  # fmt: skip
        question = Suffix(case.rows.start + 1, case.trial.length)
        return generate(self.sizes, [question] * len(drawn), N_NEW)

    def _counted(self, scene: "Scene") -> list["Case"]:
        return [c for c in scene.cases if self.kept[scene.context.index, c.trial.planted]]

    def _layers(self, named: "NamedSet") -> tuple[int, ...]:
        return tuple(h.layer for h in named.heads)

    def _mean(self, scene: "Scene") -> Iterable[Forward]:
        yield from prefill(len(scene.context.tokens))
        for case in scene.cases:
            yield Forward(len(case.suffix), case.trial.length)

    def _check(self) -> Iterable[Forward]:
        top = next(s for s in self.plan.main if s.role == "top")
        case = next((c for s in self.plan.scenes for c in self._counted(s)), None)
        if case is None:
            return
        for layer in sorted(set(self._layers(top))):
            # two rows; reads of every fourth layer below show that nothing changes there
            run = self.sizes.n_layers - min(3, layer)
            yield Forward(2 * len(case.suffix), case.trial.length, logits=2, layers=run)

    def _run(
        self, case: "Case", sets: Sequence[tuple[int, ...]], how: "Ablation | None",
        *, decode: bool = False,
    ) -> list[Forward]:  # fmt: skip
        """A question once for each set of layers of heads; `decode` edits its answer rows alone."""
        start = case.rows.start if decode or self.settings.scope == "decode" else 0
        n_before = case.trial.length + start
        work = grow(case.trial.length, start)
        return work + self._rows(sets, len(case.suffix) - start, n_before, len(case.rows), how=how)

    def _rows(
        self, sets: Sequence[tuple[int, ...]], n_tokens: int, n_before: int, logits: int,
        *, how: "Ablation | None" = None,
    ) -> list[Forward]:  # fmt: skip
        inside = how is not None and how.acts_on in ("pattern", "query")
        found: list[Forward] = []
        last = self.sizes.n_layers - 1
        for start in range(0, len(sets), ROWS):
            rows = [
                Suffix(
                    n_tokens, n_before, logits=logits, first=min(s, default=last),
                    head_rows=len(s) * n_tokens * inside, edits=len(s),
                )
                for s in sets[start : start + ROWS]
            ]  # fmt: skip
            found += extend(self.sizes, rows, shared=len(rows) > 1)
        return found
