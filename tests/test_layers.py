"""The architecture, tested: imports go down, backends stay in their folder, files stay small."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("interp", "probes", "circuits", "apps")
SOURCES = [p for layer in LAYERS for p in sorted((ROOT / layer).rglob("*.py"))]


def imports(path):
    """Modules imported anywhere in a file."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_never_go_upward(path):
    mine = LAYERS.index(path.relative_to(ROOT).parts[0])
    above = LAYERS[mine + 1 :]
    assert not [name for name in imports(path) if name.split(".")[0] in above]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_model_libraries_are_imported_by_backends_alone(path):
    if path.relative_to(ROOT).parts[:2] == ("interp", "backends"):
        return
    assert not [n for n in imports(path) if n.split(".")[0] in ("nnsight", "transformer_lens")]


def test_modules_have_no_import_cycle():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in SOURCES}
    graph = {n: {i for i in top_level(p) if i in names} for n, p in names.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, f"cycle: {' > '.join([*path, name])}"
        if name not in done:
            path.append(name)
            for other in graph[name]:
                visit(other)
            path.pop()
            done.add(name)

    for name in graph:
        visit(name)


def top_level(path):
    """Imports that run when the module is imported."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_fit_in_the_head(path):
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_no_module_has_the_name_of_a_public_function():
    """Importing such a module would put itself in the function's place."""
    import circuits

    names = {p.stem for p in (ROOT / "circuits").glob("*.py")}
    assert not names & set(circuits.__all__)


def test_the_readme_calls_only_what_the_package_gives():
    import circuits

    called = set(re.findall(r"circuits\.(\w+)\(", (ROOT / "README.md").read_text("utf-8")))
    assert called and called <= set(circuits.__all__)
    assert all(getattr(circuits, name).__name__ == name for name in circuits.__all__)


@pytest.mark.parametrize("statement", ["import apps.cli", "import interp, probes, circuits"])
def test_importing_loads_no_model_library(statement):
    heavy = "{'torch', 'transformers', 'plotly', 'pandas'}"
    code = f"import sys; {statement}; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "[]", out.stderr
