"""Kept attention rows, pooled maps, and a trial at hand: against whole rows of eager forwards."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from worlds import PROMPTS, world

from circuits.ablations import ABLATIONS
from circuits.attention.capture import capture_rows, region_of
from circuits.attention.desk import TrialDesk, most_moved
from circuits.attention.record import RECENT, REGIONS, STEPS
from circuits.attention.window import QUERIES, edges, pooled, pooled_maps, trial_tokens
from circuits.plan import ScanSettings, make_plan
from circuits.retrieval import scan
from circuits.scan_result import ScanResult
from circuits.station import Station
from interp.checks import eager
from interp.errors import PromptError, ResultError, SiteError, UnknownNameError
from interp.sites import Head
from interp.trace import RowRead
from probes.cases import scenes

ASKED = {**PROMPTS, "lengths": (96, 192), "depths": (0.2, 0.8), "n_haystacks": 1}
"""A scan of a planted model: seconds."""


@pytest.fixture(scope="module")
def model():
    return world("copy_content")[0]


@pytest.fixture(scope="module")
def result(model):
    return scan(model, **ASKED)


@pytest.fixture(scope="module")
def plan(model):
    return make_plan(model, ScanSettings(**ASKED))


def whole_rows(model, tokens):
    """`[layer, head, query, key]` of one whole eager forward: no cache, no prefix, no reduction."""
    with eager(model), torch.no_grad():
        out = model.hf(torch.tensor([tokens]), output_attentions=True, use_cache=False)
    return torch.stack(out.attentions)[:, 0].float().numpy()


def trial_of(plan, name):
    return next(
        (plan.contexts[i], t) for i, g in enumerate(plan.trials) for t in g if t.name == name
    )


def agrees_with_eager(model, plan, record):
    for rows in record.trials:
        context, trial = trial_of(plan, rows.trial)
        full = whole_rows(model, trial_tokens(context, trial))
        for i, query in enumerate(rows.positions):
            row = full[:, :, query]
            best = np.sort(row, -1)[..., ::-1][..., : rows.keys.shape[-1]]
            mine = rows.weights[:, :, i] / STEPS
            assert np.allclose(mine, best, atol=2 / STEPS)
            at = np.take_along_axis(row, rows.keys[:, :, i].clip(min=0).astype(int), -1)
            assert np.allclose(np.where(rows.keys[:, :, i] < 0, 0, at), mine, atol=2 / STEPS)
            assert np.allclose(rows.regions[:, :, i].sum(-1) / STEPS, 1, atol=8 / STEPS)
            start, stop = rows.spans["value"]
            value = list(REGIONS).index("value")
            assert np.allclose(
                rows.regions[:, :, i, value] / STEPS, row[..., start:stop].sum(-1), atol=2 / STEPS
            )


def test_kept_keys_are_the_heaviest_of_whole_eager_rows(model, plan, result):
    assert len(result.attention.trials) == 4
    agrees_with_eager(model, plan, result.attention)


@pytest.mark.real
def test_so_they_are_on_the_real_model_with_grouped_heads(real):
    settings = {"lengths": (256,), "depths": (0.5,), "n_haystacks": 1, "attention": 1}
    found = scan(real, **settings)
    agrees_with_eager(real, make_plan(real, ScanSettings(**settings)), found.attention)


def test_rows_are_the_last_of_the_question_and_those_that_produce_the_answer(model, plan, result):
    decode = model.tokenizer.decode
    for rows in result.attention.trials:
        _, trial = trial_of(plan, rows.trial)
        assert rows.produced[-len(trial.answer) :] == tuple(decode([i]) for i in trial.answer)
        assert rows.positions[-1] == trial.length + len(trial.suffix) + len(trial.answer) - 2
        asked = rows.positions[: -len(trial.answer)]
        assert all(trial.length + trial.question.start <= p for p in asked)
        assert len(rows.suffix) == len(trial.suffix) + len(trial.answer) - 1


def test_contributions_over_all_keys_make_the_heads_whole_contribution(model, plan):
    context, trial = plan.contexts[0], plan.trials[0][0]
    prefix = model.prefill(context.tokens)
    rows = capture_rows(model, prefix, context, trial, k=400)  # as many keys as there are
    from circuits.measure import answer_directions

    suffix = (*trial.suffix, *trial.answer[:-1])
    answers = tuple(range(len(trial.suffix) - 1, len(suffix)))
    read = RowRead((answers,), directions=answer_directions(model, context, [trial], 0))
    trace = model.extend(prefix, [suffix], at=[trial.length], read=[read]).rows[0]
    n = len(trial.answer)
    mine = np.nansum(rows.toward[:, :, -n:].astype(float), -1)
    assert np.abs(mine).max() > 0.5
    assert np.allclose(mine, trace.toward_all.numpy(), atol=2e-2)
    assert np.isnan(rows.toward[:, :, :-n].astype(float)).all()


def test_a_key_belongs_to_the_first_region_that_it_fits():
    spans = {"value": [40, 42], "needle": [35, 44], "distractors": [[10, 20]], "question": [60, 66]}
    names = [list(REGIONS)[i] for i in region_of(spans, (70,), 71)[0]]
    assert names[0] == "sink" and names[1] == "rest"
    assert names[10:20] == ["distractors"] * 10
    assert names[35:44] == ["needle"] * 5 + ["value"] * 2 + ["needle"] * 2
    assert names[60:66] == ["question"] * 6
    assert names[44:60] == ["recent"] * 16 and RECENT > 70 - 44


def test_trials_are_spread_over_the_cells(plan):
    def kept(n):
        return replace(plan, settings=replace(plan.settings, attention=n))

    assert len(kept(50).kept_trials) == 4
    assert [t.length for _, t in kept(2).kept_trials] == [96, 192]
    assert kept(0).kept_trials == []
    first = kept(1).kept_trials[0][1]
    more = 2 * (len(first.suffix) + len(first.answer)) + first.length
    assert kept(1).n_tokens - kept(0).n_tokens == more


# -- windows and maps -------------------------------------------------------------------------


def test_a_pooled_window_is_the_largest_of_each_cell(model, plan):
    context, trial = plan.contexts[0], plan.trials[0][0]
    tokens = trial_tokens(context, trial)
    full = whole_rows(model, tokens)
    prefix = model.prefill(context.tokens[: trial.length])
    heads = [Head(0, 0), Head(1, 3)]
    for q, k in (((0, 7, 50, len(tokens)), (0, 1, 30, len(tokens))), ((90, 101), (5, 6, 20))):
        found = pooled(model, prefix, tokens, heads, q_edges=q, k_edges=k)
        for h, head in enumerate(heads):
            for i in range(len(q) - 1):
                for j in range(len(k) - 1):
                    cell = full[head.layer, head.head, q[i] : q[i + 1], k[j] : k[j + 1]]
                    assert found[h, i, j] == pytest.approx(cell.max(), abs=1e-5)


def test_a_map_of_a_shorter_trial_does_not_see_the_context_behind_it(model):
    """More than one chunk of queries, in a context that goes on behind the trial."""
    asked = make_plan(model, ScanSettings(**(ASKED | {"lengths": (125, 192)})))
    context = asked.contexts[0]
    trial = next(t for t in asked.trials[0] if t.length == 125)
    tokens = trial_tokens(context, trial)
    assert len(tokens) > QUERIES and len(context.tokens) > len(tokens)
    heads = [Head(layer, 1) for layer in range(model.spec.n_layers)]
    maps = pooled_maps(model, model.prefill(context.tokens), context, trial, heads)
    full = whole_rows(model, tokens)
    for h, head in enumerate(heads):
        rows = full[head.layer, head.head][trial.length :, trial.length :]
        found = maps.values[h][-len(rows) :, -len(rows) :] / STEPS
        assert np.abs(found - rows).max() < 1.5 / STEPS


def test_a_single_heavy_token_cannot_vanish_from_a_map(model, plan, result):
    maps = result.attention.maps
    context, trial = trial_of(plan, maps.trial)
    full = whole_rows(model, trial_tokens(context, trial))
    for h, head in enumerate(maps.heads):
        assert maps.values[h].max() / STEPS == pytest.approx(
            full[head.layer, head.head].max(), abs=2 / STEPS
        )
    # every token behind the context has a row of its own
    assert maps.q_edges[-1] - maps.q_edges[-2] == 1 and maps.q_edges[-1] == full.shape[-1]


@pytest.mark.parametrize("bounds", [(3,), (5, 5), (9, 4), (-1, 5), (0, 10**6)])
def test_bad_bounds_are_refused(model, plan, bounds):
    tokens = trial_tokens(plan.contexts[0], plan.trials[0][0])
    prefix = model.prefill(tokens[:50])
    with pytest.raises(SiteError, match="bounds|leave"):
        pooled(model, prefix, tokens, [Head(0, 0)], q_edges=bounds, k_edges=(0, 5))


def test_bins_cover_the_window_with_a_token_each_at_least():
    assert edges(3, 8) == (3, 4, 5, 6, 7, 8)
    wide = edges(0, 1000, 96)
    assert wide[0] == 0 and wide[-1] == 1000 and len(wide) == 97
    assert max(np.diff(wide)) - min(np.diff(wide)) <= 1


# -- files ------------------------------------------------------------------------------------


def test_a_saved_record_is_read_back_whole(result, tmp_path):
    again = ScanResult.load(result.save(tmp_path / "run")).attention
    for mine, theirs in zip(result.attention.trials, again.trials, strict=True):
        assert mine.about() == theirs.about()
        for name, array in mine.arrays().items():
            assert np.array_equal(array, theirs.arrays()[name], equal_nan=name == "toward")
    assert again.maps.about() == result.attention.maps.about()
    assert np.array_equal(again.maps.values, result.attention.maps.values)
    assert again.contexts == result.attention.contexts


def test_a_run_without_attention_is_read_as_before(model, tmp_path):
    found = scan(model, **ASKED, attention=0)
    assert found.attention is None
    assert ScanResult.load(found.save(tmp_path / "run")).attention is None


@pytest.mark.parametrize("harm", ["cut", "regions", "gone"])
def test_a_harmed_record_is_told_in_one_line(result, tmp_path, harm):
    folder = result.save(tmp_path / "run")
    index, tensors = folder / "attention.json", folder / "attention.safetensors"
    if harm == "cut":
        tensors.write_bytes(tensors.read_bytes()[:2000])
    elif harm == "gone":
        tensors.unlink()
    else:
        index.write_text(index.read_text("utf-8").replace('"recent"', '"lately"', 1), "utf-8")
    with pytest.raises(ResultError, match="is damaged"):
        ScanResult.load(folder)


def test_a_resumed_scan_keeps_the_same_rows(model, result, tmp_path):
    scan(model, **ASKED, parts=tmp_path / "parts")
    kept = sorted(p.name for p in (tmp_path / "parts").glob("attention-*"))
    assert len(kept) == 5
    (tmp_path / "parts" / kept[1]).unlink()
    again = scan(model, **ASKED, parts=tmp_path / "parts").attention
    for mine, theirs in zip(result.attention.trials, again.trials, strict=True):
        assert np.array_equal(mine.weights, theirs.weights)


# -- a trial at hand --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(model, result):
    return TrialDesk(model, result)


def test_a_trial_read_again_gives_the_rows_that_were_kept(desk, result):
    for kept in result.attention.trials:
        again = desk.rows(kept.trial)
        assert again.about() == kept.about()
        assert np.abs(again.weights.astype(int) - kept.weights.astype(int)).max() <= 1
    assert desk.context_text(0) == result.attention.contexts[0]


def test_a_window_of_the_desk_is_cut_to_the_trial(desk, model, plan):
    context, trial = plan.contexts[0], plan.trials[0][0]
    full = whole_rows(model, trial_tokens(context, trial))
    q, k, z = desk.window(trial.name, Head(1, 2), [90, 10**6, -5, 40])
    assert q[0] == 90 and q[-1] == full.shape[-1] and (k[0], k[-1]) == (0, 40)
    assert np.allclose(z, full[1, 2, 90:, :40], atol=1e-5)


@pytest.mark.parametrize("how", ["zero", "uniform", "knockout"])
def test_what_if_equals_the_same_set_in_a_validation(desk, model, plan, result, how):
    heads = result.top(2)
    _, trial = trial_of(plan, result.attention.trials[0].trial)
    found = desk.what_if(trial.name, heads, how=how, where="decode", draws=3)
    cut = replace(plan.contexts[0], tokens=plan.contexts[0].tokens[: trial.length])
    scene = scenes([cut], [[trial]], fmt=plan.fmt)[0]
    station = Station(model, (), scope="decode")
    slow = [station.run(scene, scene.cases[0], [s], how=ABLATIONS[how])[0, 0] for s in ((), heads)]
    assert [found.before, found.after] == pytest.approx(slow, abs=1e-4)
    assert len(found.random) == 3 and found.answer == trial.value
    assert found.after < found.before


def test_attention_on_the_needle_is_told_plain_and_ablated(desk, model, plan, result):
    rows = result.attention.trials[0]
    context, trial = trial_of(plan, rows.trial)
    first = result.top(1)[0]
    found = desk.what_if(rows.trial, [first], how="zero", where="decode", draws=2)
    full = whole_rows(model, trial_tokens(context, trial))
    at = [p for p, made in zip(rows.positions, rows.produced, strict=True) if made]
    start, stop = rows.spans["needle"]
    assert np.allclose(found.looked[0], full[:, :, at, start:stop].sum(-1).mean(-1), atol=1e-4)
    assert np.isnan(found.looked[1, first.layer, first.head])
    below = found.looked[1, : first.layer]
    assert np.allclose(below, found.looked[0, : first.layer], atol=1e-5)
    assert first not in [h for h, _ in most_moved(found)[:1]]


def test_everywhere_has_numbers_but_no_text(desk, result):
    trial = result.attention.trials[0].trial
    found = desk.what_if(trial, result.top(1), how="zero", where="everywhere", draws=1)
    assert found.said_after == "" and most_moved(found) == [] and np.isfinite(found.after)


def test_bad_questions_are_refused_in_one_line(desk, result):
    trial = result.attention.trials[0].trial
    ask = {"how": "zero", "where": "decode", "draws": 2}
    with pytest.raises(UnknownNameError, match="trial"):
        desk.rows("c000-n96-d0.20-nothing")
    with pytest.raises(ResultError, match="no head L99H0"):
        desk.what_if(trial, [Head(99, 0)], **ask)
    with pytest.raises(ResultError, match="distinct"):
        desk.what_if(trial, [], **ask)
    with pytest.raises(UnknownNameError, match="ablation"):
        desk.what_if(trial, result.top(1), **ask | {"how": "remove"})
    with pytest.raises(PromptError, match="not defined everywhere"):
        desk.what_if(trial, result.top(1), **ask | {"how": "knockout", "where": "everywhere"})
    with pytest.raises(ResultError, match="is empty"):
        desk.window(trial, Head(0, 0), [5, 5, 0, 9])


def test_a_model_of_another_run_is_refused(result):
    other = world("induction_pair")[0]
    with pytest.raises(ResultError, match="not the model of this run"):
        TrialDesk(other, result)


def test_a_preset_run_is_refused(model, result):
    preset = replace(result, settings=result.settings | {"preset": "wu2024"})
    with pytest.raises(ResultError, match="preset"):
        TrialDesk(model, preset)
