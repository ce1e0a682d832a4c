"""A trace as TransformerLens' `ActivationCache`, so that its own tools go on from a measurement.

The trace must hold whole sequences of one length: all positions of every suffix, all heads of a
site. `interp.trace.everything` asks for that.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from interp.backends.lens import quiet
from interp.backends.twins import evaluating
from interp.backends.versions import need
from interp.errors import SiteError
from interp.hook_names import BARE, HOOKS, hook_name
from interp.sites import Head, Site
from interp.trace import RowTrace, Trace


def activation_cache(trace: Trace, bridge: Any = None, *, batch: int = 1) -> Any:
    """The trace's activations under TransformerLens' names, `[batch, pos, ...]`.

    Args:
        bridge: the model for the cache's own methods. With it, other names of the same hook
            points are there too, the embeddings where they are all that enters layer 0, and the
            final norm's scale.
        batch: how many suffixes the trace holds.

    Raises:
        SiteError: activations of single heads, or of sequences of different lengths.
    """
    need("transformer-lens")
    with quiet():
        from transformer_lens import ActivationCache

    rotary = bridge is None or f"blocks.0.{HOOKS['q']}" in bridge.hook_dict
    named = {_named(site, rotary): _whole(site, x, batch) for site, x in trace.sites.items()}
    for rows in trace.rows:
        named |= {hook_name(Site("pattern", la)): p for la, p in _patterns(rows, batch)}
    if bridge is not None:
        named |= _embedded(named, bridge) | _final_scale(named, bridge)
        named |= _aliases(named, bridge)
    return ActivationCache(named, bridge, has_batch_dim=True)


def _named(site: Site, rotary: bool) -> str:
    if site.kind in BARE and not rotary:
        return hook_name(site, rotary=False)
    return hook_name(site)


def _whole(site: Site, x: Tensor, batch: int) -> Tensor:
    if site.head is not None:
        raise SiteError(
            f"an activation cache holds all heads of a layer; read {Site(site.kind, site.layer)} "
            f"in place of {site}"
        )
    if len(x) % batch:
        raise SiteError(
            f"{len(x)} rows of {site} are no {batch} sequences of one length; read every position "
            "of suffixes that are equally long, and give batch=, their number"
        )
    return x.unflatten(0, (batch, -1))


def _patterns(rows: RowTrace, batch: int) -> Iterator[tuple[int, Tensor]]:
    """`[batch, head, query, key]` of layers of which every head was kept whole."""
    layers = {head.layer for head in rows.whole}
    n_rows = len(rows.position)
    if n_rows % batch:
        raise SiteError(f"{n_rows} attention rows are no {batch} sequences of one length")
    width = int(rows.position.max()) + 1 if n_rows else 0
    for layer in sorted(layers):
        heads = sorted(h.head for h in rows.whole if h.layer == layer)
        if heads != list(range(len(heads))):
            raise SiteError(f"layer {layer}: rows of every head are needed for a pattern")
        out = torch.zeros(len(heads), n_rows, width)
        for head in heads:
            for i, row in enumerate(rows.whole[Head(layer, head)]):
                out[head, i, : len(row)] = row
        yield layer, out.unflatten(1, (batch, -1)).transpose(0, 1)


def _embedded(named: dict[str, Tensor], bridge: Any) -> dict[str, Tensor]:
    """Without position embeddings, the token embeddings are all that enters layer 0."""
    first = named.get(hook_name(Site("resid_pre", 0)))
    if first is None or "hook_pos_embed" in bridge.hook_dict:
        return {}
    return {"hook_embed": first}


def _final_scale(named: dict[str, Tensor], bridge: Any) -> dict[str, Tensor]:
    """By what the final norm divides, from the bridge's own norm on the trace's residual."""
    name = "ln_final.hook_scale"
    last = named.get(hook_name(Site("resid_post", bridge.cfg.n_layers - 1)))
    if last is None or name not in bridge.hook_dict:
        return {}
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: Any) -> None:  # noqa: ARG001 (TransformerLens names it)
        kept[name] = x.detach()

    with evaluating(bridge), bridge.hooks(fwd_hooks=[(name, keep)]):
        bridge.ln_final(last.to(bridge.cfg.device))
    return kept


def _aliases(named: dict[str, Tensor], bridge: Any) -> dict[str, Tensor]:
    """Other names under which the bridge knows the same hook points."""
    points = {id(bridge.hook_dict[name]): name for name in named if name in bridge.hook_dict}
    return {
        other: named[points[id(point)]]
        for other, point in bridge.hook_dict.items()
        if id(point) in points and other not in named
    }
