"""Every named ablation, set by set, against whole forwards of the bare model edited by formula."""

import bare
import numpy as np
import pytest
import torch
import worlds

from circuits import interventions as run
from circuits.ablations import ABLATIONS, SCOPES, ablation, edits_of, scope
from circuits.case_metrics import FORCED
from circuits.measure import stop_tokens
from interp.checks import check_edits
from interp.errors import PromptError, UnknownNameError
from interp.sites import Head
from probes.rouge import contains, rouge1_recall

SETS = [(), (Head(1, 0),), (Head(0, 3), Head(1, 0), Head(1, 5)), (Head(2, 7), Head(0, 3))]
MODELS = ("grouped", "window", "induction_pair")


@pytest.fixture(scope="module", params=MODELS)
def ready(request):
    model, truth = worlds.world(request.param)
    scene = worlds.scene(request.param)
    # the last needle stands inside every window
    return model, scene, scene.cases[-1], truth


def means_by_hand(model, scene):
    """Sum over every token of every question, one whole forward each."""
    total, count = {}, {}
    for case in scene.cases:
        tokens = [*scene.context.tokens[: case.trial.length], *case.suffix]
        z = bare.outputs(model.hf, tokens, model.spec.n_layers)
        z = torch.stack([z[layer] for layer in range(model.spec.n_layers)])
        for i, name in enumerate(case.classes):
            total[name] = total.get(name, 0) + z[:, :, case.trial.length + i]
            count[name] = count.get(name, 0) + 1
    return {name: t / count[name] for name, t in total.items()}


def by_formula(how, head, places, classes, means, twin, needle):
    """A change of the oracle that ablates one head at some places."""

    def change(stage, *parts):
        if stage == "inputs" and how == "query_zero":
            parts[0][head.head, places] = 0
        if stage == "weights" and how in ("uniform", "sink", "knockout"):
            weights, visible = parts
            for row in places:
                seen = visible[row].nonzero()[:, 0]
                old = weights[head.head, row].clone()
                weights[head.head, row] = 0
                if how == "uniform":
                    weights[head.head, row, seen] = 1 / len(seen)
                elif how == "sink":
                    weights[head.head, row, seen[0]] = 1
                else:
                    old[list(needle)] = 0
                    weights[head.head, row] = old / old.sum() if old.sum() > 0 else 0
        if stage == "z" and how in ("zero", "mean", "resample"):
            for i, place in enumerate(places):
                value = {
                    "zero": 0,
                    "mean": means[classes[i]][head.layer, head.head] if means else 0,
                    "resample": twin[head.layer][head.head, place] if twin else 0,
                }[how]
                parts[0][head.head, place] = value

    return change


def together(changes):
    def change(stage, *parts):
        for each in changes:
            each(stage, *parts)

    return change


@pytest.mark.parametrize("where", ["suffix", "decode"])
@pytest.mark.parametrize("how", ABLATIONS)
def test_each_set_equals_a_whole_forward_edited_by_the_formula(ready, how, where):
    model, scene, case, _ = ready
    assert case.twin
    n = case.trial.length
    context, twin_context = scene.context.tokens[:n], scene.twin[:n]
    means = means_by_hand(model, scene)
    twin = bare.outputs(model.hf, [*twin_context, *case.suffix], model.spec.n_layers)
    prefix, rebased = run.rebased(model, model.prefill(scene.context.tokens), case, where)
    other, _ = run.rebased(model, model.prefill(scene.twin), case, where)
    m = run.material(
        rebased,
        means=run.reference_means(model, [scene]),
        twin=run.suffix_outputs(model, other, rebased),
    )
    ours = run.run_sets(model, prefix, rebased, SETS, how=ABLATIONS[how], m=m)
    start = case.rows.start if where == "decode" else 0
    places = [n + i for i in range(start, len(case.suffix))]
    for heads, got in zip(SETS, ours, strict=True):
        changes = {
            layer: together([
                by_formula(how, h, places, case.classes[start:], means, twin, case.needle)
                for h in heads if h.layer == layer
            ])
            for layer in {h.layer for h in heads}
        }  # fmt: skip
        logits = bare.run(model.hf, [*context, *case.suffix], changes)
        rows = logits[[n + r for r in case.rows]]
        expected = run.forced_metrics(rows, case)
        assert np.allclose(got, expected, atol=1e-3), (how, heads)


def test_metrics_are_what_they_say(ready):
    _, _, case, _ = ready
    logits = torch.randn(len(case.answer), 200, generator=torch.Generator().manual_seed(0))
    logprob, gap, exact = run.forced_metrics(logits, case)
    p = logits.softmax(-1)
    assert logprob == pytest.approx(
        sum(float(p[i, t].log()) for i, t in enumerate(case.answer)), rel=1e-4
    )
    t = case.differs
    assert gap == pytest.approx(float(logits[t, case.answer[t]] - logits[t, case.other[t]]))
    assert exact == 0
    for i, token in enumerate(case.answer):
        logits[i, token] = 99
    assert run.forced_metrics(logits, case)[FORCED.index("exact")] == 1


