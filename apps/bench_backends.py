"""`mnemoscope bench backends`: a scan through each backend, and plain readings of each library.

Times are taken in turn in one process, over one set of weights; the best of each counts, as a ratio
to the bare forward of the same tokens. Memory is taken in a process for each way, of one question
with its context. Numbers are held against those of the `hf` backend. What would take too large a
part of the free memory is not run, and the record says so.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.console import Lines
from apps.options import (
    AsJson,
    Device,
    Dtype,
    Lengths,
    Model,
    Threads,
    command_line,
    interruptible,
    load,
    machine,
    numbers,
)
from interp.errors import PromptError, ResultError

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


def register(bench: typer.Typer) -> None:
    """Add the command to the command line."""
    bench.command("backends")(interruptible(bench_backends))


def bench_backends(
    model: Model = "smollm2-135m",
    lengths: Lengths = "256,512,1024,2048,4096",
    trials: Annotated[
        int, typer.Option(help="Questions of a scan; 4096 / tokens of context at most.")
    ] = 2,
    memory: Annotated[bool, typer.Option(help="Peak memory too, in processes of its own.")] = True,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time the backends, and plain readings of each library, against the bare forward."""
    wanted = numbers(lengths, int, "lengths")
    if not wanted or trials < 1:
        raise PromptError("a bench needs a length and a question, as --lengths 256 --trials 1")
    if output is not None and not output.parent.is_dir():
        raise ResultError(f"{output.parent} is no folder; name another --output")
    from apps.bench_backends_view import show

    loaded = load(model, device, dtype, None, None, threads)
    again = {"device": device, "dtype": dtype} if memory else None
    record = run(loaded, wanted, trials=trials, again=again, lines=Lines(quiet=as_json))
    show({"command": command_line("bench backends"), **record}, output, as_json=as_json)


def run(
    model: "HFModel",
    lengths: Sequence[int],
    *,
    trials: int,
    again: dict[str, Any] | None,
    lines: Lines,
) -> dict[str, Any]:
    """Measure at every length; plain values.

    Args:
        again: what the model is loaded with once more, by its reference, where memory is measured;
            None where it is not.

    Raises:
        PromptError: a length that the model, or a needle, has no room in; before anything is run.
    """
    from apps.bench_backends_turns import Tools, compared, scene
    from circuits.plan import ScanSettings, resolved_lengths
    from interp.store import provenance

    start = time.perf_counter()
    lengths = resolved_lengths(model, ScanSettings(lengths=tuple(lengths)))
    scenes = [scene(model, n, trials) for n in lengths]
    tools = Tools.opened(model, scenes[0].question)
    refused = [tools.refusals(each) for each in scenes]
    rows = []
    for n, each, words in zip(lengths, scenes, refused, strict=True):
        lines.say(f"  {n} tokens of context, questions: {len(each.trials)}")
        rows.append({"length": n} | compared(tools, each, words))
    if again is not None:
        lines.say("  memory, a process for each way")
        for row, peaks in zip(rows, memory(model, lengths, refused, again), strict=True):
            row["memory beyond the weights, MB"] = peaks
    return {
        "model": model.source.name,
        "machine": machine(model),
        "lengths": rows,
        "provenance": vars(provenance(model, seconds=time.perf_counter() - start)),
    }


def memory(
    model: "HFModel",
    lengths: Sequence[int],
    refused: Sequence[dict[str, str]],
    again: dict[str, Any],
) -> list[dict[str, float | str]]:
    """Peak memory of one question by every way, for each length: MB, or why there is no figure.

    On a CPU two ways run side by side, with half of the threads each: most of it is starting up.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from apps.bench_backends_ways import WAYS
    from apps.peak_memory import in_own_process

    abreast = 2 if model.device.type == "cpu" and torch.get_num_threads() > 1 else 1
    how = again | {"threads": torch.get_num_threads() // abreast}
    out: list[dict[str, float | str]] = [dict(words) for words in refused]

    def measured(way: str) -> None:
        fitting = [i for i, words in enumerate(refused) if way not in words]
        if fitting:
            wanted = [lengths[i] for i in fitting]
            found = in_own_process(peaks, model.source.reference, way, wanted, how)
            for i, peak in zip(fitting, found or [None] * len(fitting), strict=True):
                out[i][way] = "not measured" if peak is None else peak

    with ThreadPoolExecutor(abreast) as pool:
        list(pool.map(measured, WAYS))
    return out


def peaks(
    reference: str, way: str, lengths: Sequence[int], how: dict[str, Any]
) -> list[float | None]:
    """MB beyond the weights for one question of each length; for a process of its own."""
    from apps.bench_backends_turns import scene
    from apps.bench_backends_ways import WAYS
    from apps.peak_memory import peak_mb

    model = load(reference, how["device"], how["dtype"], None, None, how["threads"], check=False)
    questions = [scene(model, n, trials=1).question for n in lengths]
    read = WAYS[way].open(model)
    # weights come into memory when they are first used, libraries too
    read(questions[0].short)
    return [peak_mb(partial(read, question), model.device) for question in questions]
