"""Scores against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuits import scores

ANSWER = range(10, 13)
IDS = np.array([5, 6, 5])


def _argmax(*rows):
    """One layer, one head."""
    return np.array([[list(rows)]])


def test_a_head_that_copies_by_position_scores_one():
    argmax = _argmax(10, 11, 12)
    hits = scores.copied(argmax, IDS, ANSWER, IDS)
    assert scores.copy_score(hits) == 1
    assert scores.copy_multiset(hits) == 1
    assert scores.copy_exact(argmax, ANSWER) == 1


def test_a_sink_scores_zero():
    hits = scores.copied(_argmax(0, 0, 0), IDS, ANSWER, IDS)
    assert scores.copy_score(hits) == 0


def test_looking_at_the_needle_is_not_copying():
    """The argmax is in the answer, but another token is being produced."""
    hits = scores.copied(_argmax(11, 10, 11), IDS, ANSWER, IDS)
    assert scores.copy_score(hits) == 0


def test_another_occurrence_of_the_token_counts_as_copy_but_not_as_exact():
    argmax = _argmax(12, 11, 10)
    hits = scores.copied(argmax, IDS, ANSWER, IDS)
    assert scores.copy_score(hits) == 1
    assert scores.copy_exact(argmax, ANSWER) == pytest.approx(1 / 3)


def test_repeats_raise_the_published_form_above_one_and_not_ours():
    argmax = _argmax(10, 11, 12, 10, 11, 12)
    produced = np.array([5, 6, 5, 5, 6, 5])
    hits = scores.copied(argmax, produced, ANSWER, IDS)
    assert scores.copy_multiset(hits) == 2
    assert scores.copy_score(hits) == 1


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 99))
def test_copy_score_is_a_share_and_follows_a_permutation_of_heads(rows, seed):
    rng = np.random.default_rng(seed)
    argmax = rng.integers(0, 20, size=(2, 3, len(rows)))
    produced = rng.integers(4, 7, size=len(rows))
    score = scores.copy_score(scores.copied(argmax, produced, ANSWER, IDS))
    assert ((score >= 0) & (score <= 1)).all()
    order = rng.permutation(3)
    again = scores.copy_score(scores.copied(argmax[:, order], produced, ANSWER, IDS))
    assert np.array_equal(again, score[:, order])


def test_query_focus_subtracts_the_null_and_drops_low_outliers():
    asked = np.full((1, 1, 10), 0.1)
    null = np.zeros((1, 1, 10))
    assert scores.query_focus(asked, asked)[0, 0] == pytest.approx(0)
    null[..., 0] = 5.0  # one token that only the null looks at: gain -4.9, dropped
    assert scores.query_focus(asked, null)[0, 0] == pytest.approx(0.9)


def test_every_metric_states_what_it_is():
    for name, metric in scores.METRICS.items():
        assert name == metric.name
        assert metric.formula and metric.chance and metric.source and metric.low < metric.high


def test_labels_and_agreement():
    copy = np.array([[0.5, 0.05], [0.0, 0.2]])
    roles = {"induction": np.array([[0.9, 0.0], [0.4, 0.1]])}
    assert scores.role_labels(roles, copy) == [
        ["retrieval+induction", ""],
        ["induction", "retrieval"],
    ]
    names, matrix = scores.agreement({"a": copy, "b": -copy}, top=2)
    assert names == ["a", "b"]
    assert matrix[0, 0, 1] == pytest.approx(-1)
    assert matrix[1, 0, 1] == 0
