"""Where the work of a command is done: in this process, or by the workers of a Ray cluster.

`scan`, `validate`, `bind` and `graph` take their results from here, so that the engine is an option
of each and a part of none.
"""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apps.console import Lines
from apps.options import load, machine
from interp.errors import PromptError, ResultError, UnknownNameError

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
class Loading:
    """How a model is opened."""

    device: str | None = None
    dtype: str = "auto"
    revision: str | None = None
    device_map: str | None = None
    threads: int | None = None


def cluster_of(
    engine: str, workers: int, cpus: float, gpus: float, memory: float, address: str
) -> "Cluster | None":
    """The cluster that options ask for; None for this process.

    Raises:
        UnknownNameError, PromptError, ClusterError: options that make no sense together.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "ray":
        from circuits.crew.ray_cluster import Cluster

        return Cluster(workers, cpus, gpus, memory, address)
    if (workers, cpus, gpus, memory, address) != (2, 1, 0, 0, ""):
        raise PromptError(
            "workers, their share and --address belong to a cluster: add --engine ray"
        )
    return None


def measured(
    name: str,
    model: str,
    *given: Any,
    settings: Any,
    folder: Path,
    lines: Lines,
    loading: Loading,
    cluster: "Cluster | None",
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
    done = chosen.load(folder) if (folder / "result.json").exists() else None
    if cluster is not None:
        if done is None:
            done = _shared(name, model, given, settings, folder, lines, loading, cluster, unit)
        else:
            lines.say(f"{folder} is complete; showing it")
        return done
    loaded = load(
        model, loading.device, loading.dtype, loading.revision, loading.device_map, loading.threads
    )
    lines.say(f"model: {loaded.source.name} ({loaded.source.detail})")
    if done is not None:
        if done.provenance.weight_hash != loaded.source.weight_hash:
            raise ResultError(f"{folder} holds a result of another model; name another --output")
        lines.say(f"{folder} is complete; showing it")
        return done
    with lines.progress(unit) as report:
        result = chosen.function()(
            loaded, *given, settings, parts=folder / "parts", progress=report
        )
    result.settings["machine"] = machine(loaded)
    return result


def _shared(
    name: str, model: str, given: tuple, settings: Any, folder: Path, lines: Lines,
    loading: Loading, cluster: "Cluster", unit: str,
) -> Any:  # fmt: skip
    from circuits.crew.ray_engine import run_on_ray

    lines.say(f"engine: {cluster}")
    with lines.progress(unit) as report:
        result = run_on_ray(
            name, model, *given, settings=settings, cluster=cluster, parts=folder / "parts",
            progress=report, say=lines.say, threads=loading.threads, device=loading.device,
            dtype=loading.dtype, revision=loading.revision, device_map=loading.device_map,
        )  # fmt: skip
    result.settings["machine"] = f"{platform.machine()}, {cluster}, {result.provenance.device}"
    return result
