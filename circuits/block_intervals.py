"""Intervals for anything that is computed from counts: which documents happened to be read.

Documents are put in blocks, counted apart, and the statistic is computed again with each block
left out (delete-one-block jackknife, Student's t). Resampling blocks with replacement, as is done
for means elsewhere here, is wrong for numbers of distinct features: a block drawn twice adds no
feature, a block not drawn takes its own away, so draws lie to one side of the estimate.

Decided by simulation: 120 samples of 240 documents in 12 blocks (40 bootstrap draws) from worlds of
`probes.planted_features`. Share of 95 % intervals that held the truth (null / bursty / hubs):

    statistic                                jackknife         percentile        centred bootstrap
    log ratio of degrees, common / content   .97 / .95 / .98   .00 / .35 / .00   .00 / .45 / .00
    ... relative to shuffled labels          .97 / .95 / .97   .90 / .83 / .78   .88 / .83 / .83
    coverage of 3 tokens, of features alive  .99 / 1.0 / 1.0   .10 / .03 / .28   .13 / .12 / .32

So the jackknife is right for ratios of rarefied degrees, and wide for coverage.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from circuits.feature_counting import merged
from circuits.feature_counts import FeatureCounts
from circuits.richness import Tokens
from interp.errors import ResultError

Blocks = Sequence[FeatureCounts]
FEWEST = 4
"""Blocks below which no interval is given."""


@dataclass(frozen=True, eq=False)
class BlockIntervals:
    """Statistics of all blocks together, in the statistic's unit, and their intervals.

    `low` and `high` are estimate -+ t `error`, `error` the jackknife's standard error; NaN where
    the statistic is NaN with any block left out.
    """

    estimate: Float[np.ndarray, " value"]
    low: Float[np.ndarray, " value"]
    high: Float[np.ndarray, " value"]
    error: Float[np.ndarray, " value"]
    n_blocks: int


def block_intervals(
    blocks: Blocks,
    statistic: Callable[..., np.ndarray],
    *others: Blocks,
    tokens: Tokens | None = None,
    level: float = 0.95,
) -> BlockIntervals:
    """Delete-one-block intervals of `statistic(counts, *others)`.

    `others` are counts of the same blocks otherwise labelled, such as shuffled ones: a block is
    left out of all of them at once. Statistics should vary smoothly: take logs of ratios, and
    means over tokens rather than medians. One that reads the rows of a few `tokens` alone is given
    no others, which spares merging them.

    Raises:
        ResultError: fewer than 4 blocks, or other numbers of them.
    """
    from scipy.stats import t

    if len(blocks) < FEWEST or any(len(b) != len(blocks) for b in others):
        sizes = ", ".join(str(len(b)) for b in (blocks, *others))
        raise ResultError(
            f"intervals need {FEWEST} blocks of documents or more, of every count, got {sizes}; "
            "count in more blocks"
        )
    series = (blocks, *others)
    if tokens is not None:
        series = tuple([block.rows_of(tokens) for block in one] for one in series)
    paired = list(zip(*series, strict=True))
    values = np.stack([np.atleast_1d(statistic(*left)) for left in leave_one_out(paired)])
    estimate = np.atleast_1d(statistic(*_merged(paired)))
    n = len(blocks)
    error = np.sqrt((n - 1) / n * ((values - values.mean(0)) ** 2).sum(0))
    width = t.ppf((1 + level) / 2, n - 1) * error
    return BlockIntervals(estimate, estimate - width, estimate + width, error, n)


def leave_one_out(
    blocks: Sequence[tuple[FeatureCounts, ...]],
) -> Iterator[tuple[FeatureCounts, ...]]:
    """Counts of all blocks but one, for each in order, at about log2(blocks) merges of a block."""
    yield from _without(list(blocks), [])


def _without(
    blocks: list[tuple[FeatureCounts, ...]], rest: list[tuple[FeatureCounts, ...]]
) -> Iterator[tuple[FeatureCounts, ...]]:
    """Halve the blocks: those of one half are left out in turn while the other half is merged."""
    if len(blocks) == 1:
        yield rest[0]
        return
    half = len(blocks) // 2
    for mine, away in ((blocks[:half], blocks[half:]), (blocks[half:], blocks[:half])):
        yield from _without(mine, [_merged([*rest, *away])])


def _merged(blocks: Sequence[tuple[FeatureCounts, ...]]) -> tuple[FeatureCounts, ...]:
    return tuple(merged(series) for series in zip(*blocks, strict=True))
