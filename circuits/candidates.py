"""Which heads are tested, and on which needles: selection and test are kept apart.

A head set comes from a scan, whose ranking is known trial by trial, or from anywhere else. A scan
that left needles unused is tested on those; else its needles are split by seed, and the heads are
ranked again on one half alone.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.head_sets import HeadSet, check_heads, read_heads
from circuits.plan import ScanSettings
from circuits.scan_result import ScanResult
from interp.errors import ResultError, UnknownNameError
from interp.sites import Head
from probes.needle import load_needles

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

INHERITED = ("style", "cue_words", "haystack", "needles", "kinds", "languages")
"""Prompt settings that a validation takes over from the scan."""


@dataclass(frozen=True)
class Ask:
    """What decides the prompts: test needles wanted, tokens of context (0: the shortest that was
    scanned, or 512), depths, overrides of the scan's prompt settings, seed.
    """

    n_needles: int
    length: int
    depths: tuple[float, ...]
    prompts: tuple[tuple[str, Any], ...]
    seed: int


@dataclass(frozen=True)
class Candidates:
    """The heads under test, and the needles that may test them.

    Attributes:
        ranking: all ranked heads, best first; the candidates are its first `top`.
        scores: `[layer, head]` of the ranking, if it has scores.
        sink: attention-sink scores `[layer, head]`, if known.
        selection, test: needle ids, disjoint.
        notes: how they were split.
    """

    ranking: tuple[Head, ...]
    scores: np.ndarray | None
    sink: np.ndarray | None
    selection: tuple[str, ...]
    test: tuple[str, ...]
    source: str
    notes: tuple[str, ...]


def find_candidates(model: "HFModel", heads: Any, ask: Ask) -> tuple[Candidates, ScanSettings]:
    """Read a ranking, check it against the model, split the needles.

    Raises:
        ResultError, SiteError: unreadable, of another model, unknown heads, none at all.
    """
    scan = _as_scan(heads)
    if scan is not None:
        _same_model(scan, model)
        base = {k: scan.settings[k] for k in INHERITED if k in scan.settings}
        prompts = _prompts(base | dict(ask.prompts), ask, scan.settings.get("lengths"))
        return _from_scan(scan, ask, prompts), prompts
    found = (
        heads if isinstance(heads, HeadSet)
        else read_heads(heads, top=None, n_groups=model.spec.n_groups, n_heads=model.spec.n_heads)
    )  # fmt: skip
    check_heads(found.heads, model.spec)
    prompts = _prompts(dict(ask.prompts), ask, None)
    return _from_list(model, found, ask, prompts), prompts


def _as_scan(heads: Any) -> ScanResult | None:
    if isinstance(heads, ScanResult):
        return heads
    is_folder = isinstance(heads, str | Path) and Path(heads).is_dir()
    return ScanResult.load(heads) if is_folder else None


def _same_model(scan: ScanResult, model: "HFModel") -> None:
    mine, theirs = model.source.weight_hash, scan.provenance.weight_hash
    if mine is not None and theirs is not None and mine != theirs:
        raise ResultError(
            f"the scan is of {scan.provenance.model} with weights {theirs[:12]}, the model loaded "
            f"is {model.source.name} with {mine[:12]}; load the same model, or scan this one"
        )


def prompt_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt settings as `ScanSettings` takes them.

    Raises:
        UnknownNameError: one that is no prompt setting.
    """
    for name in given:
        if name not in INHERITED:
            raise UnknownNameError("prompt setting", name, INHERITED)
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _prompts(base: dict[str, Any], ask: Ask, scanned: Any) -> ScanSettings:
    plain = prompt_settings(base)
    length = ask.length or (min(scanned) if scanned else 512)
    return ScanSettings(
        **plain, lengths=(length,), depths=ask.depths, n_haystacks=1, seed=ask.seed + 1
    )


def _needle_ids(prompts: ScanSettings) -> list[str]:
    languages = prompts.languages if not prompts.needles else ()
    return [
        n.id
        for n in load_needles(prompts.needles or None)
        if (not prompts.kinds or n.kind in prompts.kinds)
        and (not languages or n.language in languages)
    ]


def _from_scan(scan: ScanResult, ask: Ask, prompts: ScanSettings) -> Candidates:
    used = sorted(set(scan.trials["needle"]))
    everything = _needle_ids(prompts)
    unused = [n for n in everything if n not in used]
    random.Random(ask.seed).shuffle(unused)
    if len(unused) >= ask.n_needles:
        selection, test = used, unused
        note = f"tested on needles that the scan did not use ({len(unused)} there are)"
    else:
        shuffled = [n for n in used if n in set(everything)]
        random.Random(ask.seed).shuffle(shuffled)
        selection, test = shuffled[::2], [*shuffled[1::2], *unused]
        note = (
            f"the scan used most needles: heads ranked again on {len(selection)} of them, tested "
            f"on the other {len(test)}"
        )
    keep = scan.gated() & scan.trials["needle"].isin(selection).to_numpy()
    if not keep.any():
        raise ResultError(scan.diagnosis())
    scores = scan.values["copy"][keep].mean(0)
    sink = scan.roles["sink"].mean(0) if "sink" in scan.roles else None
    order = np.argsort(-np.nan_to_num(scores, nan=-np.inf), axis=None, kind="stable")
    ranking = tuple(
        Head(*map(int, divmod(i, scores.shape[1]))) for i in order
        if not np.isnan(scores.reshape(-1)[i])
    )  # fmt: skip
    source = f"copy score of the scan of {scan.provenance.model}"
    return Candidates(ranking, scores, sink, tuple(selection), tuple(test), source, (note,))


def _from_list(model: "HFModel", found: HeadSet, ask: Ask, prompts: ScanSettings) -> Candidates:
    ids = _needle_ids(prompts)
    random.Random(ask.seed).shuffle(ids)
    cut = max(1, len(ids) // 3)
    note = (
        "the heads were given, not found here: whether the prompts that chose them resemble the "
        "test prompts is not known"
    )
    scores = None
    if found.scores is not None:  # a file names no more heads than it has
        scores = np.full((model.spec.n_layers, model.spec.n_heads), np.nan)
        a, b = (min(x, y) for x, y in zip(found.scores.shape, scores.shape, strict=True))
        scores[:a, :b] = found.scores[:a, :b]
    return Candidates(
        found.heads, scores, None, tuple(ids[:cut]), tuple(ids[cut:]), found.source, (note,)
    )
