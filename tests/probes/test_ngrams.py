"""The n-gram baseline beside a slow one that counts in dictionaries and keeps no arrays."""

import math
from collections import Counter

import numpy as np
import pytest

from interp.errors import PromptError
from probes.documents import Window
from probes.ngrams import NGram

V = 7
RNG = np.random.default_rng(0)
TEXTS = [RNG.integers(5, size=n).tolist() for n in (30, 1, 17, 2, 40)]


def slow_p(texts, history, token, discounts):
    """Probability of a token behind a history, straight from the definition."""
    if not discounts:
        return 1 / V
    n = len(discounts)
    context = tuple(history[len(history) - n + 1 :]) if n > 1 else ()
    lower = slow_p(texts, history, token, discounts[:-1])
    if len(context) < n - 1:
        return lower
    behind = Counter(
        text[i + n - 1]
        for text in texts
        for i in range(len(text) - n + 1)
        if tuple(text[i : i + n - 1]) == context
    )
    if not behind:
        return lower
    d = discounts[-1]
    own = max(behind[token] - d, 0)
    return (own + d * len(behind) * lower) / sum(behind.values())


@pytest.mark.parametrize("order", [1, 2, 3])
def test_surprisal_is_that_of_the_slow_model(order):
    model = NGram.fit(TEXTS, V, order)
    discounts = [t.discount for t in model.tables]
    text = [0, 4, 6, 2, 2, 5, 1, 0, 3, 3]
    slow = [-math.log(slow_p(TEXTS, text[:i], t, discounts)) for i, t in enumerate(text)]
    assert np.allclose(model.surprisal(text), slow, atol=1e-12)


def test_a_lower_order_of_a_model_is_the_model_of_that_order():
    three, one = NGram.fit(TEXTS, V, 3), NGram.fit(TEXTS, V, 1)
    assert np.allclose(three.surprisal(TEXTS[0], 1), one.surprisal(TEXTS[0]))


@pytest.mark.parametrize("options", [{}, {"bos": 3}, {"most": 6}])
@pytest.mark.parametrize("history", [[], [0], [6], [1, 2], [6, 6]])
def test_probabilities_sum_to_one_behind_any_context(history, options):
    model = NGram.fit(TEXTS, V, 3, **options)
    p = [math.exp(-model.surprisal([*history, token])[-1]) for token in range(V)]
    assert min(p) > 0 and sum(p) == pytest.approx(1, abs=1e-12)


def test_the_discount_is_the_estimate_from_singletons_and_pairs():
    model = NGram.fit([[0, 1, 2, 2, 3, 3, 4, 4, 4]], V, 1)  # n1 = 2, n2 = 2
    assert model.tables[0].discount == pytest.approx(2 / (2 + 4))


def test_nothing_is_counted_over_the_edge_of_a_window_and_batches_do_not_matter(monkeypatch):
    torn = NGram.fit([[0, 1], [2, 0]], V, 2)
    assert torn.tables[1].key.tolist() == [0 * V + 1, 2 * V + 0]
    whole = NGram.fit(TEXTS, V, 3)
    monkeypatch.setattr("probes.ngrams.BATCH", 5)
    for a, b in zip(whole.tables, NGram.fit(TEXTS, V, 3).tables, strict=True):
        assert (a.key == b.key).all() and (a.count == b.count).all()


def test_a_beginning_is_a_context_and_never_foretold():
    found = NGram.fit([Window(0, "a", 0, (6, 1, 2)), Window(0, "a", 2, (6, 1))], V, 2, bos=6)
    assert found.tables[0].total.tolist() == [3]
    assert found.surprisal([6, 1])[1] < found.surprisal([0, 1])[1]


def test_memory_is_bounded_by_forgetting_the_rarest():
    model = NGram.fit(TEXTS, V, 2, most=10)
    full = NGram.fit(TEXTS, V, 2).tables[1]
    pairs = model.tables[1]
    assert len(pairs.key) <= 10 < len(full.key) and pairs.forgotten > 0
    kept = full.count > pairs.forgotten
    assert pairs.key.tolist() == full.key[kept].tolist()


def test_refusals():
    for texts, order in (([[V]], 1), ([[-1]], 1), ([], 1), ([[1]], 0)):
        with pytest.raises(PromptError):
            NGram.fit(texts, V, order)
    with pytest.raises(PromptError, match="order 8"):
        NGram.fit(TEXTS, 300, 8)
    with pytest.raises(PromptError, match="order 3 was not counted"):
        NGram.fit(TEXTS, V, 2).surprisal([1], 3)
