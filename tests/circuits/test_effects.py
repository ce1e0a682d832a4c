"""Verdicts in planted worlds, whose truth is known, and numbers against plain means."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from circuits.effects import corrected, judge, measure_effect
from interp.errors import ResultError, UnknownNameError

WORDS = {"name": "top 10", "ablation": "mean", "scope": "suffix", "metric": "answer's log-prob"}


def _arrays(change, *, spread=0.05, noise=0.05, n_draws=99, n_clusters=12, n_each=3, seed=0):
    """Log-probs of trials: each head set changes them by its own amount, the treated by `change`.

    Matched sets change them by amounts with sd `spread`; `noise` is between clusters.
    """
    rng = np.random.default_rng(seed)
    baseline = -1 + 0.5 * rng.standard_normal(n_clusters * n_each)

    def changed(by):
        wobble = noise * np.repeat(rng.standard_normal(n_clusters), n_each)
        return baseline + by + wobble + 0.01 * rng.standard_normal(len(baseline))

    controls = np.stack([changed(by) for by in spread * rng.standard_normal(n_draws)])
    clusters = np.repeat([f"n{i}" for i in range(n_clusters)], n_each)
    return baseline, changed(change), controls, clusters


def _effect(change, *, direction="ablate", **world):
    baseline, treated, controls, clusters = _arrays(change, **world)
    return measure_effect(
        baseline, treated, controls, clusters=clusters, direction=direction, unit="nats", **WORDS
    )


# -- numbers ----------------------------------------------------------------------------------


def test_numbers_are_the_plain_means_and_counts():
    baseline, treated, controls, clusters = _arrays(-0.1, n_draws=19)
    e = measure_effect(
        baseline, treated, controls, clusters=clusters, direction="noising", unit="nats", **WORDS
    )
    sets = [row.mean() for row in controls]
    assert [e.baseline, e.treated] == pytest.approx([baseline.mean(), treated.mean()])
    assert e.control == pytest.approx(np.mean(sets))
    assert [e.control_low, e.control_high] == pytest.approx(list(np.percentile(sets, [2.5, 97.5])))
    assert e.effect == pytest.approx(e.treated - e.baseline) and e.low < e.effect < e.high
    paired = [treated[i] - baseline[i] - (controls[:, i] - baseline[i]).mean() for i in range(36)]
    assert e.excess == pytest.approx(np.mean(paired)) and e.excess_low < e.excess < e.excess_high
    assert e.p == (1 + sum(s <= treated.mean() for s in sets)) / 20 == e.p_holm
    means = np.array([(treated - baseline)[clusters == n].mean() for n in np.unique(clusters)])
    assert e.size == pytest.approx(means.mean() / means.std(ddof=1))
    assert (e.n_trials, e.n_clusters, e.n_draws) == (36, 12, 19)
    assert json.loads(json.dumps(asdict(e), allow_nan=False)) == asdict(e)


def test_recovery_is_counted_upward():
    assert _effect(0.5, direction="denoising").p == 0.01
    assert _effect(0.5, direction="noising").p == 1


def test_a_change_that_is_the_same_everywhere_has_no_standardised_size():
    baseline, _, controls, clusters = _arrays(0)
    e = measure_effect(
        baseline, baseline, controls, clusters=clusters, direction="ablate", unit="nats", **WORDS
    )
    assert e.size is None and e.effect == 0


def test_correction_is_over_the_family():
    effects = [replace(_effect(-0.5), p=p) for p in (0.03, 0.01, 0.5)]
    assert [e.p_holm for e in corrected(effects)] == pytest.approx([0.06, 0.03, 0.5])
    assert [e.p for e in corrected(effects)] == [0.03, 0.01, 0.5]
    assert corrected([]) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, t, c: (b, t[1:], c), "controls .draw, trial., got"),
        (lambda b, t, c: (b, t, c[0]), "controls .draw, trial., got"),
        (lambda b, t, c: (b, t, c[:0]), "controls .draw, trial., got"),
        (lambda b, t, c: (b, np.where(t < -1, np.nan, t), c), "treated holds NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    *arrays, clusters = _arrays(-0.5)
    with pytest.raises(ResultError, match=message):
        measure_effect(
            *change(*arrays), clusters=clusters, direction="ablate", unit="nats", **WORDS
        )


def test_one_cluster_and_unknown_directions_are_refused():
    with pytest.raises(ResultError, match="at least 2 needles"):
        _effect(-0.5, n_clusters=1)
    with pytest.raises(UnknownNameError, match="did you mean denoising"):
        _effect(-0.5, direction="denoise")


# -- verdicts ---------------------------------------------------------------------------------


def test_a_real_effect_is_supported():
    finding = judge(_effect(-0.8), smallest=0.2)
    assert finding.verdict == "supported"
    assert finding.claim == (
        "the top 10 heads are necessary for the answer's log-prob (mean ablation, suffix)"
    )
    for figure in (
        "falls by 0.8",
        "99 matched",
        "p = 0.01",
        "36 trials of 12 clusters",
        "0.2 nats",
    ):
        assert figure in finding.reason


def test_a_real_recovery_is_supported_as_sufficient():
    effect = _effect(0.8, direction="denoising")
    finding = judge(effect, smallest=0.2)
    assert finding.verdict == "supported" and f"rises by {effect.effect:.3g}" in finding.reason
    assert "are sufficient for" in finding.claim and "denoising by mean" in finding.claim


@pytest.mark.parametrize("direction", ["ablate", "noising", "denoising"])
@pytest.mark.parametrize("change", [-0.8, 0.0, 0.8])
def test_necessary_and_sufficient_follow_the_direction(direction, change):
    claim = judge(_effect(change, direction=direction), smallest=0.2).claim
    assert ("sufficient" in claim) == (direction == "denoising") != ("necessary" in claim)


def test_no_effect_with_little_noise_is_unsupported():
    finding = judge(_effect(0.0), smallest=0.2)
    assert finding.verdict == "unsupported" and "0.2 nats is excluded" in finding.reason


def test_no_effect_with_much_noise_is_inconclusive():
    finding = judge(_effect(0.0, noise=2), smallest=0.2)
    assert finding.verdict == "inconclusive"
    assert "the interval is too wide" in finding.reason and "12 clusters" in finding.reason


def test_few_matched_sets_are_inconclusive_for_that_reason():
    finding = judge(_effect(-0.8, n_draws=9), smallest=0.2)
    assert finding.verdict == "inconclusive"
    assert "9 matched sets are too few, they give no p below 0.1" in finding.reason
    assert "too wide" not in finding.reason
    assert judge(_effect(-0.8, n_draws=19), smallest=0.2).verdict == "supported"


def test_matched_sets_too_few_for_the_family_are_inconclusive_for_that_reason():
    family = corrected([_effect(-0.8, n_draws=19), _effect(-0.7, n_draws=19)])
    finding = judge(family[0], smallest=0.2)
    assert finding.verdict == "inconclusive"
    assert "no matched set does as much, yet 19 are too few" in finding.reason


def test_matched_sets_that_do_as_much_are_inconclusive_for_that_reason():
    finding = judge(_effect(-0.8, spread=1.0, seed=1), smallest=0.2)
    assert finding.verdict == "inconclusive"
    baseline, treated, controls, _ = _arrays(-0.8, spread=1.0, seed=1)
    as_much = sum(row.mean() <= treated.mean() for row in controls)
    assert f"{as_much} of 99 matched random sets do as much" in finding.reason


def test_an_effect_below_the_smallest_of_interest_is_not_supported():
    for noise, verdict in ((0.2, "inconclusive"), (0.01, "unsupported")):
        baseline, treated, controls, clusters = _arrays(-0.19, noise=noise, spread=0.01)
        treated = treated - (treated - baseline).mean() - 0.19
        e = measure_effect(
            baseline, treated, controls, clusters=clusters, direction="ablate", unit="nats", **WORDS
        )
        finding = judge(e, smallest=0.2)
        assert finding.verdict == verdict
        assert ("the excess of 0.191 is below 0.2 nats" in finding.reason) == (noise == 0.2)


def test_a_head_whose_loss_helps_is_unsupported_and_the_sign_is_told():
    for change, direction in ((0.8, "ablate"), (-0.8, "denoising")):
        finding = judge(_effect(change, direction=direction), smallest=0.2)
        assert finding.verdict == "unsupported" and "opposite sign" in finding.reason


def test_heads_that_matter_less_than_random_ones_are_not_told_to_help():
    baseline, treated, controls, clusters = _arrays(-0.5)
    e = measure_effect(
        baseline, treated, controls - 2, clusters=clusters, direction="ablate", unit="nats", **WORDS
    )
    finding = judge(e, smallest=0.2)
    assert finding.verdict == "unsupported" and "less than matched random sets" in finding.reason


def test_a_large_effect_that_random_sets_nearly_share_is_unsupported():
    """All sets hurt by 1; the treated by 0.1 more: rare, sure, and not these heads' doing."""
    baseline, treated, controls, clusters = _arrays(-1.1, spread=0.01, noise=0.01)
    e = measure_effect(
        baseline, treated, controls - 1, clusters=clusters, direction="ablate", unit="nats", **WORDS
    )
    assert e.p == 0.01 and e.excess_high < 0 and abs(e.effect) > 0.2
    assert judge(e, smallest=0.2).verdict == "unsupported"


