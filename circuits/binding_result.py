"""The result of a binding run: records of every study, and what was concluded from them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.binding_labels import LABELS, shares
from circuits.binding_layer import sweep_curve
from circuits.binding_study import ARRAYS, MAIN, Records
from interp.errors import UnknownNameError
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "binding", 1


@dataclass(frozen=True, eq=False)
class StudyResult:
    """One task, target and number of groups.

    Attributes:
        key, task, target, asked, place, n: what was studied; `place` of the target in its group is
            first, middle or last; `filler` sentences stand between two groups.
        about: style and form of the answers, styles tried, words left out.
        preflight: one row a question asked, see `circuits.competence.preflight`.
        records: every patched evaluation.
        conclusion: see `circuits.binding_analysis.conclude`; plain values.
    """

    key: str
    task: str
    target: str
    asked: tuple[str, ...]
    place: str
    n: int
    filler: int
    about: dict[str, Any]
    preflight: "pd.DataFrame"
    records: Records
    conclusion: dict[str, Any]

    @property
    def layer(self) -> int | None:
        """Entering which layer vectors were exchanged; None where none would do."""
        found: int | None = self.conclusion["layer"]["layer"]
        return found

    @property
    def verdict(self) -> str:
        """The conclusion in a sentence."""
        return str(self.conclusion["verdict"]["sentence"])

    def shares(self, *by: str, stage: str = MAIN, design: str = "main") -> "pd.DataFrame":
        """Shares of labels with intervals, by columns of the records (default: i_p)."""
        part = self.records.of(stage, design=design, layer=self.layer)
        return shares(part.rows, list(by or ("i_p",)))

    def sweep(self) -> "pd.DataFrame":
        """Shares of labels by layer; empty where the layer was given."""
        return sweep_curve(self.records)


@dataclass(frozen=True, eq=False)
class BindingResult:
    """Studies by key, and what they say together (`circuits.binding_across`)."""

    settings: dict[str, Any]
    provenance: Provenance
    studies: Mapping[str, StudyResult]
    hypotheses: list[dict[str, Any]]
    transfers: list[dict[str, Any]] = field(default_factory=list)
    longer_inputs: list[dict[str, Any]] = field(default_factory=list)

    def study(self, key: str = "") -> StudyResult:
        """A study by key, or by part of it; the first when empty.

        Raises:
            UnknownNameError: no such study.
        """
        found = [k for k in self.studies if key in k]
        if not found or (key and key not in self.studies and len(found) > 1):
            raise UnknownNameError("study", key, list(self.studies))
        return self.studies[key if key in self.studies else found[0]]

    def to_frame(self) -> "pd.DataFrame":
        """One row a study: accuracy, layer, share of every label, similarity of the mixture."""
        import pandas as pd

        return pd.DataFrame([_row(s) for s in self.studies.values()])

    def figure(self, kind: str = "positions", study: str = "", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.binding_figures.FIGURES`."""
        from importlib import import_module

        return import_module("apps.binding_figures").draw(self, kind, study=study, **options)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="{:.2f}".format))

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, tables of questions and evaluations, their logits."""
        import pandas as pd
        from safetensors.numpy import save_file

        def fill(target: Path) -> None:
            studies = self.studies.values()
            tables = {"preflight": [s.preflight for s in studies],
                      "evaluations": [s.records.rows for s in studies]}  # fmt: skip
            for name, frames in tables.items():
                whole = [f.assign(study=k) for k, f in zip(self.studies, frames, strict=True)]
                pd.concat(whole, ignore_index=True).to_parquet(target / f"{name}.parquet")
            arrays = {
                f"{k}/{name}": np.ascontiguousarray(getattr(s.records, name))
                for k, s in self.studies.items()
                for name in ARRAYS
            }
            save_file(arrays, target / "tensors.safetensors")
            plain = [{f: getattr(s, f) for f in _PLAIN} for s in self.studies.values()]
            write_json(target / RESULT, {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "studies": plain,
                **{name: getattr(self, name) for name in _ACROSS},
            })  # fmt: skip

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "BindingResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd
        from safetensors.numpy import load_file

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder):
            asked = pd.read_parquet(folder / "preflight.parquet")
            rows = pd.read_parquet(folder / "evaluations.parquet")
            arrays = load_file(folder / "tensors.safetensors")
            studies = {s["key"]: _study(s, asked, rows, arrays) for s in meta["studies"]}
            made = Provenance(**meta["provenance"])
            return cls(meta["settings"], made, studies, *(meta[name] for name in _ACROSS))


_ACROSS = ("hypotheses", "transfers", "longer_inputs")
_PLAIN = ("key", "task", "target", "asked", "place", "n", "filler", "about", "conclusion")


def _study(
    row: dict[str, Any], asked: "pd.DataFrame", rows: "pd.DataFrame", arrays: dict[str, np.ndarray]
) -> StudyResult:
    key = row["key"]
    own = rows[rows["study"] == key].drop(columns="study").reset_index(drop=True)
    records = Records(own, *(arrays[f"{key}/{name}"] for name in ARRAYS))
    preflight = asked[asked["study"] == key].drop(columns="study").reset_index(drop=True)
    row = row | {"asked": tuple(row["asked"])}
    return StudyResult(**row, preflight=preflight, records=records)


def _row(s: StudyResult) -> dict[str, Any]:
    found = s.conclusion
    row = {
        "task": s.task, "target": s.target, "place": s.place, "n": s.n, "filler": s.filler,
        "accuracy": found["competence"]["accuracy"], "mass": found["competence"]["mass"],
        "layer": s.layer,
    }  # fmt: skip
    part = s.records.of(MAIN, design="main", layer=s.layer)
    for name in LABELS:
        row[name] = float((part.rows["label"] == name).mean()) if len(part) else float("nan")
    mixture = found.get("mixture") or {}
    row["jss"] = mixture.get("jss")
    row["named"] = ", ".join(found["verdict"]["named"])
    return row
