"""The verdict on a class of tokens, and single hubs, in worlds whose truth is known."""

import numpy as np
import pytest

from circuits.graph_calibration import planted_blocks
from circuits.graph_verdict import ClassRatio, _decided, judge_class, token_hubs
from interp.errors import ResultError
from probes.planted_features import COMMON, RARE, plant

GROUPS = {"members": range(COMMON), "others": range(COMMON, 300)}


def judged(name, seed=0, *, shuffled=True, **sizes):
    blocks, nulls = planted_blocks(plant(name, seed=seed, **sizes), n_blocks=8, seed=seed)
    return judge_class("common tokens", blocks, nulls if shuffled else None, **GROUPS)


def test_the_class_is_supported_where_it_is_wider_and_only_with_shuffled_labels():
    said = judged("hubs", n_documents=120)
    assert said.verdict == "supported" and said.shuffled
    assert all(r.low > 1.3 and r.p < 0.01 for r in said.ratios)
    assert "\n" not in said.reason and "at 30 occurrences" in said.reason
    bare = judged("hubs", n_documents=120, shuffled=False)
    assert bare.verdict == "inconclusive" and "shuffled within documents" in bare.reason


@pytest.mark.parametrize("seed", range(3))
def test_topics_look_like_hubs_until_labels_are_shuffled(seed):
    bare = judged("bursty", seed, n_documents=120, shuffled=False)
    assert bare.ratios[0].low > 1.1 and bare.verdict != "supported"
    assert judged("bursty", seed, n_documents=120).verdict == "unsupported"


def test_no_hub_in_a_blind_world_and_hubs_at_every_frequency_where_there_are_some():
    for seed in range(4):
        blocks, nulls = planted_blocks(plant("null", seed=seed, n_documents=120), n_blocks=8)
        assert not token_hubs(blocks, nulls, others=GROUPS["others"], m=20)["hub"].any()
    blocks, nulls = planted_blocks(plant("rare hubs", seed=1, n_documents=240), n_blocks=8)
    table = token_hubs(blocks, nulls, others=GROUPS["others"], m=20)
    named = table["token"][table["hub"]]
    assert set(named) == set(RARE) & set(table["token"])
    assert table["ratio"].is_monotonic_decreasing and len(set(RARE) & set(table["token"])) >= 2
    assert table["percentile"].iloc[0] > 95 and (table["low"] <= table["ratio"]).all()


def ratio(low, high, *, p=0.001, form="occurrences", value=None):
    value = value or (low * high) ** 0.5
    return ClassRatio(form, 30, value, low, high, p, 20, 100)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "why"),
    [
        (ratio(1.2, 1.4), ratio(1.2, 1.5), "supported", "at least 1.10"),
        (ratio(1.2, 1.4), ratio(1.0, 1.05), "unsupported", "excluded"),
        (ratio(0.5, 0.7), ratio(1.2, 1.5), "unsupported", "excluded"),
        (ratio(0.9, 1.5), ratio(1.2, 1.5), "inconclusive", "holds both"),
        (ratio(1.02, 1.15), ratio(1.2, 1.5), "inconclusive", "below 1.10"),
        (ratio(1.2, 1.4, p=0.2), ratio(1.2, 1.5), "inconclusive", "differ too much"),
        (ratio(1.2, 1.4), ratio(float("nan"), 1.0, value=float("nan")), "inconclusive", "only 20"),
    ],
)
def test_the_rule(first, second, verdict, why):
    said, reason = _decided((first, second), True, 1.10)
    assert said == verdict and why in reason


def test_too_little_text_and_other_refusals():
    blocks, nulls = planted_blocks(plant("null", seed=0, n_documents=8), n_blocks=4)
    said = judge_class("common tokens", blocks, nulls, m=5000, **GROUPS)
    assert said.verdict == "inconclusive" and "count more text" in said.reason
    assert np.isnan(said.ratios[0].ratio)
    with pytest.raises(ResultError, match="count more text"):
        token_hubs(blocks, nulls, others=GROUPS["others"], m=5000)
    with pytest.raises(ResultError, match="above 1"):
        judge_class("x", blocks, nulls, smallest=1.0, **GROUPS)
    with pytest.raises(ResultError, match="4 blocks"):
        judge_class("x", blocks[:2], nulls[:2], m=2, m_documents=2, **GROUPS)
