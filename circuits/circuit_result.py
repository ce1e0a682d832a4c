"""A traced circuit: edges and nodes with intervals, the graph that stays, its faithfulness."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.faithfulness_curves import areas, curves
from circuits.statistics import cluster_intervals
from interp.errors import ResultError
from interp.store import (
    RESULT,
    Provenance,
    cannot_write,
    read_result,
    unharmed,
    write_folder,
    write_json,
)

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "circuit", 1
METRIC = "logit_diff"
"""What edges and nodes are judged by: logits of the answer minus the counterfactual's."""
LOGITS = "logits"


@dataclass(frozen=True, eq=False)
class CircuitResult:
    """What feeds a few heads, measured edge by edge.

    Attributes:
        edge_rows: one row an edge and question: sender, receiver, channel (q, k, v), whether the
            screen or chance picked it, changes of the metrics when it alone carries the ablation.
        node_rows: one row a component and question: changes under total and direct ablation.
        circuit_rows: one row a circuit of heads and question; see
            `circuits.faithfulness.run_circuits`.
    """

    settings: dict[str, Any]
    provenance: Provenance
    edge_rows: "pd.DataFrame"
    node_rows: "pd.DataFrame"
    circuit_rows: "pd.DataFrame"
    notes: tuple[str, ...] = ()

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """One row an edge: mean effect, 95 % interval over needles, threshold, whether it stays."""
        frame = _means(self.edge_rows, ["sender", "receiver", "channel", "picked"], METRIC)
        frame["kind"] = np.where(frame["sender"].str.endswith("MLP"), "mlp", "head")
        frame["threshold"] = float("inf")
        drawn = frame["picked"] == "random"
        for _, part in frame.groupby(["channel", "kind"]):
            chance = part.loc[drawn[part.index], "effect"].abs()
            if len(chance):
                frame.loc[part.index, "threshold"] = float(np.percentile(chance, 95))
        certain = (frame["low"] > 0) | (frame["high"] < 0)
        size = frame["effect"].abs()
        large = (size > frame["threshold"]) & (size >= self.settings["smallest"])
        frame["stays"] = certain & large
        frame.loc[drawn, "stays"] = False
        return frame.sort_values("effect", key=abs, ascending=False, ignore_index=True)

    @cached_property
    def nodes(self) -> "pd.DataFrame":
        """One row a component: total and direct effect with intervals."""
        total = _means(self.node_rows, ["node"], METRIC)
        direct = _means(self.node_rows, ["node"], f"direct_{METRIC}")
        return total.merge(direct, on="node", suffixes=("", "_direct"))

    @cached_property
    def faithfulness(self) -> "pd.DataFrame":
        """f over circuit size, by ranking, random circuits beside it."""
        return curves(self.circuit_rows)

    @property
    def areas(self) -> dict[str, dict[str, float]]:
        """CPR (higher is better) and CMD (0 is best) of each ranking."""
        return areas(self.faithfulness)

    def to_frame(self) -> "pd.DataFrame":
        """The edges."""
        return self.edges

    def graph(self) -> "nx.DiGraph":
        """The edges that stay, and the receivers' own way to the logits.

        Nodes carry `layer`, `kind` (head, mlp, logits), `receiver`, total and direct `effect` with
        intervals; edges `channel` (a comma list where several stay), `effect`, `low`, `high`.
        """
        import networkx as nx

        graph = nx.DiGraph(model=self.provenance.model, metric=METRIC)
        told = {str(row["node"]): row for row in self.nodes.to_dict("records")}
        kept = self.edges[self.edges["stays"]]
        receivers = list(self.settings["heads"])
        for name in dict.fromkeys([*kept["sender"].astype(str), *receivers]):
            facts = told[name]
            graph.add_node(
                name, layer=int(name[1:].split("H")[0].split(" ")[0]),
                kind="mlp" if name.endswith("MLP") else "head", receiver=name in receivers,
                **{k: float(facts[k]) for k in
                   ("effect", "low", "high", "effect_direct", "low_direct", "high_direct")},
            )  # fmt: skip
        graph.add_node(LOGITS, layer=self.provenance.n_layers, kind="logits", receiver=False)
        for (sender, receiver), part in kept.groupby(["sender", "receiver"]):
            best = max(part.to_dict("records"), key=lambda row: abs(row["effect"]))
            graph.add_edge(
                sender, receiver, channel=",".join(sorted(part["channel"])),
                **{k: float(best[k]) for k in ("effect", "low", "high")},
            )  # fmt: skip
        for name in receivers:
            facts = told[name]
            if facts["low_direct"] > 0 or facts["high_direct"] < 0:
                graph.add_edge(
                    name, LOGITS, channel="direct", effect=float(facts["effect_direct"]),
                    low=float(facts["low_direct"]), high=float(facts["high_direct"]),
                )  # fmt: skip
        return graph

    def export(self, path: str | Path) -> Path:
        """Write the graph as `.graphml` or node-link `.json`.

        Raises:
            ResultError: another ending, or the place cannot be written to.
        """
        import json

        import networkx as nx

        path = Path(path)
        try:
            if path.suffix == ".graphml":
                nx.write_graphml(self.graph(), path)
            elif path.suffix == ".json":
                text = json.dumps(nx.node_link_data(self.graph(), edges="edges"), indent=1)
                path.write_text(text + "\n", "utf-8")
            else:
                raise ResultError(f"{path}: a graph is written as .graphml or .json")
        except OSError as error:
            raise cannot_write(path, error) from None
        return path

    def figure(self, kind: str = "graph", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.circuit_figures.CIRCUIT_FIGURES`."""
        from importlib import import_module

        return import_module("apps.circuit_figures").draw_circuit(self, kind, **options)

    def _repr_html_(self) -> str:
        kept = self.edges[self.edges["stays"]]
        return str(kept.to_html(index=False, float_format="{:.3f}".format))

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, tables, circuit.graphml, circuit.json."""

        def fill(target: Path) -> None:
            for name in _TABLES:
                getattr(self, name).to_parquet(target / f"{name}.parquet")
            self.export(target / "circuit.graphml")
            self.export(target / "circuit.json")
            meta = {"kind": KIND, "schema": SCHEMA, "settings": self.settings,
                    "provenance": self.provenance, "areas": self.areas,
                    "notes": list(self.notes)}  # fmt: skip
            write_json(target / RESULT, meta)

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "CircuitResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder):
            tables: dict[str, Any] = {n: pd.read_parquet(folder / f"{n}.parquet") for n in _TABLES}
            return cls(
                settings=meta["settings"], provenance=Provenance(**meta["provenance"]),
                notes=tuple(meta["notes"]), **tables,
            )  # fmt: skip


_TABLES = ("edge_rows", "node_rows", "circuit_rows")


def _means(rows: "pd.DataFrame", keys: list[str], metric: str) -> "pd.DataFrame":
    """Mean over questions of each thing named by `keys`, with its interval over needles."""
    import pandas as pd

    wide = rows.pivot_table(index="needle", columns=keys, values=metric, sort=False)
    sure = cluster_intervals(wide.to_numpy(), wide.index.to_numpy())
    frame = pd.DataFrame(wide.columns.to_frame(index=False))
    return frame.assign(effect=sure.mean, low=sure.low, high=sure.high, n=len(wide))
