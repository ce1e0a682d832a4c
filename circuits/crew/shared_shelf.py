"""A worker's side of the board: the shelf through which an experiment's jobs are shared."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from circuits.crew.board import Files, packed, unpack
from circuits.shelf import Job, Part, Shelf, Tick
from interp.errors import ResultError
from interp.store import write_folder

SHORTEST, LONGEST = 0.02, 0.5
"""Seconds between two questions to the board while there is nothing to do."""


class SharedBoard(Protocol):
    """What a worker asks of the board, wherever that is."""

    def open(self, worker: int, label: Any) -> str | None: ...  # noqa: D102
    def next(self, worker: int, jobs: Any) -> tuple[str | None, list[str]]: ...  # noqa: D102
    def finish(self, worker: int, name: str, files: Files) -> None: ...  # noqa: D102
    def files(self, name: str) -> Files: ...  # noqa: D102
    def goes_on(self, worker: int) -> bool: ...  # noqa: D102


class SharedShelf(Shelf):
    """Parts that are made by whichever worker is free; a folder of the worker's own holds copies.

    Args:
        width: how many workers there are.
        folder: for copies, and for what is not shared.
    """

    def __init__(
        self, board: SharedBoard, worker: int, *, width: int, folder: Path, label: dict[str, Any]
    ) -> None:
        super().__init__(folder, label)
        self.board, self.worker, self.width = board, worker, width
        problem = board.open(worker, label)
        if problem is not None:
            raise ResultError(problem)

    def parts(self, jobs: Sequence[Job], tick: Tick | None = None) -> dict[str, Part]:
        """As of any shelf; returns when all of them are made."""

        def make(job: Job) -> Files:
            self.write(job.name, job.make())
            path = self._folder / f"{job.name}.safetensors"
            return {path.name: path.read_bytes()}

        self._share(jobs, make, tick)
        found = {}
        for job in jobs:
            part = self.read(job.name)
            if part is None:
                unpack(self._folder, self.board.files(job.name))
                part = self.read(job.name)
            assert part is not None
            found[job.name] = part
        return found

    def folders(self, jobs: Sequence[Job], tick: Tick | None = None) -> dict[str, Path]:
        """As of any shelf; returns when all of them are filled."""

        def make(job: Job) -> Files:
            return packed(write_folder(self._folder / job.name, job.make))

        self._share(jobs, make, tick)
        found = {job.name: self._folder / job.name for job in jobs}
        for name, path in found.items():
            if not path.exists():
                write_folder(path, partial(unpack, files=self.board.files(name)))
        return found

    def finish(self) -> None:
        """One worker goes on; the others wait here until it is done, or dies."""
        while not self.board.goes_on(self.worker):
            time.sleep(LONGEST)

    @property
    def _folder(self) -> Path:
        assert self.folder is not None
        return self.folder

    def _share(self, jobs: Sequence[Job], make: Callable[[Job], Files], tick: Tick | None) -> None:
        """Make jobs as the board gives them out, until all are done."""
        left = {job.name: job for job in jobs}
        pause = SHORTEST
        while left:
            name, done = self.board.next(self.worker, [(n, j.group) for n, j in left.items()])
            if name is not None:
                self.board.finish(self.worker, name, make(left[name]))
            for one in done:
                job = left.pop(one)
                if tick is not None:
                    tick(job)
            pause = SHORTEST if name is not None or done else min(2 * pause, LONGEST)
            if name is None and left:
                time.sleep(pause)
