"""The commands losses and growth, typed: table, page, JSON, resuming, refusals."""

import json

import numpy as np
import pytest
import typer
from families import tiny
from typer.testing import CliRunner

from apps import losses
from circuits.growth_result import GrowthResult
from circuits.loss_result import LossResult
from interp.errors import PromptError, ResultError
from probes.planted_weights import BOS, UNKNOWN, word_tokenizer

RUN = CliRunner()
APP = typer.Typer()
losses.register(APP, APP)
WORDS = ["the", "of", "<script>", "fox", "ran", "home", ",", "."]
SMALL = ["--length", "24", "--skip-first", "2", "--threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two checkpoints and a text of six documents."""
    base = tmp_path_factory.mktemp("series")
    rng = np.random.default_rng(0)
    for n in (1, 2):
        tiny("llama", seed=n).save_pretrained(base / f"step-{n}")
        word_tokenizer([UNKNOWN, BOS, *WORDS]).save_pretrained(base / f"step-{n}")
    rows = [{"text": " ".join(rng.choice(WORDS, size=60))} for _ in range(6)]
    (base / "text.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return base


def typed(*words):
    return RUN.invoke(APP, [*map(str, words)])


def call(world, command, *words):
    steps = [world / "step-1", world / "step-2"]
    return typed(command, *steps, "--corpus", world / "text.jsonl", *SMALL, *words)


def test_losses_prints_a_table_and_writes_an_offline_page(world):
    done = call(world, "losses", "--gradients", 2, "--output", world / "losses")
    assert done.exit_code == 0, done.output
    assert "F->C" in done.output and "step-2" in done.output and "page:" in done.output
    page = (world / "losses" / "page.html").read_text("utf-8")
    assert page.count("Plotly.newPlot") == 4 and 'src="http' not in page
    result = LossResult.load(world / "losses")
    assert list(result.models) == ["step-1", "step-2"]
    again = call(world, "losses", "--output", world / "losses")
    assert isinstance(again.exception, ResultError)
    shown = call(world, "losses", "--output", world / "losses", "--resume", "--json")
    told = json.loads(shown.stdout)
    assert told["rows"][3]["loss"] == pytest.approx(result.rows["loss"][3])
    other = typed("losses", world / "step-1", "--corpus", world / "text.jsonl", "--resume",
                  "--output", world / "losses")  # fmt: skip
    assert "other models" in str(other.exception)


def test_too_few_rows_to_train_on_are_refused(world):
    done = call(
        world, "growth", "--layer", 1, "--tokens", 80, "--train-tokens", 150, "--width", 32, "--k",
        4, "--steps", 5, "--separate", "none", "--output", world / "growth",
    )  # fmt: skip
    assert isinstance(done.exception, PromptError)  # a batch of 2,048 needs more rows
    assert not (world / "growth" / "result.json").exists()


def test_growth_with_a_given_dictionary(world):
    import torch

    from interp.sites import Site
    from probes.feature_files import write_dictionary
    from probes.features import Dictionary

    g = torch.Generator().manual_seed(0)
    given = Dictionary(
        "given", "jumprelu", torch.randn(32, 40, generator=g), torch.zeros(40),
        torch.randn(40, 32, generator=g), torch.zeros(32), site=Site("resid_post", 1),
        threshold=torch.ones(40),
    )  # fmt: skip
    write_dictionary(given, world / "given")
    done = call(
        world, "growth", "--layer", 1, "--tokens", 80, "--train-tokens", 10, "--separate", "none",
        "--shared", world / "given", "--output", world / "growth",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "shuffled" in done.output and "page:" in done.output
    result = GrowthResult.load(world / "growth")
    assert len(result.rows) == 3 and (result.rows["reading"].str.len() > 0).all()
    page = (world / "growth" / "page.html").read_text("utf-8")
    assert page.count("Plotly.newPlot") == 1 and "<h2>All numbers</h2>" in page


@pytest.mark.parametrize("command", ["losses", "growth"])
def test_no_text_is_refused_before_a_model_is_opened(command):
    done = typed(command, "nowhere")
    assert isinstance(done.exception, PromptError) and "--corpus" in str(done.exception)
