"""From logits to labels: which pointer did a patched evaluation follow?

The answer is the largest logit of the whole vocabulary. A label is given only where one mechanism
alone predicts the answer: the published code gives a collision (i_L = i_R) to the first in a list.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from circuits.statistics import cluster_intervals

if TYPE_CHECKING:
    import pandas as pd

LABELS: dict[str, str] = {
    "positional": "the recipient's group at the donor's index, i_P",
    "lexical": "the group of the donor's query entities, i_L",
    "reflexive": "the group of the donor's target entity, i_R",
    "no_effect": "the recipient's own answer, i_N",
    "near_positional": "another group, within one of i_P",
    "mixed": "another group, farther from i_P",
    "ambiguous": "a group that two mechanisms predict",
    "copied": "the donor's own answer, which the recipient does not hold",
    "other": "none of the groups: some other token of the vocabulary",
}
"""Every evaluation has one; in the order in which figures stack them."""

POINTERS: dict[str, str] = {"positional": "i_p", "lexical": "i_l", "reflexive": "i_r"}
"""Mechanism: the column of the index that it predicts."""
WINDOW = 1
"""Groups from i_P that count as near."""
ABSENT = -1
"""In integer columns: the mechanism predicts nothing."""


def label(
    top: int, candidates: Sequence[int], said: int, *, i_p: int, i_l: int, i_r: int, i_n: int
) -> str:  # noqa: E501
    """The label of one evaluation.

    Args:
        top: token of the largest logit in the vocabulary.
        candidates: answer tokens of the recipient's groups, in order.
        said: answer token of the donor's own answer.
        i_p, i_l, i_r, i_n: groups that the mechanisms predict; `ABSENT` where they predict none.
    """
    if top not in candidates:
        return "copied" if top == said else "other"
    answer = list(candidates).index(top)
    predicted = {"positional": i_p, "lexical": i_l, "reflexive": i_r, "no_effect": i_n}
    names = [name for name, index in predicted.items() if index == answer]
    if names:
        return names[0] if len(names) == 1 else "ambiguous"
    return "near_positional" if abs(answer - i_p) <= WINDOW else "mixed"


def shares(rows: "pd.DataFrame", by: Sequence[str], *, seed: int = 0) -> "pd.DataFrame":
    """Share of every label in groups of evaluations, with 95 % intervals over entity sets.

    `rows` has `label` and `set`. An interval is missing where there is one set only.
    """
    import pandas as pd

    out = []
    for key, part in rows.groupby(list(by), sort=True):
        hot = np.stack([(part["label"] == name).to_numpy(float) for name in LABELS], 1)
        sure = None
        if part["set"].nunique() > 1:
            sure = cluster_intervals(hot, part["set"].to_numpy(), seed=seed)
        for k, name in enumerate(LABELS):
            out.append(
                dict(zip(by, key, strict=True))
                | {"label": name, "share": float(hot[:, k].mean()), "n": len(part),
                   "low": np.nan if sure is None else float(sure.low[k]),
                   "high": np.nan if sure is None else float(sure.high[k])}
            )  # fmt: skip
    return pd.DataFrame(out, columns=[*by, "label", "share", "n", "low", "high"])


def candidate_probs(logits: Float[np.ndarray, "case n"]) -> Float[np.ndarray, "case n"]:
    """Softmax over the candidates alone, the object that the mixture predicts."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    out: np.ndarray = shifted / shifted.sum(1, keepdims=True)
    return out


def pointed(
    probs: Float[np.ndarray, "case n"], index: Float[np.ndarray, " case"]
) -> Float[np.ndarray, " case"]:
    """Probability of the group that a mechanism predicts; NaN where it predicts none."""
    index = index.astype(int)
    found = probs[np.arange(len(probs)), np.maximum(index, 0)]
    return np.where(index < 0, np.nan, found)


def fake_pointers(
    rows: "pd.DataFrame", mechanism: str, n: int, *, draws: int, seed: int = 0
) -> np.ndarray:
    """Indices `[draw, case]` of groups that no mechanism predicts: the matched control.

    Drawn at the distance from i_P that the mechanism's own index has, where such a group is left,
    else at the nearest distance that is left: an answer that spreads around i_P favours them as
    much. A positional pointer is set beside groups at any distance. Where every group is predicted
    (n = 4), the recipient's own one serves, which its own pull favours: the harder control.
    """
    rng = np.random.default_rng(seed)
    named = rows[["i_p", "i_l", "i_r", "i_n"]].to_numpy(int)
    own = rows[POINTERS[mechanism]].to_numpy(int)
    out = np.empty((draws, len(rows)), int)
    for case, (taken, index) in enumerate(zip(named, own, strict=True)):
        free = np.setdiff1d(np.arange(n), taken)
        if mechanism != "positional" and len(free):
            gap = np.abs(np.abs(free - taken[0]) - abs(index - taken[0]))
            free = free[gap == gap.min()]
        out[:, case] = rng.choice(free, draws) if len(free) else taken[3]
    return out
