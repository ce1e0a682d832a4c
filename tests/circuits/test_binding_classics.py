"""Older measurements of binding: right about planted models, equal to whole forwards with hooks."""

import json
from contextlib import ExitStack

import bare
import bindings
import numpy as np
import pytest
import torch

from circuits import binding_ids as ids
from circuits import binding_knockout as ways
from circuits import binding_subspace as sub
from circuits.binding_classics import CLASSICS, run_classics
from circuits.interchange import answer_ids, edited_logits, last_token, patched_logits
from interp.errors import PromptError, UnknownNameError
from interp.sites import Edit, Site


def mean(row, name):
    return row[name]["mean"]


def by(rows, *keys):
    return {tuple(r[k] for k in keys) if len(keys) > 1 else r[keys[0]]: r for r in rows}


def entering(model, layer, change):
    """A hook: `change` writes into what enters a layer of the bare model, `[pos, d_model]`."""

    def patch(_module, args, kwargs):
        x = (args[0] if args else kwargs["hidden_states"]).clone()
        change(x[0])
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    return model.anatomy.layers[layer].register_forward_pre_hook(patch, with_kwargs=True)


def forward(model, tokens, changes=()):
    """Logits and residuals of a whole forward, with (layer, change) written in its layers."""
    with ExitStack() as stack, torch.no_grad():
        for layer, change in changes:
            stack.callback(entering(model, layer, change).remove)
        out = model.hf(torch.tensor([tokens]), output_hidden_states=True, use_cache=False)
    return out.logits[0, -1].float(), [h[0] for h in out.hidden_states]


def put(positions, values):
    def change(x):
        x[list(positions)] = values

    return change


# -- knockout -----------------------------------------------------------------------------------


def cut(row, key):
    """For the tests' own attention: a row's weight on a key goes to its other keys."""

    def change(stage, *parts):
        if stage == "weights":
            parts[0][:, row, key] = 0
            parts[0][:, row] /= parts[0][:, row].sum(-1, keepdim=True)

    return change


def test_knockout_equals_a_whole_forward_with_cut_attention():
    model, _, ready, _ = bindings.ready("mixture")
    n, found = model.spec.n_layers, []
    for index in (ways.FIRST_SET, ways.FIRST_SET + 1):
        asked, ids = ways.questions(model, ready, ways.draw(ready, index, seed=0))
        for g, prompt in enumerate(asked.prompts):
            last, key = len(prompt.tokens) - 1, prompt.places[g, prompt.target]
            for k in range(n + 1):
                changes = {layer: cut(last, key) for layer in range(k, n)}
                logits = bare.run(model.hf, prompt.tokens, changes)[-1:]
                found.append(float(logits.softmax(-1)[0, ids[g]]))
    wanted = np.array(found).reshape(-1, n + 1).mean(0)
    result = ways.knockout(model, ready, n_sets=2)
    assert np.allclose([mean(r, "p_answer") for r in result["rows"]], wanted, atol=1e-5)
    json.dumps(result)


def test_only_the_answers_token_up_to_the_layer_that_looks_it_up_is_needed():
    model, truth, ready, _ = bindings.ready("reflexive")
    for row in ways.knockout(model, ready, n_sets=2)["rows"]:
        cut_off = row["layer"] <= truth.pointer_layer
        assert mean(row, "accuracy") == (0 if cut_off else 1)
        assert (mean(row, "p_answer") < 0.1) == cut_off
        assert mean(row, "control_accuracy") == 1  # another group's token is not looked at


# -- lookback -----------------------------------------------------------------------------------


def test_a_pointer_is_no_payload_before_it_was_looked_up():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    rows = by(ways.lookback(model, ready, n_sets=2)["rows"], "design", "layer")
    at = rows["absent_answer", truth.pointer_layer]
    assert mean(at, "pointer") == 1 and mean(at, "payload") == 0
    above = rows["absent_answer", truth.answer_layer]
    assert mean(above, "pointer") == 0 and mean(above, "payload") == 1
    below = rows["agree_all", 0]
    assert mean(below, "own") == 1 and mean(below, "control") == 0
    assert mean(rows["agree_all", truth.pointer_layer], "payload") == 1


def test_a_copied_answer_is_a_payload_at_once():
    model, truth, ready, _ = bindings.ready("answer_copy")
    rows = by(ways.lookback(model, ready, n_sets=2)["rows"], "design", "layer")
    at = rows["absent_answer", truth.answer_layer]
    assert mean(at, "payload") == 1 and mean(at, "pointer") == 0


# -- freezing -----------------------------------------------------------------------------------


