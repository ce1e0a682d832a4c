"""`circuits.binding`: from a model to what can be said of how it retrieves bound entities.

For every study: is the model able to do the task; entering which layer does the last token hold a
pointer; which pointers are followed, at which position; which controls hold; how well a mixture
predicts the answers (arXiv 2510.06182). Measured first, concluded from the records alone.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from circuits.binding_across import hypotheses, longer_inputs, transfers
from circuits.binding_analysis import competence, conclude
from circuits.binding_classics import CLASSICS, run_classics
from circuits.binding_examples import example_prompts
from circuits.binding_heads import find_heads
from circuits.binding_layer import LayerChoice, choose_layer
from circuits.binding_plan import BindSettings, Study, plan_studies
from circuits.binding_result import BindingResult, StudyResult
from circuits.binding_study import (
    CONTROL,
    MAIN,
    SWEEP,
    joined,
    n_parts,
    records_of,
    safe,
    stage_jobs,
)
from circuits.competence import Ready, make_ready, preflight
from circuits.given import with_options
from circuits.shelf import Job, Part, Parts, Shelf, model_label, open_shelf
from circuits.tally import Progress, Tally
from interp.errors import PromptError
from interp.store import provenance

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


def binding(
    model: "HFModel",
    settings: BindSettings | None = None,
    *,
    parts: Parts = None,
    progress: Progress | None = None,
    **options: Any,
) -> BindingResult:
    """Measure how a model retrieves bound entities.

    Args:
        settings: what to measure; `options` are fields of it (`tasks`, `n`, ...).
        parts: a folder in which finished entity sets are kept, to go on after an interruption.
        progress: called with finished entity sets, their number, and the study at hand.

    Raises:
        PromptError: no study can be run: pools too small, n below 4, an unknown style.
        UnknownNameError: an unknown task, target role or design.
        SiteError: a layer that the model does not have.
    """
    settings = with_options(settings or BindSettings(), options)
    studies = plan_studies(model.tokenizer, settings)
    if settings.layer > model.spec.n_layers:
        raise PromptError(f"layer {settings.layer}: the model has 0-{model.spec.n_layers}")
    shelf = open_shelf(parts, asdict(settings) | model_label(model))
    start = time.perf_counter()
    tally = Tally(progress, len(studies) * (1 + n_parts(settings)))
    found = {s.key: _study(model, s, settings, shelf, tally) for s in studies}
    shelf.finish()
    made = provenance(model, seconds=time.perf_counter() - start)
    many = list(found.values())
    return BindingResult(
        asdict(settings), made, found, hypotheses(many), transfers(many), longer_inputs(many)
    )


def _study(
    model: "HFModel", study: Study, settings: BindSettings, shelf: Shelf, tally: Tally
) -> StudyResult:
    before, tally.about = tally.done, study.key
    ready = make_ready(model, study, settings)
    asked = _preflight(model, ready, settings, shelf)
    tally.tick()
    able = competence(asked, settings.floor, seed=settings.seed)
    records, choice = [], LayerChoice(None, None, "not looked for: the preflight was not passed")
    if able["passed"]:
        last = model.spec.n_layers

        def run(layers_of: Mapping[str, Sequence[int]]) -> list:
            jobs = [
                job for stage, layers in layers_of.items()
                for job in stage_jobs(model, ready, settings, stage, layers=layers)
            ]  # fmt: skip
            return records_of(shelf.parts(jobs, tally.tick).values())

        if settings.layer >= 0:
            choice = LayerChoice(settings.layer, None, "given")
        else:
            records += run({SWEEP: range(last + 1)})
            choice = choose_layer(joined(records))
        if (found := choice.layer) is not None:
            records += run({MAIN: [found], CONTROL: [found, min(found + 1, last)]})
    # a study that ends early is counted whole
    tally.tick(n=before + 1 + n_parts(settings) - tally.done)
    whole = joined(records)
    conclusion = conclude(whole, choice, settings, n=study.n, able=able)
    if choice.layer is not None:
        conclusion |= _further(model, ready, choice.layer, settings, shelf, tally)
    return StudyResult(
        key=study.key, task=study.task.name, target=study.question.target,
        asked=study.question.asked, place=study.place, n=study.n, filler=study.filler,
        about=_about(ready, settings), preflight=asked, records=whole,
        conclusion=conclusion,
    )  # fmt: skip


def _preflight(
    model: "HFModel", ready: Ready, settings: BindSettings, shelf: Shelf
) -> pd.DataFrame:
    name = f"{safe(ready.study.key)}-preflight"
    return pd.DataFrame(shelf.kept_rows(name, partial(preflight, model, ready, settings)))


def _further(
    model: "HFModel", ready: Ready, layer: int, settings: BindSettings, shelf: Shelf,
    tally: Tally,
) -> dict[str, Any]:  # fmt: skip
    """Heads and older measurements, where they are asked for; each is kept when it is done."""

    wanted: dict[str, Callable[..., dict[str, Any]]] = {}
    if settings.heads:
        wanted["heads"] = find_heads
    if settings.classics:
        wanted |= {name: partial(run_classics, names=(name,)) for name in CLASSICS}
    key = f"{safe(ready.study.key)}-"

    def make(name: str) -> Part:
        tally.about = f"{ready.study.key}: {name}"
        tally.tick(n=0)
        return Part({}, [wanted[name](model, ready, layer, seed=settings.seed)])

    parts = shelf.parts([Job(key + name, partial(make, name)) for name in wanted])
    found = {name: parts[key + name].rows[0] for name in wanted}
    out: dict[str, Any] = {"heads": found.pop("heads")} if settings.heads else {}
    if settings.classics:
        out["classics"] = {k: v for part in found.values() for k, v in part.items()}
    return out


def _about(ready: Ready, settings: BindSettings) -> dict[str, Any]:
    answers = ready.answers
    return {
        "style": ready.writer.style, "question": ready.study.question.ask,
        "complete": ready.study.question.complete, "form": answers.form, "mass": answers.mass,
        "other_forms": answers.others, "dropped": list(ready.study.dropped),
        "tried": {k: {"accuracy": a, "mass": m} for k, (a, m) in ready.tried.items()},
        "examples": example_prompts(ready, settings),
    }  # fmt: skip
