"""Do these heads do the retrieval? Ablate them, put them back, and compare with matched sets.

For every ablation the candidate set, controls and matched random sets are rows of batched suffixes
behind one prefill (DESIGN: prefill once). Both directions are run: taking the heads' outputs away
says whether they are necessary, putting them back into a twin prompt whether they are sufficient.
What the heads are chosen on and what they are tested on are disjoint (`circuits.candidates`).
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits import interventions as run
from circuits.ablations import ABLATIONS, Ablation, edits_of, scope
from circuits.case_metrics import FORCED
from circuits.direct import can_freeze, direct_effects
from circuits.shelf import Job, Part, Parts, Shelf, model_label, open_shelf
from circuits.specificity import probes, run_probes
from circuits.station import Station
from circuits.tally import Progress, Tally
from circuits.validation_plan import (
    FEW,
    NamedSet,
    ValidateSettings,
    ValidationPlan,
    make_validation,
)
from circuits.validation_result import DENOISE, ValidationResult
from interp.checks import check_edits
from interp.errors import PromptError, ResultError, SiteError
from interp.sites import Head
from interp.store import provenance
from probes.cases import Case, Scene
from probes.haystack import load_text

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

log = logging.getLogger(__name__)

Pair = tuple[Scene, Case]
Work = Callable[[Scene, Case], Part]
ALONE = "alone"


def validate(
    model: "HFModel",
    heads: Any,
    settings: ValidateSettings | None = None,
    *,
    parts: Parts = None,
    progress: Progress | None = None,
    **options: Any,
) -> ValidationResult:
    """Test a set of heads causally.

    Args:
        heads: a `ScanResult`, a run folder of a scan, a head list in any form that
            `circuits.head_sets.read_heads` knows.
        settings: `ValidateSettings`, or give its fields as keywords.
        parts: a folder for finished parts; a run that finds its own there goes on after them.
        progress: called with parts done, parts in all, and what is running.

    Raises:
        PromptError, UnknownNameError, ResultError, SiteError: bad input, before the model runs;
            or too few answered questions to measure anything.
    """
    started = time.monotonic()
    settings = settings or ValidateSettings(**options)
    plan = make_validation(model, heads, settings)
    label = {
        "settings": plan.settings.as_dict(),
        "prompts": plan.prompts.as_dict(),
        "heads": [str(h) for h in plan.candidates.ranking],
    }
    bench = _Bench(model, plan, open_shelf(parts, label | model_label(model)), progress)
    return bench.result(started)


class _Bench:
    """One validation in the middle of its run: prefixes and means are made when first needed."""

    def __init__(
        self, model: "HFModel", plan: ValidationPlan, shelf: Shelf, progress: Progress | None
    ) -> None:
        self.model, self.plan, self.shelf = model, plan, shelf
        self.settings = plan.settings
        jobs = 3 + len(self.settings.ablations) + self.settings.alone
        self.tally = Tally(progress, plan.n_cases * jobs + self.settings.specificity)
        self.station = Station(
            model, plan.reference, scope=scope(self.settings.scope),
            context=self.settings.scope == "everywhere" or self.settings.specificity,
            generate=self.settings.generate,
        )  # fmt: skip
        self.metrics = self.station.metrics

    # -- parts ------------------------------------------------------------------------------

    def result(self, started: float) -> ValidationResult:
        """Run all parts and join them."""
        cases = [(scene, case) for scene in self.plan.scenes for case in scene.cases]
        asked = [self._job("base", s, c, self._baseline) for s, c in cases]
        base = list(self.shelf.parts(asked, self.tally.tick).values())
        kept = [pair for pair, part in zip(cases, base, strict=True) if part.rows[0]["kept"]]
        if len({case.trial.needle for _, case in kept}) < 2:
            raise ResultError(
                f"{len(kept)} of {len(cases)} test questions are answered by the unablated model, "
                "an interval needs 2 or more: shorten --length, raise --cue-words, or use a model "
                "that answers such questions"
            )
        self._check(kept[0][1], kept[0][0])
        jobs = {n: self._ablated(n, kept) for n in (*self.settings.ablations, DENOISE)}
        jobs |= {
            ALONE: self._alone(kept), "direct": self._direct(kept),
            "specificity": self._specificity(),
        }  # fmt: skip
        self.tally.total = self.tally.done + sum(map(len, jobs.values()))
        # scene by scene: its prefixes are read once for all that is asked behind them
        in_order = sorted((j for many in jobs.values() for j in many), key=lambda j: j.group)
        made = self.shelf.parts(in_order, self.tally.tick)
        self.shelf.finish()
        found = {name: [made[job.name] for job in many] for name, many in jobs.items()}
        return self._joined(started, cases, base, found)

    def _baseline(self, scene: Scene, case: Case) -> Part:
        none: list[list[Head]] = [[]]
        how = ABLATIONS["zero"]
        forward = self.station.run(scene, case, none, how=how)[0]
        twin = np.full_like(forward, np.nan)
        if case.twin:
            twin = self.station.run(scene, case, none, how=how, on_twin=True)[0]
        exact = bool(forward[self.metrics.index("exact")])
        row = {
            "needle": case.trial.needle, "kind": case.trial.kind, "value": case.trial.value,
            "context": case.trial.context, "length": case.trial.length,
            "depth": round(case.trial.true_depth, 4), "n_answer": len(case.answer),
            "twin": case.twin, "kept": exact,
            **{m: _plain(v) for m, v in zip(self.metrics, forward, strict=True)},
        }  # fmt: skip
        return Part({"start": forward, "twin": twin}, [row])

    def _check(self, case: Case, scene: Scene) -> None:
        """Once for each ablation: it changes what it names, and nothing else."""
        top = [s for s in self.plan.main if s.role == "top"]
        for name in self.settings.ablations:
            how = ABLATIONS[name]
            if how.needs == "twin" and not case.twin:
                continue
            prefix, rebased, m = self.station.ready(scene, case, how)
            edits = edits_of([top[0].heads], how, m)
            found = check_edits(
                self.model, prefix, rebased.suffix, edits, may_be_idle=how.may_be_idle
            )
            if not found.passed:
                raise SiteError(f"{name} ablation is not exact on this model: {found.detail}")
            log.info("%s ablation: %s", name, found.detail)

    # -- jobs -------------------------------------------------------------------------------

    def _job(self, what: str, scene: Scene, case: Case, work: Work) -> Job:
        place = f"c{scene.context.index:03d}"

        def make() -> Part:
            self.tally.tell(f"{what}: {case.trial.needle}")
            return work(scene, case)

        return Job(f"{what}-{place}-{case.trial.planted:02d}", make, place)

    def _ablated(self, name: str, kept: Sequence[Pair]) -> list[Job]:
        """One ablation, or outputs put back into the twin, on every question that counts."""
        sets = self.sets_of(name)
        if name == DENOISE:
            how, on_twin = ABLATIONS["resample"], True
        else:
            how, on_twin = ABLATIONS[name], False
            if self.settings.scope == "everywhere":
                return [self._everywhere(how, sets, scene) for scene in self.plan.scenes]
        work = partial(self._all_sets, sets=sets, how=how, on_twin=on_twin)
        return [self._job(name, scene, case, work) for scene, case in kept]

    def _all_sets(
        self, scene: Scene, case: Case, *, sets: tuple[NamedSet, ...], how: Ablation, on_twin: bool
    ) -> Part:
        if (on_twin or how.needs == "twin") and not case.twin:
            return Part({"values": np.full((len(sets), len(self.metrics)), np.nan)})
        out = self.station.run(scene, case, [s.heads for s in sets], how=how, on_twin=on_twin)
        if self.settings.generate and not on_twin:
            drawn = [
                i for i, s in enumerate(sets)
                if s.k == self.settings.top
                and (s.role != "random" or s.draw < self.settings.n_generated)
            ]  # fmt: skip
            chosen = [sets[i].heads for i in drawn]
            out[drawn, len(FORCED) :] = self.station.generated(scene, case, chosen, how)
        return Part({"values": out})

    def _everywhere(self, how: Ablation, sets: tuple[NamedSet, ...], scene: Scene) -> Job:
        """All questions of a scene, ablated in the context too: values by number of the case."""

        def make() -> Part:
            found = run.run_everywhere(
                self.model, scene, [s.heads for s in sets], how=how, means=self.station.means(how),
                tick=lambda: self.tally.tell(f"{how.name} everywhere"),
            )  # fmt: skip
            return Part({f"{i:03d}": v for i, v in enumerate(found)})

        place = f"c{scene.context.index:03d}"
        return Job(f"{how.name}-{place}", make, place)

    def _alone(self, kept: Sequence[Pair]) -> list[Job]:
        """Every head ablated at the answer rows, one at a time."""
        if not self.settings.alone:
            return []
        how, heads = self._first_for_all(), [[h] for h in self.model.spec.heads()]

        def work(scene: Scene, case: Case) -> Part:
            return Part({"values": self.station.run(scene, case, heads, how=how, scope="decode")})

        return [self._job(ALONE, scene, case, work) for scene, case in kept]

    def _direct(self, kept: Sequence[Pair]) -> list[Job]:
        if not can_freeze(self.model):
            return []
        how, heads = self._first_for_all(), self.plan.candidates.ranking[: self.settings.top]

        def work(scene: Scene, case: Case) -> Part:
            prefix, rebased, m = self.station.ready(scene, case, how, scope="decode")
            found = direct_effects(self.model, prefix, rebased, heads, how=how, m=m)
            return Part({}, [{k: _plain(v) for k, v in row.items()} for row in found])

        return [self._job("direct", scene, case, work) for scene, case in kept]

    def _specificity(self) -> list[Job]:
        def make() -> Part:
            self.tally.tell("plain text, facts, copies")
            return Part({}, self._run_specificity())

        return [Job("specificity", make, "specificity")] if self.settings.specificity else []

    def _run_specificity(self) -> list[dict[str, Any]]:
        how, n = self._first_for_all(), self.settings.n_curve
        sets = [s for s in self.plan.main if s.role != "random" or s.draw < n]
        docs = load_text(self.plan.prompts.haystack or None)
        try:
            wanted = probes(self.model, docs, seed=self.settings.seed)
        except PromptError:
            return []
        heads: list = [(), *(s.heads for s in sets)]
        kept, found = run_probes(self.model, wanted, heads, how=how, means=self.station.means(how))
        return [
            {"kind": p.kind, "probe": p.name, "role": s.role, "draw": s.draw,
             "ablation": how.name, "baseline": _plain(found[0, j]),
             "change": _plain(found[1 + i, j] - found[0, j])}
            for j, p in enumerate(kept) for i, s in enumerate(sets)
        ]  # fmt: skip

    def _first_for_all(self) -> Ablation:
        """The first ablation that every prompt can give, for single heads and plain text."""
        names = [n for n in self.settings.ablations if ABLATIONS[n].needs in ("", "means")]
        return ABLATIONS[names[0] if names else "zero"]

    # -- bookkeeping ------------------------------------------------------------------------

    def sets_of(self, name: str) -> tuple[NamedSet, ...]:
        """The sets run under an ablation; the first one has the curve's too."""
        first = name == self.settings.ablations[0]
        return (*self.plan.main, *(self.plan.curve if first else ()))

    # -- the result -------------------------------------------------------------------------

    def _values(
        self, name: str, found: list[Part], cases: Sequence[Pair], base: list[Part]
    ) -> np.ndarray:
        """`[set, case, metric]`; NaN for questions that do not count, or lack what is put in."""
        kept = [i for i, part in enumerate(base) if part.rows[0]["kept"]]
        if name != DENOISE and self.settings.scope == "everywhere":
            lacks = [ABLATIONS[name].needs == "twin" and not case.twin for _, case in cases]
            columns = [part.values[key] for part in found for key in sorted(part.values)]
            return np.stack([c * np.nan if n else c for c, n in zip(columns, lacks, strict=True)],
                            axis=1)  # fmt: skip
        n_sets = len(found[0].values["values"])
        out = np.full((n_sets, len(cases), len(self.metrics)), np.nan)
        for i, part in zip(kept, found, strict=True):
            out[:, i] = part.values["values"]
        return out

    def _by_head(self, found: list[Part], cases: Sequence[Pair], base: list[Part]) -> np.ndarray:
        """`[layer, head, case, metric]` of every head alone."""
        if not found:
            return np.empty((0,))
        spec, values = self.model.spec, self._values(ALONE, found, cases, base)
        out = np.full((spec.n_layers, spec.n_heads, *values.shape[1:]), np.nan)
        for head, value in zip(spec.heads(), values, strict=True):
            out[head.layer, head.head] = value
        return out

    def _joined(
        self, started: float, cases: Sequence[Pair], base: list[Part], found: dict[str, list[Part]]
    ) -> ValidationResult:
        import pandas as pd

        names = [*self.settings.ablations, DENOISE]
        sets = [
            {"ablation": name, "role": s.role, "k": s.k, "draw": s.draw,
             "heads": ",".join(map(str, s.heads))}
            for name in names for s in self.sets_of(name)
        ]  # fmt: skip
        rows = {n: [r for p in found[n] for r in p.rows] for n in ("direct", "specificity")}
        chosen = self.plan.candidates
        kept = {
            "heads": [str(h) for h in chosen.ranking[: self.settings.top]],
            "source": chosen.source,
            "prompts": self.plan.prompts.as_dict(),
            "selection_needles": list(chosen.selection),
            "alone_ablation": self._first_for_all().name,
        }
        return ValidationResult(
            settings=self.settings.as_dict() | kept,
            provenance=provenance(self.model, seconds=time.monotonic() - started),
            cases=pd.DataFrame([part.rows[0] for part in base]),
            sets=pd.DataFrame(sets),
            metrics=self.metrics,
            values=np.concatenate([self._values(n, found[n], cases, base) for n in names]),
            start=np.stack([part.values["start"] for part in base]),
            twin=np.stack([part.values["twin"] for part in base]),
            alone=self._by_head(found[ALONE], cases, base),
            scores=np.empty(0) if chosen.scores is None else chosen.scores,
            direct=pd.DataFrame(rows["direct"]),
            specificity=pd.DataFrame(rows["specificity"]),
            notes=(*self.plan.notes, *self._warnings(base)),
        )

    def _warnings(self, base: list[Part]) -> list[str]:
        kept = [part.rows[0] for part in base if part.rows[0]["kept"]]
        notes = [
            f"{len(kept)} of {len(base)} test questions are answered by the unablated model; "
            "only these count"
        ]
        if len({row["needle"] for row in kept}) < FEW:
            notes.append(f"fewer than {FEW} needles: 95 % intervals are too narrow")
        without = sum(not row["twin"] for row in kept)
        if without:
            notes.append(
                f"{without} questions have no counterfactual value of equal length; they are left "
                "out of resample and denoising"
            )
        if not can_freeze(self.model):
            notes.append("direct effects: not applicable, a layer's feed-forward part is unknown")
        return notes


def _plain(value: Any) -> float | None:
    """JSON has no NaN."""
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(value)
    return value
