"""The shape of degrees: how unequal, how much of it is frequency, and whether it is a power law.

arXiv 2510.08203 calls its graph scale-free without a fit. Frequencies follow a power law already,
and a degree that grows with a power of frequency inherits one: so the exponent is given with its
error and its tail, held against three other laws, beside the slope of degree on frequency.
Fitting is done by the `powerlaw` package (Clauset, Shalizi and Newman 2009).
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from circuits.feature_counts import FeatureCounts

LARGEST_FIT = 200_000
"""Values beyond which a random sample of that many is fitted instead: the time grows with n."""
FEWEST, FEWEST_DISTINCT = 100, 10
"""Values, and distinct ones, below which no tail can be told from another (Clauset et al. 2009)."""
ALTERNATIVES = ("lognormal", "truncated_power_law", "exponential")


@dataclass(frozen=True)
class Inequality:
    """How unequally something is spread over its holders.

    Attributes:
        gini: 0 all the same, towards 1 one has all.
        top_share: share held by the largest 1 %, at least one holder.
        participation: (sum x)^2 / sum x^2, holders that would hold it all if equally.
        effective: exp(entropy), the same with less weight on the largest.
    """

    gini: float
    top_share: float
    participation: float
    effective: float
    n: int


@dataclass(frozen=True, eq=False)
class FrequencySlope:
    """Least squares of log degree on log occurrences over tokens with a degree.

    `residual` is by token, in nats; NaN for tokens without a degree.
    """

    slope: float
    intercept: float
    r2: float
    residual: Float[np.ndarray, " token"]
    n: int


@dataclass(frozen=True)
class PowerLaw:
    """A discrete power law fitted to the tail of degrees, and what speaks against it.

    Attributes:
        alpha, sigma: exponent of P(k) ~ k^-alpha from `xmin` on, and its standard error.
        n_tail, n: values from xmin on, and in all.
        distance: Kolmogorov and Smirnov's, between the tail and the law.
        ratios: alternative -> (log-likelihood ratio, p); a ratio below 0 is against the power law.
        problem: why there is no fit; all numbers are NaN then. Empty where there is one.
    """

    alpha: float
    sigma: float
    xmin: float
    n_tail: int
    n: int
    distance: float
    ratios: dict[str, tuple[float, float]]
    problem: str = ""


def degrees(counts: FeatureCounts) -> Int[np.ndarray, " token"]:
    """Entries of each token."""
    return np.diff(counts.indptr)


def inequality(values: Float[np.ndarray, " holder"]) -> Inequality:
    """Inequality among the holders that hold something; NaN where there are none."""
    x = np.sort(np.asarray(values, dtype=float))
    x = x[x > 0]
    n, nan = len(x), float("nan")
    if not n:
        return Inequality(nan, nan, nan, nan, 0)
    share = x / x.sum()
    gini = float((2 * np.arange(1, n + 1) - n - 1) @ share / n)
    top = max(1, round(n / 100))
    effective = float(np.exp(-(share @ np.log(share))))
    return Inequality(gini, float(share[-top:].sum()), float(1 / (share @ share)), effective, n)


def token_specificity(counts: FeatureCounts) -> Float[np.ndarray, " feature"]:
    """How much a feature is one token's: 1 - H / log(most tokens that it could have met).

    H is the entropy of the tokens at which it fired; it could have met as many as it fired times,
    and no more than there are. 1: one token alone. NaN for a feature that fired less than twice.
    """
    p = counts.count / counts.firing[counts.feature]
    entropy = -np.bincount(counts.feature, p * np.log(p), counts.n_features)
    most = np.minimum(counts.firing, (counts.occurrences > 0).sum()).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(most > 1, 1 - entropy / np.log(most), np.nan)


def frequency_slope(counts: FeatureCounts) -> FrequencySlope:
    """How degree grows with frequency, and what each token has beyond it.

    The raw degree of a rare token is far from complete, which steepens the slope: compare tokens
    by `circuits.richness.rarefied_degree`. NaN where fewer than 3 tokens have a degree.
    """
    degree = degrees(counts)
    residual = np.full(counts.n_tokens, np.nan)
    known = degree > 0
    x, y = np.log(counts.occurrences[known]), np.log(degree[known])
    if known.sum() < 3 or not np.ptp(x):
        nan = float("nan")
        return FrequencySlope(nan, nan, nan, residual, int(known.sum()))
    slope, intercept = np.polyfit(x, y, 1)
    residual[known] = y - slope * x - intercept
    r2 = 1 - residual[known].var() / y.var() if np.ptp(y) else float("nan")
    return FrequencySlope(float(slope), float(intercept), float(r2), residual, int(known.sum()))


def fit_power_law(values: Int[np.ndarray, " value"], *, seed: int = 0) -> PowerLaw:
    """Fit the values above 0; with more than 200,000, a random sample of that many."""
    x = np.asarray(values)
    x = x[x > 0]
    distinct = len(np.unique(x))
    if distinct < FEWEST_DISTINCT:
        return _unfitted(len(x), f"{distinct} distinct values, {FEWEST_DISTINCT} are needed")
    if len(x) < FEWEST:
        return _unfitted(len(x), f"{len(x)} values, {FEWEST} are needed")
    if len(x) > LARGEST_FIT:
        x = np.random.default_rng(seed).choice(x, LARGEST_FIT, replace=False)
    try:
        return _fitted(x)
    except (ValueError, FloatingPointError, ZeroDivisionError, OverflowError) as error:
        return _unfitted(len(x), str(error).splitlines()[0])


def _fitted(x: np.ndarray) -> PowerLaw:
    with warnings.catch_warnings():
        # parameters at the edge of their range and the like: the ratios and p-values tell of it
        warnings.simplefilter("ignore")
        import powerlaw

        fit = powerlaw.Fit(x, discrete=True, verbose=0)
        law = fit.power_law
        if not np.isfinite(law.alpha):
            return _unfitted(len(x), "no beginning of the tail gives a finite exponent")
        ratios = {name: fit.distribution_compare("power_law", name) for name in ALTERNATIVES}
        return PowerLaw(
            float(law.alpha), float(law.standard_err), float(fit.xmin),
            int((x >= fit.xmin).sum()), len(x), float(law.D),
            {name: (float(r), float(p)) for name, (r, p) in ratios.items()},
        )  # fmt: skip


def _unfitted(n: int, why: str) -> PowerLaw:
    nan = float("nan")
    return PowerLaw(nan, nan, nan, 0, n, nan, {}, f"could not be fitted: {why}")
