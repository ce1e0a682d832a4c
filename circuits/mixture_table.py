"""What a mixture fit is worth: ablations, cells and positions held out, ceilings, intervals.

The published table (arXiv 2510.06182) gives one similarity for each variant, on cells held out at
random, where every index was seen in training. We add what is needed to read it: positions held
out, fits carried to another n or task, the similarity that the true model itself would reach with
as many cases a cell, intervals over entity sets, and a test of the additive form against
interactions, since lexical and reflexive answers are reported to be stronger near i_P.
"""

from dataclasses import dataclass, replace
from typing import Literal, TypedDict, Unpack, get_args

import numpy as np
from jaxtyping import Float

from circuits.mixture import INTERACTION, VARIANTS, Kernel, Loss, MixtureFit, fit_mixture
from circuits.outcomes import (
    FEWEST,
    CellMeans,
    Outcomes,
    Weights,
    blend_of_entropy,
    cell_means,
    entropy,
    jsd,
    resampled_means,
)
from interp.errors import ResultError, UnknownNameError

What = Literal["cells", "positions"]
Word = Literal["additive suffices", "interaction improves", "undecided"]
N_FOLDS = 5
N_DRAWS = 50
SMALLEST = 0.005
"""Similarity that an interaction must add to matter: half of what the published table resolves."""


class How(TypedDict, total=False):
    """How to fit: the keywords of `circuits.mixture.fit_mixture`, which gives their defaults."""

    kernel: Kernel
    loss: Loss
    weights: Weights


@dataclass(frozen=True)
class HeldOut:
    """Similarity on cells that were not fitted; the mean is over all cells scored."""

    jss: float | None
    n_scored: int
    n_cells: int