@pytest.mark.parametrize("how", ["zero", "mean", "resample", "uniform"])
def test_everywhere_edits_the_context_too(how):
    model, _ = worlds.world("induction_pair")
    scene = worlds.scene("induction_pair")
    means = run.reference_means(model, [scene], context=True)
    found = run.run_everywhere(
        model, scene, SETS[:3], how=ABLATIONS[how], means=means, tick=lambda: None
    )
    case = scene.cases[0]
    n = case.trial.length
    tokens = [*scene.context.tokens[:n], *case.suffix]
    twin = bare.outputs(model.hf, [*scene.twin[:n], *case.suffix], model.spec.n_layers)
    classes = (*run.context_classes(scene)[:n], *case.classes)
    by_class = {c: means[c] for c in set(classes)}
    for heads, got in zip(SETS[:3], found[0], strict=True):
        changes = {
            layer: together([
                by_formula(how, h, range(len(tokens)), classes, by_class, twin, ())
                for h in heads if h.layer == layer
            ])
            for layer in {h.layer for h in heads}
        }  # fmt: skip
        rows = bare.run(model.hf, tokens, changes)[[n + r for r in case.rows]]
        assert np.allclose(got, run.forced_metrics(rows, case), atol=1e-3), heads


@pytest.mark.parametrize("how", ["zero", "mean", "uniform"])
def test_generated_text_is_that_of_whole_forwards_edited_at_every_step(how):
    model, truth = worlds.world("induction_pair")
    scene = worlds.scene("induction_pair")
    case = scene.cases[0]
    prefix, rebased = run.rebased(model, model.prefill(scene.context.tokens), case, "suffix")
    means = run.reference_means(model, [scene])
    sets = [(), truth.heads("copy"), (Head(2, 0),)]
    m = run.material(rebased, means=means)
    said = run.generate_sets(model, prefix, rebased, sets, how=ABLATIONS[how], m=m)
    assert said[0].tolist() == [1, 1]
    n, stop = case.trial.length, set(stop_tokens(model))
    for heads, got in zip(sets, said, strict=True):
        tokens = [*scene.context.tokens[:n], *case.suffix[: case.rows.start + 1]]
        first = len(tokens)
        for _ in range(run.N_NEW):
            places = range(n, len(tokens))
            classes = [case.classes[min(i - n, case.rows.start)] for i in places]
            changes = {h.layer: by_formula(how, h, places, classes, means, None, ()) for h in heads}
            token = int(bare.run(model.hf, tokens, changes)[-1].argmax())
            if token in stop:
                break
            tokens.append(token)
        text = model.tokenizer.decode(tokens[first:])
        value = case.trial.value
        assert got.tolist() == [float(contains(value, text)), rouge1_recall(value, text)]


def test_the_copy_head_is_needed_and_no_other(ready):
    model, scene, case, truth = ready
    prefix, rebased = run.rebased(model, model.prefill(scene.context.tokens), case, "suffix")
    sets = [(), *((h,) for h in model.spec.heads())]
    found = run.run_sets(
        model, prefix, rebased, sets, how=ABLATIONS["zero"], m=run.material(rebased)
    )
    change = found[1:, 0] - found[0, 0]
    worst = model.spec.heads()[int(change.argmin())]
    assert (worst,) == truth.heads("copy") and change.min() < -2
    assert np.sort(change)[1] > -0.5


@pytest.mark.parametrize("how", ABLATIONS)
def test_each_ablation_changes_what_it_names_and_nothing_else(ready, how):
    model, scene, case, truth = ready
    prefix, rebased = run.rebased(model, model.prefill(scene.context.tokens), case, "suffix")
    other, _ = run.rebased(model, model.prefill(scene.twin), case, "suffix")
    m = run.material(
        rebased,
        means=run.reference_means(model, [scene]),
        twin=run.suffix_outputs(model, other, rebased),
    )
    edits = edits_of([truth.heads("copy")], ABLATIONS[how], m)
    assert check_edits(model, prefix, rebased.suffix, edits).passed


def test_a_head_that_the_value_does_not_reach_may_be_idle():
    model, truth = worlds.world("induction_pair")
    scene = worlds.scene("induction_pair")
    case = scene.cases[0]
    prefix, rebased = run.rebased(model, model.prefill(scene.context.tokens), case, "suffix")
    other, _ = run.rebased(model, model.prefill(scene.twin), case, "suffix")
    m = run.material(rebased, twin=run.suffix_outputs(model, other, rebased))
    edits = edits_of([truth.heads("previous")], ABLATIONS["resample"], m)
    assert not check_edits(model, prefix, rebased.suffix, edits).passed
    found = check_edits(model, prefix, rebased.suffix, edits, may_be_idle=True)
    assert found.passed and "as they were" in found.detail
    assert [a for a in ABLATIONS.values() if a.may_be_idle] == [
        ABLATIONS["resample"], ABLATIONS["knockout"]
    ]  # fmt: skip


def test_sets_share_one_edit_a_head():
    m = run.material(worlds.scene("grouped").cases[0])
    edits = edits_of([(Head(0, 1),), (Head(0, 1), Head(1, 1)), ()], ABLATIONS["zero"], m)
    assert [(str(e.site), e.rows) for e in edits] == [("L0H1.z", (0, 1)), ("L1H1.z", (1,))]


def test_unknown_names_are_refused():
    with pytest.raises(UnknownNameError, match="did you mean zero"):
        ablation("zeros")
    with pytest.raises(UnknownNameError, match="scope"):
        scope("prefill")
    assert set(SCOPES) == {"suffix", "decode", "everywhere"}
    with pytest.raises(PromptError, match="reference"):
        run.reference_means(worlds.world("grouped")[0], [])
