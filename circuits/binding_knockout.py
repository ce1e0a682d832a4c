"""Which way an answer takes: attention cut off from a layer on, vectors exchanged, tokens frozen.

Three older measurements on the prompts of `circuits.binding_run`. `knockout`: the last token may
not look at the answer's token from layer k on (Prakash et al. 2402.14811). `lookback`: the last
token's vector from another question, counted twice: does the recipient's group follow, which is a
pointer, or is the donor's word said, which is a payload (Prakash et al. 2505.14685). `freezing`:
the question's entities exchanged, and either end of the way to the last token put back.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.competence import Ready
from circuits.interchange import (
    Asked,
    answer_ids,
    ask_groups,
    edited_logits,
    entering,
    last_token,
    run_set,
)
from circuits.statistics import cluster_intervals
from interp.errors import PromptError
from interp.sites import Edit, Site
from interp.trace import SiteRead
from probes.binding_pairs import EntitySet

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

FIRST_SET = 6000
"""Index of the first entity set, far from those of the other measurements."""
N_SETS, N_PAIRS = 6, 2
DESIGNS = ("agree_all", "absent_answer")
"""Of `lookback`: pointer and payload say the same, and the payload is not in the recipient."""
FREEZES: dict[str, str] = {
    "last": "what the last token took before the layer is undone: an effect passes in it or above",
    "entities": "the entities are put back entering the layer: an effect passes below it",
}

Row = dict[str, Any]


def knockout(model: "HFModel", ready: Ready, *, seed: int = 0, n_sets: int = N_SETS) -> Row:
    """The answer, by the layer from which on the last token cannot look at its token.

    Every head from the layer on is cut off from the asked group's target token; for the control,
    from another group's. All other keys share the attention that is freed.

    Returns:
        `rows`: by `layer` (the number of layers: nothing is cut), `accuracy` and `p_answer`, the
        same as `control_accuracy` and `control_p_answer`; each `{mean, low, high, n}`. A candidate
        that ties with another is no answer. `n_sets`.
    """
    n, found, clusters = model.spec.n_layers, [], []
    rng = np.random.default_rng([seed, FIRST_SET])
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        asked, ids = questions(model, ready, draw(ready, index, seed=seed))
        for g, prompt in enumerate(asked.prompts):
            other = int(rng.choice([i for i in range(len(ids)) if i != g]))
            tokens = [prompt.places[i, prompt.target] for i in (g, other)]
            at = last_token(model, asked, g)
            edits = [e for k, t in enumerate(tokens) for e in _cut(model, t, first_row=k * n)]
            logits = model.extend(at.prefix, [[at.token]] * (2 * n + 1), edits=edits).logits
            score = scores(logits, ids, g)
            whole = score[-1:]
            ours, control = score[:n], score[n : 2 * n]
            found.append([np.concatenate([part, whole]) for part in (ours, control)])
            clusters.append(index)
    names = ("accuracy", "p_answer", "control_accuracy", "control_p_answer")
    values = np.array(found).transpose(0, 2, 1, 3).reshape(len(found), n + 1, 4)
    rows = table(values, clusters, [{"layer": k} for k in range(n + 1)], names, seed=seed)
    return {"rows": rows, "n_sets": n_sets}


def lookback(model: "HFModel", ready: Ready, *, seed: int = 0, n_sets: int = N_SETS) -> Row:
    """What the last token carries at every layer: a pointer to a group, or the word itself.

    Returns:
        `rows`: by `design` and `layer`, shares of evaluations whose largest logit is that of
        `pointer`, the recipient's group at the donor's place or with the donor's entities;
        `payload`, the donor's own word (with `agree_all` it is the pointer's); `own`, the
        recipient's own answer; `control`, as many groups to which nothing points, drawn at random.
        `n_sets`.
    """
    layers = range(model.spec.n_layers + 1)
    found: dict[tuple[str, int], list[list[float]]] = {}
    clusters: dict[tuple[str, int], list[int]] = {}
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        entity_set = ready.sampler().draw(index, DESIGNS, seed=seed)
        run = run_set(model, ready.writer, ready.answers, entity_set, layers=layers, seed=seed)
        for case, reading in zip(run.cases, run.readings, strict=True):
            key = case.design, case.layer
            pointed = {i for i in (case.i_p, case.i_l) if i is not None}
            rest = set(range(entity_set.n)) - pointed - {case.i_n}
            says = {i for i, token in enumerate(run.candidates) if token == reading.top}
            found.setdefault(key, []).append([
                len(says & pointed), reading.top == case.said, len(says & {case.i_n}),
                len(says & rest) * len(pointed) / len(rest),
            ])  # fmt: skip
            clusters.setdefault(key, []).append(index)
    names, rows = ("pointer", "payload", "own", "control"), []
    for design, layer in sorted(found):
        values = np.array(found[design, layer], float)[:, None]
        label = {"design": design, "layer": layer}
        rows += table(values, clusters[design, layer], [label], names, seed=seed)
    return {"rows": rows, "n_sets": n_sets}


def freezing(
    model: "HFModel", ready: Ready, *, seed: int = 0, n_sets: int = N_SETS, entity_layer: int = 0
) -> Row:
    """Where the last token learns of the question's entities: exchanged, then frozen on the way.

    The tokens in which two questions about one context differ take the other question's residuals
    entering a layer. In `frozen` they do so at `entity_layer`, and one end is put back to its own
    residuals entering layer `freeze_from`, as the table `FREEZES` says.

    Returns:
        `swap`: by `layer`, `moved` (the other group is answered), `p_moved` (its probability),
        `control_moved`, `control_p_moved` (a random change of the same norm at the same tokens).
        `frozen`: by `freeze` and `freeze_from`, `moved` and `p_moved`. `entity_layer`, `n_sets`.

    Raises:
        PromptError: questions that differ in their last token alone, or in length.
    """
    n, pairs, clusters = model.spec.n_layers, [], []
    ways = [(kind, f) for kind in FREEZES for f in range(entity_layer, n + 1)]
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        asked, ids = questions(model, ready, draw(ready, index, seed=seed))
        rng = np.random.default_rng([seed, index])
        for own, donor in rng.permuted(np.tile(np.arange(len(ids)), (N_PAIRS, 1)), axis=1)[:, :2]:
            rows = _exchanges(model, asked, (int(own), int(donor)), entity_layer, ways, rng)
            suffix = asked.suffix(int(own))
            logits = torch.stack(list(edited_logits(model, asked.prefix, suffix, rows)))
            pairs.append(scores(logits, ids, int(donor)))
            clusters.append(index)
    values = np.array(pairs)
    swap = np.concatenate([values[:, :n], values[:, n : 2 * n]], axis=2)
    names = ("moved", "p_moved", "control_moved", "control_p_moved")
    labels = [{"freeze": kind, "freeze_from": f} for kind, f in ways]
    return {
        "swap": table(swap, clusters, [{"layer": k} for k in range(n)], names, seed=seed),
        "frozen": table(values[:, 2 * n :], clusters, labels, names[:2], seed=seed),
        "entity_layer": entity_layer, "n_sets": n_sets,
    }  # fmt: skip


# -- what the older measurements share ----------------------------------------------------------


def draw(ready: Ready, index: int, *, seed: int) -> EntitySet:
    """An entity set without donors."""
    return ready.sampler().draw(index, (), seed=seed)


def questions(
    model: "HFModel", ready: Ready, entity_set: EntitySet
) -> tuple[Asked, Int[Tensor, " candidate"]]:
    """A context with a question about each of its groups, and the groups' answer tokens."""
    asked = ask_groups(model, ready.writer, entity_set.matrix)
    return asked, answer_ids(ready.answers, asked.prompts[0].candidates)


