"""Edits and plain activation reads at the sites of a decoder, for one packed forward."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp import rows as row_math
from interp.backends.anatomy import Anatomy, first
from interp.backends.requests import Span, normalised
from interp.backends.session import LayerCall
from interp.errors import SiteError
from interp.sites import Edit, Head, Site
from interp.trace import SiteRead

RESIDUAL_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
EDIT_SITES = ("z", "pattern", *RESIDUAL_SITES)


class PlacedEdit:
    """One edit, with the places of the current forward that it changes."""

    def __init__(self, edit: Edit, lengths: Sequence[int], anatomy: Anatomy, *, open_end: bool):
        check_site(edit.site, anatomy, verb="edit")
        self.edit = edit
        self.written = 0
        rows = range(len(lengths)) if edit.rows is None else edit.rows
        if any(not 0 <= r < len(lengths) for r in rows):
            raise SiteError(f"edit at {edit.site}: rows {edit.rows} of {len(lengths)} suffixes")
        self.rows = set(rows)
        self.positions: list[list[int]] | None = None
        if edit.positions is not None:
            # while decoding, suffixes grow beyond the lengths known now
            limits = [10**9 if open_end and min(edit.positions) >= 0 else n for n in lengths]
            self.positions = normalised([edit.positions] * len(lengths), limits, f"{edit.site}")
        self._check_width(anatomy)

    def _check_width(self, anatomy: Anatomy) -> None:
        value, site = self.edit.value, self.edit.site
        if value is None:
            return
        width = anatomy.spec.d_head if site.kind == "z" else anatomy.spec.d_model
        n = None if self.edit.positions is None else len(self.edit.positions)
        fits = value.ndim == 1 or (value.ndim == 2 and n in (None, value.shape[0]))
        if value.shape[-1] != width or not fits:
            raise SiteError(
                f"edit at {site}: value has shape {tuple(value.shape)}, expected [{width}] or "
                f"[{'positions' if n is None else n}, {width}]"
            )

    def begin(self, spans: Sequence[Span]) -> None:
        """Find the packed places, and which row of the value belongs to each."""
        self.index: list[int] = []
        self.value_rows: list[int] = []
        self.key_segments: list[int] = []
        for segment, span in enumerate(spans):
            if span.suffix not in self.rows:
                continue
            whole = range(span.begin, span.begin + span.length)
            chosen = whole if self.positions is None else self.positions[span.suffix]
            for i, position in enumerate(chosen):
                place = span.place(position)
                if place is not None:
                    self.index.append(place)
                    self.value_rows.append(position if self.positions is None else i)
                    self.key_segments.append(segment)

    def residual(self, x: Tensor) -> Tensor:
        """The edited `[1, pos, width]` activation."""
        x = x.clone()
        x[0, self.index] = self._new(x[0, self.index])
        self.written += len(self.index)
        return x

    def head_output(self, z: Tensor) -> Tensor:
        """The edited `[pos, head, d_head]` output of the heads."""
        head = self.edit.site.head
        z = z.clone()
        z[self.index, head] = self._new(z[self.index, head])
        self.written += len(self.index)
        return z

    def _new(self, old: Tensor) -> Tensor:
        value = self.edit.value
        if value is None:
            return torch.zeros_like(old)
        value = value.to(old)
        value = value[self.value_rows] if value.ndim == 2 else value.expand_as(old)
        return old + value if self.edit.op == "add" else value

    def pattern(self, call: LayerCall, z: Tensor, columns: Tensor | None) -> Tensor:
        """Recompute the head's output under the edited pattern."""
        head = self.edit.site.head
        assert head is not None
        index = torch.tensor(self.index, device=z.device)
        kv = head // (call.query.shape[0] // call.key.shape[0])
        logits = call.logits(index)[head : head + 1]
        if self.edit.op == "uniform":
            logits = torch.where(logits.isinf(), logits, torch.zeros_like(logits))
            sinks = None
        else:
            assert columns is not None
            # unused slots point one past the end
            padded = torch.cat([logits, logits[..., :1]], dim=-1)
            padded.scatter_(-1, columns[None].to(index), float("-inf"))
            logits = padded[..., :-1]
            sinks = None if call.sinks is None else call.sinks[head : head + 1]
        z = z.clone()
        z[index, head] = row_math.attend(logits, call.value[kv : kv + 1], sinks)[0].to(z)
        self.written += len(self.index)
        return z


