"""Rules for edges against loops over entries; the blind null under each against permutations."""

import numpy as np
import pytest
from graphs import counted, random_counts, random_firings

from circuits.edge_rules import ANY, RULES, apply_rule, blind_range, parse_rule
from interp.errors import UnknownNameError


def edges(counts):
    return set(zip(counts.token.tolist(), counts.feature.tolist(), strict=True))


def slow_edges(counts, rule):
    found = set()
    for f in range(counts.n_features):
        mine = np.flatnonzero(counts.feature == f)
        if not len(mine):
            continue
        peak = counts.largest[mine].max()
        by_mass = sorted(mine, key=lambda e: -counts.total[e])
        mass, whole = 0.0, float(counts.total[mine].sum())
        for e in by_mass:
            keep = {
                "count": counts.count[e] >= rule.at,
                "documents": counts.documents[e] >= rule.at,
                "peak": counts.largest[e] >= rule.at / 100 * peak,
                "mass": mass < rule.at / 100 * whole,
            }[rule.kind]
            mass += float(counts.total[e])
            if keep:
                found.add((int(counts.token[e]), f))
    return found


@pytest.mark.parametrize("name", RULES)
def test_rules_equal_a_loop_over_entries(name):
    counts = random_counts(1, n=800, n_tokens=8, n_features=30, n_documents=20, rate=0.06)
    kept = apply_rule(counts, RULES[name])
    assert edges(kept) == slow_edges(counts, RULES[name])
    assert np.array_equal(kept.occurrences, counts.occurrences)
    if name != "any":
        assert 0 < kept.n_entries < counts.n_entries


def test_the_names_of_rules_are_read_back():
    for name, rule in RULES.items():
        assert parse_rule(name) == rule
    assert parse_rule("12.5 %").at == 12.5 and parse_rule(" any ") is ANY


@pytest.mark.parametrize("text", ["", "0%", "101%", "count>=0", "count>5", "ten", "mass>=0%"])
def test_other_rules_are_refused(text):
    with pytest.raises(UnknownNameError, match="unknown edge rule"):
        parse_rule(text)


@pytest.mark.parametrize(("name", "exact"), [("any", True), ("count>=2", True), ("30%", False)])
def test_the_null_is_that_of_permuted_labels(name, exact):
    n, n_features, rule = 400, 60, parse_rule(name)
    firings = random_firings(2, n=n, n_tokens=8, n_features=n_features, rate=0.03)
    tokens, document, row, feature, value = firings
    counts = counted(*firings, n_tokens=8, n_features=n_features)
    low, high = blind_range(counts, rule, [0, 3])
    rng, draws = np.random.default_rng(0), []
    for _ in range(300):
        mixed = rng.permutation(tokens)
        one = counted(mixed, document, row, feature, value, n_tokens=8, n_features=n_features)
        kept = apply_rule(one, rule)
        reached = kept.feature[np.isin(kept.token, [0, 3])]
        draws.append(len(np.unique(reached)) / (counts.firing > 0).sum())
    error = 4 * np.std(draws) / np.sqrt(len(draws))
    if exact:
        assert low == high == pytest.approx(np.mean(draws), abs=error)
    else:
        assert low - error <= np.mean(draws) <= high + error
        assert high - low < 0.15


def test_rules_without_a_null_say_so():
    counts = random_counts(3)
    assert all(np.isnan(blind_range(counts, parse_rule("documents>=2"), [0])))
    assert all(np.isnan(blind_range(counts, parse_rule("mass>=90%"), [0])))
