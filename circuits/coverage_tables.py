"""Tables of a token-feature graph: cumulative coverage, rules for edges, and growth with the text.

The first follows table 1 of arXiv 2510.08203, whose top 10 tokens reach 48-76 % of features, and
adds what that paper lacks: what the same number of positions reaches whichever tokens stand there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from circuits.degree_fits import degrees, frequency_slope, inequality
from circuits.edge_rules import ANY, RULES, EdgeRule, apply_rule, blind_range
from circuits.feature_counting import merged
from circuits.feature_counts import FeatureCounts
from circuits.richness import Tokens, checked_tokens, cumulative_coverage
from interp.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd


def most_frequent(
    counts: FeatureCounts, n: int, *, skip: Sequence[int] = ()
) -> Int[np.ndarray, " some"]:
    """The n tokens of most positions, ties by id; fewer where fewer occur. `skip`: never these."""
    occurrences = counts.occurrences.copy()
    occurrences[np.asarray(skip, dtype=np.int64)] = 0
    order = np.argsort(-occurrences, kind="stable")[:n]
    return order[occurrences[order] > 0]


def table_one(
    counts: FeatureCounts,
    *,
    top: int = 10,
    rule: EdgeRule = ANY,
    content: Tokens | None = None,
    n_draws: int = 100,
    skip: Sequence[int] = (),
    seed: int = 0,
) -> "pd.DataFrame":
    """Features reached by the 1, 2, ... most frequent tokens, beside two controls.

    A row a rank: rank, token, share and cumulative_share of positions; reached; of_dictionary,
    of_alive (shares; alive means that it fired at all, whatever the rule); null_low, null_high
    (labels permuted over positions, `circuits.edge_rules.blind_range`; the two are one for the
    rule "any"); excess (of_alive - null_high); content_mean, content_low, content_high: mean and
    95 % range over `n_draws` sets of `content` tokens that have as many positions. Sets are drawn
    in random order until they have, the last token in part, by linear interpolation; NaN where
    all content tokens have fewer, or none are given.
    """
    import pandas as pd

    tokens = most_frequent(counts, top, skip=skip)
    edges, alive = apply_rule(counts, rule), max(1, int((counts.firing > 0).sum()))
    positions = np.cumsum(counts.occurrences[tokens])
    reached = cumulative_coverage(edges, tokens).reached
    nulls = np.array([blind_range(counts, rule, tokens[:k]) for k in range(1, len(tokens) + 1)])
    nulls = nulls.reshape(-1, 2)
    pool = checked_tokens(counts, () if content is None else content)
    draws = content_coverage(edges, pool, positions, n_draws=n_draws, seed=seed) / alive
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return pd.DataFrame({
        "rank": np.arange(1, len(tokens) + 1), "token": tokens,
        "share": counts.occurrences[tokens] / counts.n_positions,
        "cumulative_share": positions / counts.n_positions, "reached": reached,
        "of_dictionary": reached / counts.n_features, "of_alive": reached / alive,
        "null_low": nulls[:, 0], "null_high": nulls[:, 1], "excess": reached / alive - nulls[:, 1],
        "content_mean": draws.mean(0), "content_low": low, "content_high": high,
    })  # fmt: skip


def content_coverage(
    edges: FeatureCounts, pool: Tokens, positions: Int[np.ndarray, " size"], *, n_draws: int,
    seed: int,
) -> Float[np.ndarray, "draw size"]:  # fmt: skip
    """Features reached by random tokens of the pool that have so many positions.

    Raises:
        ResultError: no draw.
    """
    if n_draws < 1:
        raise ResultError(f"random sets need one draw or more, got {n_draws}")
    pool = checked_tokens(edges, pool)
    pool = pool[edges.occurrences[pool] > 0]
    rng, out = np.random.default_rng(seed), np.full((n_draws, len(positions)), np.nan)
    for draw in out if len(pool) and len(positions) else ():
        order = rng.permutation(pool)
        sums = np.cumsum(edges.occurrences[order])
        enough = int(np.searchsorted(sums, positions.max())) + 1
        reached = cumulative_coverage(edges, order[:enough]).reached
        x, y = np.append(0, sums[:enough]), np.append(0, reached)
        draw[:] = np.interp(positions, x, y, right=np.nan)
    return out


def sensitivity(
    counts: FeatureCounts,
    rules: Sequence[EdgeRule] = tuple(RULES.values()),
    *,
    top: Sequence[int] = (1, 10),
    skip: Sequence[int] = (),
) -> "pd.DataFrame":
    """What each rule for edges leaves of the graph and of its headline.

    A row a rule: rule, title, edges, kept (share of all pairs seen), connected (share of alive
    features with an edge), top_k, null_k_low, null_k_high for each k (shares of alive features),
    gini of degrees, slope and r2 of log degree on log frequency.
    """
    import pandas as pd

    alive = max(1, int((counts.firing > 0).sum()))
    order, rows = most_frequent(counts, max(top), skip=skip), []
    for rule in rules:
        edges = apply_rule(counts, rule)
        row: dict[str, Any] = {
            "rule": rule.name, "title": rule.title, "edges": edges.n_entries,
            "kept": edges.n_entries / max(1, counts.n_entries),
            "connected": len(np.unique(edges.feature)) / alive,
        }  # fmt: skip
        reached = cumulative_coverage(edges, order).reached / alive
        for k in top:
            row[f"top_{k}"] = reached[min(k, len(order)) - 1]
            row[f"null_{k}_low"], row[f"null_{k}_high"] = blind_range(counts, rule, order[:k])
        slope = frequency_slope(edges)
        row |= {"gini": inequality(degrees(edges)).gini, "slope": slope.slope, "r2": slope.r2}
        rows.append(row)
    return pd.DataFrame(rows)


def by_number_of_tokens(
    blocks: Sequence[FeatureCounts],
    *,
    top: Sequence[int] = (1, 10),
    steps: int = 8,
    skip: Sequence[int] = (),
) -> "pd.DataFrame":
    """How edges and coverage grow with the text: the first 1, 2, ... blocks, `steps` of them.

    Tokens are those most frequent in all of it. A row a step: blocks, positions, edges, once
    (share of edges that rest on one activation), alive (share of the dictionary), top_k and null_k
    for each k (shares of the features alive by then).

    Raises:
        ResultError: no block.
    """
    import pandas as pd

    order = most_frequent(merged(blocks), max(top), skip=skip)
    sizes = np.unique(np.geomspace(1, len(blocks), steps).round().astype(int))
    rows, counts, done = [], blocks[0], 1
    for size in sizes:
        counts, done = merged([counts, *blocks[done:size]]), int(size)
        row: dict[str, Any] = {
            "blocks": done, "positions": counts.n_positions, "edges": counts.n_entries,
            "once": float((counts.count == 1).mean()) if counts.n_entries else float("nan"),
            "alive": float((counts.firing > 0).mean()),
        }  # fmt: skip
        covered = cumulative_coverage(counts, order).of_alive
        for k in top:
            row[f"top_{k}"] = covered[min(k, len(order)) - 1]
            row[f"null_{k}"] = blind_range(counts, ANY, order[:k])[0]
        rows.append(row)
    return pd.DataFrame(rows)
