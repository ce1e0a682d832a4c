"""Rows that are the same below their first edit are computed once, up to there.

A hundred ablations of one prompt differ only from the first edited layer on. Their common lower
part, the stem, runs once for each distinct suffix; the packed forward then begins at the first
layer in which any of its rows differ. Exact: nothing below that layer depends on the edits.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.anatomy import Anatomy
from interp.sites import Edit
from interp.trace import Read, SiteRead


@dataclass(frozen=True, eq=False)
class Fan:
    """Which rows share a stem, and from which layer on each has to be run.

    Attributes:
        first: for each row, the first layer in which it may differ from its stem.
        stem: for each row, the row that is run for its stem.
    """

    first: tuple[int, ...]
    stem: tuple[int, ...]

    @property
    def worthwhile(self) -> bool:
        """Most rows share their stems, and some of them begin above the ground."""
        return 2 * len(set(self.stem)) <= len(self.stem) and any(self.first)


def fan(
    suffixes: Sequence[Sequence[int]],
    at: Sequence[int],
    *,
    read: Sequence[Read],
    edits: Sequence[Edit],
    n_layers: int,
) -> Fan:
    """Group rows of the same tokens; a row has to be run from where it is read or edited."""
    first = [n_layers - 1] * len(suffixes)
    for edit in edits:
        for row in range(len(suffixes)) if edit.rows is None else edit.rows:
            if 0 <= row < len(first):
                first[row] = min(first[row], edit.site.layer)
    for one in read:
        lowest = min((s.layer for s in one.sites), default=0) if isinstance(one, SiteRead) else 0
        for row, positions in enumerate(one.positions):
            if positions:
                first[row] = min(first[row], lowest)
    seen: dict[tuple, int] = {}
    stem = [seen.setdefault((a, *s), i) for i, (s, a) in enumerate(zip(suffixes, at, strict=True))]
    return Fan(tuple(max(0, f) for f in first), tuple(stem))


@contextmanager
def skipping(anatomy: Anatomy, layers: Sequence[int]) -> Iterator[None]:
    """Layers hand on what they are given, for one forward."""
    before: dict[nn.Module, Any] = {}
    try:
        for i in layers:
            layer = anatomy.layers[i]
            # another library may have put a forward of its own on the instance
            before[layer] = layer.__dict__.get("forward")
            layer.forward = _hand_on(anatomy.in_tuple[i])
        yield
    finally:
        for layer, forward in before.items():
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward


def _hand_on(in_tuple: bool) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x, None) if in_tuple else x

    return forward


class Stems:
    """Residuals entering layers, of the rows that stand for others."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = sorted(set(layers))
        self.parts: dict[tuple[int, int], Tensor] = {}

    def keep(self, layer: int, rows: Sequence[int], lengths: Mapping[int, int]) -> Any:
        """A visit that keeps what enters `layer`, cut into rows."""

        def visit(x: Tensor) -> Tensor:
            for row, part in zip(rows, x[0].split([lengths[r] for r in rows]), strict=True):
                self.parts[layer, row] = part.detach()
            return x

        return visit

    def give(self, layer: int, rows: Sequence[int]) -> Any:
        """A visit that puts the stems of `rows` in place of what enters `layer`."""

        def visit(x: Tensor) -> Tensor:
            return torch.cat([self.parts[layer, r] for r in rows])[None].to(x)

        return visit
