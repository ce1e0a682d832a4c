"""Attribution patching: one backward pass screens every head, exact patches confirm.

effect of replacing z by z' at a head = sum over positions of (z' - z) . d metric / d z, first order
(Nanda 2023; arXiv 2310.10348). It is a screen and no result: its candidates, and as many other
heads drawn at random, are patched exactly, and the rank agreement on both is reported.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from circuits.patch_prompts import Patchable, activations, run_rows
from interp.errors import ResultError
from interp.sites import Edit, Head, Site

if TYPE_CHECKING:
    import numpy as np

    from interp.backends.hf import HFModel


def logit_gap(p: Patchable, logits: Tensor) -> Tensor:
    """Logit of the answer minus the counterfactual's, where they first differ; `[row, vocab]`."""
    case = p.spread.case
    t = case.differs
    assert t is not None and case.other is not None, "a spread has a twin, so a counterfactual"
    return logits[t, case.answer[t]] - logits[t, case.other[t]]


def head_sites(model: "HFModel") -> list[Site]:
    """`z` of every layer that has attention."""
    return [Site("z", layer) for layer in model.spec.attention_layers]


def screen(
    model: "HFModel",
    p: Patchable,
    *,
    twin: bool = False,
    instead: Mapping[Site, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Estimated effect of patching each head, `[layer, head]`, by position class.

    Args:
        twin: start from the twin (denoising) instead of the original (noising).
        instead: what is put in, `[pos, head, d_head]` by site; the other prompt's own outputs
            when None.
    """
    sites = head_sites(model)
    start = p.spread.twin if twin else p.spread.tokens
    found = model.gradients(
        p.prefix, start, sites=sites, objective=lambda logits, _: logit_gap(p, logits),
        logits=p.spread.rows,
    )  # fmt: skip
    other = instead or activations(model, p, sites, twin=not twin)
    out = {c: torch.zeros(model.spec.n_layers, model.spec.n_heads) for c in p.spread.positions}
    for site in sites:
        change = other[site].float() - found.activations[site]
        by_place = (change * found.grads[site]).sum(-1)
        for name, positions in p.spread.positions.items():
            out[name][site.layer] = by_place[list(positions)].sum(0)
    return out


def exact(
    model: "HFModel", p: Patchable, heads: Sequence[Head], *, twin: bool = False
) -> "np.ndarray":
    """Change of the forced metrics `[head, metric]` when one head's outputs are exchanged."""
    other = activations(model, p, head_sites(model), twin=not twin)
    places = tuple(range(len(p.spread.tokens)))
    edits = [
        Edit(Site("z", h.layer, h.head), "resample", other[Site("z", h.layer)][:, h.head],
             rows=(i,), positions=places)
        for i, h in enumerate(heads)
    ]  # fmt: skip
    start = p.twin if twin else p.original
    return run_rows(model, p, len(heads), edits, twin=twin) - start


def rank_agreement(estimate: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman correlation of screen and exact effect; None where one of them is constant.

    Raises:
        ResultError: fewer than three heads.
    """
    import numpy as np
    from scipy.stats import spearmanr

    if len(estimate) < 3:
        raise ResultError(f"rank agreement needs 3 heads or more, got {len(estimate)}")
    if np.ptp(estimate) == 0 or np.ptp(measured) == 0:
        return None
    return float(spearmanr(estimate, measured).statistic)
