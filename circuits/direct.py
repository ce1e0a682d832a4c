"""Direct against total effect of a head: how much do later components make good again?

The total effect lets everything downstream recompute. The direct effect holds every later
attention and feed-forward output at its clean value, so that the head's change reaches the logits
along the residual stream alone. Where later heads repair the loss (arXiv 2307.15771, 2402.15390)
the direct effect is larger than the total one; part of the difference is the final norm, which
rescales (about 30 % there), so the direct effect is also given with the norm's scale frozen.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuits.ablations import Ablation, Material, edits_of
from circuits.case_metrics import FORCED
from circuits.interventions import forced_metrics
from interp.sites import Edit, Head, Site
from interp.trace import Prefix, SiteRead
from probes.cases import Case

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


def can_freeze(model: "HFModel") -> bool:
    """Every later contribution can be held: both parts of each layer are known."""
    return all(m is not None for m in model.anatomy.mlp)


def direct_effects(
    model: "HFModel",
    prefix: Prefix,
    case: Case,
    heads: Sequence[Head],
    *,
    how: Ablation,
    m: Material,
) -> list[dict[str, Any]]:
    """For each head of a case rebased to its answer rows: changes of logprob and logit_diff.

    `total`, `direct`: log-probability of the answer, nats. `total_diff`, `direct_diff`,
    `direct_diff_frozen`: logits, the last with the final norm's scale held (None where no final
    norm, or no counterfactual value, is known).
    """
    n, n_suffix = len(heads), len(case.suffix)
    sets = [[], *[[h] for h in heads], *[[h] for h in heads]]
    edits = edits_of(sets, how, m) + _freeze(model, prefix, case, heads)
    last = Site("resid_post", model.spec.n_layers - 1)
    read = SiteRead((last,), (tuple(range(n_suffix)),) * len(sets))
    suffixes, wanted = [case.suffix] * len(sets), [case.rows] * len(sets)
    trace = model.extend(prefix, suffixes, read=[read], edits=edits, logits=wanted)
    found = [forced_metrics(part, case) for part in trace.logits.split(len(case.rows))]
    change = np.stack(found) - found[0]
    frozen = _frozen(model, case, trace.sites[last].split(n_suffix))
    logprob, gap = FORCED.index("logprob"), FORCED.index("logit_diff")
    return [
        {
            "head": str(head),
            "needle": case.trial.needle,
            "total": change[1 + i, logprob],
            "direct": change[1 + n + i, logprob],
            "total_diff": change[1 + i, gap],
            "direct_diff": change[1 + n + i, gap],
            "direct_diff_frozen": float("nan") if frozen is None else frozen[1 + n + i],
        }
        for i, head in enumerate(heads)
    ]


def _freeze(model: "HFModel", prefix: Prefix, case: Case, heads: Sequence[Head]) -> list[Edit]:
    """Edits that hold later outputs at their clean values, in the rows of direct effects."""
    n_layers, places = model.spec.n_layers, tuple(range(len(case.suffix)))
    attention = [Site("attn_out", i) for i in model.spec.attention_layers]
    sites = (*attention, *(Site("mlp_out", i) for i in range(n_layers)))
    clean = model.extend(prefix, [case.suffix], read=[SiteRead(sites, (places,))]).sites
    out = []
    for site in sites:
        # a layer's own feed-forward part comes after its heads
        after = [
            i for i, h in enumerate(heads)
            if h.layer < site.layer or (site.kind == "mlp_out" and h.layer == site.layer)
        ]  # fmt: skip
        rows = tuple(1 + len(heads) + i for i in after)
        if rows:
            out.append(Edit(site, "replace", clean[site], rows=rows, positions=places))
    return out


def _frozen(model: "HFModel", case: Case, residuals: Sequence[Tensor]) -> np.ndarray | None:
    """Change of logit_diff in each row against the first, under the first row's norm scale."""
    norm = model.anatomy.final_norm
    if norm is None or case.differs is None or case.other is None:
        return None
    t = case.differs
    unembed = model.hf.get_output_embeddings().weight.detach()
    direction = unembed[case.answer[t]] - unembed[case.other[t]]
    folded = norm.fold(direction.float()).cpu()
    x = torch.stack([r[case.rows[t]].float() for r in residuals])
    scale = norm.scale(x[:1].to(norm.gain.device)).cpu()
    return ((x - x[:1]) @ folded / scale[0]).numpy()