def scores(
    logits: Float[Tensor, "row d_vocab"], ids: Int[Tensor, " candidate"], group: int
) -> Float[np.ndarray, "row 2"]:
    """Whether a group is the only best candidate (0 or 1), and the probability of its word."""
    logits = logits.float()
    rest = torch.cat([ids[:group], ids[group + 1 :]])
    best = logits[:, ids[group]] > logits[:, rest].max(1).values
    found: np.ndarray = torch.stack([best.float(), logits.softmax(-1)[:, ids[group]]], 1).numpy()
    return found


def table(
    values: Float[np.ndarray, "trial row column"],
    clusters: Sequence[int],
    labels: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    seed: int = 0,
) -> list[Row]:
    """Rows of `{mean, low, high, n}` by name: intervals of 95 % over entity sets.

    Raises:
        ResultError: a single entity set.
    """
    flat = values.reshape(len(values), -1).astype(float)
    sure = cluster_intervals(flat, np.array([str(c) for c in clusters]), seed=seed)
    cells = [
        {"mean": float(m), "low": float(low), "high": float(high), "n": len(flat)}
        for m, low, high in zip(sure.mean, sure.low, sure.high, strict=True)
    ]
    width = len(names)
    return [
        {**label, **dict(zip(names, cells[k * width : (k + 1) * width], strict=True))}
        for k, label in enumerate(labels)
    ]


