"""Tables of a re-activation run: what re-activated features do, and which heads bring them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.head_sets import HeadSet
from circuits.prompt_trace import NEW, REACTIVATED, PromptTrace
from circuits.reactivation_prompt import agreement
from circuits.statistics import cluster_interval, layer_permutation_p
from interp.sites import Head
from probes.token_classes import CLASSES

if TYPE_CHECKING:
    import pandas as pd

APART = {"last": (0, 0), "1-4": (1, 4), "5-12": (5, 12), "13-32": (13, 32), "33 on": (33, 1 << 30)}
"""Tokens between a carrier and the last one before the prediction, both ends included."""
CARRIERS = ("function", "content")
CONTRASTS = {
    "re-activated - new, function": (("function", REACTIVATED), ("function", NEW)),
    "re-activated - new, content": (("content", REACTIVATED), ("content", NEW)),
    "function - content, re-activated": (("function", REACTIVATED), ("content", REACTIVATED)),
    "function - content, new": (("function", NEW), ("content", NEW)),
}
"""Differences of mean |attribution| in one prediction and distance."""
TOPS = (5, 10, 20)
"""Sizes of the top sets of carriers and of retrieval scores that are compared."""


def trial_rows(trace: PromptTrace, trial: int, document: int) -> list[dict[str, Any]]:
    """A traced prediction in plain rows: sums by carrier, kind and distance, then ablations."""
    f = trace.features
    function = trace.positions["function"].to_numpy()[f["position"]]
    carrier = np.where(function, *CARRIERS)
    apart = len(trace.positions) - 1 - f["position"].to_numpy()
    name = np.array(list(APART))[np.searchsorted([b for _, b in APART.values()], apart)]
    frame = f.assign(carrier=carrier, apart=name, size=f["attribution"].abs())
    rows = []
    groups: Any = frame.groupby(["carrier", "kind", "apart"])
    for (c, kind, a), part in groups:
        rows.append({
            "what": "cell", "trial": trial, "document": document, "carrier": c, "kind": kind,
            "apart": a, "n": len(part), "size": float(part["size"].sum()),
            "signed": float(part["attribution"].sum()),
        })  # fmt: skip
    for r in frame[frame["exact"].notna()].to_dict("records"):
        kept = ("position", "feature", "carrier", "kind", "apart", "attribution", "exact")
        rows.append({"what": "exact", "trial": trial, "document": document}
                    | {k: r[k] for k in kept})  # fmt: skip
    return rows


def attribution_tables(
    trials: Sequence[list[dict[str, Any]]], *, seed: int = 0
) -> dict[str, "pd.DataFrame"]:
    """Tables `attribution`, `contrasts`, `exact` and `agreement` of all predictions."""
    import pandas as pd

    rows = [r for trial in trials for r in trial]
    cells = pd.DataFrame([r for r in rows if r["what"] == "cell"]).drop(columns="what")
    exact = pd.DataFrame([r for r in rows if r["what"] == "exact"])
    cells = cells.assign(mean=cells["size"] / cells["n"], net=cells["signed"] / cells["n"])
    total = cells["size"].sum()
    found = []
    for (c, kind, a), part in cells.groupby(["carrier", "kind", "apart"]):
        found.append({
            "carrier": c, "kind": kind, "apart": a, "features": int(part["n"].sum()),
            "predictions": len(part), **_mean(part["mean"], part["document"], seed),
            "signed": float(part["net"].mean()), "share": float(part["size"].sum() / total),
        })  # fmt: skip
    found.sort(key=lambda r: (r["carrier"], r["kind"], list(APART).index(str(r["apart"]))))
    tables = {"attribution": pd.DataFrame(found), "contrasts": _contrasts(cells, seed)}
    if len(exact):
        tables["exact"] = exact.drop(columns="what")
        groups: list[Any] = [(("all", "all"), exact), *exact.groupby(["carrier", "kind"])]
        tables["agreement"] = pd.DataFrame([
            {"carrier": c, "kind": k,
             **agreement(p["attribution"].to_numpy(), p["exact"].to_numpy())}
            for (c, k), p in groups
        ])  # fmt: skip
    return tables


def head_tables(
    trials: Sequence[Mapping[str, np.ndarray]], heads: HeadSet | None, *, seed: int = 0
) -> dict[str, "pd.DataFrame"]:
    """Table `heads`, one row a head and class of carrier; `overlap` with the retrieval heads."""
    import pandas as pd

    share = np.concatenate([t["share"] for t in trials], axis=2)
    weight = np.concatenate([t["weight"] for t in trials], axis=2)
    function = np.concatenate([t["function"] for t in trials]).astype(bool)
    known = tuple(map(str, heads.heads)) if heads else ()
    tables, overlaps = [], []
    for carrier, own in (("function", function), ("content", ~function), ("all", function | True)):
        if not own.any() or not share.size:
            continue
        best = share[:, :, own].reshape(-1, own.sum()).argmax(0)
        mean = share[:, :, own].mean(-1)
        frame = _head_frame(mean, weight[:, :, own].mean(-1), best)
        tables.append(frame.assign(carrier=carrier, retrieval=frame["head"].isin(known)))
        if heads is not None:
            overlaps += [{"carrier": carrier, **row} for row in _overlaps(mean, heads, seed)]
    out = {}
    if tables:
        out["heads"] = pd.concat(tables, ignore_index=True)
    if overlaps:
        out["overlap"] = pd.DataFrame(overlaps)
    return out


def layer_overlap(
    ours: Sequence[Head], theirs: Sequence[Head], *, n_heads: int
) -> tuple[int, float, float]:
    """Heads in both sets, how many are expected, and the chance of as many or more.

    Expected of random sets with as many heads in each layer as `ours`: exact, by hypergeometric
    distributions layer by layer, their sum by convolution.
    """
    from scipy.stats import hypergeom

    both = len(set(ours) & set(theirs))
    law, expected = np.ones(1), 0.0
    for layer in sorted({h.layer for h in ours}):
        n = sum(h.layer == layer for h in ours)
        k = sum(h.layer == layer for h in theirs)
        law = np.convolve(law, hypergeom.pmf(np.arange(n + 1), n_heads, k, n))
        expected += n * k / n_heads
    return both, expected, float(min(1.0, law[both:].sum()))


def link_table(links: Sequence[np.ndarray]) -> "pd.DataFrame":
    """One row a class of source, feature and carrier: how often; most frequent first.

    A carrier is a function token by its id, else -1; `carrier_class` is its class either way.
    """
    import pandas as pd

    rows = np.concatenate(links) if links else np.zeros((0, 5), np.int64)
    keys = ["source", "feature", "carrier", "token"]
    frame: Any = pd.DataFrame(rows, columns=[*keys, "count"])
    frame = frame.groupby(keys, as_index=False)["count"].sum()
    names = np.array(list(CLASSES))
    frame = frame.assign(source_class=names[frame["source"] // 2],
                         carrier_class=names[frame["carrier"] // 2])  # fmt: skip
    frame = frame.drop(columns=["source", "carrier"])
    found: pd.DataFrame = frame.sort_values("count", ascending=False, kind="stable")
    return found.reset_index(drop=True)


# -- helpers ----------------------------------------------------------------------------------


def _mean(values: "pd.Series", documents: "pd.Series", seed: int) -> dict[str, float]:
    """Mean over predictions with an interval over documents; NaN ends where there is only one."""
    value = float(values.mean())
    if documents.nunique() < 2:
        return {"mean": value, "low": float("nan"), "high": float("nan")}
    found = cluster_interval(values.to_numpy(), documents.to_numpy(), seed=seed)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _contrasts(cells: "pd.DataFrame", seed: int) -> "pd.DataFrame":
    """Paired in a prediction: the same distance, or all distances with each weighing the same."""
    import pandas as pd

    wide = cells.pivot_table(index=["document", "trial", "apart"], columns=["carrier", "kind"],
                             values="mean")  # fmt: skip
    rows = []
    for name, (a, b) in CONTRASTS.items():
        if a not in wide or b not in wide:
            continue
        both: Any = (wide[a] - wide[b]).dropna().rename("difference").reset_index()
        every: Any = both.groupby(["document", "trial"], as_index=False)["difference"].mean()
        parts: dict[str, Any] = {d: both[both["apart"] == d] for d in APART}
        parts["all"] = every
        for apart, part in parts.items():
            if len(part):
                rows.append({"contrast": name, "apart": apart, "predictions": len(part),
                             **_mean(part["difference"], part["document"], seed)})  # fmt: skip
    return pd.DataFrame(rows)


def _head_frame(mean: np.ndarray, weight: np.ndarray, best: np.ndarray) -> "pd.DataFrame":
    import pandas as pd

    n_layers, n_heads = mean.shape
    top = np.bincount(best, minlength=mean.size) / len(best)
    layer, head = np.divmod(np.arange(mean.size), n_heads)
    frame = pd.DataFrame({
        "head": [str(Head(int(a), int(b))) for a, b in zip(layer, head, strict=True)],
        "layer": layer, "share": mean.ravel(), "weight": weight.ravel(), "top": top,
        "pairs": len(best),
    })  # fmt: skip
    return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def _overlaps(
    mean: Float[np.ndarray, "layer head"], heads: HeadSet, seed: int
) -> list[dict[str, Any]]:
    """Overlap of the heads that bring most with the retrieval heads of the same layers.

    With scores also with the top heads of these layers alone: the best retrieval heads may all
    lie above the site, where they cannot bring it anything.
    """
    shape = mean.shape
    ours = _ranked(mean)
    given = [h for h in heads.heads if h.layer < shape[0]]
    sets = {f"retrieval heads ({len(given)} of {len(heads.heads)} in layers below)": given}
    rho = p_rho = float("nan")
    if heads.scores is not None and heads.scores.shape[1] == shape[1]:
        scores = heads.scores[: shape[0]]
        rho, p_rho = layer_permutation_p(scores, mean[: len(scores)], seed=seed)
        best = _ranked(scores)
        sets |= {f"top {k} by score in layers below": best[:k] for k in TOPS if k < len(best)}
    rows = []
    for name, theirs in sets.items():
        k = len(theirs)
        if not k:
            continue
        both, expected, p = layer_overlap(ours[:k], theirs, n_heads=shape[1])
        rows.append({
            "set": name, "k": k, "overlap": both, "expected": expected, "p": p,
            "shared": ", ".join(str(h) for h in ours[:k] if h in theirs), "rho": rho,
            "p_rho": p_rho,
        })  # fmt: skip
    return rows


def _ranked(scores: Float[np.ndarray, "layer head"]) -> list[Head]:
    """Heads with a score, best first."""
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=None, kind="stable")
    known = [i for i in order if np.isfinite(scores.flat[i])]
    return [Head(*divmod(int(i), scores.shape[1])) for i in known]
