"""A saved result is read, drawn and joined where no model library is there: none is asked for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import run_folders

from apps.result_kinds import KINDS

ROOT = Path(__file__).parents[2]
EXPLORED = ("scan", "validation", "binding", "function-tokens")

WATCH = """
import json, sys, traceback
ROOT = sys.argv.pop(1)
LIBRARIES = {"torch", "transformers", "transformer_lens", "nnsight"}
here, asked = "", {}

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in LIBRARIES:
            files = [f"{f.filename}:{f.lineno}" for f in traceback.extract_stack()]
            ours = [f for f in files if f.startswith(ROOT) and "site-packages" not in f]
            asked.setdefault(here, f"{name} by {' > '.join(ours)}")
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Watch())

def tried(what, *calls):
    global here
    here = what
    try:
        for call in calls:
            call()
    except ModuleNotFoundError:
        assert what in asked, traceback.format_exc()

def told():
    print(json.dumps(asked))
"""
"""Refuses the libraries, notes who asked, and goes on: one kind does not hide the next."""


def watched(code, *args):
    """What asked for a model library, by the name that the code gave it."""
    out = subprocess.run(
        [sys.executable, "-c", f"{WATCH}\n{code}\ntold()", str(ROOT), *map(str, args)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def assert_none_asked(code, *args):
    found = watched(code, *args)
    assert not found, "\n".join(f"{what}: {who}" for what, who in found.items())


@pytest.fixture(scope="module")
def folders():
    return run_folders()


def test_the_watch_sees_who_asks():
    found = watched(
        "def wants(): import torch.nn\n"
        "tried('a', wants); tried('b', lambda: __import__('json')); tried('c', wants)\n"
        "tried('d', lambda: __import__('interp.trace'))"
    )
    assert set(found) == {"a", "c", "d"} and "interp/trace.py" in found["d"]


def test_the_modules_of_every_kind_ask_for_none():
    assert_none_asked(
        "from importlib import import_module\n"
        "from apps.result_kinds import KINDS\n"
        "for kind in KINDS.values():\n"
        "    tried(kind.name, lambda: import_module(kind.home.rpartition('.')[0]))\n"
        "    tried(kind.name + ' page', lambda: import_module(kind.page))"
    )


def test_every_kind_of_saved_run_is_read_and_drawn_without(folders):
    assert set(folders) == set(KINDS)
    assert_none_asked(
        "from apps import html_parts as h\n"
        "from apps.result_kinds import open_run\n"
        "def view(folder):\n"
        "    kind, result = open_run(folder)\n"
        "    for name in ('figure', '_repr_html_', 'to_frame', 'summary'):\n"
        "        if hasattr(result, name): getattr(result, name)()\n"
        "    assert '<h2>Provenance' in h.document(kind.title(result), list(kind.body(result)))\n"
        "for folder in sys.argv[1:]: tried(folder, lambda: view(folder))",
        *folders.values(),
    )


COMMANDS = {
    "help": lambda _, place: ["--help"],
    "report": lambda runs, place: ["report", *runs.values(), "--output", place, "--markdown"],
    "explore": lambda runs, place: ["explore", *(runs[k] for k in EXPLORED), "--export", place],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_only_look_ask_for_none(folders, tmp_path, name):
    page = tmp_path / "page.html"
    assert_none_asked(
        "from apps.cli import app\n"
        "def run():\n"
        "    try: app(prog_name='mnemoscope')\n"
        "    except SystemExit as done: assert not done.code\n"
        "tried('command', run)",
        *COMMANDS[name](folders, page),
    )
    assert page.exists() == (name != "help")
