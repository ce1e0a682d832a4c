"""Reads and edits, compiled: from positions inside suffixes to places of one packed forward.

A `Span` says which stretch of which suffix a forward runs. Collectors gather what a read wants
from each forward and put it in the caller's order at the end; edits count what they write.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from interp import rows as row_math
from interp.backends.anatomy import Anatomy, projection_weight
from interp.backends.session import LayerCall, Session
from interp.errors import SiteError
from interp.sites import Head
from interp.trace import RowRead, RowTrace, cat_rows


@dataclass(frozen=True)
class Span:
    """Tokens `begin..begin+length` of a suffix, at `start` in the packed forward."""

    suffix: int
    begin: int
    length: int
    start: int

    def place(self, position: int) -> int | None:
        """Packed index of a position of the suffix, or None when this forward lacks it."""
        offset = position - self.begin
        return self.start + offset if 0 <= offset < self.length else None


def normalised(
    positions: Sequence[Sequence[int]], lengths: Sequence[int], what: str
) -> list[list[int]]:
    """Positions counted from the front, checked against the suffixes' lengths."""
    if len(positions) != len(lengths):
        raise SiteError(f"{what}: positions for {len(positions)} suffixes, got {len(lengths)}")
    for chosen, n in zip(positions, lengths, strict=True):
        bad = [p for p in chosen if not -n <= p < n]
        if bad:
            raise SiteError(f"{what}: position {bad[0]} is outside a suffix of {n} tokens")
    return [[p % n for p in chosen] for chosen, n in zip(positions, lengths, strict=True)]