class SiteCollector:
    """Gathers one `SiteRead` over the forwards of a call."""

    def __init__(self, read: SiteRead, lengths: Sequence[int], anatomy: Anatomy) -> None:
        for site in read.sites:
            check_site(site, anatomy, verb="read")
        self.read = read
        self.positions = normalised(read.positions, lengths, "site read")
        self.parts: dict[Site, list[Tensor]] = {site: [] for site in read.sites}
        self.order: list[tuple[int, int]] = []

    def begin(self, spans: Sequence[Span]) -> None:
        """Find this forward's places."""
        self.index = []
        for span in spans:
            for i, position in enumerate(self.positions[span.suffix]):
                place = span.place(position)
                if place is not None:
                    self.index.append(place)
                    self.order.append((span.suffix, i))

    def take(self, site: Site, activation: Tensor) -> None:
        """Keep the rows of one site: `[pos, ...]`."""
        if self.index:
            self.parts[site].append(activation[self.index].detach().cpu())

    def result(self) -> dict[Site, Tensor]:
        """All rows, in the order asked for."""
        back = sorted(range(len(self.order)), key=lambda i: self.order[i])
        return {site: torch.cat(parts)[back] for site, parts in self.parts.items() if parts}


def check_site(site: Site, anatomy: Anatomy, *, verb: str) -> None:
    """Raise SiteError for a site that this backend or this model does not have."""
    if site.kind not in EDIT_SITES or (verb == "read" and site.kind == "pattern"):
        instead = "RowRead" if verb == "read" else ", ".join(EDIT_SITES)
        raise SiteError(f"cannot {verb} {site.kind} here; use {instead}")
    if not 0 <= site.layer < anatomy.spec.n_layers:
        raise SiteError(f"no layer {site.layer}: layers are 0-{anatomy.spec.n_layers - 1}")
    if site.head is not None:
        anatomy.spec.check_head(Head(site.layer, site.head))
    if site.kind in ("z", "pattern", "attn_out") and anatomy.attention[site.layer] is None:
        raise SiteError(f"layer {site.layer} has no attention; {site.kind} is not applicable")
    if site.kind == "mlp_out" and anatomy.mlp[site.layer] is None:
        raise SiteError(f"layer {site.layer}: no feed-forward module was found")


def _module(site: Site, anatomy: Anatomy) -> nn.Module:
    table = {"attn_out": anatomy.attention, "mlp_out": anatomy.mlp}
    module = table.get(site.kind, anatomy.layers)[site.layer]
    assert module is not None
    return module


@contextmanager
def residual_hooks(
    anatomy: Anatomy, edits: Sequence[PlacedEdit], collectors: Sequence[SiteCollector]
) -> Iterator[None]:
    """Hooks for one forward: edits first, then reads of what the edits left."""
    sites = [e.edit.site for e in edits if e.index] + [s for c in collectors for s in c.read.sites]
    wanted = dict.fromkeys(s for s in sites if s.kind in RESIDUAL_SITES)
    with ExitStack() as stack:
        for site in wanted:

            def visit(x: Tensor, site: Site = site) -> Tensor:
                for edit in edits:
                    if edit.edit.site == site and edit.index:
                        x = edit.residual(x)
                for collector in collectors:
                    if site in collector.parts:
                        collector.take(site, x[0])
                return x

            module = _module(site, anatomy)
            if site.kind == "resid_pre":
                hook = module.register_forward_pre_hook(_on_input(visit), with_kwargs=True)
            else:
                hook = module.register_forward_hook(_on_output(visit))
            stack.callback(hook.remove)
        yield


def _on_input(visit: Any) -> Any:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (visit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": visit(kwargs["hidden_states"])}

    return hook


def _on_output(visit: Any) -> Any:
    def hook(_module: nn.Module, _args: tuple, out: Any) -> Any:
        return (visit(first(out)), *out[1:]) if isinstance(out, tuple) else visit(out)

    return hook
