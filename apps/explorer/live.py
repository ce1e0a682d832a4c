"""What a face of the explorer may ask of an attached model: read a trial, a window, ablate heads.

Questions come from a page: every one is checked, and answered with plain values or one line of why
not. One question runs at a time; the model is no place for two.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.explorer.packing import Packer, as_text
from apps.explorer.payload import OpenRun
from circuits.ablations import SCOPES
from circuits.attention.desk import NAMED, TrialDesk, most_moved
from interp.errors import PromptError, ResultError, UnknownNameError
from interp.sites import Head

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

MOST_DRAWS = 200


class Live:
    """Answers about runs, given by the model that made them.

    Args:
        runs: all runs of the page, in order; those of this model with trials can be asked about.

    Raises:
        ResultError: the model made none of the scans.
    """

    def __init__(self, model: "HFModel", runs: Sequence[OpenRun]) -> None:
        self.desks: dict[str, TrialDesk] = {}
        reasons = []
        for i, run in enumerate(runs):
            if run.kind.name != "scan":
                continue
            try:
                self.desks[f"r{i}"] = TrialDesk(model, run.result)
            except ResultError as error:
                reasons.append(str(error))
        if not self.desks:
            why = reasons[0] if reasons else "no scan is open, and only its trials can be run again"
            raise ResultError(why)
        self.name = model.source.name
        self._busy = Lock()

    def about(self) -> dict[str, Any]:
        """What can be asked, for the page."""
        return {"model": self.name, "ablations": NAMED, "scopes": SCOPES, "runs": list(self.desks)}

    def ask(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one question.

        Raises:
            MnemoscopeError: no such question, or one that cannot be answered, in one line.
        """
        if name not in QUESTIONS:
            raise UnknownNameError("question", name, QUESTIONS)
        desk = self.desks.get(str(given.get("run")))
        if desk is None:
            raise ResultError(f"the attached model ({self.name}) did not make this run")
        with self._busy:
            return QUESTIONS[name](desk, given)


def _trial(desk: TrialDesk, given: Mapping[str, Any]) -> dict[str, Any]:
    rows = desk.rows(str(given.get("trial")))
    packer = Packer()
    arrays = {name: packer.add(a) for name, a in rows.arrays().items()}
    context = list(desk.context_text(rows.context))
    block = as_text(packer.packed())
    return {"about": rows.about() | arrays, "context": context, "block": block}


def _window(desk: TrialDesk, given: Mapping[str, Any]) -> dict[str, Any]:
    zoom = given.get("zoom")
    if not isinstance(zoom, list) or len(zoom) != 4 or not all(_finite(v) for v in zoom):
        raise PromptError(f"a window is four numbers, from and to of queries and keys: {zoom}")
    q, k, z = desk.window(str(given.get("trial")), Head.parse(str(given.get("head"))), zoom)
    return {"q": list(q), "k": list(k), "z": np.round(z.astype(float), 5).tolist()}


def _what_if(desk: TrialDesk, given: Mapping[str, Any]) -> dict[str, Any]:
    heads, draws = given.get("heads"), given.get("draws", 20)
    if not isinstance(heads, list) or not heads:
        raise PromptError("no head is ticked; tick one or more")
    if not _finite(draws) or not 1 <= int(draws) <= MOST_DRAWS:
        raise PromptError(f"random sets: a number from 1 to {MOST_DRAWS}, got {draws}")
    found = desk.what_if(
        str(given.get("trial")), [Head.parse(str(h)) for h in heads],
        how=str(given.get("ablation")), where=str(given.get("scope")), draws=int(draws),
    )  # fmt: skip
    low, high = np.percentile(found.random, [2.5, 97.5])
    return {
        "answer": found.answer, "before": found.before, "after": found.after,
        "random": [float(v) for v in found.random], "low": float(low), "high": float(high),
        "said_before": found.said_before, "said_after": found.said_after,
        "moved": [{"head": str(h), "change": change} for h, change in most_moved(found)],
        "looked": [[_none(v) for v in plane.reshape(-1)] for plane in found.looked],
        "about": f"{found.ablation.name}: {found.ablation.formula}. Scope {found.scope}: "
        f"{SCOPES[found.scope]}.",
    }  # fmt: skip


def _none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else round(float(value), 5)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


QUESTIONS: dict[str, Callable[[TrialDesk, Mapping[str, Any]], dict[str, Any]]] = {
    "trial": _trial,
    "window": _window,
    "whatif": _what_if,
}
