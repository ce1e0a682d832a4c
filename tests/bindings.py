"""Planted binding models under the instrument, for tests of binding code."""

import functools
import json
import tempfile
from pathlib import Path

import torch

import interp
from circuits.binding_plan import BindSettings, plan_studies
from circuits.binding_run import binding
from circuits.competence import make_ready
from probes.planted_binding import build

FOLDER = Path(tempfile.mkdtemp(prefix="bindings-"))
SMALL = {"style": "completion", "n_sets": 8, "donors": 8, "bootstrap": 8, "n_controls": 8}


@functools.cache
def world(name, n=8):
    """`(model, truth, task file)` of a planted model."""
    made = build(name, n=n)
    path = FOLDER / f"{name}-{n}.json"
    path.write_text(json.dumps(made.task), "utf-8")
    live = made.model.to(torch.bfloat16) if name == "bf16" else made.model
    return interp.load(live, tokenizer=made.tokenizer), made.truth, path


@functools.cache
def ready(name, n=8):
    """`(model, truth, ready study, settings)`."""
    model, truth, path = world(name, n)
    settings = BindSettings(tasks=(str(path),), n=(n,), **SMALL)
    study = plan_studies(model.tokenizer, settings)[0]
    return model, truth, make_ready(model, study, settings), settings


@functools.cache
def result(name, n=8):
    """The whole run."""
    model, _, path = world(name, n)
    return binding(model, tasks=str(path), n=n, heads=False, **SMALL)
