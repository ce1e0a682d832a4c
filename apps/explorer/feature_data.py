"""What the explorer shows of a graph run: tokens, features, their edges, and an order of both."""

from typing import TYPE_CHECKING, Any

import numpy as np

from apps.explorer.packing import Packer

if TYPE_CHECKING:
    import pandas as pd

N_TOKENS, N_FEATURES = 400, 600
"""Nodes that are given to the page: the most frequent tokens, and the features they reach most."""
MOST_EDGES = 60_000


def feature_data(result: Any, packer: Packer) -> list[dict[str, Any]]:
    """Every dictionary of a run, as plain values and packed edges."""
    return [_station(result, key, packer) for key in result.stations]


def _station(result: Any, key: str, packer: Packer) -> dict[str, Any]:
    station = result.station(key)
    table = result.tokens.sort_values("occurrences", ascending=False, kind="stable")
    shown = table.head(N_TOKENS)
    edges = result.edges(key, tokens=shown["id"].tolist())
    firing = edges.groupby("feature")["count"].sum().sort_values(ascending=False, kind="stable")
    kept = edges[edges["feature"].isin(firing.index[:N_FEATURES])]
    kept = kept.sort_values("count", ascending=False, kind="stable").head(MOST_EDGES)
    features = np.sort(kept["feature"].unique())
    token = kept["token"].map({t: i for i, t in enumerate(shown["id"])}).to_numpy(np.int32)
    feature = np.searchsorted(features, kept["feature"]).astype(np.int32)
    count = kept["count"].to_numpy(np.int32)
    heights = _heights(token, feature, count, n_tokens=len(shown), n_features=len(features))
    return {
        "key": key, "site": station.site, "verdict": station.verdict,
        "rule": result.settings["rule"], "n_features": int(station.counts.n_features),
        "tokens": _tokens(shown, edges), "features": [int(f) for f in features],
        "edges": {"token": packer.add(token), "feature": packer.add(feature),
                  "count": packer.add(count),
                  "largest": packer.add(kept["largest"].to_numpy(np.float32))},
        "heights": packer.add(heights),
        "left_out": {"edges": int(len(edges) - len(kept)),
                     "features": int(len(firing) - len(features))},
    }  # fmt: skip


def _tokens(shown: "pd.DataFrame", edges: "pd.DataFrame") -> list[dict[str, Any]]:
    degree = edges.groupby("token").size()
    return [
        {"id": int(r["id"]), "text": str(r["text"]), "occurrences": int(r["occurrences"]),
         "class": str(r["class"]), "function": bool(r["function"]),
         "degree": int(degree.get(r["id"], 0))}
        for r in shown.to_dict("records")
    ]  # fmt: skip


def _heights(
    token: np.ndarray, feature: np.ndarray, count: np.ndarray, *, n_tokens: int, n_features: int
) -> np.ndarray:
    """Where each node stands along its column, tokens first: strongly joined nodes near.

    The first non-constant eigenvector of the graph's Laplacian (networkx' spectral layout).
    """
    import networkx as nx

    graph = nx.Graph()
    graph.add_nodes_from(range(n_tokens + n_features))
    graph.add_weighted_edges_from(
        (int(t), n_tokens + int(f), float(np.log1p(c)))
        for t, f, c in zip(token, feature, count, strict=True)
    )
    if n_tokens + n_features < 3:
        return np.zeros(n_tokens + n_features, np.float32)
    place = nx.spectral_layout(graph, dim=2)
    return np.array([place[i][0] for i in range(n_tokens + n_features)], np.float32)
