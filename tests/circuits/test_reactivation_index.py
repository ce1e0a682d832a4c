"""The index on worlds whose truth is known, its counts against plain loops."""

import numpy as np
import pytest

from circuits.reactivation_index import (
    DISTANCES,
    class_index,
    count_window,
    distance_index,
    index_table,
    joined,
    labels_of,
)
from interp.errors import ResultError
from probes.token_classes import INDEX

N_TOKENS, N_FEATURES = 30, 40
FUNCTION = np.arange(N_TOKENS) < 6
CLASSES = np.where(FUNCTION, INDEX["function word"], INDEX["content"])
LABELS = labels_of(CLASSES, FUNCTION)


def world(seed, *, lift=1.0, n=120):
    """Features fire at random; at function tokens `lift` times as often once they fired."""
    rng = np.random.default_rng(seed)
    tokens = np.where(rng.random(n) < 0.4, rng.integers(6, size=n), rng.integers(6, N_TOKENS, n))
    seen = np.zeros(N_FEATURES, bool)
    fired = np.zeros((n, N_FEATURES), bool)
    for p, token in enumerate(tokens):
        again = FUNCTION[token] & seen
        fired[p] = rng.random(N_FEATURES) < np.where(again, 0.06 * lift, 0.06)
        seen |= fired[p] & ~FUNCTION[token]
    return tokens, *np.nonzero(fired)


def cells(lift=1.0, *, n_windows=30, n_shuffles=10):
    found = []
    for w in range(n_windows):
        tokens, position, feature = world(w, lift=lift)
        rng = np.random.default_rng([9, w])
        share = np.full(N_FEATURES, 0.4)
        found.append(count_window(tokens, position, feature, labels=LABELS, own_share=share,
                                  n_shuffles=n_shuffles, rng=rng))  # fmt: skip
    return joined(found), [w // 3 for w in range(n_windows)]


def test_every_control_gives_about_one_in_a_world_blind_to_the_token():
    table = index_table(*cells())
    odds = table["control"] == "matched content"
    assert table["index"][~odds].to_numpy() == pytest.approx(1, abs=0.05)
    assert ((table["low"] < 1) & (table["high"] > 1))[odds].all()


def test_features_that_come_back_at_function_tokens_are_found_by_every_control():
    table = index_table(*cells(3.0))
    assert (table["low"] > 1.2).all()
    # a feature seen before is three times as likely to fire there, one not seen is not
    matched = table[table["control"] == "matched content"]
    assert matched["index"].iloc[0] == pytest.approx(3, rel=0.15)
    expected = 3 * 0.4 / (3 * 0.4 + 0.6) / 0.4
    own = table[(table["control"] == "own share") & (table["source"] == "any source")]
    assert own["index"].iloc[0] == pytest.approx(expected, rel=0.07)
    assert (matched["observed"] > matched["expected"]).all()


def test_counts_are_those_of_a_loop():
    tokens, position, feature = world(5)
    found = count_window(
        tokens, position, feature, labels=LABELS, own_share=np.linspace(0, 1, N_FEATURES),
        n_shuffles=3, rng=np.random.default_rng(0),
    )  # fmt: skip
    expected = np.zeros_like(found.observed[0])
    own = [0.0, 0.0]
    pairs = list(zip(position, feature, strict=True))
    for p, f in pairs:
        sources = [q for q, g in pairs if g == f and q < p and not FUNCTION[tokens[q]]]
        kinds = [bool(sources), any(tokens[q] != tokens[p] for q in sources)]
        for s, yes in enumerate(kinds):
            if yes:
                apart = p - max(sources)
                bin_ = [low <= apart <= high for low, high in DISTANCES.values()].index(True)
                expected[s, LABELS[tokens[p]], bin_] += 1
                own[s] += f / (N_FEATURES - 1)
    np.testing.assert_array_equal(found.observed[0], expected)
    np.testing.assert_allclose(found.own[0], own)
    assert found.strata[0, ..., 0].sum() == 2 * len(pairs)
    np.testing.assert_array_equal(found.strata[0, ..., 1].sum((1, 2)), expected.sum((1, 2)))
    assert found.positions.sum() == len(tokens) and found.active.sum() == len(pairs)


def test_shuffling_keeps_the_number_of_labels():
    tokens = np.repeat([0, 10], [4, 8])
    position, feature = np.arange(12), np.zeros(12, int)
    found = count_window(tokens, position, feature, labels=LABELS, own_share=np.zeros(1),
                         n_shuffles=200, rng=np.random.default_rng(0))  # fmt: skip
    at_function = found.shuffled[0, 0, 1::2].sum()
    # the feature fires everywhere, so that all function labels but those before the first
    # content label are re-activations: 4 minus the mean length of that run, 4 / 9
    assert at_function == pytest.approx(4 - 4 / 9, abs=0.15)
    assert found.observed[0, 0, 1::2].sum() == 0


def test_classes_and_distances_stand_beside_each_other():
    found, documents = cells(3.0)
    classes = class_index(found, documents).set_index("class")
    assert classes.loc["function word", "index"] == classes.loc["function token", "index"] > 1.2
    assert classes.loc["content", "index"] < 1 and "digit" not in classes.index
    distances = distance_index(found, documents)
    assert distances["n"].sum() == found.observed[:, 0].sum()
    assert (distances["index"] > 1).all()


def test_one_document_gives_no_interval():
    found, documents = cells(n_windows=2)
    with pytest.raises(ResultError, match="2 documents"):
        index_table(found, [0] * len(documents))
