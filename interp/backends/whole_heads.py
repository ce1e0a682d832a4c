"""Edits inside the heads of one layer, written out over whole matrices.

A library shows a layer's queries, keys, values, patterns and head outputs in that order. Queries
are edited where they stand, since the library carries on with them. Keys and values are shared by
a group of query heads, so an edit of them for one head is worked out here: its new pattern, and
its new output from that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.backends.anatomy import Anatomy
from interp.backends.edits import PlacedEdit
from interp.errors import SiteError
from interp.sites import Head
from interp.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Formula:
    """What a layer's pattern depends on besides its queries and keys."""

    layer: int
    spec: ModelSpec
    scaling: float
    sinks: Tensor | None

    @classmethod
    def of(cls, anatomy: Anatomy, layer: int) -> "Formula":
        """Read off the attention module of the plain model."""
        module = anatomy.attention[layer]
        sinks = getattr(module, "sinks", None)
        scaling = float(getattr(module, "scaling", anatomy.spec.d_head**-0.5))
        return cls(layer, anatomy.spec, scaling, None if sinks is None else sinks.detach().float())

    def visible(self, n: int) -> Bool[Tensor, "query key"]:
        """Causality and the layer's window."""
        ahead = torch.arange(n)[:, None] - torch.arange(n)[None]
        return (ahead >= 0) & (ahead < (self.spec.windows[self.layer] or n))

    def pattern(
        self, query: Float[Tensor, "query d_head"], key: Float[Tensor, "key d_head"], head: int
    ) -> Float[Tensor, "query key"]:
        """The textbook formula of one head."""
        logits = self.scaling * query @ key.T
        if self.spec.softcap is not None:
            logits = self.spec.softcap * torch.tanh(logits / self.spec.softcap)
        logits = torch.where(self.visible(len(key)).to(logits.device), logits, -torch.inf)
        top = logits.amax(-1, keepdim=True)
        weights = (logits - top).exp()
        rest = 0.0 if self.sinks is None else (self.sinks[head] - top).exp()
        return weights / (weights.sum(-1, keepdim=True) + rest)


