"""The result of calibrating the binding detector: a row a planted model, counts over them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.statistics import clopper_pearson
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd

KIND, SCHEMA = "binding-calibration", 1


@dataclass(frozen=True, eq=False)
class BindingCalibration:
    """One row a model: what is true of it, what was said, and how near the parameters came.

    Columns: model, seed, expected, mechanisms, abstained, named, right (the same mechanisms, or an
    abstention where one is due), mislabelled (a mechanism named that is not there), where,
    where_right, weights_off (largest share), sigma_off (groups), seconds.
    """

    settings: dict[str, Any]
    provenance: Provenance
    rows: "pd.DataFrame"

    def summary(self) -> dict[str, Any]:
        """Counts with Clopper-Pearson intervals, and the largest errors of parameters."""
        rows = self.rows
        out: dict[str, Any] = {}
        for name in ("right", "mislabelled"):
            k, n = int(rows[name].sum()), len(rows)
            out[name] = {"k": k, "n": n, "interval": list(clopper_pearson(k, n))}
        placed = rows["where_right"].dropna()
        out["where_right"] = {"k": int(placed.astype(bool).sum()), "n": len(placed)}
        for name in ("weights_off", "sigma_off"):
            found = rows[name].dropna()
            out[name] = float(found.max()) if len(found) else None
        return out

    def save(self, folder: str | Path) -> Path:
        """Write a folder with result.json and the table."""

        def fill(target: Path) -> None:
            self.rows.to_parquet(target / "rows.parquet")
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance,
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "BindingCalibration":
        """Read a folder.

        Raises:
            ResultError: missing, damaged, of another kind or version.
        """
        import pandas as pd

        meta = read_result(Path(folder), kind=KIND, version=SCHEMA)
        with unharmed(folder):
            rows = pd.read_parquet(Path(folder) / "rows.parquet")
            return cls(meta["settings"], Provenance(**meta["provenance"]), rows)
