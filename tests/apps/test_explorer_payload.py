"""What the explorer is given: arrays, planes, budgets, refusals; and the command that opens it."""

import functools
import gzip
import json
import re
import socket
import subprocess
import sys
from dataclasses import replace

import bindings
import numpy as np
import pytest
import run_folders
from typer.testing import CliRunner
from worlds import PROMPTS, world

from apps import explore
from apps.bench_explore import made_up
from apps.cli import app
from apps.explorer import assets, payload
from apps.explorer.binding_data import binding_data
from apps.explorer.feature_data import feature_data
from apps.explorer.layout import VIEWS
from apps.explorer.opening import opened
from apps.explorer.packing import Packer
from apps.explorer.planes import planes_of
from circuits.retrieval import scan
from interp.errors import ResultError

ASKED = {**PROMPTS, "lengths": (96, 192), "depths": (0.2, 0.8), "n_haystacks": 1}
TYPES = {"u1": "u1", "u2": "<u2", "i2": "<i2", "i4": "<i4", "f2": "<f2", "f4": "<f4"}


@pytest.fixture(scope="module")
def run():
    return scan(world("copy_content")[0], **ASKED)


@functools.cache
def made(kind):
    """A small result of a kind."""
    return run_folders.MAKE[kind]()


def unpacked(block, ref):
    data = gzip.decompress(block)
    n = int(np.prod(ref["shape"]))
    return np.frombuffer(data, TYPES[ref["dtype"]], n, ref["at"]).reshape(ref["shape"])


# -- arrays and planes ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "int64", "float16",
                                   "float32", "float64", "bool"])  # fmt: skip
def test_packed_arrays_come_back(dtype):
    packer = Packer()
    first = packer.add(np.arange(3).astype("uint8"))
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    ref = packer.add(array)
    assert ref["at"] % 8 == 0 and packer.add(None) is None
    assert np.array_equal(unpacked(packer.packed(), ref), array)
    assert unpacked(packer.packed(), first).tolist() == [0, 1, 2]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(TypeError, match="not packed"):
        Packer().add(np.array(["a"]))


def test_planes_of_a_scan_are_its_means_with_its_intervals(run):
    planes = {p.name: p for p in planes_of("scan", run)}
    assert set(planes) == {*run.values, *run.roles}
    sure = run.uncertainty("copy")
    assert np.array_equal(planes["copy"].values, run.mean("copy"))
    assert np.array_equal(planes["copy"].low.reshape(-1), sure.low)
    assert planes["write"].centred and not planes["copy"].centred
    assert "Chance" in planes["mass"].about and planes["induction"].low is None


def test_planes_of_other_kinds_lie_where_their_heads_are():
    for kind in ("validation", "circuit", "patch"):
        result = made(kind)
        for plane in planes_of(kind, result):
            made_on = result.provenance
            shape = made_on.n_layers, made_on.n_heads
            if kind == "validation":  # its fixture is cut to fewer heads
                shape = result.alone.shape[:2]
            assert plane.values.shape == shape
            assert plane.centred
            assert plane.group == "causal effects"
    result = made("validation")
    frame = result.alone_frame("logprob")
    plane = next(p for p in planes_of("validation", result) if p.name == "alone-logprob")
    for row in frame.to_dict("records"):
        at = row["layer"], row["head"]
        assert (plane.values[at], plane.q[at]) == (row["effect"], row["q"])
    assert planes_of("function-tokens", None) == []


def test_the_page_is_given_just_what_the_run_holds(run):
    given = payload.build(opened([run]))
    told = given.about["runs"][0]
    assert np.allclose(unpacked(given.block, told["planes"][0]["values"]), run.mean("copy"))
    for plain, kept in zip(told["attention"]["trials"], run.attention.trials, strict=True):
        for name, array in kept.arrays().items():
            assert np.array_equal(unpacked(given.block, plain[name]), array, equal_nan=True)
    fired = unpacked(given.block, told["trials"]["fired"]) / 255
    assert np.allclose(fired, run.values["copy"], atol=1 / 500)
    assert told["sets"][0]["heads"] == [str(h) for h in run.top()]
    json.dumps(given.as_plain(), allow_nan=False)


def test_binding_data_are_the_recorded_evaluations():
    result = bindings.result("mixture", n=5)
    study, told = result.study(), binding_data(result)[0]
    rows = study.records.of("main", design="main", layer=study.layer)
    assert len(told["cases"]) == told["n_cases"] == len(rows)
    assert [c["said"] for c in told["cases"]] == rows.logits.argmax(1).tolist()
    for row in study.shares().to_dict("records"):
        mine = [c for c in told["cases"] if c["i_p"] == row["i_p"]]
        share = sum(c["label"] == row["label"] for c in mine) / len(mine)
        assert share == pytest.approx(row["share"])
    kept = {e["set"] for e in told["examples"]}
    case = next(c for c in told["cases"] if c["set"] in kept)
    example = next(e for e in told["examples"] if e["set"] == case["set"])
    donor, words = example["donors"][case["donor"]], example["recipient"]["words"]
    assert str(case["i_p"]) in donor["questions"]
    assert all(word in example["recipient"]["context"] for row in words for word in row)


