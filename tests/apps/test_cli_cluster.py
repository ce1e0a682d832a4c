"""`--engine ray` as a user types it: refusals at once, and a run with a cluster of its own."""

import json
import subprocess
import sys

import pytest
import worlds

from apps.cli import main
from circuits.scan_result import ScanResult
from probes.planted import build

MADE = worlds.MATERIALS.scan

REFUSED = {
    "unknown engine 'dask'": ["--engine", "dask"],
    "add --engine ray": ["--workers", "4"],
    "no Ray cluster answers at 127.0.0.1:1": ["--engine", "ray", "--address", "127.0.0.1:1"],
    "cannot keep the parts": ["--engine", "ray", "--address", "ray://head:10001"],
    "auto or HOST:PORT": ["--engine", "ray", "--address", "head"],
    "one trial after another": ["--engine", "ray", "--preset", "wu2024"],
    "one worker or more": ["--engine", "ray", "--workers", "0"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_makes_no_sense_is_refused_in_one_line(capsys, monkeypatch, tmp_path, words):
    out = tmp_path / "out"
    typed = ["mnemoscope", "scan", "smollm2-135m", *REFUSED[words], "--output", str(out)]
    monkeypatch.setattr(sys, "argv", typed)
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 1 and len(lines) == 1 and words in lines[0], lines
    assert not out.exists()


@pytest.mark.slow
def test_a_run_on_a_cluster_of_its_own_says_so_and_gives_one_json_object(tmp_path):
    made, model = build("induction_pair"), tmp_path / "model"
    made.model.save_pretrained(model)
    made.tokenizer.save_pretrained(model)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", "scan", str(model), "--needles", MADE["needles"],
         "--haystack", MADE["haystack"][0], "--lengths", "101", "--depths", "0.2,0.8", "--style",
         "plain", "--cue-words", "1", "--haystacks", "4", "--no-generate", "--attention", "1",
         "--engine", "ray", "--workers", "1", "--output", str(out), "--json"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == str(out)
    found = ScanResult.load(out)
    assert "ray, 1 worker of 1 CPU" in found.settings["machine"]
    assert "--engine ray" in found.settings["command"]
    assert not (out / "parts").exists() and found.attention is not None
