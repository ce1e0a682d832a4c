"""Short questions for patching: one needle a context, a twin for each, baselines of both."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from circuits.candidates import prompt_settings
from circuits.case_metrics import FORCED
from circuits.interventions import forced_metrics, row_logits
from circuits.plan import ScanSettings, make_plan
from interp.errors import PromptError, ResultError
from interp.sites import Edit, Site
from interp.trace import Prefix, SiteRead
from probes.cases import scenes
from probes.needle import load_needles
from probes.spreads import Spread, spreads

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

LENGTH = 128
"""Tokens of context: every patched row runs from the needle to the answer."""


@dataclass(frozen=True, eq=False)
class Patchable:
    """A spread with its prefix and the unpatched metrics of both prompts, `[metric]`."""

    spread: Spread
    prefix: Prefix
    original: np.ndarray
    twin: np.ndarray

    @property
    def name(self) -> str:
        """The needle's id: the cluster of an interval."""
        return self.spread.case.trial.needle


def patchables(
    model: "HFModel",
    prompts: Mapping[str, Any] | None = None,
    *,
    n_needles: int,
    length: int = LENGTH,
    depth: float = 0.5,
    seed: int = 0,
    skip: Collection[str] = (),
) -> list[Patchable]:
    """Questions whose two prompts the model answers apart: greedy gives the original's answer to
    the original and not to the twin.

    Args:
        prompts: settings of a scan (`INHERITED`); our own needles and texts when None.
        skip: ids of needles that must not be used.

    Raises:
        ResultError: fewer than two such questions.
    """
    plain = prompt_settings(prompts or {})
    settings = ScanSettings(**plain, lengths=(length,), depths=(depth,), seed=seed + 11)
    out: list[Patchable] = []
    for spread in spreads(_one_each(model, settings, skip)):
        if len(out) == n_needles:
            break
        found = _patchable(model, spread)
        exact = FORCED.index("exact")
        if found.original[exact] and not found.twin[exact]:
            out.append(found)
    if len(out) < 2:
        raise ResultError(
            f"{len(out)} questions have an answer that follows the needle's value, 2 are needed: "
            "raise --cue-words, shorten --length, or use a model that answers such questions"
        )
    return out


def _one_each(model: "HFModel", settings: ScanSettings, skip: Collection[str]) -> tuple:
    """Scenes of one needle each, for as many needles as there are and the text has room for."""
    needles = load_needles(settings.needles or None)
    ids = {n.id for n in needles if not settings.needles and n.language in settings.languages}
    ids = (ids or {n.id for n in needles}) - set(skip)
    count = max(1, len(ids))
    while True:
        try:
            plan = make_plan(model, replace(settings, n_haystacks=count), only=ids)
        except PromptError:
            if count <= 2:
                raise
            count //= 2
            continue
        return scenes(plan.contexts, plan.trials, fmt=plan.fmt)


def _patchable(model: "HFModel", spread: Spread) -> Patchable:
    prefix = model.prefill(spread.before)
    both = [spread.tokens, spread.twin]
    logits = model.extend(prefix, both, logits=[spread.rows] * 2).logits
    first, second = (forced_metrics(x, spread.case) for x in logits.split(len(spread.rows)))
    return Patchable(spread, prefix, first, second)


def activations(
    model: "HFModel", p: Patchable, sites: Sequence[Site], *, twin: bool
) -> Mapping[Site, Tensor]:
    """Activations of all positions from the needle on: `[pos, ...]`."""
    tokens = p.spread.twin if twin else p.spread.tokens
    read = SiteRead(tuple(sites), (tuple(range(len(tokens))),))
    return model.extend(p.prefix, [tokens], read=[read]).sites


def run_rows(
    model: "HFModel", p: Patchable, n_rows: int, edits: Sequence[Edit], *, twin: bool = False
) -> np.ndarray:
    """Forced metrics `[row, metric]` of the original (or the twin) under edits of its rows."""
    tokens = p.spread.twin if twin else p.spread.tokens
    found = row_logits(model, p.prefix, tokens, p.spread.rows, n_rows=n_rows, edits=edits)
    return np.stack([forced_metrics(logits, p.spread.case) for logits in found])


def class_means(
    model: "HFModel", reference: Sequence[Patchable], sites: Sequence[Site]
) -> dict[Site, dict[str, Tensor]]:
    """Mean activation of each site by position class, every token counted once."""
    sums: dict[Site, dict[str, Tensor]] = {s: {} for s in sites}
    counts: dict[str, int] = {}
    for p in reference:
        seen = activations(model, p, sites, twin=False)
        for name, positions in p.spread.positions.items():
            counts[name] = counts.get(name, 0) + len(positions)
            for site in sites:
                part = seen[site][list(positions)].float().sum(0)
                old = sums[site].get(name)
                sums[site][name] = part if old is None else old + part
    return {s: {c: v / counts[c] for c, v in by.items()} for s, by in sums.items()}


def mean_rows(means: Mapping[str, Tensor], classes: Sequence[str]) -> Tensor:
    """The mean activation for each position: `[pos, ...]`."""
    return torch.stack([means[c] for c in classes])
