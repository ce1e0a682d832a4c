"""The mixture of a study, described: fit, variants, ceiling, intervals, case level, behaviour."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, get_args

import numpy as np

from circuits.binding_labels import candidate_probs
from circuits.binding_plan import BindSettings
from circuits.binding_study import Records
from circuits.case_level import COMPONENTS, locate, responsibilities
from circuits.mixture import Kernel, Loss, MixtureFit, fit_mixture
from circuits.mixture_table import (
    How,
    What,
    ablation_table,
    fit_intervals,
    held_out,
    interaction,
    mechanism_weights,
    sampling_ceiling,
)
from circuits.outcomes import Outcomes
from interp.errors import ResultError

KERNEL: Kernel = "discrete"
"""Convention of the tables: what one attention head can give. The others are fitted beside it."""
LOSS: Loss = "likelihood"
"""Of the fits whose parameters are read; similarities are of fits of least JSD, as published."""


def outcomes_of(main: Records) -> Outcomes:
    """The main design's records as the mixture takes them."""
    rows = main.rows
    cells = rows[["i_p", "i_l", "i_r"]].to_numpy(int)
    return Outcomes(candidate_probs(main.logits.astype(float)), cells, rows["set"].to_numpy())


def describe_mixture(main: Records, able: dict[str, Any], settings: BindSettings) -> dict[str, Any]:
    """Everything about the mixture, plain values.

    Keys: fit (`KERNEL`, by likelihood), jss (of a fit of least JSD, as published), kernels (the
    same fit by convention), variants, held_out (both of least JSD), ceiling, intervals,
    interaction, weights, case_level, responsibilities, behaviour. What cannot be had holds its
    `reason`; the whole does where nothing can be fitted.

    Parameters are fitted by likelihood: averages of few, nearly one-hot cases are too sharp, and
    weights of least JSD follow them (in simulations of 3 cases a cell w_pos was 60 % too large).
    """
    data = outcomes_of(main)
    seed, draws = settings.seed, settings.bootstrap
    try:
        fit = fit_mixture(data, kernel=KERNEL, loss=LOSS)
    except ResultError as error:
        return {"reason": str(error), "case_level": _case_level(data, main, settings)}
    how: How = {"kernel": KERNEL, "loss": LOSS}
    parts: dict[str, Callable[[], Any]] = {
        "kernels": lambda: {
            k: asdict(fit_mixture(data, kernel=k, loss=LOSS)) for k in get_args(Kernel)
        },
        "variants": lambda: [asdict(row) for row in ablation_table(data, seed=seed, kernel=KERNEL)],
        "held_out": lambda: {
            what: asdict(held_out(data, what, seed=seed, kernel=KERNEL)) for what in get_args(What)
        },
        "ceiling": lambda: asdict(sampling_ceiling(fit, data, seed=seed)),
        "intervals": lambda: asdict(fit_intervals(data, n_draws=draws, seed=seed, **how)),
        "interaction": lambda: asdict(interaction(data, n_draws=draws, seed=seed, **how)),
        "weights": lambda: asdict(mechanism_weights(fit)),
        "responsibilities": lambda: _responsibilities(data, fit, main.rows["i_n"].to_numpy(int)),
        "behaviour": lambda: behaviour(fit, able),
    }
    jss = fit_mixture(data, kernel=KERNEL).jss
    out = {"fit": asdict(fit), "jss": jss, "kernel": KERNEL}
    out |= {name: _or_reason(part) for name, part in parts.items()}
    return out | {"case_level": _case_level(data, main, settings)}


def _or_reason(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except ResultError as error:
        return {"reason": str(error)}


def _responsibilities(data: Outcomes, fit: MixtureFit, i_n: np.ndarray) -> dict[str, Any]:
    found = responsibilities(data, fit, i_n=i_n)
    rows = [[None if np.isnan(v) else float(v) for v in row] for row in found.by_position]
    return {"components": list(COMPONENTS), "by_position": rows, "clear": found.clear}


def behaviour(fit: MixtureFit, able: dict[str, Any]) -> dict[str, Any]:
    """Does the mixture predict what the model does when nothing is patched?

    Unpatched, all three pointers lead to the group asked for: the predicted probability of the
    right answer at group i is that of the cell (i, i, i). Compared by group with the measured one
    (among the candidates) of the preflight, whose prompts took no part in the fit. `error` is the
    mean absolute difference, `rank` the Spearman correlation over groups (None where one of the
    two does not vary), `flat` the error of predicting the measured mean everywhere.
    """
    from scipy.stats import spearmanr

    cells = np.repeat(np.arange(fit.n)[:, None], 3, axis=1)
    measured = np.array(able["answer_by_group"])
    predicted = np.full(fit.n, np.nan)
    known = fit.knows(cells)
    predicted[known] = fit.predict(cells[known])[np.arange(known.sum()), np.flatnonzero(known)]
    both = measured[known], predicted[known]
    varies = known.sum() > 2 and all(np.ptp(v) > 1e-9 for v in both)
    return {
        "measured": measured.tolist(),
        "predicted": [None if np.isnan(v) else float(v) for v in predicted],
        "error": float(np.abs(both[0] - both[1]).mean()) if known.any() else None,
        "flat": float(np.abs(both[0] - both[0].mean()).mean()) if known.any() else None,
        "rank": float(spearmanr(*both).statistic) if varies else None,
    }


def _case_level(data: Outcomes, main: Records, settings: BindSettings) -> dict[str, Any]:
    """Within a prompt or between prompts; by cells where they hold 2 cases, else by roles."""
    i_n = main.rows["i_n"].to_numpy(int)
    for pooled in ("cells", "roles"):
        try:
            return asdict(locate(data, i_n=i_n, pooled=pooled, seed=settings.seed))
        except ResultError as error:
            reason = str(error)
    return {"verdict": "undecided", "reason": reason}
