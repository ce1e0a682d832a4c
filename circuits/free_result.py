"""The result of an intervention of one's own: kept, tabled and drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.effects import Effect, Finding
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "free-edits", 1


@dataclass(frozen=True, eq=False)
class FreeEdits:
    """What an intervention did, beside the same done to matched random heads.

    Attributes:
        finding: the verdict, with its effect.
        trials: one row a question that the model answers: before, after, mean of the random sets.
        controls: the metric under each random set, `[draw, trial]`.
    """

    settings: dict[str, Any]
    provenance: Provenance
    finding: Finding
    trials: list[dict[str, Any]]
    controls: list[list[float]]
    notes: tuple[str, ...] = ()

    def to_frame(self) -> "pd.DataFrame":
        """One row a question."""
        import pandas as pd

        return pd.DataFrame(self.trials)

    def figure(self, kind: str = "trials") -> "go.Figure":
        """Every question before and after, beside the matched random heads.

        Raises:
            ResultError: another kind.
        """
        from importlib import import_module

        return import_module("apps.free_page").draw(self, kind)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json and the table of questions."""

        def fill(target: Path) -> None:
            self.to_frame().to_parquet(target / "trials.parquet")
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "finding": self.finding,
                "controls": self.controls, "notes": list(self.notes),
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "FreeEdits":
        """Read a run folder.

        Raises:
            ResultError: missing, damaged, of another kind or version.
        """
        import pandas as pd

        meta = read_result(Path(folder), kind=KIND, version=SCHEMA)
        with unharmed(folder):
            trials: Any = pd.read_parquet(Path(folder) / "trials.parquet").to_dict("records")
            told = meta["finding"]
            finding = Finding(**(told | {"effect": Effect(**told["effect"])}))
            return cls(
                meta["settings"], Provenance(**meta["provenance"]), finding, trials,
                meta["controls"], tuple(meta["notes"]),
            )  # fmt: skip

    def _repr_html_(self) -> str:
        import html

        told = html.escape(f"{self.finding.verdict}: {self.finding.claim}; {self.finding.reason}")
        return f"<p>{told}</p>{self.to_frame().round(3).to_html(index=False)}"
