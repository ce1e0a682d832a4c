"""One length of the bench of backends: its questions, every way opened, timed in turn, compared."""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.bench_backends_ways import BACKENDS, PLAIN, WAYS, Question, Reading, backend, behind
from apps.peak_memory import free_bytes
from circuits.measure import Outcome, measure
from circuits.plan import ScanSettings, make_plan
from interp.errors import MnemoscopeError
from interp.trace import Trace

if TYPE_CHECKING:
    from interp.backends.hf import HFModel
    from probes.format import Format
    from probes.grid import Context, Trial

REPEATS = 3
SPEND = 8.0
"""Seconds for all repeats of a way at a length; a way that takes longer is run once."""
ASKED = 4096
"""Questions times tokens of context at most, for the slow backends read all of it every time."""
SHARE = 0.4
"""Of the free memory: what takes more is not run. Two ways may run side by side."""
UNKNOWN_FREE = 8e9
"""Bytes that are taken to be free where the system does not tell."""

Scanned = tuple[list[Outcome], Reading]
"""What a scan gave, and the rows behind it."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One context, and what is asked about it."""

    context: "Context"
    trials: tuple["Trial", ...]
    fmt: "Format"

    @property
    def n_tokens(self) -> int:
        """Of the context."""
        return len(self.context.tokens)

    @property
    def question(self) -> Question:
        """The first trial, as the plain readings ask it."""
        trial = self.trials[0]
        place = self.context.planted[trial.planted]
        asked = (*trial.suffix, *trial.answer[:-1])
        return Question(
            self.context.tokens, asked, len(trial.answer), range(place.start, place.stop)
        )

    def scan(self, model: Any, prefix: Any = None) -> list[Outcome]:
        """Outcomes of all questions, the context read first unless it was."""
        prefix = model.prefill(self.context.tokens) if prefix is None else prefix
        return measure(model, prefix, self.context, self.trials, self.fmt, generate=False)


