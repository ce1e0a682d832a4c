"""Row reads by hand: whole patterns of a forward, reduced in the plainest way there is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.backends.anatomy import Anatomy, projection_weight
from interp.backends.requests import RowCollector
from interp.trace import RowTrace

Seen = Mapping[tuple[str, int], Tensor]
"""Activations of one sequence by kind and layer; of a pattern, the rows that are read."""


def needs(read: RowCollector, anatomy: Anatomy) -> set[tuple[str, int]]:
    """Places that a row read has to see."""
    layers = anatomy.spec.attention_layers
    places = {("pattern", layer) for layer in layers}
    if read.read.directions is not None:
        places |= {("z", layer) for layer in layers}
        if read.read.keys is not None:
            places |= {("v", layer) for layer in layers}
        if read.read.through_final_norm:
            places.add(("resid_post", anatomy.spec.n_layers - 1))
        places |= {("attn_out", la) for la in layers if anatomy.post_norms[la] is not None}
    return places


def reduce_rows(
    read: RowCollector, suffix: int, kept: Sequence[int], at: int, seen: Seen, anatomy: Anatomy
) -> RowTrace:
    """What one row read wants of one sequence, whose suffix begins at position `at`.

    `kept` are the positions of the pattern rows in `seen`.
    """
    places = [at + p for p in read.positions[suffix]]
    index = [kept.index(p) for p in places]
    layers = anatomy.spec.attention_layers
    rows = torch.stack([seen["pattern", la][:, index].float() for la in layers]).cpu()
    fields: dict[str, Any] = {}
    if read.read.peaks:
        fields["argmax"] = rows.argmax(-1)
        fields["top"] = rows.amax(-1)
    keys = None
    if read.read.keys is not None:
        keys = torch.as_tensor(read.read.keys[suffix]).long()
        # a key behind the row's own position, or an unused slot, has no weight
        keys = torch.where(keys <= torch.tensor(places)[:, None], keys, -1)
        picked = rows.gather(-1, keys.clamp(min=0).expand(*rows.shape[:2], -1, -1))
        fields["at_keys"] = picked.masked_fill(keys < 0, 0.0)
    if read.read.directions is not None:
        start = read.offsets[suffix]
        directions = read.read.directions[start : start + len(places)].float()
        along = _toward(read, directions, places, seen, anatomy, keys)
        fields["toward_all"], values = along
        if values is not None:
            fields["toward"] = fields["at_keys"] * values
    whole = {
        head: tuple(
            seen["pattern", head.layer][head.head, i, : p + 1].float().cpu()
            for i, p in zip(index, places, strict=True)
        )
        for head in read.read.whole
    }
    return RowTrace(
        suffix=torch.full((len(places),), suffix),
        position=torch.tensor(places, dtype=torch.long),
        whole=whole,
        **fields,
    )


def _toward(
    read: RowCollector,
    directions: Float[Tensor, "row d_model"],
    places: Sequence[int],
    seen: Seen,
    anatomy: Anatomy,
    keys: Int[Tensor, "row slot"] | None,
) -> tuple[Tensor, Tensor | None]:
    """Of every head along each row's direction: its output, and the values at each named key."""
    spec = anatomy.spec
    scale = torch.full((len(places), 1), anatomy.residual_multiplier)
    if read.read.through_final_norm and anatomy.final_norm is not None:
        last = seen["resid_post", spec.n_layers - 1][places]
        directions = anatomy.final_norm.fold(directions.to(last.device)).float().cpu()
        scale = scale / anatomy.final_norm.scale(last).float().cpu()
    written, valued = [], []
    for layer in spec.attention_layers:
        inside, times = directions, scale
        norm = anatomy.post_norms[layer]
        if norm is not None:
            out = seen["attn_out", layer][places]
            inside = norm.fold(directions.to(out.device)).float().cpu()
            times = scale / norm.scale(out).float().cpu()
        weight = projection_weight(anatomy.projections[layer]).detach().float().cpu()
        # one head after the other: its output, then the residual, then the direction
        for head in range(spec.n_heads):
            w = weight[head * spec.d_head : (head + 1) * spec.d_head]
            z = seen["z", layer][places, head].float().cpu()
            written.append((z @ w * inside * times).sum(-1))
            if keys is not None:
                v = seen["v", layer][:, spec.kv_head(head)].float().cpu()
                valued.append((v[keys.clamp(min=0)] @ w * (inside * times)[:, None]).sum(-1))
    shape = (len(spec.attention_layers), spec.n_heads, len(places))
    toward_all = torch.stack(written).view(shape)
    return toward_all, torch.stack(valued).view(*shape, -1) if valued else None
