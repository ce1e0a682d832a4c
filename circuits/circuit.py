"""From retrieval heads to a circuit: which earlier heads and layers feed their q, k and v.

A gradient screen names candidate senders for each input of the receivers; path patching measures
every edge, beside edges of senders drawn at random. An edge stays when its interval excludes 0 and
it is larger than 95 % of the random ones of its kind (heads, or feed-forward parts), which is the
minimality test of arXiv 2410.13032 applied edge by edge, and than the smallest effect of interest.
Then faithfulness and completeness over the size
grid.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attribution import screen
from circuits.candidates import INHERITED, Ask, Candidates, find_candidates
from circuits.case_metrics import FORCED
from circuits.circuit_result import CircuitResult
from circuits.faithfulness import circuits_of, run_circuits
from circuits.patch_prompts import LENGTH, Patchable, class_means, patchables
from circuits.paths import (
    CHANNELS,
    Edge,
    Means,
    Sender,
    node_effects,
    path_effects,
    reference_sites,
    screen_paths,
)
from circuits.shelf import Job, Part, Parts, model_label, open_shelf
from circuits.tally import Progress, Tally
from interp.errors import PromptError, ResultError
from interp.sites import Head
from interp.store import provenance

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

RANDOM = "random"


@dataclass(frozen=True)
class CircuitSettings:
    """What is traced.

    Attributes:
        receivers: how many of the best heads.
        senders: candidates of the screen, for each input of the receivers.
        n_random: heads drawn at random as senders (and half as many feed-forward parts), and
            random circuits of each size.
        n_needles: test questions; the means, the screen and the ranking use as many others.
        length, depth: tokens of context, and where the needle begins.
        smallest: the smallest effect of interest on the logit difference, chosen beforehand.
        prompts: overrides of the scan's prompt settings.
    """

    receivers: int = 3
    senders: int = 8
    n_random: int = 8
    n_needles: int = 6
    length: int = LENGTH
    depth: float = 0.5
    smallest: float = 0.1
    prompts: tuple[tuple[str, Any], ...] = ()
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for result files."""
        return asdict(self) | {"prompts": dict(self.prompts)}


def find_circuit(
    model: "HFModel",
    heads: Any,
    settings: CircuitSettings | None = None,
    *,
    parts: Parts = None,
    progress: Progress | None = None,
    **options: Any,
) -> CircuitResult:
    """Trace what feeds the best heads of a scan, or of any head list.

    Raises:
        PromptError, ResultError, SiteError: bad input, or too few questions to measure on.
    """
    started = time.monotonic()
    settings = settings or CircuitSettings(**options)
    chosen, receivers, test, reference = _materials(model, heads, settings)
    tally = Tally(progress, len(test) + 2)
    tally.tell("reference means")
    means = class_means(model, reference, reference_sites(model))
    tally.tick()
    tally.tell("screening senders")
    edges, ranking = _candidates(model, reference, receivers, means, settings)
    rankings = {"attribution": ranking}
    if chosen.scores is not None:
        rankings["retrieval score"] = list(chosen.ranking)
    sets = circuits_of(rankings, model.spec.heads(), n_random=settings.n_random,
                       seed=settings.seed)  # fmt: skip
    label = {"settings": settings.as_dict(), "edges": [_named(e, r) for e, r in edges]}
    shelf = open_shelf(parts, label | model_label(model))
    tally.tick()

    def make(p: Patchable) -> Part:
        tally.tell(f"paths: {p.name}")
        return Part({}, _one(model, p, edges, receivers, means, sets))

    jobs = [Job(f"case-{i:03d}", partial(make, p)) for i, p in enumerate(test)]
    made = shelf.parts(jobs, tally.tick)
    shelf.finish()
    rows = [row for part in made.values() for row in part.rows]
    return _result(model, settings, chosen, receivers, rows, time.monotonic() - started)


def _materials(
    model: "HFModel", heads: Any, settings: CircuitSettings
) -> tuple[Candidates, list[Head], list[Patchable], list[Patchable]]:
    """Ranking, receivers, test questions, and others for means and screens."""
    if settings.receivers < 1 or settings.senders < 1 or settings.n_random < 1:
        raise PromptError("receivers, senders and n_random must be 1 or more")
    ask = Ask(settings.n_needles, settings.length, (settings.depth,), settings.prompts,
              settings.seed)  # fmt: skip
    chosen, prompts = find_candidates(model, heads, ask)
    receivers = list(chosen.ranking[: settings.receivers])
    lowest = model.spec.attention_layers[0]
    if all(r.layer == lowest for r in receivers):
        raise ResultError(
            f"heads {', '.join(map(str, receivers))} stand in the first layer: no head feeds them"
        )
    words = {k: getattr(prompts, k) for k in INHERITED}
    common = {"n_needles": settings.n_needles, "length": settings.length,
              "depth": settings.depth, "seed": settings.seed}  # fmt: skip
    test = patchables(model, words, skip=chosen.selection, **common)  # type: ignore[arg-type]
    reference = patchables(model, words, skip=chosen.test, **common)  # type: ignore[arg-type]
    return chosen, receivers, test, reference


