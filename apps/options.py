"""Options and small services that the commands share."""

import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from interp.errors import InterruptedRunError, PromptError, ResultError

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
Corpus = Annotated[
    list[str], typer.Option(help="Text: file, folder or pattern of .txt .md .jsonl .parquet.")
]
Window = Annotated[int, typer.Option(help="Tokens of a window.")]
Bos = Annotated[str, typer.Option(help="auto, always, never: a token that begins.")]
SkipFirst = Annotated[int, typer.Option(help="Positions of a window not counted.")]
Field = Annotated[str, typer.Option(help="Of .jsonl and .parquet.")]
Output = Annotated[Path | None, typer.Option(help="Run folder. Default: runs/NAME-COMMAND.")]
Resume = Annotated[bool, typer.Option(help="Go on with an unfinished run.")]
Top = Annotated[int, typer.Option(help="Size of the top set that is judged and printed.")]
Seed = Annotated[int, typer.Option(help="Seed of needles, values, haystacks, bootstrap.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
Attention = Annotated[int, typer.Option(help="Trials whose attention is kept; 0: none.")]
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
                "interrupted; finished parts are kept, run it again with --resume"
            ) from None

    return run


def idle_cores() -> int:
    """Cores that nothing else uses: more threads than that can be many times slower."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(1, round(cores - load))


def load(model: str, device, dtype, revision, device_map, threads, *, check: bool = True):
    """Load a model as the options say, on as many threads as there are idle cores."""
    import torch

    import interp

    torch.set_num_threads(threads or idle_cores())
    return interp.load(
        model, device=device, dtype=dtype, revision=revision, device_map=device_map, check=check
    )


def numbers(text: str, kind: type, what: str) -> tuple:
    """Numbers with commas between; `what` names the option in the error."""
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise PromptError(f"--{what} takes numbers with commas between, got {text!r}") from None


def names(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def check_corpus(corpus: Sequence[str]) -> None:
    """Refuse a command about a text without one."""
    if not corpus:
        raise PromptError("no text was named; give --corpus FILE, FOLDER or PATTERN")


_TYPED: ContextVar[Sequence[str] | None] = ContextVar("typed", default=None)


@contextmanager
def typed(words: Sequence[str]) -> Iterator[None]:
    """A command run by another one: what a person would have typed for it."""
    token = _TYPED.set(words)
    try:
        yield
    finally:
        _TYPED.reset(token)


def command_line(model: str) -> str:
    """The command as typed, for the page and the result file."""
    return "mnemoscope " + shlex.join(_TYPED.get() or sys.argv[1:] or ["scan", model])


def machine(model: Any) -> str:
    """The kind of machine that a measured figure is from."""
    import platform

    import torch

    return f"{platform.machine()}, {torch.get_num_threads()} threads, {model.device.type}"


def run_folder(output: Path | None, name: str, *, resume: bool) -> Path:
    """The run folder to write, refused when a finished run is there already."""
    folder = output or Path("runs") / name
    if (folder / "result.json").exists() and not resume:
        raise ResultError(f"{folder} holds a result already; name another --output, or --resume")
    return folder


def finished_run(folder: Path, load_result: Callable[[Path], Any], loaded: Any) -> Any:
    """A complete run that is there already (asked for with --resume), or None.

    Raises:
        ResultError: it is of another model than the one loaded.
    """
    if not (folder / "result.json").exists():
        return None
    result = load_result(folder)
    if result.provenance.weight_hash != loaded.source.weight_hash:
        raise ResultError(f"{folder} holds a result of another model; name another --output")
    return result
