"""Planted worlds: the text obeys its law, and features fire by the rule that the world states."""

import numpy as np
import pytest

from interp.errors import UnknownNameError
from probes.planted_features import COMMON, LIFT, LIFTED, RARE, WORLDS, plant


def fired(world):
    dense = np.zeros((len(world.tokens), world.n_features), bool)
    dense[world.row, world.feature] = True
    return dense


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_the_same_for_its_seed_and_in_order(name):
    one, two = (plant(name, seed=3, n_documents=20, n_features=600) for _ in range(2))
    assert np.array_equal(one.tokens, two.tokens) and np.array_equal(one.row, two.row)
    assert np.array_equal(one.value, two.value)
    key = one.row * one.n_features + one.feature
    assert (np.diff(key) > 0).all() and (np.diff(one.document) >= 0).all()
    other = plant(name, seed=3, sample=1, n_documents=20, n_features=600)
    assert not np.array_equal(one.tokens, other.tokens)
    assert np.array_equal(one.degree, other.degree)


def test_common_tokens_are_spread_and_content_tokens_come_in_bursts():
    world = plant("null", seed=0)
    share = np.isin(world.tokens, world.common).mean()
    assert abs(share - 0.4) < 0.01
    per_document = np.zeros((240, 300))
    np.add.at(per_document, (world.document, world.tokens), 1)
    # variance over mean of counts by document is 1 where they are spread by chance alone
    ratio = per_document.var(0) / per_document.mean(0)
    assert np.median(ratio[:COMMON]) < 1.3 and np.median(ratio[COMMON:100]) > 2


def test_rates_by_token_are_equal_in_the_null_world_and_lifted_for_hubs():
    for name in ("null", "hubs"):
        world = plant(name, seed=0)
        active = np.bincount(world.row, minlength=len(world.tokens))
        means = [active[world.tokens == t].mean() for t in (0, 5, RARE[0], 30, 50)]
        expected = 1.0 if name == "null" else 1 + LIFTED * (LIFT - 1)
        # a few features are most of the activity, so which of them a hub lifts matters
        assert np.mean(means[:3]) / np.mean(means[3:]) == pytest.approx(expected, rel=0.3)
        errors = [
            active[world.tokens == t].std() / (world.tokens == t).sum() ** 0.5 for t in (0, 30)
        ]
        if name == "null":
            assert abs(means[0] - means[3]) < 4 * np.hypot(*errors)


def test_features_follow_the_topic_of_the_document_in_the_bursty_world():
    world = plant("bursty", seed=0)
    dense = fired(world)
    by_document = np.stack([dense[world.document == d].mean(0) for d in range(240)])
    busy = by_document.mean(0) > 0.01
    spread = by_document[:, busy].std(0) / by_document[:, busy].mean(0)
    assert np.median(spread) > 1.5


def test_tokens_own_as_many_features_as_was_planted():
    for name in ("degree", "single"):
        world = plant(name, seed=1)
        dense = fired(world)
        for token in range(40):
            met = int(dense[world.tokens == token].any(0).sum())
            assert met == world.degree[token]
    assert np.ptp(plant("single", seed=0).degree) == 0


def test_unknown_worlds_are_refused():
    with pytest.raises(UnknownNameError, match="planted world"):
        plant("nul", seed=0)
