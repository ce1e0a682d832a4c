"""Groups of losses beside a plain loop over positions; shares, intervals, gradients, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families import tiny

import interp
from circuits import loss_run
from circuits.loss_plan import GROUPS, TARGETS
from circuits.loss_result import LossResult
from circuits.loss_run import loss_groups
from circuits.loss_tables import ratio_draws
from circuits.statistics import cluster_interval
from interp.errors import MnemoscopeError, ModelError, PromptError, ResultError, UnknownNameError
from probes.ngrams import NGram
from probes.planted_weights import BOS, UNKNOWN, word_tokenizer

WORDS = ["the", "of", "red", "fox", "ran", "home", ",", "."]
RNG = np.random.default_rng(1)
CHANCE = np.array([6, 4, 1, 1, 1, 1, 2, 1]) / 17
TEXTS = [
    " ".join(RNG.choice(WORDS, size=n, p=CHANCE)) for n in (70, 40, 55, 90, 33, 61)
]  # fmt: skip
SMALL = {"length": 24, "skip_first": 2, "bos": "never", "n_draws": 50}


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer([UNKNOWN, BOS, *WORDS])


@pytest.fixture(scope="module")
def models(tokenizer):
    return {f"step-{n}": interp.load(tiny("llama", seed=n), tokenizer=tokenizer) for n in (1, 2)}


@pytest.fixture(scope="module")
def result(models):
    return loss_groups(models, TEXTS, gradients=3, **SMALL)


def plain(model, tokenizer, *, function, every=2):
    """(document, group, loss, n-gram) of each measured position, one window after the other."""
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS]
    windows = [[i[s : s + 24] for s in range(0, len(i), 24)] for i in ids]
    training = [w for n, own in enumerate(windows) if n % every for w in own]
    ngram = NGram.fit(training, 120, 2)
    out = []
    for n, own in enumerate(windows):
        for window in own if n % every == 0 else ():
            with torch.no_grad():
                logits = model.hf(torch.tensor([window])).logits[0]
            cost = ngram.surprisal(window)
            for at in range(2, len(window) - 1):
                goal = torch.tensor(window[at + 1])
                group = "->".join("CF"[t in function] for t in window[at : at + 2])
                loss = F.cross_entropy(logits[at], goal).item()
                out.append((n, group, loss, cost[at + 1]))
    return out


def most_frequent(tokenizer, cut):
    ids = [i for t in TEXTS for i in tokenizer(t, add_special_tokens=False)["input_ids"]]
    order = sorted(set(ids), key=lambda i: (-ids.count(i), i))
    share = np.cumsum([ids.count(i) for i in order]) / len(ids)
    return set(order[: int((share >= cut).argmax()) + 1])


def row(result, model, group, target="all"):
    rows = result.rows
    keep = (rows["model"] == model) & (rows["group"] == group) & (rows["target"] == target)
    return rows[keep].iloc[0]


@pytest.mark.parametrize("name", ["step-1", "step-2"])
def test_every_group_is_that_of_a_plain_loop(result, models, tokenizer, name):
    found = plain(models[name], tokenizer, function=most_frequent(tokenizer, 0.4))
    whole = sum(loss for *_, loss, _ in found)
    for group in GROUPS:
        own = [(loss, cost) for _, g, loss, cost in found if g == group]
        loss, cost = np.array(own).T
        told = row(result, name, group)
        assert told["positions"] == len(own) and told["share"] == len(own) / len(found)
        assert told["loss"] == pytest.approx(loss.mean(), abs=1e-4)
        assert told["loss_share"] == pytest.approx(loss.sum() / whole, abs=1e-5)
        assert told["ngram"] == pytest.approx(cost.mean(), abs=1e-9)
        assert told["over_ngram"] == pytest.approx(loss.mean() - cost.mean(), abs=1e-4)


def test_shares_add_up_and_margins_are_sums(result):
    rows = result.rows[result.rows["model"] == "step-2"].set_index(["group", "target"])
    for column in ("share", "loss_share", "fall_share", "gradient_share", "gradient_norm_share"):
        assert rows.loc[(list(GROUPS), "all"), column].sum() == pytest.approx(1)
    for group in (*GROUPS, "all"):
        parts = rows.loc[(group, list(TARGETS)), "positions"].sum()
        assert parts == rows.loc[(group, "all"), "positions"]
    assert rows.loc[("all", "all"), "loss_share"] == 1


def test_as_many_transitions_lead_into_function_tokens_as_out_of_them(result):
    """A window that is left as often as it is entered differs by one at most."""
    into, out = (row(result, "step-1", g)["positions"] for g in ("C->F", "F->C"))
    assert into > 20 and abs(into - out) <= result.text["windows"]


def test_intervals_are_those_of_the_document_bootstrap():
    """With all positions in view, `cluster_interval` gives the same draws."""
    clusters = np.repeat([f"{i}" for i in range(5)], [3, 5, 2, 9, 4])
    values = np.random.default_rng(3).normal(size=len(clusters))
    names = np.unique(clusters)
    top, bottom = (
        np.array([[x[clusters == n].sum()] for n in names]) for x in (values, np.ones(len(values)))
    )
    draws = ratio_draws(top, bottom, n_draws=300, seed=7)
    known = cluster_interval(values, clusters, n_draws=300, seed=7)
    assert np.percentile(draws, [2.5, 97.5]) == pytest.approx([known.low, known.high])


def test_an_interval_holds_the_mean_and_documents_that_differ_widen_it(result):
    told = row(result, "step-1", "C->C")
    assert told["loss_low"] <= told["loss"] <= told["loss_high"]
    same = ratio_draws(np.full((4, 1), 3.0), np.full((4, 1), 2.0), n_draws=30, seed=0)
    assert np.ptp(same) == 0


def test_gradients_are_those_of_one_backward_a_group(result, models, tokenizer):
    """Summed over windows, group by group, by `backward` on a copy of the model."""
    function = most_frequent(tokenizer, 0.4)
    hf = tiny("llama", seed=1)
    texts = loss_run.read_text(models["step-1"], TEXTS, loss_run.LossSettings(**SMALL))
    n = len(texts.windows)
    chosen = [texts.windows[i * n // 3].tokens for i in range(3)]
    size = sum(len(w) - 3 for w in chosen)
    flat = {}
    for group in GROUPS:
        hf.zero_grad()
        for window in chosen:
            logits = hf(torch.tensor([window]), use_cache=False).logits[0]
            for at in range(2, len(window) - 1):
                if group == "->".join("CF"[t in function] for t in window[at : at + 2]):
                    goal = torch.tensor(window[at + 1])
                    (F.cross_entropy(logits[at], goal) / size).backward(retain_graph=True)
        zeros = (torch.zeros_like(p) if p.grad is None else p.grad for p in hf.parameters())
        flat[group] = torch.cat([g.flatten() for g in zeros]).double()
    whole = sum(flat.values())
    for group, own in flat.items():
        told = row(result, "step-1", group)
        assert told["gradient_norm"] == pytest.approx(own.norm().item(), rel=1e-3)
        share = (own @ whole / whole.square().sum()).item()
        assert told["gradient_share"] == pytest.approx(share, abs=1e-3)


def test_gradients_leave_the_model_as_it_was(models):
    model = models["step-1"]
    first = next(model.hf.parameters())
    first.requires_grad_(False)
    loss_groups(model, TEXTS, gradients=1, **SMALL)
    assert not first.requires_grad and not model.hf.training
    assert all(p.grad is None for p in model.hf.parameters())
    first.requires_grad_(True)


def test_targets_that_go_on_with_a_word_are_told_apart(tokenizer, models):
    told = loss_groups(models["step-1"], TEXTS, **SMALL)
    kinds = {"the", "of", "red", "fox", "ran", "home"}  # no space before them: inside a word
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in TEXTS[::2]]
    windows = [i[s : s + 24] for i in ids for s in range(0, len(i), 24)]
    names = tokenizer.convert_ids_to_tokens
    inside = sum(names(t) in kinds for w in windows for t in w[3:])
    assert row(told, told.rows["model"][0], "all", "word-internal")["positions"] == inside > 0


def test_linguistic_classes_and_a_text_of_its_own_for_the_baseline(models, tokenizer):
    told = loss_groups(
        models["step-1"], TEXTS[::2], baseline=TEXTS[1::2], classes="linguistic",
        function=("punctuation",), **SMALL,
    )  # fmt: skip
    name = told.rows["model"][0]
    function = set(tokenizer.convert_tokens_to_ids([",", "."]))
    found = plain(models["step-1"], tokenizer, function=function)
    for group in GROUPS:
        own = [(loss, cost) for _, g, loss, cost in found if g == group]
        told_row = row(told, name, group)
        assert told_row["positions"] == len(own)
        assert told_row["loss"] == pytest.approx(np.mean([x for x, _ in own]), abs=1e-4)
        assert told_row["ngram"] == pytest.approx(np.mean([x for _, x in own]), abs=1e-9)


def test_a_run_goes_on_from_its_finished_stretches(models, tmp_path, monkeypatch):
    calls = []
    whole = loss_run._losses
    options = {**SMALL, "gradients": 3, "blocks": 2}
    at_once = loss_groups(models, TEXTS, **options)

    def broken(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(loss_run, "_losses", broken)
    with pytest.raises(KeyboardInterrupt):
        loss_groups(models, TEXTS, parts=tmp_path, **options)
    again = loss_groups(models, TEXTS, parts=tmp_path, **options)
    assert len(calls) == 5  # of 2 models with 2 stretches, 2 were kept
    assert again.rows.equals(at_once.rows)
    with pytest.raises(ResultError, match="another run"):
        loss_groups(models, TEXTS, parts=tmp_path, **{**options, "cut": 0.5})


def test_checkpoints_are_opened_from_folders_and_results_come_back(models, tmp_path, result):
    for name, model in models.items():
        model.hf.save_pretrained(tmp_path / name)
        model.tokenizer.save_pretrained(tmp_path / name)
    paths = [tmp_path / name for name in models]
    told = loss_groups(paths, TEXTS, gradients=3, load={"device": "cpu"}, **SMALL)
    assert list(told.models) == list(models)
    assert np.allclose(told.rows["loss"], result.rows["loss"], atol=1e-4, equal_nan=True)
    back = LossResult.load(told.save(tmp_path / "run"))
    assert back.rows.equals(told.rows) and back.models == told.models
    assert back.reading == told.reading and "F->C" in back.reading
    assert back._repr_html_().startswith("<table")


def test_figures_hold_what_the_table_says(result):
    shares = result.figure("shares")
    by_name = {trace.name: dict(zip(trace.x, trace.y, strict=True)) for trace in shares.data}
    assert by_name["F->C"]["step-2"] == row(result, "step-2", "F->C")["loss_share"]
    assert by_name["F->C"]["positions"] == row(result, "step-2", "F->C")["share"]
    for kind in ("means", "baseline", "gradients"):
        assert result.figure(kind).data
    with pytest.raises(UnknownNameError):
        result.figure("none")


def test_two_tokenizers_are_refused(models):
    other = word_tokenizer([UNKNOWN, BOS, *WORDS[::-1]])
    second = interp.load(tiny("llama", seed=2), tokenizer=other)
    with pytest.raises(ModelError, match="another tokenizer"):
        loss_groups({"a": models["step-1"], "b": second}, TEXTS, **SMALL)


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ([], {}, "no text"),
        (TEXTS[:1], {}, "1 documents, too few"),
        (TEXTS[:2], {"baseline": None}, "2 documents, too few"),
        (iter(TEXTS), {}, "only once"),
        (TEXTS[:2], {"baseline": TEXTS[1:]}, "by heart"),
        (TEXTS, {"tokens": 10**6}, "can be measured"),
        (TEXTS, {"cut": 1.5}, "share between"),
        (TEXTS, {"classes": "none"}, "unknown rule"),
        (TEXTS, {"function": ("nouns",)}, "unknown class"),
        (TEXTS, {"length": 4}, "length must be"),
    ],
)
def test_refusals(models, texts, options, words):
    with pytest.raises(MnemoscopeError, match=words):
        loss_groups(models["step-1"], texts, **{**SMALL, **options})


def test_a_series_needs_names_that_differ(models):
    one = models["step-1"]
    with pytest.raises(PromptError, match="two models are called"):
        loss_groups([one, one], TEXTS, **SMALL)
    with pytest.raises(PromptError, match="no model"):
        loss_groups([], TEXTS, **SMALL)
