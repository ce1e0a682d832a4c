"""The result of a function-token run: counts, dictionaries, and the tables made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from circuits.count_files import read_counts, write_counts
from circuits.edge_rules import apply_rule, parse_rule
from circuits.feature_counts import FeatureCounts
from interp.errors import ResultError, UnknownNameError
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json
from probes.feature_stored import StoredDictionary, dictionary_of

if TYPE_CHECKING:
    import networkx as nx
    import pandas as pd
    import plotly.graph_objects as go

    from probes.features import Dictionary

KIND, SCHEMA = "function-tokens", 1
FUNCTION = "function"
"""Column of the table of tokens: is it one of the most frequent that make the cut."""


@dataclass(frozen=True, eq=False)
class StationResult:
    """One dictionary at one layer.

    Attributes:
        key: such as "L15", "L15-seed1", "L15-shuffled".
        site: where the dictionary reads.
        held: its dictionary, or where a run folder has it.
        quality: on text that did not train it, see `probes.feature_quality`.
        counts: of every token and feature.
        tables: by name, see `circuits.graph_tables`.
    """

    key: str
    layer: int
    site: str
    held: "Dictionary | StoredDictionary"
    quality: dict[str, Any]
    counts: FeatureCounts
    tables: Mapping[str, "pd.DataFrame"]

    @cached_property
    def dictionary(self) -> "Dictionary":
        """The weights; those of a saved run are read when they are first asked for."""
        return dictionary_of(self.held)

    @property
    def verdict(self) -> str:
        """What can be said of the function tokens here, in a sentence."""
        rows = self.tables["verdict"]
        return str(rows["sentence"].iloc[0])


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """Tokens, features, and which activate which, at every dictionary of a run.

    Attributes:
        settings, provenance: what was asked, and what made it.
        text: tokens, documents, positions, digest.
        tokens: one row a token that occurs: id, text, occurrences, documents, share, function,
            class.
        stations: by key.
        holder: keeps a temporary folder alive while unsaved counts lie in it.
    """

    settings: dict[str, Any]
    provenance: Provenance
    text: dict[str, Any]
    tokens: "pd.DataFrame"
    stations: Mapping[str, StationResult]
    holder: Any = None

    def station(self, key: str = "") -> StationResult:
        """A dictionary by key ("L15"); the first when empty.

        Raises:
            UnknownNameError: no such one.
        """
        if key and key not in self.stations:
            raise UnknownNameError("dictionary", key, list(self.stations))
        return self.stations[key or next(iter(self.stations))]

    def function_mask(self, n_vocab: int) -> Bool[np.ndarray, " token"]:
        """Of every token of the vocabulary, whether it is a function token here."""
        out = np.zeros(n_vocab, bool)
        out[self.tokens["id"][self.tokens["function"]]] = True
        return out

    def to_frame(self) -> "pd.DataFrame":
        """One row a dictionary: quality, size of the graph, coverage, null, ratio, verdict."""
        import pandas as pd

        return pd.DataFrame([_row(s) for s in self.stations.values()])

    def figure(self, kind: str = "coverage", station: str = "", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.graph_figures.FIGURES`."""
        from importlib import import_module

        return import_module("apps.graph_figures").draw(self, kind, station=station, **options)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="{:.3g}".format))

    def edges(
        self,
        station: str = "",
        *,
        rule: str = "",
        tokens: Sequence[int] | None = None,
        features: Sequence[int] | None = None,
    ) -> "pd.DataFrame":
        """Edges under a rule (that of the run if empty): token, feature, count, documents, ...

        Raises:
            UnknownNameError: no such dictionary or rule.
        """
        import pandas as pd

        counts = self.station(station).counts
        kept = apply_rule(counts, parse_rule(rule or self.settings["rule"]))
        keep = np.ones(kept.n_entries, bool)
        if tokens is not None:
            keep &= np.isin(kept.token, tokens)
        if features is not None:
            keep &= np.isin(kept.feature, features)
        names = ("token", "feature", "count", "documents", "largest", "total")
        return pd.DataFrame({name: np.asarray(getattr(kept, name))[keep] for name in names})

    def to_networkx(
        self,
        station: str = "",
        *,
        rule: str = "",
        tokens: Sequence[int] | None = None,
        n_tokens: int = 30,
        n_features: int = 200,
        most: int = 200_000,
    ) -> "nx.Graph":
        """A bipartite part of the graph: tokens (the most frequent if none is named), features.

        Of the features that these tokens reach, those that fire most with them. Nodes are
        "t<id>" and "f<id>", with `bipartite` 0 and 1; edges carry count, documents, largest.

        Raises:
            ResultError: more than `most` edges: networkx needs some 300 bytes for each.
        """
        import networkx as nx

        table = self.tokens.sort_values("occurrences", ascending=False)
        chosen = table["id"].head(n_tokens).tolist() if tokens is None else list(tokens)
        edges = self.edges(station, rule=rule, tokens=chosen)
        firing = edges.groupby("feature")["count"].sum()
        edges = edges[edges["feature"].isin(firing.nlargest(n_features).index)]
        if len(edges) > most:
            raise ResultError(
                f"{len(edges):,} edges are too many for networkx (limit {most:,}); ask for fewer "
                "tokens or features, a stricter rule, or write Parquet"
            )
        text = dict(zip(table["id"], table["text"], strict=True))
        graph = nx.Graph()
        for token in chosen:
            graph.add_node(f"t{token}", bipartite=0, label=str(text.get(token, token)))
        for edge in edges.to_dict("records"):
            feature = edge["feature"]
            graph.add_node(f"f{feature}", bipartite=1, label=f"feature {feature}")
            about = {name: edge[name] for name in ("count", "documents", "largest")}
            graph.add_edge(f"t{edge['token']}", f"f{feature}", **about)
        return graph

    def export(self, path: str | Path, station: str = "", **options: Any) -> Path:
        """Write edges as .parquet (all of them), or a part as .graphml (see `to_networkx`).

        Raises:
            ResultError: another ending.
        """
        import networkx as nx

        path = check_export(path)
        if path.suffix == ".parquet":
            self.edges(station, **options).to_parquet(path)
        else:
            nx.write_graphml(self.to_networkx(station, **options), path)
        return path

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, tables, and for each dictionary weights and counts."""
        from probes.feature_files import write_dictionary

        def fill(target: Path) -> None:
            self.tokens.to_parquet(target / "tokens.parquet")
            plain = []
            for s in self.stations.values():
                own = target / s.key
                (own / "tables").mkdir(parents=True)
                for name, frame in s.tables.items():
                    frame.to_parquet(own / "tables" / f"{name}.parquet")
                write_counts(s.counts, own / "counts")
                write_dictionary(s.dictionary, own / "dictionary")
                plain.append({"key": s.key, "layer": s.layer, "site": s.site,
                              "quality": s.quality, "tables": list(s.tables)})  # fmt: skip
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings, "text": self.text,
                "provenance": self.provenance, "stations": plain,
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureGraph":
        """Read a run folder; counts and weights are read as they are used.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder):
            tokens = pd.read_parquet(folder / "tokens.parquet")
            stations = {s["key"]: _station(folder, s) for s in meta["stations"]}
            made = Provenance(**meta["provenance"])
            return cls(meta["settings"], made, meta["text"], tokens, stations)


