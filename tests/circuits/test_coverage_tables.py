"""Coverage tables against sets; the null world shows no excess."""

import numpy as np
import pytest
from graphs import random_counts

from circuits.coverage_tables import (
    by_number_of_tokens,
    content_coverage,
    most_frequent,
    sensitivity,
    table_one,
)
from circuits.edge_rules import RULES, apply_rule, parse_rule
from circuits.feature_counting import merged
from circuits.graph_calibration import planted_blocks
from circuits.richness import blind_coverage
from interp.errors import ResultError
from probes.planted_features import plant


def blocks_of(name, seed=0):
    return planted_blocks(plant(name, seed=seed, n_documents=60, active=3.0), n_blocks=6)[0]


@pytest.fixture(scope="module")
def null():
    return blocks_of("null")


def test_table_one_by_sets(null):
    counts = merged(null)
    rule = parse_rule("30%")
    table = table_one(counts, top=5, rule=rule, content=range(24, 300), n_draws=5)
    edges = apply_rule(counts, rule)
    alive = set(counts.feature.tolist())
    seen = set()
    for k, token in enumerate(most_frequent(counts, 5)):
        seen |= set(edges.feature[edges.row(token)].tolist())
        row = table.iloc[k]
        assert (row["rank"], row["token"], row["reached"]) == (k + 1, token, len(seen))
        assert row["of_alive"] == pytest.approx(len(seen) / len(alive))
        assert row["null_low"] <= row["null_high"]
        assert row["cumulative_share"] == pytest.approx(table["share"][: k + 1].sum())
        assert row["excess"] == pytest.approx(row["of_alive"] - row["null_high"])


def test_a_blind_world_has_no_excess_over_its_null_nor_over_content_tokens():
    excess, content = [], []
    for seed in range(8):
        counts = merged(blocks_of("null", seed))
        table = table_one(counts, content=range(24, 300), n_draws=30)
        excess.append(table["excess"].to_numpy())
        content.append((table["of_alive"] - table["content_mean"]).to_numpy())
    for found in (np.array(excess), np.array(content)):
        error = found.std(0, ddof=1) / np.sqrt(len(found))
        assert (np.abs(found.mean(0)) < 4 * error).all() and np.abs(found.mean(0)).max() < 0.01


def test_tokens_skipped_are_in_no_list(null):
    counts = merged(null)
    first = most_frequent(counts, 1)[0]
    assert first not in table_one(counts, top=5, n_draws=1, skip=[first])["token"].to_numpy()
    assert table_one(counts, top=2, n_draws=1)["content_mean"].isna().all()


def test_random_content_sets_have_as_many_positions_and_the_last_token_in_part():
    counts = random_counts(1, n=200, n_tokens=6, n_features=30, rate=0.02)
    found = content_coverage(counts, [3], counts.occurrences[[3]] // 2, n_draws=2, seed=0)
    whole = len(counts.feature[counts.row(3)])
    share = (counts.occurrences[3] // 2) / counts.occurrences[3]
    assert found == pytest.approx(whole * share)
    assert np.isnan(content_coverage(counts, [3], np.array([999]), n_draws=1, seed=0)).all()
    with pytest.raises(ResultError, match="one draw"):
        content_coverage(counts, [3], np.array([1]), n_draws=0, seed=0)


def test_sensitivity_has_a_row_a_rule_and_edges_by_hand(null):
    counts = merged(null)
    table = sensitivity(counts, top=(1, 3)).set_index("rule")
    assert list(table.index) == list(RULES)
    assert table.loc["any", "edges"] == counts.n_entries and table.loc["any", "kept"] == 1
    assert table.loc["count>=5", "edges"] == (counts.count >= 5).sum()
    peaks = table.loc[["10%", "20%", "30%", "50%"], "edges"]
    assert (np.diff(peaks) <= 0).all()
    top = most_frequent(counts, 3)
    alive = np.unique(counts.feature)
    reached = np.unique(counts.feature[np.isin(counts.token, top)])
    assert table.loc["any", "top_3"] == pytest.approx(len(reached) / len(alive))
    n = int(counts.occurrences[top].sum())
    assert table.loc["any", "null_3_low"] == pytest.approx(blind_coverage(counts, n))


def test_growth_ends_with_the_whole(null):
    table = by_number_of_tokens(null, top=(1, 10), steps=4)
    assert table["blocks"].tolist() == [1, 2, 3, 6]
    whole = merged(null)
    last = table.iloc[-1]
    assert last["positions"] == whole.n_positions and last["edges"] == whole.n_entries
    assert table["edges"].is_monotonic_increasing and last["once"] == (whole.count == 1).mean()
    assert last["top_10"] == pytest.approx(table_one(whole, n_draws=1)["of_alive"].iloc[-1])
