"""The result of a run over groups of losses: its table, and the models and text that it is of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.loss_tables import reading
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "loss-groups", 1
TABLE = "losses.parquet"


@dataclass(frozen=True, eq=False)
class LossResult:
    """Losses of groups of positions, for each model of a series.

    Attributes:
        settings: what was asked.
        models: what each model was, by name, in order.
        text: tokens, documents, positions, the n-gram model; see `circuits.loss_plan`.
        rows: see `circuits.loss_tables.loss_table`.
    """

    settings: dict[str, Any]
    models: Mapping[str, Provenance]
    text: dict[str, Any]
    rows: "pd.DataFrame"

    @property
    def provenance(self) -> Provenance:
        """Of the last model."""
        return list(self.models.values())[-1]

    @property
    def reading(self) -> str:
        """The last model's shares and means, in a sentence or two."""
        return reading(self.rows)

    def to_frame(self) -> "pd.DataFrame":
        """A row a model, group and target."""
        return self.rows.copy()

    def figure(self, kind: str = "shares", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.loss_figures.FIGURES`."""
        from importlib import import_module

        return import_module("apps.loss_figures").draw(self, kind, **options)

    def _repr_html_(self) -> str:
        whole = self.rows[self.rows["target"] == "all"]
        return str(whole.to_html(index=False, float_format="{:.3f}".format))

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json and the table."""

        def fill(target: Path) -> None:
            self.rows.to_parquet(target / TABLE)
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "models": dict(self.models), "text": self.text,
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "LossResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder):
            rows = pd.read_parquet(folder / TABLE)
            models = {name: Provenance(**made) for name, made in meta["models"].items()}
            return cls(meta["settings"], models, meta["text"], rows)
