"""`mnemoscope plan`: forwards held against those of real runs, bad input, and the told error."""

import json
from functools import partial

import pytest
import typer
import worlds
from typer.testing import CliRunner

import interp
from apps import bench_plan, plan_error, planning
from circuits import cost_machine
from circuits.cost import sizes_of, total
from circuits.cost_limits import Spread
from circuits.cost_machine import measure_machine
from circuits.plan import ScanSettings, make_plan
from circuits.pricing import Phase, Price, count, price_scan, repeated
from circuits.pricing_validate import price_validate
from circuits.retrieval import scan
from circuits.validation import validate
from circuits.validation_plan import ValidateSettings, make_validation
from interp.errors import MnemoscopeError, PromptError, UnknownNameError
from probes.planted import build

MADE = {k: worlds.MATERIALS.scan[k] for k in ("needles", "haystack")}
TEXTS = ["--needles", MADE["needles"], "--haystack", MADE["haystack"][0]]
SMALL = [*TEXTS, "--lengths", "101", "--depths", "0.2,0.8", "--haystacks", "2", "--style", "plain",
         "--cue-words", "1", "--threads", "1"]  # fmt: skip


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """Every forward is timed once: what is told here need not be right, only there."""
    monkeypatch.setattr(cost_machine, "measure_machine", partial(measure_machine, repeats=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "model"
    made = build("induction_pair")
    made.model.save_pretrained(path)
    made.tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return interp.load(str(folder))


def run(*args):
    app, bench = typer.Typer(), typer.Typer()
    planning.register(app, bench)
    app.add_typer(bench, name="bench")
    return CliRunner().invoke(app, list(map(str, args)), catch_exceptions=True)


def refused(*args):
    found = run(*args)
    assert isinstance(found.exception, MnemoscopeError), found.output
    return str(found.exception)


def forwards(model, work):
    """Forwards and tokens that really run."""
    seen = []
    hook = model.hf.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        result = work()
    finally:
        hook.remove()
    return len(seen), sum(seen), result


def test_a_scan_runs_the_forwards_and_tokens_that_were_told(model):
    settings = ScanSettings(
        lengths=(101,), depths=(0.2, 0.5, 0.8), n_haystacks=3, style="plain", cue_words=1,
        stop_early=False, generate=False, attention=2, **MADE,
    )  # fmt: skip
    sizes = sizes_of(model)
    told = count(price_scan(sizes, make_plan(model, settings)), sizes)
    ran, tokens, _ = forwards(model, lambda: scan(model, settings))
    assert told["forwards"] == ran
    assert told["tokens"] == pytest.approx(tokens, rel=0.05)


def test_a_validation_runs_about_the_forwards_that_were_told(model):
    settings = ValidateSettings(
        top=2, ablations=("zero", "uniform"), n_draws=59, n_needles=6, length=101, curve=(1,),
        n_curve=3, specificity=False,
        prompts=(("style", "plain"), ("cue_words", 1), *MADE.items()),
    )  # fmt: skip
    heads = [str(h) for h in build("induction_pair").truth.heads("copy")][:1] + ["L0H0"]
    sizes, plan = sizes_of(model), make_validation(model, heads, settings)
    ran, tokens, result = forwards(model, lambda: validate(model, heads, settings))
    answered = [bool(k) for k in result.cases["kept"]]
    told = count(price_validate(sizes, plan, answered=answered), sizes)
    assert told["forwards"] == pytest.approx(ran, rel=0.15)
    assert told["tokens"] == pytest.approx(tokens, rel=0.15)
    least = count(price_validate(sizes, plan), sizes, sure=True)
    assert least["forwards"] < told["forwards"]


def test_plan_prints_what_is_needed_to_decide(folder):
    found = run("plan", folder, *SMALL, "--workers", 2)
    assert found.exit_code == 0, found.output
    for words in ("TFLOP", "keys and values MiB", "share of time", "on 8, s",
                  "not measured for this model"):  # fmt: skip
        assert words in found.output, words
    told = json.loads(run("plan", folder, *SMALL, "--json").output)
    assert told["forwards"][0] < told["forwards"][1] and told["seconds"][0] > 0
    assert sum(told["share of time"].values()) == pytest.approx(1, abs=0.05)
    by = {(r["what"], r["times"]): r for r in told["scaling"]}
    assert by["length", 4]["TFLOP"] >= by["length", 1]["TFLOP"]
    many = by["contexts", 4]
    assert many["on 4, s"] < many["on 1, s"]


def test_every_experiment_has_a_plan(folder):
    validation = ["--top", 2, "--draws", 119, "--lengths", "101", *TEXTS, "--questions", 4]
    told = json.loads(run("plan", folder, "--of", "validate", *validation, "--threads", 1,
                          "--json").output)  # fmt: skip
    assert told["of"] == "validate" and told["seconds"][1] > told["seconds"][0]
    graph = ["--tokens", 4000, "--train-tokens", 3000, "--width", 64, "--layer", "1"]
    told = json.loads(run("plan", folder, "--of", "graph", *graph, "--threads", 1,
                          "--json").output)  # fmt: skip
    assert told["stations"] == 1 and "training" in told["seconds by phase"]


BAD = {
    "an unknown experiment": (["--of", "scann"], "did you mean"),
    "no workers": (["--workers", "0"], "use 1 or more"),
    "a length that does not fit": ([*SMALL, "--lengths", "90000"], "does not fit"),
    "a graph of no text": (["--of", "graph", "--threads", "1"], "--tokens"),
    "no number": (["--lengths", "a"], "commas"),
    "more heads than there are": (["--of", "validate", "--top", "999"], "use 1 to"),
    "an unknown ablation": (["--of", "validate", "--top", "2", "--ablations", "zeros"], "zero"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_gets_one_line(folder, bad):
    args, words = bad
    told = refused("plan", folder, *args)
    assert words in told and "\n" not in told


def test_an_unknown_run_of_the_bench_is_refused():
    with pytest.raises(UnknownNameError, match="nothing"):
        bench_plan.run("x", ["nothing"], device=None, dtype="auto", threads=1, say=print)


def test_more_units_are_more_of_what_belongs_to_units():
    from circuits.cost import Forward

    price = Price("scan", (Phase("a", (Forward(3),), 0), Phase("b", (Forward(5),))), 0)
    four = repeated(price, 4)
    assert four.n_units == 4 and sum(f.n_new for f in four.work()) == 4 * 3 + 5
    with pytest.raises(PromptError):
        Spread(((1.0,),)).seconds(-1)


def test_the_error_is_read_from_the_committed_bench(tmp_path):
    assert plan_error.measured_error("m", "scan", results=tmp_path) == plan_error.UNKNOWN
    runs = [
        {"run": "scan, small", "of": "scan", "predicted seconds": 11.0, "seconds": 10.0,
         "time off": 0.1, "predicted MiB": 80.0, "MiB": 100.0, "memory off": -0.2},
        {"run": "bind, small", "of": "bind", "predicted seconds": 7.0, "seconds": 10.0,
         "time off": -0.3, "predicted MiB": 5.0, "MiB": None, "memory off": None},
    ]  # fmt: skip
    found = {
        "model": "m", "command": "mnemoscope bench plan m", "machine": "a machine",
        "created": "2026-01-02T03:04:05", "runs": runs,
        "time off": bench_plan._summary([0.1, -0.3]), "memory off": bench_plan._summary([-0.2]),
    }  # fmt: skip
    (tmp_path / plan_error.MEASURED).write_text(json.dumps(found))
    told = plan_error.measured_error("m", "scan", results=tmp_path)
    assert "20% (median), 30% (worst) in 2 runs; scan: +10%;" in told and "2026-01-02" in told
    assert plan_error.measured_error("another", "scan", results=tmp_path) == plan_error.UNKNOWN
    block = plan_error.bench_plan(tmp_path)
    assert "| bind, small | 7 | 10 | -30% | 5 |  |  |" in block and "20% (median)" in block


def test_amounts_of_a_price_are_those_of_its_forwards(model):
    sizes = sizes_of(model)
    settings = ScanSettings(
        lengths=(101,), depths=(0.5,), n_haystacks=1, style="plain", cue_words=1, **MADE
    )
    price = price_scan(sizes, make_plan(model, settings))
    assert price.amounts(sizes) == total(sizes, price.work())
