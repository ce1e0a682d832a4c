"""Commands about binding: `bind` and `bench bind`. Registered by `apps.cli`."""

from pathlib import Path
from typing import Annotated

import typer

from apps.console import Lines, show_figures
from apps.engines import Place, measured, placed
from apps.options import (
    AsJson,
    Device,
    Dtype,
    Model,
    Resume,
    Seed,
    Threads,
    command_line,
    interruptible,
    load,
    names,
    numbers,
    run_folder,
)  # fmt: skip


def register(app: typer.Typer, bench: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(interruptible(placed(bind)))
    bench.command("bind")(interruptible(bench_bind))


def bind(
    model: Model = "qwen2.5-coder-0.5b",
    tasks: Annotated[
        str, typer.Option(help="Names or YAML/JSON files with commas; 'all' for the ten families.")
    ] = "music_performance",
    targets: Annotated[
        str, typer.Option(help="Roles asked for, or labels such as genre|musician. Default: all.")
    ] = "",
    n: Annotated[str, typer.Option(help="Numbers of groups, 4 or more, as 4,8.")] = "8",
    style: Annotated[
        str, typer.Option(help="auto, chat, chat-cue, chat-complete, plain or completion.")
    ] = "auto",
    layer: Annotated[int, typer.Option(help="Exchanged entering this layer; -1: found.")] = -1,
    sets: Annotated[int, typer.Option(help="Entity sets: the clusters of every interval.")] = 8,
    donors: Annotated[int, typer.Option(help="Donor contexts in each.")] = 3,
    recipients: Annotated[int, typer.Option(help="Recipients of each donor question.")] = 2,
    control_sets: Annotated[int, typer.Option(help="Entity sets of the control designs.")] = 6,
    sweep_sets: Annotated[int, typer.Option(help="Entity sets of the layer sweep.")] = 3,
    contexts: Annotated[int, typer.Option(help="Contexts of the preflight.")] = 4,
    controls: Annotated[
        str, typer.Option(help="Designs beside the main one. Default: seven of them.")
    ] = "",
    collisions: Annotated[bool, typer.Option(help="Keep cells in which pointers meet.")] = False,
    floor: Annotated[float, typer.Option(help="Least accuracy and mass to go on.")] = 0.5,
    filler: Annotated[str, typer.Option(help="Sentences between groups, as 0,5,20.")] = "0",
    competing: Annotated[bool, typer.Option(help="Filler names entities of the task.")] = False,
    heads: Annotated[bool, typer.Option(help="Which heads write and read the pointer.")] = True,
    classics: Annotated[
        bool,
        typer.Option(help="Also binding IDs, orderings, lookbacks, knockouts, subspaces: minutes."),
    ] = False,
    bootstrap: Annotated[int, typer.Option(help="Refits of the mixture for intervals.")] = 50,
    output: Annotated[
        Path | None, typer.Option(help="Run folder. Default: runs/MODEL-bind.")
    ] = None,
    resume: Resume = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    *,
    place: Place,
) -> None:
    """How a model retrieves bound entities: by position, by word, by pointer; or why not."""
    from apps.binding_report import finish
    from circuits.binding_plan import CONTROLS, BindSettings, check_settings
    from probes.binding_tasks import task_names

    settings = BindSettings(
        tasks=task_names() if tasks == "all" else names(tasks), targets=names(targets),
        n=numbers(n, int, "n"), style=style, layer=layer, n_sets=sets, donors=donors,
        n_recipients=recipients, n_controls=control_sets, n_preflight=contexts,
        n_sweep=sweep_sets, controls=names(controls) or CONTROLS, collisions=collisions,
        floor=floor, filler=numbers(filler, int, "filler"),
        filler_kind="competing" if competing else "plain", heads=heads, classics=classics,
        bootstrap=bootstrap, seed=seed,
    )  # fmt: skip
    check_settings(settings)
    folder = run_folder(output, f"{Path(model).name}-bind", resume=resume)
    lines = Lines(quiet=as_json)
    result = measured(
        "bind", model, settings=settings, folder=folder, lines=lines, place=place,
        unit="entity sets",
    )  # fmt: skip
    result.settings["command"] = command_line("bind")
    finish(result, folder, lines, as_json=as_json)


def bench_bind(
    model: Model = "qwen2.5-coder-0.5b",
    task: Annotated[str, typer.Option(help="A task or its file.")] = "music_performance",
    target: Annotated[str, typer.Option(help="Role asked for; the first if empty.")] = "",
    n: Annotated[int, typer.Option(help="Groups.")] = 8,
    evaluations: Annotated[int, typer.Option(help="Patched evaluations of ours.")] = 384,
    loops: Annotated[int, typer.Option(help="Of these, run by the published loop too.")] = 12,
    layer: Annotated[int, typer.Option(help="Exchanged entering this layer; -1: 5/6 up.")] = -1,
    output: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Time patched evaluations and a layer sweep against two full forwards for each pair."""
    from apps.bench_bind import run

    loaded = load(model, device, dtype, None, None, threads)
    figures = run(
        loaded, task=task, target=target, n=n, evaluations=evaluations, loops=loops, layer=layer
    )
    show_figures(figures, output, as_json=as_json)
