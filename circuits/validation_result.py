"""The result of a validation: numbers of every set on every question; effects and verdicts follow.

Only what was measured is stored. Effects, intervals, corrected p and verdicts are pure functions
of it, so that a saved run can be judged again under another metric.
"""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.ablations import ABLATIONS
from circuits.case_metrics import METRICS
from circuits.effects import Effect, Finding, corrected, judge, measure_effect
from circuits.statistics import (
    benjamini_hochberg,
    clopper_pearson,
    cluster_intervals,
    holm,
    layer_permutation_p,
    mcnemar_exact,
    sign_flip_ps,
)
from interp.errors import ResultError, UnknownNameError
from interp.sites import Head
from interp.store import RESULT, Provenance, read_result, unharmed, write_folder, write_json

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KIND, SCHEMA = "validation", 1
FEW_SCORED = 10
"""Scored heads below which a rank correlation with their effects says nothing."""
DENOISE = "denoise"
"""Name, in the table of sets, of the run that puts heads' outputs back into the twin prompt."""


@dataclass(frozen=True, eq=False)
class ValidationResult:
    """Metrics of every set of heads on every question.

    Attributes:
        settings: what was asked (`ValidateSettings` as a dict, prompts resolved).
        provenance: model, versions, machine kind, time.
        cases: one row a question: needle, depth, value, what the unablated model does with it,
            whether it has a twin, whether it counts (`kept`).
        sets: one row a run: `ablation` (or `denoise`), `role` (top, bottom, sink, random), `k`,
            `draw`, `heads`.
        values: `[run, case, metric]`, metrics as in `metrics`; NaN where it could not be run.
        start: unablated metrics `[case, metric]`; of the twin prompt in `twin`.
        alone: `[layer, head, case, metric]` with one head ablated at the answer rows; empty when
            it was not asked for.
        scores: the ranking's score `[layer, head]`; empty when the list had none.
        direct: one row a candidate head and question: total, direct, and direct effect under a
            frozen final norm.
        specificity: one row a kind of text, role and draw: change in nats per token.
        notes: what a reader of the verdicts should know.
    """

    settings: dict[str, Any]
    provenance: Provenance
    cases: "pd.DataFrame"
    sets: "pd.DataFrame"
    metrics: tuple[str, ...]
    values: np.ndarray
    start: np.ndarray
    twin: np.ndarray
    alone: np.ndarray
    scores: np.ndarray
    direct: "pd.DataFrame"
    specificity: "pd.DataFrame"
    notes: tuple[str, ...] = field(default=())

    # -- effects and verdicts ---------------------------------------------------------------

    @property
    def heads(self) -> tuple[Head, ...]:
        """The candidates, best first."""
        return tuple(Head.parse(h) for h in self.settings["heads"])

    @cached_property
    def kept(self) -> np.ndarray:
        """Questions that count: those that the unablated model answers."""
        return self.cases["kept"].to_numpy(dtype=bool)

    def effect(
        self, ablation: str, *, role: str = "top", k: int | None = None, metric: str | None = None
    ) -> Effect:
        """Effect of one set under one ablation (or `denoise`), p not yet corrected.

        Raises:
            UnknownNameError, ResultError: it was not run, or too few questions have it.
        """
        k, metric = k or self.settings["top"], metric or self.settings["metric"]
        m, table = self._metric(metric), self.sets
        if ablation not in set(table["ablation"]):
            raise UnknownNameError("ablation in this result", ablation, set(table["ablation"]))
        here = (table["ablation"] == ablation) & (table["k"] == k)
        treated = self.values[(here & (table["role"] == role)).to_numpy(), :, m]
        drawn = self.values[(here & (table["role"] == "random")).to_numpy(), :, m]
        if not len(treated) or not len(drawn):
            raise ResultError(f"{ablation}: no {role} {k} with matched random sets was run")
        start = (self.twin if ablation == DENOISE else self.start)[:, m]
        # text is generated for fewer sets than the rest: those that were not run hold NaN
        drawn = drawn[~np.isnan(drawn).all(1)]
        good = self.kept & ~np.isnan(treated[0]) & ~np.isnan(start) & ~np.isnan(drawn).any(0)
        if len(set(self.cases["needle"][good])) < 2:
            raise ResultError(
                f"{ablation}, {metric}: {good.sum()} questions can be used, an interval needs 2 "
                "needles or more; raise --needles-tested, or shorten --length"
            )
        return measure_effect(
            start[good], treated[0][good], drawn[:, good],
            clusters=self.cases["needle"].to_numpy()[good],
            name=f"{role} {k}" if len(self.heads) > 1 or role != "top" else str(self.heads[0]),
            ablation="resample" if ablation == DENOISE else ablation,
            scope=self._scope(ablation),
            direction="denoising" if ablation == DENOISE
            else "noising" if ablation == "resample" else "ablate",
            metric=METRICS[metric][0], unit=METRICS[metric][1], seed=self.settings["seed"],
        )  # fmt: skip

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """A verdict for each ablation and direction, Holm-corrected over all of them."""
        effects = []
        for name in dict.fromkeys(self.sets["ablation"]):
            try:
                effects.append(self.effect(name))
            except ResultError:
                continue
        smallest, alpha = self.settings["smallest"], self.settings["alpha"]
        return tuple(judge(e, alpha=alpha, smallest=smallest) for e in corrected(effects))

    def missing(self) -> dict[str, str]:
        """Ablations whose effect could not be measured, and why."""
        out = {}
        for name in dict.fromkeys(self.sets["ablation"]):
            try:
                self.effect(name)
            except ResultError as error:
                out[name] = str(error)
        return out

    def to_frame(self) -> "pd.DataFrame":
        """One row a finding: claim, verdict, reason, and all numbers of its effect."""
        import pandas as pd

        rows = [
            {"claim": f.claim, "verdict": f.verdict, **asdict(f.effect), "reason": f.reason}
            for f in self.findings
        ]
        return pd.DataFrame(rows)

    def controls(self) -> "pd.DataFrame":
        """Every role under every ablation and metric: baseline, treated, effect, interval, p."""
        import pandas as pd

        rows = []
        for ablation in dict.fromkeys(self.sets["ablation"]):
            for role in ("top", "bottom", "sink"):
                for metric in self.metrics:
                    try:
                        effect = self.effect(ablation, role=role, metric=metric)
                    except ResultError:
                        continue
                    rows.append({"run": ablation, "role": role, "of": metric, **asdict(effect)})
        return pd.DataFrame(rows)

    def pass_fail(self, metric: str = "exact") -> "pd.DataFrame":
        """Questions passed before and after ablating the candidates: rates with Clopper-Pearson
        intervals, answers lost and gained, and McNemar's exact p.

        A question passes where the metric is above one half (ROUGE: as published).
        """
        import pandas as pd

        m, rows = self._metric(metric), []
        for name in dict.fromkeys(self.sets["ablation"]):
            table = self.sets
            top = (table["ablation"] == name) & (table["role"] == "top")
            treated = self.values[(top & (table["k"] == self.settings["top"])).to_numpy(), :, m][0]
            start = (self.twin if name == DENOISE else self.start)[:, m]
            good = self.kept & ~np.isnan(treated) & ~np.isnan(start)
            before, after = start[good] > 0.5, treated[good] > 0.5
            if not good.any():
                continue
            moved, n = mcnemar_exact(before, after), int(good.sum())
            rows.append({
                "run": name, "before": before.mean(), "after": after.mean(),
                **dict(zip(("before_low", "before_high"), clopper_pearson(int(before.sum()), n),
                           strict=True)),
                **dict(zip(("after_low", "after_high"), clopper_pearson(int(after.sum()), n),
                           strict=True)),
                "lost": moved.lost, "gained": moved.gained, "p": moved.p, "n": n,
            })  # fmt: skip
        return pd.DataFrame(rows)

    def curve(self, metric: str | None = None) -> "pd.DataFrame":
        """Dose-response under the first ablation: mean metric by role and k; band of random."""
        import pandas as pd

        first = self.settings["ablations"][0]
        m, rows = self._metric(metric or self.settings["metric"]), []
        table = self.sets[(self.sets["ablation"] == first) & (self.sets["role"] != "sink")]
        runs = self.values[table.index][:, self.kept, m]
        good = ~np.isnan(runs[~np.isnan(runs).all(1)]).any(0)  # without a twin: no resampling
        for (role, k), part in table.groupby(["role", "k"]):
            means = self.values[part.index][:, self.kept, m][:, good].mean(1)
            means = means[~np.isnan(means)]
            if len(means):
                low, high = np.percentile(means, [2.5, 97.5])
                rows.append({"role": role, "k": k, "value": means.mean(), "low": low,
                             "high": high, "n": len(means)})  # fmt: skip
        return pd.DataFrame(rows, columns=["role", "k", "value", "low", "high", "n"])

    def agreement(self) -> str | None:
        """In words: do the ablations agree about the candidates? None with a single one."""
        verdicts = {
            f.effect.ablation: f.verdict for f in self.findings if f.effect.direction != "denoising"
        }
        if len(verdicts) < 2:
            return None
        if len(set(verdicts.values())) == 1:
            return f"all {len(verdicts)} ablations agree: {next(iter(verdicts.values()))}"
        named = ", ".join(f"{a} {v}" for a, v in verdicts.items())
        return f"the ablations disagree: {named}; no single one decides"

    def alone_frame(self, metric: str | None = None) -> "pd.DataFrame":
        """Each head ablated alone at the answer rows, over all heads of the model.

        Columns: effect, 95 % interval, two-sided sign-flip p, the same after Holm, and `q`
        (Benjamini-Hochberg). `kind` is `helps` where q passes alpha and the answer loses,
        `negative` where it gains when the head is gone, else `neither`.
        """
        metric = metric or self.settings["metric"]
        if metric not in self._alone:
            self._alone[metric] = self._alone_frame(metric)
        return self._alone[metric].copy()

    @cached_property
    def _alone(self) -> "dict[str, pd.DataFrame]":
        return {}

    def _alone_frame(self, metric: str) -> "pd.DataFrame":
        import pandas as pd

        if not self.alone.size:
            raise ResultError("single heads were not ablated in this run; leave --no-alone out")
        m, (n_layers, n_heads) = self._metric(metric), self.alone.shape[:2]
        good = self.kept & ~np.isnan(self.start[:, m])
        change = self.alone[:, :, good, m] - self.start[good, m]
        flat = change.reshape(n_layers * n_heads, -1).T
        needles = self.cases["needle"].to_numpy()[good]
        sure = cluster_intervals(flat, needles, seed=self.settings["seed"])
        p = sign_flip_ps(flat, needles, seed=self.settings["seed"])
        layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
        frame = pd.DataFrame(
            {
                "name": [str(Head(int(a), int(b))) for a, b in zip(layer, head, strict=True)],
                "layer": layer, "head": head, "effect": sure.mean, "low": sure.low,
                "high": sure.high, "p": p, "p_holm": holm(p), "q": benjamini_hochberg(p),
            }
        )  # fmt: skip
        certain = frame["q"] <= self.settings["alpha"]
        frame["kind"] = np.select(
            [certain & (frame["effect"] < 0), certain & (frame["effect"] > 0)],
            ["helps", "negative"], "neither",
        )  # fmt: skip
        if self.scores.size:
            frame["score"] = self.scores.reshape(-1)
        return frame.dropna(subset=["effect"])

    def score_against_effect(self) -> tuple[float, float] | None:
        """Spearman of score and single-head harm, with p from permutations within layers.

        None where heads were not ablated alone, or where too few of them are scored.
        """
        if np.isfinite(self.scores).sum() < FEW_SCORED or not self.alone.size:
            return None
        frame = self.alone_frame()
        harm = np.full(self.scores.shape, np.nan)
        harm[frame["layer"], frame["head"]] = -frame["effect"]
        return layer_permutation_p(self.scores, harm, tail="greater", seed=self.settings["seed"])

    def _scope(self, ablation: str) -> str:
        """Outputs are put back behind the context only, whatever was ablated."""
        scope = str(self.settings["scope"])
        return "suffix" if ablation == DENOISE and scope == "everywhere" else scope

    def _metric(self, name: str) -> int:
        if name not in self.metrics:
            raise UnknownNameError("metric of this result", name, self.metrics)
        return self.metrics.index(name)

    def figure(self, kind: str = "effects", **options: Any) -> "go.Figure":
        """A Plotly figure; see `apps.validation_figures.FIGURES`."""
        from importlib import import_module

        return import_module("apps.validation_figures").draw(self, kind, **options)

    def _repr_html_(self) -> str:
        columns = ["claim", "verdict", "baseline", "treated", "control", "effect", "low", "high",
                   "p_holm", "n_clusters"]  # fmt: skip
        if not self.findings:
            return "; ".join(self.missing().values())
        return str(self.to_frame()[columns].to_html(index=False, float_format="{:.3f}".format))

    # -- files ------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write a run folder: result.json, tensors, tables, findings.csv."""
        from safetensors.numpy import save_file

        def fill(target: Path) -> None:
            arrays = {n: getattr(self, n) for n in _ARRAYS}
            save_file({k: np.ascontiguousarray(v, dtype=np.float64) for k, v in arrays.items()},
                      target / "tensors.safetensors")  # fmt: skip
            for name in _TABLES:
                getattr(self, name).to_parquet(target / f"{name}.parquet")
            self.to_frame().to_csv(target / "findings.csv", index=False)
            meta = {
                "kind": KIND, "schema": SCHEMA, "settings": self.settings,
                "provenance": self.provenance, "metrics": list(self.metrics),
                "notes": list(self.notes),
                "findings": [
                    {"claim": f.claim, "verdict": f.verdict, "reason": f.reason,
                     "effect": asdict(f.effect)}
                    for f in self.findings
                ],
                "ablations": {
                    a: ABLATIONS[a].formula for a in self.settings["ablations"]
                },
            }  # fmt: skip
            write_json(target / RESULT, meta)

        return write_folder(Path(folder), fill)

    @classmethod
    def load(cls, folder: str | Path) -> "ValidationResult":
        """Read a run folder.

        Raises:
            ResultError: missing, unfinished, damaged, of another kind or version.
        """
        import pandas as pd
        from safetensors.numpy import load_file

        folder = Path(folder)
        meta = read_result(folder, kind=KIND, version=SCHEMA)
        with unharmed(folder, "run the validation again"):
            arrays: dict[str, Any] = load_file(folder / "tensors.safetensors")
            tables: dict[str, Any] = {n: pd.read_parquet(folder / f"{n}.parquet") for n in _TABLES}
            return cls(
                settings=meta["settings"], provenance=Provenance(**meta["provenance"]),
                metrics=tuple(meta["metrics"]), notes=tuple(meta["notes"]),
                **{n: arrays[n] for n in _ARRAYS}, **tables,
            )  # fmt: skip


_ARRAYS = ("values", "start", "twin", "alone", "scores")
_TABLES = ("cases", "sets", "direct", "specificity")
