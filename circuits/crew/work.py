"""What a worker of a crew does: open the model, go through the experiment, hand in the result."""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from circuits.crew.board import Files, News, packed
from circuits.crew.shared_shelf import SharedShelf
from interp.errors import ClusterError, MnemoscopeError, UnknownNameError

NO_MEMORY = ("out of memory", "allocate memory")
"""As torch says it, of a GPU and of main memory."""
SECONDS = 0.3
"""Between two pieces of news of what a worker is doing."""


@dataclass(frozen=True)
class Experiment:
    """An experiment that can be shared: its function, and the class of its result."""

    run: str
    result: str

    def function(self) -> Callable[..., Any]:
        """The function."""
        return _named(self.run)

    def load(self, folder: Path) -> Any:
        """Its result, from a folder."""
        return _named(self.result).load(folder)


EXPERIMENTS = {
    "scan": Experiment("circuits.retrieval.scan", "circuits.scan_result.ScanResult"),
    "validate": Experiment(
        "circuits.validation.validate", "circuits.validation_result.ValidationResult"
    ),
    "patch": Experiment("circuits.patching.patch", "circuits.patch_result.PatchResult"),
    "circuit": Experiment("circuits.circuit.find_circuit", "circuits.circuit_result.CircuitResult"),
    "bind": Experiment("circuits.binding_run.binding", "circuits.binding_result.BindingResult"),
    "graph": Experiment("circuits.graph_run.function_tokens", "circuits.graph_result.FeatureGraph"),
}


def experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise UnknownNameError("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


@dataclass(frozen=True)
class Assignment:
    """The same for all workers of a run.

    Attributes:
        model: a reference of `interp.load`; `loading` are its options.
        given: what the experiment is about beside the model: heads, a text.
        width: workers.
        threads: of the CPU, of each worker.
        versions: of the driver, by package; a worker with others is refused.
        folder: of the driver, from which relative paths count.
    """

    experiment: str
    model: str
    loading: Mapping[str, Any]
    given: tuple[Any, ...]
    settings: Any
    width: int
    threads: int
    versions: Mapping[str, str]
    folder: str


@dataclass(frozen=True)
class Outcome:
    """What became of a worker: the files of the result, or why there is none.

    `kind` is the class name of one of our errors, `memory`, or empty.
    """

    files: Files | None
    kind: str = ""
    why: str = ""


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    from importlib import metadata

    found = {"Python": platform.python_version()}
    for name in ("mnemoscope", "torch", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def work(board: Any, worker: int, job: Assignment) -> Outcome:
    """Take part in a run until its result is there; errors come back in words."""
    try:
        return Outcome(_taken_part(board, worker, job))
    except MnemoscopeError as error:
        cause = getattr(error, "cause", None) or error  # from the board, it comes wrapped
        return Outcome(None, type(cause).__name__, str(cause))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(w in str(error) for w in NO_MEMORY):
            raise
        return Outcome(None, "memory", f"{type(error).__name__} {error}".splitlines()[0][:200])


def _taken_part(board: Any, worker: int, job: Assignment) -> Files:
    if versions() != job.versions:
        raise ClusterError(_other_versions(worker, job.versions))
    import torch

    import interp

    if Path(job.folder).is_dir():
        os.chdir(job.folder)
    torch.set_num_threads(job.threads)
    model = interp.load(job.model, **job.loading)
    board.say(worker, f"{_here()}: {model.source.name} ({model.source.detail})")
    chosen = experiment(job.experiment)
    with tempfile.TemporaryDirectory(prefix="mnemoscope-") as scratch:

        def opened(label: dict[str, Any]) -> SharedShelf:
            folder = Path(scratch) / "parts"
            return SharedShelf(board, worker, width=job.width, folder=folder, label=label)

        result = chosen.function()(
            model, *job.given, job.settings, parts=opened, progress=_teller(board, worker)
        )
        return packed(result.save(Path(scratch) / "result"))


def _teller(board: Any, worker: int) -> Callable[[int, int, str], None]:
    last = 0.0

    def tell(done: int, total: int, what: str) -> None:
        nonlocal last
        now = time.monotonic()
        if not what or now - last > SECONDS:
            last = now
            board.tell(News(done, total, what, worker))

    return tell


def _here() -> str:
    return f"{platform.node()}, process {os.getpid()}"


def _other_versions(worker: int, expected: Mapping[str, str]) -> str:
    mine = versions()
    differs = [f"{k} {mine.get(k)} (here {v})" for k, v in expected.items() if mine.get(k) != v]
    return (
        f"worker {worker} on {platform.node()} has {', '.join(differs)}: results would not be one; "
        "install the same versions on all nodes"
    )


def _named(path: str) -> Any:
    module, name = path.rsplit(".", 1)
    return getattr(import_module(module), name)
