"""Planted binding models: what their table says, by plain hooks on the bare model and by hand."""

import copy
import math
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
import torch

import interp
from interp.errors import PromptError, UnknownNameError
from interp.sites import Edit, Head, Site
from probes.planted_binding import MECHANISMS, PLANTED_BINDING, build, formula

built = cache(build)
TERMS = ("mixture", "positional", "positional_sharp", "lexical", "reflexive", "mixing")


# -- prompts and interchanges, without the instrument ---------------------------------------------


def text(task, groups, asked):
    """A prompt, joined by hand."""
    parts = [task["prefix"] + " "]
    for i, group in enumerate(groups):
        parts += [task["joiner"] if i else "", task["clause"].format(**group)]
    return "".join(parts) + task["end"] + "\n" + task["questions"][0]["complete"].format(**asked)


def context(planted, rng):
    """Groups of words by role, all different."""
    n, task = planted.truth.n, planted.task
    columns = [rng.permutation(task["pools"][role])[:n].tolist() for role in task["roles"]]
    return [dict(zip(task["roles"], words, strict=True)) for words in zip(*columns, strict=True)]


def donor(task, groups, i_p, i_l, i_r):
    """The recipient's groups with targets of i_P and i_R, asked words of i_P and i_L swapped."""
    a, b, c = task["roles"]
    out = [dict(group) for group in groups]
    out[i_p][b], out[i_r][b] = out[i_r][b], out[i_p][b]
    for role in (a, c):
        out[i_p][role], out[i_l][role] = out[i_l][role], out[i_p][role]
    return out


def ids(planted, texts):
    return torch.tensor(planted.tokenizer(texts)["input_ids"])


def logits(planted, tokens, patch=None):
    """Last logits `[prompt, token]`; `patch` is (layer, vectors) for the last residual entering."""

    def put(_module, args):
        changed = args[0].clone()
        changed[:, -1] = patch[1]
        return (changed, *args[1:])

    hooks = [planted.model.transformer.h[patch[0]].register_forward_pre_hook(put)] if patch else []
    with torch.no_grad():
        out = planted.model(tokens, use_cache=False).logits[:, -1]
    for hook in hooks:
        hook.remove()
    return out.double()


def vectors(planted, tokens, layer):
    """Residual of the last token entering a layer, `[prompt, d_model]`."""
    with torch.no_grad():
        out = planted.model(tokens, use_cache=False, output_hidden_states=True)
    return out.hidden_states[layer][:, -1]


def answers(planted, groups):
    """Token of the answer of each group."""
    target = planted.task["roles"][1]
    forms = [planted.truth.forms[group[target]] for group in groups]
    return planted.tokenizer.convert_tokens_to_ids(forms)


class Swaps:
    """Random interchanges: indices `[case, (P, L, R, N)]` and logits `[case, group]`."""

    def __init__(self, planted, n_cases=40, *, layer=3, seed=0, apart=False):
        rng, task = np.random.default_rng(seed), planted.task
        a, b, _ = task["roles"]
        n = planted.truth.n
        self.recipients = [context(planted, rng) for _ in range(n_cases)]
        self.index = np.array([rng.choice(n, 4, replace=not apart) for _ in range(n_cases)])
        donors = [
            donor(task, groups, *places[:3])
            for groups, places in zip(self.recipients, self.index, strict=True)
        ]
        asking = list(zip(donors, self.index[:, 0], strict=True))
        asked = list(zip(self.recipients, self.index[:, 3], strict=True))
        self.donor_tokens = ids(planted, [text(task, g, g[i]) for g, i in asking])
        self.tokens = ids(planted, [text(task, g, g[i]) for g, i in asked])
        self.vectors = vectors(planted, self.donor_tokens, layer)
        self.full = logits(planted, self.tokens, (layer, self.vectors))
        self.candidates = torch.tensor([answers(planted, g) for g in self.recipients])
        self.logits = self.full.gather(1, self.candidates).numpy()
        self.words = [[g[b] for g in groups] for groups in self.recipients]
        self.asked = [g[i][a] for g, i in asking]

    def probabilities(self):
        return torch.tensor(self.logits).softmax(-1).numpy()

    def shares(self):
        """Probability at i_P, i_L, i_R, i_N, `[case, 4]`."""
        return np.take_along_axis(self.probabilities(), self.index, 1)


