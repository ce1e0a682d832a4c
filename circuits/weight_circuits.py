"""What the weights of found heads say: do they copy, and do earlier heads feed them?

Elhage et al. 2021 ("A Mathematical Framework for Transformer Circuits"), through TransformerLens'
factored matrices. For row vectors, with the norms' gains folded in:

    copying    sum(eigenvalues) / sum(|eigenvalues|) of W_E (W_V W_O) W_U       -1 to 1
    matching   the same of W_E (W_Q W_K^T) W_E^T: is a token's key like its query?   -1 to 1
    Q, K, V    ||OV_s M|| / (||OV_s|| ||M||), M = QK_r, QK_r^T, OV_r             0 to 1
               how much of what head s writes is what head r reads as query, key or value

Each has two chance levels, since trained matrices share directions that random ones do not: random
normal matrices of the same shapes, and all other earlier heads in the sender's place. Weights say
what a head could do; whether it does is for `circuits.validate` and `circuits.find_circuit`. Rotary
embeddings and gains of query-key norms are left out, so that QK scores are those of content alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.head_sets import check_heads
from circuits.lens_heads import heads_of
from circuits.statistics import randomisation_p
from circuits.weight_result import WeightCircuits
from interp.errors import ResultError
from interp.sites import Head
from interp.store import provenance

if TYPE_CHECKING:
    from interp.backends.hf import HFModel
    from interp.backends.lens_weights import HeadWeights

MODES = ("Q", "K", "V")
N_RANDOM = 200
N_SENDERS = 10
PREVIOUS = 0.3
"""Least previous-token score of a sender that a scan proposes; the level of its role labels."""


def read_weights(
    model: "HFModel",
    heads: Any,
    *,
    senders: Any = None,
    bridge: Any = None,
    top: int = 10,
    n_random: int = N_RANDOM,
    seed: int = 0,
) -> WeightCircuits:
    """Score heads, and pairs of an earlier and a later head, by their weights.

    Args:
        heads: a `ScanResult`, or heads in any form that `circuits.read_heads` takes.
        senders: heads whose output may feed them; when None, the previous-token heads of the scan
            (score 0.3 or more, at most 10), or the earlier ones among `heads`.
        bridge: a TransformerBridge of the same weights; one is made when None.
        top: how many heads of a scan or a ranking.
        n_random: random matrices of each shape.

    Raises:
        ResultError, SiteError: no such heads. ModelError: TransformerLens cannot bridge the model.
    """
    import time

    from interp.backends.lens import boot
    from interp.backends.lens_weights import head_weights

    started = time.perf_counter()
    receivers = heads_of(heads, top=top, model=model)
    sources, notes = _senders(model, heads, senders, receivers)
    for group in (receivers, sources):
        if group:
            check_heads(group, model.spec)
    bridge = boot(model.hf, model.spec) if bridge is None else bridge
    weights = head_weights(bridge, model)
    chance = _Chance(weights, n_random, seed)
    settings = {
        "heads": [str(h) for h in receivers], "senders": [str(h) for h in sources],
        "n_random": n_random, "seed": seed,
    }  # fmt: skip
    return WeightCircuits(
        settings,
        provenance(model, seconds=time.perf_counter() - started),
        _alone(weights, [*receivers, *(h for h in sources if h not in receivers)], chance),
        _paired(model, weights, sources, receivers, chance),
        notes,
    )


def _senders(
    model: "HFModel", heads: Any, given: Any, receivers: Sequence[Head]
) -> tuple[list[Head], tuple[str, ...]]:
    if given is not None:
        return heads_of(given, top=None, model=model), ()
    roles = getattr(heads, "roles", {})
    if "previous" in roles:
        scores = np.nan_to_num(roles["previous"].mean(0))
        order = np.argsort(-scores, axis=None, kind="stable")[:N_SENDERS]
        found = [Head(*map(int, divmod(int(i), scores.shape[1]))) for i in order]
        kept = [h for h in found if scores[h.layer, h.head] >= PREVIOUS]
        if kept:
            return kept, (f"senders: {len(kept)} previous-token heads of the scan",)
        return found[:1], ("senders: no head of the scan is a previous-token head; its nearest",)
    return list(receivers), ("senders: the earlier ones among the heads given",)


class _Chance:
    """Scores of random matrices, drawn once for each shape."""

    def __init__(self, weights: "HeadWeights", n: int, seed: int) -> None:
        import torch

        from interp.backends.lens_weights import paired_composition, positive_share, random_like

        if n < 20:
            raise ResultError(f"chance levels need 20 random matrices or more, got {n}")
        generator = torch.Generator().manual_seed(seed)
        ov, other = (random_like(weights.ov, n, generator) for _ in range(2))
        qk = random_like(weights.qk, n, generator)
        pairs = {"Q": (ov, qk), "K": (ov, qk.T), "V": (ov, other)}
        self.draws = {
            "copying": positive_share(ov, weights.through),
            "matching": positive_share(qk, weights.alike),
            **{m: paired_composition(a, b) for m, (a, b) in pairs.items()},
        }

    def beside(self, name: str, value: float) -> dict[str, float]:
        """A value with its excess, the 95 % of random ones, and its p."""
        draws = self.draws[name]
        low, high = np.percentile(draws, [2.5, 97.5])
        return {
            "score": value, "chance": float(draws.mean()), "chance_low": float(low),
            "chance_high": float(high), "excess": value - float(draws.mean()),
            "p_random": randomisation_p(value, draws, tail="greater"),
        }  # fmt: skip


def _alone(weights: "HeadWeights", heads: Sequence[Head], chance: _Chance) -> list[dict[str, Any]]:
    from interp.backends.lens_weights import picked, positive_share

    found = {
        "copying": positive_share(picked(weights.ov, heads), weights.through),
        "matching": positive_share(picked(weights.qk, heads), weights.alike),
    }
    return [
        {"head": str(head), "kind": name, **chance.beside(name, float(values[i]))}
        for i, head in enumerate(heads)
        for name, values in found.items()
    ]


def _paired(
    model: "HFModel",
    weights: "HeadWeights",
    senders: Sequence[Head],
    receivers: Sequence[Head],
    chance: _Chance,
) -> list[dict[str, Any]]:
    """Every sender with every receiver above it, and how the other earlier heads do there."""
    from interp.backends.lens_weights import composition, picked, readers

    above = [h for h in receivers if any(s.layer < h.layer for s in senders)]
    if not above:
        return []
    last = max(h.layer for h in above)
    candidates = [h for h in model.spec.heads() if h.layer < last]
    table = composition(picked(weights.ov, candidates), readers(weights, above))
    table = table.reshape(len(candidates), len(MODES), len(above))
    rows = []
    for r, receiver in enumerate(above):
        earlier = [i for i, h in enumerate(candidates) if h.layer < receiver.layer]
        for m, mode in enumerate(MODES):
            scores = table[earlier, m, r]
            for sender in (s for s in senders if s.layer < receiver.layer):
                value = float(table[candidates.index(sender), m, r])
                rows.append({
                    "sender": str(sender), "receiver": str(receiver), "mode": mode,
                    **chance.beside(mode, value), "p_heads": float((scores >= value).mean()),
                    "n_earlier": len(earlier),
                })  # fmt: skip
    return rows


def direct_attribution(
    model: "HFModel",
    context: Sequence[int],
    suffix: Sequence[int],
    *,
    answer: int,
    other: int | None = None,
) -> "np.ndarray":
    """What each head adds to the logit of `answer` at the last token, `[layer, head]`, logits.

    Less the logit of `other` where it is given. The final norm's gain is folded in and its scale
    held, so that heads, feed-forward parts and embeddings add up to the logit. (TransformerLens'
    `logit_attrs` leaves the gain out, unless the bridge is in compatibility mode.)

    Raises:
        SiteError: the model's heads are not only projected, or its final norm is unknown.
    """
    from interp.trace import RowRead

    unembed = model.hf.get_output_embeddings().weight.detach().float()
    direction = unembed[answer] if other is None else unembed[answer] - unembed[other]
    prefix = model.prefill(context) if len(context) else None
    read = RowRead(((-1,),), directions=direction[None].cpu(), peaks=False)
    toward = model.extend(prefix, [list(suffix)], read=[read]).rows[0].toward_all
    assert toward is not None
    return toward[..., 0].numpy()