def test_an_effect_passes_where_the_last_token_gathers():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    found = ways.freezing(model, ready, n_sets=2)
    gather, n = truth.heads["gather_c"].layer, model.spec.n_layers
    for row in found["swap"]:
        assert mean(row, "moved") == (row["layer"] <= gather)
        assert mean(row, "control_moved") == 0
    frozen = by(found["frozen"], "freeze", "freeze_from")
    for f in range(n + 1):
        assert mean(frozen["last", f], "moved") == (f <= gather)
        assert mean(frozen["entities", f], "moved") == (f > gather)


def test_freezing_equals_a_whole_forward_with_hooks():
    model, _, ready, _ = bindings.ready("mixture")
    asked, ids = ways.questions(model, ready, ways.draw(ready, 3, seed=0))
    own, other = asked.prompts[1], asked.prompts[6]
    places = sorted(own.named.values())
    (_, mine), (_, theirs) = forward(model, own.tokens), forward(model, other.tokens)
    all_ways = [("last", 3), ("entities", 2)]
    rng = np.random.default_rng(0)
    rows = ways._exchanges(model, asked, (1, 6), 1, all_ways, rng)
    logits = torch.stack(list(edited_logits(model, asked.prefix, asked.suffix(1), rows)))
    n = model.spec.n_layers
    swap = (1, put(places, theirs[1][places]))
    for row, changes in (
        (2, [(2, put(places, theirs[2][places]))]),
        (2 * n, [swap, (3, put([-1], mine[3][-1:]))]),
        (2 * n + 1, [swap, (2, put(places, mine[2][places]))]),
    ):
        wanted, _ = forward(model, own.tokens, changes)
        assert (logits[row] - wanted).abs().max() < 1e-4
    size = (theirs[2][places] - mine[2][places]).norm(dim=-1)
    control = rows[n + 2][0].value - mine[2][places]
    assert torch.allclose(control.norm(dim=-1), size, rtol=1e-3)


def test_questions_that_end_in_their_entities_are_refused():
    with pytest.raises(PromptError, match="last tokens"):
        ways._differing((1, 2, 3), (1, 2, 4))
    with pytest.raises(PromptError, match="must agree"):
        ways._differing((1, 2, 3), (1, 2))
    assert ways._differing((1, 2, 3, 9), (1, 5, 4, 9)) == (1, 2)


def test_a_tie_is_no_answer():
    found = ways.scores(torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), torch.tensor([0, 1]), 0)
    assert found[:, 0].tolist() == [0, 1]
    assert found[1, 1] == pytest.approx(np.exp(2) / (np.exp(2) + np.exp(1) + 1))


# -- binding IDs --------------------------------------------------------------------------------


def test_ids_are_traded_where_places_are_read_and_not_where_pointers_are():
    rows = {}
    for name in ("positional_sharp", "reflexive"):
        model, _, ready, _ = bindings.ready(name)
        found = ids.id_swaps(model, ready, n_means=2, n_sets=2)
        rows[name] = by(found["rows"], "condition")
        json.dumps(found)
    for condition, row in rows["positional_sharp"].items():
        swapped = condition in ("query", "target")  # both restore what either exchanges
        if "random" in condition:  # these models have little room for noise: less is all we ask
            assert mean(row, "swapped") <= 0.5
        else:
            assert mean(row, "swapped") == swapped and mean(row, "original") == (not swapped)
    # words point to words here: a query entity keeps its pointer, whatever its place says; it was
    # written in the first layer, by place, so that of two traded targets one came too late for it
    at = rows["reflexive"]
    assert all(mean(at[c], "original") == 1 for c in ("none", "query", "both"))
    assert mean(at["target"], "original") == 0 and mean(at["target"], "swapped") == 0.5


def test_random_controls_are_as_long_at_every_layer_and_point_elsewhere():
    change = torch.randn(5, 3, 400, generator=torch.Generator().manual_seed(0))
    noise = ids.as_long(change, np.random.default_rng(0))
    assert torch.allclose(noise.norm(dim=-1), change.norm(dim=-1), rtol=1e-4)
    assert torch.cosine_similarity(noise, change, dim=-1).abs().max() < 0.3
    assert torch.cosine_similarity(noise[0], noise[4], dim=-1).min() > 0.999  # one way a token


