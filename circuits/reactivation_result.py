"""The result of `circuits.reactivation`: the index, attributions, carriers; saved and loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.prompt_trace import records
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "reactivation", 1


@dataclass(frozen=True, eq=False)
class ReactivationResult:
    """Re-activation of features over a text.

    Attributes:
        station, site: the dictionary in its graph run, and where it reads.
        text: positions, documents, windows, active features, predictions, features left out as
            dense, and where the retrieval heads are from.
        tables: index, classes, distances, links; with predictions also attribution, contrasts,
            exact, agreement, heads, and overlap where retrieval heads were given.
        names: features by the tokens at which they are most active.
    """

    settings: dict[str, Any]
    provenance: Provenance
    station: str
    site: str
    text: dict[str, Any]
    tables: Mapping[str, "pd.DataFrame"]
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def answer(self) -> str:
        """What the run says, in a sentence: the index against each control."""
        rows = self.tables["index"].rename(columns={"index": "ratio"})
        rows = rows[rows["source"] == "another token"]
        said = [_said(r) for r in records(rows)]
        return (
            f"Features of content tokens come back at function tokens {', '.join(said)}; over "
            f"{self.text['documents']} documents"
        )

    def to_frame(self) -> "pd.DataFrame":
        """The index by source rule and control."""
        return self.tables["index"]

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="{:.3g}".format))

    def figure(self, kind: str = "index", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.reactivation_figures.FIGURES`."""
        from importlib import import_module

        return import_module("apps.reactivation_figures").draw(self, kind, **options)

    def to_networkx(self, *, n_features: int = 60, n_carriers: int = 24) -> "nx.DiGraph":
        """Classes of sources -> the features that come back most -> their carriers.

        A carrier is a function token ("t<id>"), or a class of others ("c<class>"). Edges carry
        `count`, re-activations; nodes `kind` and `label`.
        """
        import networkx as nx

        links = self.tables["links"].rename(columns={"count": "n"})
        top = links.groupby("feature")["n"].sum().nlargest(n_features)
        links = links[links["feature"].isin(top.index)]
        is_token = links["token"] >= 0
        carrier = ("t" + links["token"].astype(str)).where(is_token, "c" + links["carrier_class"])
        label = links["text"].where(is_token, links["carrier_class"])
        links = links.assign(carrier=carrier, label=label)
        kept = links.groupby("carrier")["n"].sum().nlargest(n_carriers).index
        links = links[links["carrier"].isin(kept)]
        graph = nx.DiGraph(station=self.station, model=self.provenance.model)
        for r in records(links):
            source, feature = f"s{r.source_class}", f"f{r.feature}"
            graph.add_node(source, kind="source", label=r.source_class)
            name = f"{feature} {self.names.get(r.feature, '')}".strip()
            graph.add_node(feature, kind="feature", label=name)
            graph.add_node(r.carrier, kind="carrier", label=r.label)
            for edge in ((source, feature), (feature, r.carrier)):
                before = graph.edges[edge]["count"] if graph.has_edge(*edge) else 0
                graph.add_edge(*edge, count=before + int(r.n))
        return graph

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json and a Parquet file a table."""

        def fill(target: Path) -> None:
            for name, frame in self.tables.items():
                frame.to_parquet(target / f"{name}.parquet")
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "station": self.station, "site": self.site,
                "text": self.text, "tables": list(self.tables),
                "names": {str(f): name for f, name in self.names.items()},
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "ReactivationResult":
        """Read a run folder.

        Raises:
            ResultError: missing, damaged, of another kind or version.
        """
        import pandas as pd

        meta = read_result(Path(folder), kind=KIND, version=SCHEMA)
        with unharmed(folder):
            tables = {n: pd.read_parquet(Path(folder) / f"{n}.parquet") for n in meta["tables"]}
            names = {int(f): name for f, name in meta["names"].items()}
            return cls(
                meta["settings"], Provenance(**meta["provenance"]), meta["station"], meta["site"],
                meta["text"], tables, names,
            )  # fmt: skip


AGAINST = {
    "shuffled labels": "than under shuffled labels",
    "matched content": "than at content tokens with as many active features, as far on",
    "own share": "than the same features fire there anyway",
}
"""How each control ends a sentence."""


def _said(row: Any) -> str:
    word = "more often" if row.low > 1 else "less often" if row.high < 1 else "no more often"
    return f"{word} {AGAINST[row.control]} ({row.ratio:.2f}, {row.low:.2f} to {row.high:.2f})"