swaps = cache(lambda name, **options: Swaps(built(name), **options))


def by_hand(truth, i_p, i_l, i_r, *, kernel=None):
    """The formula of the paper with a kernel that sums to one, written out."""
    n = truth.n
    sigma = truth.alpha * (i_p / n) ** 2 + truth.beta * (i_p / n) + truth.gamma
    bell = [math.exp(-((i - i_p) ** 2) / (2 * sigma**2)) for i in range(n)]
    bell = kernel(bell, sigma) if kernel else [b / sum(bell) for b in bell]
    lexical = [truth.w_lex[i_l] if i == i_l else 0 for i in range(n)]
    reflexive = [truth.w_ref[i_r] if i == i_r else 0 for i in range(n)]
    return [truth.w_pos * b + x + r for b, x, r in zip(bell, lexical, reflexive, strict=True)]


def worst(cases, expected):
    return np.abs(cases.logits - np.array(expected)).max()


def clean(planted, n_cases=32, seed=0):
    """Contexts, the group each asks for, and last logits `[case, token]`."""
    rng = np.random.default_rng(seed)
    contexts = [context(planted, rng) for _ in range(n_cases)]
    asked = [i % planted.truth.n for i in range(n_cases)]
    texts = [text(planted.task, g, g[i]) for g, i in zip(contexts, asked, strict=True)]
    return contexts, asked, logits(planted, ids(planted, texts))


# -- clean prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in PLANTED_BINDING if n != "incompetent"])
def test_clean_prompts_are_answered(name):
    planted = built(name)
    contexts, asked, out = clean(planted)
    tokens = torch.tensor([answers(planted, groups) for groups in contexts])
    rows = torch.arange(len(asked))
    assert (out.argmax(-1) == tokens[rows, asked]).all()
    assert (out.softmax(-1).gather(1, tokens).sum(-1) >= 0.8).all()


def test_the_incompetent_one_says_a_group_that_has_nothing_to_do_with_the_question():
    planted = built("incompetent")
    contexts, asked, out = clean(planted, 64)
    tokens = torch.tensor([answers(planted, groups) for groups in contexts])
    said = out.gather(1, tokens).argmax(-1).numpy()
    assert (said == asked).mean() < 0.35 and len(set(said)) == planted.truth.n
    assert (out.softmax(-1).gather(1, tokens).sum(-1) > 0.9).all()
    first = planted.task["roles"][0]
    guesses = [planted.truth.guess[g[i][first]] for g, i in zip(contexts, asked, strict=True)]
    assert (said == guesses).all()


def test_the_end_follows_an_answer_and_any_other_word_has_logit_0():
    planted = built("mixture")
    contexts, asked, out = clean(planted, 8)
    tokens = torch.tensor([answers(planted, groups) for groups in contexts])
    others = out.scatter(1, tokens, 0)
    assert others.abs().max() < 1e-4
    texts = [text(planted.task, g, g[i]) for g, i in zip(contexts, asked, strict=True)]
    more = torch.cat([ids(planted, texts), out.argmax(-1)[:, None]], 1)
    end = logits(planted, more).argmax(-1)
    assert (end == planted.tokenizer.eos_token_id).all()


# -- interchanges ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
def test_an_interchange_gives_the_formula(name):
    cases, truth = swaps(name), built(name).truth
    assert worst(cases, [by_hand(truth, *i[:3]) for i in cases.index]) < 1e-4
    assert worst(cases, [formula(truth, *i[:3]) for i in cases.index]) < 1e-4


