"""What trials of taking features away say: findings, and function against content tokens."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from circuits.effect_plan import CONTROLS, DISTANCES, PLACES, EffectSettings
from circuits.effects import Effect, Finding, corrected, judge, measure_effect

SMALLEST = 0.05
"""Smallest effect of interest, in nats of the next token's log-probability."""
SETS = 999
"""Sets of controls that are made of the draws of all trials."""


def findings(rows: Sequence[dict[str, Any]], settings: EffectSettings) -> list[Finding]:
    """A finding for each place, distance and control: necessary beyond the control, or not."""
    effects = [_effect(rows, place, distance, control, settings)
               for place in PLACES for distance in DISTANCES for control in CONTROLS]  # fmt: skip
    present = [e for e in effects if e is not None]
    return [judge(e, smallest=SMALLEST) for e in corrected(present)]


def contrasts(rows: Sequence[dict[str, Any]], settings: EffectSettings) -> list[dict[str, Any]]:
    """Function against content token at the same distance, paired by trial, with intervals.

    `difference` is (effect at the function token) - (effect at the content token), both beyond
    their own random directions; negative: more is lost at function tokens.
    """
    from circuits.statistics import cluster_interval

    out = []
    for distance in DISTANCES:
        pairs = {
            place: {r["trial"]: r for r in rows if (r["place"], r["distance"]) == (place, distance)}
            for place in ("function", "content")
        }
        common = sorted(set(pairs["function"]) & set(pairs["content"]))
        if len({pairs["function"][t]["document"] for t in common}) < 2:
            continue
        change = {p: np.array([_beyond(pairs[p][t]) for t in common]) for p in pairs}
        clusters = [pairs["function"][t]["document"] for t in common]
        found = cluster_interval(
            change["function"] - change["content"], clusters, seed=settings.seed
        )
        out.append({
            "distance": distance, "n": len(common), "function": float(change["function"].mean()),
            "content": float(change["content"].mean()), "difference": found.mean,
            "low": found.low, "high": found.high,
            "tokens apart, function": _mean(pairs["function"], common, "apart"),
            "tokens apart, content": _mean(pairs["content"], common, "apart"),
            "removed, function": _mean(pairs["function"], common, "removed"),
            "removed, content": _mean(pairs["content"], common, "removed"),
        })  # fmt: skip
    return out


def as_rows(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as plain rows."""
    return [{"claim": f.claim, "verdict": f.verdict, "reason": f.reason, **asdict(f.effect)}
            for f in found]  # fmt: skip


# -- helpers ----------------------------------------------------------------------------------


def _effect(
    rows: Sequence[dict[str, Any]], place: str, distance: str, control: str,
    settings: EffectSettings,
) -> Effect | None:  # fmt: skip
    own = [r for r in rows if (r["place"], r["distance"]) == (place, distance)]
    documents = [r["document"] for r in own]
    if len(set(documents)) < 2:
        return None
    return measure_effect(
        np.array([r["baseline"] for r in own]), np.array([r["treated"] for r in own]),
        _sets(np.array([list(r[control]) for r in own]), settings.seed), clusters=documents,
        name=f"features at a {place} token, {distance}",
        ablation=f"{settings.what} features, {control}",
        scope="one position", direction="ablate", metric="next token's log-prob", unit="nats",
        seed=settings.seed,
    )  # fmt: skip


def _sets(draws: Float[np.ndarray, "trial draw"], seed: int) -> Float[np.ndarray, "set trial"]:
    """Sets of one draw a trial: draws are independent from trial to trial, so any may be joined.

    With the draws of each trial in their own order there would be as many sets as draws, too few
    for a p that stands Holm's correction over all places, distances and controls.
    """
    n_trials, n_draws = draws.shape
    chosen = np.random.default_rng(seed).integers(n_draws, size=(SETS, n_trials))
    return draws[np.arange(n_trials), chosen]


def _beyond(row: dict[str, Any]) -> float:
    return float(row["treated"] - np.mean(row["random direction"]))


def _mean(rows: dict[int, dict[str, Any]], trials: Sequence[int], field: str) -> float:
    return float(np.mean([rows[t][field] for t in trials]))
