"""Degrees by class, pairs and the regression, against loops and against statsmodels."""

import numpy as np
import pytest
from graphs import random_counts

from circuits.class_tables import (
    FUNCTION,
    OTHERS,
    TERMS,
    by_class,
    class_effect,
    degree_regression,
    matched_pairs,
    steady_tokens,
    token_groups,
)
from circuits.degree_fits import degrees
from circuits.feature_counting import merged
from circuits.graph_calibration import planted_blocks
from circuits.richness import rarefied_degree
from interp.errors import ResultError, UnknownNameError
from probes.planted_features import COMMON, plant


@pytest.fixture(scope="module")
def hubs():
    return planted_blocks(plant("hubs", seed=0, n_documents=80, active=4.0), n_blocks=6)


def test_groups_hold_each_token_once_by_frequency_and_once_by_class():
    groups = token_groups(np.array([0, 1, 1, 0]), ("a", "b"), [2, 0])
    assert {k: v.tolist() for k, v in groups.items()} == {
        FUNCTION: [0, 2], OTHERS: [1, 3], "a": [0, 3], "b": [1, 2],
    }  # fmt: skip


def test_by_class_against_loops(hubs):
    counts, null = map(merged, hubs)
    groups = {"common": range(COMMON), OTHERS: range(COMMON, 300), "none": [299]}
    table = by_class(counts, groups, m=(10, 40), null=null).set_index(["m", "group"])
    mine = [rarefied_degree(counts, [t], 40)[0] for t in range(COMMON)]
    theirs = [rarefied_degree(counts, [t], 40)[0] for t in range(COMMON, 300)]
    mine, theirs = (np.array(d)[~np.isnan(d)] for d in (mine, theirs))
    row = table.loc[40, "common"]
    assert row["n"] == len(mine) and row["median"] == pytest.approx(np.median(mine))
    above = np.mean([(a > b) + (a == b) / 2 for a in mine for b in theirs])
    assert row["p_above"] == pytest.approx(above)
    assert row["ratio"] == pytest.approx(np.median(mine) / np.median(theirs))
    assert row["ratio"] > 1.4 and row["relative_ratio"] > 1.4
    assert table.loc[40, OTHERS]["relative_ratio"] == 1
    assert table.loc[40, "none"]["n"] == 0 and np.isnan(table.loc[40, "none"]["median"])
    with pytest.raises(UnknownNameError, match="group"):
        by_class(counts, groups, reference="other")


def test_matched_pairs_are_the_nearest_within_the_caliper():
    counts = random_counts(2, n=600, n_tokens=30, n_features=40, rate=0.05)
    members, pool = [3, 7], [t for t in range(30) if t not in (3, 7)]
    found = matched_pairs(counts, members, pool, k=3, m=5)
    for _, row in found.iterrows():
        n = counts.occurrences[int(row["token"])]
        near = sorted(pool, key=lambda t, n=n: abs(np.log(counts.occurrences[t] / n)))[:3]
        near = [
            t for t in near if max(counts.occurrences[t], n) <= 1.25 * min(counts.occurrences[t], n)
        ]
        logs = np.log(degrees(counts))
        assert row["partners"] == len(near) > 0
        assert row["log_ratio"] == pytest.approx(logs[int(row["token"])] - logs[near].mean())
        rare = np.log(rarefied_degree(counts, [int(row["token"]), *near], 5))
        assert row["log_ratio_rarefied"] == pytest.approx(rare[0] - rare[1:].mean())
    with pytest.raises(ResultError, match="its own partner"):
        matched_pairs(counts, [1], [1, 2])


def test_regression_equals_statsmodels(hubs):
    import statsmodels.api as sm

    counts = merged(hubs[0])
    member = np.arange(300) < COMMON
    tokens = np.flatnonzero(counts.occurrences >= 20)
    x = sm.add_constant(np.column_stack([
        np.log(counts.occurrences[tokens]), np.log(counts.token_documents[tokens]), member[tokens],
    ]))  # fmt: skip
    truth = sm.OLS(np.log(degrees(counts)[tokens]), x).fit().params
    assert degree_regression(counts, member, tokens) == pytest.approx(truth)


def test_class_effect_is_above_nought_for_hubs_and_refused_without_two_classes(hubs):
    member = np.arange(300) < COMMON
    effect = class_effect(hubs[0], member, least=20).set_index("term")
    assert list(effect.index) == list(TERMS) and effect.loc["class", "low"] > 0
    with pytest.raises(ResultError, match="all or none"):
        class_effect(hubs[0], np.zeros(300, bool))


def test_steady_tokens_keep_enough_whichever_block_is_left_out(hubs):
    blocks = hubs[0]
    found = steady_tokens(blocks, 30)
    for left in range(len(blocks)):
        rest = merged([b for i, b in enumerate(blocks) if i != left])
        assert (rest.occurrences[found] >= 30).all()
    worst = np.min([
        merged([b for i, b in enumerate(blocks) if i != left]).occurrences
        for left in range(len(blocks))
    ], axis=0)  # fmt: skip
    assert set(found) == set(np.flatnonzero(worst >= 30))
