"""Planted models: what the table says of them, by the scan and by plain eager attention."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import interp
from circuits.retrieval import scan
from interp.errors import PromptError, UnknownNameError
from interp.sites import Head
from probes import planted_weights as w
from probes.corpus import check_repetition, load_text
from probes.format import ASK, CUE, INSTRUCTION
from probes.needle import load_needles, tokenise
from probes.planted import FILLER, PLANTED, QUESTION, build, length, write_materials

KEYS = ("ripe", "wild", "rusty", "loud")


@pytest.fixture(scope="module")
def materials(tmp_path_factory):
    return write_materials(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module", params=PLANTED)
def scanned(request, materials):
    """A model through the front door, checks on, and its scan."""
    planted = build(request.param)
    model = interp.load(planted.model, tokenizer=planted.tokenizer, check=True)
    return planted, model, scan(model, **materials.scan | planted.truth.options)


# -- through the instrument -----------------------------------------------------------------------


def test_answers_as_planted(scanned):
    planted, _, result = scanned
    row, trials = planted.truth.planted, result.trials
    passed = trials["passed"]
    if row.window:
        start = length(0) + trials["true_depth"] * (trials["length"] - length(1))
        value = start + length(1) - length(0) - 2  # a full stop is behind it
        asking = trials["length"] + trials["n_suffix"] - 2  # n_suffix counts the answer too
        assert (passed == (asking - value < row.window)).all() and 0.2 < passed.mean() < 0.8
    else:
        assert passed.mean() >= 0.9 if row.answers else passed.mean() <= 0.2
    assert trials["needle"].nunique() == 16


def test_only_heads_that_attend_have_a_copy_score(scanned):
    planted, _, result = scanned
    copy = result.mean("copy", gate=planted.truth.planted.answers)
    attends = np.zeros(copy.shape, bool)
    for head in planted.truth.attends:
        attends[head.layer, head.head] = True
    assert (copy[attends] >= 0.9).all() and (copy[~attends] <= 0.1).all()


@pytest.mark.parametrize(("role", "floor"), [("previous", 0.9), ("sink", 0.9)])
def test_role_scores_see_the_planted_roles(scanned, role, floor):
    planted, _, result = scanned
    heads = planted.truth.heads(role)
    assert all(result.mean(role)[h.layer, h.head] >= floor for h in heads)


def test_the_offset_head_is_no_content_head(materials):
    planted = build("copy_offset")
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    result = scan(model, **materials.scan | {"depths": (0.1, 0.5), "n_haystacks": 4})
    (head,) = planted.truth.attends
    assert result.trials["passed"].mean() <= 0.2
    assert result.mean("copy", gate=False)[head.layer, head.head] <= 0.1


def test_survives_the_disk_as_an_ordinary_checkpoint(tmp_path):
    planted = build("grouped")
    planted.model.save_pretrained(tmp_path)
    planted.tokenizer.save_pretrained(tmp_path)
    again = interp.load(tmp_path)
    live = interp.load(planted.model, tokenizer=planted.tokenizer)
    assert again.source.weight_hash == live.source.weight_hash
    assert (again.spec.n_kv_heads, again.spec.d_head) == (2, 64)


# -- by plain eager attention, without the instrument ---------------------------------------------


def sentences(planted):
    """How many sentences stand before the needle and behind it."""
    return (8, 0) if planted.truth.planted.name == "copy_offset" else (8, 2)


def prompts(planted):
    """One prompt a key, `[prompt, token]`, from text alone; ids and places of their values."""
    before, behind = sentences(planted)
    slots = (w.ADJECTIVES, w.NOUNS, w.VERBS, w.PLACINGS, w.ADJECTIVES, w.NOUNS)
    hay = [FILLER.format(*(slot[i % len(slot)] for slot in slots)) for i in range(before + behind)]
    texts, values = [], []
    for i, key in enumerate(KEYS):
        value = next(values for keys, values in w.KINDS.values() if key in keys)[i]
        needle = FILLER.format("old", "river", "runs", "near", key, value)
        text = " ".join([*hay[:before], needle, *hay[before:]])
        texts.append(f"{INSTRUCTION}{text}{ASK.format(question=QUESTION.format(key))}\n{CUE} {key}")
        values.append(planted.tokenizer.convert_tokens_to_ids(value))
    ids, answers = torch.tensor(planted.tokenizer(texts)["input_ids"]), torch.tensor(values)
    return ids, answers, (ids == answers[:, None]).nonzero()[:, 1]


def run(planted, heads=(), *, everywhere=False, mean=False):
    """Log-probabilities of the answers, and the answering rows' mean weight on the values.

    The heads' slices of the output projection's input are zeroed, in the suffix or everywhere, or
    set to their mean over the rows that answer.
    """
    first = 0 if everywhere else length(sum(sentences(planted)) + 1)
    model = planted.model
    model.set_attn_implementation("eager")
    ids, answers, places = prompts(planted)
    hooks = [
        model.model.layers[h.layer].self_attn.o_proj.register_forward_pre_hook(cut(h, first, mean))
        for h in heads
    ]
    with torch.no_grad():
        out = model(ids, use_cache=False, output_attentions=True)
    for hook in hooks:
        hook.remove()
    rows = torch.arange(len(ids))
    weights = torch.stack(out.attentions)[:, rows, :, -1, places].mean(0)
    return out.logits[:, -1].log_softmax(-1)[rows, answers], weights


def cut(head, first, mean):
    inside = slice(head.head * w.D_HEAD, (head.head + 1) * w.D_HEAD)

    def change(_module, args):
        z = args[0].clone()
        z[:, first:, inside] = z[:, -1, inside].mean(0) if mean else 0
        return (z,)

    return change


@pytest.fixture(scope="module", params=[(name, seed) for name in PLANTED for seed in (1, 2)])
def bare(request):
    name, seed = request.param
    planted = build(name, seed=seed)
    return planted, *run(planted)


def effect(bare, heads, **options):
    planted, baseline, _ = bare
    return (run(planted, heads, **options)[0] - baseline).mean().item()


def test_eager_attention_shows_who_attends(bare):
    planted, logprob, weights = bare
    attends = torch.zeros_like(weights, dtype=torch.bool)
    for head in planted.truth.attends:
        attends[head.layer, head.head] = True
    assert (weights[attends] > 0.9).all() and (weights[~attends] < 0.1).all()
    answers = planted.truth.planted.answers
    assert (logprob > -1).all() if answers else (logprob < -2).all()


def test_ablating_a_head_does_what_the_table_says(bare):
    truth = bare[0].truth
    for head in truth.roles:
        suffix, everywhere = effect(bare, [head]), effect(bare, [head], everywhere=True)
        assert (suffix < -1) == (head in truth.causal)
        assert (everywhere < -1) == (head in (*truth.causal, *truth.upstream))
        if head not in truth.causal:
            assert suffix > -0.15


@pytest.mark.parametrize("everywhere", [False, True], ids=["suffix", "everywhere"])
@pytest.mark.parametrize("mean", [False, True], ids=["zero", "mean"])
def test_claims_are_true(bare, mean, everywhere):
    for heads, claim in bare[0].truth.claims:
        if heads:
            found = effect(bare, heads, mean=mean, everywhere=everywhere)
            assert found < -1 if claim.expected == "supported" else found > -0.15, claim


def test_without_a_negative_head_the_answer_is_likelier():
    planted = build("negative")
    assert effect((planted, *run(planted)), planted.truth.heads("negative")) > 0.02


def test_a_backup_attends_when_the_first_head_is_out():
    planted = build("backup")
    (backup,) = planted.truth.heads("backup")
    _, before = run(planted)
    _, after = run(planted, planted.truth.heads("copy"))
    assert before[backup.layer, backup.head] < 0.1 and after[backup.layer, backup.head] > 0.9


def test_distractors_do_little_but_something(bare):
    planted = bare[0]
    every = [Head(layer, head) for layer in range(w.N_LAYERS) for head in range(w.N_HEADS)]
    others = [h for h in every if h not in planted.truth.roles]
    effects = [abs(effect(bare, [h])) for h in others[::3]]
    assert max(effects) > 1e-4
    if planted.truth.planted.answers:
        assert max(effects) < 0.15


# -- seeds and texts ------------------------------------------------------------------------------


def test_a_seed_gives_the_same_weights_and_leaves_torch_alone():
    state = torch.random.get_rng_state()
    first, again, other = (build("backup", seed=s).model.state_dict() for s in (3, 3, 4))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("name", PLANTED)
def test_seeds_move_the_heads(name):
    places = {tuple(build(name, seed=seed).truth.roles) for seed in range(6)}
    assert len(places) > 2
    for heads in places:
        assert len(set(heads)) == len(PLANTED[name].parts)


def test_grouped_distractors_share_the_planted_keys():
    planted = build("grouped")
    assert planted.model.config.num_key_value_heads == 2
    attention = planted.model.model.layers[planted.truth.causal[0].layer].self_attn
    assert attention.k_proj.weight.shape[0] == 2 * w.D_HEAD
    assert attention.q_proj.weight.unflatten(0, (w.N_HEADS, -1)).any(-1).any(-1).all()


def test_materials_are_needles_and_text_of_the_vocabulary(materials):
    tokenizer = build("none").tokenizer
    needles = load_needles(materials.needles)
    docs = load_text(materials.haystack)
    assert len(needles) == 16 and all(len(n.values) == 4 for n in needles)
    assert check_repetition(docs).warning is None
    words = set(tokenizer.convert_ids_to_tokens(tokenizer(docs[0].text)["input_ids"]))
    assert not words & {*w.KEYS, *w.VALUES, w.UNKNOWN}
    for needle in needles:
        tokens = tokenise(needle, needle.values[0], tokenizer)
        assert len(tokens.ids) == length(1) - length(0) and len(tokens.answer) == 1
        assert tokenizer.decode(tokens.ids[tokens.answer.start - 1]) == needle.id


def test_materials_follow_their_seed(materials, tmp_path):
    same, other = write_materials(tmp_path / "a"), write_materials(tmp_path / "b", seed=1)
    assert same.haystack.read_bytes() == materials.haystack.read_bytes()
    assert other.haystack.read_bytes() != materials.haystack.read_bytes()


def test_every_row_names_its_claims_by_its_own_roles():
    for name, row in PLANTED.items():
        roles = {part.role for part in row.parts}
        assert row.name == name and row.claims
        assert all(set(claim.roles) <= roles and claim.why for claim in row.claims)


def test_an_unknown_model_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean backup"):
        build("backups")


def test_importing_loads_no_model_library():
    code = "import sys, probes.planted; print({'torch', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr


# -- more heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["induction_pair", "backup", "grouped"])
def test_more_heads_keep_the_circuit(name):
    planted = build(name, n_heads=40)
    config = planted.model.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (
        40,
        40 // PLANTED[name].grouped,
    )
    bare = planted, *run(planted)
    assert (bare[1] > -0.5).all()
    for heads, claim in planted.truth.claims:
        found = effect(bare, heads)
        assert found < -1 if claim.expected == "supported" else abs(found) < 0.05
    layer = planted.truth.heads("copy")[0].layer
    others = [h for i in range(40) if (h := Head(layer, i)) not in planted.truth.roles]
    assert max(abs(effect(bare, [h])) for h in others[::5]) < 0.15


def test_distractors_together_are_no_louder_where_there_are_more():
    def loudness(n_heads):
        weights = build("none", n_heads=n_heads).model.model.layers[2].self_attn.o_proj.weight
        return weights.square().sum().item() ** 0.5

    assert loudness(40) == pytest.approx(loudness(8), rel=0.05)


@pytest.mark.parametrize("n_heads", [4, 9, 41])
def test_a_number_of_heads_that_does_not_fit_is_refused(n_heads):
    with pytest.raises(PromptError, match="planted models have 8, .*40.* heads"):
        build("none", n_heads=n_heads)
