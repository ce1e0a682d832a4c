"""`circuits.feature_effects`: features taken away at tokens of two classes, beside controls."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.effect_plan import EffectSettings, check_effects
from circuits.effects_result import FeatureEffects
from circuits.feature_findings import as_rows, contrasts, findings
from circuits.feature_trials import find_trials, measure_trials, trials_digest
from circuits.graph_plan import GraphSettings, text_windows
from circuits.graph_result import FeatureGraph
from circuits.shelf import Shelf, model_label
from interp.errors import ResultError
from interp.store import provenance
from probes.documents import Source
from probes.feature_sites import check_dictionary

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]


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
