"""What studies say together: the rule of roles, fits carried over, what longer inputs change."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.binding_labels import candidate_probs
from circuits.binding_mixture import outcomes_of
from circuits.binding_study import MAIN
from circuits.mixture import MixtureFit, fit_mixture
from circuits.mixture_table import score, transferred
from circuits.statistics import cluster_interval
from interp.errors import ResultError

if TYPE_CHECKING:
    from circuits.binding_result import StudyResult


def hypotheses(studies: Sequence["StudyResult"]) -> list[dict[str, Any]]:
    """What causal attention predicts, tested in each study that measured it.

    A target that comes first in its group is read by words that follow it: reflexive above lexical;
    the last the other way round; in the middle both (arXiv 2510.06182, section 3). Supported where
    the interval of the difference of probabilities lies on the predicted side of 0; unsupported
    where it lies on the other. Studies that abstain are left out: a copied answer would count as
    reflexive.
    """
    out = []
    for s in studies:
        if s.layer is None or s.conclusion["verdict"]["abstained"]:
            continue
        main = s.records.of(MAIN, design="main", layer=s.layer)
        rows = main.rows
        keep = (rows["i_l"] != rows["i_r"]).to_numpy()
        probs = candidate_probs(main.logits)[keep]
        at = np.arange(len(probs))
        i_l, i_r = (rows[c].to_numpy(int)[keep] for c in ("i_l", "i_r"))
        clusters = rows["set"].astype(str).to_numpy()[keep]
        if len(set(clusters)) < 2:
            continue
        sure = cluster_interval(probs[at, i_r] - probs[at, i_l], clusters)
        side = {"first": 1, "last": -1}.get(s.place)
        out.append({
            "study": s.key, "place": s.place, "predicted": _PREDICTED[s.place],
            "reflexive": float(probs[at, i_r].mean()), "lexical": float(probs[at, i_l].mean()),
            "difference": sure.mean, "low": sure.low, "high": sure.high, "n": len(probs),
            "verdict": _side(sure.low, sure.high, side, s.conclusion["findings"]),
        })  # fmt: skip
    return out


_PREDICTED = {
    "first": "reflexive above lexical", "middle": "both reflexive and lexical",
    "last": "lexical above reflexive",
}  # fmt: skip


def _side(low: float, high: float, side: int | None, findings: Sequence[dict[str, Any]]) -> str:
    if side is None:
        verdicts = {f["effect"]["name"]: f["verdict"] for f in findings}
        both = [verdicts.get(name, "inconclusive") for name in ("lexical", "reflexive")]
        if all(v == "supported" for v in both):
            return "supported"
        return "unsupported" if "unsupported" in both else "inconclusive"
    ends = sorted((side * low, side * high))
    if ends[0] > 0:
        return "supported"
    return "unsupported" if ends[1] < 0 else "inconclusive"


def transfers(studies: Sequence["StudyResult"]) -> list[dict[str, Any]]:
    """How well a study's mixture predicts another study: held-out n, held-out task.

    Rows: source, target, held_out (`n`: the same task and role with other groups; `task`: another
    task with the target at the same place and as many groups), jss of the carried fit on the
    target's cells, own (of the target's own fit: what could be had), uniform (of knowing nothing).
    """
    out = []
    for source, target, kind in _comparable(studies):
        fields = source.conclusion["mixture"].get("fit")
        if not fields or "fit" not in target.conclusion["mixture"]:
            continue
        data = outcomes_of(target.records.of(MAIN, design="main", layer=target.layer))
        try:
            carried = score(transferred(MixtureFit(**fields), target.n), data)
        except ResultError:  # a gate that neither study ever saw
            continue
        out.append({
            "source": source.key, "target": target.key, "held_out": kind, "jss": carried,
            "own": target.conclusion["mixture"]["jss"],
            "uniform": fit_mixture(data, variant="uniform").jss,
        })  # fmt: skip
    return out


def _comparable(
    studies: Sequence["StudyResult"],
) -> Iterator[tuple["StudyResult", "StudyResult", str]]:
    """Ordered pairs of measured studies that differ in n alone, or in the task alone."""
    measured = [s for s in studies if s.layer is not None]
    for one, other in permutations(measured, 2):
        if one.filler != other.filler:
            continue
        if (one.task, one.target, one.asked) == (other.task, other.target, other.asked):
            yield one, other, "n"
        elif one.task != other.task and (one.place, one.n) == (other.place, other.n):
            yield one, other, "task"


def longer_inputs(studies: Sequence["StudyResult"]) -> list[dict[str, Any]]:
    """What filler between the groups changes, beside what the mixtures predict.

    For each study with filler and its twin without: by group, the change of the probability of the
    right answer when nothing is patched, and the change that the two fitted mixtures predict;
    `error` is the mean absolute difference of the two, `still` that of predicting no change.
    """
    plain = {(s.task, s.target, s.asked, s.n): s for s in studies if s.filler == 0}
    out = []
    for s in studies:
        before = plain.get((s.task, s.target, s.asked, s.n))
        if s.filler == 0 or before is None:
            continue
        able = [x.conclusion["competence"] for x in (before, s)]
        row: dict[str, Any] = {
            "study": s.key, "sentences": s.filler,
            "accuracy": able[1]["accuracy"], "accuracy_without": able[0]["accuracy"],
            "measured": _change(*(a["answer_by_group"] for a in able)),
        }  # fmt: skip
        predicted = [x.conclusion.get("mixture", {}).get("behaviour", {}) for x in (before, s)]
        if all("predicted" in p for p in predicted):
            row["predicted"] = _change(*(p["predicted"] for p in predicted))
            pairs = [
                (m, p) for m, p in zip(row["measured"], row["predicted"], strict=True)
                if p is not None
            ]  # fmt: skip
            row["error"] = float(np.mean([abs(m - p) for m, p in pairs])) if pairs else None
            row["still"] = float(np.mean([abs(m) for m, _ in pairs])) if pairs else None
        out.append(row)
    return out


def _change(before: Sequence[float | None], after: Sequence[float | None]) -> list[float | None]:
    both = zip(before, after, strict=True)
    return [None if a is None or b is None else b - a for a, b in both]