def test_an_effect_without_unit_and_thresholds_that_make_no_sense():
    assert "excluded" in judge(replace(_effect(0.0), unit=""), smallest=0.2).reason
    for alpha, smallest in ((0, 0.2), (1, 0.2), (0.05, -0.1), (0.05, float("nan"))):
        with pytest.raises(ResultError, match="0 < alpha < 1 and smallest >= 0"):
            judge(_effect(0.0), alpha=alpha, smallest=smallest)


@pytest.mark.parametrize(("spread", "noise"), [(0.3, 0.05), (0.0, 0.3)])
def test_random_sets_are_supported_no_oftener_than_alpha(spread, noise):
    """Worlds in which the candidates are one more random set, with nothing to exclude them.

    `smallest` is 0, so only the interval and p stand against a false claim. The bound is the
    99.9 % quantile of Binomial(200, .05): 21.
    """
    supported = 0
    for seed in range(200):
        change = spread * np.random.default_rng(10_000 + seed).standard_normal()
        effect = _effect(change, spread=spread, noise=noise, n_draws=39, n_each=1, seed=seed)
        supported += judge(effect, smallest=0.0).verdict == "supported"
    assert 0 < supported <= 21


def test_a_handful_of_clusters_gives_no_verdict():
    """Five that all agree could not pass a sign test at .05; six could."""
    for n, verdict in ((2, "inconclusive"), (5, "inconclusive"), (6, "supported")):
        clusters = np.array([f"n{i}" for i in range(n)])
        baseline = np.zeros(n)
        controls = np.random.default_rng(0).normal(0, 0.01, (99, n))
        effect = measure_effect(
            baseline, baseline - 1, controls, clusters=clusters, direction="ablate", unit="nats",
            **WORDS,
        )  # fmt: skip
        finding = judge(effect, smallest=0.2)
        assert finding.verdict == verdict
        assert ("too few for an interval, 6 are needed" in finding.reason) == (n < 6)
