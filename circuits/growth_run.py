"""`circuits.feature_growth`: features that fire on a text, checkpoint by checkpoint.

Arxiv 2510.08203 trains a dictionary for each checkpoint, with other penalties, and counts the
latents that fire: a count that its dictionary caps and its sparsity moves. Here the same positions
are counted with one dictionary for all checkpoints beside one for each, with what the counts depend
on in the same row, and with a model of shuffled weights.
"""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.checkpoints import Models, file_name, named_models, same_tokenizer, visit
from circuits.given import with_options
from circuits.growth_counts import alive_features, matched_alive, readings
from circuits.growth_plan import GrowthSettings, check_growth
from circuits.growth_result import GrowthResult
from circuits.shelf import Shelf, model_label
from interp.errors import PromptError
from interp.sites import Site
from interp.store import Provenance, provenance
from probes.activations import batches, shuffled_weights, site_activations, sites_at
from probes.beginnings import beginning
from probes.documents import Source, stream_documents, windows
from probes.feature_files import read_dictionary, write_dictionary
from probes.feature_sites import check_dictionary
from probes.feature_training import TrainSettings, train_dictionary
from probes.features import Dictionary

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

Progress = Callable[[int, int, str], None]
Given = Mapping[str, Sequence[Dictionary]]


@dataclass(frozen=True, eq=False)
class _Plan:
    """Tokens of windows that are counted and that train, and what they stand for."""

    counted: list[tuple[int, ...]]
    training: list[tuple[int, ...]]
    tokenizer: str
    digest: str


@dataclass(frozen=True, eq=False)
class _Shared:
    """The dictionary that all models share, and its L0 at the last model."""

    dictionary: Dictionary
    l0: float


