"""A slow, obvious counter of token-feature pairs, and small random graphs for the tests."""

from collections import defaultdict

import numpy as np

from circuits.feature_counts import FeatureCounts


def counted(tokens, document, row, feature, value, *, n_tokens, n_features):
    """Counts from a list of firings, one at a time."""
    found = defaultdict(list)
    for r, f, v in zip(row, feature, value, strict=True):
        found[int(tokens[r]), int(f)].append((int(document[r]), float(v)))
    keys = sorted(found)
    seen = {(int(t), int(d)) for t, d in zip(tokens, document, strict=True)}
    entries = [found[k] for k in keys]
    return FeatureCounts(
        n_features,
        np.bincount(tokens, minlength=n_tokens),
        np.bincount([t for t, _ in seen], minlength=n_tokens),
        len(set(document.tolist())),
        np.searchsorted([t for t, _ in keys], np.arange(n_tokens + 1)),
        np.array([f for _, f in keys], np.int32),
        np.array([len(e) for e in entries]),
        np.array([len({d for d, _ in e}) for e in entries]),
        np.array([max(v for _, v in e) for e in entries], np.float32),
        np.array([sum(v for _, v in e) for e in entries], np.float32),
    )


def random_firings(seed=0, *, n=60, n_tokens=4, n_features=7, n_documents=5, rate=0.2):
    """Tokens, documents and firings without any structure."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(n_tokens, size=n)
    document = np.sort(rng.integers(n_documents, size=n))
    row, feature = np.nonzero(rng.random((n, n_features)) < rate)
    value = rng.lognormal(size=len(row))
    return tokens, document, row, feature, value


def random_counts(seed=0, **sizes):
    """The same, counted."""
    n_tokens, n_features = sizes.get("n_tokens", 4), sizes.get("n_features", 7)
    firings = random_firings(seed, **sizes)
    return counted(*firings, n_tokens=n_tokens, n_features=n_features)
