"""Edits, placed: which packed places of a forward each edit changes, and to what."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interp.backends.anatomy import Anatomy
from interp.backends.requests import Span, normalised
from interp.errors import SiteError
from interp.layout import Layout
from interp.sites import Edit, Head, Site

INPUT_SITES = ("q", "k", "v")
HEAD_SITES = (*INPUT_SITES, "pattern", "z")
RESIDUAL_SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")
"""In the order in which a forward meets them."""


class PlacedEdit:
    """One edit, with the places of the current forward that it changes."""

    def __init__(self, edit: Edit, lengths: Sequence[int], anatomy: Anatomy, *, open_end: bool):
        check_site(edit.site, anatomy, verb="edit")
        self.edit = edit
        self.site = edit.site
        self.written = 0
        self.rows: Sequence[int] = range(len(lengths)) if edit.rows is None else edit.rows
        if any(not 0 <= r < len(lengths) for r in self.rows):
            raise SiteError(f"edit at {edit.site}: rows {edit.rows} of {len(lengths)} suffixes")
        self.positions: Mapping[int, Sequence[int]] | None = None
        if edit.positions is not None:
            # while decoding, suffixes grow beyond the lengths known now
            endless = open_end and min(edit.positions, default=0) >= 0
            limits = [10**9 if endless else lengths[r] for r in self.rows]
            placed = normalised([edit.positions] * len(limits), limits, f"{edit.site}")
            self.positions = dict(zip(self.rows, placed, strict=True))
        self._check_width(anatomy)

    def _check_width(self, anatomy: Anatomy) -> None:
        value, site = self.edit.value, self.edit.site
        if value is None:
            return
        width = anatomy.spec.d_head if site.kind in HEAD_SITES else anatomy.spec.d_model
        n = None if self.edit.positions is None else len(self.edit.positions)
        fits = value.ndim == 1 or (value.ndim == 2 and n in (None, value.shape[0]))
        if value.shape[-1] != width or not fits:
            raise SiteError(
                f"edit at {site}: value has shape {tuple(value.shape)}, expected [{width}] or "
                f"[{'positions' if n is None else n}, {width}]"
            )

    def begin(self, spans: Mapping[int, Span]) -> None:
        """Find the packed places, and which row of the value belongs to each.

        `spans` gives the span of each suffix in this forward. `reach` are the queries
        whose heads' outputs the edit can change: with keys and values, all that come after too.
        """
        self.index: list[int] = []
        self.value_rows: list[int] = []
        reach: list[int] = []
        for row in self.rows:
            if row not in spans:
                continue
            span = spans[row]
            whole = range(span.begin, span.begin + span.length)
            before = len(self.index)
            for i, position in enumerate(whole if self.positions is None else self.positions[row]):
                place = span.place(position)
                if place is not None:
                    self.index.append(place)
                    self.value_rows.append(position if self.positions is None else i)
            if len(self.index) > before:
                reach += range(min(self.index[before:]), span.start + span.length)
        self.reach = reach if self.site.kind in ("k", "v") else self.index

    def new(self, old: Tensor) -> Tensor:
        """What stands at the edited places afterwards: `[place, width]`."""
        self.written += len(self.index)
        value = self.edit.value
        if value is None:
            return torch.zeros_like(old)
        value = value.to(old)
        value = value[self.value_rows] if value.ndim == 2 else value.expand_as(old)
        return old + value if self.edit.op == "add" else value

    def blocked_columns(self, layout: Layout) -> Tensor:
        """`[place, key]`: key columns to block; absent keys point one past the end."""
        keys = torch.tensor(self.edit.keys, device=layout.k_pos.device)
        columns = layout.columns(layout.q_seg[self.index], keys.expand(len(self.index), -1))
        return torch.where(columns < 0, torch.full_like(columns, len(layout.k_pos)), columns)


def check_site(site: Site, anatomy: Anatomy, *, verb: str) -> None:
    """Raise SiteError for a site that this backend or this model does not have."""
    if site.kind == "pattern" and verb == "read":
        raise SiteError("cannot read pattern here; use RowRead")
    if not 0 <= site.layer < anatomy.spec.n_layers:
        raise SiteError(f"no layer {site.layer}: layers are 0-{anatomy.spec.n_layers - 1}")
    if site.head is not None:
        anatomy.spec.check_head(Head(site.layer, site.head))
    if site.kind in (*HEAD_SITES, "attn_out") and anatomy.attention[site.layer] is None:
        raise SiteError(f"layer {site.layer} has no attention; {site.kind} is not applicable")
    if site.kind in ("mlp_in", "mlp_out") and anatomy.mlp[site.layer] is None:
        raise SiteError(f"layer {site.layer}: no feed-forward module was found")
    if site.kind == "resid_mid" and anatomy.writers[site.layer] is None:
        raise SiteError(
            f"layer {site.layer} has no residual between attention and feed-forward part (they "
            "work side by side); use resid_pre, attn_out or resid_post"
        )


def refuse_cached(edits: Sequence[Edit], what: str) -> None:
    """Keys and values of one query head cannot go into a cache that other heads share."""
    bad = [e for e in edits if e.site.kind in ("k", "v")]
    if bad:
        raise SiteError(
            f"{what} cannot edit {bad[0].site}: cached keys and values are shared by heads; "
            "let the prefix end before the place and edit it in an extend"
        )
