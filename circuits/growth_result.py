"""The result of a run over the growth of features: its table and the shared dictionaries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json
from probes.feature_stored import StoredDictionary, dictionary_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from probes.features import Dictionary

KIND, SCHEMA = "feature-growth", 1
TABLE = "growth.parquet"


@dataclass(frozen=True, eq=False)
class GrowthResult:
    """Features that fire at least once on the same positions, model by model.

    Attributes:
        settings: what was asked.
        models: what each model was, by name, in order.
        text: positions, digest.
        rows: a row a model, layer and dictionary ("shared", "own"): control (is it the model of
            shuffled weights), features, alive, alive_share, l0, fvu, l0_asked, alive_matched,
            l0_matched, threshold_factor, positions, reading.
        held: the shared dictionaries by layer ("L2"), or where a run folder has them.
    """

    settings: dict[str, Any]
    models: Mapping[str, Provenance]
    text: dict[str, Any]
    rows: "pd.DataFrame"
    held: "Mapping[str, Dictionary | StoredDictionary]"

    @classmethod
    def of(
        cls, settings: dict[str, Any], models: Mapping[str, Provenance], text: dict[str, Any],
        rows: Sequence[dict[str, Any]], dictionaries: Mapping[str, "Dictionary"],
    ) -> "GrowthResult":  # fmt: skip
        """From plain rows."""
        import pandas as pd

        return cls(settings, models, text, pd.DataFrame(list(rows)), dictionaries)

    @cached_property
    def dictionaries(self) -> "Mapping[str, Dictionary]":
        """The shared ones; those of a saved run are read when they are first asked for."""
        return {name: dictionary_of(held) for name, held in self.held.items()}

    @property
    def provenance(self) -> Provenance:
        """Of the last model."""
        return list(self.models.values())[-1]

    def to_frame(self) -> "pd.DataFrame":
        """A row a model, layer and dictionary."""
        return self.rows.copy()

    def figure(self, kind: str = "growth", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.growth_figures.FIGURES`."""
        from importlib import import_module

        return import_module("apps.growth_figures").draw(self, kind, **options)

    def _repr_html_(self) -> str:
        return str(self.rows.to_html(index=False, float_format="{:.3g}".format))

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, the table, the shared dictionaries."""
        from probes.feature_files import write_dictionary

        def fill(target: Path) -> None:
            self.rows.to_parquet(target / TABLE)
            for name, dictionary in self.dictionaries.items():
                write_dictionary(dictionary, target / name)
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "models": dict(self.models), "text": self.text,
                "dictionaries": list(self.held),
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "GrowthResult":
        """Read a run folder; weights are read as they are used.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder):
            rows = pd.read_parquet(folder / TABLE)
            models = {name: Provenance(**made) for name, made in meta["models"].items()}
            held = {name: StoredDictionary(folder / name) for name in meta["dictionaries"]}
            return cls(meta["settings"], models, meta["text"], rows, held)