class RowCollector:
    """Gathers one `RowRead` over the forwards of a call."""

    def __init__(self, read: RowRead, lengths: Sequence[int], anatomy: Anatomy) -> None:
        self.read = read
        self.anatomy = anatomy
        self.positions = normalised(read.positions, lengths, "row read")
        self.offsets = torch.tensor([0, *map(len, self.positions)]).cumsum(0).tolist()
        self.parts: list[RowTrace] = []
        self.order: list[int] = []
        self.layer_whole: dict[int, list[int]] = {h.layer: [] for h in read.whole}
        for head in read.whole:
            anatomy.spec.check_head(head)
            self.layer_whole[head.layer].append(head.head)
        if read.directions is not None:
            self._check_directions()

    def _check_directions(self) -> None:
        spec, anatomy = self.anatomy.spec, self.anatomy
        missing = [i for i in spec.attention_layers if anatomy.projections[i] is None]
        if missing:
            raise SiteError(
                f"contributions: layer {missing[0]} does more than project its heads' outputs "
                "(a gate, say), so they cannot be read; leave directions out"
            )
        if self.read.through_final_norm and anatomy.final_norm is None:
            raise SiteError("contributions: no final norm was found; leave directions out")

    def begin(self, spans: Sequence[Span], session: Session) -> None:
        """Find this forward's rows, key columns and directions."""
        self.index: list[int] = []
        wanted: list[int] = []
        segments: list[int] = []
        for segment, span in enumerate(spans):
            for i, position in enumerate(self.positions[span.suffix]):
                place = span.place(position)
                if place is not None:
                    self.index.append(place)
                    wanted.append(self.offsets[span.suffix] + i)
                    segments.append(segment)
        self.order += wanted
        self.found: dict[int, list[row_math.RowSummary]] = {}
        self.final_scale: Tensor | None = None
        self.post_scale: dict[int, Tensor] = {}
        assert session.layout is not None
        self.columns = None
        if self.read.keys is not None and wanted:
            keys = torch.cat([torch.as_tensor(k) for k in self.read.keys])[wanted].long()
            device = session.layout.k_pos.device
            home = session.layout.q_seg[self.index]
            self.columns = session.layout.columns(home, keys.to(device))
        self.folded = None
        if self.read.directions is not None and wanted:
            directions = self.read.directions[wanted].float()
            norm = self.anatomy.final_norm if self.read.through_final_norm else None
            self.folded = directions if norm is None else norm.fold(directions)
        self.segments = segments

    def on_layer(self, layer: int, call: LayerCall) -> None:
        """Reduce this layer's rows."""
        if not self.index:
            return
        index = torch.tensor(self.index, device=call.query.device)
        readout = self._readout(layer, call)
        start, blocks = 0, []
        for block in call.blocks(index):
            stop = start + len(block)
            blocks.append(
                row_math.summarise(
                    call.logits(block),
                    columns=None if self.columns is None else self.columns[start:stop].to(index),
                    sinks=call.sinks,
                    value=call.value,
                    readout=None if readout is None else readout[start:stop],
                    z=call.z[block],
                    whole=tuple(self.layer_whole.get(layer, ())),
                    peaks=self.read.peaks,
                )
            )
            start = stop
        self.found[layer] = blocks

    def _readout(self, layer: int, call: LayerCall) -> Tensor | None:
        """(W_O^h)^T d of every row and head, the post-attention norm's gain folded in."""
        if self.folded is None:
            return None
        module = self.anatomy.projections[layer]
        assert module is not None
        post = self.anatomy.post_norms[layer]
        directions = self.folded.to(call.z.device)
        directions = directions if post is None else post.fold(directions)
        inside = directions @ projection_weight(module).float().T
        return rearrange(inside, "row (head d) -> row head d", head=call.z.shape[1])

    def on_final_norm(self, x: Tensor) -> None:
        """Freeze the final norm's scale at the rows read."""
        if self.folded is not None and self.read.through_final_norm:
            assert self.anatomy.final_norm is not None
            self.final_scale = self.anatomy.final_norm.scale(x[0, self.index][None])[0, :, 0].cpu()

    def on_post_norm(self, layer: int, x: Tensor) -> None:
        """Freeze a post-attention norm's scale at the rows read."""
        norm = self.anatomy.post_norms[layer]
        if self.folded is not None and norm is not None:
            self.post_scale[layer] = norm.scale(x[0, self.index][None])[0, :, 0].cpu()

    def end(self, spans: Sequence[Span], session: Session) -> None:
        """Turn the forward's summaries into a row trace in absolute positions."""
        if not self.index:
            return
        layout = session.layout
        assert layout is not None
        q = torch.tensor(self.index)
        suffix = torch.tensor([spans[s].suffix for s in self.segments])
        k_pos = layout.k_pos.cpu()
        fields: dict[str, Tensor] = {}
        if self.read.peaks:
            fields["argmax"] = self._stack("argmax", lambda a: k_pos[a], -1)
            fields["top"] = self._stack("top", None, torch.nan)
        if self.columns is not None:
            fields["at_keys"] = self._stack("at_keys", None, torch.nan)
        if self.folded is not None:
            fields["toward_all"] = self._stack("toward_all", None, torch.nan, scaled=True)
            if self.columns is not None:
                fields["toward"] = self._stack("toward", None, torch.nan, scaled=True)
        whole = {h: self._whole(h, session) for h in self.read.whole}
        position = layout.q_pos.cpu()[q]
        self.parts.append(RowTrace(suffix=suffix, position=position, whole=whole, **fields))

    def _stack(
        self, name: str, change: Callable | None, absent: float, *, scaled: bool = False
    ) -> Tensor:
        layers: list[Tensor | None] = []
        for layer in range(self.anatomy.spec.n_layers):
            blocks = self.found.get(layer)
            value = None
            if blocks is not None:
                value = torch.cat([getattr(b, name) for b in blocks], dim=1).cpu()
                value = value if change is None else change(value)
                if scaled:
                    scale = self._scale(layer)
                    value = value * (scale if value.ndim == 2 else scale[:, None])
            layers.append(value)
        like = next(v for v in layers if v is not None)
        return torch.stack([torch.full_like(like, absent) if v is None else v for v in layers])

    def _scale(self, layer: int) -> Tensor:
        scale = torch.full((len(self.index),), self.anatomy.residual_multiplier)
        if self.final_scale is not None:
            scale = scale / self.final_scale
        return scale / self.post_scale[layer] if layer in self.post_scale else scale

    def _whole(self, head: Head, session: Session) -> tuple[Tensor, ...]:
        """Complete rows of one head, each over the positions of its own sequence."""
        layout = session.layout
        assert layout is not None
        slot = self.layer_whole[head.layer].index(head.head)
        weights = torch.cat([b.whole[slot] for b in self.found[head.layer]]).cpu()  # type: ignore[index]
        visible = layout.visible(torch.tensor(self.index, device=layout.q_pos.device)).cpu()
        return tuple(w[v] for w, v in zip(weights, visible, strict=True))

    def result(self) -> RowTrace:
        """All rows, in the order asked for."""
        if not self.parts:
            raise SiteError("row read: no position was asked for")
        trace = cat_rows(self.parts)
        back = torch.tensor(self.order).argsort()
        picked = {
            name: value[back] if value.ndim == 1 else value[:, :, back]
            for name in ("suffix", "position", "argmax", "top", "at_keys", "toward", "toward_all")
            if (value := getattr(trace, name)) is not None
        }
        whole = {h: tuple(r[i] for i in back.tolist()) for h, r in trace.whole.items()}
        return replace(trace, **picked, whole=whole)