def check_export(path: str | Path) -> Path:
    """Refuse an ending that no export has, before anything is computed.

    Raises:
        ResultError: neither .parquet nor .graphml.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ".graphml"):
        raise ResultError(f"cannot write {path.name}: the ending must be .parquet or .graphml")
    return path


def _station(folder: Path, row: dict[str, Any]) -> StationResult:
    import pandas as pd

    own = folder / row["key"]
    frames = {n: pd.read_parquet(own / "tables" / f"{n}.parquet") for n in row["tables"]}
    return StationResult(
        row["key"], row["layer"], row["site"], StoredDictionary(own / "dictionary"),
        row["quality"], read_counts(own / "counts"), frames,
    )  # fmt: skip


def _row(s: StationResult) -> dict[str, Any]:
    counts = s.counts
    alive = int((counts.firing > 0).sum())
    return {
        "key": s.key, "layer": s.layer, "site": s.site, "features": counts.n_features,
        "alive": alive, "positions": counts.n_positions, "edges": counts.n_entries,
        "seen_once": float((counts.count == 1).mean()) if counts.n_entries else float("nan"),
        "l0": s.quality["l0"], "fvu": s.quality["fvu"], "ce_recovered": s.quality["ce_recovered"],
        "verdict": s.tables["verdict"]["verdict"].iloc[0],
    }  # fmt: skip
