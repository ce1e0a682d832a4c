"""The commands bind and calibrate, typed: a compiled model, its page, its refusals."""

import json

import pytest
from typer.testing import CliRunner

from apps.cli import app
from circuits.binding_result import BindingResult
from probes.planted_binding import build

RUN = CliRunner()
SMALL = [
    "--style", "completion", "--sets", "6", "--donors", "4", "--control-sets", "2",
    "--bootstrap", "4", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a compiled model, and its task file."""
    folder = tmp_path_factory.mktemp("model")
    made = build("mixture", n=8)
    made.model.save_pretrained(folder / "model")
    made.tokenizer.save_pretrained(folder / "model")
    (folder / "task.json").write_text(json.dumps(made.task), "utf-8")
    return folder


def typed(*words):
    return RUN.invoke(app, [*map(str, words)])


def test_one_command_gives_verdict_table_page_and_result(world):
    out = world / "run"
    done = typed(
        "bind", world / "model", "--tasks", world / "task.json", "--output", out, *SMALL
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "positional" in done.output and "page:" in done.output
    result = BindingResult.load(out)
    study = result.study()
    assert set(study.conclusion["verdict"]["named"]) == {"positional", "lexical", "reflexive"}
    assert study.verdict in (out / "page.html").read_text("utf-8").replace("&#x27;", "'")
    assert result.settings["command"].startswith("mnemoscope ")
    heads = study.conclusion["heads"]
    assert (heads["write"][0]["layer"], heads["read"][0]["layer"]) == (2, 3)
    again = typed(
        "bind", world / "model", "--tasks", world / "task.json", "--output", out, *SMALL
    )  # fmt: skip
    assert again.exit_code == 1
    resumed = typed(
        "bind", world / "model", "--tasks", world / "task.json", "--output", out, "--resume",
        "--json", *SMALL,
    )  # fmt: skip
    assert resumed.exit_code == 0
    told = json.loads(resumed.stdout)
    assert told["studies"][0]["named"] and told["markdown"].count("|") > 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--n", "3"], "cannot separate four outcomes"),
        (["--n", "eight"], "--n takes numbers"),
        (["--tasks", "boxs"], "did you mean boxes"),
        (["--tasks", "none.yaml"], "cannot be read"),
        (["--targets", "fruits"], "did you mean fruit"),
        (["--style", "chat"], "no chat template"),
        (["--controls", "absent"], "unknown design"),
        (["--n", "60"], "are needed"),
        (["--layer", "77"], "the model has 0-6"),
    ],
)
def test_bad_input_is_one_line(world, tmp_path, options, told):
    base = ["--tasks", world / "task.json", "--output", tmp_path / "run", "--threads", "1"]
    done = typed("bind", world / "model", *base, *options)
    assert done.exit_code == 1
    assert told in str(done.exception) and "\n" not in str(done.exception)
    assert not (tmp_path / "run" / "result.json").exists()


def test_calibrating_names_what_it_knows():
    done = typed("calibrate", "--models", "mixtur")
    assert done.exit_code == 1 and "did you mean mixture" in str(done.exception)
    done = typed("calibrate", "--only", "tails")
    assert done.exit_code == 1 and "suite" in str(done.exception)


def test_the_binding_calibration_is_kept_and_shown(tmp_path):
    words = ["calibrate", "--only", "binding", "--models", "lexical,answer_copy", "--seeds", "1",
             "--output", tmp_path / "cal"]  # fmt: skip
    done = typed(*words)
    assert done.exit_code == 0, done.output
    assert "Right 2/2" in " ".join(done.output.split())
    done = typed(*words, "--resume", "--json")
    found = json.loads(done.stdout)
    assert found["right"]["k"] == 2 and found["mislabelled"]["k"] == 0
    assert found["weights_off"] < 0.02 and "`answer_copy`" in found["markdown"]


def test_the_bench_compares_the_same_numbers(world):
    done = typed(
        "bench", "bind", world / "model", "--task", world / "task.json", "--n", "8",
        "--evaluations", "40", "--loops", "3", "--threads", "1", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["same numbers"] and found["evaluations"] == 40
    assert found["largest difference of a logit in the sweep"] < 1e-4
