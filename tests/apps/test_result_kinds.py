"""Every kind of run folder opens as what it is; what cannot be read is refused in one line."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from run_folders import run_folders

from apps import html_parts as h
from apps.result_kinds import KINDS, kind_of, models_of, open_run
from interp.errors import ResultError

ROOT = Path(__file__).parents[2]
NO_RUN = {"heads"}
"""Files of their own, not run folders."""


@pytest.fixture(scope="module")
def folders():
    return run_folders()


def test_every_result_that_the_circuits_write_has_a_row():
    text = "\n".join(p.read_text("utf-8") for p in (ROOT / "circuits").rglob("*.py"))
    written = set(re.findall(r'^KIND, SCHEMA = "([^"]+)"', text, re.MULTILINE))
    assert written - NO_RUN == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_opens_as_its_kind_and_has_all_that_a_reader_needs(folders, name):
    kind, result = open_run(folders[name])
    assert kind is KINDS[name] is kind_of(result)
    assert json.loads((folders[name] / "result.json").read_text("utf-8"))["kind"] == name
    for words in (kind.word, kind.title(result), kind.asked(result), kind.answer(result)):
        assert words.strip() and "{" not in words
    assert kind.asked(result).rstrip().endswith((".", "?"))
    shown = "".join(part for part in kind.body(result) if isinstance(part, str))
    for caveat in kind.caveats:
        assert h.safe(h.sentence(caveat)) in shown
    assert "<h2>Provenance</h2>" in shown and "<h1>" not in shown
    assert models_of(result)


@pytest.mark.parametrize("name", ["loss-groups", "feature-growth"])
def test_a_series_is_of_all_its_models(folders, name):
    assert list(models_of(open_run(folders[name])[1])) == ["first", "last"]


def test_a_page_draws_plotly_once_however_many_figures(folders):
    for name in ("scan", "calibration"):
        kind, result = open_run(folders[name])
        parts = list(kind.body(result))
        text = h.document("page", parts)
        assert text.count(get_plotlyjs()) == 1
        drawn = text.replace(get_plotlyjs(), "").count("Plotly.newPlot(")
        assert drawn == sum(isinstance(part, h.Picture) for part in parts) > 0


# -- refusals ---------------------------------------------------------------------------------


def refused(folder):
    with pytest.raises(ResultError) as error:
        open_run(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(folder, text):
    folder.mkdir()
    (folder / "result.json").write_text(text, "utf-8")
    return folder


def test_no_folder_no_result_and_no_finished_run(tmp_path):
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no result" in refused(tmp_path)
    (tmp_path / "parts").mkdir()
    assert "--resume" in refused(tmp_path)
    (tmp_path / "page.html").write_text("")
    assert "is a file" in refused(tmp_path / "page.html")


BAD = {
    "cut": ('{"kind": "sca', "cannot be read"),
    "no object": ("[1]", "foreign result"),
    "no kind": ("{}", "foreign result"),
    "a kind that is no name": ('{"kind": ["scan"]}', "foreign result"),
    "an unknown kind": ('{"kind": "steering", "schema": 1}', "steering result"),
    "no text": ("\udcff", "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_foreign_result_file(tmp_path, case):
    text, told = BAD[case]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    said = refused(folder)
    assert told in said
    if "result; " in said:
        assert "newer version" in said and all(name in said for name in KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_a_newer_schema_is_refused(folders, tmp_path, name):
    folder = shutil.copytree(folders[name], tmp_path / name)
    meta = json.loads((folder / "result.json").read_text("utf-8"))
    (folder / "result.json").write_text(json.dumps(meta | {"schema": 99}), "utf-8")
    assert "schema 99" in refused(folder)


@pytest.mark.parametrize("name", KINDS)
def test_a_folder_without_its_fields_is_damaged(folders, tmp_path, name):
    folder = shutil.copytree(folders[name], tmp_path / name)
    meta = json.loads((folder / "result.json").read_text("utf-8"))
    kept = {k: meta[k] for k in ("kind", "schema")}
    (folder / "result.json").write_text(json.dumps(kept), "utf-8")
    assert "is damaged" in refused(folder)


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_tensor_or_table_is_damaged(folders, tmp_path, name):
    made = sorted(p for e in ("parquet", "safetensors") for p in folders[name].rglob(f"*.{e}"))
    assert made
    for path in made:
        folder = shutil.copytree(folders[name], tmp_path / "run", dirs_exist_ok=True)
        cut = folder / path.relative_to(folders[name])
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "damaged" in refused(folder), cut


def test_what_is_no_result():
    with pytest.raises(ResultError, match="dict is no result"):
        kind_of({})


@pytest.mark.parametrize(
    "statement", ["import apps.result_kinds", "import apps.reporting", "import apps.joined_report"]
)
def test_the_table_and_the_command_import_nothing_heavy(statement):
    code = f"import sys; {statement}; print({{'torch', 'plotly', 'pandas'}} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr
