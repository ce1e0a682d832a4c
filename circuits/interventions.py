"""Run a case with one set of heads changed in each row, and read the answer's numbers off.

One prefill serves all rows of a scope that ends with the question; only `everywhere` needs one for
each set of heads. `materials` gathers once what the edits of a prompt are made of.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits.ablations import Ablation, Material, Scope, edits_of
from circuits.case_metrics import FORCED
from circuits.measure import stop_tokens
from interp.errors import PromptError
from interp.sites import Edit, Head, Site
from interp.trace import Prefix, SiteRead
from probes.cases import Case, Scene
from probes.rouge import contains, rouge1_recall

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_NEW = 24
"""Tokens generated at most, where generation is asked for."""
ROWS = 64
"""Rows of one extend: bounds the memory of their logits."""

Sets = Sequence[Sequence[Head]]


def forced_metrics(logits: Tensor, case: Case) -> np.ndarray:
    """The metrics of `FORCED` of one row of answers: `logits` `[answer, d_vocab]`."""
    ids = torch.tensor(case.answer)
    gold = logits.log_softmax(-1).gather(-1, ids[:, None]).sum()
    best = (logits.argmax(-1) == ids).all()
    gap = float("nan")
    if case.differs is not None and case.other is not None:
        row = logits[case.differs]
        gap = float(row[case.answer[case.differs]] - row[case.other[case.differs]])
    found = {"logprob": float(gold), "logit_diff": gap, "exact": float(best)}
    return np.array([found[name] for name in FORCED])


def rebased(model: "HFModel", prefix: Prefix, case: Case, scope: Scope) -> tuple[Prefix, Case]:
    """The context of a case and, where the scope leaves the question alone, the question too.

    The prefix returned is all that the case's suffix sees.
    """
    prefix = prefix.crop(case.trial.length)
    start = case.rows.start if scope == "decode" else 0
    if start == 0:
        return prefix, case
    rest = replace(
        case,
        suffix=case.suffix[start:],
        rows=range(len(case.rows)),
        classes=case.classes[start:],
    )
    return model.grow(prefix, case.suffix[:start]), rest


def run_edits(
    model: "HFModel", prefix: Prefix, case: Case, n_rows: int, edits: Sequence[Edit]
) -> np.ndarray:
    """Forced metrics `[row, metric]` of a case run `n_rows` times, each row with its edits."""
    found = row_logits(model, prefix, case.suffix, case.rows, n_rows=n_rows, edits=edits)
    return np.stack([forced_metrics(logits, case) for logits in found])


def row_logits(
    model: "HFModel",
    prefix: Prefix,
    suffix: Sequence[int],
    wanted: Sequence[int],
    *,
    n_rows: int,
    edits: Sequence[Edit],
) -> Iterator[Tensor]:
    """Logits `[position, d_vocab]` of one suffix run `n_rows` times, row by row, in batches."""
    for start in range(0, n_rows, ROWS):
        rows = range(start, min(start + ROWS, n_rows))
        own = [e for e in (_shifted(e, rows) for e in edits) if e is not None]
        n = len(rows)
        logits = model.extend(prefix, [suffix] * n, edits=own, logits=[wanted] * n).logits
        yield from logits.split(len(wanted))
        del logits  # or it is held beside the next batch's


def _shifted(edit: Edit, rows: range) -> Edit | None:
    """The edit in a batch that begins at another row; None where it has no row there."""
    here = tuple(r - rows.start for r in edit.rows or () if r in rows)
    return replace(edit, rows=here) if here else None


def material(
    case: Case,
    *,
    means: Mapping[str, Tensor] | None = None,
    twin: Mapping[int, Tensor] | None = None,
) -> Material:
    """What edits of the whole suffix of a (rebased) case are made of."""
    positions = tuple(range(len(case.suffix)))
    return Material(positions, case.classes, means or {}, twin or {}, case.needle)


def run_sets(
    model: "HFModel", prefix: Prefix, case: Case, sets: Sets, *, how: Ablation, m: Material
) -> np.ndarray:
    """Forced metrics `[set, metric]`, set i ablated in row i of a rebased case."""
    return run_edits(model, prefix, case, len(sets), edits_of(sets, how, m))


def run_everywhere(
    model: "HFModel",
    scene: Scene,
    sets: Sets,
    *,
    how: Ablation,
    means: Mapping[str, Tensor],
    tick: Callable[[], None],
) -> list[np.ndarray]:
    """Forced metrics `[set, metric]` of each case, ablated in context and suffix alike."""
    places = tuple(range(len(scene.context.tokens)))
    ahead, twin = read_context(model, scene.twin) if how.needs == "twin" else (None, {})
    whole = Material(places, context_classes(scene), means, twin)
    own = [
        {} if ahead is None else suffix_outputs(model, *rebased(model, ahead, c, "suffix"))
        for c in scene.cases
    ]
    out: list[list[np.ndarray]] = [[] for _ in scene.cases]
    for heads in sets:
        edits = [replace(e, rows=None) for e in edits_of([heads], how, whole)]
        prefix = model.prefill(scene.context.tokens, edits=edits)
        for i, case in enumerate(scene.cases):
            m = material(case, means=means, twin=own[i])
            cropped = prefix.crop(case.trial.length)
            out[i].append(run_sets(model, cropped, case, [heads], how=how, m=m)[0])
        tick()
    return [np.stack(rows) for rows in out]


def context_classes(scene: Scene) -> tuple[str, ...]:
    """Position class of every token of a context."""
    classes = ["context"] * len(scene.context.tokens)
    for place in scene.context.planted:
        if place.stop > len(classes):  # cut off with the end of the context
            continue
        classes[place.start : place.stop] = ["needle"] * (place.stop - place.start)
        classes[place.answer.start : place.answer.stop] = ["value"] * len(place.answer)
    return tuple(classes)


def suffix_outputs(model: "HFModel", prefix: Prefix, case: Case) -> dict[int, Tensor]:
    """Outputs of all heads on a rebased case's suffix: by layer, `[pos, head, d_head]`."""
    sites = {layer: Site("z", layer) for layer in model.spec.attention_layers}
    read = SiteRead(tuple(sites.values()), (tuple(range(len(case.suffix))),))
    seen = model.extend(prefix, [case.suffix], read=[read]).sites
    return {layer: seen[site] for layer, site in sites.items()}


