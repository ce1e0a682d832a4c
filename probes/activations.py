"""Activations of a text at some sites, window by window, from one forward for all of them.

What a dictionary of sparse features is trained on, and what it is applied to. Windows stand alone
(`extend` without a prefix), layers above the deepest site are not run, no logits are made.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import ModelError, UnknownNameError
from interp.sites import Site
from interp.trace import SiteRead

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

BOS = {
    "auto": "in front of each window if the tokenizer itself would put it in front of a text",
    "always": "in front of each window",
    "never": "nowhere",
}
"""What is done about a token that begins a sequence."""


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


def beginning(tokenizer: Any, how: str) -> int | None:
    """The token in front of every window, or None.

    Raises:
        UnknownNameError: no such way. ModelError: `always`, and the tokenizer has none.
    """
    if how not in BOS:
        raise UnknownNameError("way to begin", how, BOS)
    bos = tokenizer.bos_token_id
    if how == "always" and bos is None:
        raise ModelError("the tokenizer has no token that begins a sequence; use bos 'never'")
    if how == "always":
        return int(bos)
    adds = how == "auto" and bos is not None and tokenizer("a").input_ids[:1] == [bos]
    return int(bos) if adds else None


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
