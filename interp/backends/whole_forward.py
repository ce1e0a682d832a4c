"""One whole forward as seen from its places: what is changed there, and what is kept.

A plain object without a module in it, so that a library may carry it to where its model runs and
bring it back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from interp.backends.edits import HEAD_SITES, PlacedEdit
from interp.backends.whole_heads import HeadVisits

Place = tuple[str, int]
"""Kind and layer: a site kind, or `attn_write`, what attention adds to the residual. Activations
are `[row, pos, d_model]`; of `q` and `z` `[row, pos, head, d_head]`; of `k` and `v` the same with
key-value heads; of `pattern` `[row, head, query, key]`."""


class Placed(NamedTuple):
    """An edit in one row of the batch; its `index` are positions of the whole sequence.

    `number` counts the edits of the call; None for those that the context was read with.
    """

    row: int
    edit: PlacedEdit
    number: int | None


@dataclass(eq=False)
class WholeForward:
    """What happens at the places of one forward.

    Attributes:
        placed: all edits that have a place in it.
        heads: what happens inside the attention layers that are read or edited.
        multiplier: by what an attention output is multiplied before it joins the residual.
        places: where a library must call `visit`, in forward order within a layer.
        seen: what was there, after edits.
    """

    placed: Sequence[Placed]
    heads: dict[int, HeadVisits]
    multiplier: float
    wanted: frozenset[Place]
    seen: dict[Place, Tensor] = field(default_factory=dict)
    visited: set[Place] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.outer: dict[Place, list[Placed]] = {}
        for one in self.placed:
            if one.edit.site.kind not in HEAD_SITES:
                place = (one.edit.site.kind, one.edit.site.layer)
                self.outer.setdefault(place, []).append(one)
        outside = {p for p in self.wanted if p[0] not in HEAD_SITES} | set(self.outer)
        self.middles = {layer for kind, layer in outside if kind == "resid_mid"}
        places = {p for p in outside if p[0] != "resid_mid"}
        places |= {(kind, la) for la in self.middles for kind in ("resid_pre", "attn_write")}
        for layer, head in self.heads.items():
            own = {k for k, la in self.wanted if la == layer and k in HEAD_SITES}
            places |= {(kind, layer) for kind in own | head.needs()}
        self.places = frozenset(places)
        self.before: dict[int, Tensor] = {}

    def visit(self, kind: str, layer: int, x: Tensor) -> Tensor:
        """Keep what is at a place; return what the model is to go on with (`x` if the same)."""
        self.visited.add((kind, layer))
        if kind in HEAD_SITES:
            return self.heads[layer].visit(kind, x)
        if kind == "attn_write":
            return self._through_writer(layer, x)
        x = self._changed((kind, layer), x)
        if kind == "resid_pre" and layer in self.middles:
            self.before[layer] = x
        return x

    def _changed(self, place: Place, x: Tensor) -> Tensor:
        own = self.outer.get(place, ())
        x = x.clone() if own else x
        for row, edit, _ in own:
            x[row, edit.index] = edit.new(x[row, edit.index])
        if place in self.wanted:
            self.seen[place] = x.detach()
        return x

    def _through_writer(self, layer: int, out: Tensor) -> Tensor:
        """The middle residual is no module's output: it is the sum of two that are.

        What an edit changes goes into what attention adds, since the sum itself is out of reach.
        """
        middle = self.before[layer] + self.multiplier * out
        new = self._changed(("resid_mid", layer), middle)
        return out if new is middle else (new - self.before[layer]) / self.multiplier

    def missing(self) -> Iterable[Place]:
        """Places that the library did not reach."""
        return sorted(self.places - self.visited)

    def activations(self) -> dict[Place, Tensor]:
        """Everything that was seen."""
        inner = {(k, la): x for la, head in self.heads.items() for k, x in head.seen.items()}
        return self.seen | inner
