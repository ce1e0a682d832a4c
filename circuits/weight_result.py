"""The result of reading weights: scores of heads and of pairs, kept, tabled and drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import ResultError
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "weight-circuits", 1


@dataclass(frozen=True, eq=False)
class WeightCircuits:
    """Scores of heads alone and of pairs, each beside its chance levels.

    Attributes:
        heads: one row a head and score (`copying`, `matching`): value, mean and 95 % of random
            matrices, and p, the share of them that reach it.
        pairs: one row a sender, receiver and mode: value, the same of random matrices, and
            `p_heads`, the share of all heads earlier than the receiver that reach it.
    """

    settings: dict[str, Any]
    provenance: Provenance
    heads: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def to_frame(self, kind: str = "pairs") -> "pd.DataFrame":
        """`pairs`, highest excess over random first, or `heads`.

        Raises:
            ResultError: another kind.
        """
        import pandas as pd

        if kind not in ("pairs", "heads"):
            raise ResultError(f"weight circuits have pairs and heads, not {kind!r}")
        rows = self.pairs if kind == "pairs" else self.heads
        frame = pd.DataFrame(rows)
        if frame.empty:
            return frame
        return frame.sort_values("excess", ascending=False, kind="stable", ignore_index=True)

    def figure(self, kind: str = "pairs") -> "go.Figure":
        """Values beside what random matrices reach: `pairs` by input of the receiver, or `heads`.

        Raises:
            ResultError: another kind, or no pair.
        """
        from importlib import import_module

        return import_module("apps.weights_page").draw(self, kind)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json and a table of heads and of pairs."""
        import pandas as pd

        def fill(target: Path) -> None:
            for kind in ("pairs", "heads"):
                pd.DataFrame(getattr(self, kind)).to_parquet(target / f"{kind}.parquet")
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "notes": list(self.notes),
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "WeightCircuits":
        """Read a run folder.

        Raises:
            ResultError: missing, damaged, of another kind or version.
        """
        import pandas as pd

        meta = read_result(Path(folder), kind=KIND, version=SCHEMA)
        with unharmed(folder):
            tables: Any = [
                pd.read_parquet(Path(folder) / f"{kind}.parquet").to_dict("records")
                for kind in ("heads", "pairs")
            ]
            return cls(
                meta["settings"], Provenance(**meta["provenance"]), tables[0], tables[1],
                tuple(meta["notes"]),
            )  # fmt: skip

    def _repr_html_(self) -> str:
        tables = (self.to_frame(kind).head(10).round(3) for kind in ("heads", "pairs"))
        return "".join(table.to_html(index=False) for table in tables)
