"""Counts against a dictionary of dictionaries; however the text is cut into chunks."""

from collections import defaultdict

import numpy as np
import pytest

from circuits.feature_counting import Counter, count_positions, merged
from interp.errors import ResultError

V, F = 23, 41


def documents(seed, n=9, longest=40):
    """Tokens and what fired at each position, document by document."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        tokens = rng.integers(V, size=rng.integers(0, longest))
        fired = [rng.choice(F, rng.integers(0, 6), replace=False) for _ in tokens]
        yield number, tokens, [{int(f): float(rng.exponential()) for f in sorted(s)} for s in fired]


def arrays(fired):
    row = [i for i, at in enumerate(fired) for _ in at]
    feature = [f for at in fired for f in at]
    value = [v for at in fired for v in at.values()]
    return np.array(row, int), np.array(feature, np.int32), np.array(value, np.float32)


def slow(text):
    """One position after another."""
    seen = defaultdict(lambda: [0, set(), 0.0, 0.0])
    occurrences, where = np.zeros(V, int), defaultdict(set)
    for number, tokens, fired in text:
        for token, at in zip(tokens, fired, strict=True):
            occurrences[token] += 1
            where[token].add(number)
            for feature, value in at.items():
                entry = seen[int(token), feature]
                entry[0] += 1
                entry[1].add(number)
                entry[2] = max(entry[2], value)
                entry[3] += value
    return dict(sorted(seen.items())), occurrences, np.array([len(where[t]) for t in range(V)])


def agree(counts, text):
    seen, occurrences, token_documents = slow(text)
    assert [(t, f) for t, f in zip(counts.token, counts.feature, strict=True)] == list(seen)
    assert counts.count.tolist() == [e[0] for e in seen.values()]
    assert counts.documents.tolist() == [len(e[1]) for e in seen.values()]
    assert np.allclose(counts.largest, [e[2] for e in seen.values()])
    assert np.allclose(counts.total, [e[3] for e in seen.values()], rtol=1e-5)
    assert counts.occurrences.tolist() == occurrences.tolist()
    assert counts.token_documents.tolist() == token_documents.tolist()
    assert counts.n_documents == sum(len(tokens) > 0 for _, tokens, _ in text)
    row = counts.row(5)
    assert set(counts.feature[row]) == {f for t, f in seen if t == 5}


@pytest.mark.parametrize("chunk", [1, 30, 100, 10_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_equal_those_of_one_position_after_another(chunk, seed):
    text = list(documents(seed))
    counter = Counter(V, F, chunk=chunk)
    for number, tokens, fired in text:
        half = len(tokens) // 2  # documents come in windows
        for part in (slice(0, half), slice(half, None)):
            counter.add(tokens[part], number, *arrays(fired[part]))
    agree(counter.counts(), text)
    assert counter.n_activations == sum(len(at) for _, _, fired in text for at in fired)


def test_parts_without_a_common_document_merge_to_the_whole():
    text = list(documents(3, n=12))
    parts = []
    for group in (text[:5], text[5:6], text[6:]):
        counter = Counter(V, F)
        for number, tokens, fired in group:
            counter.add(tokens, number, *arrays(fired))
        parts.append(counter.counts())
    agree(merged(parts), text)
    whole = merged(parts)
    assert whole.firing.sum() == whole.count.sum()
    assert whole.peak.max() == whole.largest.max()


def test_selected_rows_keep_all_positions():
    text = list(documents(4))
    counter = Counter(V, F)
    for number, tokens, fired in text:
        counter.add(tokens, number, *arrays(fired))
    whole = counter.counts()
    some = whole.rows_of([3, 7])
    assert set(some.token) <= {3, 7} and some.n_positions == whole.n_positions
    for token in range(V):
        expected = whole.feature[whole.row(token)] if token in (3, 7) else []
        assert some.feature[some.row(token)].tolist() == list(expected)


def test_a_dictionary_that_never_fires_is_counted_too():
    none = np.array([], int)
    counts = count_positions(
        np.array([1, 1, 2]), np.array([0, 0, 1]), none, none, none, n_tokens=V, n_features=F
    )
    assert counts.n_entries == 0 and counts.n_positions == 3 and counts.token_documents[1] == 1


def test_what_does_not_fit_is_refused():
    one, none = np.array([0]), np.array([], int)
    with pytest.raises(ResultError, match="vocabulary of 23"):
        count_positions(np.array([V]), one, none, none, none, n_tokens=V, n_features=F)
    with pytest.raises(ResultError, match="dictionary of 41"):
        count_positions(one, one, one, np.array([F]), np.ones(1), n_tokens=V, n_features=F)
    with pytest.raises(ResultError, match="nothing was counted"):
        Counter(V, F).counts()
    a, b = (
        count_positions(one, one, none, none, none, n_tokens=n, n_features=F) for n in (V, V + 1)
    )
    with pytest.raises(ResultError, match="cannot be merged"):
        merged([a, b])
