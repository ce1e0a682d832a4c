"""An n-gram model as a baseline: what a text costs by its last one or two tokens alone.

Absolute discounting with interpolation (Ney, Essen and Kneser 1994): every count gives up a share
of one occurrence, and what a context gives up goes to the tokens by the shorter context. The
shortest context is none, below it all tokens are alike, so no token has probability zero.
The discount of each order is their estimate n1 / (n1 + 2 n2) from n-grams seen once and twice.
Lower orders are plain counts, not Kneser and Ney's numbers of contexts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from interp.errors import PromptError
from probes.documents import Window

BATCH = 1_000_000
"""Tokens counted at a time."""
MOST = 30_000_000
"""Different n-grams of an order that are held, 16 bytes each; beyond, the rarest are forgotten."""
DISCOUNTS = (0.1, 0.95)
"""Bounds of a discount: a text where nothing is seen once would reserve nothing for the unseen."""


@dataclass(frozen=True, eq=False)
class Grams:
    """Counts of one order. A key is the context's key times the vocabulary, plus the token.

    Attributes:
        key, count: of every n-gram that was seen, sorted by key.
        context, total, types: of every context, its occurrences and the tokens seen behind it.
        discount: what each count gives up, in occurrences.
        forgotten: counts up to this one were dropped to save memory; 0 if none was.
    """

    key: Int[np.ndarray, " gram"]
    count: Int[np.ndarray, " gram"]
    context: Int[np.ndarray, " context"]
    total: Int[np.ndarray, " context"]
    types: Int[np.ndarray, " context"]
    discount: float
    forgotten: int


@dataclass(frozen=True, eq=False)
class NGram:
    """Probabilities of the next token from the `order - 1` tokens before it.

    Attributes:
        tables: counts of orders 1, 2, ...
    """

    n_vocab: int
    tables: tuple[Grams, ...]

    @property
    def order(self) -> int:
        """Tokens of the longest n-gram."""
        return len(self.tables)

    @classmethod
    def fit(
        cls,
        windows: Iterable[Window | Sequence[int]],
        n_vocab: int,
        order: int = 2,
        *,
        bos: int | None = None,
        most: int = MOST,
    ) -> "NGram":
        """Count the n-grams inside each window; none goes over its edges.

        Args:
            bos: a token that is never foretold, though it may be a context.
            most: n-grams of an order that are held at a time.

        Raises:
            PromptError: no text, a token outside the vocabulary, an order that cannot be counted.
        """
        if order < 1 or n_vocab**order >= 2**63:
            raise PromptError(
                f"n-grams of order {order} over {n_vocab} tokens cannot be counted; take 1, 2 or 3"
            )
        held = [_Count() for _ in range(order)]
        for batch in _batches(windows, n_vocab):
            for n, counted in enumerate(held, start=1):
                keys = np.concatenate([_keys(ids, n, n_vocab) for ids in batch])
                counted.add(keys[keys % n_vocab != (-1 if bos is None else bos)], most)
        if not len(held[0].key):
            raise PromptError("there is no token to count n-grams of; give text")
        return cls(n_vocab, tuple(_grams(counted, n_vocab) for counted in held))

    def surprisal(
        self, tokens: Sequence[int] | Int[np.ndarray, " pos"], order: int | None = None
    ) -> Float[np.ndarray, " pos"]:
        """Minus log probability of each token behind those before it, in nats.

        The first tokens have shorter contexts. `order` takes a lower order of the same model.

        Raises:
            PromptError: a token outside the vocabulary, or an order that was not counted.
        """
        order = self.order if order is None else order
        if not 1 <= order <= self.order:
            raise PromptError(f"order {order} was not counted; take 1 to {self.order}")
        ids = _checked(tokens, self.n_vocab)
        p = np.full(len(ids), 1 / self.n_vocab)
        for n, table in enumerate(self.tables[:order], start=1):
            p[n - 1 :] = _mixed(table, _keys(ids, n, self.n_vocab), p[n - 1 :], self.n_vocab)
        return -np.log(p)


def _mixed(
    table: Grams, key: np.ndarray, lower: np.ndarray, n_vocab: int
) -> Float[np.ndarray, " pos"]:
    """Probabilities of one order from those of the order below; the same behind new contexts."""
    if not len(table.key):
        return lower
    at, seen = _found(table.context, key // n_vocab)
    gram, held = _found(table.key, key)
    own = np.where(held, table.count[gram] - table.discount, 0.0)
    reserved = table.discount * table.types[at]
    return np.where(seen, (own + reserved * lower) / table.total[at], lower)


def _found(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where wanted keys stand among sorted ones, and whether they do."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return at, keys[at] == wanted


class _Count:
    """Keys seen so far, sorted, with their counts."""

    def __init__(self) -> None:
        self.key = np.zeros(0, np.int64)
        self.count = np.zeros(0, np.int64)
        self.forgotten = 0

    def add(self, keys: np.ndarray, most: int) -> None:
        """Count more keys; the rarest are forgotten where there are too many."""
        fresh, times = np.unique(keys, return_counts=True)
        both = np.concatenate([self.key, fresh])
        self.key, place = np.unique(both, return_inverse=True)
        count = np.zeros(len(self.key), np.int64)
        np.add.at(count, place, np.concatenate([self.count, times]))
        self.count = count
        while len(self.key) > most:
            self.forgotten += 1
            kept = self.count > self.forgotten
            self.key, self.count = self.key[kept], self.count[kept]


def _grams(counted: _Count, n_vocab: int) -> Grams:
    context, begins, types = np.unique(
        counted.key // n_vocab, return_index=True, return_counts=True
    )
    total = np.add.reduceat(counted.count, begins) if len(begins) else begins
    once, twice = ((counted.count == n).sum() for n in (1, 2))
    discount = once / (once + 2 * twice) if once else 0.0
    return Grams(
        counted.key, counted.count, context, total, types,
        float(np.clip(discount, *DISCOUNTS)), counted.forgotten,
    )  # fmt: skip


def _keys(ids: np.ndarray, n: int, n_vocab: int) -> Int[np.ndarray, " gram"]:
    """Keys of all n-grams of a window, in order."""
    if len(ids) < n:
        return np.zeros(0, np.int64)
    powers = n_vocab ** np.arange(n - 1, -1, -1, dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(ids, n) @ powers


def _batches(
    windows: Iterable[Window | Sequence[int]], n_vocab: int
) -> Iterator[list[Int[np.ndarray, " pos"]]]:
    batch: list[np.ndarray] = []
    size = 0
    for window in windows:
        ids = _checked(window.tokens if isinstance(window, Window) else window, n_vocab)
        batch.append(ids)
        size += len(ids)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _checked(tokens: Sequence[int] | np.ndarray, n_vocab: int) -> Int[np.ndarray, " pos"]:
    ids = np.asarray(tokens, dtype=np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < n_vocab:
        bad = int(ids.max() if ids.min() >= 0 else ids.min())
        raise PromptError(f"token {bad} is outside a vocabulary of {n_vocab}; say its size")
    return ids
