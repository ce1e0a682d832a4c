"""Mixing inside prompts against switching between prompts, on worlds with the same averages."""

import numpy as np
import pytest

from circuits.case_level import (
    COMPONENTS,
    _entropies,
    locate,
    responsibilities,
)
from circuits.mixture import MixtureFit, fit_mixture
from circuits.outcomes import Outcomes, blend_of_entropy, cell_means, entropy
from interp.errors import ResultError, UnknownNameError

N = 8


def truth(**changes):
    gates = tuple(np.random.default_rng(0).uniform(2, 5, N))
    values = {
        "variant": "full", "kernel": "peak", "n": N, "w_pos": 5.0, "alpha": -4.0, "beta": 4.0,
        "gamma": 0.6, "w_lex": gates, "w_ref": gates[::-1],
    }  # fmt: skip
    return MixtureFit(**values | changes, jss=1.0, n_cells=0, n_cases=0, converged=True)


def world(*, one_hot, per_cell=10, n_cells=60, n_clusters=12, seed=0, blend=False):
    """Cases that give one drawn answer (a share of them, or each in part), or the mixture."""
    rng = np.random.default_rng(seed)
    cells = np.repeat(rng.integers(0, N, (n_cells, 3)), per_cell, axis=0)
    q = truth().predict(cells)
    answers = np.eye(N)[(q.cumsum(1) > rng.random((len(q), 1))).argmax(1)]
    part = np.full(len(q), one_hot) if blend else rng.random(len(q)) < one_hot
    probs = part[:, None] * answers + (1 - part[:, None]) * q
    return Outcomes(probs, cells, rng.integers(0, n_clusters, len(cells)))


# -- inside or between prompts ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("one_hot", "blend", "verdict"),
    [
        (0.0, False, "within prompts"),
        (1.0, False, "between prompts"),
        (0.5, False, "undecided"),
        (0.7, True, "undecided"),
    ],
)
def test_switching_is_told_from_mixing(one_hot, blend, verdict, seed):
    found = locate(world(one_hot=one_hot, blend=blend, seed=seed))
    assert found.verdict == verdict, found.reason
    assert found.low <= found.share <= found.high
    assert found.n_left_out == 0 and found.n_clusters == 12


def test_both_worlds_have_the_same_averages():
    """The published fit sees no difference: the same weights, and a similarity near 1."""
    mixing, switching = (world(one_hot=p, per_cell=400, n_cells=80) for p in (0.0, 1.0))
    fits = [fit_mixture(w, loss="likelihood") for w in (mixing, switching)]
    assert fits[0].w_pos == pytest.approx(fits[1].w_pos, rel=0.05) and fits[1].jss > 0.99
    assert np.abs(cell_means(mixing).mean - cell_means(switching).mean).max() < 0.12
    found = [locate(w) for w in (mixing, switching)]
    assert [f.verdict for f in found] == ["within prompts", "between prompts"]
    assert found[0].entropy_of_mean == pytest.approx(found[1].entropy_of_mean, abs=0.02)
    assert (found[0].like_mean, found[1].like_mean) == pytest.approx((1, 0))
    assert found[1].one_hot == 1 and found[0].one_hot < 0.6


@pytest.mark.parametrize("per_cell", [3, 5, 20])
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_share_is_unbiased_in_small_cells(per_cell, part):
    """Uncorrected, 3 cases a cell overstate it by .09 and more."""
    shares, expected, naive = [], [], []
    for seed in range(12):
        outcomes = world(one_hot=part, blend=True, per_cell=per_cell, seed=seed, n_cells=150)
        shares.append(locate(outcomes).share)
        q = truth().predict(outcomes.cells)
        expected.append(entropy(outcomes.probs).mean() / entropy(q).mean())
        means = cell_means(outcomes)
        plain = means.counts @ entropy(means.mean) / means.counts.sum()
        naive.append(entropy(outcomes.probs).mean() / plain)
    assert np.mean(shares) == pytest.approx(np.mean(expected), abs=0.025)
    if per_cell == 3:
        assert np.mean(naive) > np.mean(expected) + 0.08


def test_corrected_entropies_equal_a_loop_that_leaves_cases_out():
    outcomes = world(one_hot=0.5, per_cell=4, n_cells=9)
    group = np.unique(outcomes.cells, axis=0, return_inverse=True)[1].reshape(-1)
    group[:3] = group.max() + 1 + np.arange(3)  # alone
    case, mean, used = _entropies(outcomes.probs, group)
    assert np.allclose(case, entropy(outcomes.probs))
    for g in np.unique(group):
        rows = np.nonzero(group == g)[0]
        assert used[rows].all() == (len(rows) > 1)
        if len(rows) > 1:
            mine, k = outcomes.probs[rows], len(rows)
            rest = [entropy(np.delete(mine, i, 0).mean(0)) for i in range(k)]
            whole = entropy(mine.mean(0))
            slow = k * whole - (k - 1) * np.mean(rest)
            assert np.allclose(mean[rows], slow) and slow >= whole - 1e-12


@pytest.mark.parametrize(("one_hot", "verdict"), [(0, "within prompts"), (1, "between prompts")])
def test_cells_of_one_case_are_pooled_by_role(one_hot, verdict):
    outcomes = world(one_hot=one_hot, per_cell=1, n_cells=1500)
    cells = np.unique(outcomes.cells, axis=0, return_index=True)[1]
    single = Outcomes(outcomes.probs[cells], outcomes.cells[cells], outcomes.clusters[cells])
    with pytest.raises(ResultError, match="pass pooled='roles'"):
        locate(single)
    found = locate(single, pooled="roles")
    assert found.verdict == verdict, found.reason
    assert found.n_groups == N and found.n_cases + found.n_left_out == len(cells)


