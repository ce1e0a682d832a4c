"""The learned causal model of how a patched last token finds its answer: one mixture of logits.

Gur-Arieh, Geva and Geiger (arXiv 2510.06182): the query of a donor prompt, patched into a
recipient, points to a group of entities in three ways. By position (its group i_P), by the query
entity (i_L, lexical) and by the target entity (i_R, reflexive). Over the n groups, softmax of

    Y_i = w_pos K(i | i_P, sigma(i_P)) + w_lex[i_L] 1{i = i_L} + w_ref[i_R] 1{i = i_R}
    sigma(i_P) = alpha (i_P / n)^2 + beta (i_P / n) + gamma

Groups count from 0. We differ: the convention of the kernel is named, since a wrong one scores
nearly as well and ruins w_pos and sigma; cells need not be a full cube, collisions (i_L = i_R) and
coincidences (i_L = i_P) are cells like others; and what the cells cannot tell apart is refused.
The fit is BFGS with gradients by hand, in numpy: nothing here needs a language model or torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from circuits.outcomes import CellMeans, Outcomes, Weights, cell_means, jsd
from interp.errors import ResultError, UnknownNameError

Kernel = Literal["peak", "density", "discrete"]
"""How high a Gaussian over groups stands; sigma means the same in all three.

- peak: exp(-(i - p)^2 / 2 sigma^2), 1 at i = p; the code that the authors released.
- density: divided by sigma sqrt(2 pi); the formula as they write it.
- discrete: divided by its sum over the n groups; what one attention head can give.
"""
Loss = Literal["jsd", "likelihood"]
"""Jensen-Shannon divergence, as published, or cross-entropy.

The divergence is biased where cells are averages of few near-one-hot cases: it fits the average's
accidents, with weights too large (without bound, for one case a cell). Simulated (n = 8, one-hot
cases), w_pos is 60 % too large with 3 cases a cell, 15 % with 20, 4 % with the published 150; by
likelihood, never 4 %.
"""
POINTERS = ("i_P", "i_L", "i_R")
STARTS = (0.5, 1.5, 3.0)
"""Widths, in groups, from which the fit sets out; the best is kept."""

_FLOOR = 1e-12  # a probability of 0 has no logarithm
_JITTER = 1e-6  # added to sigma^2, as in the released code


@dataclass(frozen=True)
class Variant:
    """Terms of the formula: which positional one, and the gates by their names in `MixtureFit`."""

    name: str
    positional: Literal["gaussian", "one-hot", "oracle"] | None
    gates: tuple[str, ...] = ()


VARIANTS = {
    v.name: v
    for v in (
        Variant("full", "gaussian", ("w_lex", "w_ref")),
        Variant("positional one-hot", "one-hot"),  # the prevailing view
        Variant("oracle positional", "oracle", ("w_lex", "w_ref")),
        Variant("one-hot positional", "one-hot", ("w_lex", "w_ref")),
        Variant("without positional", None, ("w_lex", "w_ref")),
        Variant("without lexical", "gaussian", ("w_ref",)),
        Variant("without reflexive", "gaussian", ("w_lex",)),
        Variant("positional only", "gaussian"),
        Variant("lexical only", None, ("w_lex",)),
        Variant("reflexive only", None, ("w_ref",)),
        Variant("uniform", None),
    )
}
"""Rows of the published table. An oracle is the measured mean by i_P, as a log, freely weighted."""

INTERACTION = Variant("interaction", "gaussian", ("w_lex", "w_ref", "u_lex", "u_ref"))
"""Gates that also depend on the distance: u_lex exp(-|i_L - i_P|) is added at i_L, so at i_R."""
_ROWS = VARIANTS | {INTERACTION.name: INTERACTION}


@dataclass(frozen=True, kw_only=True)
class MixtureFit:
    """Parameters of a fit, plain data: `MixtureFit(**json)` restores what `asdict` gave.

    Attributes:
        variant, kernel, loss, weights: names of what was fitted, and how.
        w_pos: weight of the kernel in logits; its scale depends on the kernel's convention.
        alpha, beta, gamma: the width's curve; its sign is free, `sigma` gives the size.
        w_lex, w_ref: gate of each group in logits; None where no cell points there.
        u_lex, u_ref: weights of the interaction, in logits.
        oracle: log of the measured mean by i_P, a row for each; None where it never occurs.
        jss: Jensen-Shannon similarity to the cells it was fitted to, 1 - JSD in bits.
        converged: whether the optimiser came to rest.
    """

    variant: str
    kernel: Kernel
    loss: Loss = "jsd"
    weights: Weights = "cells"
    n: int
    w_pos: float | None = None
    alpha: float | None = None
    beta: float | None = None
    gamma: float | None = None
    w_lex: tuple[float | None, ...] | None = None
    w_ref: tuple[float | None, ...] | None = None
    u_lex: float | None = None
    u_ref: float | None = None
    oracle: tuple[tuple[float, ...] | None, ...] | None = None
    jss: float
    n_cells: int
    n_cases: int
    converged: bool

    def __post_init__(self) -> None:
        for name in ("w_lex", "w_ref", "oracle"):  # json knows lists alone
            if (value := getattr(self, name)) is not None:
                rows = (tuple(v) if isinstance(v, list) else v for v in value)
                object.__setattr__(self, name, tuple(rows))

    def sigma(self) -> Float[np.ndarray, " n"]:
        """Width of the kernel at each i_P, in groups; NaN where the variant has no kernel."""
        curve = np.array([self.alpha, self.beta, self.gamma], dtype=float)  # None becomes NaN
        return np.abs(np.vander(np.arange(self.n) / self.n, 3) @ curve)

    def knows(self, cells: Int[np.ndarray, "cell 3"]) -> Bool[np.ndarray, " cell"]:
        """Whether all that a cell needs was fitted: a gate never seen predicts nothing."""
        known = np.ones(len(cells), dtype=bool)
        for column, values in enumerate((self.oracle, self.w_lex, self.w_ref)):
            if values is not None:
                known &= np.array([v is not None for v in values])[cells[:, column]]
        return known

    def positional(self) -> Float[np.ndarray, "n n"]:
        """Logits `[i_P, i]` that position alone gives; an oracle's are NaN where it knows none."""
        formula = _of(self, np.zeros((0, 3), dtype=int))
        return (self.w_pos or 0.0) * formula.table(formula.theta(self))[0]

    def predict(self, cells: Int[np.ndarray, "cell 3"]) -> Float[np.ndarray, "cell n"]:
        """Distribution over the n groups at each cell.

        Raises:
            ResultError: a cell outside the groups, or one that points to a gate never fitted.
        """
        cells = np.asarray(cells)
        if cells.ndim != 2 or cells.shape[1] != 3 or (cells < 0).any() or (cells >= self.n).any():
            raise ResultError(f"cells must be [cell, 3], from 0 to {self.n - 1}, got {cells.shape}")
        if not (known := self.knows(cells)).all():
            raise ResultError(
                f"cell {cells[~known][0].tolist()} points to a group that no fitted cell points "
                "to; fit more cells, or ask `knows` first"
            )
        formula = _of(self, cells)
        return _softmax(formula.logits(formula.theta(self)))[0]


