"""Counting which token activates which feature, in one pass and bounded memory.

No comparison sort: activations come in rows (positions), rows are put in order of their tokens,
and turning compressed rows into compressed columns is a counting sort by feature. After it, all
activations of a token and a feature stand together, and are cut into runs. Chunks end with
documents, since an entry says in how many documents it was seen; counts of chunks are merged
whenever they have grown to the same size, so that an entry is merged about log2(chunks) times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuits.feature_counts import FeatureCounts
from interp.errors import ResultError

CHUNK = 16_000_000
"""Activations that are gathered before they are sorted (about 500 MB of arrays)."""


def count_positions(
    tokens: Int[np.ndarray, " pos"],
    document: Int[np.ndarray, " pos"],
    row: Int[np.ndarray, " active"],
    feature: Int[np.ndarray, " active"],
    value: Float[np.ndarray, " active"],
    *,
    n_tokens: int,
    n_features: int,
) -> FeatureCounts:
    """Counts of a stretch of text.

    Args:
        tokens: token at each position read.
        document: number of its document; every document lies in one stretch, and its positions
            follow one another.
        row, feature, value: position, feature and activation of everything that fired, in order
            of position.

    Raises:
        ResultError: a token or feature outside the vocabulary or dictionary.
    """
    _check(tokens, n_tokens, "token", "vocabulary")
    _check(feature, n_features, "feature", "dictionary")
    by_token = np.argsort(tokens, kind="stable")
    lengths = np.bincount(row, minlength=len(tokens))
    runs = _runs(tokens, document, by_token, lengths, feature, n_features)
    activation = value.astype(np.float32)[runs.order]
    columns = {
        "count": np.diff(runs.first, append=len(runs.order)).astype(np.int32),
        "documents": _changes(runs.where, runs.first),
        "largest": _reduced(np.maximum, activation, runs.first),
        "total": _reduced(np.add, activation, runs.first),
    }
    return FeatureCounts(
        n_features,
        np.bincount(tokens, minlength=n_tokens),
        _documents(tokens, document, n_tokens),
        len(np.unique(document)),
        **_by_token(runs, columns, n_tokens, n_features),
    )


def merged(parts: Sequence[FeatureCounts]) -> FeatureCounts:
    """The counts of several stretches of text that share no document.

    Raises:
        ResultError: no part, or parts of other vocabularies or dictionaries.
    """
    if not parts:
        raise ResultError("no counts to merge: nothing was counted yet")
    sizes = {(p.n_tokens, p.n_features) for p in parts}
    if len(sizes) > 1:
        raise ResultError(f"counts of other vocabularies or dictionaries cannot be merged: {sizes}")
    if len(parts) == 1:
        return parts[0]
    ((n_tokens, n_features),) = sizes
    # a row is a token in a part; rows of a token come in order of the parts
    token = np.tile(np.arange(n_tokens), len(parts))
    lengths = np.concatenate([np.diff(p.indptr) for p in parts])
    feature = np.concatenate([p.feature for p in parts])
    by_token = np.arange(len(token)).reshape(len(parts), n_tokens).T.ravel()
    runs = _runs(token, token, by_token, lengths, feature, n_features)
    combine = {"count": np.add, "documents": np.add, "largest": np.maximum, "total": np.add}
    columns = {
        f: _reduced(how, np.concatenate([getattr(p, f) for p in parts])[runs.order], runs.first)
        for f, how in combine.items()
    }
    return FeatureCounts(
        n_features,
        np.sum([p.occurrences for p in parts], axis=0),
        np.sum([p.token_documents for p in parts], axis=0),
        sum(p.n_documents for p in parts),
        **_by_token(runs, columns, n_tokens, n_features),
    )


class Counter:
    """Counts that grow document by document."""

    def __init__(self, n_tokens: int, n_features: int, *, chunk: int = CHUNK) -> None:
        self.n_tokens, self.n_features = n_tokens, n_features
        self.chunk = chunk
        self.runs: list[FeatureCounts] = []
        self.waiting: list[tuple[np.ndarray, ...]] = []
        self.n_waiting = self.n_positions = self.n_activations = 0

    def add(
        self,
        tokens: Int[np.ndarray, " pos"],
        document: int,
        row: Int[np.ndarray, " active"],
        feature: Int[np.ndarray, " active"],
        value: Float[np.ndarray, " active"],
    ) -> None:
        """Positions of a document, in order; a document is not taken up again after another."""
        last = self.waiting[-1][1][0] if self.waiting else document
        if self.n_waiting >= self.chunk and document != last:
            self._fold()
        if not len(tokens):
            return
        self.waiting.append(
            (tokens, np.full(len(tokens), document), row + self.n_positions, feature, value)
        )
        self.n_positions += len(tokens)
        self.n_waiting += len(row)
        self.n_activations += len(row)

    def counts(self) -> FeatureCounts:
        """All so far.

        Raises:
            ResultError: nothing was added.
        """
        self._fold()
        self.runs = [merged(self.runs)]
        return self.runs[0]

    def _fold(self) -> None:
        if not self.waiting:
            return
        columns = [np.concatenate(c) for c in zip(*self.waiting, strict=True)]
        tokens, document, row, feature, value = columns
        self.runs.append(
            count_positions(
                tokens,
                document,
                row,
                feature,
                value,
                n_tokens=self.n_tokens,
                n_features=self.n_features,
            )  # fmt: skip
        )
        self.waiting, self.n_waiting, self.n_positions = [], 0, 0
        while len(self.runs) > 1 and self.runs[-2].n_entries <= 2 * self.runs[-1].n_entries:
            self.runs[-2:] = [merged(self.runs[-2:])]


# -- helpers ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Runs:
    """Activations by feature, then token, then row.

    `order` gives them, `first` the beginning of each run of one feature and token, `token` and
    `bounds` its token and where the runs of each feature begin; `where` is the document of each.
    """

    order: np.ndarray
    first: np.ndarray
    token: np.ndarray
    bounds: np.ndarray
    where: np.ndarray


def _runs(
    token: np.ndarray, document: np.ndarray, by_token: np.ndarray, lengths: np.ndarray,
    feature: np.ndarray, n_features: int,
) -> _Runs:  # fmt: skip
    """Sort what fired, given in rows of `lengths`, by feature and token; all steps are linear."""
    from scipy.sparse import csr_array

    # narrow integers: the time goes into moving them
    whole = np.int32 if len(feature) < 2**31 else np.int64
    begins = np.cumsum(lengths) - lengths
    lengths = lengths[by_token]
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(whole)
    shift = (begins[by_token] - indptr[:-1]).astype(whole)
    place = np.arange(len(feature), dtype=whole) + np.repeat(shift, lengths)
    ordered = feature[place].astype(whole, copy=False)
    rows = csr_array((place, ordered, indptr), shape=(len(by_token), n_features))
    columns = rows.tocsc()
    row = by_token.astype(whole)[columns.indices]
    owner = token.astype(np.int32)[row]
    starts = np.ones(len(row), bool)
    np.not_equal(owner[1:], owner[:-1], out=starts[1:])
    edges = columns.indptr[:-1]
    starts[edges[edges < len(row)]] = True
    first = np.flatnonzero(starts)
    bounds = np.searchsorted(first, columns.indptr)
    return _Runs(columns.data, first, owner[first], bounds, document[row])


def _by_token(
    runs: _Runs, columns: dict[str, np.ndarray], n_tokens: int, n_features: int
) -> dict[str, np.ndarray]:
    """Entries, which come by feature, in rows by token."""
    from scipy.sparse import csc_array

    place = np.arange(len(runs.first), dtype=np.int32)
    shape = (n_tokens, n_features)
    rows = csc_array((place, runs.token, runs.bounds.astype(np.int32)), shape=shape).tocsr()
    return {
        "indptr": rows.indptr.astype(np.int64),
        "feature": rows.indices.astype(np.int32),
        **{name: column[rows.data] for name, column in columns.items()},
    }


def _reduced(combine: np.ufunc, column: np.ndarray, first: np.ndarray) -> np.ndarray:
    return combine.reduceat(column, first) if len(first) else column


def _changes(document: np.ndarray, first: np.ndarray) -> np.ndarray:
    """How many documents each run of activations meets; a document's own follow one another."""
    new = np.ones(len(document), np.int32)
    new[1:] = document[1:] != document[:-1]
    new[first] = 1
    return _reduced(np.add, new, first)


def _documents(tokens: np.ndarray, document: np.ndarray, n_tokens: int) -> np.ndarray:
    """In how many documents each token stands."""
    _, number = np.unique(document, return_inverse=True)
    pairs = np.unique(number.astype(np.int64) * n_tokens + tokens)
    return np.bincount(pairs % n_tokens, minlength=n_tokens)


def _check(values: np.ndarray, limit: int, what: str, of: str) -> None:
    if len(values) and not (values.min() >= 0 and values.max() < limit):
        raise ResultError(
            f"{what} {int(values.max())} lies outside a {of} of {limit}; the text was tokenised, "
            "or the dictionary made, for another model"
        )
