"""How much of the behaviour does a circuit of heads carry? A curve over its size, not one number.

All heads outside the circuit give what they give in the twin prompt, which states another value.
f(size) = (metric of the circuit - twin) / (original - twin): 1 is the whole model, 0 the twin.
CPR is the area under f, CMD the area between f and 1, over the share of heads (MIB, arXiv
2504.13151). Beside it: random circuits of the same size, and completeness, which is f of everything
*but* the circuit. Pure functions of the rows of `circuits.faithfulness.run_circuits`.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def curves(rows: "pd.DataFrame") -> "pd.DataFrame":
    """f of circuits and of complements, by ranking and size; for random ones the band."""
    import pandas as pd

    out = []
    for (ranking, size), part in rows.groupby(["ranking", "size"], sort=False):
        whole = (part["original"] - part["twin"]).mean()
        values = {}
        for name in ("circuit", "complement"):
            draws = part.groupby("needle").cumcount()
            values[name] = ((part[name] - part["twin"]).groupby(draws).mean() / whole).to_numpy()
        low, high = np.percentile(values["circuit"], [2.5, 97.5])
        out.append(
            {
                "ranking": ranking,
                "size": size,
                "share": size / part["of"].iloc[0],
                "faithfulness": values["circuit"].mean(),
                "low": low,
                "high": high,
                "completeness": values["complement"].mean(),
                "draws": len(values["circuit"]),
            }
        )
    return pd.DataFrame(out).sort_values(["ranking", "size"], ignore_index=True)


def areas(curve: "pd.DataFrame") -> dict[str, dict[str, float]]:
    """CPR and CMD of each ranking: trapezoids on a linear axis of shares, from 0 (f = 0) on."""
    out = {}
    for ranking, part in curve.groupby("ranking"):
        whole = curve[curve["share"] == 1.0]["faithfulness"]
        x = np.array([0.0, *part["share"]])
        f = np.array([0.0, *part["faithfulness"]])
        if x[-1] < 1 and len(whole):  # random circuits of all heads are the model itself
            x, f = np.append(x, 1.0), np.append(f, whole.iloc[0])
        out[str(ranking)] = {"CPR": float(np.trapezoid(f, x)),
                             "CMD": float(np.trapezoid(np.abs(1 - f), x))}  # fmt: skip
    return out
