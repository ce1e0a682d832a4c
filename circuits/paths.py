"""Path patching: what a sender writes, as one receiver's query, key or value sees it.

Sender ablated (its mean by position class), attention in between held at its clean value, the
receiver's q, k or v recorded; then a clean run in which that receiver alone gets the recorded
input (arXiv 2211.00593, 2304.05969). Under grouped-query attention the recorded key or value is
given to the named query head, and to no other that shares it. Feed-forward layers in between
recompute, so that a path through them counts (as in the first of the two).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from circuits.attribution import head_sites, logit_gap
from circuits.interventions import ROWS
from circuits.patch_prompts import Patchable, activations, mean_rows, run_rows
from interp.sites import Edit, Head, Site
from interp.trace import SiteRead

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Channel = Literal["q", "k", "v"]
CHANNELS: tuple[Channel, ...] = ("q", "k", "v")
Means = Mapping[Site, Mapping[str, Tensor]]


@dataclass(frozen=True, order=True)
class Sender:
    """A head, or the feed-forward part of a layer (`head` None). Prints as `L5H3` or `L5 MLP`."""

    layer: int
    head: int | None = None

    @property
    def site(self) -> Site:
        """Where it writes."""
        return (
            Site("mlp_out", self.layer) if self.head is None else Site("z", self.layer, self.head)
        )

    def __str__(self) -> str:
        return f"L{self.layer} MLP" if self.head is None else str(Head(self.layer, self.head))


@dataclass(frozen=True)
class Edge:
    """From what a sender writes to one input of a receiver."""

    sender: Sender
    receiver: Head
    channel: Channel


def reference_sites(model: "HFModel") -> list[Site]:
    """Sites whose class means a sender can be replaced by."""
    mlps = [Site("mlp_out", i) for i, m in enumerate(model.anatomy.mlp) if m is not None]
    return [*head_sites(model), *mlps]


def ablate(p: Patchable, sender: Sender, means: Means, *, rows: tuple[int, ...]) -> Edit:
    """The edit that puts a sender's class means in its place, from the needle on."""
    if sender.head is None:
        value = mean_rows(means[sender.site], p.spread.classes)
    else:
        by_class = means[Site("z", sender.layer)]
        value = mean_rows(by_class, p.spread.classes)[:, sender.head]
    return Edit(sender.site, "mean", value, rows=rows, positions=tuple(range(len(value))))


def screen_paths(
    model: "HFModel", p: Patchable, receivers: Sequence[Head], means: Means
) -> dict[Channel, dict[Sender, float]]:
    """First-order effect of ablating each earlier component on what the receivers get.

    Two backward passes a channel: the metric's gradient at the receivers' inputs, then that of the
    inputs along it. Paths of any length count, and k and v count for whole key-value groups; it
    is a screen, and the edges are measured.
    """
    layers = sorted({r.layer for r in receivers})
    tops = {c: [Site(c, layer) for layer in layers] for c in CHANNELS}
    first = model.gradients(
        p.prefix, p.spread.tokens, sites=[s for t in tops.values() for s in t],
        objective=lambda logits, _: logit_gap(p, logits), logits=p.spread.rows,
    )  # fmt: skip
    sources = [s for s in reference_sites(model) if s.layer < layers[-1]]
    out: dict[Channel, dict[Sender, float]] = {}
    for channel in CHANNELS:

        def along(_: Tensor, seen: Mapping[Site, Tensor], c: Channel = channel) -> Tensor:
            return _along(model, seen, first.grads, tops[c], receivers)

        found = model.gradients(
            p.prefix, p.spread.tokens, sites=[*sources, *tops[channel]], objective=along
        )
        out[channel] = {}
        for site in sources:
            value = mean_rows(means[site], p.spread.classes)
            change = ((value - found.activations[site]) * found.grads[site]).sum(-1).sum(0)
            if site.kind == "mlp_out":
                out[channel][Sender(site.layer)] = float(change)
            else:
                for head, x in enumerate(change.tolist()):
                    out[channel][Sender(site.layer, head)] = x
    return out


