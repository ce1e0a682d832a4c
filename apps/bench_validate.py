"""`mnemoscope bench validate`: ablations as rows of batched suffixes against one forward for each.

Zero ablations of random head sets, of the size and in the scope that `validate` uses, on one
question. The alternative is what one would write by hand: the bare model, a hook on each output
projection, the whole prompt once for every set. Same sets, same numbers, one process; each side is
run once, since every set is a repetition of its own.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.options import machine
from circuits.ablations import ABLATIONS
from circuits.case_metrics import FORCED
from circuits.interventions import forced_metrics, material, rebased, run_sets
from circuits.plan import ScanSettings, make_plan
from interp.errors import ModelError, ResultError
from interp.sites import Head
from interp.store import provenance
from probes.cases import Case, Scene, scenes

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

TOP = 10
AGREE = 1e-4
"""Largest difference in log-probability that counts as the same number, in float32."""


def run(model: "HFModel", *, length: int, n_draws: int) -> dict[str, Any]:
    """Time both ways and compare them; plain values.

    Raises:
        ModelError: an output projection is unknown, so that the alternative cannot be written.
        ResultError: fewer than one set was asked for.
    """
    if n_draws < 1:
        raise ResultError("a bench needs 1 ablation or more")
    if not all(model.anatomy.projections[i] is not None for i in model.spec.attention_layers):
        raise ModelError(f"{model.spec.architecture}: an output projection is not known")
    scene, case = _question(model, length)
    sets = _sets(model, n_draws)
    _warm(model, scene, case)
    ours_time, prefill_time, ours = _batched(model, scene, case, sets)
    theirs_time, theirs = _one_by_one(model, scene, case, sets)
    k = FORCED.index("logprob")
    worst = float(np.abs(ours - theirs)[:, k].max())
    return {
        "command": f"mnemoscope bench validate {model.source.name} --length {length} "
        f"--draws {n_draws}",
        "machine": machine(model),
        "tokens of context": case.trial.length,
        "tokens behind it": len(case.suffix),
        "ablations": len(sets),
        "heads in each": TOP,
        "one full forward each, seconds": round(theirs_time, 2),
        "batched suffixes with the prefill, seconds": round(ours_time, 2),
        "of these the prefill, seconds": round(prefill_time, 2),
        "ratio": round(theirs_time / ours_time, 1),
        "ratio after the prefill": round(theirs_time / (ours_time - prefill_time), 1),
        "largest difference in log-prob, nats": worst,
        "same numbers": worst <= AGREE,
        "spread of log-prob over sets, nats": round(float(np.ptp(ours[:, k])), 3),
        "provenance": vars(provenance(model, seconds=ours_time + theirs_time)),
    }


def _question(model: "HFModel", length: int) -> tuple[Scene, Case]:
    plan = make_plan(model, ScanSettings(lengths=(length,), depths=(0.5,), n_haystacks=1))
    scene = scenes(plan.contexts, plan.trials, fmt=plan.fmt)[0]
    return scene, scene.cases[0]


def _sets(model: "HFModel", n: int) -> list[tuple[Head, ...]]:
    pool, rng = model.spec.heads(), np.random.default_rng(0)
    size = min(TOP, len(pool))
    return [tuple(pool[i] for i in rng.choice(len(pool), size, replace=False)) for _ in range(n)]


def _warm(model: "HFModel", scene: Scene, case: Case) -> None:
    """The first forwards of a process pay for memory; neither side should."""
    tokens = scene.context.tokens[:64]
    model.extend(model.prefill(tokens), [case.suffix])
    with torch.no_grad():
        model.hf(torch.tensor([tokens], device=model.device), use_cache=False)


def _batched(
    model: "HFModel", scene: Scene, case: Case, sets: Sequence[Sequence[Head]]
) -> tuple[float, float, np.ndarray]:
    start = time.perf_counter()
    whole = model.prefill(scene.context.tokens)
    _wait(model)
    prefilled = time.perf_counter() - start
    prefix, ready = rebased(model, whole, case, "suffix")
    found = run_sets(model, prefix, ready, sets, how=ABLATIONS["zero"], m=material(ready))
    _wait(model)
    return time.perf_counter() - start, prefilled, found


def _one_by_one(
    model: "HFModel", scene: Scene, case: Case, sets: Sequence[Sequence[Head]]
) -> tuple[float, np.ndarray]:
    context = scene.context.tokens[: case.trial.length]
    tokens = torch.tensor([[*context, *case.suffix]], device=model.device)
    keep = len(case.suffix) - case.rows.start
    found, start = [], time.perf_counter()
    for heads in sets:
        with torch.no_grad(), _zeroed(model, heads, len(context)):
            out = model.hf(tokens, use_cache=False, logits_to_keep=keep)
        found.append(forced_metrics(out.logits[0].float().cpu(), case))
    _wait(model)
    return time.perf_counter() - start, np.stack(found)


@contextmanager
def _zeroed(model: "HFModel", heads: Sequence[Head], first: int) -> Iterator[None]:
    """Hooks that put zeros into the heads' slices of the output projections' inputs."""
    d = model.spec.d_head
    with ExitStack() as stack:
        for layer in sorted({h.layer for h in heads}):
            own = [h.head for h in heads if h.layer == layer]

            def hook(_module: nn.Module, args: tuple[Tensor], own: list[int] = own) -> tuple:
                z = args[0].clone()
                for head in own:
                    z[:, first:, head * d : (head + 1) * d] = 0
                return (z,)

            module = model.anatomy.projections[layer]
            assert module is not None
            stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _wait(model: "HFModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
