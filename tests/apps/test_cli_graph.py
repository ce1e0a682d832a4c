"""The commands graph, effects, steer and bench graph, typed on a tiny model in a folder."""

import json

import pytest
from families import tiny
from texts import space_tokenizer, texts
from typer.testing import CliRunner

from apps.cli import app
from circuits import FeatureEffects, FeatureGraph

RUN = CliRunner()
SMALL = [
    "--layer", "1", "--width", "40", "--k", "4", "--steps", "8", "--batch", "64", "--blocks", "4",
    "--train-tokens", "600", "--length", "64", "--top", "4", "--threads", "1",
]  # fmt: skip


def typed(*words):
    return RUN.invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, texts, and a finished graph run."""
    folder = tmp_path_factory.mktemp("graph")
    tiny("llama").save_pretrained(folder / "model")
    space_tokenizer().save_pretrained(folder / "model")
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i:02}.txt").write_text(" ".join(texts(3, seed=i)), "utf-8")
    done = typed(
        "graph", folder / "model", "--corpus", folder / "text", "--output", folder / "run", *SMALL
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "page:" in done.output and "beyond frequency" in done.output
    return folder


def test_graph_writes_a_run_that_can_be_read_and_gone_on_with(world):
    result = FeatureGraph.load(world / "run")
    assert result.settings["command"].startswith("mnemoscope ")
    page = (world / "run" / "page.html").read_text("utf-8")
    assert "blind null" in page and 'src="http' not in page
    same = ["graph", world / "model", "--corpus", world / "text", "--output", world / "run", *SMALL]
    assert "holds a result already" in typed(*same).stderr or typed(*same).exit_code == 1
    edges = world / "edges.graphml"
    told = json.loads(typed(*same, "--resume", "--json", "--export", edges).stdout)
    assert edges.exists()
    assert told["function_tokens"] >= 1 and told["markdown"].count("|") > 10


def test_the_dictionary_of_a_run_is_a_dictionary_for_another(world):
    done = typed(
        "graph", world / "model", "--corpus", world / "text", "--features",
        world / "run" / "L1" / "dictionary", "--output", world / "again", "--blocks", "4",
        "--length", "64", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    first = FeatureGraph.load(world / "run").station().dictionary
    assert FeatureGraph.load(world / "again").station("L1").dictionary.digest == first.digest


def test_effects_writes_findings_and_a_page(world):
    done = typed(
        "effects", world / "run", "--corpus", world / "text", "--model", world / "model",
        "--trials", "8", "--draws", "19", "--output", world / "effects",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(FeatureEffects.load(world / "effects").findings) == 18
    assert (world / "effects" / "page.html").exists()


def test_steer_prints_rates(world, tmp_path):
    prompts = tmp_path / "tests.txt"
    prompts.write_text("\n".join(f"the {w}" for w in ("bana", "belo", "dana", "delo", "fana")))
    out = tmp_path / "steer.json"
    done = typed(
        "steer", world / "run" / "L1" / "dictionary", "--model", world / "model", "--trait",
        "the luse", "--tests", prompts, "--success", "zzz", "--alphas", "1", "--ks", "1,2",
        "--new-tokens", "1", "--style", "plain", "--output", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text("utf-8"))["baseline"]["rate"] == 0


def test_bench_graph_counts_the_same_as_a_dense_table(world):
    done = typed(
        "bench", "graph", world / "model", "--tokens", "256", "--length", "64", "--width", "64",
        "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["same counts"] is True


REFUSED = {
    "no text": (["graph", "MODEL"], "--corpus"),
    "no such text": (["graph", "MODEL", "--corpus", "nowhere.txt"], "nowhere.txt"),
    "too little text": (["graph", "MODEL", "--corpus", "TEXT", "--tokens", "9999999"], "positions"),
    "a bad ending": (["graph", "MODEL", "--corpus", "TEXT", "--export", "edges.csv"], ".parquet"),
    "a bad rule": (["graph", "MODEL", "--corpus", "TEXT", "--rule", "often"], "edge rule"),
    "no dictionary": (
        ["graph", "MODEL", "--corpus", "TEXT", "--features", "nowhere", "--blocks", "4"], "nowhere",
    ),
    "no such layer": (
        ["graph", "MODEL", "--corpus", "TEXT", "--layer", "99", "--train-tokens", "600"],
        "no layer 99",
    ),
    "no run": (["effects", "nowhere", "--corpus", "TEXT"], "no result"),
    "no tests": (
        ["steer", "nowhere", "--trait", "a", "--success", "b", "--tests", "nowhere"], "nowhere",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_line(world, tmp_path, case):
    from interp.errors import MnemoscopeError

    words, told = REFUSED[case]
    places = {"MODEL": world / "model", "TEXT": world / "text"}
    done = typed(*[places.get(w, w) for w in words], *(
        ["--output", tmp_path / "x"] if words[0] != "steer" else []
    ))  # fmt: skip
    assert done.exit_code == 1 and isinstance(done.exception, MnemoscopeError)
    assert told in str(done.exception) and "\n" not in str(done.exception)
    assert not (tmp_path / "x").exists()