def test_a_trade_of_ids_equals_a_whole_forward_with_hooks():
    model, _, ready, _ = bindings.ready("mixture")
    means = ids.group_means(model, ready, seed=0, n_means=1)
    asked, _ = ways.questions(model, ready, ways.draw(ready, 3, seed=0))
    prompt = asked.prompts[2]
    own = ids.entity_states(model, prompt, asked.start)
    change = means[:, 5] - means[:, 2]
    logits = ids.edited(model, asked, ids._trade(prompt, own, change, (2, 5), [0, 1]), (2, 5))
    contexts = ids.rotations(ways.draw(ready, ids.FIRST_MEAN, seed=0).matrix)
    hidden = [forward(model, ready.writer.write(m, 0).tokens)[1] for m in contexts]
    _, mine = forward(model, prompt.tokens)
    changes = []
    for layer in range(model.spec.n_layers):
        for role in (0, 1):
            one, other = prompt.places[2, role], prompt.places[5, role]
            mu = [torch.stack([h[layer][t] for h in hidden]).mean(0) for t in (one, other)]
            changes.append((layer, put([one], mine[layer][one] + mu[1] - mu[0])))
            changes.append((layer, put([other], mine[layer][other] + mu[0] - mu[1])))
    for k, g in enumerate((2, 5)):
        wanted, _ = forward(model, asked.prompts[g].tokens, changes)
        assert (logits[k] - wanted).abs().max() < 1e-3


def test_a_moved_target_brings_its_place_along_where_places_count():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    found = ids.factorizability(model, ready, n_sets=2)
    rows = by(found["rows"], "slot", "asked")
    p_answer = 1 / (1 + (len(model.tokenizer) - 1) * np.exp(-truth.w_pos))
    assert mean(rows["same", "donor's group"], "p") == pytest.approx(p_answer, abs=0.02)
    assert mean(rows["same", "another"], "p") < 0.01
    # two tokens stand at the donor's place then, and share the attention
    assert mean(rows["moved", "donor's group"], "p") == pytest.approx(0.5, abs=0.05)
    assert mean(rows["moved", "slot's group"], "p") < 0.1
    assert all(mean(row, "p_unedited") < 0.01 for row in rows.values())
    assert np.diag(found["same"]).min() > 0.9 and np.shape(found["moved"]) == (8, 8)
    json.dumps(found)


def test_a_moved_target_equals_a_whole_forward_with_hooks():
    model, _, ready, _ = bindings.ready("mixture")
    asked, _ = ways.questions(model, ready, ways.draw(ready, 3, seed=0))
    word, states = ids._stranger(model, ready, asked.prompts[0], 4, np.random.default_rng(1))
    assert word not in answer_ids(ready.answers, asked.prompts[0].candidates)
    place = asked.prompts[0].places[6, asked.prompts[0].target]
    logits = ids.edited(model, asked, ids._everywhere(place, states), [4])
    changes = [(k, put([place], v)) for k, v in enumerate(states)]
    wanted, _ = forward(model, asked.prompts[4].tokens, changes)
    assert (logits[0] - wanted).abs().max() < 1e-4


def test_the_order_of_means_is_found_with_its_spacing():
    g = torch.Generator().manual_seed(0)
    way = torch.randn(30, generator=g)
    way /= way.norm()
    means = 3 + torch.arange(6.0)[:, None] * 2.5 * way + 0.01 * torch.randn(6, 30, generator=g)
    direction, spacing, explained, correlation = sub.ordering(means)
    assert torch.allclose(direction, way, atol=0.01) and spacing == pytest.approx(2.5, rel=0.01)
    assert explained > 0.99 and correlation > 0.99
    back, *_ = sub.ordering(means.flip(0))
    assert torch.allclose(back, -way, atol=0.01)  # always towards later groups


def test_steps_rebind_in_a_model_that_reads_places_only_below_its_answer():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    above = sub.ordering_steps(model, ready, layer=truth.answer_layer, n_means=1, n_sets=2)
    for row in above["rows"]:  # nobody looks at the context any more
        assert mean(row, "kept") == 1 and row["answered"] == {"0": 1.0}
        assert mean(row, "moved") == (row["step"] == 0)
    at = sub.ordering_steps(model, ready, layer=truth.pointer_layer, n_means=1, n_sets=2)
    assert [r["step"] for r in at["rows"]] == [-2, -1, 0, 1, 2]
    assert mean(by(at["rows"], "step")[0], "moved") == 1
    json.dumps(at)


def test_a_step_that_is_a_difference_of_places_rebinds():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    means = ids.group_means(model, ready, seed=0, n_means=1)[truth.pointer_layer, :, 1]
    asked, tokens = ways.questions(model, ready, ways.draw(ready, 3, seed=0))
    place = asked.prompts[0].places[3, 1]
    edit = Edit(Site("resid_pre", truth.pointer_layer), "add", means[5] - means[3],
                positions=(place,))  # fmt: skip
    logits = ids.edited(model, asked, [edit], (3, 5))
    plain = ids.edited(model, asked, [], (3, 5))
    assert logits[0, tokens[3]] < 1 < 11 < plain[0, tokens[3]]
    assert logits[1, tokens[3]] == pytest.approx(float(plain[1, tokens[5]]) / 2, abs=0.1)
    assert (_whole_step(model, asked, place, truth.pointer_layer, means[5] - means[3])
            - logits[1]).abs().max() < 1e-4  # fmt: skip


