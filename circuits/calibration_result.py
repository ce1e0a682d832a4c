"""The result of a calibration: how often each detector and each test was right, where, and why not.

Intervals of rates are Clopper and Pearson's. They take heads, claims and seeds as independent of
one another; heads of one model are not quite, so that an interval of a false-positive rate is
somewhat too narrow.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.calibration_truth import TESTS, THRESHOLDS, TRUTHS
from circuits.statistics import clopper_pearson
from interp.errors import UnknownNameError
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "calibration", 1
TABLES = ("detectors", "claims", "repair")
CLAIM_COLUMNS = [
    "model", "seed", "claim", "heads", "test", "expected", "verdict", "right", "effect", "excess",
    "excess_low", "excess_high", "p", "p_holm", "needles", "sets", "scope", "why", "reason",
]  # fmt: skip
REPAIR_COLUMNS = [
    "model", "seed", "head", "total", "direct", "made_good", "low", "high", "needles", "seen",
    "expected", "right",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class CalibrationResult:
    """Rates of detectors, verdicts of tests.

    Attributes:
        settings: what was asked.
        provenance: versions, machine kind, date; `model` says how many models, `seconds` is the
            time of all.
        detectors: one row a model, detector and truth (`TRUTHS`), over seeds: mean AUROC, NaN where
            one class is empty; `found` of `true` heads at the threshold, `fooled` of the `false`
            ones, `fooled_by` their roles.
        claims: one row a model, seed, claim and test: the verdict beside the right one (None: there
            is none), `right`, the effect beyond matched sets, p, reasons of both.
        repair: one row a claim about a copying head: total and direct effect in nats, what others
            make good of it, whether that is repair, whether there is any.
    """

    settings: dict[str, Any]
    provenance: Provenance
    detectors: "pd.DataFrame"
    claims: "pd.DataFrame"
    repair: "pd.DataFrame"

    @classmethod
    def of(cls, settings: dict[str, Any], rows: Sequence[dict[str, Any]]) -> "CalibrationResult":
        """Sort the rows of all models into tables; pool detectors over seeds."""
        import pandas as pd

        tables = {
            name: pd.DataFrame([_without_table(r) for r in rows if r["table"] == name])
            for name in (*TABLES, "made")
        }
        return cls(
            settings, _provenance(tables["made"], settings), _pooled(tables["detectors"]),
            tables["claims"].reindex(columns=CLAIM_COLUMNS),
            tables["repair"].reindex(columns=REPAIR_COLUMNS),
        )  # fmt: skip

    # -- reading ----------------------------------------------------------------------------

    def to_frame(self, table: str = "claims") -> "pd.DataFrame":
        """One of the tables.

        Raises:
            UnknownNameError: no such table.
        """
        if table not in TABLES:
            raise UnknownNameError("table", table, TABLES)
        found: pd.DataFrame = getattr(self, table)
        return found

    def mistakes(self) -> "pd.DataFrame":
        """Verdicts that are wrong."""
        return self.claims[self.claims["right"].eq(False)]

    def summary(self) -> dict[str, list[dict[str, Any]]]:
        """Over all models, in plain values: `detectors` by truth, `tests`, and `repair`.

        AUROC is the mean over models that have heads of both classes; rates are pooled. `power` of
        a test is the share of true claims that it supports, `false` the share of others that it
        supports all the same; to be `right`, it must also not leave those open.
        """
        repair = self.repair["right"]
        return {
            "detectors": [self._detector(name, which) for which in TRUTHS for name in THRESHOLDS],
            "tests": [self._test(name) for name in TESTS],
            "repair": [_rate("right", int(repair.sum()), len(repair))],
        }

    def _detector(self, name: str, which: str) -> dict[str, Any]:
        part = self.detectors
        part = part[(part["detector"] == name) & (part["truth"] == which)]
        area = part["auroc"].dropna()
        return {
            "truth": which, "detector": name, "threshold": str(THRESHOLDS[name]),
            "auroc": float(area.mean()) if len(area) else None, "models": len(area),
            **_rate("fpr", int(part["fooled"].sum()), int(part["false"].sum())),
            **_rate("power", int(part["found"].sum()), int(part["true"].sum())),
        }  # fmt: skip

    def _test(self, name: str) -> dict[str, Any]:
        part = self.claims
        part = part[(part["test"] == name) & part["expected"].notna()]
        yes, said = part["expected"] == "supported", part["verdict"] == "supported"
        return {
            "test": name,
            **_rate("right", int(part["right"].sum()), len(part)),
            **_rate("power", int((yes & said).sum()), int(yes.sum())),
            **_rate("false", int((~yes & said).sum()), int((~yes).sum())),
        }

    def figure(self) -> "go.Figure":
        """AUROC of each detector on each model, and the verdicts on each claim."""
        from importlib import import_module

        # the faces are above this layer, so they are looked up only when a face is asked for
        figure: go.Figure = import_module("apps.calibration_view").draw(self)
        return figure

    def _repr_html_(self) -> str:
        import pandas as pd

        parts = [f"<b>Calibration on {html.escape(self.provenance.model)}</b>"]
        for rows in self.summary().values():
            parts.append(pd.DataFrame(rows).round(3).to_html(index=False, na_rep="–"))
        return "".join(parts)

    # -- files ------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json and a Parquet file a table."""

        def fill(target: Path) -> None:
            for name in TABLES:
                getattr(self, name).to_parquet(target / f"{name}.parquet")
            meta = {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance,
                "thresholds": {n: [str(t), t.source] for n, t in THRESHOLDS.items()},
                "truths": TRUTHS,
            }  # fmt: skip
            write_json(target / RESULT, meta)

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "CalibrationResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder, "run the calibration again"):
            tables: dict[str, Any] = {n: pd.read_parquet(folder / f"{n}.parquet") for n in TABLES}
            return cls(meta["settings"], Provenance(**meta["provenance"]), **tables)


# -- tables -----------------------------------------------------------------------------------


def _without_table(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != "table"}


def _provenance(made: "pd.DataFrame", settings: dict[str, Any]) -> Provenance:
    """Of all models: what they have in common, and the time that they took together."""
    last = {str(k): v for k, v in made.iloc[-1].items() if k != "seed"}
    models, seeds = len(settings["models"]), settings["seeds"]
    return replace(
        Provenance(**last),
        model=f"{models} planted models, {seeds} seed{'s' if seeds != 1 else ''} each",
        source="probes.planted", weight_hash=None, architecture="Llama, Mistral",
        seconds=round(float(made["seconds"].sum()), 1),
    )  # fmt: skip


def _pooled(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Detectors over seeds, with rates and their intervals."""
    import pandas as pd

    out = []
    for (model, name, which), part in rows.groupby(["model", "detector", "truth"], sort=False):
        roles = pd.Series([role for row in part["fooled_by"] for role in row]).value_counts()
        found, true, fooled, false = (
            int(part[k].sum()) for k in ("found", "true", "fooled", "false")
        )
        out.append({
            "model": model, "detector": name, "truth": which,
            "auroc": part["auroc"].astype(float).mean(), "seeds": len(part),
            "found": found, "true": true, **_rate("power", found, true),
            "fooled": fooled, "false": false, **_rate("fpr", fooled, false),
            "fooled_by": ", ".join(f"{role} {n}" for role, n in roles.items()),
        })  # fmt: skip
    return pd.DataFrame(out)


def _rate(name: str, k: int, n: int) -> dict[str, Any]:
    """A share with its interval and counts; None of nothing."""
    low, high = clopper_pearson(k, n) if n else (None, None)
    share = k / n if n else None
    return {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_of": f"{k}/{n}"}