@dataclass(frozen=True)
class AblationRow:
    """Similarity on the cells fitted, and on cells and positions held out.

    None where nothing can be predicted: an oracle knows no position that it has not seen.
    """

    variant: str
    jss: float
    jss_cells: float | None
    jss_positions: float | None
    converged: bool
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A figure, of one group where it has an index, and its interval over clusters, if any."""

    name: str
    index: int | None
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class FitIntervals:
    """A fit, its figures, and why there is no interval where there is none."""

    fit: MixtureFit
    estimates: tuple[Estimate, ...]
    n_clusters: int
    n_draws: int
    reason: str | None

    def of(self, name: str, index: int | None = None) -> Estimate:
        """One estimate, such as `of("sigma", 3)`; `of("w_lex")` is the mean over its gates."""
        return {(e.name, e.index): e for e in self.estimates}[name, index]


@dataclass(frozen=True)
class Ceiling:
    """Similarity that the true model reaches on as many cases: mean and 95 % of simulations.

    Attributes:
        one_hot: if each case gives one answer, drawn from the model.
        matched: if each case is `blend` parts such an answer and the rest the model, so that the
            mean entropy of a case is the one observed, `case_entropy` in bits.
    """

    one_hot: tuple[float, float, float]
    matched: tuple[float, float, float]
    blend: float
    case_entropy: float


@dataclass(frozen=True)
class InteractionTest:
    """The two weights of the interaction, and the similarity it adds on cells held out."""

    u_lex: Estimate
    u_ref: Estimate
    gain: Estimate
    word: Word
    reason: str


@dataclass(frozen=True)
class MechanismWeights:
    """Logits that each mechanism gives its own group i, on one scale; None where not fitted."""

    positional: tuple[float | None, ...]
    lexical: tuple[float | None, ...]
    reflexive: tuple[float | None, ...]


# -- table ------------------------------------------------------------------------------------


def score(fit: MixtureFit, data: Outcomes | CellMeans, *, weights: Weights = "cells") -> float:
    """Jensen-Shannon similarity of a fit to data, 1 - mean JSD in bits, from 0 to 1.

    Raises:
        ResultError: another number of groups, or a cell that the fit cannot predict.
    """
    means = cell_means(data)
    if means.n != fit.n:
        remedy = f"carry it over by transferred(fit, {means.n})"
        raise ResultError(f"the fit has {fit.n} groups, the data {means.n}; {remedy}")
    return float(1 - means.shares(weights) @ jsd(means.mean, fit.predict(means.cells)))


def ablation_table(
    data: Outcomes | CellMeans, *, n_folds: int = N_FOLDS, seed: int = 0, **how: Unpack[How]
) -> tuple[AblationRow, ...]:
    """Every row of the published table; for what is held out see `held_out`.

    Raises:
        ResultError: fewer cells than folds, or cells that do not tell mechanisms apart.
    """
    means = cell_means(data)
    rows = []
    for name in VARIANTS:
        fit = fit_mixture(means, variant=name, **how)
        cells = held_out(means, variant=name, n_folds=n_folds, seed=seed, **how).jss
        positions = held_out(means, "positions", variant=name, **how).jss
        rows.append(AblationRow(name, fit.jss, cells, positions, fit.converged, seed))
    return tuple(rows)


def held_out(
    data: Outcomes | CellMeans,
    what: What = "cells",
    *,
    variant: str = "full",
    n_folds: int = N_FOLDS,
    seed: int = 0,
    **how: Unpack[How],
) -> HeldOut:
    """Cells in random folds, or all cells of one i_P at a time, predicted by a fit to the others.

    Cells interpolate, as in the published split: every index occurs in training. Positions, those
    between others of four or more, are predicted by the width's curve. What the others lack, such
    as a gate, is not scored.

    Raises:
        ResultError: fewer cells than folds, or fewer than 2 folds.
        UnknownNameError: neither cells nor positions.
    """
    if what not in get_args(What):
        raise UnknownNameError("thing to hold out", what, get_args(What))
    means = cell_means(data)
    p, inner = means.cells[:, 0], np.unique(means.cells[:, 0])[1:-1]
    fold = np.where(np.isin(p, inner) & (len(inner) > 1), p, -1)
    if what == "cells":
        fold = _folds(len(p), n_folds, seed)
    predicted = _predicted(means, fold, fit_mixture(means, variant=variant, **how), how)
    return _scored(means.take(fold >= 0), predicted[fold >= 0], how)


def transferred(fit: MixtureFit, n: int) -> MixtureFit:
    """The fit carried to n groups: width by i / n, as fitted, gates interpolated over i / (n - 1).

    A width stays in groups. Gates never fitted are bridged; `jss` is the old fit's.

    Raises:
        ResultError: an oracle, which knows its own groups alone, or fewer than 2 groups.
    """
    if fit.oracle is not None or n < 2:
        raise ResultError(f"{fit.variant!r} cannot be carried to {n} groups; fit a Gaussian there")
    to = np.linspace(0, 1, n)

    def carried(gates: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
        known = [(i / (fit.n - 1), w) for i, w in enumerate(gates or ()) if w is not None]
        at, weights = np.array(known).reshape(-1, 2).T
        return tuple(np.interp(to, at, weights).tolist()) if known else None

    return replace(fit, n=n, w_lex=carried(fit.w_lex), w_ref=carried(fit.w_ref))


def mechanism_weights(fit: MixtureFit) -> MechanismWeights:
    """What each mechanism adds to its own group: w_pos K(i | i), w_lex[i], w_ref[i], in logits.

    Unlike w_pos, the same in every kernel's convention.

    Raises:
        ResultError: an oracle, whose logits have no zero.
    """
    if fit.oracle is not None:
        raise ResultError("an oracle's logits have no zero to compare with; use a kernel's fit")
    none = (None,) * fit.n
    peak = none if fit.w_pos is None else tuple(np.diag(fit.positional()).tolist())
    return MechanismWeights(peak, fit.w_lex or none, fit.w_ref or none)


# -- noise ------------------------------------------------------------------------------------


def sampling_ceiling(
    fit: MixtureFit,
    outcomes: Outcomes,
    *,
    n_draws: int = 100,
    weights: Weights = "cells",
    seed: int = 0,
) -> Ceiling:
    """What the fit itself would score on cases drawn from it, as many a cell as observed.

    Cases are drawn independently; those of one entity set are not, so the true ceiling is lower. A
    fit by `jsd` to cells of few cases is too sharp, and its ceiling too high: take `likelihood`.
    """
    means = cell_means(outcomes)
    q, rng = fit.predict(means.cells), np.random.default_rng(seed)
    observed = float(entropy(outcomes.probs).mean())
    blend = blend_of_entropy(q, means.shares("cases"), observed)
    share, one_hot, matched = means.shares(weights), [], []
    for _ in range(n_draws):
        drawn = rng.multinomial(means.counts.astype(int), q) / means.counts[:, None]
        one_hot.append(1 - share @ jsd(drawn, q))
        matched.append(1 - share @ jsd(blend * drawn + (1 - blend) * q, q))
    return Ceiling(_range(one_hot), _range(matched), blend, observed)


def fit_intervals(
    outcomes: Outcomes,
    *,
    variant: str = "full",
    n_draws: int = N_DRAWS,
    level: float = 0.95,
    seed: int = 0,
    **how: Unpack[How],
) -> FitIntervals:
    """Cluster bootstrap: clusters resampled, cells averaged and fitted again from the first fit.

    Intervals are basic ones, 2 value - quantile: a resample has the noise of few cases twice, and
    where that biases a fit (see `circuits.mixture.Loss`), this takes the bias out, so that a value
    by `jsd` may lie outside. The interval of jss is the spread about it alone. Fewer than 6
    clusters give none.
    """
    fit = fit_mixture(outcomes, variant=variant, **how)
    figures, draws = _figures(fit), []
    n_clusters = len(np.unique(outcomes.clusters))
    if n_clusters >= FEWEST:
        for means, _ in resampled_means(outcomes, n_draws, seed):
            again = _figures(fit_mixture(means, variant=variant, warm=fit, **how))
            draws.append([again.get(key, np.nan) for key in figures])
    estimates = tuple(
        _estimate(name, index, value, [d[k] for d in draws], level)
        for k, ((name, index), value) in enumerate(figures.items())
    )
    few = f"{n_clusters} clusters give no interval, {FEWEST} are needed; use more entity sets"
    return FitIntervals(fit, estimates, n_clusters, len(draws), None if draws else few)


def interaction(
    outcomes: Outcomes,
    *,
    n_folds: int = N_FOLDS,
    n_draws: int = N_DRAWS,
    smallest: float = SMALLEST,
    seed: int = 0,
    **how: Unpack[How],
) -> InteractionTest:
    """Whether gates that grow near i_P, u exp(-|i - i_P|), predict cells held out better.

    The rule, on the gain in similarity and its interval over clusters:

    - undecided: fewer than 6 clusters.
    - additive suffices: the interval lies below `smallest`.
    - interaction improves: it lies above 0, and the gain is at least `smallest`.
    - undecided: anything else.

    The word is about prediction. In simulations 2 logits of u added .001 to .002, so a weight can
    exist for sure, by its own interval, where the additive form suffices.
    """
    means = cell_means(outcomes)
    fold = _folds(len(means.cells), n_folds, seed)
    plain = fit_mixture(means, **how)
    fit = fit_mixture(means, variant=INTERACTION.name, warm=plain, **how)

    def gain(means: CellMeans, fold: np.ndarray) -> float:
        new, old = (_scored(means, _predicted(means, fold, f, how), how).jss for f in (fit, plain))
        return (new or 0.0) - (old or 0.0)

    n_clusters = len(np.unique(outcomes.clusters))
    draws: list[tuple[float, float, float]] = []
    for again, kept in resampled_means(outcomes, n_draws if n_clusters >= FEWEST else 0, seed):
        more = fit_mixture(again, variant=INTERACTION.name, warm=fit, **how)
        draws.append((more.u_lex or 0.0, more.u_ref or 0.0, gain(again, fold[kept])))
    values = (("u_lex", fit.u_lex or 0.0), ("u_ref", fit.u_ref or 0.0), ("gain", gain(means, fold)))
    found = [_estimate(k, None, v, [d[i] for d in draws], 0.95) for i, (k, v) in enumerate(values)]
    return InteractionTest(found[0], found[1], found[2], *_word(found[2], n_clusters, smallest))


# -- helpers ----------------------------------------------------------------------------------


def _folds(n_cells: int, n_folds: int, seed: int) -> np.ndarray:
    if not 2 <= n_folds <= n_cells:
        raise ResultError(f"{n_cells} cells make 2 to {n_cells} folds, got {n_folds}")
    return np.random.default_rng(seed).permutation(np.arange(n_cells) % n_folds)


def _predicted(
    means: CellMeans, fold: np.ndarray, fit: MixtureFit, how: How
) -> Float[np.ndarray, "cell n"]:
    """Each cell by a fit to the other folds; NaN for fold -1, and for what the others lack."""
    predicted = np.full(means.mean.shape, np.nan)
    for test in (fold == k for k in np.unique(fold) if k >= 0):
        other = fit_mixture(means.take(~test), variant=fit.variant, warm=fit, **how)
        test &= other.knows(means.cells)
        predicted[test] = other.predict(means.cells[test])
    return predicted


def _scored(means: CellMeans, predicted: np.ndarray, how: How) -> HeldOut:
    """Similarity where something is predicted."""
    known = ~np.isnan(predicted).any(1)
    rest = means.take(known)
    share = rest.shares(how.get("weights", "cells"))
    jss = float(1 - share @ jsd(rest.mean, predicted[known])) if known.any() else None
    return HeldOut(jss, len(rest.cells), len(means.cells))


def _range(values: list[float]) -> tuple[float, float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)


def _figures(fit: MixtureFit) -> dict[tuple[str, int | None], float]:
    """All that has an interval, by name and group."""
    found: dict[tuple[str, int | None], float] = {("jss", None): fit.jss}
    if fit.w_pos is not None:
        found["w_pos", None] = fit.w_pos
    for name, values in (("sigma", fit.sigma()), ("w_lex", fit.w_lex), ("w_ref", fit.w_ref)):
        numbers = np.array([] if values is None else values, dtype=float)  # None becomes NaN
        if name != "sigma" and numbers.size:
            found[name, None] = float(np.nanmean(numbers))
        found.update({(name, i): float(v) for i, v in enumerate(numbers) if not np.isnan(v)})
    return found


def _estimate(
    name: str, index: int | None, value: float, draws: list[float], level: float
) -> Estimate:
    if not draws or np.isnan(draws).all():
        return Estimate(name, index, value, None, None)
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    if name == "jss":
        shift = value - float(np.nanmean(draws))
        return Estimate(name, index, value, float(low + shift), float(high + shift))
    return Estimate(name, index, value, float(2 * value - high), float(2 * value - low))


def _word(gain: Estimate, n_clusters: int, smallest: float) -> tuple[Word, str]:
    if gain.low is None or gain.high is None:
        return "undecided", f"{n_clusters} clusters give no interval, {FEWEST} are needed"
    figures = f"gains {gain.value:.4f} [{gain.low:.4f}, {gain.high:.4f}] on cells held out"
    if gain.high < smallest:
        return "additive suffices", f"{figures}, less than {smallest}"
    if gain.low > 0 and gain.value >= smallest:
        return "interaction improves", f"{figures}, at least {smallest}"
    return "undecided", f"{figures}, which neither excludes {smallest} nor reaches it for sure"
