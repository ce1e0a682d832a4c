"""Where the work of a command is done: in this process, or by the workers of a Ray cluster.

`scan`, `validate`, `bind` and `graph` take their results from here, so that the engine is an option
of each and a part of none.
"""

import functools
import inspect
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.console import Lines
from apps.options import (
    Device,
    DeviceMap,
    Dtype,
    Revision,
    Threads,
    finished_run,
    load,
    machine,
)
from interp.errors import PromptError, UnknownNameError

if TYPE_CHECKING:
    from circuits.crew.ray_cluster import Cluster

ENGINES = ("local", "ray")

Engine = Annotated[str, typer.Option(help="local: this process; ray: workers of a cluster.")]
Workers = Annotated[int, typer.Option(help="ray: workers, a model each.")]
WorkerCpus = Annotated[float, typer.Option("--cpus-per-worker", help="ray: CPUs, threads of each.")]
WorkerGpus = Annotated[
    float, typer.Option("--gpus-per-worker", help="ray: GPUs of each; .5 puts two on one.")
]
WorkerMemory = Annotated[float, typer.Option(help="ray: GB of memory set aside for each.")]
Address = Annotated[
    str, typer.Option(help="ray: auto or HOST:PORT; started here for the run if empty.")
]


@dataclass(frozen=True)
class Place:
    """Where a command runs, and how it opens its model.

    Attributes:
        cluster: None for this process.
    """

    device: str | None
    dtype: str
    revision: str | None
    device_map: str | None
    threads: int | None
    cluster: "Cluster | None"

    def load(self, model: str, lines: Lines) -> Any:
        """The model, in this process; which one it is is said."""
        loaded = load(model, self.device, self.dtype, self.revision, self.device_map, self.threads)
        lines.say(f"model: {loaded.source.name} ({loaded.source.detail})")
        return loaded


def placed(command: Callable) -> Callable:
    """Give a command the options of `place_of`; it takes them as one argument, `place`."""
    mine, options = inspect.signature(command), inspect.signature(place_of).parameters

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        chosen = {name: kwargs.pop(name) for name in options}
        command(*args, place=place_of(**chosen), **kwargs)

    kept = [p for name, p in mine.parameters.items() if name != "place"]
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in options.values()]
    run.__signature__ = mine.replace(parameters=[*kept, *named])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *named)}
    return run


def place_of(
    engine: Engine = "local",
    workers: Workers = 2,
    cpus_per_worker: WorkerCpus = 1,
    gpus_per_worker: WorkerGpus = 0,
    worker_memory: WorkerMemory = 0,
    address: Address = "",
    device: Device = None,
    dtype: Dtype = "auto",
    revision: Revision = None,
    device_map: DeviceMap = None,
    threads: Threads = None,
) -> Place:
    """What the options of a command ask for.

    Raises:
        UnknownNameError, PromptError, ClusterError: options that make no sense together.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    shares = (workers, cpus_per_worker, gpus_per_worker, worker_memory, address)
    cluster = None
    if engine == "ray":
        from circuits.crew.ray_cluster import Cluster

        cluster = Cluster(*shares)
    elif shares != (2, 1, 0, 0, ""):
        raise PromptError("workers, what each gets and --address need a cluster: add --engine ray")
    return Place(device, dtype, revision, device_map, threads, cluster)


def measured(
    name: str,
    model: str,
    *given: Any,
    settings: Any,
    folder: Path,
    lines: Lines,
    place: Place,
    unit: str = "parts",
) -> Any:
    """The result of an experiment: the finished one of the folder, or run now.

    Args:
        name: as in `circuits.crew.work.EXPERIMENTS`.
        given: what it is about beside the model.

    Raises:
        ResultError: the folder holds a result of another model.
        MnemoscopeError: as the experiment does.
    """
    from circuits.crew.work import experiment

    chosen = experiment(name)
    if place.cluster is None:
        loaded = place.load(model, lines)
        done = finished_run(folder, chosen.load, loaded)
        if done is None:
            with lines.progress(unit) as report:
                result = chosen.function()(
                    loaded, *given, settings, parts=folder / "parts", progress=report
                )
            result.settings["machine"] = machine(loaded)
            return result
    elif not (folder / "result.json").exists():
        return _shared(name, model, given, settings, folder, lines, place, unit)
    else:
        done = chosen.load(folder)
    lines.say(f"{folder} is complete; showing it")
    return done


def _shared(
    name: str, model: str, given: tuple, settings: Any, folder: Path, lines: Lines, place: Place,
    unit: str,
) -> Any:  # fmt: skip
    from circuits.crew.ray_engine import run_on_ray

    lines.say(f"engine: {place.cluster}")
    with lines.progress(unit) as report:
        result = run_on_ray(
            name, model, *given, settings=settings, cluster=place.cluster,
            parts=folder / "parts", progress=report, say=lines.say, threads=place.threads,
            device=place.device, dtype=place.dtype, revision=place.revision,
            device_map=place.device_map,
        )  # fmt: skip
    result.settings["machine"] = (
        f"{platform.machine()}, {place.cluster}, {result.provenance.device}"
    )
    return result
