"""Interventions written by a user, scored by our controls: held against `validate` itself."""

import json

import numpy as np
import pytest
import torch
import worlds

import circuits
import interp
from circuits.free_edits import Question, score_intervention
from circuits.free_result import FreeEdits
from circuits.validation import validate
from circuits.validation_plan import ValidateSettings
from interp.errors import ModelError, PromptError, ResultError, SiteError
from interp.sites import Head

SETTINGS = {
    "n_needles": 8, "length": 101, "depths": (0.2, 0.5, 0.8), "n_draws": 39,
    "prompts": tuple(worlds.PROMPTS.items()),
}  # fmt: skip


@pytest.fixture(scope="module")
def world():
    fast, truth = worlds.world("induction_pair")
    slow = interp.load(fast.hf, tokenizer=fast.tokenizer, backend="nnsight")
    heads = [*truth.heads("copy"), *truth.heads("previous"), Head(2, 0)]
    return fast, slow, heads


def zero_in_the_suffix(m, heads, question):
    """The same change as the `zero` ablation of scope `suffix`, written as nnsight code."""
    for head in sorted(heads):
        out = m.model.layers[head.layer].self_attn.o_proj
        z = out.input.clone()
        d = z.shape[-1] // m.config.num_attention_heads
        z[:, question.suffix :, head.head * d : (head.head + 1) * d] = 0
        out.input = z


def test_a_zero_ablation_by_hand_has_the_effect_that_validate_measures(world):
    """Another backend, another way to edit, the same questions and matched sets: same numbers."""
    fast, slow, heads = world
    ours = score_intervention(slow, heads, zero_in_the_suffix, top=3, **SETTINGS)
    plain = {"ablations": ("zero",), "curve": (), "alone": False, "specificity": False}
    theirs = validate(fast, heads, ValidateSettings(**SETTINGS, **plain, top=3))
    want = next(f for f in theirs.findings if f.effect.direction == "ablate")
    got = ours.finding
    assert got.verdict == want.verdict == "supported"
    for field in ("baseline", "treated", "control", "control_low", "effect", "excess"):
        assert getattr(got.effect, field) == pytest.approx(getattr(want.effect, field), abs=1e-3)
    assert got.effect.n_trials == want.effect.n_trials and got.effect.n_draws == 39
    assert got.effect.ablation == "zero_in_the_suffix" and "necessary" in got.claim
    assert np.shape(ours.controls) == (39, len(ours.trials))
    frame = ours.to_frame()
    assert frame["after"].mean() == pytest.approx(got.effect.treated)
    assert frame["random"].mean() == pytest.approx(got.effect.control)


def test_what_does_no_more_than_random_heads_is_not_supported(world):
    _, slow, heads = world

    def nudge(m, chosen, question):
        layer = m.model.layers[max(h.layer for h in chosen)]
        layer.output = layer.output + 1e-4

    small = {**SETTINGS, "n_needles": 6}
    result = score_intervention(slow, heads, nudge, top=3, **small)
    assert result.finding.verdict == "unsupported"


def test_a_trace_that_touches_nothing_is_an_error(world):
    _, slow, heads = world
    small = {**SETTINGS, "n_needles": 3}

    def looks(m, chosen, question):
        m.model.layers[0].output.sum()

    def puts_back(m, chosen, question):
        m.model.layers[0].output = m.model.layers[0].output.clone()

    for idle in (looks, puts_back):
        with pytest.raises(SiteError, match=f"{idle.__name__} changed nothing on any of"):
            score_intervention(slow, heads, idle, top=3, **small)


def test_an_error_in_the_intervention_is_one_line_and_loses_nothing(world, tmp_path):
    _, slow, heads = world
    small, calls, patience = {**SETTINGS, "n_needles": 3}, [], [20]

    def breaks(m, chosen, question):
        calls.append(1)
        if len(calls) > patience[0]:
            raise KeyError("no such thing")
        m.model.layers[1].output = m.model.layers[1].output * 0.5

    with pytest.raises(SiteError, match="breaks failed on L.*KeyError: 'no such thing'"):
        score_intervention(slow, heads, breaks, top=3, parts=tmp_path, **small)
    assert len(list(tmp_path.glob("c*.safetensors"))) == 3
    calls.clear()
    patience[0] = 1000
    score_intervention(slow, heads, breaks, top=3, parts=tmp_path, **small)
    assert len(calls) == 3 * 39

    def backwards(m, chosen, question):
        m.model.layers[1].output = m.model.layers[1].output * 0.5
        m.model.layers[0].output = m.model.layers[0].output * 0.5

    with pytest.raises(SiteError, match="backwards failed on .*OutOfOrderError"):
        score_intervention(slow, heads, backwards, top=3, **small)


def test_results_say_what_was_asked_and_bad_input_is_refused(world, tmp_path):
    fast, slow, heads = world
    small = {**SETTINGS, "n_needles": 3}
    result = score_intervention(slow, heads, zero_in_the_suffix, top=3, **small)
    assert isinstance(result, FreeEdits)
    back = FreeEdits.load(result.save(tmp_path / "run"))
    assert back.finding == result.finding and back.trials == result.trials
    assert back.controls == result.controls
    assert back.settings == json.loads(json.dumps(result.settings))
    assert {len(d.x) for d in back.figure().data} == {len(result.trials)}
    with pytest.raises(ResultError, match="unknown figure"):
        back.figure("maps")
    assert "out.input = z" in result.settings["intervention"]
    assert result.finding.verdict in result._repr_html_()
    with pytest.raises(
        ModelError, match="hf backend runs no free interventions.*backend='nnsight'"
    ):
        score_intervention(fast, heads, zero_in_the_suffix, **small)
    with pytest.raises(PromptError, match="needs generated text"):
        score_intervention(slow, heads, zero_in_the_suffix, metric="rouge", generate=True,
                           n_generated=39, **small)  # fmt: skip
    assert circuits.score_intervention is score_intervention


def test_an_intervention_travels_as_the_traces_do(world):
    """nnsight's rehearsal of its service: the function is shipped by value."""
    from nnsight import TransformersModel

    fast, slow, heads = world
    wrapper = TransformersModel(fast.hf, tokenizer=fast.tokenizer)
    there = interp.load(wrapper, backend="nnsight", remote="local", check=False)
    question = Question(tuple(range(3, 20)), 9, (16,), (4,), (5,), (7,), None)
    tokens = torch.tensor([question.tokens])
    a, b = (m.tap.free(tokens, zero_in_the_suffix, tuple(heads), question) for m in (slow, there))
    assert torch.allclose(a, b, atol=1e-5)
