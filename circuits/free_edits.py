"""An intervention of your own, as nnsight code, inside our trials and scored by our controls.

    model = interp.load(TransformersModel("org/name", dispatch=True), backend="nnsight")

    def halve(m, heads, question):
        for head in heads:
            out = m.model.layers[head.layer].self_attn.o_proj
            z = out.input.clone()
            z[..., head.head * 64 : (head.head + 1) * 64] *= 0.5
            out.input = z

    circuits.score_intervention(model, scan_result, halve).finding

The function's body is what you would write inside `with m.trace(prompt):`. It is run on every test
question with the heads under test, and again with each matched random set of heads in their place
(`circuits.controls`); effect and verdict follow the same rule as those of `circuits.validate`
(`circuits.effects`). Modules must be met in forward order: that is nnsight's rule.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.case_metrics import FORCED, METRICS
from circuits.effects import Direction, judge, measure_effect
from circuits.free_result import FreeEdits
from circuits.interventions import forced_metrics
from circuits.shelf import Part, Shelf, model_label
from circuits.validation_plan import ValidateSettings, ValidationPlan, make_validation
from interp.errors import MnemoscopeError, ModelError, PromptError, ResultError, SiteError
from interp.sites import Head
from interp.store import provenance
from probes.cases import Case, Scene

if TYPE_CHECKING:
    import torch

    from interp.backends.hf import HFModel

N_DRAWS = 39
Intervene = Callable[[Any, tuple[Head, ...], "Question"], Any]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Question:
    """One test question, as an intervention sees it; positions are those of `tokens`.

    Attributes:
        tokens: context, question and forced answer, the answer's last token left out.
        suffix: where the question begins.
        rows: positions that produce the answer's tokens.
        needle, value: where the needle stands, and the value that it states.
        answer, other: the answer's tokens, and those of another value (None where there is none).
    """

    tokens: tuple[int, ...]
    suffix: int
    rows: tuple[int, ...]
    needle: tuple[int, ...]
    value: tuple[int, ...]
    answer: tuple[int, ...]
    other: tuple[int, ...] | None


def score_intervention(
    model: "HFModel",
    heads: Any,
    intervene: Intervene,
    *,
    direction: Direction = "ablate",
    parts: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> FreeEdits:
    """Run an nnsight intervention on heads, and on matched random heads, and judge its effect.

    Args:
        model: loaded with `backend="nnsight"`.
        heads: a scan, or heads in any form that `circuits.validate` takes.
        intervene: called as `intervene(m, heads, question)` inside a trace.
        direction: what it does: takes away (`ablate`, `noising`) or puts back (`denoising`).
        parts: a folder for finished questions; a run that finds its own there goes on after them.
        options: fields of `ValidateSettings`: `top`, `n_needles`, `n_draws` (39), `length`,
            `metric` (one that needs no generated text), `smallest`, `alpha`, `prompts`, `seed`.

    Raises:
        ModelError: a model that nnsight does not run.
        SiteError: the intervention failed, or changed nothing on any question.
        PromptError, ResultError, UnknownNameError: as `circuits.validate`.
    """
    started = time.perf_counter()
    run = _Run(model, _plan(model, heads, options), intervene, progress)
    label = {
        "intervention": run.source, "heads": [str(h) for h in run.heads], "direction": direction,
        "settings": run.plan.settings.as_dict(),
    }  # fmt: skip
    shelf = Shelf(parts, label | model_label(model))
    own = [shelf.kept(run.name_of(*p), partial(run.own, *p)) for p in run.pairs]
    rows, values = run.kept(own, [
        shelf.kept(f"random-{run.name_of(*p)}", partial(run.random, *p)) for p in run.asked(own)
    ])  # fmt: skip
    settings, m = run.plan.settings, FORCED.index(run.plan.settings.metric)
    effect = measure_effect(
        values[:, 0, m], values[:, 1, m], values[:, 2:, m].T,
        clusters=[row["needle"] for row in rows], name=f"top {len(run.heads)}",
        ablation=run.name, scope="as written", direction=direction,
        metric=METRICS[settings.metric][0], unit=METRICS[settings.metric][1], seed=settings.seed,
    )  # fmt: skip
    trials = [
        row | {"before": float(v[0, m]), "after": float(v[1, m]), "random": float(v[2:, m].mean())}
        for row, v in zip(rows, values, strict=True)
    ]
    return FreeEdits(
        label, provenance(model, seconds=time.perf_counter() - started),
        judge(effect, alpha=settings.alpha, smallest=settings.smallest),
        trials, values[:, 2:, m].T.tolist(), (*run.plan.notes, *run.notes(own)),
    )  # fmt: skip


def _plan(model: "HFModel", heads: Any, options: dict[str, Any]) -> ValidationPlan:
    if model.name != "nnsight":
        raise ModelError(
            f"the {model.name} backend runs no free interventions; load the same object with "
            "backend='nnsight'"
        )
    fixed = {"ablations": ("zero",), "curve": (), "alone": False, "specificity": False}
    settings = ValidateSettings(**{"n_draws": N_DRAWS, **options, **fixed})
    if settings.metric not in FORCED:
        raise PromptError(
            f"metric {settings.metric} needs generated text, which free interventions do not "
            f"make; use {', '.join(FORCED)}"
        )
    return make_validation(model, heads, settings)


class _Run:
    """The traces of one scoring: no intervention, the heads under test, each random set."""

    def __init__(
        self, model: "HFModel", plan: ValidationPlan, intervene: Intervene,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.model, self.plan, self.intervene = model, plan, intervene
        self.report = progress or (lambda *_: None)
        self.name = getattr(intervene, "__name__", type(intervene).__name__)
        try:
            self.source = inspect.getsource(intervene)
        except (OSError, TypeError):
            self.source = self.name
        self.heads = next(s.heads for s in plan.main if s.role == "top")
        self.draws = [s.heads for s in plan.main if s.role == "random"]
        self.pairs = [(scene, case) for scene in plan.scenes for case in scene.cases]
        self.done = 0

    def name_of(self, scene: Scene, case: Case) -> str:
        """Of a question's part."""
        return f"c{scene.context.index:03d}-{case.trial.planted:02d}"

    def own(self, scene: Scene, case: Case) -> Part:
        """Metrics `[2, metric]` of one question: as it is, and with the heads under test."""
        question = question_of(scene, case)
        plain, after = (self._logits(question, heads) for heads in (None, self.heads))
        found = np.stack([forced_metrics(logits, case) for logits in (plain, after)])
        self._tick(case)
        row = {
            "needle": case.trial.needle, "value": case.trial.value,
            "kept": bool(found[0, FORCED.index("exact")]),
            "touched": not bool((after == plain).all()),
        }  # fmt: skip
        return Part({"values": found}, [row])

    def random(self, scene: Scene, case: Case) -> Part:
        """Metrics `[draw, metric]` of one question with each random set."""
        question = question_of(scene, case)
        found = [forced_metrics(self._logits(question, heads), case) for heads in self.draws]
        self._tick(case)
        return Part({"values": np.stack(found)})

    def asked(self, own: Sequence[Part]) -> list[tuple[Scene, Case]]:
        """The questions that count: those that the model answers as it is.

        Raises:
            ResultError: too few. SiteError: the intervention changed none of them.
        """
        rows = [part.rows[0] for part in own if part.rows[0]["kept"]]
        if len({row["needle"] for row in rows}) < 2:
            raise ResultError(
                f"{len(rows)} of {len(own)} test questions are answered by the model as it is, an "
                "interval needs 2 or more: shorten length, or use a model that answers"
            )
        if not any(row["touched"] for row in rows):
            raise SiteError(
                f"the intervention {self.name} changed nothing on any of {len(rows)} questions: "
                "its trace touched nothing, or put back what was there; assign what it makes "
                "(module.output = ...)"
            )
        return [p for p, part in zip(self.pairs, own, strict=True) if part.rows[0]["kept"]]

    def _tick(self, case: Case) -> None:
        self.done += 1
        self.report(self.done, 2 * len(self.pairs), case.trial.needle)

    def _logits(self, question: Question, heads: tuple[Head, ...] | None) -> "torch.Tensor":
        """Logits `[answer, d_vocab]` of one trace."""
        import torch

        tokens = torch.tensor([question.tokens]).to(self.model.device)
        body = _nothing if heads is None else self.intervene
        try:
            logits = self.model.tap.free(tokens, body, heads, question)  # type: ignore[attr-defined]
        except MnemoscopeError:
            raise
        except Exception as error:  # whatever somebody's code, or nnsight on its account, raises
            raise SiteError(
                f"the intervention {self.name} failed on {', '.join(map(str, heads or ()))}: "
                f"{type(error).__name__}: {_first_line(error)}"
            ) from error
        return logits[0, list(question.rows)].float().cpu()

    def kept(
        self, own: Sequence[Part], random: Sequence[Part]
    ) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Rows and values `[trial, run, metric]` of the questions that count."""
        parts = [part for part in own if part.rows[0]["kept"]]
        pairs = zip(parts, random, strict=True)
        joined = [np.concatenate([a.values["values"], b.values["values"]]) for a, b in pairs]
        return [dict(part.rows[0]) for part in parts], np.stack(joined)

    def notes(self, own: Sequence[Part]) -> Iterator[str]:
        """What a reader should know."""
        kept = [part.rows[0] for part in own if part.rows[0]["kept"]]
        yield f"{len(kept)} of {len(own)} test questions are answered by the model as it is"
        idle = sum(not row["touched"] for row in kept)
        if idle:
            yield f"on {idle} of them the intervention changed nothing"


def question_of(scene: Scene, case: Case) -> Question:
    """A case as one sequence."""
    start = case.trial.length
    return Question(
        (*scene.context.tokens[:start], *case.suffix), start,
        tuple(start + r for r in case.rows), tuple(case.needle), tuple(case.value),
        tuple(case.answer), case.other,
    )  # fmt: skip


def _nothing(_model: Any, _heads: Any, _question: Question) -> None:
    """The trace without an intervention."""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
