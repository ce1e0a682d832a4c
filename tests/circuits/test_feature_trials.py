"""Features taken away: against hooks on the bare model, and places that are equally far."""

import numpy as np
import pytest
import torch
from families import tiny
from texts import space_tokenizer

import interp
from circuits import EffectSettings, FeatureEffects
from circuits.effect_plan import DISTANCES, check_effects
from circuits.feature_findings import as_rows, contrasts, findings
from circuits.feature_trials import find_trials, measure_trials
from circuits.shelf import Shelf
from interp.errors import PromptError, UnknownNameError
from interp.sites import Site
from probes.features import Dictionary

WIDTH, LAYER = 40, 1
SETTINGS = EffectSettings(n_trials=12, context=48, draws=19)


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return interp.load(tiny("llama"), tokenizer=space_tokenizer(), check=False)


@pytest.fixture(scope="module")
def dictionary(model):
    rows = torch.randn(WIDTH, model.spec.d_model, generator=torch.Generator().manual_seed(0))
    return Dictionary(
        "made", "topk", rows.T.contiguous(), torch.zeros(WIDTH), rows,
        torch.zeros(model.spec.d_model), site=Site("resid_post", LAYER), k=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def function(model):
    return np.arange(model.spec.d_vocab) % 2 == 0


@pytest.fixture(scope="module")
def trials(model, function):
    rng = np.random.default_rng(0)
    texts = ((i, tuple(rng.integers(3, 120, 400).tolist())) for i in range(20))
    return find_trials(texts, function, SETTINGS)


@pytest.fixture(scope="module")
def rows(model, dictionary, function, trials):
    return measure_trials(
        model, dictionary, np.arange(WIDTH), trials, function, SETTINGS, shelf=Shelf(None, {})
    )


def test_places_have_their_class_and_distance(trials, function):
    assert len(trials) == SETTINGS.n_trials
    for t in trials:
        assert not function[t.answer]
        for (place, distance), p in t.places.items():
            low, high = DISTANCES[distance]
            assert low <= len(t.tokens) - 1 - p <= high
            if place != "random":
                assert function[t.tokens[p]] == (place == "function")
        for distance in DISTANCES:
            gaps = [
                abs(f - c)
                for f in range(*_span(t, distance))
                for c in range(*_span(t, distance))
                if function[t.tokens[f]] and not function[t.tokens[c]]
            ]
            own = t.places["function", distance] - t.places["content", distance]
            assert abs(own) == min(gaps)


def _span(trial, distance):
    low, high = DISTANCES[distance]
    return len(trial.tokens) - 1 - high, len(trial.tokens) - low


def test_taking_away_equals_a_hook_on_the_bare_model(model, dictionary, trials, rows):
    for row in [r for r in rows if r["trial"] < 3]:
        trial = trials[row["trial"]]
        p = len(trial.tokens) - 1 - row["apart"]
        tokens = torch.tensor([trial.tokens])
        layer = model.hf.model.layers[LAYER]

        def change(_module, _args, out, p=p):
            x = out[0] if isinstance(out, tuple) else out
            z = dictionary.encode(x[0, p][None])
            x = x.clone()
            x[0, p] = x[0, p] - (z @ dictionary.W_dec)[0]
            return (x, *out[1:]) if isinstance(out, tuple) else x

        with torch.no_grad():
            before = model.hf(tokens).logits[0, -1].log_softmax(-1)[trial.answer]
            hook = layer.register_forward_hook(change)
            after = model.hf(tokens).logits[0, -1].log_softmax(-1)[trial.answer]
            hook.remove()
        assert row["baseline"] == pytest.approx(float(before), abs=1e-4)
        assert row["treated"] == pytest.approx(float(after), abs=1e-4)
        assert len(row["random direction"]) == len(row["matched features"]) == SETTINGS.draws


def test_a_planted_use_of_function_tokens_is_found_and_no_other():
    """Rows as a run makes them, in which features matter at near function tokens alone."""
    rng = np.random.default_rng(1)
    planted = []
    for trial in range(40):
        for place in ("function", "content", "random"):
            for distance in DISTANCES:
                base = float(rng.normal(-3, 1))
                loss = 0.6 if (place, distance) == ("function", "near") else 0.0
                noise = rng.normal(0, 0.02, (2, 20))
                planted.append({
                    "trial": trial, "document": trial, "place": place, "distance": distance,
                    "apart": 3, "removed": 1.0, "baseline": base,
                    "treated": base - loss + float(rng.normal(0, 0.02)),
                    "random direction": (base + noise[0]).tolist(),
                    "matched features": (base + noise[1]).tolist(),
                })  # fmt: skip
    found = findings(planted, EffectSettings(draws=20))
    named = {f.effect.name for f in found if f.verdict == "supported"}
    assert named == {"features at a function token, near"}
    assert all(f.verdict != "supported" for f in found if "content" in f.effect.name)
    table = {row["distance"]: row for row in contrasts(planted, SETTINGS)}
    assert table["near"]["high"] < 0
    assert table["near"]["difference"] == pytest.approx(-0.6, abs=0.05)
    assert table["far"]["difference"] == pytest.approx(0, abs=0.02)


def test_findings_tell_where_features_were_taken(rows):
    found = findings(rows, SETTINGS)
    assert {f.effect.ablation for f in found} == {
        "all features, random direction", "all features, matched features",
    }  # fmt: skip
    assert all("necessary" in f.claim and "features at a" in f.claim for f in found)


def test_a_result_survives_saving(tmp_path, rows):
    import pandas as pd

    from interp.store import Provenance

    made = Provenance(*(["x"] * 7), 1, 1, *(["x"] * 3), {}, "now", 1.0, None)
    result = FeatureEffects(
        {}, made, "L1", pd.DataFrame(rows), as_rows(findings(rows, SETTINGS)),
        contrasts(rows, SETTINGS),
    )  # fmt: skip
    back = FeatureEffects.load(result.save(tmp_path / "run"))
    assert back.contrasts == result.contrasts and len(back.to_frame()) == 18
    assert back.figure().data


def test_what_cannot_be_tested_is_refused(function):
    with pytest.raises(UnknownNameError, match="choice of features"):
        check_effects(EffectSettings(what="some"))
    with pytest.raises(PromptError, match="19 draws"):
        check_effects(EffectSettings(draws=3))
    with pytest.raises(PromptError, match="only 0 predictions"):
        find_trials(iter([(0, (1, 2, 3))]), function, SETTINGS)


def test_trials_of_another_text_are_other_trials(trials):
    from circuits.feature_trials import trials_digest

    assert trials_digest(trials) == trials_digest(list(trials))
    assert trials_digest(trials[:-1]) != trials_digest(trials)
