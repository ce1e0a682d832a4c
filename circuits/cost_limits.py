"""Whether forwards fit, and how they spread: bytes at one time, and time over several workers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuits.cost import Forward, Sizes, kv_bytes
from interp.errors import PromptError

ROW_BLOCK = 2**20
"""Attention logits that are reduced at once on a CPU (`interp.backends.session.ROW_BUDGET`)."""


def working_bytes(sizes: Sizes, one: Forward) -> float:
    """Memory of a forward beside weights and cache, at its fullest.

    The larger of three moments: in the feed-forward part the embeddings, the residual, its normed
    copy and three activations of the wide kind; in attention the first three, queries, keys,
    values and outputs, the joined cache of the layer, a mask as truth values and as numbers, and
    four copies of a block of rows; behind the last layer the logits, in float32, with a copy. Held
    beside all that are rows that are kept whole, twice while they are put together, and the logits
    of the whole call. These are the bytes in use: an allocator that keeps what was freed adds to
    them.
    """
    s, n, keys = sizes, one.n_new, one.n_before + one.n_new
    residual = n * s.d_model
    feed_forward = 3 * residual + 3 * n * s.d_wide
    heads = n * (3 * s.n_heads + 2 * s.n_kv_heads) * s.d_head
    masked = not one.plain or s.masked_layers
    joined = 0 if one.plain else kv_bytes(s, keys) / s.n_layers / s.itemsize
    attention = 3 * residual + heads + joined + (n * keys if masked else 0)
    block = 4 * min(ROW_BLOCK, s.n_heads * one.rows * keys) * 4
    mask = 2 * n * keys if masked else 0
    behind = 2 * 4 * one.logits * s.d_vocab
    held = 2 * 4 * one.whole * keys + 4 * one.gathered * s.d_vocab
    moments = (feed_forward * s.itemsize + mask, attention * s.itemsize + mask + block, behind)
    return max(moments) + held


@dataclass(frozen=True)
class Memory:
    """Bytes: of the weights, of keys and values held at one time, and of work on top of these."""

    weights: float
    cached: float
    working: float

    @property
    def beyond_weights(self) -> float:
        """What a run adds to a loaded model."""
        return self.cached + self.working


def memory(sizes: Sizes, n_cached: float, work: Iterable[Forward]) -> Memory:
    """Memory of work behind `n_cached` tokens of keys and values, held all along."""
    largest = max((working_bytes(sizes, one) for one in work), default=0.0)
    return Memory(sizes.all_weights * sizes.itemsize, kv_bytes(sizes, n_cached), largest)


@dataclass(frozen=True)
class Spread:
    """Time over workers, each with a model of its own on a GPU (or machine) of its own.

    A context with all of its questions (an entity set, a block of text) is the unit that one worker
    takes, since its keys and values are read once and stay with it. So a stage takes as long as its
    fullest worker, longest units given out first; the next stage waits for it; and `serial` is what
    every worker, or one while the others wait, does alone: loading, planning, whatever belongs to
    no context. More workers than contexts gain nothing.

    Attributes:
        stages: seconds of the units of each stage.
    """

    stages: tuple[tuple[float, ...], ...]
    serial: float = 0.0

    def seconds(self, workers: int) -> float:
        """Time on so many workers.

        Raises:
            PromptError: fewer than one.
        """
        if workers < 1:
            raise PromptError(f"{workers} workers cannot run anything; use 1 or more")
        return self.serial + sum(_fullest(units, workers) for units in self.stages)


def _fullest(units: Sequence[float], workers: int) -> float:
    """Time of the busiest worker, every unit given to the idlest, longest first."""
    busy = [0.0] * min(workers, max(1, len(units)))
    for unit in sorted(units, reverse=True):
        busy[busy.index(min(busy))] += unit
    return max(busy)
