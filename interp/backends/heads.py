"""Edits inside an attention layer: inputs of a head, its pattern, its output.

A head whose query, keys, values or pattern are edited is computed anew, for the rows that the
edit can reach, from a copy of its own: heads that share keys and values with it never see them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interp import rows as row_math
from interp.backends.edits import INPUT_SITES, PlacedEdit
from interp.backends.session import LayerCall
from interp.layout import Layout


def edited(call: LayerCall, edits: Sequence[PlacedEdit], layout: Layout) -> Tensor:
    """Outputs `[pos, head, d_head]` of the layer's heads after its edits, in forward order."""
    if not edits:
        return call.z
    call.z = call.z.clone()
    inside: dict[int, list[PlacedEdit]] = {}
    for edit in edits:
        if edit.site.kind != "z":
            assert edit.site.head is not None
            inside.setdefault(edit.site.head, []).append(edit)
    if any(e.site.kind == "q" for group in inside.values() for e in group):
        call.query = call.query.clone()
    for head, group in inside.items():
        _recompute(call, head, group, layout)
    for edit in edits:
        if edit.site.kind == "z":
            place = (edit.index, edit.site.head)
            call.z[place] = edit.new(call.z[place])
    return call.z


def _recompute(call: LayerCall, head: int, edits: Sequence[PlacedEdit], layout: Layout) -> None:
    """Write the head's new outputs, for every row that its edits reach, into `call.z`."""
    query, key, value = _inputs(call, head, edits)
    patterns = [e for e in edits if e.site.kind == "pattern"]
    blocked = {id(e): e.blocked_columns(layout) for e in patterns if e.edit.op == "knockout"}
    device = call.query.device
    reach = torch.tensor(sorted({p for e in edits for p in e.reach}), device=device)
    sinks = None if call.sinks is None else call.sinks[head : head + 1]
    for block in call.blocks(reach, n_heads=1):
        place = {p: i for i, p in enumerate(block.tolist())}
        visible = call.visible(block)
        logits = row_math.row_logits(
            query[block][None], key[None], scaling=call.scaling, visible=visible,
            softcap=call.softcap,
        )[0]  # fmt: skip
        for edit in patterns:
            if id(edit) in blocked:
                _block(logits, edit, place, blocked[id(edit)].to(device))
        weights = row_math.weights(logits[None], sinks)[0].nan_to_num(0.0)
        for edit in patterns:
            if edit.edit.op != "knockout":
                at = [place[p] for p in edit.index if p in place]
                weights[at] = PATTERNS[edit.edit.op](visible[at])
            edit.written += sum(p in place for p in edit.index)
        call.z[block, head] = (weights @ value.float()).to(call.z)


def _inputs(
    call: LayerCall, head: int, edits: Sequence[PlacedEdit]
) -> tuple[Tensor, Tensor, Tensor]:
    """The head's own query, keys and values after edits; the query also for row reads."""
    kv = head // (call.query.shape[0] // call.key.shape[0])
    parts = {"q": call.query[head], "k": call.key[kv], "v": call.value[kv]}
    n_before = call.key.shape[1] - call.query.shape[1]
    for edit in edits:
        kind = edit.site.kind
        if kind in INPUT_SITES:
            shift = 0 if kind == "q" else n_before
            at = [p + shift for p in edit.index]
            if kind != "q":
                parts[kind] = parts[kind].clone()
            parts[kind][at] = edit.new(parts[kind][at])
    return parts["q"], parts["k"], parts["v"]


def _block(logits: Tensor, edit: PlacedEdit, place: Mapping[int, int], columns: Tensor) -> None:
    """Take the blocked keys out of the edited rows."""
    chosen = [i for i, p in enumerate(edit.index) if p in place]
    at = [place[edit.index[i]] for i in chosen]
    # unused slots point one past the end
    padded = torch.cat([logits[at], logits[at][:, :1]], dim=-1)
    logits[at] = padded.scatter(-1, columns[chosen], float("-inf"))[:, :-1]


def _uniform(visible: Tensor) -> Tensor:
    return visible.float() / visible.sum(-1, keepdim=True).clamp(min=1)


def _sink(visible: Tensor) -> Tensor:
    """All weight on the first visible key; a row without any stays empty."""
    first = torch.nn.functional.one_hot(visible.int().argmax(-1), visible.shape[-1])
    return first.float() * visible


PATTERNS = {"uniform": _uniform, "sink": _sink}
"""Patterns that replace a row, from the keys `[row, key]` that it can see."""
