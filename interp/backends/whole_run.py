"""One call of the contract by whole forwards: its edits placed, its reads cut out afterwards."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.backends.edits import HEAD_SITES, PlacedEdit
from interp.backends.requests import RowCollector, Span
from interp.backends.residual import SiteCollector
from interp.backends.whole_forward import Place, Placed, WholeForward
from interp.backends.whole_heads import Formula, HeadVisits
from interp.backends.whole_rows import needs, reduce_rows
from interp.errors import SiteError
from interp.sites import Edit
from interp.trace import Prefix, Read, RowRead, RowTrace, Trace, cat_rows

if TYPE_CHECKING:
    from interp.backends.whole import WholeModel


class WholeRun:
    """The reads and edits of one call, and what they have gathered so far."""

    def __init__(
        self,
        model: "WholeModel",
        prefix: Prefix,
        lengths: Sequence[int],
        at: Sequence[int],
        *,
        read: Sequence[Read] = (),
        edits: Sequence[Edit] = (),
        open_end: bool = False,
    ) -> None:
        anatomy = model.anatomy
        self.model, self.prefix, self.at = model, prefix, at
        self.rows = [RowCollector(r, lengths, anatomy) for r in read if isinstance(r, RowRead)]
        others = [r for r in read if not isinstance(r, RowRead)]
        self.sites = [SiteCollector(r, lengths, anatomy) for r in others]
        self.edits = [PlacedEdit(e, lengths, anatomy, open_end=open_end) for e in edits]
        self.before = [PlacedEdit(e, [1], anatomy, open_end=True) for e in prefix.edits]
        wanted = {(s.kind, s.layer) for c in self.sites for s in c.parts}
        self.wanted: frozenset[Place] = frozenset(
            wanted.union(*(needs(r, anatomy) for r in self.rows))
        )
        self._refuse()
        self.writes = [0] * len(edits)
        self.row_parts: list[dict[int, RowTrace]] = [{} for _ in self.rows]
        self.site_parts: list[dict[int, dict]] = [{} for _ in self.sites]

    def _refuse(self) -> None:
        """Before any forward: what this library cannot show or change, and what can."""
        asked: list[tuple[str, str, int]] = [
            ("edit", e.site.kind, e.site.layer) for e in (*self.edits, *self.before)
        ]
        asked += [("read", kind, layer) for kind, layer in sorted(self.wanted)]
        for verb, kind, layer in asked:
            why = self.model.tap.refusal(kind, layer, verb=verb)
            if why is not None:
                raise SiteError(f"the {self.model.name} backend cannot {verb} {kind}: {why}")

    def forward(self, rows: Sequence[int], suffixes: Sequence[Sequence[int]]) -> Tensor:
        """Run suffixes `rows`, all of one length with their contexts: `[row, pos, d_vocab]`."""
        tokens = torch.stack([
            torch.cat([self.prefix.tokens[: self.at[i]], torch.as_tensor(s, dtype=torch.long)])
            for i, s in zip(rows, suffixes, strict=True)
        ])  # fmt: skip
        placed = self._place(rows, suffixes)
        forward = WholeForward(
            placed, self._heads(placed, rows), self.model.anatomy.residual_multiplier, self.wanted
        )
        logits, forward = self.model.tap.run(tokens.to(self.model.device), forward)
        for kind, layer in forward.missing():
            raise SiteError(
                f"the {self.model.name} backend never reached {kind} of layer {layer}: nothing was "
                "read or edited there; load the same object without backend="
            )
        for one in forward.placed:
            if one.number is not None:
                self.writes[one.number] += one.edit.written
        seen = forward.activations()
        for b, i in enumerate(rows):
            self._take(i, {place: x[b] for place, x in seen.items()})
        return logits.float().cpu()

    def _place(self, rows: Sequence[int], suffixes: Sequence[Sequence[int]]) -> list[Placed]:
        """Every edit that has a place in this forward."""
        found = []
        for b, (i, suffix) in enumerate(zip(rows, suffixes, strict=True)):
            start = self.at[i]
            context, own = {0: Span(0, 0, start, 0)}, {i: Span(i, 0, len(suffix), start)}
            pairs = [(None, e, context) for e in self.before]
            pairs += [(k, e, own) for k, e in enumerate(self.edits)]  # type: ignore[misc]
            for number, edit, spans in pairs:
                mine = copy.copy(edit)
                mine.written = 0
                mine.begin(spans)
                if mine.index:
                    found.append(Placed(b, mine, number))
        return found

    def _kept(self, i: int) -> list[int]:
        """Positions of a sequence whose attention rows are read."""
        return sorted({self.at[i] + p for r in self.rows for p in r.positions[i]})

    def _heads(self, placed: Sequence[Placed], rows: Sequence[int]) -> dict[int, HeadVisits]:
        """What happens inside the attention layers that are read or edited."""
        anatomy = self.model.anatomy
        inner = [(p.row, p.edit) for p in placed if p.edit.site.kind in HEAD_SITES]
        layers = {layer for kind, layer in self.wanted if kind in HEAD_SITES}
        native = "pattern" in self.model.tap.writes
        kept = [self._kept(i) for i in rows]
        return {
            layer: HeadVisits(
                [p for p in inner if p[1].site.layer == layer],
                Formula.of(anatomy, layer),
                kept,
                native=native,
            )
            for layer in layers | {edit.site.layer for _, edit in inner}
        }

    def _take(self, i: int, seen: Mapping[Place, Tensor]) -> None:
        """Cut what the reads want out of the activations of one sequence."""
        for parts, rows in zip(self.row_parts, self.rows, strict=True):
            if rows.positions[i]:
                parts[i] = reduce_rows(rows, i, self._kept(i), self.at[i], seen, self.model.anatomy)
        for kept, sites in zip(self.site_parts, self.sites, strict=True):
            places = [self.at[i] + p for p in sites.positions[i]]
            kept[i] = {}
            for site in sites.parts:
                x = seen[site.kind, site.layer][places]
                if site.head is not None:
                    shared = site.kind in ("k", "v")
                    x = x[:, self.model.spec.kv_head(site.head) if shared else site.head]
                kept[i][site] = x.cpu()

    def trace(self, logits: Tensor) -> Trace:
        """Everything gathered; an edit that changed nothing is an error, not a result."""
        for edit, written in zip(self.edits, self.writes, strict=True):
            if written == 0:
                raise SiteError(f"the edit {edit.edit.op} at {edit.site} changed nothing")
        if not all(self.row_parts):
            raise SiteError("row read: no position was asked for")
        rows = tuple(cat_rows([parts[i] for i in sorted(parts)]) for parts in self.row_parts)
        sites = {
            site: torch.cat([parts[i][site] for i in sorted(parts)])
            for parts, read in zip(self.site_parts, self.sites, strict=True)
            for site in read.parts
        }
        return Trace(logits, rows, sites, tuple(self.writes))
