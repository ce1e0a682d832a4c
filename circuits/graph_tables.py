"""All tables of one dictionary of a function-token run, made from its counts alone.

| table | what it tells |
|---|---|
| coverage | the paper's Table 1: features reached by the most frequent tokens, with both controls |
| sensitivity | the same under other rules for edges |
| amounts | the same on the first blocks of the text |
| classes | degrees at equal numbers of occurrences, by class of tokens |
| pairs | function words beside content tokens of the same frequency |
| regression | degree on occurrences, documents and class, with block intervals |
| degrees | inequality, slope on frequency, power law against its alternatives |
| verdict | does a class reach more than its frequency gives; the first row is the paper's class |
| hubs | tokens that reach more than content tokens do, at equal occurrences |
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.class_tables import (
    FUNCTION,
    OTHERS,
    by_class,
    class_effect,
    matched_pairs,
    steady_tokens,
    token_groups,
)  # fmt: skip
from circuits.coverage_tables import by_number_of_tokens, sensitivity, table_one
from circuits.degree_fits import degrees, fit_power_law, frequency_slope, inequality
from circuits.edge_rules import parse_rule
from circuits.feature_counting import merged
from circuits.feature_counts import FeatureCounts
from circuits.graph_plan import GraphSettings
from circuits.graph_verdict import OCCURRENCES, GraphVerdict, judge_class, token_hubs
from interp.errors import ResultError
from probes.token_classes import CLASSES, linguistic_classes
from probes.token_counts import TokenCounts, function_tokens
from probes.token_text import token_text

if TYPE_CHECKING:
    import pandas as pd

JUDGED = ("function word", "punctuation", "word-internal", "digit")
"""Classes that are judged against content tokens, beside the paper's class."""
CONTENT = "content"
CLUSTERS, COMPARED = 12, 400
"""Blocks that intervals leave out in turn (blocks of the run are joined), and the most tokens of
comparison, drawn at random: both bound the time of a verdict."""


def class_table(tokenizer: Any, counts: TokenCounts, settings: GraphSettings) -> "pd.DataFrame":
    """One row a token that occurs: id, text, occurrences, documents, share, function, class."""
    import pandas as pd

    n_vocab = len(counts.occurrences)
    ids = np.flatnonzero(counts.occurrences)
    classes = linguistic_classes(tokenizer, n_vocab=n_vocab)
    member = np.zeros(n_vocab, bool)
    member[function_tokens(counts, settings.cut)] = True
    return pd.DataFrame({
        "id": ids, "text": token_text(tokenizer, ids.tolist()),
        "occurrences": counts.occurrences[ids], "documents": counts.documents[ids],
        "share": counts.shares[ids], "function": member[ids],
        "class": [list(CLASSES)[i] for i in classes[ids]],
    }).sort_values("occurrences", ascending=False, kind="stable", ignore_index=True)  # fmt: skip


def tables(
    counts: FeatureCounts,
    blocks: Sequence[FeatureCounts],
    shuffled: Sequence[FeatureCounts],
    tokens: "pd.DataFrame",
    settings: GraphSettings,
) -> dict[str, "pd.DataFrame"]:
    """Every table, by name.

    Args:
        counts: of all blocks together.
        shuffled: of each block, with the tokens of each window in random order.
        tokens: see `class_table`.
    """
    groups = _groups(tokens, counts.n_tokens)
    coarse, null_blocks = _coarse(blocks), _coarse(shuffled)
    rule = parse_rule(settings.rule)
    coverage = table_one(
        counts, top=settings.top, rule=rule, content=groups[OTHERS], n_draws=settings.draws,
        seed=settings.seed,
    )  # fmt: skip
    null = merged(null_blocks)
    return {
        "coverage": _with_text(coverage, tokens),
        "sensitivity": sensitivity(counts, top=(1, settings.top)),
        "amounts": by_number_of_tokens(blocks, top=(1, settings.top)),
        "classes": by_class(counts, groups, null=null),
        "pairs": _with_text(
            matched_pairs(counts, groups["function word"], groups[CONTENT]), tokens
        ),
        "regression": _regression(coarse, groups, counts.n_tokens),
        "degrees": _degrees(counts, settings),
        "verdict": _verdicts(coarse, null_blocks, groups, settings.seed),
        "hubs": _hubs(coarse, null_blocks, groups, tokens, settings.seed),
    }


# -- helpers ----------------------------------------------------------------------------------


def _groups(tokens: "pd.DataFrame", n_tokens: int) -> dict[str, np.ndarray]:
    """Tokens that occur, by frequency class and by what they are."""
    classes = np.full(n_tokens, -1)
    classes[tokens["id"]] = [list(CLASSES).index(name) for name in tokens["class"]]
    found = token_groups(classes, list(CLASSES), tokens["id"][tokens["function"]].to_numpy())
    return {name: np.intersect1d(ids, tokens["id"]) for name, ids in found.items()}


