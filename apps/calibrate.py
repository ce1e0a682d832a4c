"""`mnemoscope calibrate`: every detector and test, on models and worlds whose truth is known."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.console import Lines, say
from apps.options import AsJson, Resume, Threads, command_line, interruptible, names, run_folder
from interp.errors import UnknownNameError


@dataclass(frozen=True)
class Suite:
    """Where a suite's truths, run, result and view are; imported when it is run.

    `chosen` is what the run calls its truths.
    """

    truths: str
    run: str
    result: str
    view: str
    chosen: str = "models"


SUITES: dict[str, Suite] = {
    "heads": Suite(
        "probes.planted.PLANTED", "circuits.calibration.calibrate",
        "circuits.calibration_result.CalibrationResult", "apps.calibration_view",
    ),
    "binding": Suite(
        "probes.planted_binding.PLANTED_BINDING", "circuits.binding_calibration.calibrate_binding",
        "circuits.binding_calibration_result.BindingCalibration", "apps.binding_calibration_view",
    ),
    "graph": Suite(
        "probes.planted_features.WORLDS", "circuits.graph_calibration.calibrate_graph",
        "circuits.graph_calibration.GraphCalibration", "apps.graph_calibration_view", "worlds",
    ),
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(interruptible(calibrate))


def calibrate(
    models: Annotated[str, typer.Option(help="Names with commas; default: all of them.")] = "",
    only: Annotated[str, typer.Option(help="heads, binding or graph; default: all three.")] = "",
    seeds: Annotated[int, typer.Option(help="Models, or worlds, of each kind.")] = 3,
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/calibration"),
    resume: Resume = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Run every detector and causal test on models whose circuit is known."""
    import torch

    if only and only not in SUITES:
        raise UnknownNameError("suite", only, SUITES)
    tables: dict[str, Mapping[str, Any]] = {k: _named(s.truths) for k, s in SUITES.items()}
    wanted = names(models)
    for name in wanted:
        if not any(name in table for table in tables.values()):
            raise UnknownNameError("planted model", name, [n for t in tables.values() for n in t])
    torch.set_num_threads(threads or 1)
    for suite, table in tables.items():
        chosen = [name for name in table if name in wanted or not wanted]
        if (only or suite) == suite and chosen:
            _calibrated(suite, chosen, output, seeds=seeds, resume=resume, as_json=as_json)


def _calibrated(
    suite: str, models: list[str], output: Path, *, seeds: int, resume: bool, as_json: bool
) -> None:
    """One suite: run or read again, saved, shown."""
    row = SUITES[suite]
    run, Result = _named(row.run), _named(row.result)
    view = import_module(row.view)
    named = output if suite == "heads" else output.with_name(f"{output.name}-{suite}")
    folder = run_folder(named, "calibration", resume=resume)
    lines = Lines(quiet=as_json)
    if (folder / "result.json").exists():
        result = Result.load(folder)
    else:
        with lines.progress("models") as report:
            result = run(
                **{row.chosen: models}, seeds=seeds, folder=folder / "parts", progress=report
            )
        result.settings["command"] = command_line("calibrate")
        result.save(folder)
    if as_json:
        told = {"command": result.settings.get("command", ""), "markdown": view.markdown(result)}
        say(json.dumps(told | result.summary(), allow_nan=False))
    else:
        view.print_tables(result)
    lines.say(f"run folder: {folder.resolve()}")
    if hasattr(view, "page"):
        from apps.html_parts import write_whole

        lines.say(f"page: {write_whole(folder / 'page.html', view.page(result)).resolve()}")


def _named(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    found: Callable | Mapping = getattr(import_module(module), name)
    return found