def scene(model: "HFModel", n_tokens: int, trials: int) -> Scene:
    """A context of so many tokens with one needle for each question, as far as they have room."""
    n = max(1, min(trials, ASKED // n_tokens))
    depths = tuple((i + 0.5) / n for i in range(n))
    plan = make_plan(model, ScanSettings(lengths=(n_tokens,), depths=depths, n_haystacks=1))
    distinct = {t.planted: t for t in plan.trials[0]}
    return Scene(plan.contexts[0], tuple(distinct.values()), plan.fmt)


@dataclass(frozen=True, eq=False)
class Tools:
    """Everything opened once, over one set of weights; `absent` says why a way could not be."""

    backends: dict[str, "HFModel"]
    readers: dict[str, Callable]
    absent: dict[str, str]

    @classmethod
    def opened(cls, model: "HFModel", question: Question) -> "Tools":
        """Every way that this model can be read in, warm."""
        backends, readers, absent = {}, {}, {}
        for name in WAYS:
            try:
                if name in BACKENDS:
                    backends[name] = backend(model, name)
                    behind(backends[name], None, question.short)
                else:
                    readers[name] = WAYS[name].open(model)
                    readers[name](question.short)
            except MnemoscopeError as error:
                if name not in ("lens", "nnsight", *PLAIN):
                    raise
                absent[name] = f"not run: {error}"
        return cls(backends, readers, absent)

    def refusals(self, scene: Scene) -> dict[str, str]:
        """Ways that are not run here: absent, or too large for the memory that is free."""
        model = self.backends["hf"]
        free = free_bytes(model.device) or UNKNOWN_FREE
        n = len(scene.question.tokens)
        sizes = {k: w.arrays(model.spec, n, model.dtype.itemsize) for k, w in WAYS.items()}
        return self.absent | {
            name: f"not run: too large ({size / 1e9:.1f} GB)"
            for name, size in sizes.items()
            if size > SHARE * free and name not in self.absent
        }


class Heard:
    """A model that keeps what its last `extend` gave, so that rows need not be read once more."""

    def __init__(self, model: "HFModel") -> None:
        self.model = model
        self.trace: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def extend(self, *args: Any, **kwargs: Any) -> Any:
        """See `HFModel.extend`."""
        self.trace = self.model.extend(*args, **kwargs)
        return self.trace


def compared(tools: Tools, scene: Scene, refused: Mapping[str, str]) -> dict[str, Any]:
    """Times and agreement at one length, of all ways but those that are `refused`; plain values."""
    heard = {k: Heard(m) for k, m in tools.backends.items() if k not in refused}
    question, ours = scene.question, tools.backends["hf"]
    prefix = ours.prefill(scene.context.tokens)
    plain = {k: tools.readers[k] for k in PLAIN if k not in refused}
    seconds, repeats, values = in_turn(
        {"bare": partial(tools.readers["bare"], question)}
        | {f"scan {k}": partial(scene.scan, model) for k, model in heard.items()}
        | {"question hf": partial(scene.scan, ours, prefix)}
        | {k: partial(read, question) for k, read in plain.items()}
    )
    seconds["question hf"] /= len(scene.trials)
    bare = seconds.pop("bare")
    reading, layers = behind(ours, prefix, question), list(ours.spec.attention_layers)
    scans = {k: (values[f"scan {k}"], _answers(heard[k].trace, layers)) for k in heard}
    agreed = {f"scan {k}": _same_scan(scans["hf"], scans[k]) for k in heard if k != "hf"}
    agreed |= {k: _same_rows(reading, values[k]) for k in plain}
    absent = {f"scan {k}" if k in BACKENDS else k: why for k, why in refused.items()}
    return {
        "tokens": len(question.tokens),
        "questions": len(scene.trials),
        "bare forward, seconds": bare,
        "heads with a copy score": int((values["scan hf"][0].scores["copy"] > 0).sum()),
        "repeats": repeats,
        "ratio": {k: t / bare for k, t in seconds.items()} | absent,
        "agreement": agreed | absent,
    }


def in_turn(
    cases: Mapping[str, Callable[[], Any]],
) -> tuple[dict[str, float], dict[str, int], dict[str, Any]]:
    """Best seconds, runs, and value of each; long ones run less often, but never the first."""
    best = dict.fromkeys(cases, float("inf"))
    runs, values = dict.fromkeys(cases, REPEATS), {}
    for turn in range(REPEATS):
        for number, (name, case) in enumerate(cases.items()):
            if turn >= runs[name]:
                continue
            gc.collect()
            start = time.perf_counter()
            values[name] = case()
            took = time.perf_counter() - start
            best[name] = min(best[name], took)
            if number and not turn:
                runs[name] = max(1, min(REPEATS, int(SPEND / took)))
    return best, runs, values


def _answers(trace: Trace, layers: list[int]) -> Reading:
    """The answers' rows of all questions of a scan: its first read."""
    rows = trace.rows[0]
    assert rows.argmax is not None and rows.at_keys is not None
    return Reading(rows.argmax[layers], rows.at_keys[layers].sum(-1), trace.logits)


def _same_scan(ours: Scanned, theirs: Scanned) -> dict[str, Any]:
    """Every score of every question, and the rows behind them."""
    pairs = list(zip(ours[0], theirs[0], strict=True))
    names = ours[0][0].scores
    scores = {k: max(_gap(a.scores[k], b.scores[k]) for a, b in pairs) for k in names}
    return {"score": max(scores.values()), "scores": scores} | _same_rows(ours[1], theirs[1])


def _same_rows(ours: Reading, theirs: Reading) -> dict[str, float]:
    return {
        "same argmax": float((ours.argmax == theirs.argmax).float().mean()),
        "mass": _gap(ours.mass, theirs.mass),
        "logit": _gap(ours.logits, theirs.logits),
    }


def _gap(a: Any, b: Any) -> float:
    """Largest difference; where one has no number, the other must have none."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))
