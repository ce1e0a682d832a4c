"""Where every token of a packed forward stands, and which keys it may see.

Many suffixes of one prefix run as *one* sequence: first the prefix, then suffix 0, suffix 1, ...
Layers other than attention act on each token alone, so packing is exact as long as attention lets
a token see only (a) the first `crop` tokens of the prefix and (b) its own suffix up to itself.
Nothing is padded, the prefix is not copied per suffix, and one suffix may see a shorter context
than the next: one prefill of the longest context serves every shorter one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

PREFIX = -1
"""Segment number of the shared prefix."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions and segments of the queries of one forward and of all keys they meet.

    Attributes:
        q_pos, q_seg: absolute position in its own sequence, and segment, of every query.
        k_pos, k_seg: the same for every key column; prefix columns have segment -1.
        crop: how many prefix tokens each segment sees.
        starts: key column of each segment's first own token.
    """

    q_pos: Int[Tensor, " query"]
    q_seg: Int[Tensor, " query"]
    k_pos: Int[Tensor, " key"]
    k_seg: Int[Tensor, " key"]
    crop: Int[Tensor, " segment"]
    starts: Int[Tensor, " segment"]

    @property
    def plain(self) -> bool:
        """One sequence from its first token on: ordinary causal attention, no mask needed."""
        return len(self.q_pos) == len(self.k_pos) and len(self.crop) == 1

    def visible(self, queries: Int[Tensor, " row"] | None = None) -> Bool[Tensor, "row key"]:
        """Causality and segments, before any sliding window."""
        pos = self.q_pos if queries is None else self.q_pos[queries]
        seg = self.q_seg if queries is None else self.q_seg[queries]
        prefix = (self.k_seg == PREFIX) & (self.k_pos < self.crop[seg][:, None])
        own = (self.k_seg == seg[:, None]) & (self.k_pos <= pos[:, None])
        return prefix | own

    def columns(
        self, seg: Int[Tensor, " row"], pos: Int[Tensor, "row slot"]
    ) -> Int[Tensor, "row slot"]:
        """Key columns of absolute positions, as seen from each row's segment; -1 where absent."""
        seg = seg[:, None].expand_as(pos)
        own = self.starts[seg] + pos - self.crop[seg]
        column = torch.where(pos < self.crop[seg], pos, own).clamp(0, len(self.k_pos) - 1)
        home = (self.k_seg[column] == seg) | (self.k_seg[column] == PREFIX)
        return torch.where(home & (self.k_pos[column] == pos), column, torch.full_like(pos, -1))

    def to(self, device: torch.device) -> "Layout":
        """The same layout on another device."""
        if self.q_pos.device == device:
            return self
        return Layout(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))

    def grown(self, segments: Sequence[int]) -> "Layout":
        """The layout of the next forward, in which each given segment gets one more token."""
        seg = torch.tensor(segments, device=self.k_seg.device)
        pos = torch.stack([self.k_pos[self.k_seg == s].max() for s in seg]) + 1
        return replace(
            self,
            q_pos=pos,
            q_seg=seg,
            k_pos=torch.cat([self.k_pos, pos]),
            k_seg=torch.cat([self.k_seg, seg]),
        )


def sequence(start: int, stop: int, device: torch.device | str = "cpu") -> Layout:
    """Tokens `start..stop` of one plain sequence, with all earlier ones already in the cache."""
    pos = torch.arange(stop, device=device)
    zero = torch.zeros_like(pos)
    return Layout(pos[start:], zero[start:], pos, zero, zero[:1], zero[:1])


def packed(
    n_prefix: int,
    lengths: Sequence[int],
    crops: Sequence[int],
    device: torch.device | str = "cpu",
) -> Layout:
    """Suffixes of the given lengths behind a shared prefix, each seeing `crops[i]` of it."""
    pos = torch.cat([torch.arange(c, c + n) for c, n in zip(crops, lengths, strict=True)])
    seg = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    prefix = torch.arange(n_prefix)
    starts = n_prefix + torch.tensor([0, *lengths[:-1]]).cumsum(0)
    return Layout(
        pos.to(device),
        seg.to(device),
        torch.cat([prefix, pos]).to(device),
        torch.cat([torch.full_like(prefix, PREFIX), seg]).to(device),
        torch.tensor(crops, device=device),
        starts.to(device),
    )
