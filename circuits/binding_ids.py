"""Binding in the context's own tokens: do their vectors say which words belong together?

`id_swaps`: differences of group means added to entities, so that groups trade their binding IDs
(Feng and Steinhardt 2310.17191). `factorizability`: a target's residuals moved to another context
and another group, to see what binding they bring along (same paper).

All edits are made while the context is read. Unlike the papers, means are over contexts in which
every word stands in every group once (rotations), so that no word is left in a difference of means.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.binding_knockout import draw, questions, scores, table
from circuits.competence import Ready
from circuits.interchange import Asked
from interp.sites import Edit, Site
from interp.trace import SiteRead
from probes.binding_pairs import too_small
from probes.binding_prompts import BindingPrompt, Matrix

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

FIRST_MEAN, FIRST_SET = 7000, 8000
"""Index of the first entity set for means, and of those that are measured."""
N_MEANS, N_SETS, N_PAIRS = 4, 6, 2

CONDITIONS: dict[str, tuple[tuple[str, ...], bool]] = {
    "none": ((), False),
    "query": (("query",), False),
    "target": (("target",), False),
    "both": (("query", "target"), False),
    "random query": (("query",), True),
    "random target": (("target",), True),
    "random both": (("query", "target"), True),
}
"""Name: tokens of which kinds trade IDs, and whether by a random vector of the same norm."""

CELLS = (
    ("same", "donor's group"), ("same", "another"),
    ("moved", "donor's group"), ("moved", "slot's group"), ("moved", "another"),
)  # fmt: skip
"""Rows of `factorizability`: where the target went, and which group is asked for."""

Row = dict[str, Any]


def id_swaps(
    model: "HFModel", ready: Ready, *, seed: int = 0, n_means: int = N_MEANS, n_sets: int = N_SETS
) -> Row:
    """Two groups trade the binding IDs of their query entities, of their targets, or of both.

    At every layer, a token of group i becomes its own residual plus the difference of means of the
    groups j and i. One kind traded should exchange the answers, both kinds should restore them.

    Returns:
        `rows`: by `condition`, over questions about the two groups, `original` and `swapped` (the
        answer is that of the group asked for, of the other one), `p_original`, `p_swapped`; each
        `{mean, low, high, n}`. `n_contexts` of the means, `n_sets`.
    """
    means = group_means(model, ready, seed=seed, n_means=n_means)
    found, clusters = [], []
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        asked, ids = questions(model, ready, draw(ready, index, seed=seed))
        own = entity_states(model, asked.prompts[0], asked.start)
        rng = np.random.default_rng([seed, index])
        for i, j in rng.permutation(len(ids))[: 2 * N_PAIRS].reshape(-1, 2).tolist():
            change = means[:, j] - means[:, i]
            noise = as_long(change, rng)
            logits = []
            for kinds, random in CONDITIONS.values():
                roles = [r for kind in kinds for r in roles_of(ready, kind)]
                shift = noise if random else change
                edits = _trade(asked.prompts[0], own, shift, (i, j), roles)
                logits.append(edited(model, asked, edits, (i, j)))
            for k, (one, other) in enumerate(((i, j), (j, i))):
                each = torch.stack([pair[k] for pair in logits])
                found.append([scores(each, ids, one), scores(each, ids, other)])
                clusters.append(index)
    names = ("original", "p_original", "swapped", "p_swapped")
    values = np.array(found).transpose(0, 2, 1, 3)
    labels = [{"condition": name} for name in CONDITIONS]
    rows = table(values, clusters, labels, names, seed=seed)
    return {"rows": rows, "n_contexts": n_means * ready.study.n, "n_sets": n_sets}


def factorizability(model: "HFModel", ready: Ready, *, seed: int = 0, n_sets: int = 4) -> Row:
    """A target with its residuals of all layers goes into another context: does its group go along?

    The token of group k takes those of group j of a context with other words, `same` for k = j and
    `moved` for another k, drawn at random. If binding is in the token, a question about j finds
    the word in either case, and one about k does not.

    Returns:
        `same`, `moved`: mean probability of the donor's word, `[j][q]` with q the group asked for.
        `rows`: by `slot` (same, moved) and `asked` (donor's group, slot's group, another), `p` and
        the control `p_unedited`, the word's probability in the recipient as it is. `n_sets`.

    Raises:
        PromptError: no word is left that the recipient does not hold.
    """
    edited_p, clean_p, masks = [], [], []
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        asked, _ = questions(model, ready, draw(ready, index, seed=seed))
        rng = np.random.default_rng([seed, index])
        n, target = len(asked.prompts), asked.prompts[0].target
        clean = edited(model, asked, [], range(n)).softmax(-1)
        grid, control, kind = np.zeros((2, n, n)), np.zeros((n, n)), np.zeros((2, n, n), int)
        for j in range(n):
            word, states = _stranger(model, ready, asked.prompts[0], j, rng)
            away = int(rng.choice([k for k in range(n) if k != j]))
            for s, k in enumerate((j, away)):
                edits = _everywhere(asked.prompts[0].places[k, target], states)
                grid[s, j] = edited(model, asked, edits, range(n)).softmax(-1)[:, word]
                kind[s, j] = [_cell(s, j, k, q) for q in range(n)]
            control[j] = clean[:, word]
        edited_p.append(grid)
        clean_p.append(control)
        masks.append(kind)
    values = [
        [[p[kind == c].mean(), np.broadcast_to(clean, p.shape)[kind == c].mean()]
         for c in range(len(CELLS))]
        for p, clean, kind in zip(edited_p, clean_p, masks, strict=True)
    ]  # fmt: skip
    labels = [{"slot": slot, "asked": asked_for} for slot, asked_for in CELLS]
    rows = table(np.array(values), range(n_sets), labels, ("p", "p_unedited"), seed=seed)
    same, moved = np.mean(edited_p, 0).tolist()
    return {"same": same, "moved": moved, "rows": rows, "n_sets": n_sets}


# -- contexts and their states ------------------------------------------------------------------


def rotations(matrix: Matrix) -> list[Matrix]:
    """The same groups of words in every rotated order: each word is in each group once."""
    return [matrix[k:] + matrix[:k] for k in range(len(matrix))]


def group_means(
    model: "HFModel", ready: Ready, *, seed: int, n_means: int
) -> Float[Tensor, "layer group role d_model"]:
    """Mean residuals of entities over rotated contexts of entity sets."""
    states = []
    for index in range(FIRST_MEAN, FIRST_MEAN + n_means):
        for matrix in rotations(draw(ready, index, seed=seed).matrix):
            prompt = ready.writer.write(matrix, 0)
            states.append(entity_states(model, prompt, prompt.context.stop))
    return torch.stack(states).mean(0)


def entity_states(
    model: "HFModel", prompt: BindingPrompt, stop: int
) -> Float[Tensor, "layer group role d_model"]:
    """Residuals of a context's entities entering every layer; only `stop` tokens are read."""
    n_roles = len(prompt.matrix[0])
    keys = [(g, r) for g in range(len(prompt.matrix)) for r in range(n_roles)]
    sites = tuple(Site("resid_pre", k) for k in range(model.spec.n_layers))
    read = SiteRead(sites, (tuple(prompt.places[key] for key in keys),))
    trace = model.prefill(prompt.tokens[:stop], read=[read]).trace
    assert trace is not None
    states = torch.stack([trace.sites[site] for site in sites])
    return states.unflatten(1, (len(prompt.matrix), n_roles)).float()


