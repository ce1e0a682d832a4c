"""The bench of backends: every way reads the same rows, and what it refuses or measures is so."""

import copy
import json
import os

import bare
import pytest
import torch
import typer
from families import tiny
from texts import space_tokenizer
from typer.testing import CliRunner

import interp
from apps import bench_backends_turns as turns
from apps.bench_backends import memory, register, run
from apps.bench_backends_view import TIMES, markdown, show
from apps.bench_backends_ways import PLAIN, WAYS, Question
from apps.console import Lines
from apps.peak_memory import free_bytes, in_own_process, peak_mb
from interp.errors import MnemoscopeError

RUN = CliRunner()
N_LAYERS = 4


def typed(*words):
    app = typer.Typer()
    register(app)
    app.command("other")(lambda: None)
    return RUN.invoke(app, ["backends", *map(str, words)])


def random_question(seed=0):
    drawn = torch.randint(1, 119, (70,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Question(tuple(drawn[:62]), tuple(drawn[62:]), 3, range(20, 27))


def slow_reading(hf, question):
    """Argmax and mass of the last rows, from the weights of an attention function of our own."""
    kept = {}

    def keep(layer):
        def change(stage, *parts):
            if stage == "weights":
                kept[layer] = parts[0].clone()

        return change

    n_layers = hf.config.num_hidden_layers
    logits = bare.run(hf, question.tokens, {layer: keep(layer) for layer in range(n_layers)})
    rows = torch.stack([kept[layer] for layer in range(n_layers)])[:, :, -question.n_rows :]
    return rows.argmax(-1), rows[..., list(question.needle)].sum(-1), logits[-question.n_rows :]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def loaded(request):
    return interp.load(tiny(request.param), tokenizer=space_tokenizer())


@pytest.fixture(scope="module")
def folder(real, tmp_path_factory):
    """The first layers of the bundled model: its tokenizer, so that needles are words."""
    path = tmp_path_factory.mktemp("bench")
    hf = copy.deepcopy(real.hf)
    hf.model.layers = hf.model.layers[:N_LAYERS]
    hf.config.num_hidden_layers = N_LAYERS
    hf.config.layer_types = None
    hf.save_pretrained(path)
    real.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def cut(folder):
    return interp.load(folder)


@pytest.mark.parametrize("name", WAYS)
def test_every_way_reads_what_a_slow_reading_of_our_own_does(loaded, name):
    question = random_question()
    found = WAYS[name].open(loaded)(question)
    if name == "bare":
        assert found is None
        return
    argmax, mass, logits = slow_reading(loaded.hf, question)
    assert torch.equal(found.argmax, argmax)
    torch.testing.assert_close(found.mass, mass, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-4)


def test_other_rows_are_told_apart(loaded):
    read = WAYS["hf"].open(loaded)
    same, other = read(random_question()), read(random_question(seed=1))
    assert turns._same_rows(same, same) == {"same argmax": 1, "mass": 0, "logit": 0}
    off = turns._same_rows(same, other)
    assert off["same argmax"] < 0.9 and off["mass"] > 0.01 and off["logit"] > 0.01


def test_a_missing_score_is_not_agreement():
    nan = float("nan")
    assert turns._gap([1.0, nan], [1.5, nan]) == 0.5
    assert turns._gap([1.0, nan], [1.0, 0.0]) == float("inf")


def test_what_is_refused_as_too_large_is_at_least_what_is_kept(loaded):
    question, hf = random_question(), loaded.hf
    with loaded.attending("eager"):
        out = hf(torch.tensor([question.tokens]), output_attentions=True)
    patterns = sum(a.nbytes for a in out.attentions)
    predicted = {k: w.arrays(loaded.spec, len(question.tokens), 4) for k, w in WAYS.items()}
    assert all(predicted[k] >= patterns for k in PLAIN)
    assert predicted["plain lens"] >= patterns + out.logits.nbytes
    assert predicted["bare"] == predicted["hf"] == 0


def test_long_ways_are_run_once_and_the_unit_always_three_times(monkeypatch):
    monkeypatch.setattr(turns, "SPEND", 0.0)
    calls = []
    best, runs, values = turns.in_turn({k: lambda k=k: calls.append(k) or k for k in "ab"})
    assert calls == ["a", "b", "a", "a"]
    assert runs == {"a": 3, "b": 1} and values == {"a": "a", "b": "b"}
    assert 0 <= best["a"] < 1


def test_peak_memory_is_what_work_holds_at_once():
    def work():
        return sum(torch.ones(25_000_000).sum() for _ in range(3))

    found = peak_mb(work, torch.device("cpu"))
    if found is None:
        pytest.skip("this system does not tell")
    assert found == pytest.approx(100, abs=15)
    assert free_bytes(torch.device("cpu")) > 1e8


def test_a_killed_process_gives_no_figure():
    assert in_own_process(int, "7") == 7
    assert in_own_process(os._exit, 1) is None


@pytest.mark.real
def test_bench_backends_agrees_and_is_shown(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "SPEND", 0.0)
    out = tmp_path / "bench.json"
    words = ["--lengths", "96,256", "--trials", "2", "--no-memory", "--threads", "1"]
    done = typed(folder, *words, "--output", out)
    assert done.exit_code == 0, done.output
    assert "any score" in done.output and "not run" not in done.output
    record = json.loads(out.read_text("utf-8"))
    assert [row["length"] for row in record["lengths"]] == [96, 256]
    row = record["lengths"][-1]
    assert row["tokens"] > 256 and row["questions"] == 2
    assert set(row["ratio"]) == set(TIMES) and row["ratio"]["scan lens"] > 1
    assert set(row["agreement"]) == {k for k in TIMES if not k.endswith(" hf")}
    for found in row["agreement"].values():
        assert found["same argmax"] > 0.99 and found["mass"] < 1e-4 and found["logit"] < 1e-3
    scores = row["agreement"]["scan nnsight"]["scores"]
    assert {"copy", "mass", "query_focus", "write"} <= set(scores) and max(scores.values()) < 1e-4
    assert "| 96 | 256 |" in markdown(record) and record["command"] in markdown(record)


@pytest.mark.real
def test_ways_too_large_for_the_free_memory_are_refused_with_words(cut, monkeypatch, capsys):
    monkeypatch.setattr(turns, "SHARE", 1e-9)
    record = run(cut, [128], trials=1, again=None, lines=Lines(quiet=True))
    (row,) = record["lengths"]
    refused = {k for k, v in row["ratio"].items() if isinstance(v, str)}
    assert refused == {"scan lens", "scan nnsight", *PLAIN}
    assert row["ratio"]["plain lens"].startswith("not run: too large (0.")
    assert row["ratio"]["scan hf"] > 0
    show({"command": "x", **record}, None, as_json=False)
    assert "128 tokens, plain lens: not run: too large" in capsys.readouterr().out


@pytest.mark.real
def test_memory_is_that_of_one_question(cut):
    """What is kept of all layers is there at the peak; the engine's rows are not."""
    fitting, n = ("hf", "plain nnsight"), 1024
    refused = [{k: "not run" for k in WAYS if k not in fitting}]
    (found,) = memory(cut, [n], refused, {"device": None, "dtype": "auto"})
    assert found["lens"] == "not run"
    if "not measured" in found.values():
        pytest.skip("this system does not tell")
    patterns = N_LAYERS * cut.spec.n_heads * n**2 * 4 / 1e6
    assert found["hf"] < patterns < found["plain nnsight"] < 3 * patterns


REFUSED = {
    "no numbers": (["--lengths", "a,b"], "--lengths takes numbers"),
    "no length": (["--lengths", ","], "a length and a question"),
    "no question": (["--trials", "0"], "a length and a question"),
    "too long": (["--lengths", "256,9000"], "length 9000 does not fit"),
    "too short": (["--lengths", "32"], "no room for a needle"),
    "nowhere": (["--output", "nowhere/bench.json"], "nowhere is no folder"),
}


@pytest.mark.real
@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_line(folder, case):
    words, told = REFUSED[case]
    done = typed(folder, *words)
    assert done.exit_code == 1 and isinstance(done.exception, MnemoscopeError)
    assert told in str(done.exception) and "\n" not in str(done.exception)
