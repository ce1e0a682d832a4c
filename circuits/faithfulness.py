"""How much of the behaviour does a circuit of heads carry? A curve over its size, not one number.

All heads outside the circuit give what they give in the twin prompt, which states another value.
f(size) = (metric of the circuit - twin) / (original - twin): 1 is the whole model, 0 the twin.
CPR is the area under f, CMD the area between f and 1, over the share of heads (MIB, arXiv
2504.13151). Beside it: random circuits of the same size, and completeness, which is f of everything
*but* the circuit. Feed-forward layers are part of every circuit.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attribution import head_sites
from circuits.interventions import FORCED
from circuits.patch_prompts import Patchable, activations, run_rows
from interp.sites import Edit, Head, Site

if TYPE_CHECKING:
    import pandas as pd

    from interp.backends.hf import HFModel

GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all heads, as in MIB; shares that give the same number of heads are run once."""


def sizes(n_heads: int) -> list[int]:
    """Circuit sizes of the grid, in heads."""
    return sorted({max(1, round(share * n_heads)) for share in GRID})


def circuits_of(
    rankings: Mapping[str, Sequence[Head]], pool: Sequence[Head], *, n_random: int, seed: int
) -> list[tuple[str, int, tuple[Head, ...]]]:
    """Name, size and heads of every circuit: the first of each ranking, and random ones."""
    rng = np.random.default_rng(seed)
    out = []
    for k in sizes(len(pool)):
        out += [(name, k, tuple(ranked[:k])) for name, ranked in rankings.items()]
        for _ in range(n_random if k < len(pool) else 0):
            drawn = rng.choice(len(pool), size=k, replace=False)
            out.append(("random", k, tuple(pool[i] for i in sorted(drawn))))
    return out


def run_circuits(
    model: "HFModel", p: Patchable, chosen: Sequence[tuple[str, int, tuple[Head, ...]]]
) -> list[dict[str, Any]]:
    """Each circuit, and each complement, on one question."""
    other = activations(model, p, head_sites(model), twin=True)
    places, pool = tuple(range(len(p.spread.tokens))), model.spec.heads()
    kept = [set(heads) for _, _, heads in chosen]
    n = len(kept)
    edits = []
    for head in pool:
        rows = tuple(
            i if side == 0 else n + i
            for i in range(n) for side in (0, 1)
            if (head in kept[i]) == (side == 1)
        )  # fmt: skip
        value = other[Site("z", head.layer)][:, head.head]
        site = Site("z", head.layer, head.head)
        if rows:
            edits.append(Edit(site, "resample", value, rows=rows, positions=places))
    found = run_rows(model, p, 2 * n, edits)[:, FORCED.index("logit_diff")]
    base = {"needle": p.name, "original": _gap(p.original), "twin": _gap(p.twin)}
    return [
        base | {"ranking": name, "size": k, "of": len(pool), "circuit": float(found[i]),
                "complement": float(found[n + i])}
        for i, (name, k, _) in enumerate(chosen)
    ]  # fmt: skip


def _gap(metrics: np.ndarray) -> float:
    return float(metrics[FORCED.index("logit_diff")])


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
