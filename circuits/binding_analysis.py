"""From the records of a study to its conclusion; no model is needed.

The order of the questions is the order in which an answer can be spoiled: is the model able; is
there a layer of pointers; do the controls hold; which pointers are followed; what mixture.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from circuits.binding_findings import (
    Control,
    control_table,
    pointer_findings,
    self_change,
    word_effect,
)
from circuits.binding_labels import LABELS
from circuits.binding_layer import LayerChoice
from circuits.binding_mixture import describe_mixture
from circuits.binding_plan import BindSettings
from circuits.binding_study import MAIN, Records
from circuits.effects import Finding
from circuits.statistics import cluster_interval

SELF_MOST = 1e-3
"""Largest change of a logit that patching a question with its own vector may make, in float32;
sixteen bits do not hold a sum in another order to more than this share of their precision."""
WORDS_MOST = 0.05
"""Standard deviation of a word's mean probability from which answers count as led by words."""


def competence(asked: pd.DataFrame, floor: float, *, seed: int = 0) -> dict[str, Any]:
    """Whether a model does the task well enough to ask how: accuracy, mass, and words for it."""
    n = int(asked["group"].max()) + 1
    right, mass = asked["right"].to_numpy(float), float(asked["mass"].mean())
    clusters = asked["set"].astype(str).to_numpy()
    many = len(set(clusters)) > 1
    sure = cluster_interval(right, clusters, seed=seed) if many else None
    accuracy = float(right.mean())
    agreement = float((asked["first"] == asked["right"]).mean())
    told = {
        "accuracy": accuracy,
        "low": sure.low if sure else None, "high": sure.high if sure else None,
        "chance": 1 / n, "mass": mass, "agreement": agreement, "floor": floor,
        "by_group": [float(v) for v in asked.groupby("group")["right"].mean()],
        "answer_by_group": [float(v) for v in _own_share(asked)],
    }  # fmt: skip
    if accuracy < floor:
        why = (
            f"the model answers {accuracy:.0%} of the questions rightly (chance {1 / n:.0%}, floor "
            f"{floor:.0%}): there is no binding to explain"
        )
    elif mass < floor:
        why = (
            f"only {mass:.0%} of the probability is on the words that are scored (floor "
            f"{floor:.0%}): the answers cannot be read off"
        )
    else:
        why = ""
    return told | {"passed": not why, "reason": why}


def _own_share(asked: pd.DataFrame) -> pd.Series:
    """By group, the mean probability of the right answer among the candidates."""
    return (asked["p_answer"] / asked["mass"].clip(lower=1e-12)).groupby(asked["group"]).mean()


def conclude(
    records: Records,
    choice: LayerChoice,
    settings: BindSettings,
    *,
    n: int,
    able: dict[str, Any],
) -> dict[str, Any]:
    """Everything that is concluded of one study, as plain values.

    Keys: competence, layer, and where a layer was found findings, controls, self_change, words,
    mixture, behaviour; always verdict (`named` mechanisms, `abstained`, `sentence`, `notes`).
    """
    out: dict[str, Any] = {"competence": able, "layer": asdict(choice)}
    if choice.layer is None:
        why = able["reason"] or choice.reason
        out["verdict"] = _abstained(f"No mechanism is named: {why}.")
        return out
    main = records.of(MAIN, design="main", layer=choice.layer)
    findings = pointer_findings(records, choice.layer, seed=settings.seed)
    controls = control_table(records, seed=settings.seed)
    spread, p = word_effect(records, choice.layer, seed=settings.seed)
    out |= {
        "findings": [asdict(f) for f in findings],
        "controls": [asdict(c) for c in controls],
        "self_change": self_change(records),
        "words": {"spread": spread, "p": p},
        "shares": {name: float((main.rows["label"] == name).mean()) for name in LABELS},
        "mass": float(main.rows["mass"].mean()),
        "coverage": _coverage(main, n),
        "mixture": describe_mixture(main, able, settings),
    }
    out["verdict"] = _verdict(findings, controls, out, choice)
    return out


