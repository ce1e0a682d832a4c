"""How much cheaper are many needles than the published grid, at the same width of interval?

The error of a head's mean over needles and cells has two parts: needles differ from one another
(variance B between them), and trials of one needle differ (W within). With n needles and m trials
each, its variance is B/n + W/(n m). The published grid has n = 3 and m = 200; no number of lengths
and depths makes its interval narrower than B/3 allows. B and W are estimated from a finished run.
"""

from typing import Any

import numpy as np

from circuits.scan_result import ScanResult
from circuits.uncertainty import cluster_sums

PUBLISHED = {"needles": 3, "lengths": 20, "depths": 10, "shortest": 1000, "longest": 50_000}
N_HEADS = 20


def variance_parts(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between- and within-needle variance of every head, by one-way analysis of variance."""
    sums, counts = cluster_sums(values, clusters)
    means = sums / counts[:, None]
    _, index = np.unique(clusters, return_inverse=True)
    n, total = len(counts), counts.sum()
    within = ((values - means[index]) ** 2).sum(0) / max(1, total - n)
    typical = (total - (counts**2).sum() / total) / (n - 1)
    grand = values.mean(0)
    spread = (counts[:, None] * (means - grand) ** 2).sum(0) / (n - 1)
    return np.maximum(0, (spread - within) / typical), within


def precision(result: ScanResult) -> dict[str, Any]:
    """Width and tokens of this run beside those of the published grid, for the top 20 heads."""
    keep = result.gated()
    values = result.values["copy"][keep].reshape(int(keep.sum()), -1).astype(float)
    clusters = result.trials["needle"].to_numpy()[keep]
    best = np.argsort(-values.mean(0), kind="stable")[:N_HEADS]
    between, within = variance_parts(values[:, best], clusters)
    u = result.uncertainty("copy")
    ours = float((u.high - u.low)[best].mean())
    n, m = PUBLISHED["needles"], PUBLISHED["lengths"] * PUBLISHED["depths"]
    theirs = float((2 * 1.96 * np.sqrt(between / n + within / (n * m))).mean())
    tokens = _tokens(result)
    published = n * PUBLISHED["depths"] * sum(_published_lengths(result))
    # width falls with the root of the number of needles, so of our tokens this share would do
    share = min(1.0, (ours / theirs) ** 2)
    return {
        "heads": N_HEADS,
        "needles answered here": u.n_clusters,
        "trials answered here": u.n_trials,
        "standard deviation between needles": float(np.sqrt(between).mean()),
        "standard deviation within a needle": float(np.sqrt(within).mean()),
        "mean 95% width here": ours,
        "mean 95% width of the published grid (3 needles, 600 trials)": theirs,
        "tokens processed here": tokens,
        "tokens of the published grid at this model's lengths": published,
        "cheaper, whole run as it is": published / tokens,
        "cheaper at the same width (published / (ours x (width ratio)^2))": published
        / (tokens * share),
    }


def _published_lengths(result: ScanResult) -> list[int]:
    """The published lengths, up to what this model was made for where that is shorter."""
    longest = min(PUBLISHED["longest"], result.settings.get("context_length") or 50_000)
    return [int(x) for x in np.linspace(PUBLISHED["shortest"], longest, PUBLISHED["lengths"])]


def _tokens(result: ScanResult) -> int:
    """Tokens that the run processed: contexts once each, and the suffixes."""
    trials = result.trials
    contexts = trials.groupby("context")["length"].max().sum()
    return int(contexts + trials["n_suffix"].sum())
