"""`mnemoscope bench scan`: our scan against the bare forward, the published loop, full matrices.

All in one run, on one model and the same trials, taken in turn and repeated; the best time of each
counts, because other work on the machine only ever adds time. Ratios are the result, not seconds.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.console import print_table, say
from apps.options import machine
from apps.peak_memory import peak_mb
from circuits.measure import NULL_QUESTION, measure
from circuits.plan import ScanPlan, ScanSettings, make_plan
from circuits.wu2024 import fast, step_by_step
from interp.checks import eager
from interp.store import provenance
from probes.grid import Context, Trial
from probes.wu2024 import DEFECTS, PublishedPrompt

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

REPEATS = 3
GRID_LENGTHS = 5
DEPTHS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
MATRIX_LIMIT = 6 * 2**30
"""Bytes of full attention matrices above which they are not formed."""


def run(model: "HFModel", lengths: tuple[int, ...], *, output: Path | None, as_json: bool) -> None:
    """Measure, print, and save beside the command that made it."""
    rows = [one_length(model, n) for n in lengths]
    grid = whole_grid(model, max(lengths))
    record = {
        "command": f"mnemoscope bench scan {model.source.name} --lengths "
        + ",".join(map(str, lengths)),
        "machine": machine(model),
        "lengths": rows,
        "grid": grid,
        "provenance": vars(provenance(model, seconds=0)),
    }
    if output is not None:
        output.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    if as_json:
        say(json.dumps(record))
        return
    names = list(rows[0])
    cells = [[name, *(_shown(r[name]) for r in rows)] for name in names]
    print_table(
        "one trial; times relative to the bare forward (a)", ["", *map(str, lengths)], cells
    )
    print_table("whole grid", ["", ""], [[k, _shown(v)] for k, v in grid.items()])


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def one_length(model: "HFModel", length: int) -> dict[str, Any]:
    """One trial at one length, four ways."""
    plan = make_plan(model, ScanSettings(lengths=(length,), depths=DEPTHS, n_haystacks=1))
    context = plan.contexts[0]
    prefix = model.prefill(context.tokens)
    outcomes = measure(model, prefix, context, plan.trials[0], plan.fmt, generate=False)
    # a trial that the model answers, so that there are scores above zero to compare
    trial = max(outcomes, key=lambda o: o.logprob).trial
    tokens = [*context.tokens, *trial.suffix, *trial.answer]
    prompt = PublishedPrompt(
        (*context.tokens, *trial.suffix), (_answer(context, trial)), trial.value, trial.answer
    )

    def scanned() -> None:
        measure(model, model.prefill(context.tokens), context, [trial], plan.fmt, generate=False)

    best, peak = _interleaved(
        model,
        {
            "a": lambda: _bare(model, tokens),
            "b": scanned,
            "after prefill": lambda: measure(
                model, prefix, context, [trial], plan.fmt, generate=False
            ),
        },
    )
    ours, ids = fast(model, prompt, DEFECTS)
    loop_time, (theirs, their_ids) = _timed(lambda: step_by_step(model, prompt, DEFECTS))
    prefill_time = _timed(lambda: _bare(model, tokens))[0]
    matrices = _matrices(model, tokens)
    return {
        "tokens": len(tokens),
        "(a) bare forward, seconds": best["a"],
        "(b) our scan / (a)": best["b"] / best["a"],
        "(c) published loop / (a)": loop_time / best["a"],
        "(d) full matrices / (a)": matrices / best["a"] if matrices else "not run: too large",
        "scoring after prefill: (c) / (b)": (loop_time - prefill_time) / best["after prefill"],
        "peak memory beyond weights, MB: (a)": peak["a"],
        "peak memory beyond weights, MB: (b)": peak["b"],
        "scores of (b) and (c) equal (wu2024)": bool(np.array_equal(ours, theirs)),
        "heads scoring above 0 there": int((theirs > 0).sum()),
        "tokens decoded equal": ids == their_ids,
    }


def _answer(context: Context, trial: Trial) -> tuple[int, int]:
    span = context.planted[trial.planted].answer
    return span.start, span.stop


def whole_grid(model: "HFModel", longest: int) -> dict[str, Any]:
    """A length x depth grid of one haystack: once for all cells, and cell by cell."""
    lengths = tuple(longest * i // GRID_LENGTHS for i in range(1, GRID_LENGTHS + 1))
    plan = make_plan(model, ScanSettings(lengths=lengths, depths=DEPTHS, n_haystacks=1))
    context, trials = plan.contexts[0], plan.trials[0]
    asked = [[*t.suffix, *t.answer[:-1]] for t in trials]
    asked += [list(plan.fmt.tail(NULL_QUESTION).tokens)] * len(lengths)
    extra = [token for ids in asked for token in ids]
    best, _ = _interleaved(
        model,
        {
            "tokens": lambda: _bare(model, list(context.tokens), extra),
            "grid": lambda: measure(
                model, model.prefill(context.tokens), context, trials, plan.fmt, generate=False
            ),
        },
    )
    alone = sum(_cell(model, plan, length) for length in lengths)
    return {
        "lengths": ", ".join(map(str, lengths)),
        "depths": ", ".join(map(str, DEPTHS)),
        "cells": len(trials),
        "tokens processed": len(context.tokens) + len(extra),
        "tokens of bare forwards cell by cell": sum(t.length + len(t.suffix) for t in trials),
        "grid / bare forward of the same tokens": best["grid"] / best["tokens"],
        "grid / all cells by themselves (bare forwards)": best["grid"] / alone,
    }


def _cell(model: "HFModel", plan: ScanPlan, length: int) -> float:
    """Seconds of bare forwards for all depths of a length."""
    n = length + len(plan.trials[0][0].suffix)
    tokens = (list(plan.contexts[0].tokens) * 2)[:n]
    return len(plan.settings.depths) * min(_timed(lambda: _bare(model, tokens))[0] for _ in (1, 2))


def _bare(model: "HFModel", tokens: list[int], extra: list[int] | None = None) -> None:
    """The model's own forward, last logits only; `extra` continues it from its cache."""
    with torch.no_grad():
        ids = torch.tensor([tokens], device=model.device)
        out = model.hf(ids, use_cache=True, logits_to_keep=1)
        if extra:
            more = torch.tensor([extra], device=model.device)
            model.hf(more, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
    _wait(model)


def _matrices(model: "HFModel", tokens: list[int]) -> float | None:
    spec = model.spec
    if len(spec.attention_layers) * spec.n_heads * len(tokens) ** 2 * 4 > MATRIX_LIMIT:
        return None

    def full() -> None:
        with eager(model):
            ids = torch.tensor([tokens], device=model.device)
            model.hf(ids, use_cache=False, output_attentions=True, logits_to_keep=1)
        _wait(model)

    return _timed(full)[0]


def _interleaved(
    model: "HFModel", cases: dict[str, Callable[[], Any]]
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Best seconds and peak memory of each case, taken in turn."""
    best = dict.fromkeys(cases, float("inf"))
    peak: dict[str, float | None] = dict.fromkeys(cases)
    for case in cases.values():
        case()
    for _ in range(REPEATS):
        for name, case in cases.items():
            took: list[float] = []
            peak[name] = peak_mb(partial(_note_time, took, case), model.device, repeats=1)
            best[name] = min(best[name], took[0])
    return best, peak


def _timed(case: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = case()
    return time.perf_counter() - start, value


def _note_time(took: list[float], case: Callable[[], Any]) -> None:
    took.append(_timed(case)[0])


def _wait(model: "HFModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
