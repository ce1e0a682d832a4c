"""Figures of binding runs, on records drawn with numpy: no model, every number counted again."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from apps.binding_figures import FIGURES, draw
from circuits.binding_analysis import competence, conclude, hypotheses
from circuits.binding_labels import ABSENT, LABELS, POINTERS, label
from circuits.binding_layer import LayerChoice, choose_layer
from circuits.binding_mixture import outcomes_of
from circuits.binding_plan import CONTROLS, BindSettings
from circuits.binding_result import BindingResult, StudyResult
from circuits.binding_study import CONTROL, MAIN, SWEEP, Records, joined
from circuits.case_level import responsibilities
from circuits.mixture import fit_mixture
from circuits.mixture_table import (
    AblationRow,
    ablation_table,
    fit_intervals,
    held_out,
    interaction,
    mechanism_weights,
    sampling_ceiling,
)
from interp.errors import ResultError, UnknownNameError
from interp.store import Provenance

BAD = '<script>alert("x")</script>'
LAYERS, TAKEOVER = 6, 5
MADE = Provenance(
    "toy", "made in a test", None, None, "0", "1", "ToyForCausalLM", LAYERS, 4, "float32", "cpu",
    "sdpa", {"mnemoscope": "0.1.0"}, "2026-11-24T00:00:00+00:00", 1.0, None,
)  # fmt: skip

# -- a world of records -----------------------------------------------------------------------


def case(rng, n, design, layer, pull):
    """One evaluation: indices by design, logits of the mixture with noise, its record's row."""
    p, left, right, own = (int(i) for i in rng.permutation(n)[:4])
    if design == "main" and layer < TAKEOVER - 1 and layer < 3:
        pull = {}  # early layers hold no pointer: the recipient's own answer stays
    l_at, r_at = left, right
    if design in ("absent_query", "all_new"):
        l_at = ABSENT
    if design in ("absent_answer", "all_new"):
        r_at = ABSENT
    if design in ("agree_pl", "agree_all"):
        l_at = p
    if design in ("agree_pr", "agree_all"):
        r_at = p
    if design == "agree_lr":
        r_at = l_at
    logits = rng.normal(0, 1.2, n)
    distance = np.abs(np.arange(n) - p)
    edge = abs(2 * p / (n - 1) - 1)
    logits += pull.get("positional", 0) * np.exp(-(distance**2) / (0.3 + 2 * (1 - edge)))
    for name, at in (("lexical", l_at), ("reflexive", r_at)):
        if at != ABSENT:
            logits[at] += pull.get(name, 0)
    if not pull:
        logits[own] += 8
    return {
        "design": design,
        "layer": layer,
        "i_p": p,
        "i_l": l_at,
        "i_r": r_at,
        "i_n": own,
    }, logits


def stage_records(rng, n, stage, designs, layers, *, sets, cases, pull):
    """Records of a stage; the words of a set are its own, the answer said is R's or an alien."""
    rows, logits, unpatched, words = [], [], [], []
    for k in range(sets):
        pool = rng.permutation(np.arange(10, 10 + 2 * n))[:n]
        for design in designs:
            for layer in layers:
                for _ in range(cases):
                    row, y = case(rng, n, design, layer, pull)
                    said = int(pool[row["i_r"]]) if row["i_r"] != ABSENT else 5
                    top = said if layer >= TAKEOVER else int(pool[y.argmax()])
                    if layer < TAKEOVER and rng.random() < 0.04:
                        top = 1  # some other token of the vocabulary
                    indices = {i: row[i] for i in ("i_p", "i_l", "i_r", "i_n")}
                    rows.append(row | {
                        "stage": stage, "set": k, "donor": 0, "top": top, "said": said,
                        "label": label(top, pool.tolist(), said, **indices),
                        "mass": 0.9, "p_said": 0.1, "self_change": 1e-6,
                    })  # fmt: skip
                    logits.append(y)
                    unpatched.append(rng.normal(0, 1, n) + 6 * (np.arange(n) == row["i_n"]))
                    words.append(pool)
    return Records(pd.DataFrame(rows), *(np.stack(v) for v in (logits, unpatched, words)))