def read_context(model: "HFModel", tokens: Sequence[int]) -> tuple[Prefix, dict[int, Tensor]]:
    """The prefix of a context, and the outputs of all heads on the whole of it."""
    sites = {layer: Site("z", layer) for layer in model.spec.attention_layers}
    read = SiteRead(tuple(sites.values()), (tuple(range(len(tokens))),))
    prefix = model.prefill(tokens, read=[read])
    assert prefix.trace is not None
    return prefix, {layer: prefix.trace.sites[site] for layer, site in sites.items()}


def reference_means(
    model: "HFModel", scenes: Sequence[Scene], *, context: bool = False
) -> dict[str, Tensor]:
    """Mean head output by position class, `[layer, head, d_head]`, over all cases of scenes.

    Every token counts once. `context` adds the classes of context tokens, for edits everywhere.
    """
    spec = model.spec
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(classes: Sequence[str], outputs: Mapping[int, Tensor]) -> None:
        for name in set(classes):
            at = [i for i, c in enumerate(classes) if c == name]
            total = sums.setdefault(name, torch.zeros(spec.n_layers, spec.n_heads, spec.d_head))
            for layer, z in outputs.items():
                total[layer] += z[at].float().sum(0)
            counts[name] = counts.get(name, 0) + len(at)

    for scene in scenes:
        if context:
            prefix, outputs = read_context(model, scene.context.tokens)
            add(context_classes(scene), outputs)
        else:
            prefix = model.prefill(scene.context.tokens)
        for case in scene.cases:
            add(case.classes, suffix_outputs(model, *rebased(model, prefix, case, "suffix")))
    if not sums:
        raise PromptError("a mean ablation needs reference prompts, and there are none")
    return {name: total / counts[name] for name, total in sums.items()}


def generate_sets(
    model: "HFModel", prefix: Prefix, case: Case, sets: Sets, *, how: Ablation, m: Material
) -> np.ndarray:
    """`contains` and `rouge` `[set, 2]` of what the model says with each set ablated."""
    value = case.trial.value
    said = generated_texts(model, prefix, case, sets, how=how, m=m)
    return np.array([[float(contains(value, t)), rouge1_recall(value, t)] for t in said])


def generated_texts(
    model: "HFModel", prefix: Prefix, case: Case, sets: Sets, *, how: Ablation, m: Material
) -> list[str]:
    """What the model says with each set ablated.

    Ablations whose value belongs to a position (`mean`, `resample`) hold at the last known one for
    all tokens decoded beyond; the others act on every decoded token.
    """
    question = case.suffix[: case.rows.start + 1]
    edits = [_open(e, how, m, len(question)) for e in edits_of(sets, how, m)]
    texts = model.generate(
        prefix,
        [question] * len(sets),
        max_new_tokens=N_NEW,
        stop=stop_tokens(model),
        edits=edits,
    )
    return [model.tokenizer.decode(ids) for ids in texts]


def _open(edit: Edit, how: Ablation, m: Material, n_question: int) -> Edit:
    """The edit carried on through the decoded tokens."""
    first = m.positions[0]
    positions = tuple(range(first, n_question + N_NEW))
    value = edit.value
    if value is not None:
        known = value[: max(0, n_question - first)] if how.name == "resample" else value
        last = known[-1:].expand(len(positions) - len(known), -1)
        value = torch.cat([known, last]) if len(known) < len(positions) else known
        value = value[: len(positions)]
    return replace(edit, positions=positions, value=value)