def test_feature_data_are_the_counted_edges():
    result = run_folders.graph()
    packer = Packer()
    told = feature_data(result, packer)[0]
    block = packer.packed()
    token, feature, count = (
        unpacked(block, told["edges"][n]) for n in ("token", "feature", "count")
    )
    edges = result.edges(told["key"]).set_index(["token", "feature"])["count"]
    for t, f, n in zip(token, feature, count, strict=True):
        assert edges[told["tokens"][t]["id"], told["features"][f]] == n
    assert len(unpacked(block, told["heights"])) == len(told["tokens"]) + len(told["features"])
    assert len(count) > 10


# -- sizes ------------------------------------------------------------------------------------


def test_a_large_run_keeps_to_the_size_of_a_page_and_says_what_is_left_out(tmp_path):
    runs = opened([made_up(32, 32, 32768)])
    given = payload.build(runs)
    page = explore(runs[0].result, export=tmp_path / "page.html")
    assert page.stat().st_size < 15e6
    shown = given.about["runs"][0]
    assert 0 < len(shown["attention"]["trials"]) < 20
    assert (
        shown["left_out"] == 20 - len(shown["attention"]["trials"]) == sum(given.left_out.values())
    )


def test_no_array_of_the_page_is_tokens_by_tokens(run):
    given = payload.build(opened([run]))

    def refs(value):
        if isinstance(value, dict):
            if set(value) == {"at", "dtype", "shape"}:
                yield value
            else:
                for part in value.values():
                    yield from refs(part)
        elif isinstance(value, list):
            for part in value:
                yield from refs(part)

    longest = max(t.length for t in run.attention.trials)
    for ref in refs(given.about):
        assert sum(n >= longest for n in ref["shape"]) < 2


# -- layout -----------------------------------------------------------------------------------


def test_every_panel_of_the_layout_has_its_drawing_and_every_drawing_a_panel():
    named = {p.name for view in VIEWS for p in view.panels}
    drawn = set(re.findall(r"^PANELS\.(\w+) = ", assets.script(), re.M))
    assert named == drawn
    assert all(p.about and p.lacking for view in VIEWS for p in view.panels)


def test_text_reaches_the_page_as_text_nodes_alone():
    for name in assets.ORDER:
        text = (assets.STATIC / f"{name}.js").read_text("utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


# -- refusals and the command -----------------------------------------------------------------


def refused(*words):
    found = CliRunner().invoke(app, list(words))
    assert isinstance(found.exception, ResultError), found.output
    said = str(found.exception)
    assert "\n" not in said
    return said


def test_runs_that_cannot_be_shown_are_refused_in_a_line(run, tmp_path):
    folder = run.save(tmp_path / "run")
    assert "no such folder" in refused("explore", str(tmp_path / "none"))
    assert "named twice" in refused("explore", str(folder), f"{folder}/../run")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "result.json").write_text('{"kind": "else", "schema": 1}', "utf-8")
    assert "else" in refused("explore", str(tmp_path / "foreign"))
    newer = json.loads((folder / "result.json").read_text("utf-8")) | {"schema": 99}
    (folder / "result.json").write_text(json.dumps(newer), "utf-8")
    assert "schema 99" in refused("explore", str(folder))
    (folder / "result.json").write_text('{"kind": "scan", "sch', "utf-8")
    assert "cannot be read" in refused("explore", str(folder))


def test_a_kind_without_a_view_names_the_report(tmp_path):
    folder = made("calibration").save(tmp_path / "run")
    assert "mnemoscope report" in refused("explore", str(folder), "--export", "x.html")


def test_bad_ports_and_places_are_refused(run, tmp_path):
    folder = str(run.save(tmp_path / "run"))
    assert "no port" in refused("explore", folder, "--port", "70000")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "another --port" in refused("explore", folder, "--port", port, "--no-browser")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused("explore", folder, "--export", str(tmp_path / "file" / "x"))
    assert "does not say how" in refused("explore", folder, "--model", "same")


def test_without_dash_the_remedy_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dash", None)
    folder = str(run.save(tmp_path / "run"))
    assert "pip install" in refused("explore", folder, "--port", "0", "--no-browser")


def test_a_page_is_written_without_torch_or_dash(run, tmp_path):
    folder = run.save(tmp_path / "run")
    code = (
        "import sys; sys.argv = ['mnemoscope', 'explore', *sys.argv[1:]]\n"
        "from apps.cli import app\n"
        "app(standalone_mode=False)\n"
        "print([m for m in ('torch', 'dash', 'nnsight', 'transformer_lens') if m in sys.modules])"
    )
    words = [sys.executable, "-c", code, str(folder), "--export", str(tmp_path / "x.html")]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]" and "opens offline" in said


def test_runs_of_one_name_get_different_labels(run):
    labels = [r.label for r in opened([run, replace(run, notes=("again",))])]
    assert len(set(labels)) == 2