def _candidates(
    model: "HFModel", reference: Sequence[Patchable], receivers: Sequence[Head], means: Means,
    settings: CircuitSettings,
) -> tuple[list[tuple[Edge, str]], list[Head]]:  # fmt: skip
    """Edges to measure, each with how it was picked; and all heads ranked by attribution."""
    total: dict[str, dict[Sender, float]] = {c: {} for c in CHANNELS}
    influence = np.zeros((model.spec.n_layers, model.spec.n_heads))
    for p in reference:
        for channel, found in screen_paths(model, p, receivers, means).items():
            for sender, x in found.items():
                total[channel][sender] = total[channel].get(sender, 0.0) + x
        influence += sum(v.numpy() for v in screen(model, p).values())
    rng = np.random.default_rng(settings.seed)
    edges: list[tuple[Edge, str]] = []
    for channel in CHANNELS:
        ranked = sorted(total[channel], key=lambda s: -abs(total[channel][s]))
        best = ranked[: settings.senders]
        drawn = _drawn(ranked[settings.senders :], settings.n_random, rng)
        for picked, senders in (("screen", best), (RANDOM, drawn)):
            edges += [
                (Edge(s, r, channel), picked) for s in senders for r in receivers
                if s.layer < r.layer
            ]  # fmt: skip
    order = np.argsort(-np.abs(influence), axis=None, kind="stable")
    known = set(model.spec.heads())
    ranking = [Head(*map(int, divmod(i, model.spec.n_heads))) for i in order]
    return edges, [h for h in ranking if h in known]


def _drawn(rest: Sequence[Sender], n: int, rng: np.random.Generator) -> list[Sender]:
    """Heads that the screen left out, and half as many feed-forward parts."""
    out = []
    for is_head, count in ((True, n), (False, max(1, n // 2))):
        pool = [s for s in rest if (s.head is not None) == is_head]
        pool.sort(key=lambda s: (s.layer, s.head or 0))
        out += [pool[i] for i in rng.permutation(len(pool))[:count]]
    return out


def _one(
    model: "HFModel", p: Patchable, edges: Sequence[tuple[Edge, str]], receivers: Sequence[Head],
    means: Means, sets: Sequence,
) -> list[dict[str, Any]]:  # fmt: skip
    """All measurements on one question, as rows of three kinds."""
    found = path_effects(model, p, [e for e, _ in edges], means)
    rows: list[dict[str, Any]] = [
        {"table": "edges", "needle": p.name, **_named(edge, picked), **_metrics(x)}
        for (edge, picked), x in zip(edges, found, strict=True)
    ]
    nodes = sorted(
        {e.sender for e, picked in edges if picked != RANDOM}
        | {Sender(r.layer, r.head) for r in receivers},
        key=lambda s: (s.layer, s.head is None, s.head or 0),
    )
    total, direct = node_effects(model, p, nodes, means)
    for node, a, b in zip(nodes, total, direct, strict=True):
        alone = {f"direct_{k}": v for k, v in _metrics(b).items()}
        row = {"table": "nodes", "needle": p.name, "node": str(node)}
        rows.append(row | _metrics(a) | alone)
    rows += [{"table": "circuits", **row} for row in run_circuits(model, p, sets)]
    return rows


def _named(edge: Edge, picked: str) -> dict[str, Any]:
    return {"sender": str(edge.sender), "receiver": str(edge.receiver), "channel": edge.channel,
            "picked": picked}  # fmt: skip


def _metrics(values: np.ndarray) -> dict[str, float]:
    return {m: float(x) for m, x in zip(FORCED, values, strict=True) if m != "exact"}


def _result(
    model: "HFModel", settings: CircuitSettings, chosen: Candidates, receivers: Sequence[Head],
    rows: list[dict[str, Any]], seconds: float,
) -> CircuitResult:  # fmt: skip
    import pandas as pd

    tables = {
        name: pd.DataFrame([{k: v for k, v in r.items() if k != "table"} for r in rows
                            if r["table"] == name])
        for name in ("edges", "nodes", "circuits")
    }  # fmt: skip
    kept = {"heads": [str(r) for r in receivers], "source": chosen.source}
    return CircuitResult(
        settings.as_dict() | kept, provenance(model, seconds=seconds), tables["edges"],
        tables["nodes"], tables["circuits"], chosen.notes,
    )  # fmt: skip