def _coarse(blocks: Sequence[FeatureCounts]) -> list[FeatureCounts]:
    """Neighbouring blocks joined, so that there are at most `CLUSTERS`."""
    cuts = np.array_split(np.arange(len(blocks)), min(CLUSTERS, len(blocks)))
    return [merged([blocks[i] for i in cut]) for cut in cuts]


def _compared(blocks: Sequence[FeatureCounts], tokens: np.ndarray, seed: int) -> np.ndarray:
    """Tokens of comparison that occur often enough, at most `COMPARED` of them."""
    often = np.intersect1d(steady_tokens(blocks, OCCURRENCES), tokens)
    if len(often) <= COMPARED:
        return often
    return np.sort(np.random.default_rng(seed).choice(often, COMPARED, replace=False))


def _with_text(frame: "pd.DataFrame", tokens: "pd.DataFrame") -> "pd.DataFrame":
    text = dict(zip(tokens["id"], tokens["text"], strict=True))
    return frame.assign(text=[str(text.get(t, t)) for t in frame["token"]])


def _regression(
    blocks: Sequence[FeatureCounts], groups: dict[str, np.ndarray], n_tokens: int
) -> "pd.DataFrame":
    """Function words (the list) against all others; a reason where it cannot be told."""
    import pandas as pd

    member = np.zeros(n_tokens, bool)
    member[groups["function word"]] = True
    try:
        return class_effect(blocks, member)
    except ResultError as error:
        return pd.DataFrame([{"term": "not measured", "reason": str(error)}])


def _degrees(counts: FeatureCounts, settings: GraphSettings) -> "pd.DataFrame":
    """Rows of quantity and value; ratios above 0 speak for the power law."""
    import pandas as pd

    own = degrees(counts)
    slope, law = frequency_slope(counts), fit_power_law(own[own > 0], seed=settings.seed)
    of_degree = inequality(own[own > 0].astype(float))
    of_frequency = inequality(counts.occurrences[counts.occurrences > 0].astype(float))
    rows: dict[str, float | str] = {
        "Gini of degrees": of_degree.gini,
        "Gini of frequencies": of_frequency.gini,
        "effective number of tokens by degree": of_degree.effective,
        "slope of log degree on log frequency": slope.slope,
        "R2 of that slope": slope.r2,
        "power law: exponent": law.alpha,
        "power law: standard error": law.sigma,
        "power law: from degree": law.xmin,
        "power law: tokens in the tail": law.n_tail,
        "power law: distance (KS)": law.distance,
    }
    for name, (ratio, p) in law.ratios.items():
        rows |= {f"power law against {name}: log-likelihood ratio": ratio, f"p of that ({name})": p}
    if law.problem:
        rows["power law: not fitted"] = law.problem
    return pd.DataFrame({
        "quantity": list(rows), "value": [float(v) if not isinstance(v, str) else float("nan")
                                          for v in rows.values()],
        "note": [v if isinstance(v, str) else "" for v in rows.values()],
    })  # fmt: skip


def _verdicts(
    blocks: Sequence[FeatureCounts], shuffled: Sequence[FeatureCounts],
    groups: dict[str, np.ndarray], seed: int,
) -> "pd.DataFrame":  # fmt: skip
    import pandas as pd

    others, content = (_compared(blocks, groups[name], seed) for name in (OTHERS, CONTENT))
    pairs = [("function tokens (most frequent)", groups[FUNCTION], others)]
    pairs += [(f"tokens of class {n!r}", groups[n], content) for n in JUDGED]
    found = [
        judge_class(name, blocks, shuffled, members=members, others=others)
        for name, members, others in pairs
    ]
    return pd.DataFrame([
        _verdict(name, one) for (name, *_), one in zip(pairs, found, strict=True)
    ])  # fmt: skip


def _verdict(name: str, found: GraphVerdict) -> dict[str, Any]:
    row: dict[str, Any] = {"class": name, "verdict": found.verdict}
    for ratio in found.ratios:
        for field in ("ratio", "low", "high", "p", "n_members", "n_others"):
            row[f"{ratio.form}_{field}"] = getattr(ratio, field)
    sentence = f"{found.claim}: {found.verdict} ({found.reason})"
    return row | {"claim": found.claim, "reason": found.reason, "sentence": sentence}


def _hubs(
    blocks: Sequence[FeatureCounts], shuffled: Sequence[FeatureCounts],
    groups: dict[str, np.ndarray], tokens: "pd.DataFrame", seed: int,
) -> "pd.DataFrame":  # fmt: skip
    import pandas as pd

    try:
        found = token_hubs(blocks, shuffled, others=_compared(blocks, groups[OTHERS], seed))
    except ResultError as error:
        return pd.DataFrame([{"token": -1, "text": "not measured", "reason": str(error)}])
    kind = dict(zip(tokens["id"], tokens["class"], strict=True))
    named = _with_text(found, tokens)
    return named.assign(**{"class": [kind.get(t, "") for t in found["token"]]})
