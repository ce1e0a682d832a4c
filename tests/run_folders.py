"""A small run folder of every kind of result, made by the same functions that users call."""

import functools
import importlib.util
from dataclasses import replace
from pathlib import Path

import families
import numpy as np
import pandas as pd
import reactivations
import texts
import worlds

import interp
from apps.result_kinds import KINDS

HERE = Path(__file__).parent / "apps"


def fixture(name):
    """A test file as a module, for the results that it makes."""
    spec = importlib.util.spec_from_file_location(f"{name}_fixture", HERE / f"test_{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def tiny():
    return interp.load(families.tiny("llama"), tokenizer=texts.space_tokenizer(), check=False)


@functools.cache
def series():
    return {"first": tiny(), "last": interp.load(
        families.tiny("llama", seed=1), tokenizer=texts.space_tokenizer(), check=False
    )}  # fmt: skip


def _binding():
    """A study that is refused, and one under four names, so that the last ones are folded."""
    world = fixture("binding_figures")
    asked = world.study(cases=6, sets=4)
    names = [replace(asked, key=f"{asked.key}-{i}", filler=i) for i in range(3)]
    return world.run(world.study(task="boxes", target="thing", accuracy=0.1), *names)


def _patch():
    from circuits.patching import patch

    model, _ = worlds.world("induction_pair")
    sites = ("resid_pre", "z")
    return patch(model, layers=2, sites=sites, n_needles=2, n_confirm=2, length=101,
                 prompts=tuple(worlds.PROMPTS.items()))  # fmt: skip


def _circuit():
    from circuits.circuit import find_circuit

    model, truth = worlds.world("induction_pair")
    return find_circuit(model, truth.heads("copy"), receivers=1, senders=1, n_random=2, n_needles=2,
                        length=101, prompts=tuple(worlds.PROMPTS.items()))  # fmt: skip


@functools.cache
def graph():
    from circuits.graph_run import function_tokens
    from probes.feature_files import write_dictionary

    where = write_dictionary(reactivations.dictionary(), worlds.FOLDER / "dictionary")
    return function_tokens(tiny(), texts.texts(30), features=str(where), length=24, skip_first=2,
                           blocks=4, draws=20, top=4)  # fmt: skip


def _effects():
    from circuits.effect_plan import EffectSettings
    from circuits.effects_run import feature_effects

    settings = EffectSettings(n_trials=8, draws=19, context=40)
    return feature_effects(tiny(), graph(), texts.texts(12, seed=7), settings)


def _reactivation():
    from circuits.reactivation_corpus import reactivation
    from circuits.reactivation_plan import ReactivationSettings

    settings = ReactivationSettings(densest=0.55, n_predictions=3, context=12, n_features=4,
                                    n_exact=2, shuffles=4)  # fmt: skip
    return reactivation(tiny(), graph(), texts.texts(12, seed=7), settings)


def _weights():
    from circuits.weight_circuits import read_weights

    return read_weights(tiny(), "L1H1,L1H0", senders="L0H0", n_random=20)


def _free():
    """A made-up intervention that takes most of the answers away."""
    from circuits.effects import judge, measure_effect
    from circuits.free_result import FreeEdits

    rng = np.random.default_rng(0)
    before = -rng.random(8)
    after, controls = before - 3 - rng.random(8), before - 0.1 * rng.random((39, 8))
    needles = [f"needle-{i}" for i in range(8)]
    effect = measure_effect(
        before, after, controls, clusters=needles, name="top 2", ablation="halve",
        scope="as written", direction="ablate", metric="log-probability", unit="nats",
    )  # fmt: skip
    trials = [
        {
            "needle": n,
            "value": "<b>7</b>",
            "before": float(b),
            "after": float(a),
            "random": float(r),
        }
        for n, b, a, r in zip(needles, before, after, controls.mean(0), strict=True)
    ]
    return FreeEdits(
        {"intervention": "def halve(m, heads, question): ...", "heads": ["L0H1", "L1H1"]},
        fixture("figures").provenance("planted"), judge(effect, smallest=0.1), trials,
        controls.tolist(), ("8 of 8 test questions are answered by the model as it is",),
    )  # fmt: skip


def _losses():
    from circuits.loss_run import loss_groups

    return loss_groups(series(), texts.texts(8), length=24, skip_first=2, bos="never", n_draws=20)


def _growth():
    from circuits.growth_plan import GrowthSettings
    from circuits.growth_run import feature_growth

    return feature_growth(
        series(), texts.texts(12), GrowthSettings(
            layers=(1,), tokens=80, train_tokens=10, length=24, separate="none", control="none",
        ), shared=[reactivations.dictionary()],
    )  # fmt: skip


def _calibration():
    """Rows as a planted model would give them: one detector, one claim."""
    from circuits.calibration_result import CalibrationResult

    made = vars(fixture("figures").provenance("planted"))
    detectors = [
        {"table": "detectors", "model": "copy", "seed": 0, "detector": "copy", "truth": truth,
         "auroc": 0.9, "true": 2, "found": 1, "false": 8, "fooled": 1, "fooled_by": ["random"]}
        for truth in ("attends", "causal")
    ]  # fmt: skip
    claim = {
        "table": "claims", "model": "copy", "seed": 0, "claim": "copying heads", "heads": "L0H1",
        "test": "zero", "expected": "supported", "verdict": "inconclusive", "right": False,
        "reason": "few", "why": "they copy",
    }  # fmt: skip
    repair = {"table": "repair", "model": "copy", "seed": 0, "head": "L0H1", "total": 1.0,
              "direct": 1.0, "low": -0.1, "high": 0.1, "seen": False, "expected": False,
              "right": True}  # fmt: skip
    settings = {"models": ["copy"], "seeds": 1, "n_heads": 8, "scope": "suffix"}
    return CalibrationResult.of(
        settings, [*detectors, claim, repair, {"table": "made", "seed": 0, **made}]
    )


def _binding_calibration():
    from circuits.binding_calibration_result import BindingCalibration

    row = {"model": "lexical", "seed": 0, "mechanisms": "lexical", "named": "lexical",
           "right": True, "mislabelled": False, "where": None, "where_right": None,
           "weights_off": np.nan, "sigma_off": np.nan}  # fmt: skip
    made = _with_versions(fixture("figures").provenance("planted"))
    return BindingCalibration({"models": ["lexical"], "seeds": 1, "n": 8}, made,
                              pd.DataFrame([row]))  # fmt: skip


def _graph_calibration():
    from circuits.graph_calibration import GraphCalibration

    row = {"world": "null", "seed": 0, "expected": False, "verdict": "unsupported", "right": True,
           "without_shuffle": 1.0, "ratio": 1.0, "false_hubs": 0, "hubs": 0, "found": 0,
           "exponent_off": np.nan}  # fmt: skip
    made = _with_versions(fixture("figures").provenance("planted worlds"))
    return GraphCalibration({"worlds": ["null"], "seeds": 1}, made, pd.DataFrame([row]))


def _with_versions(made):
    return replace(made, versions={"mnemoscope": "0.1.0", "torch": "2"})


MAKE = {
    "scan": lambda: fixture("figures").scan_result(),
    "validation": lambda: fixture("validation_figures").validation(),
    "patch": _patch,
    "circuit": _circuit,
    "weight-circuits": _weights,
    "free-edits": _free,
    "binding": _binding,
    "function-tokens": graph,
    "feature-effects": _effects,
    "reactivation": _reactivation,
    "loss-groups": _losses,
    "feature-growth": _growth,
    "calibration": _calibration,
    "binding-calibration": _binding_calibration,
    "graph-calibration": _graph_calibration,
}
assert set(MAKE) == set(KINDS)


@functools.cache
def run_folders():
    """A folder of each kind, by kind; made once, so not to be written to."""
    base = worlds.FOLDER / "runs"
    return {kind: make().save(base / kind) for kind, make in MAKE.items()}
