"""Planted models under the instrument, with their prompts, for tests of causal code."""

import functools
import tempfile
from pathlib import Path

import interp
from circuits.plan import ScanSettings, make_plan
from probes.cases import scenes
from probes.planted import build, write_materials

FOLDER = Path(tempfile.mkdtemp(prefix="planted-"))
MATERIALS = write_materials(FOLDER)
PROMPTS = {
    "style": "plain",
    "cue_words": 1,
    "needles": MATERIALS.scan["needles"],
    "haystack": MATERIALS.scan["haystack"],
}
"""Prompt settings that a validation takes."""


@functools.cache
def world(name, seed=0):
    """`(model, truth)` of a planted model."""
    made = build(name, seed=seed)
    return interp.load(made.model, tokenizer=made.tokenizer), made.truth


@functools.cache
def scene(name, seed=0):
    """A context with its twin and its questions."""
    model, truth = world(name, seed)
    options = MATERIALS.scan | truth.options
    lengths, depths = options["lengths"], options["depths"]
    plan = make_plan(model, ScanSettings(**PROMPTS, lengths=lengths, depths=depths, n_haystacks=1))
    return scenes(plan.contexts, plan.trials, fmt=plan.fmt)[0]
