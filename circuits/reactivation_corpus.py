"""`circuits.reactivation`: do features of content tokens come back at function tokens, and why.

Over a text: the re-activation index with its controls (`circuits.reactivation_index`), and which
features come back from which class of token at which token. On a sample of predictions of content
tokens: attribution of re-activated and new features at function and content tokens, checked by
exact ablation, and the heads that bring them, beside the retrieval heads of the same model.
"""

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from circuits.graph_plan import GraphSettings, text_windows
from circuits.graph_result import FeatureGraph, StationResult
from circuits.head_sets import HeadSet
from circuits.prompt_trace import PromptTrace
from circuits.reactivation_index import (
    Cells,
    class_index,
    count_window,
    distance_index,
    index_table,
    joined,
    labels_of,
)
from circuits.reactivation_pairs import find_sources
from circuits.reactivation_plan import ReactivationSettings, check_reactivation
from circuits.reactivation_prompt import trace_prompt
from circuits.reactivation_result import ReactivationResult
from circuits.reactivation_tables import attribution_tables, head_tables, link_table, trial_rows
from circuits.shelf import Part, Shelf, model_label
from interp.errors import PromptError, ResultError
from interp.store import provenance
from probes.activations import batches, site_activations
from probes.documents import Source, Window
from probes.feature_sites import check_dictionary
from probes.token_classes import linguistic_classes

if TYPE_CHECKING:
    import pandas as pd

    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
MARK = "crc"
"""Array of a part that tells which tokens it was made of."""
PER_DOCUMENT = 4
"""Predictions that are taken of one document at most."""


@dataclass(frozen=True, eq=False)
class _Bench:
    """What every part of a run needs: the dictionary, labels of tokens, what is left out."""

    station: StationResult
    settings: ReactivationSettings
    skip_first: int
    function: np.ndarray  # of every token
    labels: np.ndarray  # of every token
    own_share: np.ndarray  # of every feature
    dense: np.ndarray  # of every feature


def reactivation(
    model: "HFModel",
    graph: FeatureGraph,
    corpus: Source,
    settings: ReactivationSettings | None = None,
    *,
    station: str = "",
    heads: HeadSet | None = None,
    parts: str | Path | None = None,
    progress: Progress | None = None,
) -> ReactivationResult:
    """Measure re-activation over a text, with the dictionary and token classes of a graph run.

    Args:
        corpus: best a text that did not train the dictionary.
        station: key of a dictionary; the first when empty.
        heads: retrieval heads of the model, as `circuits.head_sets.read_heads` gives them.
        parts: a folder in which finished parts are kept.

    Raises:
        PromptError: too little text, or settings that cannot be followed.
        ResultError, SiteError: a transcoder, or a dictionary that does not fit the model.
        UnknownNameError: no such dictionary or objective.
    """
    settings = settings or ReactivationSettings()
    check_reactivation(settings)
    report = progress or (lambda *_: None)
    start = time.perf_counter()
    own = graph.station(station)
    check_dictionary(own.dictionary, model.spec)
    bench = _bench(model, graph, own, settings)
    label = asdict(settings) | model_label(model) | {"dictionary": own.dictionary.digest}
    label["graph"] = graph.text["digest"]
    label["heads"] = [str(h) for h in heads.heads] if heads else []
    shelf = Shelf(parts, label)
    windows = partial(_windows, model, graph, corpus)
    cells, documents, links = _index(model, bench, windows(), shelf, report)
    trials = _trials(windows(), bench) if settings.n_predictions else []
    traced = []
    for i, trial in enumerate(trials):
        traced.append(_traced(model, bench, trial, i, heads, shelf))
        report(i + 1, len(trials), "predictions")
    tables = {
        "index": index_table(cells, documents, seed=settings.seed),
        "classes": class_index(cells, documents, seed=settings.seed),
        "distances": distance_index(cells, documents, seed=settings.seed),
        "links": _named(link_table(links), graph),
    }
    if traced:
        if not any(part.rows for part in traced):
            raise ResultError("no feature was active before any prediction; raise densest")
        tables |= attribution_tables([p.rows for p in traced], seed=settings.seed)
        tables |= head_tables([p.values for p in traced], heads, seed=settings.seed)
    names = feature_names(graph, own.key, tables["links"]["feature"].unique()[:2000])
    about = {
        "positions": int(cells.positions.sum()), "documents": len(set(documents)),
        "windows": len(documents), "active": int(cells.active.sum()),
        "predictions": len(traced), "dense": int(bench.dense.sum()),
        "heads": heads.source if heads else "",
    }  # fmt: skip
    return ReactivationResult(
        asdict(settings), provenance(model, seconds=time.perf_counter() - start), own.key,
        str(own.site), about, tables, names,
    )  # fmt: skip