def _coverage(main: Records, n: int) -> dict[str, Any]:
    """Which of the n^3 cells were measured, and how many of those were collisions."""
    cells = main.rows[["i_p", "i_l", "i_r"]].drop_duplicates().to_numpy(int)
    apart = np.array([len(set(cell)) == 3 for cell in cells.tolist()])
    return {
        "cells": len(cells), "of": n**3,
        "apart": int(apart.sum()), "of_apart": n * (n - 1) * (n - 2),
        "evaluations": len(main),
    }  # fmt: skip


def _abstained(sentence: str) -> dict[str, Any]:
    return {"named": [], "abstained": True, "sentence": sentence, "notes": []}


def _verdict(
    findings: Sequence[Finding], controls: Sequence[Control], found: dict[str, Any],
    choice: LayerChoice,
) -> dict[str, Any]:  # fmt: skip
    """What is said in the end, and what is said against it.

    Abstains where a control of the instrument fails: a question patched with its own vector
    changes; where all pointers agree they are not followed; an absent answer is said, so that a
    copied answer would pass for a reflexive pointer.
    """
    spoiled = _spoiled(controls, found, choice)
    named = [f.effect.name for f in findings if f.verdict == "supported"]
    open_ = [f.effect.name for f in findings if f.verdict == "inconclusive"]
    notes = _notes(found, controls, choice)
    if spoiled:
        return _abstained(f"No mechanism is named: {'; '.join(spoiled)}.") | {"notes": notes}
    if not findings:
        why = "one entity set, or cells in which pointers always coincide, tell nothing apart"
        return _abstained(f"No mechanism is named: {why}.") | {"notes": notes}
    if not named:
        left = f"; undecided: {', '.join(open_)}" if open_ else ""
        return _abstained(f"No mechanism is named: no pointer is followed beyond chance{left}.") | {
            "notes": notes
        }
    by_share = {f.effect.name: f.effect.treated for f in findings}
    parts = [f"{name} ({by_share[name]:.0%} of the probability)" for name in named]
    tail = f"; undecided: {', '.join(open_)}" if open_ else ""
    kind = found["mixture"].get("case_level", {}).get("verdict", "")
    how = {
        "within prompts": ", mixed within a prompt",
        "between prompts": ", one prompt following one pointer and another another",
    }.get(kind, "") if len(named) > 1 else ""  # fmt: skip
    sentence = (
        f"Entering layer {choice.layer} the last token holds a pointer that is followed as "
        f"{' and '.join(parts)}{how}{tail}."
    )
    return {"named": named, "abstained": False, "sentence": sentence, "notes": notes}


def _spoiled(controls: Sequence[Control], found: dict[str, Any], choice: LayerChoice) -> list[str]:
    out = []
    if found["self_change"] > SELF_MOST:
        out.append(f"a question patched with its own vector changes by {found['self_change']:.2g}")
    for c in controls:
        if c.layer != choice.layer or c.passed is not False:
            continue
        if c.design == "agree_all":
            out.append(f"where all pointers agree, only {c.hit:.0%} follow them")
        elif c.design == "absent_answer":
            out.append(
                f"{c.hit:.0%} of answers that the recipient does not hold are said: copied, not "
                "pointed to"
            )
    return out


def _notes(found: dict[str, Any], controls: Sequence[Control], choice: LayerChoice) -> list[str]:
    """What a reader must know beside the verdict."""
    notes = []
    if found["words"]["p"] <= 0.05 and found["words"]["spread"] > WORDS_MOST:
        notes.append(
            "answers also depend on which words the groups hold, whatever their places (standard "
            f"deviation {found['words']['spread']:.2f} of probability)"
        )
    if not any(c.design == "absent_answer" for c in controls):
        notes.append("without the design absent_answer, reflexive and copied are not told apart")
    at = choice.layer
    assert at is not None
    nxt = [c for c in controls if c.design == "absent_answer" and c.layer == at + 1]
    if nxt:
        notes.append(f"one layer later {nxt[0].hit:.0%} of absent answers are said")
    if found["shares"]["ambiguous"] > 0:
        notes.append(
            f"{found['shares']['ambiguous']:.0%} of the evaluations are collisions, given to no "
            "mechanism"
        )
    return notes
