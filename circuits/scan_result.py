"""The result of a retrieval scan: scores with intervals, trials, roles; saved and loaded whole."""

import html
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attention.record import AttentionRecord
from circuits.scores import METRICS, agreement, role_labels
from circuits.uncertainty import SplitHalf, Uncertainty, bootstrap, split_half
from interp.errors import ResultError, UnknownNameError
from interp.sites import Head
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "scan", 1


@dataclass(frozen=True, eq=False)
class ScanResult:
    """Scores of every head, by trial.

    Attributes:
        settings: what was asked (`ScanSettings` as a dict; for a preset, its own settings).
        provenance: model, versions, machine kind, time.
        trials: one row a trial: needle, length, depth, answer, whether it passed.
        values: trial metrics `[trial, layer, head]`, float32; NaN where a layer has no attention.
        roles: role metrics `[sequence, layer, head]`.
        rows: attention of the best heads around the needle of one trial, for the figure.
        notes: warnings that a reader of the scores should know.
        attention: rows of some trials, all heads, for looking at them; None where none were kept.
    """

    settings: dict[str, Any]
    provenance: Provenance
    trials: "pd.DataFrame"
    values: dict[str, np.ndarray]
    roles: dict[str, np.ndarray]
    rows: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    attention: AttentionRecord | None = None

    # -- reading ----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """Layers and heads."""
        first = next(iter(self.values.values()))
        return first.shape[1], first.shape[2]

    def gated(self, gate: bool = True) -> np.ndarray:
        """Which trials count: those that the model answered, or all."""
        passed = self.trials["passed"].to_numpy(dtype=bool)
        return passed if gate else np.ones_like(passed)

    def mean(self, metric: str = "copy", *, gate: bool = True) -> np.ndarray:
        """Mean score `[layer, head]` over the trials that the model answered (or all)."""
        if metric in self.roles:
            return self.roles[metric].mean(0)
        values = self._metric(metric)
        if gate:
            self._needs_passed()
        return values[self.gated(gate)].mean(0)

    def uncertainty(
        self, metric: str = "copy", *, k: int | None = None, gate: bool = True
    ) -> Uncertainty:
        """Bootstrap over needles; heads flattened layer by layer."""
        if gate:
            self._needs_passed()
        keep = self.gated(gate)
        return bootstrap(
            self._metric(metric)[keep].reshape(int(keep.sum()), -1),
            self.trials["needle"].to_numpy()[keep],
            k=k or self.settings["top"],
            threshold=self.settings["threshold"],
            seed=self.settings["seed"],
        )

    def reliability(self, metric: str = "copy", *, k: int | None = None) -> SplitHalf | None:
        """Agreement between two halves of the needles; None with fewer than four."""
        keep = self.gated()
        return split_half(
            self._metric(metric)[keep].reshape(int(keep.sum()), -1),
            self.trials["needle"].to_numpy()[keep],
            k=k or self.settings["top"],
            seed=self.settings["seed"],
        )

    def top(self, k: int | None = None, *, metric: str = "copy") -> list[Head]:
        """The k heads with the highest score."""
        return [Head.parse(h) for h in self.to_frame(metric)["name"][: k or self.settings["top"]]]

    @cached_property
    def labels(self) -> list[list[str]]:
        """Role labels of every head."""
        return role_labels({n: v.mean(0) for n, v in self.roles.items()}, self.mean("copy"))

    def to_frame(self, metric: str = "copy") -> "pd.DataFrame":
        """One row a head, best first: mean, 95 % interval, rank probabilities, all other scores."""
        import pandas as pd

        n_layers, n_heads = self.shape
        u = self.uncertainty(metric)
        layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
        columns: dict[str, Any] = {
            "name": [str(Head(int(a), int(b))) for a, b in zip(layer, head, strict=True)],
            "layer": layer,
            "head": head,
            "score": u.mean,
            "low": u.low,
            "high": u.high,
            "p_top": u.p_top,
            "p_above": u.p_above,
            "roles": [name for row in self.labels for name in row],
        }
        for other in (*self.values, *self.roles):
            columns[other] = self.mean(other).reshape(-1)
        frame = pd.DataFrame(columns).dropna(subset=["score"])
        return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)

    def agreement(self, *, top: int = 20) -> tuple[list[str], np.ndarray]:
        """Spearman correlation and top-k overlap between all scores."""
        names, matrix = agreement({n: self.mean(n) for n in (*self.values, *self.roles)}, top=top)
        return list(names), matrix

    def yields(self) -> dict[str, float]:
        """Share of trials passed: by teacher forcing, word for word, by ROUGE, by any; tokens."""
        t = self.trials
        return {
            "trials": float(len(t)),
            "forced": float(t["forced"].mean()),
            "exact": float(t["exact"].mean()),
            "rouge": float((t["rouge"] > 0.5).mean()),
            "passed": float(t["passed"].mean()),
        }

    def figure(self, kind: str = "map", **options: Any) -> "go.Figure":
        """A Plotly figure; `kind` is one of `apps.figures.FIGURES`."""
        from importlib import import_module

        # the faces are above this layer, so they are looked up only when a face is asked for
        return import_module("apps.figures").draw(self, kind, **options)

    def _repr_html_(self) -> str:
        frame = self.to_frame().head(10).round(3).to_html(index=False)
        title = f"Retrieval scan of {html.escape(self.provenance.model)}"
        return f"<b>{title}</b>, {len(self.trials)} trials{frame}"

    def _metric(self, metric: str) -> np.ndarray:
        if metric not in self.values:
            raise UnknownNameError("score", metric, (*self.values, *self.roles))
        return self.values[metric]

    def _needs_passed(self) -> None:
        if not self.trials["passed"].any():
            raise ResultError(self.diagnosis())

    def diagnosis(self) -> str:
        """Why no trial passed, as far as the trials tell."""
        said = [t for t in self.trials["generated"].tolist() if t][:1]
        shown = f" it said {said[0][:60]!r} where a value was asked for;" if said else ""
        return (
            f"the model answered none of {len(self.trials)} questions, so no head can be scored:"
            f"{shown} try shorter --lengths, a larger --cue-words, --style plain, or a model "
            "that follows instructions"
        )

    # -- files ------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, tensors, trials.parquet, heads.csv and heads.json."""
        import json

        from safetensors.numpy import save_file

        def fill(target: Path) -> None:
            tensors = {f"values.{n}": v for n, v in self.values.items()}
            tensors |= {f"roles.{n}": v for n, v in self.roles.items()}
            save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()},
                      target / "tensors.safetensors")  # fmt: skip
            self.trials.to_parquet(target / "trials.parquet")
            if self.attention is not None:
                self.attention.save(target)
            if self.trials["passed"].any():
                (target / "heads.json").write_text(json.dumps(self.published()), "utf-8")
                if self.trials["needle"][self.gated()].nunique() > 1:
                    self.to_frame().to_csv(target / "heads.csv", index=False)
            meta = {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "rows": self.rows, "notes": list(self.notes),
                "yields": self.yields(),
                "metrics": {n: METRICS[n].formula for n in (*self.values, *self.roles)},
            }  # fmt: skip
            write_json(target / RESULT, meta)

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "ScanResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd
        from safetensors.numpy import load_file

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder, "run the scan again"):
            tensors = load_file(folder / "tensors.safetensors")
            trials = pd.read_parquet(folder / "trials.parquet")
            record = Provenance(**meta["provenance"])
            attention = AttentionRecord.load(folder)
        parts = {"values": {}, "roles": {}}  # type: dict[str, dict[str, np.ndarray]]
        for name, value in tensors.items():
            group, metric = name.split(".", 1)
            parts[group][metric] = value
        return cls(meta["settings"], record, trials, parts["values"], parts["roles"],
                   meta["rows"], tuple(meta["notes"]), attention)  # fmt: skip

    def published(self, metric: str = "copy") -> dict[str, list[float]]:
        """`{"layer-head": [score of each passed trial]}`, the layout other tools read."""
        values = self._metric(metric)[self.gated()]
        n_layers, n_heads = self.shape
        return {
            f"{layer}-{head}": [round(float(v), 6) for v in values[:, layer, head]]
            for layer in range(n_layers)
            for head in range(n_heads)
            if not np.isnan(values[:, layer, head]).any()
        }
