"""Scores of a head, each a documented formula with its range, chance level and source.

Pure functions of arrays: compiled toys, real models and saved rows go through the same code. The
arrays of one trial are, for every layer and head,

    argmax    [layer, head, row]         position of the largest weight of an answer row
    mass      [layer, head, row, slot]   weight on each of the needle's tokens
    toward    [layer, head, row, slot]   contribution through it to the answer's logit

where row t is the query that predicts the answer's token t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Scores = Float[np.ndarray, "layer head"]


@dataclass(frozen=True)
class Metric:
    """What a score means.

    Attributes:
        formula: for one trial; a head's score is the mean over trials.
        low, high: its range.
        chance: what a head shows that looks anywhere in the context alike (T tokens of context,
            A of answer, N of needle).
        source: where it comes from, and where ours differs.
        role: whether it is measured on random repeated tokens instead of needles.
    """

    name: str
    title: str
    formula: str
    low: float
    high: float
    chance: str
    source: str
    role: bool = False


METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "copy",
            "copy score",
            "share of the answer's positions j that are the argmax of some answer row t with "
            "token x_j = the token being produced; a position counts once",
            0,
            1,
            "about 1/T",
            "arXiv 2404.15574, set form (the released code counts repeats: preset wu2024)",
        ),
        Metric(
            "copy_exact",
            "copy at exact source",
            "share of answer rows t whose argmax is the position of answer token t",
            0,
            1,
            "1/T",
            "stricter form of arXiv 2404.15574; arXiv 2606.21249 uses it",
        ),
        Metric(
            "mass",
            "attention mass on needle",
            "mean over answer rows of the summed weight on the needle's tokens",
            0,
            1,
            "N/T",
            "attention-mass detectors, e.g. arXiv 2409.10516 and successors",
        ),
        Metric(
            "query_focus",
            "query-focused score",
            "sum over needle tokens of [mean weight from the question's tokens - the same with "
            "the question N/A]; tokens below mean - 2 sd of the needle are dropped",
            -1,
            1,
            "0",
            "QRHead, arXiv 2506.09944, calibrated as ICR, arXiv 2410.02642",
        ),
        Metric(
            "write",
            "write score",
            "mean over answer rows of sum over needle tokens j of weight(j) x "
            "(value_j through W_O) . (unembedding of the answer - of a counterfactual value), "
            "norms' gains folded and their scales frozen at the row",
            -np.inf,
            np.inf,
            "0 (logits, before any final soft-cap)",
            "after LOCOS, arXiv 2607.01002; ours folds all norms and subtracts a contrast token",
        ),
        Metric(
            "frequency",
            "activation frequency",
            "1 if the head copied at least one answer token, else 0",
            0,
            1,
            "about A/T",
            "arXiv 2404.15574",
        ),
        Metric(
            "induction",
            "induction",
            "mean weight on the token after the previous occurrence, second half of a repeated "
            "random sequence",
            0,
            1,
            "1/T",
            "arXiv 2209.11895",
            role=True,
        ),
        Metric(
            "duplicate",
            "duplicate token",
            "mean weight on the previous occurrence of the same token, same sequences",
            0,
            1,
            "1/T",
            "arXiv 2211.00593",
            role=True,
        ),
        Metric(
            "previous",
            "previous token",
            "mean weight on the token just before, same sequences",
            0,
            1,
            "1/T",
            "arXiv 2209.11895",
            role=True,
        ),
        Metric(
            "sink",
            "attention sink",
            "mean weight on the first token, same sequences",
            0,
            1,
            "1/T",
            "arXiv 2309.17453",
            role=True,
        ),
    )
}

TRIAL_METRICS = tuple(name for name, m in METRICS.items() if not m.role)
ROLE_METRICS = tuple(name for name, m in METRICS.items() if m.role)


def copied(
    argmax: Int[np.ndarray, "layer head row"],
    produced: Int[np.ndarray, " row"],
    answer: range,
    answer_ids: Int[np.ndarray, " answer"],
) -> np.ndarray:
    """Which answer position each row copies: `[layer, head, row, answer]`, boolean.

    A row copies position j when j is its argmax and the token at j is the one being produced.
    """
    at = argmax[..., None] == np.arange(answer.start, answer.stop)
    return at & (answer_ids == produced[:, None])


def copy_score(hits: np.ndarray) -> Scores:
    """Share of answer positions copied by some row: set form, never above 1."""
    return hits.any(axis=2).mean(axis=-1)


def copy_multiset(hits: np.ndarray) -> Scores:
    """Copies per answer token, repeats counted: the released code's form, can exceed 1."""
    return hits.sum(axis=(2, 3)) / hits.shape[-1]


def copy_exact(argmax: Int[np.ndarray, "layer head row"], answer: range) -> Scores:
    """Share of rows t whose argmax is the source of answer token t."""
    return (argmax == np.arange(answer.start, answer.stop)).mean(axis=-1)


def query_focus(
    asked: Float[np.ndarray, "layer head slot"], null: Float[np.ndarray, "layer head slot"]
) -> Scores:
    """Calibrated weight from question to needle; low outliers among its tokens are dropped."""
    gain = asked - null
    floor = gain.mean(-1, keepdims=True) - 2 * gain.std(-1, keepdims=True)
    return np.where(gain >= floor, gain, 0.0).sum(-1)


def role_labels(
    roles: dict[str, Scores], retrieval: Scores, *, floor: float = 0.3, copy_floor: float = 0.1
) -> list[list[str]]:
    """Names of what each head does: every role with weight above `floor`.

    The floors only put words beside ranks: .1 is the published copy threshold, .3 the usual one
    for pattern scores. A head may carry several labels or none.
    """
    n_layers, n_heads = retrieval.shape
    rows: list[list[str]] = []
    for layer in range(n_layers):
        row = []
        for head in range(n_heads):
            names = ["retrieval"] if retrieval[layer, head] >= copy_floor else []
            names += [n for n in ROLE_METRICS if n in roles and roles[n][layer, head] >= floor]
            row.append("+".join(names))
        rows.append(row)
    return rows


def agreement(values: dict[str, Scores], *, top: int = 20) -> tuple[Sequence[str], np.ndarray]:
    """Spearman correlation between every two scores over heads, and top-`top` overlap.

    Returns the names and `[2, metric, metric]`: correlation, then shared heads / top.
    """
    from scipy.stats import spearmanr

    names = list(values)
    # heads without attention have no score; left in, they would tie and raise every correlation
    known = ~np.isnan(np.stack([values[n].reshape(-1) for n in names])).any(axis=0)
    flat = {n: values[n].reshape(-1)[known] for n in names}
    best = {n: set(np.argsort(-flat[n], kind="stable")[:top].tolist()) for n in names}
    out = np.ones((2, len(names), len(names)))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            if i != j:
                constant = np.ptp(flat[a]) == 0 or np.ptp(flat[b]) == 0
                out[0, i, j] = np.nan if constant else spearmanr(flat[a], flat[b]).statistic
                out[1, i, j] = len(best[a] & best[b]) / top
    return names, out
