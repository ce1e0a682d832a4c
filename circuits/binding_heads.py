"""From the vector to heads: which heads write the pointer, and which read it.

Writing: one head's output at the last token is taken from the donor, below the layer at which the
pointer stands; what it moves of the recipient's answer is that head's part of the pointer. Reading:
the donor's vector is put in, and one head above may not look at the target tokens from the last
token (the same number of other tokens for the control); what the followed answer loses is its part
of the retrieval. Both act on one head alone, so that heads that stand in for each other are missed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from circuits.binding_labels import POINTERS, candidate_probs
from circuits.competence import Ready
from circuits.interchange import (
    Asked,
    LastToken,
    answer_ids,
    ask_groups,
    edited_logits,
    entering,
    last_token,
)
from circuits.statistics import cluster_intervals
from interp.sites import Edit, Head, Site
from interp.trace import SiteRead
from probes.binding_pairs import EntitySet

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_SETS, N_PAIRS = 6, 2
"""Entity sets, and pairs in each: every pair is run once for each head."""
FIRST_SET = 4000


@dataclass(frozen=True, eq=False)
class Pair:
    """A donor question in a recipient question.

    Attributes:
        vector: the donor's residual entering the layer, `[d_model]`.
        outputs: the donor's head outputs at the last token, by layer `[head, d_head]`.
        predicted: the recipient's groups i_P, i_L, i_R, i_N.
        targets, others: tokens of the recipient's target entities; as many of its other entities.
        ids: answer tokens of the recipient's groups.
    """

    set_index: int
    at: LastToken
    vector: Tensor
    outputs: dict[int, Tensor]
    predicted: tuple[int, int, int, int]
    targets: tuple[int, ...]
    others: tuple[int, ...]
    ids: Tensor


def find_heads(model: "HFModel", ready: Ready, layer: int, *, seed: int = 0) -> dict[str, Any]:
    """Writers below a layer and readers from it on, with intervals over entity sets.

    Returns:
        `write` and `read`: rows (layer, head, effect, low, high, change of each pointer's group in
        probability), largest effect first. Writing: probability that goes from the recipient's own
        answer to the donor's pointers, the mean of loss and gain. Reading: probability that moves
        at all (total variation, since a group may gain what another loses); `control` where the
        head may not look at as many other entities. `read_all`: all heads above at once.
        `n_pairs`, `n_sets`.
    """
    pairs = [p for k in range(N_SETS) for p in _pairs(model, ready, FIRST_SET + k, layer, seed)]
    layers = model.spec.attention_layers
    heads = [h for h in model.spec.heads() if h.layer in layers]
    below = [h for h in heads if h.layer < layer]
    above = [h for h in heads if h.layer >= layer]
    together = [[h] for h in above] + [above]
    wrote = np.stack([_written(model, pair, below) for pair in pairs])
    read = np.stack([_read(model, pair, together, pair.targets, layer) for pair in pairs])
    control = np.stack([_read(model, pair, together, pair.others, layer) for pair in pairs])
    clusters = np.array([str(p.set_index) for p in pairs])
    return {
        "write": _ranked(below, wrote, None, clusters, seed),
        "read": _ranked(above, read[:, :-1], control[:, :-1], clusters, seed),
        "read_all": {"effect": float(read[:, -1, 0].mean()),
                     "control": float(control[:, -1, 0].mean())},
        "n_pairs": len(pairs), "n_sets": N_SETS, "layer": layer,
    }  # fmt: skip


def overlap(
    found: Sequence[dict[str, Any]], retrieval: Sequence[Head], *, n_heads: int
) -> dict[str, Any]:  # noqa: E501
    """How many of the first heads of a list are among as many retrieval heads, and by chance.

    `p` is that of the hypergeometric distribution: as many or more, were the heads drawn at random
    out of all `n_heads`.
    """
    from scipy.stats import hypergeom

    k = min(len(found), len(retrieval))
    mine = {Head(r["layer"], r["head"]) for r in found[:k]}
    both = mine & set(retrieval[:k])
    return {
        "k": k, "shared": len(both), "heads": sorted(map(str, both)),
        "by_chance": k * k / n_heads,
        "p": float(hypergeom.sf(len(both) - 1, n_heads, k, k)),
    }  # fmt: skip


def _pairs(model: "HFModel", ready: Ready, index: int, layer: int, seed: int) -> list[Pair]:
    """`N_PAIRS` pairs of an entity set of the main design, spread over positions."""
    entity_set: EntitySet = ready.sampler().draw(index, ["main"], seed=seed)
    rng = np.random.default_rng([seed, index])
    donor, n = entity_set.donors[0], entity_set.n
    own = ask_groups(model, ready.writer, entity_set.matrix)
    theirs = ask_groups(model, ready.writer, donor.matrix, donor.groups)
    out = []
    for p in rng.permutation(n)[:N_PAIRS].tolist():
        i_l, i_r = donor.lexical[p], donor.reflexive[p]
        assert i_l is not None and i_r is not None  # the main design moves words, it renews none
        i_n = int(rng.choice([i for i in range(n) if i not in (p, i_l, i_r)]))
        vector, outputs = _donated(model, theirs, p, layer)
        prompt = own.prompts[i_n]
        targets = tuple(prompt.places[g, prompt.target] for g in range(n))
        other = next(k for k in range(len(ready.study.task.roles)) if k != prompt.target)
        ids = answer_ids(ready.answers, prompt.candidates)
        out.append(Pair(
            index, last_token(model, own, i_n), vector, outputs, (p, i_l, i_r, i_n), targets,
            tuple(prompt.places[g, other] for g in range(n)), ids,
        ))  # fmt: skip
    return out


def _donated(
    model: "HFModel", asked: Asked, p: int, layer: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """The donor's vector entering the layer, and its heads' outputs below, at the last token."""
    below = [i for i in model.spec.attention_layers if i < layer]
    sites = [entering(model, layer), *(Site("z", i) for i in below)]
    read = SiteRead(tuple(sites), ((-1,),))
    seen = model.extend(asked.prefix, [asked.suffix(p)], read=[read]).sites
    return seen[sites[0]][0], {i: seen[Site("z", i)][0] for i in below}


def _written(model: "HFModel", pair: Pair, heads: Sequence[Head]) -> np.ndarray:
    """`[head, 4]`: what goes from the own answer to the pointers, change at i_P, i_L, i_R."""
    edits = [
        [Edit(Site("z", h.layer, h.head), "replace", pair.outputs[h.layer][h.head], positions=(0,))]
        for h in heads
    ]
    probs = _probs(model, pair, [[], *edits])
    change = probs[1:] - probs[0]
    pointed, own = list(set(pair.predicted[:3])), pair.predicted[3]
    moved = (change[:, pointed].sum(1) - change[:, own]) / 2
    return np.column_stack([moved, change[:, pair.predicted[:3]]])


def _read(
    model: "HFModel", pair: Pair, sets: Sequence[Sequence[Head]], keys: tuple[int, ...], layer: int
) -> np.ndarray:
    """`[set, 4]`: what moves when heads may not look at `keys`, change at i_P, i_L, i_R."""
    given = Edit(entering(model, layer), "replace", pair.vector, positions=(0,))
    edits = [
        [given, *(Edit(Site("pattern", h.layer, h.head), "knockout", positions=(0,), keys=keys)
                  for h in heads)]
        for heads in sets
    ]  # fmt: skip
    probs = _probs(model, pair, [[given], *edits])
    change = probs[1:] - probs[0]
    return np.column_stack([np.abs(change).sum(1) / 2, change[:, pair.predicted[:3]]])


def _probs(model: "HFModel", pair: Pair, rows: Sequence[Sequence[Edit]]) -> np.ndarray:
    """Probabilities of the groups `[row, n]`, each row with edits of its own."""
    at = pair.at
    found = [
        row[pair.ids].float().numpy() for row in edited_logits(model, at.prefix, [at.token], rows)
    ]
    return candidate_probs(np.stack(found))


def _ranked(
    heads: Sequence[Head], effects: np.ndarray, control: np.ndarray | None, clusters: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of heads, largest mean effect first."""
    if not heads:
        return []
    sure = cluster_intervals(effects[..., 0], clusters, seed=seed)
    change = effects[..., 1:].mean(0)
    frame = pd.DataFrame({
        "layer": [h.layer for h in heads], "head": [h.head for h in heads],
        "effect": sure.mean, "low": sure.low, "high": sure.high,
    } | {name: change[:, k] for k, name in enumerate(POINTERS)})  # fmt: skip
    if control is not None:
        frame["control"] = control[..., 0].mean(0)
    return [
        {str(k): v for k, v in row.items()}
        for row in frame.sort_values("effect", ascending=False).to_dict("records")
    ]
