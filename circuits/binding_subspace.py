"""In how few directions does binding stand, at the last token and in the context?

`subspaces`: interchange within a subspace of the last token. A donor's vector h' goes into a
recipient's h only along an orthonormal basis B: h + B'B (h' - h). Bases are made from donors'
states of some entity sets and tried on others: their principal directions, and the means by the
group asked for, which hold what says a place and, since contexts are rotated, no word. Beside them
a random basis and means by shuffled groups. What is kept is compared with the whole vector's
interchange at the same layer (2505.14685).

Directions learned by gradient (`circuits.binding_das`) stand beside them, with their own control.

`ordering_steps`: steps along the one direction in which the means of the context's targets follow
the order of groups (Dai et al. 2409.05448).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.binding_das import Lesson, learned_basis
from circuits.binding_ids import as_long, edited, group_means, roles_of, rotations
from circuits.binding_knockout import draw, questions, scores, table
from circuits.competence import Ready
from circuits.interchange import LastToken, ask_groups, last_states, last_token, patched_logits
from interp.sites import Edit, Site
from probes.binding_pairs import recipients

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

FIRST_TRAIN, FIRST_SET = 9000, 10_000
"""Index of the first entity set for bases, and of those on which they are tried."""
N_TRAIN, N_SETS, N_PAIRS = 4, 6, 2
RANKS = (1, 2, 4, 8, 16, 32)
"""Ranks tried; one less than the number of groups, all that means can have, is added."""
SPAN = 2
"""Steps of an ordering to either side, where there are groups enough."""

Row = dict[str, Any]
States = Float[Tensor, "state d_model"]
Groups = Int[np.ndarray, " state"]
Make = Callable[[States, Groups, np.random.Generator], Float[Tensor, "row d_model"]]


def _principal(states: States, _groups: Groups, _rng: np.random.Generator) -> Tensor:
    return states - states.mean(0)


def _by_group(states: States, groups: Groups, _rng: np.random.Generator) -> Tensor:
    means = [states[torch.from_numpy(groups == g)].mean(0) for g in np.unique(groups)]
    return torch.stack(means) - states.mean(0)


def _shuffled(states: States, groups: Groups, rng: np.random.Generator) -> Tensor:
    return _by_group(states, rng.permutation(groups), rng)


def _random(states: States, _groups: Groups, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal((min(states.shape), states.shape[1]))).to(states)


BASES: dict[str, tuple[str, Make]] = {
    "pca": ("principal directions of the donors' vectors", _principal),
    "means": ("differences of their means by the group asked for, i_P", _by_group),
    "shuffled": ("the same with groups shuffled: a control", _shuffled),
    "random": ("random directions: a control", _random),
}
"""Name: what it is, and rows whose leading directions make the basis."""


def subspaces(
    model: "HFModel", ready: Ready, layer: int, *, seed: int = 0, n_train: int = N_TRAIN,
    n_sets: int = N_SETS, ranks: Sequence[int] = RANKS,
) -> Row:  # fmt: skip
    """What interchange within subspaces keeps of the whole one, on entity sets of their own.

    Only evaluations in which the whole interchange changes the largest logit are counted.

    Returns:
        `rows`: by `basis` (`BASES`, and `das` with `das shuffled`) and `rank`, `agreement` (the
        largest logit is that after the whole interchange) as `{mean, low, high, n}`, and `kept`:
        how much nearer to the whole one's probabilities of the groups than no interchange comes
        (1: all the way, 0: no nearer; total variation, a ratio of means); none where fewer than
        two entity sets count. `layer`, `n_states`, `n_effective` of `n` evaluations, `n_sets`.
    """
    states, groups = _training(model, ready, layer, seed, n_train)
    rng = np.random.default_rng([seed, layer])
    bases: dict[tuple[str, int], Tensor] = {}
    for name, (_, make) in BASES.items():
        rows = make(states, groups, rng)
        most = min(rows.shape) - (name in ("means", "shuffled"))  # centred rows are one fewer
        for rank in sorted({*ranks, ready.study.n - 1}):
            if rank <= most:
                bases[name, rank] = orthonormal(rows, rank)
    bases |= _learned(model, ready, layer, seed=seed, n_train=n_train)
    found, clusters, n = [], [], 0
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        for trial in _trials(model, ready, layer, list(bases.values()), index, seed):
            n += 1
            if trial is not None:
                found.append(trial)
                clusters.append(index)
    result: Row = {
        "rows": [], "layer": layer, "n_states": len(states), "n_effective": len(found), "n": n,
        "n_sets": n_sets,
    }  # fmt: skip
    if len(set(clusters)) < 2:
        return result
    labels: list[Row] = [{"basis": name, "rank": rank} for name, rank in bases]
    values = np.array(found).reshape(len(found), len(bases), 3)
    rows_out = table(values[..., :1], clusters, labels, ("agreement",), seed=seed)
    for row, (_, away, whole) in zip(rows_out, values.mean(0).tolist(), strict=True):
        row["kept"] = 1 - away / whole if whole else 0.0
    return {**result, "rows": rows_out}


def ordering_steps(
    model: "HFModel", ready: Ready, *, seed: int = 0, layer: int | None = None,
    n_means: int = N_TRAIN, n_sets: int = N_SETS,
) -> Row:  # fmt: skip
    """One group's target moves along the order of the groups: which question finds it then?

    Steps of a group's spacing along `ordering` of the targets' means are added to the residual
    that enters one layer (by default the middle one). The control takes a random direction.

    Returns:
        `rows`: by `step`, `kept` (a question about the group is answered with its word), `moved`
        (so is one about the group as many places on), `control_kept`, `control_moved`; and
        `answered`, the share of questions about the group by the place of the answer relative to
        it. `layer`, `spacing`, `explained` (share of the means' variance), `correlation` of the
        means' places with their order, `n_sets`.
    """
    layer = model.spec.n_layers // 2 if layer is None else layer
    (role,) = roles_of(ready, "target")
    means = group_means(model, ready, seed=seed, n_means=n_means)[layer, :, role]
    direction, spacing, explained, correlation = ordering(means)
    n = ready.study.n
    span = min(SPAN, (n - 1) // 2)
    steps = range(-span, span + 1)
    answered = np.zeros((len(steps), 2 * n - 1))
    found, clusters = [], []
    for index in range(FIRST_SET, FIRST_SET + n_sets):
        asked, ids = questions(model, ready, draw(ready, index, seed=seed))
        rng = np.random.default_rng([seed, index])
        other = as_long(direction, rng)
        for g in rng.permutation(np.arange(span, n - span))[:N_PAIRS].tolist():
            place = (asked.prompts[g].places[g, role],)
            rows = []
            for s, step in enumerate(steps):
                row: list[float] = []
                for way in (direction, other):
                    edit = Edit(Site("resid_pre", layer), "add", step * spacing * way,
                                positions=place)  # fmt: skip
                    logits = edited(model, asked, [edit], (g, g + step))
                    row += scores(logits, ids, g)[:, 0].tolist()
                    if way is direction:
                        answered[s, int(logits[0, ids].argmax()) - g + n - 1] += 1
                rows.append(row)
            found.append(rows)
            clusters.append(index)
    names = ("kept", "moved", "control_kept", "control_moved")
    table_rows = table(np.array(found), clusters, [{"step": s} for s in steps], names, seed=seed)
    for row_out, counts in zip(table_rows, answered, strict=True):
        offsets = {
            str(k - n + 1): c / float(counts.sum()) for k, c in enumerate(counts.tolist()) if c
        }
        row_out["answered"] = offsets
    return {
        "rows": table_rows, "layer": layer, "spacing": spacing, "explained": explained,
        "correlation": correlation, "n_sets": n_sets,
    }  # fmt: skip


def ordering(
    means: Float[Tensor, "group d_model"],
) -> tuple[Float[Tensor, " d_model"], float, float, float]:
    """Principal direction of group means, pointing to later groups; spacing; two qualities.

    Returns:
        The direction (of length 1); the slope of the means along it, a group; the share of their
        variance that it holds; the correlation of the places along it with the groups' order.
    """
    centred = (means - means.mean(0)).double()
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    order = torch.arange(len(means), dtype=torch.float64)
    order -= order.mean()
    places = u[:, 0] * s[0]
    slope = float(places @ order / (order @ order))
    size = float(places.norm() * order.norm())
    correlation = float(places @ order) / size if size else 0.0
    sign = -1.0 if slope < 0 else 1.0
    explained = float(s[0] ** 2 / (s**2).sum()) if size else 0.0
    return (sign * v[0]).to(means), abs(slope), explained, abs(correlation)


def orthonormal(rows: Float[Tensor, "row d_model"], rank: int) -> Float[Tensor, "rank d_model"]:
    """The leading directions of rows, orthonormal."""
    basis: Tensor = torch.linalg.svd(rows.double(), full_matrices=False).Vh[:rank].float()
    return basis


def within(
    basis: Float[Tensor, "rank d_model"], own: Float[Tensor, " d_model"],
    other: Float[Tensor, " d_model"],
) -> Float[Tensor, " d_model"]:  # fmt: skip
    """A vector that is another's along a basis, and its own across it."""
    return own + basis.T @ (basis @ (other - own).float()).to(own)


# -- helpers ------------------------------------------------------------------------------------


def _training(
    model: "HFModel", ready: Ready, layer: int, seed: int, n_train: int
) -> tuple[States, Groups]:
    """Last tokens' vectors of all questions about rotated contexts, and the groups they ask for."""
    found: list[Tensor] = []
    groups: list[int] = []
    for index in range(FIRST_TRAIN, FIRST_TRAIN + n_train):
        for matrix in rotations(draw(ready, index, seed=seed).matrix):
            asked = ask_groups(model, ready.writer, matrix)
            found.append(last_states(model, asked, [layer])[0].float())
            groups += range(len(matrix))
    return torch.cat(found), np.array(groups)


def _learned(
    model: "HFModel", ready: Ready, layer: int, *, seed: int, n_train: int
) -> dict[tuple[str, int], Tensor]:
    """Bases learned by gradient on the training sets, and for shuffled answers."""
    lessons: list[Lesson] = []
    for index in range(FIRST_TRAIN, FIRST_TRAIN + n_train):
        lessons += _lessons(model, ready, layer, index, seed)
    if len(lessons) < 2:
        return {}
    ranks = sorted({1, ready.study.n - 1})
    return {
        (name, rank): learned_basis(model, lessons, layer, rank, seed=seed, shuffled=shuffled)
        for name, shuffled in (("das", False), ("das shuffled", True))
        for rank in ranks
    }


def _pairs(
    model: "HFModel", ready: Ready, layer: int, index: int, seed: int
) -> Iterator[tuple[LastToken, Tensor, Tensor]]:
    """By donor question of an entity set: a recipient, the donor's vector, candidates' tokens."""
    entity_set = ready.sampler().draw(index, ["main"], seed=seed)
    donor, rng = entity_set.donors[0], np.random.default_rng([seed, index])
    own, ids = questions(model, ready, entity_set)
    theirs = ask_groups(model, ready.writer, donor.matrix, donor.groups)
    given = last_states(model, theirs, [layer])[0]
    for k, p in enumerate(donor.groups):
        (i_n,) = recipients(entity_set, donor, p, rng, n=1)
        yield last_token(model, own, i_n, [layer]), given[k], ids


def _lessons(model: "HFModel", ready: Ready, layer: int, index: int, seed: int) -> list[Lesson]:
    """Pairs of an entity set whose answer the whole interchange changes to another group."""
    out = []
    for at, given, ids in _pairs(model, ready, layer, index, seed):
        (logits,) = patched_logits(model, at, [(layer, given)])
        answer = int(logits[ids].argmax())
        if answer != int(at.logits[ids].argmax()):
            out.append(Lesson(at, at.states[layer].float(), given.float(), ids, answer))
    return out


def _trials(
    model: "HFModel", ready: Ready, layer: int, bases: Sequence[Tensor], index: int, seed: int
) -> list[np.ndarray | None]:
    """By donor question of an entity set, `[basis, 3]`: whether the largest logit agrees with the
    whole interchange, how far from it the probabilities are, and how far without any exchange.

    None where the whole interchange changes no answer.
    """
    out: list[np.ndarray | None] = []
    for at, given, ids in _pairs(model, ready, layer, index, seed):
        vectors = [given, *(within(b, at.states[layer], given) for b in bases)]
        logits = torch.stack(list(patched_logits(model, at, [(layer, v) for v in vectors])))
        top, probs = logits.argmax(-1), logits[:, ids].float().softmax(-1)
        before = at.logits[ids].float().softmax(-1)
        if top[0] == at.logits.argmax():
            out.append(None)
            continue
        away = (probs[1:] - probs[0]).abs().sum(-1) / 2
        whole = ((before - probs[0]).abs().sum() / 2).expand_as(away)
        out.append(torch.stack([(top[1:] == top[0]).float(), away, whole], 1).numpy())
    return out