def dense_features(station: StationResult, densest: float) -> np.ndarray:
    """Of every feature, whether it fires at a larger share of the graph's positions."""
    counts = station.counts
    dense: np.ndarray = counts.firing > densest * counts.n_positions
    return dense


def feature_names(
    graph: FeatureGraph, station: str, features: Iterable[int], *, most: int = 3
) -> dict[int, str]:
    """Each feature by the tokens at which it was most active anywhere in the graph."""
    counts = graph.station(station).counts
    text = dict(zip(graph.tokens["id"], graph.tokens["text"], strict=True))
    wanted = np.unique(np.fromiter((int(f) for f in features), np.int64))
    keep = np.flatnonzero(np.isin(counts.feature, wanted))
    order = keep[np.lexsort((-counts.largest[keep], counts.feature[keep]))]
    out: dict[int, list[str]] = {}
    for entry in order:
        names = out.setdefault(int(counts.feature[entry]), [])
        if len(names) < most:
            token = int(counts.token[entry])
            names.append(str(text.get(token, f"<{token}>")))
    return {f: " ".join(names) for f, names in out.items()}


# -- the index --------------------------------------------------------------------------------


def _bench(
    model: "HFModel", graph: FeatureGraph, own: StationResult, settings: ReactivationSettings
) -> _Bench:
    n_vocab = model.spec.d_vocab
    function = graph.function_mask(n_vocab)
    classes = linguistic_classes(model.tokenizer, n_vocab=n_vocab)
    counts = own.counts
    at_function = np.bincount(
        counts.feature, counts.count * function[counts.token], counts.n_features
    )
    return _Bench(
        own, settings, int(graph.settings["skip_first"]), function, labels_of(classes, function),
        at_function / np.maximum(counts.firing, 1), dense_features(own, settings.densest),
    )  # fmt: skip


def _windows(model: "HFModel", graph: FeatureGraph, corpus: Source) -> Iterator[Window]:
    """Windows in the form in which the graph read them."""
    known = {k: v for k, v in graph.settings.items() if k in GraphSettings.__dataclass_fields__}
    return text_windows(model.tokenizer, corpus, GraphSettings(**known))


def _index(
    model: "HFModel", bench: _Bench, windows: Iterator[Window], shelf: Shelf, report: Progress
) -> tuple[Cells, list[int], list[np.ndarray]]:
    """Counts of every window, its document, and links (class, feature, carrier, how often)."""
    cells: list[Cells] = []
    documents: list[int] = []
    links: list[np.ndarray] = []
    done, limit = 0, bench.settings.tokens
    for number, group in enumerate(batches(windows)):
        texts = [w.tokens for w in group]
        make = partial(_read, model, bench, group)
        values = _kept(shelf, f"windows-{number:05}", texts, make).values
        links.append(values.pop("links"))
        documents += values.pop("document").tolist()
        cells.append(Cells(**values))
        done += int(cells[-1].positions.sum())
        report(min(done, limit or done), limit, "positions")
        if limit and done >= limit:
            break
    return joined(cells), documents, links


def _read(model: "HFModel", bench: _Bench, group: Sequence[Window]) -> Part:
    skip, dictionary = bench.skip_first, bench.station.dictionary.to(model.device)
    site = dictionary.site
    assert site is not None
    found = site_activations(model, [w.tokens for w in group], [site], skip_first=skip)
    z = dictionary.encode_sparse(found[site].to(model.device))
    kept = ~torch.from_numpy(bench.dense).to(z.feature.device)[z.feature]
    row, feature = z.row[kept].cpu().numpy(), z.feature[kept].cpu().numpy()
    cells, links, begin = [], [], 0
    for w in group:
        tokens = np.asarray(w.tokens[skip:], np.int64)
        at = slice(*np.searchsorted(row, [begin, begin + len(tokens)]))
        position, own = row[at] - begin, feature[at]
        begin += len(tokens)
        cells.append(count_window(
            tokens, position, own, labels=bench.labels, own_share=bench.own_share,
            n_shuffles=bench.settings.shuffles,
            rng=np.random.default_rng([bench.settings.seed, w.document, w.start]),
        ))  # fmt: skip
        links.append(_links(bench, tokens, position, own))
    whole = joined(cells)
    values = {name: getattr(whole, name) for name in Cells.__dataclass_fields__}
    values["document"] = np.array([w.document for w in group])
    return Part(values | {"links": _summed(np.concatenate(links))})


