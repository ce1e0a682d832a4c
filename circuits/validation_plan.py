"""What a validation will run: which heads, which prompts, which sets, decided before it runs."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from circuits import controls
from circuits.ablations import ABLATIONS, ablation, scope
from circuits.candidates import Ask, Candidates, find_candidates
from circuits.case_metrics import FORCED, METRICS
from circuits.plan import ScanPlan, ScanSettings, make_plan
from circuits.roles import role_scores
from interp.errors import PromptError, ResultError, UnknownNameError
from interp.sites import Head
from probes.cases import Scene, scenes

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

TOP = 10
"""Candidates of a ranking where no number is given."""
FEW = 12
"""Needles below which bootstrap intervals are known to be too narrow (coverage below .9)."""
N_REFERENCE = 48
"""Questions that make up the reference of a mean ablation: with few, a copying head's mean is a
mixture of a few wrong answers, and ablating by it is resampling (seen on the planted backup)."""
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # uniform attention from the last prompt token on, judged by ROUGE of what is generated
    "wu2024": {
        "ablations": ("uniform",),
        "scope": "decode",
        "metric": "rouge",
        "generate": True,
        "smallest": 0.1,
    },
}


@dataclass(frozen=True)
class ValidateSettings:
    """Everything that decides a validation's numbers; saved with it.

    Attributes:
        top: size k of the candidate set: the k best heads of the ranking; 0: ten of a ranking by
            score, all of a mere list.
        ablations: names of ablations; the first one is also used for curves, single heads and
            specificity.
        scope: where they act (`circuits.ablations.SCOPES`).
        metric: the metric of the verdicts; the others are reported beside it.
        length: tokens of context; 0 takes the shortest that was scanned, or 512.
        depths: where needles begin.
        n_needles: test questions at most, a needle each.
        n_draws: matched random sets (so many that p can pass Holm's correction over all
            ablations and directions); `n_curve` at the other sizes of the curve and in
            specificity; `n_generated` where text is generated.
        curve: sizes of the dose-response curve.
        alone: also ablate every head of the model alone, at the answer rows.
        generate: also generate text and look for the answer in it.
        specificity: also measure plain text, known facts and short copying.
        smallest: the smallest effect of interest, in the metric's unit, chosen beforehand.
        alpha: level of the corrected p.
        prompts: overrides of the scan's own prompt settings (`circuits.candidates.INHERITED`).
    """

    top: int = 0
    ablations: tuple[str, ...] = ("mean", "zero", "resample", "uniform", "knockout")
    scope: str = "suffix"
    metric: str = "logprob"
    length: int = 0
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    n_needles: int = 15
    n_draws: int = 120
    n_curve: int = 20
    n_generated: int = 20
    curve: tuple[int, ...] = (1, 2, 5, 20, 50)
    alone: bool = True
    generate: bool = False
    specificity: bool = True
    smallest: float = 0.1
    alpha: float = 0.05
    prompts: tuple[tuple[str, Any], ...] = ()
    preset: str = "default"
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for result files."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return plain | {"prompts": dict(self.prompts)}


@dataclass(frozen=True)
class NamedSet:
    """A set of heads in the role that it plays: top, bottom, sink or random."""

    role: str
    k: int
    draw: int
    heads: tuple[Head, ...]


@dataclass(frozen=True, eq=False)
class ValidationPlan:
    """Prompts and sets of a validation."""

    settings: ValidateSettings
    prompts: ScanSettings
    candidates: Candidates
    main: tuple[NamedSet, ...]
    curve: tuple[NamedSet, ...]
    scenes: tuple[Scene, ...]
    reference: tuple[Scene, ...]
    notes: tuple[str, ...]

    @property
    def n_cases(self) -> int:
        """Questions."""
        return sum(len(s.cases) for s in self.scenes)


def with_preset(settings: ValidateSettings, preset: str) -> ValidateSettings:
    """Settings under a preset; it fills in what still has its default value."""
    if preset not in PRESETS:
        raise UnknownNameError("preset", preset, PRESETS)
    default = ValidateSettings()
    filled = {
        k: v for k, v in PRESETS[preset].items() if getattr(settings, k) == getattr(default, k)
    }
    return replace(settings, preset=preset, **filled)


def check_settings(settings: ValidateSettings) -> None:
    """Raise before anything runs for what cannot be measured as asked."""
    for name in settings.ablations:
        ablation(name)
    if not settings.ablations:
        raise PromptError(f"no ablation was named; known: {', '.join(ABLATIONS)}")
    scope(settings.scope)
    if settings.scope == "everywhere" and "knockout" in settings.ablations:
        raise PromptError(
            "knockout blocks the edges from question and answer to the needle; it is not defined "
            "everywhere: use scope suffix, or leave knockout out of --ablations"
        )
    if settings.metric not in METRICS:
        raise UnknownNameError("metric", settings.metric, METRICS)
    if settings.metric not in FORCED and not settings.generate:
        raise PromptError(f"metric {settings.metric} needs generated text; add --generate")
    if settings.generate and settings.scope == "everywhere":
        raise PromptError("generated text is not measured with scope everywhere; use suffix")
    _check_draws(settings)


def _check_draws(settings: ValidateSettings) -> None:
    """So many sets that the smallest p there is can pass Holm's correction."""
    forced = settings.metric in FORCED
    tests = len(settings.ablations) + forced  # outputs put back are not followed by generation
    drawn = settings.n_draws if forced else min(settings.n_generated, settings.n_draws)
    name = "random sets" if forced else "random sets with generated text"
    needed = math.ceil(round(tests / settings.alpha, 6)) - 1
    if drawn < needed:
        raise PromptError(
            f"{drawn} {name} cannot give p <= {settings.alpha:g} after Holm's correction "
            f"over {tests} tests; ask for {needed} or more, or for fewer ablations"
        )


