"""The mixture against loops, scipy and synthetic truths whose parameters are known."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.spatial.distance import jensenshannon

from circuits import mixture_table as table
from circuits.mixture import VARIANTS, MixtureFit, _Formula, fit_mixture
from circuits.outcomes import CellMeans, Outcomes, cell_means, entropy, jsd, resampled_means
from interp.errors import ResultError, UnknownNameError

N = 8
CUBE = np.array(list(itertools.product(range(N), repeat=3)))
SOME = CUBE[np.random.default_rng(1).permutation(len(CUBE))[:256]]
HEIGHT = {"peak": 8.0, "density": 25.0, "discrete": 25.0}


def truth(kernel="peak", n=N, seed=0, **changes):
    """A known mixture: sharp at the ends, wide in the middle, uneven gates."""
    rng = np.random.default_rng(seed)
    fit = MixtureFit(
        variant="full", kernel=kernel, n=n, w_pos=HEIGHT[kernel], alpha=-4.0, beta=4.0, gamma=0.6,
        w_lex=tuple(rng.uniform(1, 6, n)), w_ref=tuple(rng.uniform(1, 6, n)),
        jss=1.0, n_cells=0, n_cases=0, converged=True,
    )  # fmt: skip
    return dataclasses.replace(fit, **changes)


def exact(fit, cells=CUBE):
    return CellMeans(cells, fit.predict(cells), np.ones(len(cells)))


def drawn(fit, *, per_cell, n_clusters=20, seed=0, cells=CUBE, part=1.0):
    """Cases of which `part` is one answer drawn from the mixture and the rest the mixture."""
    rng = np.random.default_rng(seed)
    cells = np.repeat(cells, per_cell, axis=0)
    q = fit.predict(cells)
    answers = (q.cumsum(1) > rng.random((len(q), 1))).argmax(1)
    probs = part * np.eye(fit.n)[answers] + (1 - part) * q
    return Outcomes(probs, cells, rng.integers(0, n_clusters, len(cells)))


def slow_prediction(fit, cell):
    """The formula of the paper, one number at a time."""
    p, lexical, reflexive = (int(i) for i in cell)
    sigma = fit.alpha * (p / fit.n) ** 2 + fit.beta * p / fit.n + fit.gamma
    bell = [np.exp(-((i - p) ** 2) / (2 * (sigma**2 + 1e-6))) for i in range(fit.n)]
    norm = {
        "peak": 1.0,
        "density": np.sqrt(2 * np.pi * (sigma**2 + 1e-6)),
        "discrete": sum(bell),
    }[fit.kernel]
    y = [fit.w_pos * b / norm for b in bell]
    y[lexical] += fit.w_lex[lexical] + (fit.u_lex or 0) * np.exp(-abs(lexical - p))
    y[reflexive] += fit.w_ref[reflexive] + (fit.u_ref or 0) * np.exp(-abs(reflexive - p))
    total = sum(np.exp(v) for v in y)
    return [np.exp(v) / total for v in y]


# -- formula, loss and data -------------------------------------------------------------------


@pytest.mark.parametrize("kernel", HEIGHT)
@pytest.mark.parametrize("more", [{}, {"variant": "interaction", "u_lex": 1.5, "u_ref": -0.7}])
def test_prediction_equals_a_loop_over_groups(kernel, more):
    fit = truth(kernel, **more)
    cells = np.vstack([CUBE[::37], [[2, 2, 5], [2, 5, 2], [3, 4, 4], [1, 1, 1]]])
    assert np.allclose(fit.predict(cells), [slow_prediction(fit, c) for c in cells], atol=1e-12)


@pytest.mark.parametrize("variant", ["positional one-hot", "oracle positional", "lexical only"])
def test_other_terms_equal_their_definition(variant):
    means = exact(truth(), CUBE[::3])
    fit = fit_mixture(means, variant=variant)
    p, lexical, reflexive = means.cells.T
    y = np.zeros(means.mean.shape)
    for k in range(len(y)):
        if variant == "positional one-hot":
            y[k, p[k]] += fit.w_pos
        if variant == "oracle positional":
            y[k] += fit.w_pos * np.log(means.mean[p == p[k]].mean(0))
            y[k, reflexive[k]] += fit.w_ref[reflexive[k]]
        if variant != "positional one-hot":
            y[k, lexical[k]] += fit.w_lex[lexical[k]]
    expected = np.exp(y) / np.exp(y).sum(1, keepdims=True)
    assert np.allclose(fit.predict(means.cells), expected)


@pytest.mark.parametrize("loss", ["jsd", "likelihood"])
@pytest.mark.parametrize(
    ("variant", "kernel"),
    [(v, "peak") for v in VARIANTS] + [("interaction", kernel) for kernel in HEIGHT],
)
def test_gradient_equals_finite_differences(variant, kernel, loss):
    rng = np.random.default_rng(1)
    oracle = np.log(rng.dirichlet(np.ones(N), N))
    formula = _Formula(variant, kernel, N, CUBE[::11], oracle)
    target = rng.dirichlet(np.ones(N), len(formula.cells))
    share = rng.dirichlet(np.ones(len(target)))
    theta = rng.uniform(0.5, 1.5, formula.size)
    value, gradient = formula.loss(theta, target, share, loss)
    numeric = approx_fprime(theta, lambda t: formula.loss(t, target, share, loss)[0], 1e-7)
    assert np.allclose(gradient, numeric, atol=1e-6)


def test_divergence_and_entropy_equal_scipy():
    from scipy.stats import entropy as scipy_entropy

    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(5, 0.3), (2, 40))
    p[0], q[0], p[1], q[1] = np.eye(5)[0], np.eye(5)[1], np.eye(5)[2], np.eye(5)[2]
    assert np.allclose(jsd(p, q), jensenshannon(p, q, axis=1, base=2) ** 2, atol=1e-12)
    assert np.allclose(entropy(p), scipy_entropy(p, axis=1, base=2))
    assert jsd(p, q)[0] == pytest.approx(1) and jsd(p, q)[1] == 0


def test_cell_means_and_similarity_equal_a_loop():
    outcomes = drawn(truth(), per_cell=3, cells=CUBE[::19], part=0.7)
    order = np.random.default_rng(0).permutation(len(outcomes.probs))[:-5]
    shuffled = Outcomes(outcomes.probs[order], outcomes.cells[order], outcomes.clusters[order])
    means = cell_means(shuffled)
    for cell, mean, count in zip(means.cells, means.mean, means.counts, strict=True):
        mine = (shuffled.cells == cell).all(1)
        assert mine.sum() == count and np.allclose(shuffled.probs[mine].mean(0), mean)
    each = [
        1 - jensenshannon(m, slow_prediction(truth(), c), base=2) ** 2
        for c, m in zip(means.cells, means.mean, strict=True)
    ]
    assert table.score(truth(), shuffled) == pytest.approx(np.mean(each))
    by_case = np.average(each, weights=means.counts)
    assert table.score(truth(), shuffled, weights="cases") == pytest.approx(by_case)
    assert fit_mixture(shuffled, warm=truth()).jss >= table.score(truth(), shuffled)


def test_resampled_means_equal_means_of_the_cases_drawn():
    outcomes = drawn(truth(), per_cell=2, cells=CUBE[::29], n_clusters=5)
    names = np.unique(outcomes.clusters)
    rng = np.random.default_rng(3)
    for means, kept in resampled_means(outcomes, 4, 3):
        weight = rng.multinomial(5, np.full(5, 1 / 5))
        times = weight[np.searchsorted(names, outcomes.clusters)]
        rows = np.repeat(np.arange(len(times)), times)
        slow = cell_means(
            Outcomes(outcomes.probs[rows], outcomes.cells[rows], outcomes.clusters[rows])
        )
        assert (slow.cells == means.cells).all() and np.allclose(slow.mean, means.mean)
        assert (slow.counts == means.counts).all() and kept.sum() == len(means.cells)


# -- recovery ---------------------------------------------------------------------------------


def assert_recovered(fit, true, weight=0.02, width=0.05):
    assert fit.converged and fit.w_pos == pytest.approx(true.w_pos, rel=weight)
    assert np.abs(fit.sigma() - true.sigma()).max() < width
    assert np.allclose(fit.w_lex, true.w_lex, rtol=weight, atol=0.02)
    assert np.allclose(fit.w_ref, true.w_ref, rtol=weight, atol=0.02)


@pytest.mark.parametrize("loss", ["jsd", "likelihood"])
@pytest.mark.parametrize("kernel", HEIGHT)
def test_parameters_are_recovered_from_exact_means(kernel, loss):
    fit = fit_mixture(exact(truth(kernel)), kernel=kernel, loss=loss)
    assert fit.jss == pytest.approx(1, abs=1e-6)
    assert_recovered(fit, truth(kernel))


def test_parameters_are_recovered_at_twenty_groups():
    cells = np.random.default_rng(0).integers(0, 20, (3000, 3))
    true = truth("discrete", n=20)
    assert_recovered(fit_mixture(exact(true, np.unique(cells, axis=0)), kernel="discrete"), true)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kernel", HEIGHT)
def test_widths_that_dip_are_not_folded_through_zero(kernel, seed):
    """Only sigma squared counts, so a curve with a dip has a false twin that crosses zero."""
    rng = np.random.default_rng(seed)
    ends, dip = rng.uniform(1, 2, 2), rng.uniform(0.3, 0.6)
    x = np.array([0, 0.5, 1]) * (N - 1) / N
    curve = np.linalg.solve(np.vander(x, 3), [ends[0], dip, ends[1]])
    true = truth(kernel, alpha=curve[0], beta=curve[1], gamma=curve[2])
    lowest = np.polyval(curve, np.arange(N) / N).min()
    true = dataclasses.replace(true, gamma=curve[2] + max(0, 0.25 - lowest))
    assert_recovered(fit_mixture(exact(true), kernel=kernel), true)


def test_interaction_is_recovered():
    true = truth(variant="interaction", u_lex=2.0, u_ref=-1.0)
    fit = fit_mixture(exact(true), variant="interaction")
    assert_recovered(fit, true)
    assert (fit.u_lex, fit.u_ref) == pytest.approx((2, -1), abs=0.05)


def test_a_wrong_kernel_scores_nearly_as_well_and_is_wrong():
    """Why the convention is part of every fit."""
    true = truth("density")
    for kernel in ("peak", "density"):
        fit = fit_mixture(exact(true), kernel=kernel)
        assert fit.jss > 0.99
        right = abs(fit.w_pos / true.w_pos - 1) < 0.02
        assert right == (kernel == "density")
    wrong = fit_mixture(exact(true), kernel="peak")
    assert abs(wrong.w_pos / true.w_pos - 1) > 0.5
    assert np.abs(wrong.sigma() - true.sigma()).max() > 0.2
    ours, theirs = (table.mechanism_weights(f).lexical for f in (wrong, true))
    assert np.allclose(ours, theirs, atol=0.8)  # the common scale is far less affected


def test_divergence_is_biased_where_cells_have_few_cases_and_likelihood_is_not():
    """The figures in the docstring of `Loss`: 42 % at 5 one-hot cases a cell."""
    ratios = {
        loss: [
            fit_mixture(drawn(truth(), per_cell=5, seed=s), loss=loss).w_pos / truth().w_pos
            for s in range(4)
        ]
        for loss in ("jsd", "likelihood")
    }
    assert np.mean(ratios["jsd"]) > 1.25
    assert np.mean(ratios["likelihood"]) == pytest.approx(1, abs=0.04)


# -- variants ---------------------------------------------------------------------------------


def test_the_full_model_fits_at_least_as_well_as_every_part_of_it():
    noisy = drawn(truth(), per_cell=4, cells=SOME, seed=2)
    rows = {row.variant: row for row in table.ablation_table(noisy, n_folds=3)}
    assert list(rows) == list(VARIANTS) and all(row.converged for row in rows.values())
    nested = [name for name in VARIANTS if name not in ("full", "oracle positional")]
    for name in nested:
        assert rows["full"].jss >= rows[name].jss - 1e-6, name
        assert rows["full"].jss_cells > rows[name].jss_cells, name
    assert rows["without lexical"].jss >= rows["positional only"].jss
    assert rows["without positional"].jss >= rows["lexical only"].jss >= rows["uniform"].jss
    assert rows["uniform"].jss == pytest.approx(rows["uniform"].jss_cells)
    assert rows["oracle positional"].jss_positions is None


def test_held_out_positions_are_predicted_by_the_width_curve():
    means = exact(truth())
    right = table.held_out(means, "positions")
    assert right.jss == pytest.approx(1, abs=1e-4)
    assert right.n_scored == right.n_cells == 6 * N * N
    assert table.held_out(means, "positions", variant="oracle positional").jss is None
    few = means.take(means.cells[:, 0] < 3)
    assert table.held_out(few, "positions") == table.HeldOut(None, 0, 0)


def test_held_out_cells_equal_fits_by_hand():
    means = cell_means(drawn(truth(), per_cell=8, cells=SOME))
    fold = np.random.default_rng(7).permutation(np.arange(len(means.cells)) % 4)
    found = np.zeros(len(fold))
    for k in range(4):
        fit = fit_mixture(means.take(fold != k))
        found[fold == k] = 1 - jsd(means.mean, fit.predict(means.cells))[fold == k]
    ours = table.held_out(means, n_folds=4, seed=7)
    assert ours.jss == pytest.approx(found.mean(), abs=1e-4) and ours.n_scored == len(fold)


def test_a_gate_that_only_a_held_out_cell_shows_is_not_scored():
    cells = np.vstack([CUBE[(CUBE[:, 1:] < 6).all(1)], [[0, 7, 1]]])
    held = table.held_out(exact(truth(), cells))
    assert held.n_scored == held.n_cells - 1


def test_a_fit_is_carried_to_another_n_and_scored_there():
    n, line = 14, dict.fromkeys(("w_lex", "w_ref"))
    small = truth(**{k: tuple(np.linspace(1, 5, N)) for k in line})
    large = truth(n=n, **{k: tuple(np.linspace(1, 5, n)) for k in line})
    gaps = dataclasses.replace(small, w_lex=(*small.w_lex[:3], None, *small.w_lex[4:]))
    cells = np.random.default_rng(0).integers(0, n, (200, 3))
    for fit in (small, gaps):
        carried = table.transferred(fit, n)
        assert np.allclose(carried.w_lex, large.w_lex)
        assert table.score(carried, exact(large, np.unique(cells, axis=0))) == pytest.approx(1)
    with pytest.raises(ResultError, match="carry it over by transferred"):
        table.score(small, exact(large, cells))
    with pytest.raises(ResultError, match="cannot be carried to 14"):
        table.transferred(fit_mixture(exact(small), variant="oracle positional"), n)


def test_mechanism_weights_are_logits_at_their_own_group():
    fit = truth("density")
    weights = table.mechanism_weights(fit)
    peak = fit.w_pos / np.sqrt(2 * np.pi * (fit.sigma() ** 2 + 1e-6))
    assert np.allclose(weights.positional, peak)
    assert (weights.lexical, weights.reflexive) == (fit.w_lex, fit.w_ref)
    only = table.mechanism_weights(fit_mixture(exact(fit), variant="lexical only"))
    assert only.positional == only.reflexive == (None,) * N
    with pytest.raises(ResultError, match="no zero to compare"):
        table.mechanism_weights(fit_mixture(exact(fit), variant="oracle positional"))


# -- noise ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1.0, 0.6])
def test_ceilings_equal_simulating_case_by_case(part):
    true, cells = truth(), CUBE[::5]
    observed = drawn(true, per_cell=6, cells=cells, part=part, seed=5)
    ceiling = table.sampling_ceiling(true, observed, n_draws=50)
    one = [table.score(true, drawn(true, per_cell=6, cells=cells, seed=s)) for s in range(30)]
    same = [
        table.score(true, drawn(true, per_cell=6, cells=cells, part=part, seed=s))
        for s in range(30)
    ]
    assert ceiling.blend == pytest.approx(part, abs=0.02)
    for (mean, low, high), slow in ((ceiling.one_hot, one), (ceiling.matched, same)):
        assert mean == pytest.approx(np.mean(slow), abs=0.003)
        assert low < np.mean(slow) < high
        assert high - low == pytest.approx(4 * np.std(slow), rel=0.5)
    assert ceiling == table.sampling_ceiling(true, observed, n_draws=50)


def test_ceilings_of_cases_that_all_hold_the_mixture_are_one():
    ceiling = table.sampling_ceiling(truth(), drawn(truth(), per_cell=2, part=0.0))
    assert ceiling.blend == pytest.approx(0, abs=1e-3) and ceiling.matched[1] > 0.9999


def test_intervals_cover_about_as_often_as_they_say():
    hits, true = [], truth()
    for seed in range(8):
        outcomes = drawn(true, per_cell=5, cells=SOME, seed=seed)
        found = table.fit_intervals(outcomes, n_draws=30, loss="likelihood", seed=seed)
        for name, values in (("sigma", true.sigma()), ("w_lex", true.w_lex)):
            for i, value in enumerate(values):
                hits.append(found.of(name, i).low <= value <= found.of(name, i).high)
        hits.append(found.of("w_pos").low <= true.w_pos <= found.of("w_pos").high)
        assert found.of("jss").low < found.fit.jss < found.of("jss").high
        assert found.of("w_ref").value == pytest.approx(np.mean(found.fit.w_ref))
    assert 0.8 < np.mean(hits) <= 1


def test_intervals_of_few_clusters_are_refused():
    outcomes = drawn(truth(), per_cell=2, n_clusters=5, cells=SOME, part=0.5)
    found = table.fit_intervals(outcomes)
    assert "5 clusters give no interval, 6 are needed" in found.reason and found.n_draws == 0
    assert {(e.low, e.high) for e in found.estimates} == {(None, None)}
    tested = table.interaction(outcomes, n_folds=2)
    assert tested.word == "undecided" and "5 clusters" in tested.reason


@pytest.mark.parametrize(("u", "word"), [(0.0, "additive suffices"), (5.0, "interaction improves")])
def test_interaction_is_told_from_an_additive_world(u, word):
    true = truth(variant="interaction", w_pos=5.0, u_lex=u, u_ref=u)
    found = table.interaction(
        drawn(true, per_cell=8), n_draws=12, n_folds=2, loss="likelihood"
    )  # fmt: skip
    assert found.word == word, found.reason
    assert found.u_lex.low - 0.3 < u < found.u_lex.high + 0.3


# -- records and refusals ---------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["full", "oracle positional", "uniform", "interaction"])
def test_a_fit_goes_through_json_and_back(variant):
    fit = fit_mixture(exact(truth(), CUBE[CUBE[:, 1] != 3]), variant=variant)
    back = MixtureFit(**json.loads(json.dumps(dataclasses.asdict(fit))))
    assert back == fit
    cells = CUBE[CUBE[:, 1] != 3][::7]
    assert (back.predict(cells) == fit.predict(cells)).all()


def test_gates_never_seen_are_none_and_predict_nothing():
    fit = fit_mixture(exact(truth(), CUBE[CUBE[:, 1] != 3]))
    assert fit.w_lex[3] is None and None not in fit.w_ref
    with pytest.raises(ResultError, match=r"cell \[0, 3, 0\] points to a group that no fitted"):
        fit.predict(np.array([[0, 3, 0]]))
    with pytest.raises(ResultError, match="from 0 to 7"):
        fit.predict(np.array([[0, 8, 0]]))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (CUBE[:, 0] < 2, "needs 3 values of i_P"),
        (CUBE[:, 1] == CUBE[:, 2], "i_L = i_R in every cell"),
        (CUBE[:, 0] == CUBE[:, 1], "i_P = i_L in every cell"),
    ],
)
def test_what_cells_cannot_tell_apart_is_refused(keep, message):
    with pytest.raises(ResultError, match=message):
        fit_mixture(exact(truth(), CUBE[keep]))
    fit_mixture(exact(truth(), CUBE[keep]), variant="lexical only")


@pytest.mark.parametrize("name", ["variant", "kernel", "loss", "weights"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UnknownNameError, match=f"unknown {name} 'ful'"):
        fit_mixture(exact(truth()), **{name: "ful"})
    with pytest.raises(UnknownNameError, match="hold out"):
        table.held_out(exact(truth()), "heads")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probs": np.full((4, 3), 0.5)}, "sum to 1"),
        ({"probs": np.array([[0.5, 0.5, np.nan]] * 4)}, "sum to 1"),
        ({"probs": np.ones((4, 1))}, "n at least 2"),
        ({"cells": np.zeros((3, 3), dtype=int)}, "each of 4 cases needs"),
        ({"cells": np.full((4, 3), 3)}, "from 0 to 2"),
        ({"cells": np.zeros((4, 3))}, "whole numbers"),
        ({"clusters": np.arange(3)}, "3 clusters"),
    ],
)
def test_outcomes_that_are_none_are_refused(change, message):
    good = {"probs": np.full((4, 3), 1 / 3), "cells": np.zeros((4, 3), dtype=int)}
    Outcomes(**good, clusters=np.arange(4))
    with pytest.raises(ResultError, match=message):
        Outcomes(**(good | {"clusters": np.arange(4)} | change))


def test_folds_need_cells():
    with pytest.raises(ResultError, match="make 2 to 512 folds, got 1"):
        table.held_out(exact(truth()), n_folds=1)


def test_importing_is_light():
    code = (
        "import sys, circuits.mixture_table;"
        "print(sorted({'scipy', 'torch', 'pandas', 'statsmodels'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
