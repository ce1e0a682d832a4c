"""Circuits of heads of every size, run: all other heads give what they give in the twin prompt.

The twin states another value. Beside the first heads of each ranking: random circuits of the same
size, and the complement of every circuit. Feed-forward layers are part of every circuit. What the
numbers say: `circuits.faithfulness_curves`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attribution import head_sites
from circuits.case_metrics import FORCED
from circuits.patch_prompts import Patchable, activations, run_rows
from interp.sites import Edit, Head, Site

if TYPE_CHECKING:
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
