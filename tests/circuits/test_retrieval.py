"""The scan on the real model: against whole eager forwards, resumed, saved, refused."""

import json

import numpy as np
import pytest
import torch

from circuits import scores
from circuits.measure import measure
from circuits.plan import ScanSettings, make_plan
from circuits.retrieval import scan
from circuits.scan_result import ScanResult
from circuits.wu2024 import fast, step_by_step
from interp.checks import eager
from interp.errors import PromptError, ResultError, UnknownNameError
from probes.haystack import LONGEST
from probes.wu2024 import DEFECTS, PublishedPrompt

pytestmark = pytest.mark.real
SMALL = {"lengths": (300, 600), "depths": (0.2, 0.8), "n_haystacks": 3, "min_haystacks": 3}


@pytest.fixture(scope="module")
def plan(real):
    return make_plan(real, ScanSettings(**SMALL))


@pytest.fixture(scope="module")
def result(real):
    return scan(real, **SMALL)


def test_scores_equal_those_of_one_whole_eager_forward_for_each_trial(real, plan):
    """No cache, no packing, no crop: the slow way, from transformers' own attention weights."""
    context, trials = plan.contexts[0], plan.trials[0]
    ours = measure(real, real.prefill(context.tokens), context, trials, plan.fmt, generate=False)
    for outcome in ours:
        trial = outcome.trial
        ids = [*context.tokens[: trial.length], *trial.suffix, *trial.answer]
        with eager(real):
            out = real.hf(torch.tensor([ids]), output_attentions=True, use_cache=False)
        first = trial.length + len(trial.suffix) - 1
        rows = torch.stack(out.attentions)[:, 0, :, first : first + len(trial.answer)].numpy()
        place = context.planted[trial.planted]
        answer = np.array(trial.answer)
        hits = scores.copied(rows.argmax(-1), answer, place.answer, answer)
        assert np.array_equal(outcome.scores["copy"], scores.copy_score(hits).astype("float32"))
        mass = rows[..., place.start : place.stop].sum(-1).mean(-1)
        assert np.allclose(outcome.scores["mass"], mass, atol=1e-5)
        best = out.logits[0, first : first + len(answer)].argmax(-1)
        assert outcome.forced == bool((best.numpy() == answer).all())


def test_the_answer_stands_in_the_context_where_the_plan_says(real, plan):
    for context, trials in zip(plan.contexts, plan.trials, strict=True):
        for trial in trials:
            span = context.planted[trial.planted].answer
            assert tuple(context.tokens[i] for i in span) == trial.answer
            assert real.tokenizer.decode(trial.answer).strip() == trial.value
            assert span.stop <= trial.length


def test_the_grid_holds_every_length_and_depth(plan):
    cells = {(t.length, t.depth) for t in plan.trials[0]}
    assert cells == {(n, d) for n in (300, 600) for d in (0.2, 0.8)}
    for context, group in zip(plan.contexts, plan.trials, strict=True):
        longest = max(len(p.tokens.ids) for p in plan_needles(plan))
        for trial in group:
            room = trial.length - context.n_head - longest
            off = abs(context.planted[trial.planted].start - context.n_head - trial.depth * room)
            # needles nearer than two needles are merged; they stand at ends of sentences
            assert off <= 2 * longest + LONGEST / 2 + 1


def plan_needles(plan):
    return [place for context in plan.contexts for place in context.planted]


@pytest.mark.parametrize("defects", [(), tuple(DEFECTS)], ids=["corrected", "as published"])
def test_the_published_loop_gives_the_same_scores_step_by_step(real, plan, defects):
    context = plan.contexts[0]
    trial = plan.trials[0][0]
    span = context.planted[trial.planted].answer
    prompt = PublishedPrompt(
        (*context.tokens[: trial.length], *trial.suffix), (span.start, span.stop), "", ()
    )
    ours, ids = fast(real, prompt, defects)
    theirs, their_ids = step_by_step(real, prompt, defects)
    assert ids == their_ids
    assert np.array_equal(ours, theirs)
    assert theirs.max() > 0


def test_result_survives_saving(result, tmp_path):
    folder = result.save(tmp_path / "run")
    again = ScanResult.load(folder)
    assert again.settings == json.loads(json.dumps(result.settings))
    assert again.trials.equals(result.trials)
    for name, value in result.values.items():
        assert np.array_equal(again.values[name], value, equal_nan=True)
    published = json.loads((folder / "heads.json").read_text())
    best = result.top(1)[0]
    mean = np.mean(published[f"{best.layer}-{best.head}"])
    assert mean == pytest.approx(result.mean()[best.layer, best.head], abs=1e-4)
    assert not list(tmp_path.glob(".*"))


def test_the_known_induction_heads_lead(result):
    """Heads 18.6, 17.3 were found to be the model's strongest induction heads independently."""
    induction = result.mean("induction")
    best = np.argsort(-induction, axis=None)[:4].tolist()
    assert {18 * 9 + 6, 17 * 9 + 3} <= set(best)
    assert set(map(str, result.top(5))) & {"L18H6", "L17H3", "L23H2", "L18H7"}


def test_a_killed_scan_goes_on_where_it_was(real, result, tmp_path):
    class KilledError(Exception):
        pass

    def kill(done, _total, _what):
        if done >= 4:
            raise KilledError

    with pytest.raises(KilledError):
        scan(real, **SMALL, parts=tmp_path / "parts", progress=kill)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "parts").glob("*.safetensors")}
    assert len(kept) == 1
    again = scan(real, **SMALL, parts=tmp_path / "parts")
    assert again.trials.drop(columns="logprob").equals(result.trials.drop(columns="logprob"))
    for name, mtime in kept.items():
        assert (tmp_path / "parts" / name).stat().st_mtime_ns == mtime
    for name, value in result.values.items():
        assert np.allclose(again.values[name], value, atol=1e-5)


def test_parts_of_other_settings_are_refused(real, tmp_path):
    def kill(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(real, **SMALL, parts=tmp_path, progress=kill)
    with pytest.raises(ResultError, match="settings differ"):
        scan(real, **(SMALL | {"seed": 5}), parts=tmp_path)


REFUSED = {
    "longer than the model": ({"lengths": (9000,)}, PromptError, "context is 8192"),
    "too short for a needle": ({"lengths": (20,)}, PromptError, "64 or more"),
    "a depth above 1": ({"depths": (0.5, 3.0)}, PromptError, "between 0 and 1"),
    "more text than there is": ({"n_haystacks": 500}, PromptError, "tokens"),
    "a kind that is not there": ({"kinds": ("factt",)}, UnknownNameError, "did you mean fact"),
    "a haystack that is not there": ({"haystack": ("no.txt",)}, PromptError, "no.txt"),
}


@pytest.mark.parametrize(("options", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_bad_settings_are_refused_before_anything_runs(real, options, error, words):
    with pytest.raises(error, match=words):
        scan(real, **(SMALL | options))
