"""How often each token activates each feature: the counts behind every token-feature graph.

Counts are kept, never edges alone: an edge of arXiv 2510.08203 says that a token activated a
feature once or more anywhere in the corpus, and from counts that rule, any other, and every
control follow. Rows are tokens, sorted; a row's features are sorted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

FIELDS = ("feature", "count", "documents", "largest", "total")
"""Columns of an entry, in the order in which they are stored."""


@dataclass(frozen=True, eq=False)
class FeatureCounts:
    """Counts of one dictionary over one stretch of text; entries in rows by token (CSR).

    Attributes:
        n_features: size of the dictionary, features that never fired included.
        occurrences: at how many of the positions read each token stood (N_t).
        token_documents: in how many documents each token stood at a position read.
        n_documents: documents with a position read.
        indptr: entry at which each token's row begins; one more than tokens.
        feature: feature of each entry.
        count: positions of the token at which the feature fired (n_tf).
        documents: documents in which it did.
        largest, total: largest activation there, and the sum of all.
    """

    n_features: int
    occurrences: Int[np.ndarray, " token"]
    token_documents: Int[np.ndarray, " token"]
    n_documents: int
    indptr: Int[np.ndarray, " row"]
    feature: Int[np.ndarray, " entry"]
    count: Int[np.ndarray, " entry"]
    documents: Int[np.ndarray, " entry"]
    largest: Float[np.ndarray, " entry"]
    total: Float[np.ndarray, " entry"]

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary."""
        return len(self.occurrences)

    @property
    def n_positions(self) -> int:
        """Positions read."""
        return int(self.occurrences.sum())

    @property
    def n_entries(self) -> int:
        """Token-feature pairs that were seen."""
        return len(self.feature)

    @cached_property
    def token(self) -> Int[np.ndarray, " entry"]:
        """Token of each entry."""
        return np.repeat(np.arange(self.n_tokens, dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def firing(self) -> Int[np.ndarray, " feature"]:
        """At how many positions each feature fired (n_f)."""
        return np.bincount(self.feature, self.count, self.n_features).astype(np.int64)

    @cached_property
    def peak(self) -> Float[np.ndarray, " feature"]:
        """Largest activation of each feature; 0 where it never fired."""
        peak = np.zeros(self.n_features, np.float32)
        np.maximum.at(peak, self.feature, self.largest)
        return peak

    def row(self, token: int) -> slice:
        """The entries of a token."""
        return slice(int(self.indptr[token]), int(self.indptr[token + 1]))

    def select(self, keep: Bool[np.ndarray, " entry"]) -> "FeatureCounts":
        """The same counts with some entries left out, occurrences unchanged."""
        kept = np.concatenate([[0], np.cumsum(keep)])
        columns = {name: getattr(self, name)[keep] for name in FIELDS}
        return FeatureCounts(
            self.n_features, self.occurrences, self.token_documents, self.n_documents,
            kept[self.indptr], **columns,
        )  # fmt: skip

    def rows_of(self, tokens: Sequence[int] | Int[np.ndarray, " some"]) -> "FeatureCounts":
        """The counts of some tokens alone, at their own numbers; other rows are empty.

        `occurrences` still tells of every token, since shares are of all positions.
        """
        wanted = np.zeros(self.n_tokens, bool)
        wanted[np.asarray(tokens, dtype=np.int64)] = True
        return self.select(wanted[self.token])