def _along(
    model: "HFModel", seen: Mapping[Site, Tensor], grads: Mapping[Site, Tensor],
    tops: Sequence[Site], receivers: Sequence[Head],
) -> Tensor:  # fmt: skip
    """The receivers' inputs, weighted by what the metric gains from them."""
    parts = []
    for site in tops:
        heads = {
            r.head if site.kind == "q" else model.spec.kv_head(r.head)
            for r in receivers if r.layer == site.layer
        }  # fmt: skip
        weight = grads[site].to(seen[site])
        parts += [(seen[site][:, h] * weight[:, h]).sum() for h in sorted(heads)]
    return torch.stack(parts).sum()


def path_effects(model: "HFModel", p: Patchable, edges: Sequence[Edge], means: Means) -> np.ndarray:
    """Change of the forced metrics `[edge, metric]` when each edge alone carries the ablation."""
    senders = sorted({e.sender for e in edges}, key=lambda s: (s.layer, s.head is None, s.head))
    inputs = sorted({(e.channel, e.receiver) for e in edges})
    sites = {(c, r): Site(c, r.layer, r.head) for c, r in inputs}
    recorded = _record(model, p, senders, tuple(sites.values()), means)
    places = tuple(range(len(p.spread.tokens)))
    edits = [
        Edit(sites[e.channel, e.receiver], "replace",
             recorded[e.sender][sites[e.channel, e.receiver]], rows=(i,), positions=places)
        for i, e in enumerate(edges)
    ]  # fmt: skip
    return run_rows(model, p, len(edges), edits) - p.original


def _record(
    model: "HFModel", p: Patchable, senders: Sequence[Sender], sites: tuple[Site, ...], means: Means
) -> dict[Sender, dict[Site, Tensor]]:
    """Inputs of receivers with each sender ablated and attention after it held clean."""
    n, highest = len(p.spread.tokens), max(s.layer for s in sites)
    held = [Site("attn_out", i) for i in model.spec.attention_layers if i < highest]
    clean = activations(model, p, held, twin=False) if held else {}
    places, out = tuple(range(n)), {}
    for start in range(0, len(senders), ROWS):
        part = senders[start : start + ROWS]
        edits = [ablate(p, s, means, rows=(i,)) for i, s in enumerate(part)]
        for site in held:
            rows = tuple(i for i, s in enumerate(part) if s.layer < site.layer)
            if rows:
                edits.append(Edit(site, "replace", clean[site], rows=rows, positions=places))
        read = SiteRead(sites, (places,) * len(part))
        seen = model.extend(p.prefix, [p.spread.tokens] * len(part), read=[read], edits=edits).sites
        for i, sender in enumerate(part):
            out[sender] = {s: seen[s][i * n : (i + 1) * n] for s in sites}
    return out


def node_effects(
    model: "HFModel", p: Patchable, nodes: Sequence[Sender], means: Means
) -> tuple[np.ndarray, np.ndarray]:
    """Total and direct effect of ablating each component: `[node, metric]` twice."""
    places = tuple(range(len(p.spread.tokens)))
    held = [s for s in _outputs(model) if any(_after(s, n) for n in nodes)]
    clean = activations(model, p, held, twin=False) if held else {}
    edits = [ablate(p, node, means, rows=(i, len(nodes) + i)) for i, node in enumerate(nodes)]
    for site in held:
        rows = tuple(len(nodes) + i for i, n in enumerate(nodes) if _after(site, n))
        edits.append(Edit(site, "replace", clean[site], rows=rows, positions=places))
    found = run_rows(model, p, 2 * len(nodes), edits) - p.original
    return found[: len(nodes)], found[len(nodes) :]


def _outputs(model: "HFModel") -> list[Site]:
    attention = [Site("attn_out", i) for i in model.spec.attention_layers]
    mlps = [Site("mlp_out", i) for i, m in enumerate(model.anatomy.mlp) if m is not None]
    return [*attention, *mlps]


def _after(site: Site, node: Sender) -> bool:
    """A layer's own feed-forward part comes after its heads."""
    own = site.kind == "mlp_out" and node.head is not None and site.layer == node.layer
    return own or site.layer > node.layer