# -- helpers ------------------------------------------------------------------------------------


def _cut(model: "HFModel", token: int, *, first_row: int) -> list[Edit]:
    """Edits by which row `first_row + k` cannot look at a token from layer k on."""
    return [
        Edit(
            Site("pattern", h.layer, h.head), "knockout", positions=(0,), keys=(token,),
            rows=tuple(range(first_row, first_row + h.layer + 1)),
        )
        for h in model.spec.heads()
        if h.layer in model.spec.attention_layers
    ]  # fmt: skip


def _exchanges(
    model: "HFModel", asked: Asked, pair: tuple[int, int], entity_layer: int,
    ways: Sequence[tuple[str, int]], rng: np.random.Generator,
) -> list[list[Edit]]:  # fmt: skip
    """Edits of each row: exchanges by layer, their controls, then the frozen ways."""
    own, other = (_states(model, asked, i) for i in pair)
    places = _differing(asked.suffix(pair[0]), asked.suffix(pair[1]))
    chosen = list(places)
    change = other[:, chosen] - own[:, chosen]
    random = torch.from_numpy(rng.standard_normal(change.shape)).to(change)
    random *= change.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)

    def put(layer: int, states: Tensor, where: tuple[int, ...] = places) -> Edit:
        return Edit(entering(model, layer), "replace", states, positions=where)

    last = len(asked.suffix(pair[0])) - 1
    swap = put(entity_layer, other[entity_layer, chosen])
    undo = {
        "last": lambda f: put(f, own[f, [last]], (last,)),
        "entities": lambda f: put(f, own[f, chosen]),
    }
    layers = range(model.spec.n_layers)
    return [
        *([put(k, other[k, chosen])] for k in layers),
        *([put(k, own[k, chosen] + random[k])] for k in layers),
        *([swap, undo[kind](f)] for kind, f in ways),
    ]


def _states(model: "HFModel", asked: Asked, question: int) -> Float[Tensor, "layer pos d_model"]:
    """Residuals of a question's tokens entering every layer, and leaving the last."""
    suffix = asked.suffix(question)
    sites = [entering(model, k) for k in range(model.spec.n_layers + 1)]
    read = SiteRead(tuple(sites), (tuple(range(len(suffix))),))
    seen = model.extend(asked.prefix, [suffix], read=[read]).sites
    return torch.stack([seen[site] for site in sites])


def _differing(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Where two questions have different tokens; entities that a cue repeats are among them."""
    if len(one) != len(other):
        raise PromptError(f"questions have {len(one)} and {len(other)} tokens; they must agree")
    found = tuple(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    if not found or found[-1] == len(one) - 1:
        raise PromptError("the questions' last tokens are their entities; use another style")
    return found