# -- fit --------------------------------------------------------------------------------------


def fit_mixture(
    data: Outcomes | CellMeans,
    *,
    variant: str = "full",
    kernel: Kernel = "peak",
    loss: Loss = "jsd",
    weights: Weights = "cells",
    warm: MixtureFit | None = None,
) -> MixtureFit:
    """The parameters of least loss; the search sets out from `warm` alone, where given.

    Raises:
        ResultError: a Gaussian over fewer than 3 values of i_P, or mechanisms that point to the
            same group in every cell: their weights could be shared out in any way.
        UnknownNameError: no such variant, kernel, loss or weights.
    """
    _known("loss", loss, get_args(Loss))
    means = cell_means(data)
    share = means.shares(weights)
    formula = _Formula(variant, kernel, means.n, means.cells, _oracle(means))
    _check_told_apart(means.cells, formula.variant)
    starts = [formula.theta(warm)] if warm else [formula.start(sigma) for sigma in STARTS]
    theta, converged = _search(formula, means.mean, share, starts, loss)
    fit = MixtureFit(
        **formula.named(theta), variant=variant, kernel=kernel, loss=loss, weights=weights,
        n=means.n, jss=0.0, n_cells=len(means.cells), n_cases=int(means.counts.sum()),
        converged=converged,
    )  # fmt: skip
    return replace(fit, jss=float(share @ (1 - jsd(means.mean, fit.predict(means.cells)))))