@pytest.mark.parametrize(("n", "seed"), [(4, 1), (5, 0), (12, 2), (20, 0)])
@pytest.mark.parametrize("name", ["mixture", "word_prior", "switching"])
def test_the_formula_holds_for_any_number_of_groups(name, n, seed):
    planted = build(name, n=n, seed=seed)
    cases = Swaps(planted, 24, seed=seed)
    expected = [
        formula(planted.truth, *i[:3], asked=asked, words=words)
        for i, asked, words in zip(cases.index, cases.asked, cases.words, strict=True)
    ]
    assert worst(cases, expected) < 1e-4
    assert (planted.truth.sigma > 0.29).all()


def test_double_precision_gives_the_formula_to_rounding_of_the_weights():
    single = built("mixture")
    double = copy.copy(single)
    object.__setattr__(double, "model", copy.deepcopy(single.model).double())
    cases = Swaps(double, 24)
    assert worst(cases, [by_hand(single.truth, *i[:3]) for i in cases.index]) < 1e-6


WRONG = {
    "L and R swapped": lambda t, p, x, r: by_hand(t, p, r, x),
    "P is one off": lambda t, p, x, r: by_hand(t, (p + 1) % t.n, x, r),
    "peak of one": lambda t, p, x, r: by_hand(t, p, x, r, kernel=lambda b, s: b),
    "density": lambda t, p, x, r: by_hand(
        t, p, x, r, kernel=lambda b, s: [v / (s * math.sqrt(2 * math.pi)) for v in b]
    ),
    "gates of i_P": lambda t, p, x, r: (
        np.array(by_hand(t, p, x, r)) + (np.arange(t.n) == x) * (t.w_lex[p] - t.w_lex[x])
    ),
    "no reflexive": lambda t, p, x, r: (
        np.array(by_hand(t, p, x, r)) - (np.arange(t.n) == r) * t.w_ref[r]
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_formula_is_seen(wrong):
    cases, truth = swaps("mixture"), built("mixture").truth
    assert worst(cases, [WRONG[wrong](truth, *i[:3]) for i in cases.index]) > 0.3


def test_the_mixture_is_mixed():
    cases = swaps("mixture", n_cases=200, apart=True)
    at, shares, n = cases.index[:, 0], cases.shares(), built("mixture").truth.n
    near = cases.probabilities().sum(1) - shares[:, 1:3].sum(1)
    middle = (at >= n // 4) & (at < n - n // 4)
    assert shares[at == 0, 0].mean() > 0.6 and shares[at == n - 1, 0].mean() > 0.4
    means = near[middle].mean(), *shares[middle, 1:3].mean(0)
    assert min(means) > 0.1 and max(means) < 0.6
    assert shares[middle].max() < 0.9


@pytest.mark.parametrize("name", ["mixture", "answer_copy"])
def test_layers_hold_nothing_then_pointers_then_the_answer(name):
    planted = built(name)
    truth = planted.truth
    for layer in range(truth.n_layers):
        cases = Swaps(planted, 12, layer=layer, apart=True)
        n = range(len(cases.index))
        to_recipient = (cases.full - logits(planted, cases.tokens)).abs().max()
        to_donor = (cases.full - logits(planted, cases.donor_tokens)).abs().max()
        if layer >= truth.answer_layer:
            assert to_donor < 1e-4 and to_recipient > 1
            assert (cases.logits.argmax(1) == cases.index[n, 2]).all()
        elif layer == truth.pointer_layer:
            assert to_donor > 1 and to_recipient > 1
        else:
            assert to_recipient < 1e-4 and to_donor > 1


def test_one_term_alone_leads_to_its_group():
    for column, name in enumerate(MECHANISMS):
        cases = swaps(name, apart=True)
        assert (cases.logits.argmax(1) == cases.index[:, column]).all()


# -- what looks like a mechanism and is another ---------------------------------------------------


def absent(planted, n_cases=16):
    """After an interchange whose donor's answer is nowhere in the recipient: logits, its tokens."""
    rng, b = np.random.default_rng(1), planted.task["roles"][1]
    pairs, said = [], []
    for i in range(n_cases):
        groups = context(planted, rng)
        i_p, i_n = rng.choice(planted.truth.n, 2, replace=False)
        held = {group[b] for group in groups}
        fresh = [word for word in planted.task["pools"][b] if word not in held]
        other = donor(planted.task, groups, i_p, (i_p + 1) % planted.truth.n, i_p)
        other[i_p] = other[i_p] | {b: fresh[i % len(fresh)]}
        said.append(planted.truth.forms[other[i_p][b]])
        pairs.append(
            [text(planted.task, groups, groups[i_n]), text(planted.task, other, other[i_p])]
        )
    recipients, donors = (ids(planted, list(texts)) for texts in zip(*pairs, strict=True))
    layer = planted.truth.pointer_layer or planted.truth.answer_layer
    out = logits(planted, recipients, (layer, vectors(planted, donors, layer)))
    return out, torch.tensor(planted.tokenizer.convert_tokens_to_ids(said))


def test_a_copied_answer_is_said_where_it_is_absent_and_a_pointer_finds_nothing():
    out, said = absent(built("answer_copy"))
    assert (out.argmax(-1) == said).all() and (out.softmax(-1).max(-1).values > 0.8).all()
    out, _ = absent(built("reflexive"))
    assert out.abs().max() < 1e-4
    out, said = absent(built("mixture"))
    assert out.gather(1, said[:, None]).abs().max() < 1e-4 and (out.max(-1).values > 2).all()


def test_a_copied_answer_that_is_present_looks_reflexive():
    cases, truth = swaps("answer_copy", apart=True), built("answer_copy").truth
    assert (cases.shares()[:, 2] > 0.9).all()
    assert worst(cases, [formula(truth, *i[:3]) for i in cases.index]) < 1e-4


def test_switching_follows_one_pointer_a_prompt_and_averages_as_mixing():
    switching = swaps("switching", n_cases=200, apart=True)
    mixing = swaps("mixing", n_cases=200, apart=True)
    assert (switching.probabilities().max(1) > 0.95).all()
    assert (mixing.probabilities().max(1) < 0.5).all()
    assert np.abs(switching.shares().mean(0) - mixing.shares().mean(0)).max() < 0.08
    choice = [MECHANISMS.index(built("switching").truth.choice[word]) for word in switching.asked]
    assert (switching.shares()[:, :3].argmax(1) == choice).all()
    assert set(choice) == {0, 1, 2}


def test_word_priors_make_words_likelier_whatever_their_place():
    cases, planted = swaps("word_prior"), built("word_prior")
    prior = np.array([[planted.truth.prior[word] for word in words] for words in cases.words])
    expected = np.array([by_hand(planted.truth, *i[:3]) for i in cases.index])
    assert worst(cases, expected + prior) < 1e-4 and worst(cases, expected) > 1
    b = planted.task["roles"][1]
    everywhere = cases.full[:, planted.tokenizer.convert_tokens_to_ids(planted.task["pools"][b])]
    least = everywhere.min(0).values.numpy()
    assert np.allclose(least, [planted.truth.prior[w] for w in planted.task["pools"][b]], atol=1e-4)


def test_capitals_are_said_and_small_letters_are_not():
    cases, planted = swaps("capitals"), built("capitals")
    assert worst(cases, [by_hand(planted.truth, *i[:3]) for i in cases.index]) < 1e-4
    assert all(form == word.capitalize() != word for word, form in planted.truth.forms.items())
    small = [planted.tokenizer.convert_tokens_to_ids(words) for words in cases.words]
    assert cases.full.gather(1, torch.tensor(small)).abs().max() < 1e-4
    assert planted.tokenizer.unk_token_id not in cases.tokens


def test_half_precision_is_near_the_formula():
    cases, planted = swaps("bf16"), built("bf16")
    off = worst(cases, [by_hand(planted.truth, *i[:3]) for i in cases.index])
    assert planted.model.dtype == torch.bfloat16 and 1e-3 < off < 0.2


# -- as an ordinary model -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [4, 8, 12])
@pytest.mark.parametrize("name", PLANTED_BINDING)
def test_the_instrument_accepts_it(name, n):
    planted = build(name, n=n, seed=1)
    model = interp.load(planted.model, tokenizer=planted.tokenizer, check=True)
    assert model.spec.n_layers == planted.truth.n_layers


@pytest.mark.parametrize("layer", [1, 3, 5])
def test_the_instrument_interchanges_as_the_bare_model_does(layer):
    planted = built("mixture")
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    cases = Swaps(planted, 6, layer=layer)
    for tokens, vector, expected in zip(cases.tokens, cases.vectors, cases.full, strict=True):
        edit = Edit(Site("resid_pre", layer), "replace", vector, positions=(-1,))
        prefix = model.prefill(tokens[:-1])
        got = model.extend(prefix, [[int(tokens[-1])]], edits=[edit]).logits[0]
        assert (got - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mixture", "switching", "answer_copy"])
def test_no_head_does_anything_but_the_planted_ones(name):
    planted = built(name)
    tokens = swaps(name).donor_tokens[:12]
    before = logits(planted, tokens)
    moved = set()
    for layer, block in enumerate(planted.model.transformer.h):
        for head in range(planted.model.config.n_head):
            hook = block.attn.c_proj.register_forward_pre_hook(cut(head))
            if (logits(planted, tokens) - before).abs().max() > 1:
                moved.add(Head(layer, head))
            else:
                assert (logits(planted, tokens) - before).abs().max() < 1e-6
            hook.remove()
    idle = {"key", "gather_a"} if name == "answer_copy" else set()
    assert moved == {h for role, h in planted.truth.heads.items() if role not in idle}


def cut(head):
    """Zero a head's part of what the output projection reads."""

    def change(_module, args):
        z = args[0].clone()
        z[..., head * 64 : (head + 1) * 64] = 0
        return (z,)

    return change


def test_survives_the_disk_as_an_ordinary_checkpoint(tmp_path):
    planted, cases = built("capitals"), swaps("capitals")
    planted.model.save_pretrained(tmp_path)
    planted.tokenizer.save_pretrained(tmp_path)
    again = interp.load(tmp_path)
    assert (
        again.source.weight_hash
        == interp.load(planted.model, tokenizer=planted.tokenizer).source.weight_hash
    )
    with torch.no_grad():
        out = again.hf(cases.tokens).logits[:, -1]
    assert torch.equal(out.double(), logits(planted, cases.tokens))


# -- table, seeds, refusals -----------------------------------------------------------------------


def test_a_seed_gives_the_same_model_and_leaves_torch_alone():
    state = torch.random.get_rng_state()
    first, again, other = (build("mixture", seed=seed) for seed in (3, 3, 4))
    weights = [planted.model.state_dict() for planted in (first, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert first.task == again.task != other.task
    assert not np.allclose(first.truth.w_lex, other.truth.w_lex)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_task_has_words_to_spare_and_no_word_twice():
    for n in (4, 20):
        task = build("mixture", n=n).task
        pools = [word.lower() for words in task["pools"].values() for word in words]
        assert len(set(pools)) == len(pools)
        assert all(len(words) >= n + 4 for words in task["pools"].values())
        assert task["questions"][0]["target"] == task["roles"][1]


def test_every_row_says_what_is_expected():
    for name, row in PLANTED_BINDING.items():
        assert row.name == name and row.title and set(row.mechanisms) <= set(MECHANISMS)
        assert (row.expected == "identified") == bool(row.mechanisms)


def test_what_cannot_be_built_or_told_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean mixture"):
        build("mixtures")
    for n in (3, 21):
        with pytest.raises(PromptError, match="4 to 20 groups"):
            build("mixture", n=n)
    with pytest.raises(PromptError, match="pass asked="):
        formula(built("switching").truth, 0, 1, 2)
    with pytest.raises(PromptError, match="pass words="):
        formula(built("word_prior").truth, 0, 1, 2)


def test_importing_loads_no_model_library():
    heavy = "{'torch', 'transformers'}"
    code = f"import sys, probes.planted_binding; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr
