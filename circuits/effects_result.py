"""`circuits.feature_effects`: features taken away at tokens of two classes, as a result to keep.

`circuits.feature_trials` measures, `circuits.feature_findings` says what that means, by the rule of
`circuits.effects`, the same as for heads.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.feature_findings import as_rows, contrasts, findings
from circuits.feature_trials import (
    EffectSettings,
    check_effects,
    find_trials,
    measure_trials,
    trials_digest,
)
from circuits.graph_plan import GraphSettings, text_windows
from circuits.graph_result import FeatureGraph
from circuits.shelf import Shelf, model_label
from interp.errors import ResultError
from interp.store import (
    RESULT,
    Provenance,
    provenance,
    read_result,
    unharmed,
    write_folder,
    write_json,
)
from probes.documents import Source
from probes.feature_files import check_dictionary

if TYPE_CHECKING:
    import pandas as pd

    from interp.backends.hf import HFModel

KIND, SCHEMA = "feature-effects", 1
Progress = Callable[[int, int, str], None]


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


def feature_effects(
    model: "HFModel",
    graph: FeatureGraph,
    corpus: Source,
    settings: EffectSettings | None = None,
    *,
    station: str = "",
    parts: str | Path | None = None,
    progress: Progress | None = None,
) -> FeatureEffects:
    """Take features of a graph's dictionary away, at function and content tokens.

    Args:
        graph: gives the dictionary, how often its features fire, and which tokens are function
            tokens.
        corpus: text for the predictions; best one that did not train the dictionary.
        station: key of a dictionary; the first when empty.
        parts: a folder in which finished trials are kept.

    Raises:
        PromptError: too little text. SiteError: the dictionary does not fit the model.
        UnknownNameError: no such dictionary, or choice of features.
    """
    import pandas as pd

    settings = settings or EffectSettings()
    check_effects(settings)
    own = graph.station(station)
    check_dictionary(own.dictionary, model.spec)
    if own.dictionary.is_transcoder:
        raise ResultError(
            f"{own.key} is a transcoder: what it reads is not what it makes, so that features "
            "cannot be taken out of its site; use an autoencoder of the residual"
        )
    start = time.perf_counter()
    function = graph.function_mask(model.spec.d_vocab)
    trials = find_trials(_texts(model, graph, corpus, settings.context), function, settings)
    label = asdict(settings) | model_label(model) | {
        "dictionary": own.dictionary.digest, "trials": trials_digest(trials),
    }  # fmt: skip
    shelf = Shelf(parts, label)
    rows = measure_trials(
        model, own.dictionary.to(model.device), np.asarray(own.counts.firing), trials, function,
        settings, shelf=shelf, progress=progress,
    )  # fmt: skip
    if not rows:
        raise ResultError(f"no feature of {own.key} was active at any place; nothing to take away")
    return FeatureEffects(
        asdict(settings), provenance(model, seconds=time.perf_counter() - start), own.key,
        pd.DataFrame(rows), as_rows(findings(rows, settings)), contrasts(rows, settings),
    )  # fmt: skip


def _texts(
    model: "HFModel", graph: FeatureGraph, corpus: Source, context: int
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Windows in the form in which the graph read them, but long enough for some contexts."""
    names = GraphSettings.__dataclass_fields__
    known = {k: v for k, v in graph.settings.items() if k in names}
    known["length"] = max(known["length"], 4 * context)
    for window in text_windows(model.tokenizer, corpus, GraphSettings(**known)):
        yield window.document, window.tokens