def _search(
    formula: "_Formula", target: np.ndarray, share: np.ndarray, starts: list[np.ndarray], loss: Loss
) -> tuple[np.ndarray, bool]:
    from scipy.optimize import minimize

    if not formula.size:
        return starts[0], True
    # arrays of a thousand cells stay in the processor's cache
    blocks = np.array_split(np.arange(len(target)), len(target) // 1500 + 1)
    fixed = (formula.variant.name, formula.kernel, formula.n)
    parts = [
        (_Formula(*fixed, formula.cells[b], formula.oracle), target[b], share[b]) for b in blocks
    ]

    def objective(theta: np.ndarray, loss: Loss) -> tuple[float, np.ndarray]:
        found = [part.loss(theta, goal, weight, loss) for part, goal, weight in parts]
        return sum(v for v, _ in found), np.sum([slope for _, slope in found], axis=0)

    def run(theta: np.ndarray, loss: Loss, steps: int) -> Any:
        # a gate counts in one of n cells, so that the loss is about as flat as this
        options = {"maxiter": steps, "gtol": 1e-8, "hess_inv0": 20 * formula.n * np.eye(len(theta))}
        # not L-BFGS-B: its tiny LAPACK calls start threads, ten times slower on a busy machine
        how: Any = {"args": (loss,), "jac": True, "method": "BFGS", "options": options}
        done = minimize(objective, theta, **how)
        if (unfolded := formula.unfolded(done.x)) is not None:
            done = min(done, minimize(objective, unfolded, **how), key=lambda d: d.fun)
        return done

    # far from the data the divergence is flat, and its gradient leads astray; likelihood is not
    scouts = [run(theta, "likelihood", 30) for theta in starts] if len(starts) > 1 else []
    done = run(min(scouts, key=lambda d: d.fun).x if scouts else starts[0], loss, 2000)
    # the line search also gives up where rounding is all that is left
    return done.x, bool(done.success or np.abs(done.jac).max() < 1e-5)


# -- formula ----------------------------------------------------------------------------------


class _Formula:
    """The formula over fixed cells: logits of a vector of parameters, loss and gradient.

    The vector holds w_pos; alpha, beta, gamma; w_lex [n]; w_ref [n]; u_lex; u_ref; those that the
    variant has. All but the kernel is linear in it: a link says, for each cell, which group gets
    which parameter times which value.
    """

    def __init__(
        self, variant: str, kernel: Kernel, n: int, cells: np.ndarray, oracle: np.ndarray
    ) -> None:
        v = self.variant = _ROWS[_known("variant", variant, _ROWS)]
        _known("kernel", kernel, get_args(Kernel))
        self.kernel, self.n, self.cells, self.oracle = kernel, n, cells, oracle
        self.rows, self.x = np.arange(len(cells)), np.vander(np.arange(n) / n, 3)
        self.gaussian = v.positional == "gaussian"
        self.n_positional = 4 * self.gaussian or int(v.positional is not None)
        self.at: dict[str, slice] = {}
        self.size = 0
        for name in (*("w_pos", "alpha", "beta", "gamma")[: self.n_positional], *v.gates):
            more = n if name in ("w_lex", "w_ref") else 1
            self.at[name] = slice(self.size, self.size + more)
            self.size += more
        p, lexical, reflexive = cells.T
        links = {
            "w_lex": (lexical, lexical, np.ones(len(p))),
            "w_ref": (reflexive, reflexive, np.ones(len(p))),
            "u_lex": (lexical, 0 * p, np.exp(-np.abs(lexical - p))),
            "u_ref": (reflexive, 0 * p, np.exp(-np.abs(reflexive - p))),
        }
        self.links = [
            (group, self.at[k].start + which, value)
            for k, (group, which, value) in links.items()
            if k in self.at
        ]

    def start(self, sigma: float) -> np.ndarray:
        """A weight of 1, one width for all, no gates."""
        theta = np.zeros(self.size)
        theta[: self.n_positional] = [1, 0, 0, sigma][: self.n_positional]
        return theta

    def unfolded(self, theta: np.ndarray) -> np.ndarray | None:
        """Another start for a width that changes its sign; None where it does not.

        The sign of sigma does nothing, so a curve that dips through 0 is one that was folded on
        its way, and stays so: the loss is a wall between it and the curve that does not dip.
        """
        if not self.gaussian or (width := self.x @ theta[1:4]).min() * width.max() > 0:
            return None
        fitted = np.linalg.lstsq(self.x, np.abs(width))[0]
        fitted[2] += max(0, min(STARTS) / 2 - (self.x @ fitted).min())
        return np.concatenate([theta[:1], fitted, theta[4:]])

    def theta(self, fit: MixtureFit) -> np.ndarray:
        """The vector of a fit; a parameter that it lacks is 0."""
        found = [np.ravel(np.array(getattr(fit, name), dtype=float)) for name in self.at]
        return np.nan_to_num(np.concatenate([np.zeros(0), *found]))

    def named(self, theta: np.ndarray) -> dict[str, Any]:
        """A fit's fields; a gate to which no cell points is None."""
        values: dict[str, Any] = {name: float(theta[at][0]) for name, at in self.at.items()}
        for name, column in (("w_lex", 1), ("w_ref", 2)):
            if name in self.at:
                seen = set(self.cells[:, column].tolist())
                gates = enumerate(theta[self.at[name]].tolist())
                values[name] = tuple(w if i in seen else None for i, w in gates)
        if self.variant.positional == "oracle":
            rows = self.oracle.tolist()
            values["oracle"] = tuple(None if np.isnan(row[0]) else tuple(row) for row in rows)
        return values

    def table(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The positional term `[i_P, i]` at weight 1, and its derivative by sigma(i_P)."""
        if self.gaussian:
            return gaussian(self.x @ theta[1:4], self.kernel)
        return self.oracle if self.variant.positional == "oracle" else np.eye(self.n), np.zeros(0)

    def logits(self, theta: np.ndarray) -> Float[np.ndarray, "cell n"]:
        y = np.zeros((len(self.cells), self.n))
        if self.n_positional:
            y += (theta[0] * self.table(theta)[0])[self.cells[:, 0]]
        for group, which, value in self.links:
            y[self.rows, group] += theta[which] * value
        return y

    def loss(
        self, theta: np.ndarray, target: Float[np.ndarray, "cell n"], share: np.ndarray, loss: Loss
    ) -> tuple[float, np.ndarray]:
        """Mean loss in nats, but for a constant of the target, and its gradient."""
        q, log_q = _softmax(self.logits(theta))
        if loss == "likelihood":
            each, by_logit = -(target * log_q).sum(1), q - target
        else:
            middle = (target + q) / 2
            log_middle = np.log(np.maximum(middle, 1e-300))
            each = (q * log_q).sum(1) / 2 - (middle * log_middle).sum(1)
            slope = (log_q - log_middle) / 2
            by_logit = q * (slope - (q * slope).sum(1, keepdims=True))
        return float(share @ each), self.pullback(theta, by_logit * share[:, None])

    def pullback(self, theta: np.ndarray, by_logit: Float[np.ndarray, "cell n"]) -> np.ndarray:
        """Gradient by the parameters of what has the given gradient by the logits."""
        gradient = np.zeros(self.size)
        for group, which, value in self.links:
            gradient += np.bincount(which, by_logit[self.rows, group] * value, self.size)
        if self.n_positional:
            table, by_sigma = self.table(theta)
            by_table = np.eye(self.n)[self.cells[:, 0]].T @ by_logit
            gradient[0] = (by_table * table).sum()
            if self.gaussian:
                gradient[1:4] = theta[0] * (by_table * by_sigma).sum(1) @ self.x
        return gradient


def gaussian(sigma: Float[np.ndarray, " n"], kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Kernel of each i_P, `[i_P, i]`, and its derivative by sigma(i_P)."""
    groups = np.arange(len(sigma))
    variance = (sigma**2 + _JITTER)[:, None]
    half = (groups - groups[:, None]) ** 2 / (2 * variance)
    bell, slope = np.exp(-half), half / variance
    total = bell.sum(1, keepdims=True)
    norm, by_norm = {
        "peak": (np.ones(1), np.zeros(1)),
        "density": (np.sqrt(2 * np.pi * variance), 1 / (2 * variance)),
        "discrete": (total, (bell * slope).sum(1, keepdims=True) / total),
    }[kernel]
    return bell / norm, bell / norm * (slope - by_norm) * 2 * sigma[:, None]


# -- helpers ----------------------------------------------------------------------------------


def _of(fit: MixtureFit, cells: np.ndarray) -> _Formula:
    rows = [[np.nan] * fit.n if row is None else row for row in fit.oracle or ()]
    return _Formula(fit.variant, fit.kernel, fit.n, cells, np.array(rows))


def _softmax(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Softmax of each row and its natural log."""
    y = y - y.max(1, keepdims=True)
    log_q = y - np.log(np.exp(y).sum(1, keepdims=True))
    return np.exp(log_q), log_q


def _known(what: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise UnknownNameError(what, name, names)
    return name


def _oracle(means: CellMeans) -> Float[np.ndarray, "n n"]:
    """Log of the mean over cells by i_P; NaN rows where i_P never occurs."""
    one = np.eye(means.n)[means.cells[:, 0]]
    with np.errstate(invalid="ignore"):
        return np.log(np.maximum(one.T @ means.mean / one.sum(0)[:, None], _FLOOR))


def _check_told_apart(cells: np.ndarray, variant: Variant) -> None:
    """Two mechanisms that never point apart share their weight in any way one likes."""
    if variant.positional == "gaussian" and len(np.unique(cells[:, 0])) < 3:
        raise ResultError("a width over positions needs 3 values of i_P; patch more of them")
    used = (variant.positional, "w_lex" in variant.gates, "w_ref" in variant.gates)
    for j, k in ((0, 1), (0, 2), (1, 2)):
        if used[j] and used[k] and (cells[:, j] == cells[:, k]).all():
            raise ResultError(
                f"{POINTERS[j]} = {POINTERS[k]} in every cell, so that {variant.name!r} cannot "
                "tell them apart; add other cells, or fit a variant without one of the two"
            )
