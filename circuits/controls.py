"""Control sets of heads: what else could have been ablated in place of the candidates?

A random set is a fair control only if it sits in the same layers: early heads break a model that
late heads leave whole. So a matched set has as many heads in each layer as the candidates, none
of the candidates, and no set comes twice. (Wu et al. 2024 draw over all layers, unseeded, and
may draw retrieval heads again.) Bottom and sink-heavy sets are the two controls that are not
random: the heads that the score ranks last, and the heads whose loss hurts any model.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import combinations, product
from math import comb, prod

import numpy as np
from jaxtyping import Float

from circuits.uncertainty import top
from interp.errors import ResultError
from interp.sites import Head

Heads = tuple[Head, ...]


def layer_matched(
    candidates: Sequence[Head],
    pool: Sequence[Head],
    *,
    n_draws: int,
    exclude: Collection[Head] = (),
    seed: int = 0,
) -> tuple[Heads, ...]:
    """Distinct random sets with as many heads in each layer as the candidates, each sorted.

    Every set is as likely as any other. The sets may share heads with each other, never with the
    candidates or with `exclude`. Where fewer than `n_draws` sets exist, all of them come, each
    once: the caller reports the number.

    Raises:
        ResultError: no candidates, or one twice; a layer with too few other heads; no draws.
    """
    if not candidates or len(set(candidates)) < len(candidates):
        raise ResultError(f"controls need distinct candidates, got {_shown(candidates)}")
    if n_draws < 1:
        raise ResultError(f"controls need at least 1 draw, got {n_draws}")
    needed = sorted(Counter(h.layer for h in candidates).items())
    free = _by_layer(set(pool) - set(candidates) - set(exclude))
    for layer, n in needed:
        if len(free.get(layer, ())) < n:
            raise ResultError(
                f"layer {layer} has {len(free.get(layer, ()))} heads besides the candidates, a "
                f"matched random set needs {n}; ask for a smaller --top"
            )
    if prod(comb(len(free[layer]), n) for layer, n in needed) <= n_draws:
        return tuple(_all_sets(needed, free))
    return tuple(_some_sets(needed, free, n_draws, np.random.default_rng(seed)))


def nested(ranked: Sequence[Head], sizes: Sequence[int]) -> tuple[Heads, ...]:
    """The first k heads of the ranking for each k, in the order of `sizes`.

    Raises:
        ResultError: a size below 1 or beyond the ranking.
    """
    for k in sizes:
        if not 1 <= k <= len(ranked):
            raise ResultError(f"sizes lie in 1 to {len(ranked)}, the number of ranked heads: {k}")
    return tuple(tuple(ranked[:k]) for k in sizes)


def bottom(ranking: Sequence[Head], k: int, *, exclude: Collection[Head]) -> Heads:
    """The k heads that a ranking (best first) puts last, lowest first, none of `exclude`.

    Raises:
        ResultError: fewer than k heads are left.
    """
    return _first(k, reversed(ranking), exclude)


def sink_heavy(
    sink: Float[np.ndarray, "layer head"], k: int, *, exclude: Collection[Head]
) -> Heads:
    """The k heads with the most attention on the sink, most first, none of `exclude`; NaN never.

    Raises:
        ResultError: fewer than k heads are left.
    """
    order = top(sink.reshape(-1), sink.size)
    return _first(k, (Head(*divmod(int(i), sink.shape[1])) for i in order), exclude)


def kv_group(head: Head, n_groups: int) -> Heads:
    """All query heads that read the head's key-value head, itself among them.

    Under grouped-query attention they share keys and values, so an edit of those reaches all.
    """
    first = head.head - head.head % n_groups
    return tuple(Head(head.layer, first + i) for i in range(n_groups))


def _by_layer(heads: Collection[Head]) -> dict[int, list[Head]]:
    free: dict[int, list[Head]] = {}
    for head in sorted(heads):
        free.setdefault(head.layer, []).append(head)
    return free


def _all_sets(needed: list[tuple[int, int]], free: dict[int, list[Head]]) -> Iterator[Heads]:
    for parts in product(*(combinations(free[layer], n) for layer, n in needed)):
        yield tuple(head for part in parts for head in part)


def _some_sets(
    needed: list[tuple[int, int]],
    free: dict[int, list[Head]],
    n_draws: int,
    rng: np.random.Generator,
) -> list[Heads]:
    # a dict keeps the order of the draws; there are more sets than draws, so the loop ends
    found: dict[Heads, None] = {}
    while len(found) < n_draws:
        picks = [(rng.choice(len(free[layer]), n, replace=False), layer) for layer, n in needed]
        found[tuple(sorted(free[layer][i] for pick, layer in picks for i in pick))] = None
    return list(found)


def _first(k: int, heads: Iterator[Head], exclude: Collection[Head]) -> Heads:
    left = [h for h in heads if h not in set(exclude)]
    if not 1 <= k <= len(left):
        raise ResultError(f"a control of {k} heads: {len(left)} are left, ask for 1 to {len(left)}")
    return tuple(left[:k])


def _shown(heads: Sequence[Head]) -> str:
    twice = sorted(h for h, n in Counter(heads).items() if n > 1)
    return f"{', '.join(map(str, twice))} more than once" if twice else "none"
