"""The command `sweep`: the file is read whole before a model is, and one failure stops no other."""

import json
import sys

import pytest
import worlds

from apps.cli import main
from circuits.scan_result import ScanResult
from probes.planted import build

MADE = worlds.MATERIALS.scan
PLAN = {
    "options": {"threads": 1, "cue_words": 1},
    "models": ["MODEL", {"name": "late", "model": "MODEL", "dtype": "float32"},
               {"name": "absent", "model": "./nowhere"}],
    "runs": [
        {"scan": {"needles": MADE["needles"], "haystack": [MADE["haystack"][0]], "lengths": [101],
                  "depths": [0.2, 0.8], "haystacks": 6, "style": "plain", "generate": False,
                  "early": False, "attention": 0}},
        {"validate": {"top": 2, "ablations": "zero", "draws": 49, "curve": 1, "alone": False,
                      "specificity": False}},
    ],
}  # fmt: skip


@pytest.fixture
def here(capsys, monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["mnemoscope", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return stopped.value.code or 0, told.out, told.err

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    where = tmp_path_factory.mktemp("sweep") / "planted"
    made = build("induction_pair")
    made.model.save_pretrained(where)
    made.tokenizer.save_pretrained(where)
    return str(where)


def written(tmp_path, plan, model="smollm2-135m"):
    file = tmp_path / "plan.yaml"
    text = plan if isinstance(plan, str) else json.dumps(plan)  # JSON is YAML
    file.write_text(text.replace("MODEL", model), "utf-8")
    return file


def test_models_are_run_in_turn_and_a_failure_stops_no_other(here, model, tmp_path):
    file, out = written(tmp_path, PLAN, model), tmp_path / "out"
    code, told, errors = here("sweep", file, "--output", out)
    assert code == 1 and "2 of 6 runs failed" in errors.strip().splitlines()[-1]
    assert "mnemoscope report" in told
    record = json.loads((out / "sweep.json").read_text())
    states = {(s["name"], s["command"]): s["state"] for s in record}
    assert states == {
        ("planted", "scan"): "done", ("planted", "validate"): "done", ("late", "scan"): "done",
        ("late", "validate"): "done", ("absent", "scan"): "failed",
        ("absent", "validate"): "not run",
    }  # fmt: skip
    assert "nowhere" in next(s["why"] for s in record if s["state"] == "failed")
    found = ScanResult.load(out / "late" / "scan")
    # the run says how it is made again without the sweep
    assert found.settings["command"].startswith(f"mnemoscope scan {model} --threads 1")
    assert "already" in here("sweep", file, "--output", out)[2]
    code, told, _ = here("sweep", file, "--output", out, "--resume", "--json")
    again = json.loads(told)
    assert code == 1 and [s["state"] for s in again[:4]] == ["done before"] * 4


REFUSED = {
    "no YAML": "models: [",
    "expected names and values": "- a\n- b",
    "did you mean models": "modles: [a]",
    "expected a list": "models: smollm2-135m",
    "a model is a name, or has": "models: [{name: x}]",
    "unknown run 'scam'": "models: [a]\nruns: [scam]",
    "put a scan before it": "models: [a]\nruns: [validate]",
    "did you mean lengths": "models: [a]\nruns: [{scan: {length: 3}}]",
    "unknown option 'threds'": "models: [a]\noptions: {threds: 3}",
    "--top": "models: [a]\nruns: [{scan: {top: many}}]",
    "two runs would be written": "models: [x/a, y/a]",
    "one command an entry": "models: [a]\nruns: [{scan: {}, bind: {}}]",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_wrong_file_is_refused_before_anything_runs(here, tmp_path, words):
    file = written(tmp_path, REFUSED[words])
    code, told, errors = here("sweep", file, "--output", tmp_path / "out")
    lines = errors.strip().splitlines()
    assert code == 1 and len(lines) == 1 and words in lines[0], errors
    assert not (tmp_path / "out").exists() and not told


def test_a_missing_file_is_told(here, tmp_path):
    assert "cannot be read" in here("sweep", tmp_path / "none.yaml")[2]