def test_roles_leave_out_what_is_not_clear():
    cells = np.array([[1, 4, 6], [1, 4, 6], [1, 2, 6], [1, 4, 4], [1, 4, 6]])
    own = np.array([7, 7, 7, 7, 4])
    outcomes = Outcomes(np.eye(N)[[1, 4, 1, 1, 1]], cells, np.arange(5))
    found = locate(outcomes, i_n=own, pooled="roles")
    assert (found.n_cases, found.n_left_out, found.n_groups) == (2, 3, 1)
    assert locate(outcomes, pooled="roles").n_cases == 3  # where i_N is not known
    assert found.mean_entropy == 0 and found.entropy_of_mean == pytest.approx(2)


def test_few_clusters_and_answers_that_agree_decide_nothing():
    few = locate(world(one_hot=1.0, n_clusters=5))
    assert few.verdict == "undecided" and few.low is None and "6 are needed" in few.reason
    same = world(one_hot=0.0)
    same = Outcomes(np.eye(N)[same.cells[:, 0]], same.cells, same.clusters)
    agreed = locate(same)
    assert agreed.verdict == "undecided" and "nothing is mixed" in agreed.reason
    assert agreed.like_mean is None


def test_what_is_asked_must_exist():
    outcomes = world(one_hot=0.5)
    with pytest.raises(UnknownNameError, match="pooling"):
        locate(outcomes, pooled="rows")
    for bad in (np.zeros(3, dtype=int), np.full(len(outcomes.probs), N)):
        with pytest.raises(ResultError, match="i_n needs a group from 0 to 7"):
            locate(outcomes, i_n=bad, pooled="roles")
    lexical = fit_mixture(outcomes, variant="lexical only")
    with pytest.raises(ResultError, match="need a fit with a kernel over 8 groups, got 'lexical"):
        responsibilities(outcomes, lexical)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 1.0])
def test_the_blend_of_an_entropy_is_found_again(part):
    q = np.random.default_rng(0).dirichlet(np.ones(5), 6)
    share = np.full(6, 1 / 6)
    each = [
        sum(row[k] * entropy(part * np.eye(5)[k] + (1 - part) * row) for k in range(5)) for row in q
    ]
    assert blend_of_entropy(q, share, float(np.mean(each))) == pytest.approx(part, abs=1e-4)


# -- who answered -----------------------------------------------------------------------------


def slow_posterior(outcomes, fit, prior, own):
    """Bayes for each answer, weighed by its probability."""
    found = np.zeros((len(outcomes.probs), 5))
    for c, (probs, (p, lexical, reflexive)) in enumerate(
        zip(outcomes.probs, outcomes.cells, strict=True)
    ):
        excess = np.exp(fit.positional()[p]) - 1
        for i in range(fit.n):
            likely = np.array(
                [
                    excess[i] / excess.sum(), i == lexical, i == reflexive,
                    own is not None and i == own[c], 1 / fit.n,
                ]
            )  # fmt: skip
            found[c] += probs[i] * prior[p] * likely / (prior[p] @ likely)
    return found


@pytest.mark.parametrize("known", [True, False])
def test_responsibilities_equal_bayes_and_are_a_fixed_point(known):
    outcomes = world(one_hot=0.5, per_cell=3)
    own = np.random.default_rng(0).integers(0, N, len(outcomes.probs)) if known else None
    found = responsibilities(outcomes, truth(), i_n=own)
    assert np.allclose(found.case.sum(1), 1)
    slow = slow_posterior(outcomes, truth(), found.by_position, own)
    assert np.allclose(found.case, slow, atol=1e-3)
    p = outcomes.cells[:, 0]
    means = [found.case[p == k].mean(0) for k in range(N)]
    assert np.allclose(found.by_position, means, atol=1e-3)
    assert known or (found.case[:, COMPONENTS.index("own")] == 0).all()


def test_one_mechanism_a_prompt_is_named():
    rng = np.random.default_rng(0)
    cells = np.array([rng.permutation(N)[:3] for _ in range(900)])
    cells = cells[(np.abs(cells[:, 1:] - cells[:, :1]) > 1).all(1)]
    which = rng.choice(3, len(cells), p=[0.5, 0.3, 0.2])
    answers = np.eye(N)[cells[np.arange(len(cells)), which]]
    found = responsibilities(
        Outcomes(answers, cells, np.arange(len(cells))),
        truth(w_pos=12.0, alpha=0.0, beta=0.0, gamma=0.4),
    )
    assert (found.case[:, :3].argmax(1) == which).all() and found.clear > 0.99
    assert np.allclose(found.case.mean(0)[:3], np.bincount(which) / len(which), atol=0.01)


def test_a_position_without_cases_has_no_prior():
    outcomes = world(one_hot=0.5)
    seen = outcomes.cells[:, 0] != 2
    some = Outcomes(outcomes.probs[seen], outcomes.cells[seen], outcomes.clusters[seen])
    found = responsibilities(some, truth())
    assert np.isnan(found.by_position[2]).all() and not np.isnan(found.by_position[3]).any()
