"""Reads and edits of the residual stream and of what is added to it, by hooks for one forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.anatomy import Anatomy, first
from interp.backends.edits import RESIDUAL_SITES, PlacedEdit, check_site
from interp.backends.requests import Span, normalised
from interp.backends.session import LayerCall
from interp.sites import Site
from interp.trace import SiteRead

Visit = Callable[[Tensor], Tensor]


class SiteCollector:
    """Gathers one `SiteRead` over the forwards of a call."""

    def __init__(self, read: SiteRead, lengths: Sequence[int], anatomy: Anatomy) -> None:
        for site in read.sites:
            check_site(site, anatomy, verb="read")
        self.read = read
        self.n_groups = anatomy.spec.n_groups
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

    def take_heads(self, layer: int, call: LayerCall) -> None:
        """Keep what was asked of an attention layer's heads."""
        n_new = call.query.shape[1]
        for site in self.parts:
            if site.layer != layer or site.kind in RESIDUAL_SITES:
                continue
            shared = site.kind in ("k", "v")
            whole = {"z": call.z, "q": call.query.transpose(0, 1)}.get(site.kind)
            if whole is None:
                source = call.key if site.kind == "k" else call.value
                whole = source[:, source.shape[1] - n_new :].transpose(0, 1)
            head = site.head if not shared or site.head is None else site.head // self.n_groups
            self.take(site, whole if head is None else whole[:, head])

    def result(self) -> dict[Site, Tensor]:
        """All rows, in the order asked for."""
        back = sorted(range(len(self.order)), key=lambda i: self.order[i])
        return {site: torch.cat(parts)[back] for site, parts in self.parts.items() if parts}


@contextmanager
def residual_hooks(
    anatomy: Anatomy, edits: Sequence[PlacedEdit], collectors: Sequence[SiteCollector]
) -> Iterator[None]:
    """Hooks for one forward: edits first, then reads of what the edits left."""
    wanted: dict[Site, list[Visit]] = {}
    for edit in edits:
        if edit.index and edit.site.kind in RESIDUAL_SITES:
            wanted.setdefault(edit.site, []).append(_edit(edit))
    for collector in collectors:
        for site in collector.parts:
            if site.kind in RESIDUAL_SITES:
                wanted.setdefault(site, []).append(_keep(collector, site))
    with visiting(anatomy, wanted):
        yield


def _edit(edit: PlacedEdit) -> Visit:
    def visit(x: Tensor) -> Tensor:
        x = x.clone()
        x[0, edit.index] = edit.new(x[0, edit.index])
        return x

    return visit


def _keep(collector: SiteCollector, site: Site) -> Visit:
    def visit(x: Tensor) -> Tensor:
        collector.take(site, x[0])
        return x

    return visit


@contextmanager
def visiting(anatomy: Anatomy, visits: Mapping[Site, Sequence[Visit]]) -> Iterator[None]:
    """Let each site's visits see, and change, its activation `[1, pos, d_model]`."""
    with ExitStack() as stack:
        for site in sorted(visits, key=lambda s: (s.layer, RESIDUAL_SITES.index(s.kind))):
            for hook in _hooks(anatomy, site, _chain(visits[site])):
                stack.callback(hook.remove)
        yield


def _chain(visits: Sequence[Visit]) -> Visit:
    def visit(x: Tensor) -> Tensor:
        for each in visits:
            x = each(x)
        return x

    return visit


def _hooks(anatomy: Anatomy, site: Site, visit: Visit) -> list[Any]:
    layer = anatomy.layers[site.layer]
    if site.kind == "resid_pre":
        return [layer.register_forward_pre_hook(_on_input(visit), with_kwargs=True)]
    if site.kind == "resid_mid":
        return _middle_hooks(layer, anatomy.writers[site.layer], anatomy, visit)
    if site.kind == "mlp_in":
        mlp = anatomy.mlp[site.layer]
        assert mlp is not None
        return [mlp.register_forward_pre_hook(_on_input(visit), with_kwargs=True)]
    table = {"attn_out": anatomy.attention, "mlp_out": anatomy.mlp}
    module = table.get(site.kind, anatomy.layers)[site.layer]
    assert module is not None
    return [module.register_forward_hook(_on_output(visit))]


def _middle_hooks(
    layer: nn.Module, writer: nn.Module | None, anatomy: Anatomy, visit: Visit
) -> list[Any]:
    """The residual between attention and feed-forward is no module's output: it is made here.

    What the visit changes goes into the writer's output, since the sum itself is out of reach.
    """
    assert writer is not None
    before: list[Tensor] = []
    times = anatomy.residual_multiplier

    def remember(x: Tensor) -> Tensor:
        before[:] = [x]
        return x

    def change(out: Tensor) -> Tensor:
        middle = before[0] + times * out
        new = visit(middle)
        return out if new is middle else (new - before[0]) / times

    return [
        layer.register_forward_pre_hook(_on_input(remember), with_kwargs=True),
        writer.register_forward_hook(_on_output(change)),
    ]


def _on_input(visit: Visit) -> Any:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if args:
            return (visit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": visit(kwargs["hidden_states"])}

    return hook


def _on_output(visit: Visit) -> Any:
    def hook(_module: nn.Module, _args: tuple, out: Any) -> Any:
        return (visit(first(out)), *out[1:]) if isinstance(out, tuple) else visit(out)

    return hook
