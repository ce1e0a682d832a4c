"""Finished parts of a long run on disk, so that it can be interrupted and gone on with.

A part is a table of plain rows and some arrays, or a folder, written whole or not at all. The shelf
carries a label (settings, weights); parts of another label are refused. Without a folder nothing is
kept. An experiment hands in its parts as jobs that do not depend on one another, so that several
workers can share them (`circuits.crew.shared_shelf`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import ResultError
from interp.store import cannot_write, write_folder


@dataclass(frozen=True, eq=False)
class Part:
    """Arrays by name, and rows of plain values."""

    values: dict[str, np.ndarray]
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Job:
    """A part to be made where it is not there yet.

    Attributes:
        make: gives the part; of a folder, fills the folder that it is given.
        group: jobs of a group share something costly, such as a context that was read.
    """

    name: str
    make: Callable[..., Any]
    group: str = ""


Tick = Callable[[Job], None]
"""Called when a job is done, by whomever."""


class Shelf:
    """A folder of parts of one run.

    Attributes:
        width: workers that share the parts.
    """

    width = 1

    def __init__(self, folder: str | Path | None, label: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        path = self.folder / "parts.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_whole(path, json.dumps(label, indent=1).encode())
                return
            found = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise ResultError(f"{path} is damaged; remove {self.folder} and start again") from None
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        differs = [k for k in label if found.get(k) != json.loads(json.dumps(label[k]))]
        if differs:
            raise ResultError(
                f"{self.folder} holds parts of another run ({', '.join(differs)} differ); "
                "use the same options, another --output, or leave out --resume"
            )

    def read(self, name: str) -> Part | None:
        """A finished part, or None."""
        from safetensors import SafetensorError, safe_open

        if self.folder is None or not (path := self.folder / f"{name}.safetensors").exists():
            return None
        try:
            with safe_open(str(path), framework="numpy") as file:
                rows = json.loads(file.metadata()["rows"])
                return Part({k: file.get_tensor(k) for k in file.keys()}, rows)  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError):
            return None  # half-written by a power cut: the part is simply run again

    def parts(self, jobs: Sequence[Job], tick: Tick | None = None) -> dict[str, Part]:
        """The parts of some jobs by name, in that order; made and kept where there are none."""
        found = {}
        for job in jobs:
            part = self.read(job.name)
            if part is None:
                part = job.make()
                self.write(job.name, part)
            found[job.name] = part
            if tick is not None:
                tick(job)
        return found

    def folders(self, jobs: Sequence[Job], tick: Tick | None = None) -> dict[str, Path]:
        """Folders that some jobs fill, likewise."""
        assert self.folder is not None
        for job in jobs:
            if not (self.folder / job.name).exists():
                write_folder(self.folder / job.name, job.make)
            if tick is not None:
                tick(job)
        return {job.name: self.folder / job.name for job in jobs}

    def finish(self) -> None:
        """Nothing is left to be made; of several workers, one alone goes on from here."""

    def kept(self, name: str, make: Callable[[], Part]) -> Part:
        """The finished part of this name; made and kept where there is none."""
        return self.parts([Job(name, make)])[name]

    def kept_rows(
        self, name: str, make: Callable[[], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """Rows of a part without arrays, made and kept where there are none."""
        return self.kept(name, lambda: Part({}, make())).rows

    def write(self, name: str, part: Part) -> None:
        """Keep a part, whole or not at all."""
        from safetensors.numpy import save

        if self.folder is None:
            return
        tensors = {k: np.ascontiguousarray(v) for k, v in part.values.items()}
        data = save(tensors, metadata={"rows": json.dumps(part.rows)})
        write_whole(self.folder / f"{name}.safetensors", data)


def open_shelf(parts: "Parts", label: dict[str, Any]) -> Shelf:
    """The shelf of a run: a folder's, or what a crew's worker opens in its place."""
    return parts(label) if callable(parts) else Shelf(parts, label)


Parts = str | Path | Callable[[dict[str, Any]], Shelf] | None
"""Where an experiment keeps its parts: a folder, nowhere, or what opens a shelf for a label."""


def model_label(model: Any) -> dict[str, Any]:
    """What parts must agree in beside their settings: weights, tokenizer, precision."""
    source = model.source
    return {
        "weights": getattr(source, "weight_hash", None),
        "tokenizer": getattr(source, "tokenizer_hash", None),
        "dtype": str(model.dtype),
    }


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        ResultError: the place cannot be written to.
    """
    fresh = path.with_name(f".{path.name}.tmp")
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    finally:
        fresh.unlink(missing_ok=True)
