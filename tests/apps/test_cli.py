"""The command line as a person types it, in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from signals import heard

ROOT = Path(__file__).parents[2]
SMALL = ["--lengths", "300", "--depths", "0.2,0.8", "--haystacks", "2", "--threads", "1"]


def run(*args, cwd=None):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "apps.cli", *map(str, args)]
    return subprocess.run(command, cwd=cwd or ROOT, env=env, capture_output=True, text=True)


def one_line_error(done):
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mnemoscope: "), done.stderr
    return lines[0]


@pytest.mark.real
def test_scan_writes_a_run_and_a_page_and_compare_reads_them(real, tmp_path):
    out = tmp_path / "run"
    done = run("scan", "smollm2-135m", *SMALL, "--output", out)
    assert done.returncode == 0, done.stderr
    assert "Retrieval heads of" in done.stdout and "bundled" in done.stdout
    for name in ("result.json", "tensors.safetensors", "trials.parquet", "heads.json", "page.html"):
        assert (out / name).stat().st_size > 0
    assert "already" in one_line_error(run("scan", "smollm2-135m", *SMALL, "--output", out))
    shown = json.loads(run("scan", "smollm2-135m", "--output", out, "--resume", "--json").stdout)
    assert len(shown["heads"]) == 10
    same = json.loads(run("compare", out, out / "heads.json", "--json").stdout)
    assert same["pearson"] == pytest.approx(1) and same["top_overlap"] == 10


@pytest.mark.real
def test_doctor_finds_the_bundled_model_sound(real):
    done = run("doctor", "smollm2-135m", "--threads", "1", "--json")
    checks = json.loads(done.stdout)
    assert len(checks) > 10
    measured = [c for c in checks if c["name"] != "package names"]
    assert all(c["passed"] for c in measured)


@pytest.mark.real
def test_plan_counts_without_scanning(real):
    cost = json.loads(run("plan", "smollm2-135m", *SMALL, "--json").stdout)
    assert cost["trials"] == 4 and cost["contexts"] == 2
    least, most = cost["tokens"]
    assert 600 < least <= most and cost["seconds"][0] > 0


def test_bad_input_gets_one_line(tmp_path):
    assert "did you mean smollm2-135m" in one_line_error(run("scan", "smollm2-135"))
    (tmp_path / "empty").mkdir()
    assert "config.json" in one_line_error(run("scan", tmp_path / "empty"))
    assert "commas" in one_line_error(run("scan", "smollm2-135m", "--lengths", "a,b"))
    assert "no result" in one_line_error(run("compare", tmp_path / "empty", tmp_path / "empty"))
    assert "unknown bundled" in one_line_error(run("models", "path", "gpt5"))


def test_usage_errors_exit_with_2():
    assert run("scan").returncode == 2
    assert run("scan", "x", "--no-such-option").returncode == 2


def test_models_list_states_licence_and_quantisation():
    rows = json.loads(run("models", "list", "--json").stdout)
    assert {r["name"] for r in rows} == {"smollm2-135m", "qwen2.5-coder-0.5b"}
    assert all(r["licence"] and r["quantisation"] for r in rows)


def test_a_result_of_another_version_is_refused(tmp_path):
    record = {"kind": "scan", "schema": 99}
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert "schema 99" in one_line_error(run("compare", tmp_path, tmp_path))
    (tmp_path / "result.json").write_text("{")
    assert "cannot be read" in one_line_error(run("compare", tmp_path, tmp_path))


@pytest.mark.real
def test_ctrl_c_keeps_finished_trials_and_resume_goes_on(real, tmp_path):
    import signal
    import time

    out = tmp_path / "run"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    args = ["scan", "smollm2-135m", *SMALL, "--output", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "apps.cli", *args], cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("parts/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith("mnemoscope: interrupted")
    assert not (out / "result.json").exists()
    assert "has not finished" in one_line_error(run("compare", out, out))
    assert run(*args, "--resume").returncode == 0
    assert (out / "result.json").exists() and not (out / "parts").exists()