@dataclass(eq=False)
class HeadVisits:
    """One layer of one forward: what its visits saw, and what they put in its place.

    Attributes:
        placed: the layer's edits, each with its row of the batch; `index` are positions of the
            whole sequence.
        rows: of each row of the batch, the positions whose pattern is kept.
        native: the library carries on with an edited pattern.
        seen: activations by kind, after edits; of the pattern, a list of its rows that are kept,
            as they were before edits of pattern and keys.
    """

    placed: Sequence[tuple[int, PlacedEdit]]
    formula: Formula
    rows: Sequence[Sequence[int]]
    native: bool
    seen: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec = self.formula.spec
        self.groups: dict[tuple[int, int], list[PlacedEdit]] = {}
        for row, edit in self.placed:
            if edit.site.kind in ("k", "v", "pattern"):
                assert edit.site.head is not None
                self.groups.setdefault((row, edit.site.head), []).append(edit)

    def needs(self) -> set[str]:
        """Kinds that must be visited for the edits alone."""
        kinds = {edit.site.kind for _, edit in self.placed}
        out = kinds & {"q", "z", "pattern"}
        if kinds & {"k", "v"} or ("pattern" in kinds and not self.native):
            out |= {"v", "pattern", "z"}
        return out | ({"q", "k"} if "k" in kinds else set())

    def visit(self, kind: str, x: Tensor) -> Tensor:
        """Keep what is seen; return what the library is to carry on with."""
        if kind in ("q", "z"):
            x = self._recomputed(x) if kind == "z" else x
            x = self._written(kind, x)
        if kind != "pattern":
            self.seen[kind] = x.detach()
            return x
        # nothing of the size T x T stays behind
        self.seen[kind] = [own[:, rows].detach() for own, rows in zip(x, self.rows, strict=True)]
        if not self.groups:
            return x
        self.new = self._patterns(x.float())
        return self.new.to(x) if self.native else x

    def _written(self, kind: str, x: Tensor) -> Tensor:
        """Edits of whole vectors of a head: `x` `[row, pos, head, d_head]`."""
        own = [(row, e) for row, e in self.placed if e.site.kind == kind]
        x = x.clone() if own else x
        for row, edit in own:
            place = (row, edit.index, edit.site.head)
            x[place] = edit.new(x[place])
        return x

    def _patterns(self, pattern: Tensor) -> Tensor:
        new = pattern.clone()
        visible = self.formula.visible(pattern.shape[-1]).to(pattern.device)
        for (row, head), group in self.groups.items():
            if any(e.site.kind == "k" for e in group):
                new[row, head] = self._attention(pattern[row, head], row, head, group)
            edited_rows(new[row, head], group, visible, self.spec)
        return new

    def _recomputed(self, z: Tensor) -> Tensor:
        """Outputs of heads whose pattern or values the library does not know to have changed."""
        z = z.clone() if self.groups else z
        for (row, head), group in self.groups.items():
            if self.native and all(e.site.kind == "pattern" for e in group):
                continue
            reach = sorted({p for e in group for p in e.reach})
            value = self._own("v", row, head, group).float()
            z[row, reach, head] = (self.new[row, head, reach] @ value).to(z)
        return z

    def _own(self, kind: str, row: int, head: int, group: Sequence[PlacedEdit]) -> Tensor:
        """Keys or values `[pos, d_head]` of one query head, with its own edits."""
        x = self.seen[kind][row, :, self.spec.kv_head(head)].clone()
        for edit in group:
            if edit.site.kind == kind:
                x[edit.index] = edit.new(x[edit.index])
        return x

    def _attention(
        self, pattern: Tensor, row: int, head: int, group: Sequence[PlacedEdit]
    ) -> Float[Tensor, "query key"]:
        """A head's pattern under its edited keys, after the same formula has given it unedited."""
        query = self.seen["q"][row, :, head].float()
        keys = self.seen["k"][row, :, self.spec.kv_head(head)].float()
        if (self.formula.pattern(query, keys, head) - pattern).abs().max() > 1e-3:
            raise SiteError(
                f"cannot edit keys of {Head(self.formula.layer, head)} here: its pattern is not "
                "the softmax of its queries and keys as this backend sees them; load without "
                "backend="
            )
        return self.formula.pattern(query, self._own("k", row, head, group).float(), head)


def edited_rows(
    pattern: Float[Tensor, "query key"],
    group: Sequence[PlacedEdit],
    visible: Bool[Tensor, "query key"],
    spec: ModelSpec,
) -> None:
    """Write the edits of one head's pattern into it, cuts first."""
    own = [e for e in group if e.site.kind == "pattern"]
    for edit in sorted(own, key=lambda e: e.edit.op != "knockout"):
        edit.written += len(edit.index)
        for position in edit.index:
            row = pattern[position]
            if edit.edit.op == "knockout":
                pattern[position] = _without(row, edit.edit.keys or (), has_sink=spec.has_sinks)
            else:
                pattern[position] = _REPLACED[edit.edit.op](visible[position]).to(row)


def _without(row: Tensor, keys: Sequence[int], *, has_sink: bool) -> Tensor:
    """The row without some keys, the rest (with a learned sink's share) filling their place."""
    kept = row.clone()
    kept[[k for k in keys if k < len(row)]] = 0
    sink = (1 - row.sum()).clamp(min=0) if has_sink else 0.0
    return (kept / (kept.sum() + sink)).nan_to_num(0.0)


def _uniform(visible: Tensor) -> Tensor:
    return visible / visible.sum().clamp(min=1)


def _sink(visible: Tensor) -> Tensor:
    first = torch.arange(len(visible), device=visible.device) == visible.int().argmax()
    return first & visible


_REPLACED: Mapping[str, Any] = {"uniform": _uniform, "sink": _sink}