def feature_growth(
    models: Models,
    corpus: Source,
    settings: GrowthSettings | None = None,
    *,
    shared: Sequence[Dictionary] = (),
    separate: Given | None = None,
    load: dict[str, Any] | None = None,
    parts: str | Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> GrowthResult:
    """Count features that fire at least once on the same positions, for each of a series of models.

    Args:
        models: see `circuits.loss_groups`; the last one trains the shared dictionary.
        settings: what to count; `options` are fields of it (`layers`, `tokens`, ...).
        shared: the dictionary of all models, one a layer, in the order of `layers`; trained on the
            last model if empty.
        separate: dictionaries of each model by name, one a layer, instead of trained ones.
        load, parts: see `circuits.loss_groups`.
        progress: called with models done, models in all, and the model.

    Raises:
        PromptError: too little text; dictionaries that are not one a layer.
        ModelError, SiteError, ResultError: see `circuits.loss_groups`; a dictionary that does not
            fit.
    """
    settings = with_options(settings or GrowthSettings(), options)
    check_growth(settings)
    report = progress or (lambda *_: None)
    refs = named_models(models)
    job = _Job(settings, tuple(shared), separate or {}, None if parts is None else Path(parts))
    order = [list(refs)[-1], *list(refs)[:-1]]
    rows: dict[str, list[dict[str, Any]]] = {}
    made: dict[str, Provenance] = {}
    for done, name in enumerate(order):
        report(done, len(order), name)
        rows[name], made[name] = visit(refs[name], functools.partial(job.run, corpus, name), load)
    report(len(order), len(order), "")
    flat = [row for name in refs for row in rows[name] if not row["control"]]
    flat += [row for row in rows[order[0]] if row["control"]]
    told = readings(flat)
    table = [row | {"reading": words} for row, words in zip(flat, told, strict=True)]
    dictionaries = {f"L{s.dictionary.site.layer}": s.dictionary for s in job.shared.values()
                    if s.dictionary.site is not None}  # fmt: skip
    about = {"digest": job.plan().digest, "positions": table[0]["positions"]}
    return GrowthResult.of(asdict(settings), {n: made[n] for n in refs}, about, table, dictionaries)


class _Job:
    """What the models of a series share: the text, read by the first, and its dictionaries."""

    def __init__(
        self, settings: GrowthSettings, given: tuple[Dictionary, ...], separate: Given,
        folder: Path | None,
    ) -> None:  # fmt: skip
        self.settings, self.given, self.separate, self.folder = settings, given, separate, folder
        self.shared: dict[Site, _Shared] = {}
        self._plan: _Plan | None = None
        self._last = ""

    def plan(self) -> _Plan:
        """The text, once a model has read it."""
        assert self._plan is not None
        return self._plan

    def run(
        self, corpus: Source, name: str, model: "HFModel"
    ) -> tuple[list[dict[str, Any]], Provenance]:
        """Rows of one model; the first also gives those of the control."""
        start = time.perf_counter()
        leading = self._plan is None
        if self._plan is None:
            self._plan = _read(model, corpus, self.settings)
        same_tokenizer(model, self._plan.tokenizer, name)
        layers = self.settings.layers or (model.spec.n_layers // 2,)
        sites = sites_at(model, self.settings.site, layers)
        if leading:
            self._last = name
            self._share(model, sites)
        rows = self._rows(model, sites, name, control=False)
        if leading and self.settings.control == "shuffled":
            other = shuffled_weights(model, seed=self.settings.seed)
            rows += self._rows(other, sites, f"{name} (weights shuffled)", control=True)
        return rows, provenance(model, seconds=time.perf_counter() - start)

    def _share(self, model: "HFModel", sites: list[Site]) -> None:
        """Read or train the shared dictionaries, and take their L0 at this model."""
        if self.given:
            _one_each(self.given, sites, "shared")
        found = _activations(model, self.plan().counted, sites, self.settings)
        for i, site in enumerate(sites):
            own = self.given[i] if self.given else self._trained(model, site)
            own = replace(own, site=site) if own.site is None else own
            check_dictionary(own, model.spec)
            own = own.to(model.device)
            self.shared[site] = _Shared(own, alive_features(own, found[site])["l0"])

    def _trained(self, model: "HFModel", site: Site) -> Dictionary:
        where = None if self.folder is None else self.folder / f"shared-{site}"
        if where is not None and (where / "cfg.json").exists():
            return read_dictionary(str(where))
        rows = _activations(model, self.plan().training, [site], self.settings)[site]
        own = _train(rows, site, self.settings, f"shared-{site}")
        if where is None:
            return own
        write_dictionary(own, where)
        return read_dictionary(str(where))

    def _rows(
        self, model: "HFModel", sites: list[Site], name: str, *, control: bool
    ) -> list[dict[str, Any]]:
        digests = [self.shared[s].dictionary.digest for s in sites]
        digests += [d.digest for d in self.separate.get(name, ())]
        label = asdict(self.settings) | model_label(model)
        label |= {"text": self.plan().digest, "dictionaries": digests}
        folder = None if self.folder is None else self.folder / file_name(name)
        make = functools.partial(self._counted, model, sites, name, control)
        return Shelf(folder, label).kept_rows("rows", make)

    def _counted(
        self, model: "HFModel", sites: list[Site], name: str, control: bool
    ) -> list[dict[str, Any]]:
        found = _activations(model, self.plan().counted, sites, self.settings)
        separate = self._separate(model, sites, name)
        rows = []
        for i, site in enumerate(sites):
            used = {"shared": self.shared[site].dictionary}
            if separate:
                used["own"] = separate[i].to(model.device)
            for kind, dictionary in used.items():
                asked = self.shared[site].l0
                matched = matched_alive(dictionary, found[site], asked)
                rows.append({
                    "model": name, "layer": site.layer, "dictionary": kind, "control": control,
                    **alive_features(dictionary, found[site]),
                    "l0_asked": asked, "alive_matched": matched.alive, "l0_matched": matched.l0,
                    "threshold_factor": matched.factor, "positions": len(found[site]),
                })  # fmt: skip
        return rows

    def _separate(self, model: "HFModel", sites: list[Site], name: str) -> Sequence[Dictionary]:
        if name in self.separate:
            _one_each(self.separate[name], sites, name)
            return self.separate[name]
        if self.separate or self.settings.separate == "none":
            return ()
        if name == self._last and not self.given:
            return [self.shared[site].dictionary for site in sites]
        found = _activations(model, self.plan().training, sites, self.settings)
        return [_train(found[s], s, self.settings, f"own-{s}") for s in sites]


# -- helpers ----------------------------------------------------------------------------------


def _read(model: "HFModel", corpus: Source, settings: GrowthSettings) -> _Plan:
    """Windows of every second document, and of the others, until there are enough positions."""
    wanted = (settings.tokens, settings.train_tokens)
    held: tuple[list[tuple[int, ...]], ...] = ([], [])
    got = [0, 0]
    bos = beginning(model.tokenizer, settings.bos)
    texts = stream_documents(corpus, field=settings.field)
    digest = hashlib.sha256()
    for window in windows(texts, model.tokenizer, length=settings.length, bos=bos):
        use = window.document % 2
        size = len(window.tokens) - settings.skip_first
        if size > 0 and got[use] < wanted[use]:
            kept = window.tokens[: settings.skip_first + min(size, wanted[use] - got[use])]
            held[use].append(kept)
            got[use] += len(kept) - settings.skip_first
            digest.update(np.array([use, *kept], np.int64).data)
        if got == list(wanted):
            break
    if got != list(wanted):
        raise PromptError(
            f"the text gives {got[0]:,} positions to count and {got[1]:,} to train on, "
            f"{wanted[0]:,} and {wanted[1]:,} were asked for; give more text, or ask for less"
        )
    return _Plan(held[0], held[1], model.source.tokenizer_hash, digest.hexdigest()[:16])


def _activations(
    model: "HFModel", tokens: list[tuple[int, ...]], sites: list[Site], settings: GrowthSettings
) -> dict[Site, Float[Tensor, "row width"]]:
    skip = settings.skip_first
    parts = [site_activations(model, group, sites, skip_first=skip) for group in batches(tokens)]
    return {site: torch.cat([part[site] for part in parts]).to(model.device) for site in sites}


def _train(rows: Tensor, site: Site, settings: GrowthSettings, name: str) -> Dictionary:
    own = TrainSettings(
        d_dict=settings.d_dict, k=settings.k, activation=settings.activation,
        steps=settings.steps, batch=settings.batch, seed=settings.seed,
    )  # fmt: skip
    return train_dictionary(rows, own, site=site, name=name, device=rows.device)


def _one_each(dictionaries: Sequence[Dictionary], sites: list[Site], whose: str) -> None:
    if len(dictionaries) != len(sites):
        raise PromptError(
            f"{whose}: {len(dictionaries)} dictionaries for {len(sites)} layers; give one a layer"
        )
