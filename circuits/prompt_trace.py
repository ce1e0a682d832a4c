"""What one prompt shows: features, where they come back, what they do to the next token, by whom.

Made by `circuits.reactivation_prompt.trace_prompt`; as tables, as a networkx graph, as a figure.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    import plotly.graph_objects as go

REACTIVATED, NEW = "re-activated", "new"
"""Kinds of an active feature: active at a content token before, or not."""


def records(frame: "pd.DataFrame") -> Iterator[Any]:
    """Rows of a table as named tuples, whose fields pandas' types do not tell."""
    return iter(frame.itertuples())


@dataclass(frozen=True, eq=False)
class PromptTrace:
    """A prompt up to one prediction.

    Attributes:
        about: model, dictionary, site, layer, n_layers, d_dict, objective and its value, target
            (id), target_text, p (its probability), skip_first, dtype.
        positions: one row a position: token, text, function, active, reactivated (numbers of
            features), attribution (of all its features), error (of what the dictionary does not
            reconstruct; NaN where positions are read over).
        features: one row an active feature at a position: activation, kind, first and nearest
            source, n_sources, other_token, attribution, exact (NaN where it was not ablated),
            traced.
        heads: for each traced feature its top heads: source, weight of the attention there,
            contribution from all sources in units of the pre-activation, share of the activation,
            whole (contribution of the head from all keys), retrieval.
        carried, attention: `[layer, head, pair]` contribution, and attention, at all sources of
            every traced feature, in order of `features[traced]`.
        agreement: of attribution with exact ablation: n, rho (Spearman), same_sign.
        retrieval: names of the retrieval heads that were given.
        names: of features, where known.
    """

    about: dict[str, Any]
    positions: "pd.DataFrame"
    features: "pd.DataFrame"
    heads: "pd.DataFrame"
    carried: Float[np.ndarray, "layer head pair"]
    attention: Float[np.ndarray, "layer head pair"]
    agreement: dict[str, float]
    retrieval: tuple[str, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    def to_frame(self, *, most: int = 40) -> "pd.DataFrame":
        """Re-activated features by the size of their attribution, with their best head."""
        columns = ["head", "weight", "contribution", "share", "retrieval"]
        best = self.heads.drop_duplicates(["position", "feature"])
        rows = self.features[self.features["kind"] == REACTIVATED]
        rows = rows.merge(self.positions[["position", "text", "function"]], on="position")
        rows = rows.merge(best[["position", "feature", *columns]], how="left",
                          on=["position", "feature"])  # fmt: skip
        order = rows["attribution"].abs().sort_values(ascending=False, kind="stable").index
        names = ["position", "text", "function", "feature", "activation", "nearest", "first",
                 "n_sources", "attribution", "exact", *columns]  # fmt: skip
        return rows.loc[order[:most], names].reset_index(drop=True)

    def name(self, feature: int) -> str:
        """What a feature is called."""
        known = self.names.get(int(feature), "")
        return f"f{feature} {known}".strip()

    def kept(self, most: int) -> "pd.DataFrame":
        """The features of a drawing: those traced, their sources, then by size of attribution."""
        rows = self.features
        wanted = {(r.source, r.feature) for r in records(self.heads)}
        wanted |= {(r.position, r.feature) for r in records(rows[rows["traced"]])}
        keys = list(zip(rows["position"], rows["feature"], strict=True))
        first = np.array([key in wanted for key in keys], dtype=bool)
        order = np.lexsort((-rows["attribution"].abs().to_numpy(), ~first))[:most]
        return rows.iloc[np.sort(order)]

    def links(self, kept: "pd.DataFrame") -> "pd.DataFrame":
        """Re-activations among kept features: one row a source of a head that carries it.

        Contributions of all listed heads from one source are added; `head` is the largest.
        """
        import pandas as pd

        present = set(zip(kept["position"], kept["feature"], strict=True))
        rows = []
        for (j, f, i), part in self.heads.groupby(["position", "feature", "source"], sort=False):
            if (i, f) in present and (j, f) in present:
                best = part.sort_values("contribution", kind="stable").iloc[-1]
                rows.append({
                    "position": j, "feature": f, "source": i, "head": best["head"],
                    "contribution": float(part["contribution"].sum()),
                    "retrieval": bool(best["retrieval"]),
                })  # fmt: skip
        names = ["position", "feature", "source", "head", "contribution", "retrieval"]
        return pd.DataFrame(rows, columns=names)

    def to_networkx(self, *, most: int = 200) -> "nx.DiGraph":
        """Tokens, at most `most` features at positions, the logit; GraphML takes it as it is.

        Edges: token -> feature (`active`: activation), feature at i -> the same at j
        (`re-activation`: contribution of the heads from i, `head` the largest of them), feature ->
        logit (`attribution`).
        """
        import networkx as nx

        graph = nx.DiGraph(**{k: v for k, v in self.about.items() if v is not None})
        kept = self.kept(most)
        for p in records(self.positions):
            graph.add_node(f"t{p.position}", kind="token", label=p.text, position=int(p.position),
                           function=bool(p.function))  # fmt: skip
        logit = f"logit{self.about['target']}"
        graph.add_node(logit, kind="logit", label=self.about["target_text"], p=self.about["p"])
        for r in records(kept):
            node = f"f{r.feature}@{r.position}"
            graph.add_node(node, kind="feature", label=self.name(r.feature), again=r.kind,
                           position=int(r.position), activation=float(r.activation))  # fmt: skip
            graph.add_edge(f"t{r.position}", node, kind="active", weight=float(r.activation))
            graph.add_edge(node, logit, kind="attribution", weight=float(r.attribution))
        for r in records(self.links(kept)):
            graph.add_edge(
                f"f{r.feature}@{r.source}", f"f{r.feature}@{r.position}", kind="re-activation",
                weight=float(r.contribution), head=str(r.head), retrieval=bool(r.retrieval),
            )  # fmt: skip
        return graph

    def figure(self, **options: Any) -> "go.Figure":
        """Positions by features, as a heat map (Fig. 6 of arXiv 2510.08203)."""
        from importlib import import_module

        return import_module("apps.reactivation_figures").prompt_map(self, **options)

    def _repr_html_(self) -> str:
        frame = self.to_frame(most=20)
        return str(frame.to_html(index=False, float_format="{:.3g}".format))
