"""The causal commands as a user types them: on a planted model's folder, and on the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import worlds
from signals import heard

from apps.cli import main
from circuits.validation_result import ValidationResult
from probes.planted import build

ROOT = Path(__file__).parents[2]
MADE = worlds.MATERIALS.scan
PROMPTS = ["--needles", MADE["needles"], "--haystack", MADE["haystack"][0]]
SCAN = ["--lengths", "101", "--depths", "0.2,0.5,0.8", "--haystacks", "10", "--style", "plain",
        "--cue-words", "1", "--top", "2", "--no-generate", "--no-early"]  # fmt: skip
FAST = ["--top", "2", "--ablations", "zero", "--draws", "49", "--curve", "1", "--no-specificity"]


def command(*args):
    return [sys.executable, "-m", "apps.cli", *map(str, args)]


def run(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*args), cwd=ROOT, env=env, capture_output=True, text=True)


def good(*args):
    done = run(*args)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def here(capsys, monkeypatch):
    """Runs a command in this process, which has torch already: `(exit code, out, errors)`."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["mnemoscope", *map(str, args), "--threads", "1"])
        capsys.readouterr()  # what the test itself made others say
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        return stopped.value.code or 0, told.out, told.err

    return call


def fine(done):
    code, out, errors = done
    assert code == 0, out + errors
    return out


def one_line_error(done):
    code, out, errors = done
    assert code == 1, out + errors
    lines = errors.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("mnemoscope: "), errors
    return lines[0]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A planted model saved as a user's model folder, and a scan of it."""
    base = tmp_path_factory.mktemp("cli")
    made = build("induction_pair")
    made.model.save_pretrained(base / "model")
    made.tokenizer.save_pretrained(base / "model")
    good("scan", base / "model", *PROMPTS, *SCAN, "--output", base / "scan")
    return base / "model", base / "scan", base


def test_validate_writes_a_run_and_a_page_and_resume_shows_it(folders, here):
    model, scan, base = folders
    out = base / "validated"
    told = good("validate", scan, *FAST, "--output", out)  # the run says which folder it was
    assert "Validation of" in told and "necessary" in told and "sufficient" in told
    for name in (
        "result.json",
        "tensors.safetensors",
        "cases.parquet",
        "findings.csv",
        "page.html",
    ):
        assert (out / name).stat().st_size > 0
    assert not (out / "parts").exists()
    args = ("validate", scan, *FAST, "--output", out)
    assert "already" in one_line_error(here(*args))
    again = json.loads(fine(here(*args, "--resume", "--json")))
    assert len(again["findings"]) == 2
    assert "mnemoscope validate" in ValidationResult.load(out).settings["command"]


def test_heads_come_in_any_published_form(folders, here):
    model, _, base = folders
    head = str(build("induction_pair").truth.heads("copy")[0])
    layer, index = head[1:].split("H")
    forms = {
        "wu.json": json.dumps({f"{layer}-{index}": [1.0], "0-0": [0.2]}),
        "qr.yaml": f"attn_head_set: {layer}-{index},0-0\n",
        "duo.tsv": "\n".join(
            "\t".join(str(float(f"L{i}H{j}" in (head, "L0H0"))) for j in range(8)) for i in range(3)
        ),
    }
    for name, text in forms.items():
        (base / name).write_text(text)
    for ref in (*(base / n for n in forms), f"{head},L0H0"):
        out = base / f"out-{Path(str(ref)).name[:8].replace(',', '-')}"
        args = ("validate", ref, "--model", model, *PROMPTS, "--style", "plain", "--cue-words", "1",
                "--length", "101", *FAST, "--no-alone", "--needles-tested", "5")  # fmt: skip
        told = json.loads(fine(here(*args, "--output", out, "--json")))
        assert set(told["heads"]) == {head, "L0H0"}


def test_patch_and_circuit_write_runs_and_pages(folders, here):
    _, scan, base = folders
    small = ["--needles-tested", "2", "--length", "101"]
    patching = ("--layers", "2", "--confirm", "3", "--output", base / "p")
    told = fine(here("patch", scan, *small, *patching))
    assert "Patches of" in told and "rank agreement" in told
    tracing = ("--receivers", "1", "--senders", "2", "--random", "2", "--output", base / "c")
    told = fine(here("circuit", scan, *small, *tracing))
    assert "What feeds" in told and "CPR" in told
    for name in ("p/page.html", "p/rows.parquet", "c/page.html", "c/circuit.graphml"):
        assert (base / name).stat().st_size > 0
    shown = json.loads(fine(here("circuit", scan, "--output", base / "c", "--resume", "--json")))
    assert shown["areas"]["random"]
    told = one_line_error(here("patch", scan, "--sites", "q", "--output", base / "x"))
    assert "cannot patch q" in told and not (base / "x").exists()


