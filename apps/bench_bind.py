"""`mnemoscope bench bind`: patched evaluations against the published loop, same pairs.

The published loop (arXiv 2510.06182) runs one pair at a time: the donor prompt with all hidden
states, then the recipient prompt with a hook at the layer, both whole. Ours reads every context
once and runs the last token alone above the layer. The loop is run on some of the pairs, since
each is a repetition of its own, and its numbers must be ours.
"""

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from apps.options import machine
from circuits.binding_plan import BindSettings, plan_studies
from circuits.competence import Ready, make_ready
from circuits.interchange import SetRun, run_set
from interp.errors import ResultError
from interp.store import provenance
from probes.binding_pairs import EntitySet
from probes.binding_prompts import BindingPrompt

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

AGREE = 1e-4
"""Largest difference of a logit that counts as the same number, in float32."""


def run(
    model: "HFModel", *, task: str, target: str, n: int, evaluations: int, loops: int, layer: int
) -> dict[str, Any]:
    """Time both ways on the same pairs; plain values.

    Raises:
        ResultError: a count below one, or a layer that the model does not have.
    """
    spec = model.spec
    layer = round(spec.n_layers * 5 / 6) if layer < 0 else layer
    if min(evaluations, loops) < 1 or layer >= spec.n_layers:
        raise ResultError(f"a bench needs counts of 1 or more and a layer below {spec.n_layers}")
    settings = BindSettings(tasks=(task,), targets=(target,) if target else (), n=(n,))
    ready = make_ready(model, plan_studies(model.tokenizer, settings)[0], settings)
    # with n recipients each, one donor context gives n x (n - 3) evaluations of distinct cells
    donors = max(1, round(evaluations / (n * (n - 3))))
    entities = ready.sampler().draw(0, ["main"], seed=0, repeats=donors)
    _warm(model, ready, entities)
    start = time.perf_counter()
    ours = run_set(model, ready.writer, ready.answers, entities, layers=[layer], n_recipients=n)
    _wait(model)
    ours_time = time.perf_counter() - start
    picked = np.random.default_rng(0).permutation(len(ours.cases))[:loops].tolist()
    start = time.perf_counter()
    theirs = [_loop(model, *_pair(ready, entities, ours, k), layer) for k in picked]
    _wait(model)
    each = (time.perf_counter() - start) / len(picked)
    worst = max(_gap(row, ours, k) for k, row in zip(picked, theirs, strict=True))
    per = ours_time / len(ours.cases)
    n_tokens = len(_pair(ready, entities, ours, picked[0])[1].tokens)
    return {
        "command": f"mnemoscope bench bind {model.source.name} --task {task} --n {n} "
        f"--evaluations {evaluations} --loops {loops}",
        "machine": machine(model),
        "task": ready.study.key, "layer": layer,
        "tokens of a prompt": n_tokens,
        "evaluations": len(ours.cases), "contexts read": 1 + donors,
        "ours, seconds an evaluation, contexts included": round(per, 5),
        "published loop, seconds an evaluation": round(each, 3),
        "ratio": round(each / per, 1),
        "evaluations a second": round(1 / per, 1),
        "largest difference of a logit": worst, "same numbers": worst <= AGREE,
    } | _sweep(model, ready, entities) | _floor(model, layer, n_tokens, per, each) | {
        "provenance": vars(provenance(model, seconds=ours_time)),
    }  # fmt: skip


def _sweep(model: "HFModel", ready: Ready, entities: EntitySet) -> dict[str, Any]:
    """One pair at every layer: in one pass, and two full forwards for each layer."""
    n_layers = model.spec.n_layers
    one = EntitySet(entities.index, entities.matrix, (_single(entities),))
    start = time.perf_counter()
    ours = run_set(model, ready.writer, ready.answers, one, layers=range(n_layers))
    _wait(model)
    ours_time = time.perf_counter() - start
    donor, recipient = _pair(ready, one, ours, 0)
    start = time.perf_counter()
    rows = [_loop(model, donor, recipient, layer) for layer in range(n_layers)]
    _wait(model)
    theirs_time = time.perf_counter() - start
    by_layer = {case.layer: k for k, case in enumerate(ours.cases)}
    worst = max(_gap(row, ours, by_layer[layer]) for layer, row in enumerate(rows))
    return {
        "layers of the sweep": n_layers,
        "sweep in one pass, seconds": round(ours_time, 3),
        "sweep by the published loop, seconds": round(theirs_time, 2),
        "ratio of the sweep": round(theirs_time / ours_time, 1),
        "half the layers": n_layers / 2,
        "largest difference of a logit in the sweep": worst,
    }


def _floor(model: "HFModel", layer: int, n_tokens: int, per: float, each: float) -> dict[str, Any]:
    """Share of the least time: one token through the layers above and the unembedding.

    At the speed that this machine shows in the published loop: the work of its two forwards, which
    are large matrix products, over their time. Attention is left out of both.
    """
    spec = model.spec
    block = sum(p.numel() for p in model.anatomy.layers[0].parameters())
    unembed = model.hf.get_output_embeddings().weight.numel()
    token = 2.0 * ((spec.n_layers - layer) * block + unembed)
    loop = 2 * 2.0 * n_tokens * (spec.n_layers * block + unembed)
    speed = loop / each
    return {
        "floor of an evaluation, GFLOP": round(token / 1e9, 3),
        "speed of the loop, GFLOP/s": round(speed / 1e9, 1),
        "share of the floor": round(token / speed / per, 3),
    }


def _single(entities: EntitySet) -> Any:
    from dataclasses import replace

    return replace(entities.donors[0], groups=entities.donors[0].groups[1:2])


def _pair(
    ready: Ready, entities: EntitySet, ours: SetRun, k: int
) -> tuple[BindingPrompt, BindingPrompt]:
    """Donor and recipient prompt of an evaluation."""
    case = ours.cases[k]
    donor = ready.writer.write(entities.donors[case.donor].matrix, case.i_p)
    return donor, ready.writer.write(entities.matrix, case.i_n)


def _loop(model: "HFModel", donor: BindingPrompt, recipient: BindingPrompt, layer: int) -> Tensor:
    """The published evaluation: logits `[d_vocab]` after the patched recipient."""
    block = model.anatomy.layers[layer]
    with torch.no_grad():
        seen = model.hf(_ids(model, donor), output_hidden_states=True, use_cache=False)
        vector = seen.hidden_states[layer][0, -1]

        def patch(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            x[0, -1] = vector
            return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

        hook = block.register_forward_pre_hook(patch, with_kwargs=True)
        try:
            out = model.hf(_ids(model, recipient), use_cache=False)
        finally:
            hook.remove()
    logits: Tensor = out.logits[0, -1]
    return logits.float().cpu()


def _ids(model: "HFModel", prompt: BindingPrompt) -> Tensor:
    return torch.tensor([prompt.tokens], device=model.device)


def _gap(row: Tensor, ours: SetRun, k: int) -> float:
    found = row[list(ours.candidates)].numpy()
    return float(np.abs(found - ours.readings[k].logits).max())


def _warm(model: "HFModel", ready: Ready, entities: EntitySet) -> None:
    """The first forwards of a process pay for memory; neither side should."""
    prompt = ready.writer.write(entities.matrix, 0)
    _loop(model, prompt, prompt, 1)
    model.extend(model.prefill(prompt.tokens[:32]), [prompt.tokens[32:]])


def _wait(model: "HFModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