def _kept(
    shelf: Shelf, name: str, texts: Sequence[Sequence[int]], make: Callable[[], Part]
) -> Part:
    """A part that is made, or was kept and made of the same tokens."""
    mark = np.array([zlib.crc32(np.asarray(t, np.int64).tobytes()) for t in texts])

    def marked() -> Part:
        made = make()
        return Part(made.values | {MARK: mark}, made.rows)

    part = shelf.kept(name, marked)
    if not np.array_equal(part.values[MARK], mark):
        raise ResultError(
            f"{shelf.folder} holds parts of another text; use the same --corpus, another --output, "
            "or leave out --resume"
        )
    return Part({k: v for k, v in part.values.items() if k != MARK}, part.rows)


def _links(
    bench: _Bench, tokens: np.ndarray, position: np.ndarray, feature: np.ndarray
) -> np.ndarray:
    """Rows (label of the nearest source, feature, label of the carrier, its token, 1).

    A carrier that is no function token has the token -1: its class is enough.
    """
    label = bench.labels[tokens]
    nearest = find_sources(position, feature, label % 2 == 0, tokens).nearest
    again = nearest >= 0
    place = position[again]
    token = np.where(label[place] % 2 == 1, tokens[place], -1)
    return np.column_stack([label[nearest[again]], feature[again], label[place], token,
                            np.ones(again.sum(), np.int64)])  # fmt: skip


def _summed(links: np.ndarray) -> np.ndarray:
    """Equal rows as one, with their counts added."""
    keys, index = np.unique(links[:, :-1], axis=0, return_inverse=True)
    counts = np.bincount(index.reshape(-1), links[:, -1], len(keys)).astype(np.int64)
    return np.column_stack([keys, counts])


def _named(links: "pd.DataFrame", graph: FeatureGraph) -> "pd.DataFrame":
    """With the text of carriers that are function tokens."""
    text = dict(zip(graph.tokens["id"], graph.tokens["text"], strict=True))
    return links.assign(text=[str(text.get(t, "")) for t in links["token"]])


# -- predictions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    document: int
    tokens: tuple[int, ...]
    answer: int


def _trials(windows: Iterator[Window], bench: _Bench) -> list[_Trial]:
    """Predictions of content tokens, `context` tokens apart, a few of each document."""
    settings = bench.settings
    found: list[_Trial] = []
    used: dict[int, int] = {}
    for w in windows:
        for end in range(settings.context, len(w.tokens), settings.context):
            answer = int(w.tokens[end])
            if bench.function[answer] or used.get(w.document, 0) >= PER_DOCUMENT:
                continue
            used[w.document] = used.get(w.document, 0) + 1
            found.append(_Trial(w.document, w.tokens[end - settings.context : end], answer))
            if len(found) == settings.n_predictions:
                return found
    if len({t.document for t in found}) < 2:
        raise PromptError(
            f"{len(found)} predictions behind {settings.context} tokens in this text, of "
            f"{len(used)} documents; 2 documents are the least: give more text, a shorter "
            "context, or no predictions"
        )
    return found


def _traced(
    model: "HFModel", bench: _Bench, trial: _Trial, number: int, heads: HeadSet | None,
    shelf: Shelf,
) -> Part:  # fmt: skip
    def make() -> Part:
        settings = bench.settings
        trace = trace_prompt(
            model, bench.station.dictionary, trial.tokens, function=bench.function,
            target=trial.answer, objective=settings.objective,
            heads=None if heads is None else heads.heads, n_features=settings.n_features,
            n_exact=settings.n_exact, skip_first=bench.skip_first, left_out=bench.dense,
        )  # fmt: skip
        return Part(_carried(trace), trial_rows(trace, number, trial.document))

    return _kept(shelf, f"prediction-{number:04}", [trial.tokens], make)


def _carried(trace: PromptTrace) -> dict[str, Any]:
    """Shares of activations `[layer, head, pair]`, whether its carrier is a function token."""
    traced = trace.features[trace.features["traced"]]
    function = trace.positions["function"].to_numpy()[traced["position"]]
    share = trace.carried / traced["activation"].to_numpy()
    return {"share": share.astype(np.float32), "weight": trace.attention.astype(np.float32),
            "function": function.astype(np.uint8)}  # fmt: skip
