"""`circuits.function_tokens`: from a model and a text to the token-feature graph and its controls.

The text is divided, dictionaries are read or trained, and every block of the text is run once: one
forward, all dictionaries. What is counted is kept block by block; everything else follows from the
counts (`circuits.graph_tables`). After arXiv 2510.08203, with the controls that it lacks.
"""

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.count_files import merge_counts, read_counts, write_counts
from circuits.feature_counting import Counter
from circuits.given import with_options
from circuits.graph_plan import (
    TRAINING,
    Blocks,
    GraphSettings,
    Text,
    check_settings,
    divide,
    divided,
    text_windows,
)
from circuits.graph_result import FeatureGraph, StationResult
from circuits.graph_stations import (
    Station,
    read_stations,
    station_sites,
    train_stations,
)
from circuits.graph_tables import class_table, tables
from circuits.shelf import Job, Part, Parts, Shelf, model_label, open_shelf
from interp.sites import Site
from interp.store import provenance
from probes.activations import batches, shuffled_weights, site_activations
from probes.documents import Source, Window
from probes.feature_quality import ce_recovered, quality

if TYPE_CHECKING:
    from torch import Tensor

    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
KINDS = ("block", "shuffled")
"""Counts of a block: with its own tokens, and with those of each window in random order."""
QUALITY_WINDOWS, SPLICED_WINDOWS = 16, 4
"""Windows, of the first block, on which a dictionary is judged, and into which its reconstruction
is put; none of them trained it."""


def function_tokens(
    model: "HFModel",
    corpus: Source,
    settings: GraphSettings | None = None,
    *,
    parts: Parts = None,
    progress: Progress | None = None,
    **options: Any,
) -> FeatureGraph:
    """Count which tokens activate which features, and tell it from mere frequency.

    Args:
        corpus: files, folders, patterns, a `datasets` data set, or a list of texts.
        settings: what to count; `options` are fields of it (`layers`, `features`, ...).
        parts: a folder in which finished parts are kept, to go on after an interruption; the
            counts of the result lie there too until it is saved.
        progress: called with what is done, how much there is, and of what.

    Raises:
        PromptError: text that is missing, unreadable or too short for what was asked.
        ResultError, SiteError: a dictionary that cannot be read or does not fit the model.
        UnknownNameError: an unknown rule, control, site or way to begin.
    """
    settings = with_options(settings or GraphSettings(), options)
    check_settings(settings)
    report = progress or (lambda *_: None)
    start = time.perf_counter()
    text = divide(
        model.tokenizer, corpus, settings, n_vocab=model.spec.d_vocab,
        progress=lambda n: report(n, 0, "tokens of the text"),
    )  # fmt: skip
    # whatever can be refused is refused before a folder is made
    given = read_stations(model, settings) if settings.features else None
    if given is None:
        station_sites(model, settings)
    holder = _Scratch() if parts is None else None
    folder = holder.folder if holder else parts
    shelf = open_shelf(folder, asdict(settings) | model_label(model) | {"text": text.digest})
    classes = class_table(model.tokenizer, text.counts, settings)
    found = _measure(model, corpus, text, settings, classes, shelf, "graph", report, given)
    if settings.control == "shuffled":
        found += _control(model, corpus, text, settings, classes, shelf, report)
    made = provenance(model, seconds=time.perf_counter() - start)
    about = {
        "tokens": text.counts.n_tokens, "documents": text.counts.n_documents,
        "positions": text.size(), "training_positions": text.size(TRAINING), "digest": text.digest,
        "blocks": text.n_blocks,
    }  # fmt: skip
    stations = {s.key: s for s in found}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}
    return FeatureGraph(plain, made, about, classes, stations, holder)


