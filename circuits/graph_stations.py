"""The dictionaries of a function-token run: read from files, or trained on the text itself.

Activations that train lie in files while the run goes on, so that an interruption costs a few
windows; training itself goes on from its own checkpoints. A trained dictionary is
written in the SAELens layout, and can be used again as any other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from circuits.graph_plan import TRAINING, GraphSettings, Text, text_windows
from circuits.shelf import Job, Part, Shelf
from interp.errors import PromptError, ResultError
from interp.sites import Site
from probes.activations import batches, site_activations, sites_at
from probes.documents import Source
from probes.feature_files import read_dictionary, write_dictionary
from probes.feature_sites import check_dictionary
from probes.feature_training import TrainSettings, train_dictionary
from probes.features import Dictionary

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
LARGEST_HALF = 6e4
"""Activations beyond this do not fit half precision."""


@dataclass(frozen=True, eq=False)
class Station:
    """A dictionary and the name that results give it: "L15", "L15-seed1"."""

    key: str
    layer: int
    dictionary: Dictionary

    @property
    def site(self) -> Site:
        """Where the dictionary reads."""
        assert self.dictionary.site is not None
        return self.dictionary.site


def default_layers(n_layers: int) -> tuple[int, ...]:
    """A quarter, half and three quarters up."""
    return tuple(sorted({n_layers * i // 4 for i in (1, 2, 3)}))


def read_stations(model: "HFModel", settings: GraphSettings) -> list[Station]:
    """Dictionaries from files.

    Raises:
        ResultError, SiteError: not readable, or made for another model or site.
    """
    found: dict[str, Station] = {}
    given = settings.layers
    if given and len(given) != len(settings.features):
        raise PromptError(
            f"{len(settings.features)} dictionaries and {len(given)} layers were named; name a "
            "layer for each, or none where the files say it"
        )
    for i, where in enumerate(settings.features):
        site = Site(settings.site, given[i]) if given else None  # type: ignore[arg-type]
        dictionary = read_dictionary(where, site=site)
        check_dictionary(dictionary, model.spec)
        assert dictionary.site is not None
        layer, key = dictionary.site.layer, f"L{dictionary.site.layer}"
        while key in found:
            key += "'"
        found[key] = Station(key, layer, dictionary.to(model.device))
    return list(found.values())


def train_stations(
    model: "HFModel",
    source: Source,
    text: Text,
    settings: GraphSettings,
    *,
    shelf: Shelf,
    name: str,
    progress: Progress,
) -> list[Station]:
    """Dictionaries trained on the documents that the text sets aside for it.

    Raises:
        SiteError: a layer or site that the model does not have.
    """
    jobs = [(site, out, seed) for site, out in station_sites(model, settings)
            for seed in range(settings.seeds)]  # fmt: skip
    reads = tuple(dict.fromkeys(s for site, out, _ in jobs for s in (site, out) if s is not None))
    files = {site: _folder(shelf) / f"{name}-{site}.npy" for site in reads}

    def fill(job: tuple[Site, Site | None, int], folder: Path) -> None:
        site, out, seed = job
        _store(model, source, text, settings, files, shelf, name, progress)
        key = f"{name}-{_key(site, seed)}"
        trained = train_dictionary(
            np.load(files[site], mmap_mode="r"), _settings(settings, seed), site=site,
            out_site=out, targets=None if out is None else np.load(files[out], mmap_mode="r"),
            name=key, parts=_folder(shelf) / f"{key}-training",
            device=model.device, progress=progress,
        )  # fmt: skip
        write_dictionary(trained, folder)

    made = shelf.folders(
        [Job(f"{name}-{_key(site, seed)}", partial(fill, (site, out, seed)), "training")
         for site, out, seed in jobs]
    )  # fmt: skip
    stations = []
    for (site, _, seed), where in zip(jobs, made.values(), strict=True):
        dictionary = read_dictionary(str(where))
        stations.append(Station(_key(site, seed), site.layer, dictionary.to(model.device)))
    return stations


def station_sites(model: "HFModel", settings: GraphSettings) -> list[tuple[Site, Site | None]]:
    """What dictionaries to be trained read, and what they reconstruct where that is another site.

    Raises:
        SiteError: a layer that the model does not have.
    """
    layers = settings.layers or default_layers(model.spec.n_layers)
    out = settings.out_site
    made = sites_at(model, out, layers) if out else [None] * len(layers)
    return list(zip(sites_at(model, settings.site, layers), made, strict=True))


# -- helpers ----------------------------------------------------------------------------------


def _key(site: Site, seed: int) -> str:
    return f"L{site.layer}" + (f"-seed{seed}" if seed else "")


def _folder(shelf: Shelf) -> Path:
    assert shelf.folder is not None
    return shelf.folder


def _settings(settings: GraphSettings, seed: int) -> TrainSettings:
    return TrainSettings(
        d_dict=settings.d_dict, k=settings.k, activation=settings.activation,
        steps=settings.steps, batch=settings.batch, seed=settings.seed + seed,
    )  # fmt: skip


def _store(
    model: "HFModel", source: Source, text: Text, settings: GraphSettings,
    files: dict[Site, Path], shelf: Shelf, name: str, progress: Progress,
) -> None:  # fmt: skip
    """Activations of the documents for training, one file a site; goes on where it was."""
    total = text.size(TRAINING)
    state = shelf.read(f"{name}-stored")
    done = 0 if state is None else int(state.rows[0]["positions"])
    if done == total:
        return
    position = 0
    for group in batches(w for w in text_windows(model.tokenizer, source, settings)
                         if text.roles[w.document] == TRAINING):  # fmt: skip
        sizes = [max(0, len(w.tokens) - settings.skip_first) for w in group]
        position += sum(sizes)
        if position <= done or not sum(sizes):
            continue
        found = site_activations(
            model, [w.tokens for w in group], list(files), skip_first=settings.skip_first
        )
        for site, path in files.items():
            _put(path, found[site].numpy(), position - sum(sizes), total)
        shelf.write(f"{name}-stored", Part({}, [{"positions": position}]))
        progress(position, total, "positions read for training")


def _put(path: Path, rows: np.ndarray, start: int, total: int) -> None:
    """Write rows into a file of all of them, in half precision where the first ones allow it."""
    if start == 0:
        half = np.abs(rows).max() < LARGEST_HALF / 8
        kind = np.dtype(np.float16 if half else np.float32)
        shape = (total, rows.shape[1])
        file = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
    else:
        file = np.load(path, mmap_mode="r+")
    if file.dtype == np.float16 and np.abs(rows).max() > LARGEST_HALF:
        raise ResultError(
            f"an activation of {np.abs(rows).max():.3g} does not fit the half precision that the "
            "first ones allowed; leave out more first positions (--skip-first)"
        )
    file[start : start + len(rows)] = rows
    file.flush()
