"""The command `sweep`: the same runs on many models, from one file; what fails stops no other.

    output: runs/series
    options: {engine: ray, workers: 2}       # of every run that knows them
    models:
      - smollm2-135m
      - {name: late, model: org/name, revision: step900, dtype: bfloat16}
    runs:
      - scan: {lengths: [512, 1024]}
      - validate: {top: 10}                  # of the same model's scan
      - graph: {corpus: [my_texts]}

Options are those of the commands. Every line is read before the first model is.
"""

import contextlib
import gc
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.console import Lines, print_table, say
from apps.options import AsJson, Resume, interruptible, typed
from interp.errors import MnemoscopeError, PromptError, ResultError, UnknownNameError

ON_A_MODEL = ("scan", "bind", "graph")
ON_A_SCAN = ("validate", "patch", "circuit")
KEYS = ("output", "options", "models", "runs")
RECORD = "sweep.json"
WRONG_USE: Any = typer.BadParameter.__mro__[2]
"""Whatever is wrong with a command's options: click's class, or that of typer's own copy of it."""


@dataclass(frozen=True)
class Step:
    """One command on one model.

    Attributes:
        arguments: as typed behind the command's name, without `--output` and `--resume`.
        state: waiting, done, done before, failed, not run.
    """

    name: str
    command: str
    arguments: tuple[str, ...]
    folder: Path
    state: str = "waiting"
    seconds: float = 0
    why: str = ""


def register(app: typer.Typer, _bench: typer.Typer) -> None:
    """Add the command to the command line."""

    @app.command()
    @interruptible
    def sweep(
        file: Annotated[Path, typer.Argument(help="YAML: models, runs, options, output.")],
        output: Annotated[
            Path | None, typer.Option(help="Folder of all runs. Default: the file's, or runs/FILE.")
        ] = None,
        resume: Resume = False,
        as_json: AsJson = False,
    ) -> None:
        """Run scan, validate, bind, graph, ... on many models, one after another."""
        commands = typer.main.get_command(app)
        steps, folder = read_sweep(file, output, commands)
        _refuse_finished(steps, resume=resume)
        done = list(_run(steps, commands, folder, Lines(quiet=as_json)))
        if as_json:
            say(json.dumps(_plain(done)))
        else:
            print_table("sweep", ["model", "run", "", "seconds", "folder, or why not"], [
                [s.name, s.command, s.state, f"{s.seconds:.0f}", s.why or str(s.folder)]
                for s in done
            ])  # fmt: skip
            _say_next(done, folder)
        failed = [s for s in done if s.state in ("failed", "not run")]
        if failed:
            raise ResultError(
                f"{len(failed)} of {len(done)} runs failed; {folder / RECORD} says why; mend it "
                "and run the sweep again with --resume"
            )


def read_sweep(file: Path, output: Path | None, commands: Any) -> tuple[list[Step], Path]:
    """All steps of a sweep, model after model, each checked as the command itself would.

    Raises:
        PromptError, UnknownNameError: a file that cannot be read, and what in it is wrong.
    """
    plan = _read(file)
    folder = output or Path(plan.get("output") or Path("runs") / file.stem)
    general = _mapping(plan.get("options", {}), f"{file}: options")
    runs = [_run_of(r, file) for r in _list(plan.get("runs", ["scan"]), f"{file}: runs")]
    _check_order([command for command, _ in runs], file)
    every = [_options(commands.commands[command]) for command, _ in runs]
    steps = []
    for model in _list(plan.get("models"), f"{file}: models"):
        name, reference, own = _model_of(model, file)
        shared = {str(k).replace("_", "-"): v for k, v in {**general, **own}.items()}
        for key in shared:
            if not any(key in known for known in every):
                raise UnknownNameError("option", key, {k for known in every for k in known})
        for (command, options), known in zip(runs, every, strict=True):
            given = {k: v for k, v in shared.items() if k in known} | dict(options)
            first = reference if command in ON_A_MODEL else str(folder / name / "scan")
            arguments = _arguments(commands.commands[command], first, given, f"{file}: {command}")
            steps.append(Step(name, command, arguments, folder / name / command))
    places = [s.folder for s in steps]
    for place in places:
        if places.count(place) > 1:
            raise PromptError(f"{file}: two runs would be written to {place}; give names")
    return steps, folder


def _run(steps: Sequence[Step], commands: Any, folder: Path, lines: Lines) -> Iterator[Step]:
    """Run the steps; after each one the record on disk says how far the sweep is."""
    done: list[Step] = []
    for i, step in enumerate(steps):
        lines.say(f"\n{step.name}: {step.command} ({i + 1} of {len(steps)})")
        done.append(_one(step, commands, lines))
        if done[-1].why:
            lines.say(f"{done[-1].state}: {done[-1].why}")
        _write_record([*done, *steps[i + 1 :]], folder)
        yield done[-1]


