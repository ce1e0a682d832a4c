"""The command `weights`: what the weights of found heads say, through TransformerLens."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apps.causal import Heads, ModelOption, scanned_model
from apps.console import Lines, print_frame, say
from apps.options import (
    AsJson,
    Device,
    Dtype,
    Output,
    Resume,
    Revision,
    Seed,
    Threads,
    command_line,
    finished_run,
    interruptible,
    load,
    machine,
    run_folder,
)

if TYPE_CHECKING:
    from circuits.weight_result import WeightCircuits

PAGE = "page.html"
SHOWN = 12


def register(app: typer.Typer, _bench: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(interruptible(weights))


def weights(
    heads: Heads,
    model: ModelOption = "",
    top: Annotated[int, typer.Option(help="Best heads of a scan or ranking.")] = 10,
    senders: Annotated[
        str, typer.Option(help="Heads that may feed them, as L2H1. Default: previous-token heads.")
    ] = "",
    random: Annotated[int, typer.Option(help="Random matrices of each shape.")] = 200,
    output: Output = None,
    resume: Resume = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Do these heads copy by their weights, and do earlier heads feed them? Beside chance."""
    from circuits.scan_result import ScanResult
    from circuits.weight_circuits import read_weights
    from circuits.weight_result import WeightCircuits

    name = Path(heads).stem if Path(heads).exists() else "heads"
    folder = run_folder(output, f"{name}-weights", resume=resume)
    lines = Lines(quiet=as_json)
    loaded = load(model or scanned_model(heads), device, dtype, revision, None, threads)
    lines.say(f"model: {loaded.source.name} ({loaded.source.detail})")
    result = finished_run(folder, WeightCircuits.load, loaded)
    if result is None:
        given = ScanResult.load(heads) if Path(heads).is_dir() else heads
        result = read_weights(
            loaded, given, senders=senders or None, top=top, n_random=random, seed=seed
        )
        result.settings.update(command=command_line("weights"), machine=machine(loaded))
        result.save(folder)
    _show(result, folder, lines, as_json=as_json)


def _show(result: "WeightCircuits", folder: Path, lines: Lines, *, as_json: bool) -> None:
    from apps.html_parts import write_whole
    from apps.weights_page import answer
    from apps.weights_page import page as html

    page = write_whole(folder / PAGE, html(result))
    if as_json:
        say(json.dumps({
            "folder": str(folder), "answer": answer(result), "heads": result.heads,
            "pairs": result.pairs, "notes": list(result.notes), "settings": result.settings,
            "provenance": vars(result.provenance),
        }))  # fmt: skip
        return
    lines.say(answer(result))
    for kind in ("heads", "pairs"):
        frame = result.to_frame(kind).head(SHOWN)
        if len(frame):
            print_frame(f"{kind}, highest above random first", frame)
    for note in result.notes:
        lines.say(f"note: {note}")
    lines.say(f"run folder: {folder.resolve()}\npage: {page.resolve()}")