class _Scratch:
    """A folder for the parts of a run that nobody wants to keep; it goes when the result goes."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="mnemoscope-")
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def _measure(
    model: "HFModel", corpus: Source, text: Text, settings: GraphSettings, classes: Any,
    shelf: Shelf, name: str, report: Progress, given: list[Station] | None = None,
) -> list[StationResult]:  # fmt: skip
    stations = (
        train_stations(model, corpus, text, settings, shelf=shelf, name=name, progress=report)
        if given is None
        else given
    )
    judged = _judged(model, corpus, text, settings, stations, shelf, name)
    counted = _count(model, corpus, text, settings, stations, shelf, name, report)
    assert shelf.folder is not None
    results = []
    for done, s in enumerate(stations):
        report(done, len(stations), "tables")
        blocks, shuffled = (
            [read_counts(block / s.key / kind) for block in counted] for kind in KINDS
        )
        whole = merge_counts(blocks, shelf.folder / f"{name}-{s.key}-counts")
        results.append(
            StationResult(
                key=s.key,
                layer=s.layer,
                site=str(s.site),
                held=s.dictionary,
                quality=judged[s.key],
                counts=whole,
                tables=tables(whole, blocks, shuffled, classes, settings),
            )  # fmt: skip
        )
    return results


def _count(
    model: "HFModel", corpus: Source, text: Text, settings: GraphSettings,
    stations: Sequence[Station], shelf: Shelf, name: str, report: Progress,
) -> list[Path]:  # fmt: skip
    """Run every block that has not been counted yet: one forward, all dictionaries.

    Gives the folder of each block, with the counts of every dictionary and kind in it.
    """
    blocks = Blocks(model.tokenizer, corpus, text, settings)
    done, total = 0, text.size()

    def tell(n: int = 0) -> None:
        report(done + n, total, "positions counted")

    def fill(block: int, folder: Path) -> None:
        counters = {
            (s.key, kind): Counter(model.spec.d_vocab, s.dictionary.d_dict)
            for s in stations
            for kind in KINDS
        }
        n = 0
        for group in batches(blocks.windows(block)):
            n += _read(model, group, stations, counters, settings)
            tell(n)
        for (key, kind), counter in counters.items():
            write_counts(counter.counts(), folder / key / kind)

    sizes = {f"{name}-block-{b:03}": text.size(b) for b in range(text.n_blocks)}

    def tick(job: Job) -> None:
        nonlocal done
        done += sizes[job.name]
        tell()

    jobs = [Job(block, partial(fill, b)) for b, block in enumerate(sizes)]
    return list(shelf.folders(jobs, tick).values())


def _read(
    model: "HFModel", group: Sequence[Window], stations: Sequence[Station],
    counters: Mapping[tuple[str, str], Counter], settings: GraphSettings,
) -> int:  # fmt: skip
    """Count what fires in some windows; how many positions they hold.

    Also with the tokens of each window in random order: what a feature would meet if it were blind
    to the token, and knew the topic.
    """
    skip = settings.skip_first
    sites = list(dict.fromkeys(s.site for s in stations))
    found = site_activations(model, [w.tokens for w in group], sites, skip_first=skip)
    kept = [np.array(w.tokens[skip:], np.int64) for w in group]
    ends = np.cumsum([len(k) for k in kept])
    shuffled = [
        np.random.default_rng([settings.seed, w.document, w.start]).permutation(k)
        for w, k in zip(group, kept, strict=True)
    ]
    for s in stations:
        fired = s.dictionary.encode_sparse(found[s.site].to(model.device))
        row, feature, value = (
            x.float().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()
            for x in (fired.row, fired.feature, fired.value)
        )
        cuts = np.searchsorted(row, [0, *ends])
        for i, window in enumerate(group):
            own = slice(cuts[i], cuts[i + 1])
            at = row[own] - (ends[i] - len(kept[i]))
            for kind, tokens in zip(KINDS, (kept[i], shuffled[i]), strict=True):
                counters[s.key, kind].add(tokens, window.document, at, feature[own], value[own])
    return int(ends[-1])


def _judged(
    model: "HFModel", corpus: Source, text: Text, settings: GraphSettings,
    stations: Sequence[Station], shelf: Shelf, name: str,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """How well each dictionary stands for the activations, on text that did not train it."""
    skip = settings.skip_first

    @cache
    def read() -> tuple[list[list[int]], "Mapping[Site, Tensor]"]:
        windows = _first_windows(model, corpus, text, settings)
        both = (site for s in stations for site in (s.site, s.dictionary.out_site))
        sites = list(dict.fromkeys(site for site in both if site is not None))
        return windows, site_activations(model, windows, sites, skip_first=skip)

    def measure(station: Station) -> Part:
        windows, found = read()
        dictionary = station.dictionary
        target = None
        if dictionary.out_site is not None:
            target = found[dictionary.out_site].to(model.device)
        own = quality(dictionary, found[station.site].to(model.device), target)
        ce = ce_recovered(model, dictionary, windows[:SPLICED_WINDOWS], skip_first=skip)
        about = {f"ce_{k}": v for k, v in asdict(ce).items()} | {"ce_recovered": ce.recovered}
        return Part({}, [asdict(own) | about])

    jobs = {s.key: Job(f"{name}-{s.key}-quality", partial(measure, s)) for s in stations}
    made = shelf.parts(list(jobs.values()))
    return {key: made[job.name].rows[0] for key, job in jobs.items()}


def _first_windows(
    model: "HFModel", corpus: Source, text: Text, settings: GraphSettings
) -> list[list[int]]:
    found: list[list[int]] = []
    for window in text_windows(model.tokenizer, corpus, settings):
        if text.roles[window.document] >= 0 and len(window.tokens) > settings.skip_first + 1:
            found.append(list(window.tokens))
        if len(found) == QUALITY_WINDOWS:
            break
    return found


def _control(
    model: "HFModel", corpus: Source, text: Text, settings: GraphSettings, classes: Any,
    shelf: Shelf, report: Progress,
) -> list[StationResult]:  # fmt: skip
    """The same of the model with shuffled weights, on less text."""
    n = settings.control_tokens
    own = replace(settings, features=(), tokens=n, train_tokens=n, seeds=1)
    text = divided(text, own)
    with _beside(shuffled_weights(model, seed=settings.seed)) as other:
        found = _measure(other, corpus, text, own, classes, shelf, "shuffled", report)
    return [replace(s, key=f"{s.key}-shuffled") for s in found]


@contextmanager
def _beside(model: "HFModel") -> Iterator["HFModel"]:
    """A second model, whose memory is given back as soon as it has served."""
    try:
        yield model
    finally:
        if model.device.type == "cuda":
            model.hf.to("cpu")
