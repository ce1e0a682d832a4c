"""The result of taking features away: the rows of all trials, and what they say.

`circuits.feature_trials` measures, `circuits.feature_findings` says what that means, by the rule of
`circuits.effects`, the same as for heads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

KIND, SCHEMA = "feature-effects", 1


@dataclass(frozen=True, eq=False)
class FeatureEffects:
    """What taking features away did, by class of the token and distance from the prediction.

    Attributes:
        station: key of the dictionary in its graph run.
        rows: one a trial, place and distance: log-probabilities before, after, under each control.
        findings: one a place, distance and control (`circuits.effects.Finding`, plain).
        contrasts: function against content token at the same distance, paired by trial.
    """

    settings: dict[str, Any]
    provenance: Provenance
    station: str
    rows: "pd.DataFrame"
    findings: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]

    def to_frame(self) -> "pd.DataFrame":
        """Findings as a table."""
        import pandas as pd

        names = ["name", "ablation", "baseline", "treated", "control", "effect", "low", "high",
                 "excess", "p_holm", "n_trials", "verdict"]  # fmt: skip
        return pd.DataFrame(self.findings)[names]

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="{:.3g}".format))

    def figure(self) -> Any:
        """Loss of log-probability by class and distance, with the controls beside it."""
        from importlib import import_module

        return import_module("apps.graph_figures").effects(self)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json and the rows."""

        def fill(target: Path) -> None:
            self.rows.to_parquet(target / "rows.parquet")
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "station": self.station,
                "findings": self.findings, "contrasts": self.contrasts,
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "FeatureEffects":
        """Read a run folder.

        Raises:
            ResultError: missing, damaged, of another kind or version.
        """
        import pandas as pd

        meta = read_result(Path(folder), kind=KIND, version=SCHEMA)
        with unharmed(folder):
            rows = pd.read_parquet(Path(folder) / "rows.parquet")
            return cls(
                meta["settings"], Provenance(**meta["provenance"]), meta["station"], rows,
                meta["findings"], meta["contrasts"],
            )  # fmt: skip
