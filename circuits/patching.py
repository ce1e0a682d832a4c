"""Activation patching both ways between a question and its twin, at every kind of site.

Noising puts the twin's activation into the original run: what the answer cannot do without.
Denoising puts the original's into the twin's run: what brings the answer back. The two are not
mirror images (arXiv 2404.15255), so both are run and each row names its direction.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attribution import exact, rank_agreement, screen
from circuits.case_metrics import FORCED
from circuits.patch_prompts import LENGTH, Patchable, activations, patchables, run_rows
from circuits.patch_result import PatchResult
from circuits.shelf import Job, Part, Parts, model_label, open_shelf
from circuits.tally import Progress, Tally
from interp.errors import PromptError, SiteError
from interp.sites import Edit, Head, Site
from interp.store import provenance
from probes.spreads import CLASSES

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

DIRECTIONS = ("noising", "denoising")
PATCHED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class PatchSettings:
    """What is patched.

    Attributes:
        sites: kinds of sites; `z` is screened and confirmed head by head.
        layers: how many layers are patched, evenly spaced from the first to the last; 0: all.
        n_needles: questions, a needle each.
        length, depth: tokens of context, and where the needle begins.
        n_confirm: heads that the screen ranks first and that are patched exactly; as many others
            are drawn at random.
        prompts: overrides of the scan's prompt settings.
    """

    sites: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out", "z")
    layers: int = 8
    n_needles: int = 4
    length: int = LENGTH
    depth: float = 0.5
    n_confirm: int = 16
    prompts: tuple[tuple[str, Any], ...] = ()
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for result files."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return plain | {"prompts": dict(self.prompts)}


def patch(
    model: "HFModel",
    settings: PatchSettings | None = None,
    *,
    parts: Parts = None,
    progress: Progress | None = None,
    **options: Any,
) -> PatchResult:
    """Patch every site, layer and position class, both ways.

    Raises:
        SiteError: a kind of site that cannot be patched here.
        PromptError, ResultError: too few questions that the model answers.
    """
    started = time.monotonic()
    settings = settings or PatchSettings(**options)
    chosen = _chosen_layers(model, settings)
    cases = patchables(
        model, dict(settings.prompts), n_needles=settings.n_needles, length=settings.length,
        depth=settings.depth, seed=settings.seed,
    )  # fmt: skip
    shelf = open_shelf(parts, {"settings": settings.as_dict()} | model_label(model))
    asked = {
        f"{direction}-{i:03d}": (p, direction)
        for i, p in enumerate(cases) for direction in DIRECTIONS
    }  # fmt: skip
    tally = Tally(progress, len(asked))

    def make(p: Patchable, direction: str) -> Part:
        tally.tell(f"{direction}: {p.name}")
        return _one(model, p, direction, chosen, settings)

    made = shelf.parts(
        [Job(name, partial(make, *both), both[0].name) for name, both in asked.items()],
        tally.tick,
    )
    shelf.finish()
    rows = [row for part in made.values() for row in part.rows]
    screened = [(asked[n][1], asked[n][0].name, part.values) for n, part in made.items()]
    return _result(model, settings, cases, rows, screened, time.monotonic() - started)


def _chosen_layers(model: "HFModel", settings: PatchSettings) -> list[Site]:
    """Sites of the sweep, heads apart; every kind is checked before anything runs."""
    n = model.spec.n_layers
    bad = [s for s in settings.sites if s not in PATCHED]
    if bad or not settings.sites:
        raise SiteError(
            f"cannot patch {bad[0] if bad else 'nothing'}; name some of {', '.join(PATCHED)}"
        )
    if settings.n_needles < 2:
        raise PromptError("patching needs 2 questions or more for an interval")
    count = min(settings.layers or n, n)
    layers = sorted({round(x) for x in np.linspace(0, n - 1, count)})
    kinds = [s for s in settings.sites if s != "z"]
    return [Site(k, layer) for k in kinds for layer in layers]  # type: ignore[arg-type]


def _one(
    model: "HFModel", p: Patchable, direction: str, sites: Sequence[Site], settings: PatchSettings
) -> Part:
    twin = direction == "denoising"
    rows = _sweep(model, p, direction, sites)
    if "z" not in settings.sites:
        return Part({}, rows)
    guess = screen(model, p, twin=twin)
    total = np.sum([v.numpy() for v in guess.values()], axis=0)
    flat = np.abs(total).reshape(-1)
    order = np.argsort(-flat, kind="stable")
    n = min(settings.n_confirm, len(order))
    rng = np.random.default_rng(settings.seed)
    others = rng.permutation(order[n:])[:n]
    n_heads = model.spec.n_heads
    picked = [Head(*map(int, divmod(i, n_heads))) for i in (*order[:n], *others)]
    measured = exact(model, p, picked, twin=twin)
    for i, (head, change) in enumerate(zip(picked, measured, strict=True)):
        rows.append(
            _row(p, direction, Site("z", head.layer, head.head), "all", change)
            | {
                "picked": "screen" if i < n else "random",
                "estimate": float(total[head.layer, head.head]),
            }
        )
    return Part({c: v.numpy() for c, v in guess.items()}, rows)


def _sweep(
    model: "HFModel", p: Patchable, direction: str, sites: Sequence[Site]
) -> list[dict[str, Any]]:
    if not sites:
        return []
    twin = direction == "denoising"
    other = activations(model, p, sites, twin=not twin)
    edits: list[Edit] = []
    places: list[tuple[Site, str]] = []
    for site in sites:
        for name, positions in p.spread.positions.items():
            value = other[site][list(positions)]
            edits.append(Edit(site, "resample", value, rows=(len(edits),), positions=positions))
            places.append((site, name))
    start = p.twin if twin else p.original
    found = run_rows(model, p, len(edits), edits, twin=twin) - start
    return [_row(p, direction, s, c, x) for (s, c), x in zip(places, found, strict=True)]


def _row(
    p: Patchable, direction: str, site: Site, position_class: str, change: np.ndarray
) -> dict[str, Any]:
    """One patch: the change of each metric, and the share of the gap between the two prompts."""
    gap = p.original - p.twin
    sign = 1 if direction == "denoising" else -1
    share = sign * change[FORCED.index("logit_diff")] / gap[FORCED.index("logit_diff")]
    return {
        "needle": p.name, "direction": direction, "site": site.kind, "layer": site.layer,
        "head": -1 if site.head is None else site.head, "class": position_class,
        **{m: float(x) for m, x in zip(FORCED, change, strict=True)}, "share": float(share),
        "picked": "", "estimate": float("nan"),
    }  # fmt: skip


def _result(
    model: "HFModel", settings: PatchSettings, cases: Sequence[Patchable], rows: list,
    screened: list, seconds: float,
) -> PatchResult:  # fmt: skip
    import pandas as pd

    frame = pd.DataFrame(rows)
    heads = frame[frame["site"] == "z"]
    agreement = {
        f"{direction}, {picked}": rank_agreement(part["estimate"].tolist(),
                                                 part["logit_diff"].tolist())
        for (direction, picked), part in heads.groupby(["direction", "picked"])
        if len(part) > 2
    }  # fmt: skip
    maps = {
        direction: np.stack([
            np.stack([v.get(c, np.zeros((model.spec.n_layers, model.spec.n_heads)))
                      for c in CLASSES])
            for d, _, v in screened if d == direction and v
        ])
        for direction in DIRECTIONS
        if any(d == direction and v for d, _, v in screened)
    }  # fmt: skip
    baselines = pd.DataFrame(
        [{"needle": p.name, **{f"original_{m}": float(a) for m, a in zip(FORCED, p.original,
          strict=True)}, **{f"twin_{m}": float(b) for m, b in zip(FORCED, p.twin, strict=True)}}
         for p in cases]
    )  # fmt: skip
    return PatchResult(
        settings.as_dict(), provenance(model, seconds=seconds), frame, baselines, maps, agreement
    )
