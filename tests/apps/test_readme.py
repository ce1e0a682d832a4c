"""The README: its tables are those of the code and the results, its code names what exists."""

import ast
import re

import circuits
import interp
from apps.readme import BLOCKS, README, render


def test_tables_are_rendered_from_code_and_results():
    text = README.read_text("utf-8")
    assert render(text) == text, "run: python -m apps.readme"
    for name in BLOCKS:
        assert f"<!-- begin {name} -->" in text


def test_python_blocks_parse_and_name_what_exists():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.S)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module = {"circuits": circuits, "interp": interp}.get(node.value.id)
                assert module is None or hasattr(module, node.attr), node.attr


def test_commands_in_the_readme_are_known_to_the_command_line():
    from typer.main import get_command

    from apps.cli import app

    known = get_command(app)
    for line in re.findall(r"^    mnemoscope (.*)$", README.read_text("utf-8"), flags=re.M):
        words = line.split("#")[0].split()
        assert words[0] in known.commands, line
        command = known.commands[words[0]]
        if words[0] in ("bench", "models"):
            command = command.commands[words[1]]
        options = {o for p in command.params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, line


def yaml_block(word):
    """The YAML of the README that holds a word."""
    blocks = re.findall(r"```yaml\n(.*?)```", README.read_text("utf-8"), flags=re.S)
    (block,) = (b for b in blocks if word in b)
    return block


def test_the_sweep_in_the_readme_is_one(tmp_path):
    import typer

    from apps.cli import app
    from apps.sweep import read_sweep

    file = tmp_path / "models.yaml"
    file.write_text(yaml_block("models:"), "utf-8")
    steps, _ = read_sweep(file, None, typer.main.get_command(app))
    assert [(s.name, s.command) for s in steps] == [
        (name, command) for name in ("smollm2-135m", "late") for command in ("scan", "validate")
    ]


def test_the_task_in_the_readme_is_one():
    import yaml

    from probes.binding_tasks import read_task

    task = read_task(yaml.safe_load(yaml_block("roles:")))
    assert task.targets == ("gift",) and min(map(len, task.pools.values())) >= 5
