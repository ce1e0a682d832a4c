"""Read the attention of a trial behind its prefix, and keep it sparse, see `record`.

Whole rows exist for one group of heads at a time, so that memory stays bounded at any length. The
keys that are kept are then read once more, for what each writes towards the answer.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from circuits.attention.record import RECENT, REGIONS, TrialRows, in_steps
from circuits.measure import answer_directions
from interp.sites import Head
from interp.trace import Prefix, RowRead
from probes.grid import Context, Trial

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_KEYS = 16
QUESTION_ROWS = 8
"""The last tokens of a question whose rows are kept: they have read the most of it."""
MEMORY = 256 * 2**20
"""Bytes of whole rows at one time."""
MOST_SLOTS = 1024
"""Keys a row whose contributions are read; the heaviest of all heads first."""


def capture_rows(
    model: "HFModel",
    prefix: Prefix,
    context: Context,
    trial: Trial,
    *,
    place: int = 0,
    k: int = N_KEYS,
    seed: int = 0,
) -> TrialRows:
    """Rows of one trial with the gold answer forced behind the question.

    Args:
        prefix: the context, read; longer than the trial's length is cropped.
        place: of the context among those of the plan.
        seed: chooses the other value that contributions are told against.
    """
    suffix = (*trial.suffix, *trial.answer[:-1])
    first = len(trial.suffix) - 1
    asked = tuple(i for i in trial.question if i != first)[-QUESTION_ROWS:]
    rows = (*asked, *range(first, len(suffix)))
    at = tuple(trial.length + r for r in rows)
    spans = _spans(context, trial)
    names = region_of(spans, at, trial.length + len(suffix))
    shape = (model.spec.n_layers, model.spec.n_heads, len(rows))
    keys, weights = np.full((*shape, k), -1, np.int32), np.zeros((*shape, k), np.float32)
    regions = np.zeros((*shape, len(REGIONS)), np.float32)
    for head, found in _whole(model, prefix, trial.length, suffix, rows):
        for i, row in enumerate(found):
            best = torch.topk(row, min(k, len(row)))
            n = len(best.values)
            keys[head.layer, head.head, i, :n] = best.indices.numpy()
            weights[head.layer, head.head, i, :n] = best.values.numpy()
            regions[head.layer, head.head, i] = np.bincount(
                names[i, : len(row)], row.numpy(), len(REGIONS)
            )
    keys[weights == 0] = -1
    toward = _contributions(model, prefix, context, trial, rows, keys, weights, seed)
    decode = model.tokenizer.decode
    produced = ("",) * len(asked) + tuple(decode([i]) for i in trial.answer)
    return TrialRows(
        trial.name, place, trial.length, tuple(decode([i]) for i in suffix), at, produced,
        spans, _narrow(keys), in_steps(weights), toward.astype(np.float16), in_steps(regions),
    )  # fmt: skip


def region_of(spans: dict, queries: Sequence[int], n_tokens: int) -> np.ndarray:
    """Index of the region of every key, `[row, key]`; only `recent` depends on the query."""
    order = list(REGIONS)
    base = np.full(n_tokens, order.index("rest"))
    for name in ("question", "distractors", "needle", "value"):
        for start, stop in spans[name] if name == "distractors" else [spans[name]]:
            base[start:stop] = order.index(name)
    base[0] = order.index("sink")
    out = np.tile(base, (len(queries), 1))
    for row, query in zip(out, queries, strict=True):
        near = slice(max(0, query + 1 - RECENT), query + 1)
        row[near] = np.where(row[near] == order.index("rest"), order.index("recent"), row[near])
    return out


def _spans(context: Context, trial: Trial) -> dict:
    place = context.planted[trial.planted]
    others = [p for i, p in enumerate(context.planted) if i != trial.planted]
    begin = trial.length
    return {
        "value": [place.answer.start, place.answer.stop],
        "needle": [place.start, place.stop],
        "distractors": [[p.start, p.stop] for p in others if p.stop <= begin],
        "question": [begin + trial.question.start, begin + trial.question.stop],
    }


def _whole(
    model: "HFModel", prefix: Prefix, length: int, suffix: Sequence[int], rows: Sequence[int]
) -> Iterator[tuple[Head, tuple[Tensor, ...]]]:
    """Whole rows of every head, a group of heads at a time."""
    for group in groups(model, len(rows) * (length + len(suffix))):
        read = RowRead((tuple(rows),), whole=group, peaks=False)
        yield from model.extend(prefix, [suffix], at=[length], read=[read]).rows[0].whole.items()


def groups(model: "HFModel", n_weights: int) -> Iterator[tuple[Head, ...]]:
    """Heads of the layers with attention, as many at a time as `MEMORY` has room for."""
    layers = set(model.spec.attention_layers)
    heads = (h for h in model.spec.heads() if h.layer in layers)
    size = max(1, MEMORY // (4 * n_weights))
    while group := tuple(islice(heads, size)):
        yield group


def _contributions(
    model: "HFModel", prefix: Prefix, context: Context, trial: Trial, rows: Sequence[int],
    keys: np.ndarray, weights: np.ndarray, seed: int,
) -> np.ndarray:  # fmt: skip
    """What each kept key writes along the answer's direction, `[layer, head, row, k]`."""
    out = np.full(keys.shape, np.nan, np.float32)
    if not model.anatomy.can_write:
        return out
    n, first = len(trial.answer), len(rows) - len(trial.answer)
    slots = [_heaviest(keys[:, :, first + i], weights[:, :, first + i]) for i in range(n)]
    width = max(map(len, slots))
    named = torch.full((n, width), -1, dtype=torch.long)
    for i, mine in enumerate(slots):
        named[i, : len(mine)] = torch.from_numpy(mine)
    suffix = (*trial.suffix, *trial.answer[:-1])
    read = RowRead(
        (tuple(rows[first:]),), keys=(named,), peaks=False,
        directions=answer_directions(model, context, [trial], seed),
    )  # fmt: skip
    toward = model.extend(prefix, [suffix], at=[trial.length], read=[read]).rows[0].toward
    assert toward is not None
    for i, mine in enumerate(slots):
        at = np.searchsorted(mine, keys[:, :, first + i]).clip(max=len(mine) - 1)
        known = mine[at] == keys[:, :, first + i]
        found = np.take_along_axis(toward[:, :, i].numpy(), at, -1)
        out[:, :, first + i] = np.where(known, found, np.nan)
    return out


def _heaviest(keys: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Distinct keys of one row over all heads, sorted; the heaviest where there are too many."""
    most = np.zeros(keys.max() + 1)
    real = keys >= 0
    np.maximum.at(most, keys[real], weights[real])
    found = np.flatnonzero(most)
    if len(found) > MOST_SLOTS:
        found = np.sort(found[np.argsort(-most[found], kind="stable")[:MOST_SLOTS]])
    return found


def _narrow(keys: np.ndarray) -> np.ndarray:
    """Positions in two bytes where they fit."""
    return keys.astype(np.int16) if keys.max() < 2**15 else keys
