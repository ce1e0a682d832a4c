"""Activations of a text at some sites, window by window, from one forward for all of them.

What a dictionary of sparse features is trained on, and what it is applied to. Windows stand alone
(`extend` without a prefix), layers above the deepest site are not run, no logits are made.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError
from interp.sites import Site
from interp.trace import SiteRead

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Item = TypeVar("Item")

TOGETHER = 8
"""Windows that are handed to the model at a time."""


def site_activations(
    model: "HFModel", windows: Sequence[Sequence[int]], sites: Sequence[Site], *, skip_first: int
) -> dict[Site, Float[Tensor, "row width"]]:
    """Activations at every position of every window but its first `skip_first`, in order.

    First positions are attention sinks with activations many times the ordinary (arXiv
    2402.17762, 2309.17453): left in, they would own features of their own.
    """
    positions = tuple(tuple(range(min(skip_first, len(w)), len(w))) for w in windows)
    if not any(positions):
        return {site: torch.empty(0, model.spec.d_model) for site in sites}
    used = [i for i, p in enumerate(positions) if p]
    trace = model.extend(
        None,
        [list(windows[i]) for i in used],
        read=[SiteRead(tuple(sites), tuple(positions[i] for i in used))],
        logits=[()] * len(used),
    )
    return {site: trace.sites[site].float() for site in sites}


def batches(windows: Iterable[Item]) -> Iterator[list[Item]]:
    """Windows in the groups in which the model reads them."""
    rest = iter(windows)
    while group := list(itertools.islice(rest, TOGETHER)):
        yield group


def sites_at(model: "HFModel", kind: str, layers: Sequence[int]) -> list[Site]:
    """A site of each layer.

    Raises:
        SiteError: a layer that the model does not have, or no such kind of site.
    """
    n_layers = model.spec.n_layers
    bad = [layer for layer in layers if not 0 <= layer < n_layers]
    if bad:
        raise SiteError(f"no layer {bad[0]}: layers are 0-{n_layers - 1}; name others with --layer")
    return [Site(kind, layer) for layer in layers]  # type: ignore[arg-type]


def shuffled_weights(model: "HFModel", *, seed: int) -> "HFModel":
    """The same model with the entries of every weight matrix of its layers in random order.

    The control of arXiv 2501.17727: sizes of weights, norms and embeddings are kept, everything
    that was learned in between is not. A copy; the model itself is untouched.
    """
    import copy
    from dataclasses import replace

    from interp.backends.hf import HFModel

    hf = copy.deepcopy(model.hf)
    generator = torch.Generator().manual_seed(seed)
    wrapped = HFModel(hf, model.tokenizer)
    with torch.no_grad():
        for layer in wrapped.anatomy.layers:
            for weight in layer.parameters():
                if weight.ndim > 1:
                    order = torch.randperm(weight.numel(), generator=generator)
                    weight.copy_(weight.flatten()[order.to(weight.device)].view_as(weight))
    wrapped.source = replace(
        model.source, name=f"{model.source.name} (weights shuffled)", weight_hash=None,
        detail=f"{model.source.detail}; entries of every matrix in random order, seed {seed}",
    )  # fmt: skip
    return wrapped