def _one(step: Step, commands: Any, lines: Lines) -> Step:
    if (step.folder / "result.json").exists():
        return replace(step, state="done before")
    scan = step.folder.with_name("scan")
    if step.command in ON_A_SCAN and not (scan / "result.json").exists():
        return replace(step, state="not run", why="its scan failed")
    command = commands.commands[step.command]
    arguments = [*step.arguments, "--output", str(step.folder), "--resume"]
    start, quiet = time.monotonic(), io.StringIO()
    try:
        with (
            typed((step.command, *arguments)),
            contextlib.redirect_stdout(quiet) if lines.quiet else contextlib.nullcontext(),
        ):
            command.invoke(command.make_context(step.command, arguments))
    except Exception as error:  # a model that does not fit, a bug: the others are run all the same
        known = isinstance(error, MnemoscopeError)
        why = " ".join(f"{'' if known else type(error).__name__ + ': '}{error}".split())
        return replace(step, state="failed", why=why, seconds=time.monotonic() - start)
    finally:
        gc.collect()  # the next model needs the room
    return replace(step, state="done", seconds=time.monotonic() - start)


def _refuse_finished(steps: Sequence[Step], *, resume: bool) -> None:
    there = [s.folder for s in steps if (s.folder / "result.json").exists()]
    if there and not resume:
        raise ResultError(f"{there[0]} holds a result already; name another --output, or --resume")


def _say_next(done: Sequence[Step], folder: Path) -> None:
    runs = [str(s.folder) for s in done if s.state in ("done", "done before")]
    if runs:
        say(f"all in one page: mnemoscope report {' '.join(runs)} --output {folder}/report.html")


# -- the file ---------------------------------------------------------------------------------


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        plan = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise PromptError(f"{file} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PromptError(f"{file} is no YAML: {str(error).splitlines()[0]}") from None
    plan = _mapping(plan, str(file))
    for key in plan:
        if key not in KEYS:
            raise UnknownNameError(f"part of {file}:", str(key), KEYS)
    return plan


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PromptError(f"{what}: expected names and values, got {value!r:.60}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise PromptError(f"{what}: expected a list with one entry or more, got {value!r:.60}")
    return value


def _run_of(entry: Any, file: Path) -> tuple[str, Mapping[str, Any]]:
    """`scan`, or `scan: {options}`."""
    if isinstance(entry, str):
        command, options = str(entry), dict[str, Any]()
    else:
        pairs = list(_mapping(entry, f"{file}: runs").items())
        if len(pairs) != 1:
            raise PromptError(f"{file}: runs: one command an entry, got {len(pairs)}")
        command, options = pairs[0][0], pairs[0][1] or {}
    if command not in (*ON_A_MODEL, *ON_A_SCAN):
        raise UnknownNameError("run", str(command), (*ON_A_MODEL, *ON_A_SCAN))
    return command, _mapping(options, f"{file}: {command}")


def _model_of(entry: Any, file: Path) -> tuple[str, str, Mapping[str, Any]]:
    """Name of its folder, reference, options of its own."""
    from circuits.checkpoints import file_name

    if isinstance(entry, str):
        entry = {"model": entry}
    own = dict(_mapping(entry, f"{file}: models"))
    if not isinstance(own.get("model"), str):
        raise PromptError(f"{file}: models: a model is a name, or has `model:`, got {entry!r:.60}")
    reference = own.pop("model")
    return file_name(str(own.pop("name", Path(reference).name))), reference, own


def _arguments(command: Any, first: str, options: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """Options as typed, checked by the command's own rules.

    Raises:
        UnknownNameError, PromptError: an option that the command does not have, or a wrong value.
    """
    known, words = _options(command), [first]
    for key, value in options.items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise UnknownNameError(f"option of {what.split(': ')[-1]}", name, known)
        option = known[name]
        if isinstance(value, bool):
            off = option.secondary_opts[0] if option.secondary_opts else None
            words += [f"--{name}"] if value else [off] if off else []
        elif isinstance(value, list) and option.multiple:
            words += [part for one in value for part in (f"--{name}", str(one))]
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name}", text]
    try:
        command.make_context(command.name, list(words))
    except WRONG_USE as error:
        raise PromptError(f"{what}: {error.format_message()}") from None
    return tuple(words)


def _options(command: Any) -> dict[str, Any]:
    """Options of a command by name; not those that a sweep sets itself."""
    return {
        name.removeprefix("--"): option
        for option in command.params
        for name in (*option.opts, *option.secondary_opts)
        if name.startswith("--") and name not in ("--output", "--resume", "--json")
    }


def _check_order(names: Sequence[str], file: Path) -> None:
    for i, name in enumerate(names):
        if name in ON_A_SCAN and "scan" not in names[:i]:
            raise PromptError(f"{file}: {name} is of a scan; put a scan before it in runs")


def _plain(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [
        {**asdict(s), "folder": str(s.folder), "arguments": list(s.arguments),
         "seconds": round(s.seconds, 1)}
        for s in steps
    ]  # fmt: skip


def _write_record(steps: Sequence[Step], folder: Path) -> None:
    from circuits.shelf import write_whole

    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD, (json.dumps(_plain(steps), indent=1) + "\n").encode())
