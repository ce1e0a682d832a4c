"""Is a pointer followed, beyond what a spread of answers around i_P gives? And is it one at all?

Each mechanism is a claim about the probability of the group that it predicts, before and after the
interchange, beside groups that no mechanism predicts (`fake_pointers`). The controls say what a
followed pointer may be instead: a copied answer, the group after a group, a liking for words.
"""

from dataclasses import dataclass

import numpy as np

from circuits.binding_labels import (
    ABSENT,
    POINTERS,
    candidate_probs,
    fake_pointers,
    pointed,
)
from circuits.binding_study import CONTROL, MAIN, Records
from circuits.effects import Finding, corrected, judge, measure_effect
from circuits.statistics import cluster_interval
from interp.errors import ResultError

SMALLEST = 0.05
"""Smallest gain of probability that is of interest, chosen beforehand."""
DRAWS = 200
METRIC, UNIT = "probability of the group that it predicts", "of probability"


@dataclass(frozen=True)
class Control:
    """What a control design showed at a layer.

    Attributes:
        expected: what should come out if the pointers are what they seem, in words.
        hit: share of evaluations in which it did, with its interval over entity sets.
        passed: None where too little was measured to say.
    """

    design: str
    layer: int
    expected: str
    hit: float
    low: float | None
    high: float | None
    n: int
    passed: bool | None


def pointer_findings(records: Records, layer: int, *, seed: int = 0) -> tuple[Finding, ...]:
    """One finding for each mechanism, corrected over the three (`circuits.effects.judge`).

    A mechanism is left out where no cell lets it be told from the others.
    """
    main = records.of(MAIN, design="main", layer=layer)
    effects = []
    for mechanism in POINTERS:
        keep, drawn = _told_apart(main, mechanism, seed)
        if not keep.any():
            continue
        rows = main.rows[keep]
        index = rows[POINTERS[mechanism]].to_numpy()
        after, before = candidate_probs(main.logits[keep]), candidate_probs(main.unpatched[keep])
        try:
            effects.append(measure_effect(
                pointed(before, index), pointed(after, index),
                np.stack([pointed(after, fake) for fake in drawn[:, keep]]),
                clusters=rows["set"].astype(str).to_numpy(), name=mechanism, ablation="main",
                scope=f"last token entering layer {layer}", direction="interchange",
                metric=METRIC, unit=UNIT, seed=seed,
            ))  # fmt: skip
        except ResultError:  # one entity set: nothing can be said of its spread
            continue
    return tuple(judge(e, smallest=SMALLEST) for e in corrected(effects))


def _told_apart(main: Records, mechanism: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cases in which the mechanism alone predicts its group, and the fake pointers of all cases."""
    n = main.logits.shape[1]
    drawn = fake_pointers(main.rows, mechanism, n, draws=DRAWS, seed=seed)
    own = main.rows[POINTERS[mechanism]].to_numpy()
    others = [c for c in (*POINTERS.values(), "i_n") if c != POINTERS[mechanism]]
    alone = np.all([main.rows[c].to_numpy() != own for c in others], axis=0)
    return alone & (own != ABSENT), drawn


CONTROLS: dict[str, tuple[str, str, bool]] = {
    "absent_answer": ("the donor's answer is not said", "copied", False),
    "absent_query": ("the donor's answer is not said", "copied", False),
    "all_new": ("the donor's answer is not said", "copied", False),
    "agree_pl": ("the group of P and L is the answer", "i_p", True),
    "agree_pr": ("the group of P and R is the answer", "i_p", True),
    "agree_lr": ("the group of L and R is the answer", "i_l", True),
    "agree_all": ("the group of P, L and R is the answer", "i_p", True),
    "transposed": ("the answer is P, L or R", "any", True),
    "previous": ("the answer is P, L or R", "any", True),
}
"""Design: what is expected, the column or label that is counted, whether much of it is good."""
COPIED_MOST, AGREED_LEAST = 0.2, 0.5
"""Bounds of a pass: at most so many copied answers, at least so many agreed ones."""


def control_table(records: Records, *, seed: int = 0) -> tuple[Control, ...]:
    """What every control design showed at every layer it was run at.

    An agreement design has no bound but `agree_all`, where all pointers agree: what it reaches is
    the most that any mechanism can. `passed` is None where the interval holds the bound.
    """
    stage = records.of(CONTROL)
    out = []
    for (design, layer), rows in stage.rows.groupby(["design", "layer"], sort=True):
        name = str(design)
        if name not in CONTROLS:
            continue
        expected, what, much = CONTROLS[name]
        part = stage.of(CONTROL, design=design, layer=layer)
        hit = _hits(part, what)
        clusters = rows["set"].astype(str).to_numpy()
        low = high = None
        if len(set(clusters)) > 1:
            sure = cluster_interval(hit.astype(float), clusters, seed=seed)
            low, high = sure.low, sure.high
        passed = _passed(name, low, high, much)
        out.append(
            Control(name, int(str(layer)), expected, float(hit.mean()), low, high, len(hit), passed)
        )
    return tuple(out)


def _passed(design: str, low: float | None, high: float | None, much: bool) -> bool | None:
    if (much and design != "agree_all") or low is None or high is None:
        return None
    bound = AGREED_LEAST if much else COPIED_MOST
    above = True if low >= bound else False if high <= bound else None
    return above if much or above is None else not above


def _hits(part: Records, what: str) -> np.ndarray:
    if what == "copied":
        return (part.rows["label"] == "copied").to_numpy()
    best = np.where(part.rows["label"].isin(["copied", "other"]), ABSENT - 1, part.logits.argmax(1))
    columns = list(POINTERS.values()) if what == "any" else [what]
    hit: np.ndarray = np.any([part.rows[c].to_numpy() == best for c in columns], axis=0)
    return hit


def self_change(records: Records) -> float:
    """Largest change of a logit when a question was patched with its own vector."""
    return float(records.rows["self_change"].max()) if len(records) else float("nan")


def word_effect(
    records: Records, layer: int, *, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """How much the answer depends on which words the groups hold, whatever their places.

    The statistic is, in the main design, the variance of a word's mean probability over all places;
    what shuffling the words within each entity set leaves is subtracted, so that chance is 0.

    Returns:
        The standard deviation over words in excess of the shuffled one (0 to .5, of probability),
        and the share of shuffles that reach the measured variance.
    """
    main = records.of(MAIN, design="main", layer=layer)
    probs, ids = candidate_probs(main.logits), main.words
    _, index = np.unique(ids, return_inverse=True)
    index = index.reshape(ids.shape)
    rng = np.random.default_rng(seed)
    found = _spread(probs, index)
    by_set = main.rows["set"].to_numpy()
    null = []
    for _ in range(draws):
        shuffled = index.copy()
        for one in np.unique(by_set):  # the words of a set stay a set's: only places change
            rows = by_set == one
            shuffled[rows] = index[rows][:, rng.permutation(probs.shape[1])]
        null.append(_spread(probs, shuffled))
    excess = max(0.0, found - float(np.mean(null)))
    p = (1 + sum(v >= found for v in null)) / (draws + 1)
    return float(np.sqrt(excess)), p


def _spread(probs: np.ndarray, index: np.ndarray) -> float:
    """Variance over words of their mean probability, a word counted by how often it occurs."""
    times = np.bincount(index.ravel())
    mean = np.bincount(index.ravel(), probs.ravel()) / np.maximum(times, 1)
    centre = (mean * times).sum() / times.sum()
    return float(((mean - centre) ** 2 * times).sum() / times.sum())
