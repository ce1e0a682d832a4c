"""Interchange at the last token against two whole forwards of the bare model with one hook."""

import bindings
import numpy as np
import pytest
import torch

from circuits.binding_labels import LABELS, fake_pointers, label, shares
from circuits.interchange import ask, last_states, last_token, patched_logits, run_set
from interp.errors import PromptError
from probes.planted_binding import formula


def whole(model, tokens, layer=None, vector=None):
    """Logits after a prompt, the last token's residual entering a layer replaced."""
    block = None if layer is None else model.anatomy.layers[layer]

    def patch(_module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        x[0, -1] = vector
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    hook = block and block.register_forward_pre_hook(patch, with_kwargs=True)
    try:
        with torch.no_grad():
            out = model.hf(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
    finally:
        if hook:
            hook.remove()
    return out.logits[0, -1].float(), out.hidden_states


def by_hand(model, ready, entity_set, run, k):
    """Logits of an evaluation by two whole forwards."""
    case = run.cases[k]
    donor = ready.writer.write(entity_set.donors[case.donor].matrix, case.i_p)
    recipient = ready.writer.write(entity_set.matrix, case.i_n)
    _, hidden = whole(model, donor.tokens)
    logits, _ = whole(model, recipient.tokens, case.layer, hidden[case.layer][0, -1])
    return logits


@pytest.mark.parametrize("name", ["mixture", "answer_copy", "word_prior"])
def test_evaluations_equal_two_whole_forwards(name):
    model, _, ready, _ = bindings.ready(name)
    entity_set = ready.sampler().draw(0, ["main", "absent_answer", "all_new"], seed=3)
    run = run_set(model, ready.writer, ready.answers, entity_set, layers=[1, 3, 4])
    assert run.self_change < 1e-4
    for k in range(0, len(run.cases), 7):
        logits, reading = by_hand(model, ready, entity_set, run, k), run.readings[k]
        assert np.abs(logits[list(run.candidates)].numpy() - reading.logits).max() < 1e-4
        assert abs(float(logits.logsumexp(-1)) - reading.total) < 1e-4
        assert abs(float(logits[run.cases[k].said]) - reading.said) < 1e-4
        assert logits[reading.top] > logits.max() - 1e-4  # the same token, or a tie


@pytest.mark.real
def test_evaluations_of_the_bundled_model_equal_two_whole_forwards(real):
    from circuits.binding_plan import BindSettings, plan_studies
    from circuits.competence import make_ready

    settings = BindSettings(tasks=("boxes",), targets=("object",), n=(4,), style="chat-complete")
    ready = make_ready(real, plan_studies(real.tokenizer, settings)[0], settings)
    entity_set = ready.sampler().draw(0, ["main"], seed=0)
    run = run_set(real, ready.writer, ready.answers, entity_set, layers=[5, 20, 29])
    assert run.self_change < 1e-3
    for k in (0, len(run.cases) - 1):
        logits = by_hand(real, ready, entity_set, run, k)[list(run.candidates)].numpy()
        assert np.abs(logits - run.readings[k].logits).max() < 1e-3


@pytest.mark.parametrize("name", ["mixture", "positional", "reflexive", "bf16"])
def test_patched_answers_follow_the_planted_formula(name):
    model, truth, ready, _ = bindings.ready(name)
    entity_set = ready.sampler().draw(5, ["main"], seed=1)
    run = run_set(
        model, ready.writer, ready.answers, entity_set, layers=[truth.pointer_layer],
        n_recipients=2,
    )  # fmt: skip
    for case, reading in zip(run.cases, run.readings, strict=True):
        wanted = formula(truth, case.i_p, case.i_l, case.i_r)
        assert np.abs(reading.logits - wanted).max() < (0.3 if name == "bf16" else 1e-3)


def test_a_sweep_in_one_pass_equals_layer_by_layer():
    model, _, ready, _ = bindings.ready("mixture")
    entity_set = ready.sampler().draw(2, ["main"], seed=0)
    layers = range(model.spec.n_layers + 1)
    swept = run_set(model, ready.writer, ready.answers, entity_set, layers=layers)
    for layer in layers:
        alone = run_set(model, ready.writer, ready.answers, entity_set, layers=[layer])
        found = [r for c, r in zip(swept.cases, swept.readings, strict=True) if c.layer == layer]
        for one, other in zip(found, alone.readings, strict=True):
            assert np.abs(one.logits - other.logits).max() < 1e-5


def test_states_and_rows_of_many_questions_equal_each_alone():
    model, _, ready, _ = bindings.ready("mixture")
    matrix = ready.sampler().draw(0, ["main"], seed=0).matrix
    asked = ask(model, [ready.writer.write(matrix, g) for g in range(8)])
    states = last_states(model, asked, [0, 3, 6])
    at = last_token(model, asked, 5, [3])
    assert torch.allclose(states[1, 5], at.states[3], atol=1e-4)
    _, hidden = whole(model, asked.prompts[5].tokens)
    assert torch.allclose(states[1, 5], hidden[3][0, -1], atol=1e-4)
    own = next(iter(patched_logits(model, at, [(3, at.states[3])])))
    assert torch.allclose(own, at.logits, atol=1e-5)
    with pytest.raises(PromptError, match="begin with different tokens"):
        other = ready.writer.write(matrix, 0)
        ask(model, [other, type(other)(**(vars(other) | {"tokens": (7, *other.tokens[1:])}))])


# -- labels -----------------------------------------------------------------------------------


def test_an_answer_is_given_to_the_one_mechanism_that_predicts_it():
    ids = [10, 11, 12, 13, 14, 15]
    at = {"i_p": 0, "i_l": 3, "i_r": 4, "i_n": 5}
    assert label(10, ids, 99, **at) == "positional"
    assert label(13, ids, 99, **at) == "lexical"
    assert label(14, ids, 99, **at) == "reflexive"
    assert label(15, ids, 99, **at) == "no_effect"
    assert label(11, ids, 99, **at) == "near_positional"
    assert label(12, ids, 99, **at) == "mixed"
    assert label(99, ids, 99, **at) == "copied"
    assert label(50, ids, 99, **at) == "other"
    for one, other in (("i_p", "i_l"), ("i_l", "i_r"), ("i_r", "i_n")):
        both = at | {one: 2, other: 2}
        assert label(12, ids, 99, **both) == "ambiguous"  # given to none, whatever the order
    assert label(12, ids, 99, **(at | {"i_l": -1, "i_r": -1})) == "mixed"


def test_shares_add_up_and_count_what_they_say():
    import pandas as pd

    rows = pd.DataFrame({
        "i_p": [0, 0, 0, 1], "set": [0, 1, 1, 0],
        "label": ["positional", "lexical", "positional", "other"],
    })  # fmt: skip
    found = shares(rows, ["i_p"])
    assert len(found) == 2 * len(LABELS)
    assert np.allclose(found.groupby("i_p")["share"].sum(), 1)
    first = found[(found["i_p"] == 0) & (found["label"] == "positional")].iloc[0]
    assert first["share"] == pytest.approx(2 / 3) and first["n"] == 3
    assert first["low"] <= first["share"] <= first["high"]
    assert found[found["i_p"] == 1]["low"].isna().all()  # one set tells nothing of its spread


def test_fake_pointers_point_where_no_mechanism_does_and_as_far():
    import pandas as pd

    rng = np.random.default_rng(0)
    cells = np.array([rng.permutation(9)[:4] for _ in range(200)])
    rows = pd.DataFrame(cells, columns=["i_p", "i_l", "i_r", "i_n"])
    for mechanism, column in (("positional", 0), ("lexical", 1), ("reflexive", 2)):
        fake = fake_pointers(rows, mechanism, 9, draws=5)
        for case in range(200):
            assert not set(fake[:, case]) & set(cells[case])
            if mechanism != "positional":
                p, own = cells[case, 0], cells[case, column]
                free = [g for g in range(9) if g not in cells[case]]
                best = min(abs(abs(g - p) - abs(own - p)) for g in free)
                assert all(abs(abs(g - p) - abs(own - p)) == best for g in fake[:, case])
    full = pd.DataFrame([[0, 1, 2, 3]], columns=["i_p", "i_l", "i_r", "i_n"])
    assert (fake_pointers(full, "lexical", 4, draws=3) == 3).all()  # no other group is left
