"""The command `trace`, typed: a prompt and a text on a tiny model, pages, files, refusals."""

import json

import networkx as nx
import numpy as np
import plotly.graph_objects as go
import pytest
import typer
from families import tiny
from reactivations import dictionary
from texts import space_tokenizer, texts
from typer.testing import CliRunner

import interp
from apps import reactivation_figures as figures
from apps.reactivation import register
from circuits import function_tokens
from circuits.graph_json import check_graph_json
from circuits.reactivation_result import ReactivationResult
from interp.errors import PromptError, ResultError, UnknownNameError
from probes.feature_files import write_dictionary

RUN = CliRunner()
APP = typer.Typer()
APP.callback()(lambda: None)
register(APP, typer.Typer())
QUICK = ["--densest", "0.55", "--predictions", "4", "--context", "12", "--features", "5",
         "--exact", "3", "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, a finished graph run, and a text."""
    folder = tmp_path_factory.mktemp("trace")
    hf, tokenizer = tiny("llama"), space_tokenizer()
    hf.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    where = write_dictionary(dictionary(), folder / "features")
    model = interp.load(hf, tokenizer=tokenizer, check=False)
    graph = function_tokens(model, texts(30), features=str(where), length=24, skip_first=2,
                            blocks=4, draws=20, top=4)  # fmt: skip
    graph.save(folder / "graph")
    lines = [json.dumps({"text": t}) for t in texts(12, seed=7)]
    (folder / "text.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


def typed(world, *words):
    return RUN.invoke(APP, ["trace", str(world / "graph"), "--model", str(world / "model"),
                            *map(str, words)])  # fmt: skip


def test_a_prompt_gives_table_page_graph_json_and_graphml(world):
    out = world / "prompt"
    prompt = " ".join(texts(1, seed=3)[0].split()[:20])
    done = typed(world, "--prompt", prompt, "--output", out, "--heads", "L0H1", "--top", 0, *QUICK)
    assert done.exit_code == 0, done.output + str(done.exception)
    assert "re-activated features" in done.output and "rank agreement" in done.output
    page = (out / "page.html").read_text("utf-8")
    assert "Features of content tokens" in page and "plotly" in page
    made = [p for p in (out / "graph_data").glob("*.json") if p.name != "graph-metadata.json"]
    assert len(made) == 1 and check_graph_json(made[0])["embedding"] == 20
    assert nx.read_graphml(out / "trace.graphml").number_of_edges() > 0


def test_a_text_gives_a_run_folder_and_resume_reads_it(world):
    out = world / "corpus"
    words = ["--corpus", world / "text.jsonl", "--output", out, "--heads", "L0H1,L1H2",
             "--top", 2, *QUICK]  # fmt: skip
    done = typed(world, *words, "--json")
    assert done.exit_code == 0, done.output + str(done.exception)
    said = json.loads(done.output)
    assert said["answer"].startswith("Features of content tokens come back")
    result = ReactivationResult.load(out)
    assert result.settings["command"].startswith("mnemoscope")
    page = (out / "page.html").read_text("utf-8")
    for kind in figures.FIGURES:
        assert f'id="figure-{kind}"' in page
        assert isinstance(result.figure(kind), go.Figure)
    again = typed(world, *words, "--resume")
    assert again.exit_code == 0 and result.answer in " ".join(again.output.split())
    assert isinstance(typed(world, *words).exception, ResultError)


def test_the_index_figure_shows_the_table(world):
    result = ReactivationResult.load(world / "corpus")
    bars = result.figure("index").data
    shown = np.concatenate([bars[0].y, bars[1].y])
    np.testing.assert_allclose(shown, result.tables["index"]["index"])
    with pytest.raises(UnknownNameError):
        result.figure("pie")
    tables = {n: f for n, f in result.tables.items() if n != "heads"}
    bare = ReactivationResult(**{**vars(result), "tables": tables})
    with pytest.raises(ResultError, match="was not measured"):
        bare.figure("carriers")


REFUSED = {
    "neither": [],
    "both": ["--prompt", "the", "--corpus", "text"],
    "a target of two tokens": ["--prompt", "the of and the", "--target", " the of"],
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_traced_is_refused(world, words):
    done = typed(world, *words, "--output", world / "nothing")
    assert isinstance(done.exception, PromptError)
    assert not (world / "nothing").exists()
