"""The result of activation patching: one row a patch, the screen's maps, its rank agreement."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.statistics import cluster_intervals
from interp.errors import UnknownNameError
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "patch", 1


@dataclass(frozen=True, eq=False)
class PatchResult:
    """Changes of the answer's metrics under patches.

    Attributes:
        rows: one row a patch and question: direction, site, layer, head (-1: none), position
            class (`all` for heads), change of each metric, `share` of the logit difference
            between the two prompts that the patch closes (1: all of it); for heads the screen's
            estimate and whether it was `picked` by the screen or at random.
        baselines: metrics of original and twin, by needle.
        screen: by direction, `[question, class, layer, head]`, classes as `probes.spreads.CLASSES`.
        agreement: Spearman correlation of screen and exact effect, by direction and pick.
    """

    settings: dict[str, Any]
    provenance: Provenance
    rows: "pd.DataFrame"
    baselines: "pd.DataFrame"
    screen: dict[str, np.ndarray]
    agreement: dict[str, float | None]

    def to_frame(self, metric: str = "logit_diff") -> "pd.DataFrame":
        """Mean of each patch over questions, with its 95 % interval over needles.

        Heads that were confirmed in fewer than two questions have no interval and are left out.
        """
        import pandas as pd

        if metric not in self.rows:
            raise UnknownNameError("metric", metric, ("logprob", "logit_diff", "exact", "share"))
        keys = ["direction", "site", "layer", "head", "class"]
        out = []
        for names, part in self.rows.groupby(keys, sort=False):
            if part["needle"].nunique() < 2:
                continue
            sure = cluster_intervals(part[[metric]].to_numpy(), part["needle"].to_numpy())
            out.append(
                dict(zip(keys, names, strict=True))
                | {"effect": sure.mean[0], "low": sure.low[0], "high": sure.high[0],
                   "n": len(part)}
            )  # fmt: skip
        return pd.DataFrame(out, columns=[*keys, "effect", "low", "high", "n"])

    def figure(self, kind: str = "sites", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.circuit_figures.PATCH_FIGURES`."""
        from importlib import import_module

        return import_module("apps.circuit_figures").draw_patch(self, kind, **options)

    def _repr_html_(self) -> str:
        frame = self.to_frame().sort_values("effect", key=abs, ascending=False).head(20)
        return str(frame.to_html(index=False, float_format="{:.3f}".format))

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, tables, the screen's maps."""
        from safetensors.numpy import save_file

        def fill(target: Path) -> None:
            arrays = {k: np.ascontiguousarray(v) for k, v in self.screen.items()}
            save_file(arrays, target / "tensors.safetensors")
            self.rows.to_parquet(target / "rows.parquet")
            self.baselines.to_parquet(target / "baselines.parquet")
            meta = {"kind": KIND, "schema": SCHEMA, "settings": self.settings,
                    "provenance": self.provenance, "agreement": self.agreement}  # fmt: skip
            write_json(target / RESULT, meta)

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "PatchResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd
        from safetensors.numpy import load_file

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder):
            return cls(
                meta["settings"], Provenance(**meta["provenance"]),
                pd.read_parquet(folder / "rows.parquet"),
                pd.read_parquet(folder / "baselines.parquet"),
                load_file(folder / "tensors.safetensors"), meta["agreement"],
            )  # fmt: skip
