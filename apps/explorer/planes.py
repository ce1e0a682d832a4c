"""Scores of heads out of results of every kind, in one shape: what a head map can show."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from circuits.scores import METRICS
from interp.sites import Head

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Plane:
    """One number for every head.

    Attributes:
        name: unique within its run.
        group: heading under which it is listed.
        about: formula, chance level and source, or what was done.
        values: NaN where there is none.
        low, high: bounds of its 95 % interval; None without one.
        q: false discovery rate (Benjamini-Hochberg over heads), where tested.
        centred: an effect about 0, else a score from 0 up.
        threshold: usual bound of calling a head by it; None where there is none.
    """

    name: str
    title: str
    group: str
    about: str
    values: Float[np.ndarray, "layer head"]
    low: Float[np.ndarray, "layer head"] | None = None
    high: Float[np.ndarray, "layer head"] | None = None
    q: Float[np.ndarray, "layer head"] | None = None
    centred: bool = False
    threshold: float | None = None


def planes_of(kind: str, result: Any) -> list[Plane]:
    """All planes of a result; none where its kind scores no heads."""
    return list(PLANES[kind](result)) if kind in PLANES else []


def _scan(result: Any) -> Iterator[Plane]:
    passed = result.trials["passed"].to_numpy(dtype=bool)
    if not passed.any():
        return
    sure = result.trials["needle"][passed].nunique() > 1
    for name in (*result.values, *result.roles):
        metric = METRICS.get(name)
        role = name in result.roles
        low = high = None
        if sure and not role:
            bounds = result.uncertainty(name)
            low, high = (b.reshape(result.shape) for b in (bounds.low, bounds.high))
        title, about = name, ""
        if metric is not None:
            title = metric.title
            about = f"{metric.formula}. Chance: {metric.chance}. {metric.source}"
        yield Plane(
            name, title, "roles in random repeated tokens" if role else "retrieval scores", about,
            result.mean(name), low, high, centred=metric is not None and metric.low < 0,
            threshold=result.settings["threshold"] if name in ("copy", "copy_exact") else None,
        )  # fmt: skip


def _validation(result: Any) -> Iterator[Plane]:
    if not result.alone.size:
        return
    shape = result.alone.shape[:2]
    what = result.settings["alone_ablation"]
    for metric in result.metrics:
        try:
            frame = result.alone_frame(metric)
        except (ValueError, ArithmeticError):
            continue
        if frame.empty:
            continue
        yield Plane(
            f"alone-{metric}", f"ablated alone: {metric}", "causal effects",
            f"change of {metric} of the answer when this head alone is ablated ({what}) at the "
            "rows that produce it; below 0: the answer loses. Interval over needles; q over heads",
            **_spread(frame, shape), centred=True,
        )  # fmt: skip


def _circuit(result: Any) -> Iterator[Plane]:
    nodes = result.nodes[~result.nodes["node"].astype(str).str.contains(" ")]
    heads = [Head.parse(name) for name in nodes["node"].astype(str)]
    frame = nodes.assign(layer=[h.layer for h in heads], head=[h.head for h in heads])
    shape = (result.provenance.n_layers, result.provenance.n_heads)
    for ending, word in (("", "total"), ("_direct", "direct")):
        yield Plane(
            f"circuit-{word}", f"{word} effect in the circuit", "causal effects",
            f"{word} effect of each candidate on the logit difference; other heads were not run",
            **_spread(frame, shape, ending), centred=True,
        )  # fmt: skip


def _patch(result: Any) -> Iterator[Plane]:
    frame = result.to_frame("share")
    frame = frame[frame["head"] >= 0]
    shape = (result.provenance.n_layers, result.provenance.n_heads)
    for (direction, site, where), part in frame.groupby(["direction", "site", "class"]):
        yield Plane(
            f"patch-{direction}-{site}-{where}", f"{direction}: {site} at {where} tokens",
            "causal effects", "share of the logit difference that patching this head alone closes; "
            "heads that the screen left out were not run",
            **_spread(part, shape), centred=True,
        )  # fmt: skip


def _binding(result: Any) -> Iterator[Plane]:
    import pandas as pd

    shape = (result.provenance.n_layers, result.provenance.n_heads)
    for key, study in result.studies.items():
        found = study.conclusion.get("heads")
        if not isinstance(found, dict) or "write" not in found:
            continue
        for part, word in (("write", "writes the pointer"), ("read", "reads it")):
            yield Plane(
                f"binding-{part}-{key}", f"{word}: {key}", "binding roles",
                "probability that moves when this head's output is the donor's (writing), or when "
                "it may not look at the target entities (reading)",
                **_spread(pd.DataFrame(found[part]), shape), centred=True,
            )  # fmt: skip


def _spread(frame: "pd.DataFrame", shape: tuple[int, ...], ending: str = "") -> dict[str, Any]:
    """Effects of a table of heads, with bounds and q where it has them, as `[layer, head]`."""
    out: dict[str, Any] = {}
    for name, column in (("values", "effect"), ("low", "low"), ("high", "high"), ("q", "q")):
        if column + ending in frame or name == "values":
            out[name] = np.full(shape, np.nan)
            if len(frame):
                at = frame["layer"].to_numpy(int), frame["head"].to_numpy(int)
                out[name][at] = frame[column + ending]
    return out


PLANES: dict[str, Callable[[Any], Iterator[Plane]]] = {
    "scan": _scan,
    "validation": _validation,
    "circuit": _circuit,
    "patch": _patch,
    "binding": _binding,
}
