"""How many features of a dictionary fire on some rows, and how many would at a given sparsity.

A count of features that fire at least once grows with the share of the dictionary that is active,
whatever was learned. So two counts are comparable at equal L0 only: the thresholds of a dictionary
are multiplied by one factor, chosen so that L0 is the one asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.feature_quality import quality
from probes.features import Dictionary

ROWS = 2048
"""Rows encoded at a time."""
SMALLEST = 1e-6
"""A threshold below it is taken as this, so that it can be multiplied."""
CAPPED, BLIND, UNLIKE, AS_MANY = 0.95, 0.5, 0.25, 0.8
"""Bounds of the readings: share alive, FVU, relative difference of L0, control over count."""


@dataclass(frozen=True)
class Matched:
    """Features that fire at least once when thresholds are multiplied by `factor`.

    `l0` is what was reached: less than asked for where no threshold is low enough.
    """

    alive: int
    l0: float
    factor: float


def alive_features(dictionary: Dictionary, x: Float[Tensor, "row d_in"]) -> dict[str, Any]:
    """features, alive (fire on some row), alive_share, l0 and fvu on these very rows."""
    found = quality(dictionary, x)
    alive = round((1 - found.dead) * dictionary.d_dict)
    return {
        "features": dictionary.d_dict, "alive": alive, "alive_share": alive / dictionary.d_dict,
        "l0": found.l0, "fvu": found.fvu,
    }  # fmt: skip


def matched_alive(dictionary: Dictionary, x: Float[Tensor, "row d_in"], l0: float) -> Matched:
    """The same at another L0.

    Exact: of all positive pre-activations, each over its feature's threshold, the l0 x rows largest
    are active. A dictionary without thresholds gets one for all features. One of kind `topk` has
    its L0 by construction and is left as it is (factor 1).
    """
    if dictionary.activation == "topk":
        fired = dictionary.encode_sparse(x)
        return Matched(len(fired.feature.unique()), len(fired.row) / len(x), 1.0)
    plain = replace(dictionary, activation="relu", threshold=None)
    wanted = round(l0 * len(x))
    ratio, feature = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    for rows in x.split(ROWS):
        found = plain.encode_sparse(rows)
        own = found.value
        if dictionary.threshold is not None:
            own = own / dictionary.threshold[found.feature].clamp(min=SMALLEST)
        ratio = torch.cat([ratio.to(own), own])
        feature = torch.cat([feature.to(found.feature), found.feature])
        ratio, kept = ratio.topk(min(wanted, len(ratio)))
        feature = feature[kept]
    factor = float(ratio[-1]) if len(ratio) else float("nan")
    return Matched(len(feature.unique()), len(ratio) / len(x), factor)


def readings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What must be known to read each row's count: a sentence by fixed rules, no verdict.

    Rules: the dictionary caps the count at 95 % alive; it is blind to the model at FVU 0.5; L0 that
    is 25 % off that of the shared dictionary at the last model makes counts incomparable; and a
    model with shuffled weights may give 80 % of the count or more.
    """
    return [_reading(row, rows) for row in rows]


def _reading(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    alike = [r for r in rows if r["layer"] == row["layer"] and r["dictionary"] == row["dictionary"]]
    control = next((r["alive_matched"] for r in alike if r["control"]), None)
    off = row["l0"] / row["l0_asked"] - 1
    told = []
    if row["alive_share"] >= CAPPED:
        told.append(f"{row['alive_share']:.1%} of the dictionary fires: its size caps the count")
    if row["fvu"] >= BLIND:
        told.append(
            f"FVU is {row['fvu']:.2f}: the dictionary leaves most of the variance unexplained, and "
            "its count says little of this model"
        )
    if abs(off) >= UNLIKE:
        told.append(
            f"L0 is {row['l0']:.1f}, {off:+.0%} of {row['l0_asked']:.1f}: compare alive_matched"
        )
    if control is not None and not row["control"] and row["alive_matched"]:
        share = control / row["alive_matched"]
        if share >= AS_MANY:
            told.append(f"shuffled weights give {share:.0%} of this count at equal L0")
    return "; ".join(told) or "none of the rules applies"
