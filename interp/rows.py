"""Attention rows of chosen queries, reduced where they are made.

Pure functions of queries, keys and values as an attention layer has them: after the rotary
embedding and query-key normalisation, keys and values not repeated for grouped heads. Everything
is float32; argmax takes the first index on ties, so that kernels cannot disagree.
"""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RowSummary:
    """What is kept of attention rows. Columns are those of the keys given.

    Attributes:
        argmax: column of the largest weight.
        top: that weight.
        at_keys: weight on each named column, 0 where the column is -1.
        toward: contribution through each named column along the row's direction.
        toward_all: contribution of the whole head along it.
        whole: complete rows of the heads asked for.
    """

    argmax: Int[Tensor, "head row"] | None
    top: Float[Tensor, "head row"] | None
    at_keys: Float[Tensor, "head row slot"] | None
    toward: Float[Tensor, "head row slot"] | None
    toward_all: Float[Tensor, "head row"] | None
    whole: Float[Tensor, "chosen row key"] | None


def row_logits(
    query: Float[Tensor, "head row d_head"],
    key: Float[Tensor, "kv_head key d_head"],
    *,
    scaling: float,
    visible: Bool[Tensor, "row key"],
    softcap: float | None = None,
) -> Float[Tensor, "head row key"]:
    """Attention logits of chosen rows; -inf where a key is not visible."""
    grouped = rearrange(query.float(), "(kv group) row d -> kv (group row) d", kv=key.shape[0])
    logits = torch.bmm(grouped, key.float().transpose(1, 2)).mul_(scaling)
    logits = rearrange(logits, "kv (group row) key -> (kv group) row key", row=query.shape[1])
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return logits.masked_fill_(~visible, float("-inf"))


def weights(
    logits: Float[Tensor, "head row key"], sinks: Float[Tensor, " head"] | None
) -> Float[Tensor, "head row key"]:
    """Softmax of rows; a learned sink takes its share of a row but has no column."""
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    column = sinks.float()[:, None, None].expand(*logits.shape[:2], 1)
    return torch.softmax(torch.cat([logits, column], dim=-1), dim=-1)[..., :-1]


def attend(
    logits: Float[Tensor, "head row key"],
    value: Float[Tensor, "kv_head key d_head"],
    sinks: Float[Tensor, " head"] | None = None,
) -> Float[Tensor, "head row d_head"]:
    """Output of the heads. A row with no visible key writes zero."""
    rows = weights(logits, sinks).nan_to_num(0.0)
    grouped = rearrange(rows, "(kv group) row key -> kv (group row) key", kv=value.shape[0])
    out = torch.bmm(grouped, value.float())
    return rearrange(out, "kv (group row) d -> (kv group) row d", row=logits.shape[1])


def summarise(
    logits: Float[Tensor, "head row key"],
    *,
    columns: Int[Tensor, "row slot"] | None = None,
    sinks: Float[Tensor, " head"] | None = None,
    value: Float[Tensor, "kv_head key d_head"] | None = None,
    readout: Float[Tensor, "row head d_head"] | None = None,
    z: Float[Tensor, "row head d_head"] | None = None,
    whole: tuple[int, ...] = (),
    peaks: bool = True,
) -> RowSummary:
    """Reduce rows to their argmax, to weights on named columns, and to contributions.

    `readout` is the direction of each row seen from inside each head, (W_O^h)^T d; with it,
    `toward` = weight x (value . readout) and `toward_all` = z . readout.
    """
    rows = weights(logits, sinks)
    argmax = top = at_keys = toward = toward_all = None
    if peaks:
        argmax = logits.argmax(dim=-1)
        top = rows.gather(-1, argmax[..., None])[..., 0]
    if columns is not None:
        index = columns.clamp(min=0).expand(logits.shape[0], -1, -1)
        at_keys = rows.gather(-1, index).masked_fill_(columns < 0, 0.0)
    if readout is not None and value is not None and z is not None:
        toward_all = einsum(z.float(), readout, "row head d, row head d -> head row")
        if at_keys is not None and columns is not None:
            toward = at_keys * _values_along(value, columns.clamp(min=0), readout)
    chosen = rows[list(whole)] if whole else None
    return RowSummary(argmax, top, at_keys, toward, toward_all, chosen)


def _values_along(
    value: Float[Tensor, "kv_head key d_head"],
    columns: Int[Tensor, "row slot"],
    readout: Float[Tensor, "row head d_head"],
) -> Float[Tensor, "head row slot"]:
    chosen = value.float()[:, columns]
    grouped = rearrange(readout, "row (kv group) d -> row kv group d", kv=value.shape[0])
    along = einsum(chosen, grouped, "kv row slot d, row kv group d -> kv group row slot")
    return rearrange(along, "kv group row slot -> (kv group) row slot")