def _whole_step(model, asked, place, layer, vector):
    def change(x):
        x[place] += vector

    return forward(model, asked.prompts[5].tokens, [(layer, change)])[0]


# -- subspaces ----------------------------------------------------------------------------------


def test_places_fill_the_subspace_of_means_and_no_other_of_its_rank():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    found = sub.subspaces(model, ready, truth.pointer_layer, n_train=2, n_sets=2)
    rows = by(found["rows"], "basis", "rank")
    full = rows["means", 7]  # means of 8 places, centred
    assert mean(full, "agreement") == 1 and full["kept"] == pytest.approx(1, abs=1e-3)
    assert mean(rows["means", 1], "agreement") < 0.5
    for null in ("random", "shuffled"):
        assert mean(rows[null, 7], "agreement") < 0.5 and rows[null, 7]["kept"] < 0.5
    assert mean(rows["pca", 1], "agreement") < 1
    assert found["n_effective"] == rows["pca", 1]["agreement"]["n"]
    json.dumps(found)


def test_means_of_places_hold_nothing_of_a_pointer_to_the_answer():
    model, truth, ready, _ = bindings.ready("reflexive")
    found = sub.subspaces(model, ready, truth.pointer_layer, n_train=2, n_sets=2)
    rows = by(found["rows"], "basis", "rank")
    assert mean(rows["means", 7], "agreement") == 0 and abs(rows["means", 7]["kept"]) < 0.01


def test_where_the_whole_vector_changes_nothing_there_is_nothing_to_keep():
    model, _, ready, _ = bindings.ready("reflexive")
    found = sub.subspaces(model, ready, 0, n_train=1, n_sets=2)  # the same token in all questions
    assert found["rows"] == [] and found["n_effective"] == 0 and found["n"] == 16


def test_an_exchange_within_a_subspace_equals_a_whole_forward_with_hooks():
    model, truth, ready, _ = bindings.ready("mixture")
    layer = truth.pointer_layer
    asked, _ = ways.questions(model, ready, ways.draw(ready, 3, seed=0))
    basis = sub.orthonormal(torch.randn(9, model.spec.d_model), 9)
    assert torch.allclose(basis @ basis.T, torch.eye(9), atol=1e-5)
    _, theirs = forward(model, asked.prompts[6].tokens)
    at = last_token(model, asked, 1, [layer])
    vector = sub.within(basis, at.states[layer], theirs[layer][-1])
    _, mine = forward(model, asked.prompts[1].tokens)
    other = mine[layer][-1] + (theirs[layer][-1] - mine[layer][-1]) @ basis.T @ basis
    wanted, _ = forward(model, asked.prompts[1].tokens, [(layer, put([-1], other[None]))])
    (logits,) = patched_logits(model, at, [(layer, vector)])
    assert (logits - wanted).abs().max() < 1e-4
    whole = torch.eye(model.spec.d_model)
    assert torch.allclose(sub.within(whole, mine[layer][-1], theirs[layer][-1]),
                          theirs[layer][-1], atol=1e-5)  # fmt: skip


# -- the table ----------------------------------------------------------------------------------


def test_classics_are_run_by_name_and_can_be_written_down():
    model, truth, ready, _ = bindings.ready("positional_sharp")
    seen = []
    found = run_classics(
        model, ready, truth.pointer_layer, names=("knockout", "subspaces"),
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert list(found) == ["knockout", "subspaces"]
    assert found["subspaces"]["layer"] == truth.pointer_layer
    assert found["knockout"]["title"] == CLASSICS["knockout"].title
    assert seen == [(0, 2, "knockout"), (1, 2, "subspaces")]
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(UnknownNameError, match="did you mean knockout"):
        run_classics(model, ready, 3, names=("knockouts",))


def test_all_run_with_the_fewest_groups():
    model, truth, ready, _ = bindings.ready("mixture", 4)
    found = run_classics(model, ready, truth.pointer_layer)
    assert [r["step"] for r in found["ordering_steps"]["rows"]] == [-1, 0, 1]
    none = by(found["id_swaps"]["rows"], "condition")["none"]
    assert mean(none, "original") > 0.9 and np.shape(found["factorizability"]["same"]) == (4, 4)
    assert json.loads(json.dumps(found)) == found


def test_every_classic_names_its_source():
    assert set(CLASSICS) == {
        "knockout", "lookback", "freezing", "id_swaps", "factorizability", "ordering_steps",
        "subspaces",
    }  # fmt: skip
    assert all(c.title and "arXiv" in c.source for c in CLASSICS.values())
