"""What a calibration holds against the truth: thresholds of detectors, right verdicts of tests.

Both are fixed here, beforehand. A threshold is the one that its users use, not the one that would
separate the planted heads best. A right verdict follows from how a circuit is built: that of the
claim, unless an ablation does something else to this circuit than taking its work away; each such
exception says why, and one that has no right verdict is shown but not judged.
"""

from dataclasses import dataclass
from typing import Literal

from circuits.scores import METRICS
from circuits.validation_result import DENOISE
from probes.planted import Claim

Outcome = Literal["supported", "unsupported", "inconclusive", "not applicable"]
"""The verdicts, and `not applicable`: the ablation changes nothing in these heads."""

ABLATIONS = ("mean", "zero", "resample", "uniform", "knockout", "sink")
TESTS = (*ABLATIONS, DENOISE)
IN_QUESTION = (("writes_unseen", ("move",)),)
"""Claims about heads that act in the question; all others act in the row that answers."""
TRUTHS: dict[str, str] = {
    "attends": "heads that attend to the value in the row that answers",
    "causal": "heads whose ablation alone, behind the context, hurts the answer",
}


@dataclass(frozen=True)
class Threshold:
    """When a detector calls a head; `floor` None: where its 95 % interval lies above 0."""

    floor: float | None
    source: str

    def __str__(self) -> str:
        return "interval > 0" if self.floor is None else f">= {self.floor:g}"


THRESHOLDS: dict[str, Threshold] = {
    "copy": Threshold(0.1, "published, arXiv 2404.15574"),
    "copy_exact": Threshold(0.1, "as the copy score"),
    "mass": Threshold(0.1, "as the copy score; none is published"),
    "query_focus": Threshold(0.1, "as the copy score; published as a rank, arXiv 2506.09944"),
    "write": Threshold(None, "logits have no natural floor, so that the sign alone must be sure"),
    "frequency": Threshold(0.1, "as the copy score"),
    **{
        name: Threshold(0.3, "the usual one for pattern scores, as in role_labels")
        for name, metric in METRICS.items()
        if metric.role
    },
}


@dataclass(frozen=True)
class Special:
    """Tests of a claim whose right verdict is not the claim's; None: there is no right one."""

    model: str
    roles: tuple[str, ...]
    tests: tuple[str, ...]
    expected: Outcome | None
    why: str


SPECIAL = (
    Special(
        "backup", ("copy",), ("resample",), None,
        "the twin's wrong value ties with the backup's right one: that the head is not needed "
        "does not say that it can do no harm",
    ),
    Special(
        "backup", ("copy",), (DENOISE,), "supported",
        "sufficient though not necessary: put back, it writes the answer beside the twin's value",
    ),
    Special(
        "writes_unseen", ("answer",), ("knockout",), "not applicable",
        "it never attends to the needle, so there are no edges to cut",
    ),
    Special(
        "sink", ("sink",), ("mean", "resample", "knockout", "sink"), "not applicable",
        "they attend to the first token in any prompt: what is put in place is what was there",
    ),
)  # fmt: skip


def expected(model: str, claim: Claim, test: str) -> tuple[Outcome | None, str]:
    """The right verdict of a test on a claim about a planted model, and why."""
    for row in SPECIAL:
        if (row.model, row.roles) == (model, claim.roles) and test in row.tests:
            return row.expected, row.why
    return claim.expected, claim.why


def is_right(verdict: str, right: Outcome | None) -> bool | None:
    """Whether a verdict is right; None where there is no right one.

    Where an ablation changes nothing, "no effect" is as true as a refusal.
    """
    if right is None:
        return None
    return verdict == right or (right, verdict) == ("not applicable", "unsupported")