def questions(rng, n, accuracy, contexts=6):
    """A preflight: every group asked for once in each context."""
    rows = []
    for k in range(contexts):
        for g in range(n):
            right = bool(rng.random() < accuracy)
            rows.append({"set": k, "group": g, "right": right, "first": right, "chosen": g,
                         "p_answer": 0.8 * right + 0.05, "mass": 0.9, "said": "x"})  # fmt: skip
    return pd.DataFrame(rows)


PULL = {"positional": 4.0, "lexical": 1.5, "reflexive": 3.0}


def study(
    *, task="music", target="genre", place="middle", n=5, accuracy=1.0, pull=None, sets=7, cases=24,
    settings=None, seed=0, swept=True, mixture=None,
):  # fmt: skip
    """A study of drawn records, concluded by the code that concludes of real ones."""
    rng = np.random.default_rng(seed)
    settings, pull = settings or BindSettings(bootstrap=3), PULL if pull is None else pull
    asked = questions(rng, n, accuracy)
    able = competence(asked, settings.floor)
    records, choice = [], LayerChoice(4, None, "given")
    if not able["passed"]:
        choice = LayerChoice(None, None, able["reason"])
    elif swept:
        records.append(stage_records(rng, n, SWEEP, ("main", "absent_answer"), range(LAYERS + 1),
                                     sets=3, cases=6, pull=pull))  # fmt: skip
        choice = choose_layer(joined(records))
    if choice.layer is not None:
        at = choice.layer
        records.append(stage_records(rng, n, MAIN, ("main",), [at], sets=sets, cases=cases,
                                     pull=pull))  # fmt: skip
        records.append(stage_records(rng, n, CONTROL, CONTROLS, [at, at + 1], sets=4, cases=5,
                                     pull=pull))  # fmt: skip
    whole = joined(records)
    found = conclude(asked, whole, choice, settings, n=n, able=able)
    if mixture is not None and "mixture" in found:
        found["mixture"] = mixture(whole.of(MAIN), found["mixture"])
    roles = ("musician", "instrument")
    return StudyResult(
        f"{task}-{target}|{'+'.join(roles)}-n{n}", task, target, roles, place, n, 0,
        {"style": "plain", "form": "space", "dropped": ["gong"]}, asked, whole, found,
    )  # fmt: skip


def full_mixture(main, short):
    """The whole description of a mixture, few draws, by the public functions."""
    data = outcomes_of(main)
    fit = fit_mixture(data, kernel="discrete")
    cells = {
        w: asdict(held_out(data, w, n_folds=2, kernel="discrete")) for w in ("cells", "positions")
    }
    owners = responsibilities(data, fit, i_n=main.rows["i_n"].to_numpy(int))
    return short | {
        "fit": asdict(fit), "jss": fit.jss, "kernel": "discrete",
        "kernels": {k: asdict(fit_mixture(data, kernel=k)) for k in ("peak", "density", "discrete")},
        "variants": [asdict(r) for r in ablation_table(data, n_folds=2, kernel="discrete")],
        "intervals": asdict(fit_intervals(data, n_draws=4, kernel="discrete")),
        "ceiling": asdict(sampling_ceiling(fit, data, n_draws=5)),
        "interaction": asdict(interaction(data, n_folds=2, n_draws=2, kernel="discrete")),
        "weights": asdict(mechanism_weights(fit)), "held_out": cells,
        "responsibilities": {"by_position": owners.by_position.tolist(), "clear": owners.clear},
    }  # fmt: skip


def run(*studies, **settings):
    """A result of studies."""
    return BindingResult(
        asdict(BindSettings()) | settings, MADE, {s.key: s for s in studies}, hypotheses(studies)
    )