def make_validation(model: "HFModel", heads: Any, settings: ValidateSettings) -> ValidationPlan:
    """Everything but the running.

    Raises:
        PromptError, UnknownNameError, ResultError, SiteError: in one line, before the model runs.
    """
    check_settings(settings)
    ask = Ask(settings.n_needles, settings.length, settings.depths, settings.prompts, settings.seed)
    chosen, prompts = find_candidates(model, heads, ask)
    settings = replace(settings, top=settings.top or _size(chosen))
    if settings.top > len(chosen.ranking):
        raise ResultError(
            f"--top {settings.top} asks for more heads than the {len(chosen.ranking)} given"
        )
    if chosen.sink is None:  # a mere list of heads does not say which ones rest on the sink
        chosen = replace(chosen, sink=role_scores(model, seed=settings.seed)["sink"].mean(0))
    main, curve, notes = _sets(model, chosen, settings)
    test = _plan(model, prompts, chosen.test, settings.n_needles, again=False)
    others = replace(prompts, seed=prompts.seed + 2)
    reference = _plan(model, others, chosen.selection, N_REFERENCE, again=True)
    built = _first(scenes(test.contexts, test.trials, fmt=test.fmt), settings.n_needles)
    return ValidationPlan(
        settings, prompts, chosen, main, curve, built,
        scenes(reference.contexts, reference.trials, fmt=reference.fmt),
        (*chosen.notes, *notes, *test.warnings),
    )  # fmt: skip


def _first(built: Sequence[Scene], n: int) -> tuple[Scene, ...]:
    """Scenes with no more questions than that in all."""
    out: list[Scene] = []
    for scene in built:
        room = n - sum(len(s.cases) for s in out)
        if room > 0:
            out.append(replace(scene, cases=scene.cases[:room]))
    return tuple(out)


def _size(chosen: Candidates) -> int:
    """How many heads a user means who does not say."""
    return min(TOP, len(chosen.ranking)) if chosen.scores is not None else len(chosen.ranking)


def _plan(
    model: "HFModel", prompts: ScanSettings, ids: Sequence[str], n_questions: int, *, again: bool
) -> ScanPlan:
    """As many contexts as hold so many questions, or as the text has room for.

    Needles come once, or `again` with other values, in another text.
    """
    one = make_plan(model, prompts, only=set(ids))
    planted, asked = len(one.contexts[0].planted), len({t.planted for t in one.trials[0]})
    # needles that are cut off with the end of a context are planted there but not asked for
    wanted = math.ceil(n_questions / asked)
    wanted = wanted if again else min(wanted, max(1, len(ids) // planted))
    while wanted > 1:
        try:
            return make_plan(model, replace(prompts, n_haystacks=wanted), only=set(ids))
        except PromptError:  # less text than that
            wanted //= 2
    return one


def _sets(
    model: "HFModel", chosen: Candidates, settings: ValidateSettings
) -> tuple[tuple[NamedSet, ...], tuple[NamedSet, ...], list[str]]:
    """The candidate set with its controls, the same at the sizes of the curve, and notes."""
    pool, k = model.spec.heads(), settings.top
    # heads that the ranking does not mention are ranked last, in the order of the model
    ranking = (*chosen.ranking, *(h for h in pool if h not in set(chosen.ranking)))
    main = _family(model, chosen, ranking, k, settings.n_draws, settings.seed)
    notes: list[str] = []
    curve: list[NamedSet] = []
    drawn = sum(s.role == "random" for s in main)
    if drawn < settings.n_draws:
        notes.append(f"only {drawn} matched sets exist for the top {k}: p cannot go below "
                     f"{1 / (drawn + 1):.3f}")  # fmt: skip
    left_out = []
    for size in sorted(set(settings.curve) - {k}):
        if size > len(chosen.ranking):
            left_out.append(size)
            continue
        try:
            curve += _family(model, chosen, ranking, size, settings.n_curve, settings.seed)
        except ResultError:
            left_out.append(size)
    if left_out:
        notes.append(f"curve: no matched sets of {', '.join(map(str, left_out))} heads exist")
    return main, tuple(s for s in curve if s.role != "sink"), notes


def _family(
    model: "HFModel", chosen: Candidates, ranking: tuple[Head, ...], k: int, n: int, seed: int
) -> tuple[NamedSet, ...]:
    top = ranking[:k]
    drawn = controls.layer_matched(top, model.spec.heads(), n_draws=n, seed=seed)
    out = [NamedSet("top", k, 0, top)]
    rest = len(ranking) - k
    if rest >= k:
        out.append(NamedSet("bottom", k, 0, controls.bottom(ranking, k, exclude=top)))
    if chosen.sink is not None and rest >= k:
        out.append(NamedSet("sink", k, 0, controls.sink_heavy(chosen.sink, k, exclude=top)))
    return (*out, *(NamedSet("random", k, i, heads) for i, heads in enumerate(drawn)))
