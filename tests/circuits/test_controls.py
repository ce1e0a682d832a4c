"""Control sets against enumeration by brute force, and their refusals."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits.controls import bottom, kv_group, layer_matched, nested, sink_heavy
from interp.errors import ResultError
from interp.sites import Head

POOL = [Head(layer, head) for layer in range(4) for head in range(5)]


def _per_layer(heads):
    return Counter(h.layer for h in heads)


def _every_set(candidates, pool):
    """All matched sets, by trying every subset."""
    free = sorted(set(pool) - set(candidates))
    wanted = _per_layer(candidates)
    return {s for s in combinations(free, len(candidates)) if _per_layer(s) == wanted}


@settings(deadline=None)
@given(st.sets(st.sampled_from(POOL), min_size=1, max_size=4), st.integers(0, 9))
def test_sets_match_layer_by_layer_and_never_hold_a_candidate(chosen, seed):
    candidates = list(chosen)
    if max(_per_layer(candidates).values()) > 2:
        return
    sets = layer_matched(candidates, POOL, n_draws=12, seed=seed)
    assert len(set(sets)) == len(sets) == min(12, len(_every_set(candidates, POOL)))
    assert set(sets) <= _every_set(candidates, POOL)
    assert all(list(s) == sorted(s) for s in sets)


def test_where_few_sets_exist_all_come_once():
    candidates = [Head(0, 0), Head(2, 1), Head(2, 3)]
    expected = _every_set(candidates, POOL)
    assert len(expected) == 4 * 3
    for n_draws in (12, 13, 500):
        sets = layer_matched(candidates, POOL, n_draws=n_draws, seed=0)
        assert len(sets) == 12 and set(sets) == expected
    assert len(layer_matched(candidates, POOL, n_draws=11, seed=0)) == 11


def test_every_set_is_as_likely_as_any_other():
    candidates = [Head(0, 0), Head(2, 1), Head(2, 3)]
    counts = Counter(
        s for seed in range(600) for s in layer_matched(candidates, POOL, n_draws=4, seed=seed)
    )
    assert len(counts) == 12
    # 200 of each expected; sd 12
    assert all(150 < n < 250 for n in counts.values())


def test_the_seed_decides():
    first = layer_matched([Head(1, 1)] + [Head(3, 2)], POOL, n_draws=5, seed=3)
    assert first == layer_matched([Head(1, 1)] + [Head(3, 2)], POOL, n_draws=5, seed=3)
    assert first != layer_matched([Head(1, 1)] + [Head(3, 2)], POOL, n_draws=5, seed=4)


def test_excluded_heads_and_heads_outside_the_pool_never_come():
    exclude = {Head(1, 0), Head(1, 2)}
    sets = layer_matched([Head(1, 1)], POOL[:-1], n_draws=50, exclude=exclude, seed=0)
    assert set(sets) == {(Head(1, 3),), (Head(1, 4),)}


def test_a_layer_that_is_used_up_is_named():
    crowded = [Head(2, 0), Head(2, 1), Head(2, 2), Head(0, 1)]
    message = "layer 2 has 2 heads besides the candidates, a matched random set needs 3; .*--top"
    with pytest.raises(ResultError, match=message):
        layer_matched(crowded, POOL, n_draws=5, seed=0)
    with pytest.raises(ResultError, match="layer 7 has 0 heads"):
        layer_matched([Head(7, 0)], POOL, n_draws=5, seed=0)


def test_no_candidates_repeated_candidates_and_no_draws_are_refused():
    with pytest.raises(ResultError, match="distinct candidates, got none"):
        layer_matched([], POOL, n_draws=5, seed=0)
    with pytest.raises(ResultError, match="got L1H1 more than once"):
        layer_matched([Head(1, 1), Head(1, 1)], POOL, n_draws=5, seed=0)
    with pytest.raises(ResultError, match="at least 1 draw, got 0"):
        layer_matched([Head(1, 1)], POOL, n_draws=0, seed=0)


def test_nested_sets_grow_along_the_ranking():
    ranked = [Head(3, 1), Head(0, 0), Head(2, 4)]
    assert nested(ranked, [1, 3]) == ((Head(3, 1),), tuple(ranked))
    for size in (0, 4):
        with pytest.raises(ResultError, match=f"1 to 3.*: {size}"):
            nested(ranked, [1, size])


def test_bottom_is_the_end_of_the_ranking_without_candidates():
    ranking = [Head(3, 1), Head(0, 0), Head(2, 4), Head(1, 1)]
    assert bottom(ranking, 2, exclude=[Head(1, 1)]) == (Head(2, 4), Head(0, 0))
    with pytest.raises(ResultError, match="a control of 4 heads: 3 are left"):
        bottom(ranking, 4, exclude=[Head(1, 1)])


def test_sink_heavy_heads_are_the_largest_that_are_neither_excluded_nor_nan():
    sink = np.array([[0.1, 0.9, np.nan], [0.5, 0.7, 0.2]])
    assert sink_heavy(sink, 2, exclude={Head(0, 1)}) == (Head(1, 1), Head(1, 0))
    assert len(sink_heavy(sink, 5, exclude=())) == 5
    with pytest.raises(ResultError, match="6 heads: 5 are left"):
        sink_heavy(sink, 6, exclude=())


@pytest.mark.parametrize("n_groups", [1, 3, 4])
def test_kv_group_is_every_head_that_reads_the_same_key_value_head(n_groups):
    for head in range(12):
        expected = [Head(5, h) for h in range(12) if h // n_groups == head // n_groups]
        assert list(kv_group(Head(5, head), n_groups)) == expected
