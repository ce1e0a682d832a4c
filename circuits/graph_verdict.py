"""Does a class of tokens reach more features than frequency gives it? A rule, and single hubs.

Measured for each token: log of its degree at m occurrences over the degree that its labels have
when shuffled within documents. The quotient takes out frequency (equal m), spread over documents,
burstiness and topic (the shuffle keeps all three), so that a class may be held against other
tokens. Without shuffled labels a degree at equal occurrences may be the document's: in the world
`bursty` (`probes.planted_features`) common tokens look 1.3 times wider though no feature looks at
the token. So a claim is supported only where they were counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from circuits.block_intervals import BlockIntervals, Blocks, block_intervals
from circuits.class_tables import steady_tokens
from circuits.feature_counts import FeatureCounts
from circuits.richness import Tokens, document_rarefied_degree, rarefied_degree
from circuits.statistics import benjamini_hochberg
from interp.errors import ResultError

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["supported", "unsupported", "inconclusive"]
SMALLEST = 1.10
"""Smallest effect of interest: a tenth more features."""
ALPHA = 0.05
OCCURRENCES, DOCUMENTS = 30, 10
"""At how many occurrences, and documents, degrees are compared."""
FORMS = {
    "occurrences": ("occurrences", rarefied_degree),
    "documents": ("token_documents", document_rarefied_degree),
}
"""Sampling units: the count of them that tokens need, and the degree at equal numbers."""


@dataclass(frozen=True)
class ClassRatio:
    """How many times wider the members are than the others, in one form, with its interval.

    `p` is one-sided, of Welch's test over tokens: would another draw of tokens agree?
    """

    form: str
    m: int
    ratio: float
    low: float
    high: float
    p: float
    n_members: int
    n_others: int


@dataclass(frozen=True)
class GraphVerdict:
    """A claim about a class of tokens, the verdict, its figures, and why."""

    claim: str
    verdict: Verdict
    reason: str
    ratios: tuple[ClassRatio, ...]
    shuffled: bool
    n_blocks: int


def judge_class(
    name: str,
    blocks: Blocks,
    nulls: Blocks | None,
    *,
    members: Tokens,
    others: Tokens,
    m: int = OCCURRENCES,
    m_documents: int = DOCUMENTS,
    smallest: float = SMALLEST,
) -> GraphVerdict:
    """Whether `members` reach more features than `others` beyond frequency.

    `nulls` are counts of the same blocks with labels shuffled within documents. The rule, with
    ratios in both forms, at m occurrences and at `m_documents` documents:

    1. inconclusive: fewer than 2 members or others have so many whichever block is left out.
    2. unsupported: the interval of a form lies wholly below `smallest`.
    3. supported: labels were shuffled, and in both forms the interval lies wholly above 1, the
       ratio is at least `smallest`, and p over tokens is at most .05.
    4. inconclusive: anything else.

    Raises:
        ResultError: too few blocks, or a `smallest` that is no increase.
    """
    if not smallest > 1:
        raise ResultError(f"a smallest ratio of interest is above 1, got {smallest}")
    ratios = tuple(
        _class_ratio(form, size, blocks, nulls, members, others)
        for form, size in (("occurrences", m), ("documents", m_documents))
    )
    verdict, why = _decided(ratios, nulls is not None, smallest)
    claim = f"the {name} reach more features than other tokens, beyond their frequency"
    figures = "; ".join(_figures(r) for r in ratios)
    return GraphVerdict(claim, verdict, f"{figures}: {why}", ratios, nulls is not None, len(blocks))


def token_hubs(
    blocks: Blocks,
    nulls: Blocks | None,
    *,
    others: Tokens,
    m: int = OCCURRENCES,
    smallest: float = SMALLEST,
) -> "pd.DataFrame":
    """Tokens, of any frequency, that reach more features than the typical one of `others`.

    A row a token with m occurrences whichever block is left out: token, occurrences, ratio to the
    geometric mean of `others`, low, high (95 %), p that the ratio is `smallest` at most, q
    (Benjamini and Hochberg), hub (q at most .05), and percentile among `others`; widest first.

    Raises:
        ResultError: too few blocks, or fewer than 2 of the others have m occurrences.
    """
    import pandas as pd
    from scipy.stats import t

    tokens = steady_tokens(blocks, m)
    reference = np.isin(tokens, np.asarray(others, dtype=np.int64))
    if reference.sum() < 2:
        raise ResultError(
            f"{reference.sum()} tokens of comparison have {m} occurrences; count more text"
        )

    def shift(*counts: FeatureCounts) -> np.ndarray:
        width = widths(counts, tokens, m)
        return width - width[reference].mean()

    found = _intervals(shift, blocks, nulls, tokens)
    # a hair above 0: a token that is the same in every block has no error at all
    error = np.maximum(found.error, 1e-12)
    p = t.sf((found.estimate - np.log(smallest)) / error, found.n_blocks - 1)
    q, sorted_reference = benjamini_hochberg(p), np.sort(found.estimate[reference])
    below = np.searchsorted(sorted_reference, found.estimate) / len(sorted_reference)
    occurrences = np.sum([block.occurrences for block in blocks], axis=0)
    frame = pd.DataFrame({
        "token": tokens, "occurrences": occurrences[tokens], "ratio": np.exp(found.estimate),
        "low": np.exp(found.low), "high": np.exp(found.high), "p": p, "q": q, "hub": q <= ALPHA,
        "percentile": 100 * below,
    })  # fmt: skip
    return frame.sort_values("ratio", ascending=False, kind="stable", ignore_index=True)


def widths(
    counts: Sequence[FeatureCounts],
    tokens: Int[np.ndarray, " some"],
    m: int,
    *,
    form: str = "occurrences",
) -> Float[np.ndarray, " some"]:
    """Log degree at m, less that of the shuffled labels where these are the second counts.

    A degree below half a feature is taken as that, so that a token without any has a logarithm.
    """
    _, degree = FORMS[form]
    logs = [np.log(np.maximum(degree(c, tokens, m), 0.5)) for c in counts]
    return logs[0] - logs[1] if len(logs) == 2 else logs[0]


# -- helpers ----------------------------------------------------------------------------------


def _class_ratio(
    form: str, m: int, blocks: Blocks, nulls: Blocks | None, members: Tokens, others: Tokens
) -> ClassRatio:
    from scipy.stats import ttest_ind

    unit, _ = FORMS[form]
    steady = steady_tokens(blocks, m, unit=unit)
    both = [np.intersect1d(steady, np.asarray(t, dtype=np.int64)) for t in (members, others)]
    sizes = (len(both[0]), len(both[1]))
    if min(sizes) < 2:
        nan = float("nan")
        return ClassRatio(form, m, nan, nan, nan, nan, *sizes)
    tokens = np.concatenate(both)

    def statistic(*counts: FeatureCounts) -> np.ndarray:
        width = widths(counts, tokens, m, form=form)
        return np.append(width, width[: sizes[0]].mean() - width[sizes[0] :].mean())

    found = _intervals(statistic, blocks, nulls, tokens)
    width = found.estimate[:-1]
    mine, theirs = width[: sizes[0]], width[sizes[0] :]
    # in a world of equal degrees all tokens agree to the last bits, and no test can be made
    spread = max(np.ptp(mine), np.ptp(theirs)) > 1e-9
    p = ttest_ind(mine, theirs, equal_var=False, alternative="greater").pvalue if spread else 1.0
    ratio, low, high = (float(np.exp(v[-1])) for v in (found.estimate, found.low, found.high))
    return ClassRatio(form, m, ratio, low, high, float(p), *sizes)


def _intervals(
    statistic: Callable[..., np.ndarray], blocks: Blocks, nulls: Blocks | None, tokens: Tokens
) -> BlockIntervals:
    return block_intervals(blocks, statistic, *(() if nulls is None else (nulls,)), tokens=tokens)


def _decided(ratios: Sequence[ClassRatio], shuffled: bool, smallest: float) -> tuple[Verdict, str]:
    few = [r for r in ratios if np.isnan(r.ratio)]
    if few:
        r = few[0]
        return "inconclusive", (
            f"only {r.n_members} of the class and {r.n_others} others have {r.m} {r.form}; count "
            "more text"
        )
    excluded = [r.form for r in ratios if r.high < smallest]
    if excluded:
        return "unsupported", f"{smallest:.2f} times as many is excluded at equal {excluded[0]}"
    doubts = [doubt for r in ratios for doubt in _doubts(r, smallest)]
    if not shuffled:
        doubts.append("labels shuffled within documents were not counted, and topics may do this")
    if doubts:
        return "inconclusive", "; ".join(doubts)
    return "supported", f"at least {smallest:.2f} times as many in both forms"


def _doubts(r: ClassRatio, smallest: float) -> list[str]:
    doubts = []
    if r.low <= 1:
        doubts.append(f"the interval at equal {r.form} holds both 1 and {smallest:.2f}")
    elif r.ratio < smallest:
        doubts.append(f"the ratio at equal {r.form} is above 1, and below {smallest:.2f}")
    if r.p > ALPHA:
        doubts.append(f"tokens of the class differ too much (p = {r.p:.2g} at equal {r.form})")
    return doubts


def _figures(r: ClassRatio) -> str:
    return (
        f"{r.ratio:.3g} [{r.low:.3g}, {r.high:.3g}] times as many at {r.m} {r.form} "
        f"({r.n_members} tokens against {r.n_others})"
    )
