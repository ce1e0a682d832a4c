"""An effect of changing a head set, and the verdict on the claim that it supports.

An effect is numbers only, measured against the same change made in matched random head sets
(`circuits.controls`); a finding is a claim with a verdict, by a rule that is fixed beforehand. A
claim says "necessary" only where something was taken away (ablate, noising), and "sufficient" only
where something was put back (denoising): the two are not mirror images (Heimersheim and Nanda
2024, arXiv 2404.15255). We differ from Shi et al. 2024 (arXiv 2410.13032) in that "no effect" is a
claim too: it needs an interval that excludes an effect that matters, not a p above .05.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from circuits.statistics import Clusters, cluster_interval, holm, randomisation_p, standardised
from interp.errors import ResultError, UnknownNameError

Verdict = Literal["supported", "unsupported", "inconclusive"]
Direction = Literal["ablate", "noising", "denoising", "interchange"]


@dataclass(frozen=True)
class Effect:
    """What a change did to a metric, means over trials, in the metric's unit.

    Attributes:
        name: what was changed, such as "top 10".
        ablation, scope: by what it was replaced, and at which tokens.
        direction: what the change does: takes away (ablate, noising), puts back (denoising), or
            puts in what another prompt holds (interchange).
        metric, unit: what was measured, such as "answer's log-prob" in "nats".
        baseline, treated: before and after the change.
        control: after the same change in matched random sets, mean over the sets.
        control_low, control_high: 2.5 and 97.5 % of the sets.
        effect, low, high: treated - baseline, with its 95 % interval over clusters.
        excess, excess_low, excess_high: effect beyond the mean effect of the matched sets, paired
            by trial, with its 95 % interval over clusters; the sets themselves are held fixed.
        p: share of matched sets that do as much harm (or recovery), the treated set counted.
        p_holm: the same after Holm's correction over the family; `p` until `corrected`.
        size: effect as Cohen's d_z over clusters; None where the clusters do not vary.
        n_trials, n_clusters, n_draws: trials, clusters of trials, matched sets.
    """

    name: str
    ablation: str
    scope: str
    direction: Direction
    metric: str
    unit: str
    baseline: float
    treated: float
    control: float
    control_low: float
    control_high: float
    effect: float
    low: float
    high: float
    excess: float
    excess_low: float
    excess_high: float
    p: float
    p_holm: float
    size: float | None
    n_trials: int
    n_clusters: int
    n_draws: int


@dataclass(frozen=True)
class Finding:
    """A claim in words, the effect it rests on, the verdict and the figures that decided it."""

    claim: str
    effect: Effect
    verdict: Verdict
    reason: str


def measure_effect(
    baseline: Float[np.ndarray, " trial"],
    treated: Float[np.ndarray, " trial"],
    controls: Float[np.ndarray, "draw trial"],
    *,
    clusters: Clusters,
    name: str,
    ablation: str,
    scope: str,
    direction: Direction,
    metric: str,
    unit: str,
    seed: int = 0,
) -> Effect:
    """All numbers of an effect, from the metric of each trial before and after each change.

    Raises:
        ResultError: fewer than two clusters, no matched set, other shapes, or NaN.
        UnknownNameError: no such direction.
    """
    _check(baseline, treated, controls)
    tail: Literal["less", "greater"] = "greater" if _sign(direction) > 0 else "less"
    sets = controls.mean(1)
    control_low, control_high = np.percentile(sets, [2.5, 97.5])
    whole = cluster_interval(treated - baseline, clusters, seed=seed)
    beyond = cluster_interval(treated - controls.mean(0), clusters, seed=seed)
    p = randomisation_p(float(treated.mean()), sets, tail=tail)
    size = standardised(treated - baseline, clusters)
    return Effect(
        name, ablation, scope, direction, metric, unit,
        float(baseline.mean()), float(treated.mean()),
        float(sets.mean()), float(control_low), float(control_high),
        whole.mean, whole.low, whole.high,
        beyond.mean, beyond.low, beyond.high,
        p, p, None if math.isnan(size) else size,
        whole.n_trials, whole.n_clusters, len(controls),
    )  # fmt: skip


def corrected(effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """The same effects with `p_holm` corrected over all of them, which were tested together."""
    ps = holm(np.array([effect.p for effect in effects]))
    return tuple(replace(e, p_holm=float(p)) for e, p in zip(effects, ps, strict=True))


def judge(effect: Effect, *, alpha: float = 0.05, smallest: float) -> Finding:
    """Whether the effect supports the claim that its direction allows.

    The rule, with signs turned so that harm (for denoising: recovery) is positive, and `smallest`
    the smallest effect of interest, in the metric's unit, chosen beforehand:

    0. inconclusive where there are so few clusters that even a sign test in which all of them
       agree could not pass `alpha` (fewer than 6 at .05): no interval is to be had from them.
    1. unsupported: the excess interval lies wholly below `smallest`, so that an effect that
       matters is excluded; where it lies wholly below 0, the sign is opposite to the claim.
    2. supported: the excess interval lies wholly above 0, the excess itself is at least
       `smallest`, and `p_holm` is at most `alpha`.
    3. inconclusive: anything else. The reason says whether the interval is too wide, the matched
       sets are too few for a p of `alpha`, or matched sets do as much.

    A large effect of which random sets do nearly all is no support.

    Raises:
        ResultError: an alpha outside 0 to 1, or a negative `smallest`.
    """
    if not 0 < alpha < 1 or not smallest >= 0:
        raise ResultError(
            f"a verdict needs 0 < alpha < 1 and smallest >= 0, got {alpha} and {smallest}"
        )
    doubts = _doubts(effect, alpha, smallest)
    low, high = _oriented(effect)
    verdict: Verdict
    if 2.0 ** (1 - effect.n_clusters) > alpha:
        needed = 1 + math.ceil(-math.log2(alpha))
        verdict = "inconclusive"
        why = f"{effect.n_clusters} clusters are too few for an interval, {needed} are needed"
    elif high < 0:
        verdict, why = "unsupported", f"{_contrary(effect)}, the excess lies wholly below 0"
    elif high < smallest:
        verdict, why = "unsupported", f"an effect of {_with_unit(smallest, effect)} is excluded"
    elif doubts:
        verdict, why = "inconclusive", "; ".join(doubts)
    else:
        verdict, why = "supported", f"at least {_with_unit(smallest, effect)}, and more than chance"
    return Finding(_claim(effect), effect, verdict, f"{_figures(effect)}: {why}")


# -- words ------------------------------------------------------------------------------------


def _claim(effect: Effect) -> str:
    if effect.direction == "interchange":
        return f"a {effect.name} pointer leads to the answer ({effect.scope})"
    word, how = {
        "ablate": ("necessary", f"{effect.ablation} ablation"),
        "noising": ("necessary", f"noising by {effect.ablation}"),
        "denoising": ("sufficient", f"denoising by {effect.ablation}"),
    }[effect.direction]
    one = re.fullmatch(r"L\d+H\d+", effect.name)
    subject = f"head {effect.name} is" if one else f"the {effect.name} heads are"
    if effect.name.startswith("features"):
        subject = f"{effect.name} are"
    return f"{subject} {word} for the {effect.metric} ({how}, {effect.scope})"


def _figures(effect: Effect) -> str:
    low, high = _oriented(effect)
    more = _sign(effect.direction) * effect.excess
    return (
        f"the {effect.metric} {'rises' if effect.effect > 0 else 'falls'} by "
        f"{_with_unit(abs(effect.effect), effect)}, {_word(effect)} beyond {effect.n_draws} "
        f"matched random sets {more:.3g} [{low:.3g}, {high:.3g}], p = {effect.p_holm:.3g} "
        f"({effect.n_trials} trials of {effect.n_clusters} clusters)"
    )


def _contrary(effect: Effect) -> str:
    against = _sign(effect.direction) * effect.effect < 0
    return "opposite sign" if against else "less than matched random sets do"


def _doubts(effect: Effect, alpha: float, smallest: float) -> list[str]:
    """Every condition of support that fails, in words."""
    low, _ = _oriented(effect)
    gain = _sign(effect.direction) * effect.excess
    doubts = []
    if low <= 0:
        doubts.append(
            f"the interval is too wide, it holds both 0 and {_with_unit(smallest, effect)}; "
            f"{effect.n_clusters} clusters are too few"
        )
    if gain < smallest:
        doubts.append(f"the excess of {gain:.3g} is below {_with_unit(smallest, effect)}")
    if effect.p_holm > alpha:
        doubts.append(_why_not_rare(effect, alpha))
    return doubts


def _why_not_rare(effect: Effect, alpha: float) -> str:
    least = 1 / (effect.n_draws + 1)
    if least > alpha:
        return (
            f"{effect.n_draws} matched sets are too few, they give no p below {least:.2g} and "
            f"{alpha:g} is asked"
        )
    if math.isclose(effect.p, least):
        return (
            f"no matched set does as much, yet {effect.n_draws} are too few for p = {alpha:g} "
            "after Holm's correction"
        )
    as_much = round(effect.p * (effect.n_draws + 1)) - 1
    return f"{as_much} of {effect.n_draws} matched random sets do as much"


def _word(effect: Effect) -> str:
    words = {"denoising": "recovery", "interchange": "gain"}
    return words.get(effect.direction, "harm")


def _with_unit(value: float, effect: Effect) -> str:
    return f"{value:.3g} {effect.unit}".rstrip()


# -- helpers ----------------------------------------------------------------------------------


def _sign(direction: Direction) -> int:
    if direction not in get_args(Direction):
        raise UnknownNameError("direction", direction, get_args(Direction))
    return 1 if direction in ("denoising", "interchange") else -1


def _oriented(effect: Effect) -> tuple[float, float]:
    """The excess interval with harm (or recovery) positive."""
    ends = sorted(_sign(effect.direction) * v for v in (effect.excess_low, effect.excess_high))
    return ends[0], ends[1]


def _check(baseline: np.ndarray, treated: np.ndarray, controls: np.ndarray) -> None:
    fits = controls.ndim == 2 and baseline.shape == treated.shape == controls.shape[1:]
    if not fits or not len(controls):
        raise ResultError(
            f"an effect needs baseline and treated [trial] and controls [draw, trial], got "
            f"{baseline.shape}, {treated.shape} and {controls.shape}"
        )
    for what, values in (("baseline", baseline), ("treated", treated), ("controls", controls)):
        if not np.isfinite(values).all():
            raise ResultError(f"{what} holds NaN or infinity; leave those trials out of all three")