@pytest.mark.real
def test_bench_validate_gives_the_same_numbers(real, tmp_path):
    out = tmp_path / "bench.json"
    args = ["bench", "validate", "smollm2-135m", "--length", "256", "--draws", "4"]
    figures = json.loads(good(*args, "--threads", "1", "--output", out, "--json"))
    assert figures["same numbers"] and figures["ablations"] == 4
    assert figures["largest difference in log-prob, nats"] <= 1e-4
    assert figures["spread of log-prob over sets, nats"] > 0
    assert json.loads(out.read_text()) == figures


def test_ctrl_c_keeps_finished_parts_and_resume_goes_on(folders):
    model, scan, base = folders
    out = base / "interrupted"
    # long enough that the signal does not come when all is done
    long = ["--top", "2", "--ablations", "mean,zero,uniform,query_zero,sink", "--draws", "150"]
    args = ["validate", scan, "--model", model, *long, "--output", out]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*args), cwd=ROOT, env=env, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, preexec_fn=heard)  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith("mnemoscope: interrupted")
    assert not (out / "result.json").exists()
    good(*args, "--resume")
    assert (out / "result.json").exists() and not (out / "parts").exists()


BAD = {
    "no model named": (["L1H0"], "add --model"),
    "an unknown head": (["L9H0", "--model", "MODEL"], "no head L9H0"),
    "no such heads": (["nothing", "--model", "MODEL"], "no file is called so"),
    "an unknown ablation": (["SCAN", "--model", "MODEL", "--ablations", "zeros"], "did you mean"),
    "an unknown scope": (["SCAN", "--model", "MODEL", "--scope", "all"], "scope"),
    "too few sets": (["SCAN", "--model", "MODEL", "--draws", "30"], "or more"),
    "an unknown preset": (["SCAN", "--model", "MODEL", "--preset", "wu"], "preset"),
    "more than the pool": (["SCAN", "--model", "MODEL", "--top", "20"], "layer"),
    "no number": (["SCAN", "--model", "MODEL", "--curve", "a"], "commas"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_input_gets_one_line_and_nothing_is_written(folders, bad, tmp_path, here):
    model, scan, _ = folders
    args, words = bad
    names = {"MODEL": model, "SCAN": scan}
    out = tmp_path / "out"
    args = [names.get(a, a) for a in args]
    assert words in one_line_error(here("validate", *args, "--output", out))
    assert not out.exists()


def test_a_run_of_another_model_is_refused(folders, tmp_path, here):
    _, scan, _ = folders
    other = build("induction_pair", seed=1)
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    args = ("--model", tmp_path / "other", "--output", tmp_path / "out")
    told = one_line_error(here("validate", scan, *args))
    assert "load the same model" in told and not (tmp_path / "out").exists()


@pytest.mark.real
def test_the_real_models_heads_are_necessary(real, tmp_path):
    """L18H6 and L23H2 lead every scan of the bundled model; no scan is needed to name them."""
    out = tmp_path / "run"
    told = json.loads(good(
        "validate", "L18H6,L23H2,L18H7,L17H3,L23H7", "--model", "smollm2-135m",
        "--ablations", "zero", "--draws", "39", "--curve", "1", "--needles-tested", "8",
        "--length", "256", "--no-alone", "--no-specificity", "--threads", "1", "--output", out,
        "--json",
    ))  # fmt: skip
    by = {f["effect"]["direction"]: f for f in told["findings"]}
    effect = by["ablate"]["effect"]
    assert effect["treated"] < effect["control_low"] < effect["baseline"] + 0.5
    assert by["ablate"]["verdict"] == "supported"


def test_weights_are_scored_saved_and_shown_again(folders, here):
    _, scan, base = folders
    out = base / "weights"
    args = ("weights", scan, "--top", "2", "--random", "20", "--output", out)
    told = fine(here(*args))
    assert "copy by their weights" in told and (out / "page.html").stat().st_size > 0
    assert "already" in one_line_error(here(*args))
    shown = json.loads(fine(here(*args, "--resume", "--json")))
    assert len(shown["settings"]["heads"]) == 2 and shown["heads"]
    refused = one_line_error(here("weights", scan, "--random", "3", "--output", base / "few"))
    assert "20 random matrices or more" in refused and not (base / "few").exists()
    assert "add --model" in one_line_error(here("weights", "L1H0", "--output", base / "none"))