def edited(
    model: "HFModel", asked: Asked, edits: Sequence[Edit], groups: Sequence[int]
) -> Float[Tensor, "question d_vocab"]:
    """Logits of questions about groups, the context read anew with edits."""
    prefix = model.prefill(asked.prompts[0].tokens[: asked.start], edits=edits)
    return model.extend(prefix, [asked.suffix(g) for g in groups]).logits.float()


def roles_of(ready: Ready, kind: str) -> list[int]:
    """Roles of the query entities, or the one of the targets."""
    task, question = ready.study.task, ready.study.question
    names = question.asked if kind == "query" else (question.target,)
    return [task.roles.index(r) for r in names]


def as_long(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Random vectors as long as those given; layers of one token share their direction."""
    way = torch.from_numpy(rng.standard_normal(x.shape[-2:] if x.ndim > 1 else x.shape)).to(x)
    return way / way.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)


# -- helpers ------------------------------------------------------------------------------------


def _cell(moved: int, j: int, k: int, q: int) -> int:
    """The row of `CELLS` to which a question about group q belongs."""
    asked = "donor's group" if q == j else "slot's group" if q == k else "another"
    return CELLS.index(("moved" if moved else "same", asked))


def _trade(
    prompt: BindingPrompt, own: Tensor, change: Float[Tensor, "layer role d_model"],
    pair: tuple[int, int], roles: Sequence[int],
) -> list[Edit]:  # fmt: skip
    """Edits by which the first group's tokens change by a difference, and the second's back."""
    edits: list[Edit] = []
    for role in roles:
        for group, sign in zip(pair, (1, -1), strict=True):
            states = own[:, group, role] + sign * change[:, role]
            edits += _everywhere(prompt.places[group, role], states)
    return edits


def _everywhere(place: int, states: Float[Tensor, "layer d_model"]) -> list[Edit]:
    """A token's residuals replaced entering every layer."""
    return [
        Edit(Site("resid_pre", k), "replace", value, positions=(place,))
        for k, value in enumerate(states)
    ]


def _stranger(
    model: "HFModel", ready: Ready, recipient: BindingPrompt, j: int, rng: np.random.Generator
) -> tuple[int, Float[Tensor, "layer d_model"]]:
    """Answer token and residuals of a target that the recipient does not hold, as group j."""
    target = recipient.target
    pool = ready.study.task.pools[ready.study.task.roles[target]]
    free = [w for w in pool if w not in recipient.candidates]
    if not free:
        n = ready.study.n
        raise too_small(ready.study.task, ready.study.task.roles[target], n, n + 1)
    word = free[int(rng.integers(len(free)))]
    matrix, _ = ready.sampler().words(rng)
    rows = [list(row) for row in matrix]
    held = [row[target] for row in rows]
    if word in held:  # every word stands in a context once
        rows[held.index(word)][target] = rows[j][target]
    rows[j][target] = word
    prompt = ready.writer.write(tuple(map(tuple, rows)), 0)
    states = entity_states(model, prompt, prompt.context.stop)[:, j, target]
    return ready.answers.token(word), states
