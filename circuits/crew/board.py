"""The board of a crew: which parts of a run are done, and who makes which of the others.

Every worker goes through the same experiment; where it comes to jobs that do not depend on one
another, it asks the board for one at a time. The board alone writes finished parts, into the run's
own folder, so that a part counts once whoever made it, and that a run which was cut off goes on
under any engine. A worker that dies loses nothing but the part it was making: its claim is given
to another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuits.shelf import Shelf, write_whole
from interp.errors import ResultError
from interp.store import write_folder

Files = Mapping[str, bytes]
"""Contents by path below the parts' folder."""


@dataclass(frozen=True)
class News:
    """How far a worker is: as `progress` of an experiment is told, with its number."""

    done: int
    total: int
    what: str
    worker: int


class Board:
    """Claims, finished parts and news of one run."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._label: dict[str, Any] | None = None
        self._shelf: Shelf | None = None
        self._lines: list[str] = []
        self._claims: dict[str, int] = {}
        self._groups: dict[int, str] = {}
        self._done: set[str] = set()
        self._news = News(0, 0, "", 0)
        self._last: int | None = None

    def say(self, worker: int, line: str) -> None:
        """Something that the user should read, once."""
        self._lines.append(f"worker {worker}: {line}")

    def lines(self) -> list[str]:
        """What was said since the last time."""
        said, self._lines = self._lines, []
        return said

    def open(self, worker: int, label: Mapping[str, Any]) -> str | None:
        """A worker opens the shelf of the run; the reason why it may not."""
        if self._label is None:
            try:
                self._shelf = Shelf(self.folder, dict(label))
            except ResultError as error:
                return str(error)
            self._label = dict(label)
        return _difference(self._label, label, worker)

    def next(self, worker: int, jobs: Sequence[tuple[str, str]]) -> tuple[str | None, list[str]]:
        """A job for a worker, None where it has to wait, and those of the jobs that are done.

        Args:
            jobs: names and groups of what the worker still lacks, in order.
        """
        done = [name for name, _ in jobs if self._is_done(name)]
        ready = [(n, g) for n, g in jobs if n not in self._done and n not in self._claims]
        if not ready:
            return None, done
        mine = self._groups.get(worker)
        taken = {g for w, g in self._groups.items() if w != worker}
        own = [n for n, g in ready if g == mine]
        fresh = [n for n, g in ready if not g or g not in taken]
        # of another's group the last one, so that the other goes on undisturbed
        name = own[0] if own else fresh[0] if fresh else ready[-1][0]
        self._claims[name] = worker
        self._groups[worker] = dict(jobs)[name]
        return name, done

    def finish(self, worker: int, name: str, files: Files) -> None:
        """Keep what a job has made, whole or not at all; the second of two counts for nothing."""
        if self._is_done(name):
            return
        if self._claims.get(name, worker) != worker:
            return  # given to another while this worker was taken for dead
        if list(files) == [_file(name)]:
            write_whole(self.folder / _file(name), files[_file(name)])
        else:
            write_folder(self.folder / name, lambda target: unpack(target, files))
        self._done.add(name)
        self._claims.pop(name, None)

    def files(self, name: str) -> Files:
        """What a finished job has made."""
        path = self.folder / name
        return (
            packed(path)
            if path.is_dir()
            else {_file(name): (self.folder / _file(name)).read_bytes()}
        )

    def release(self, worker: int) -> None:
        """A worker is gone: what it was making is for others."""
        self._claims = {n: w for n, w in self._claims.items() if w != worker}
        self._groups.pop(worker, None)
        if self._last == worker:
            self._last = None

    def goes_on(self, worker: int) -> bool:
        """Whether this worker is the one that goes on when nothing is left to be made."""
        if self._last is None:
            self._last = worker
        return self._last == worker

    def tell(self, news: News) -> None:
        """A worker's progress: it counts what all have made."""
        self._news = replace(news, done=max(self._news.done, news.done))

    def news(self) -> News:
        """How far the run is."""
        return self._news

    # -- helpers ----------------------------------------------------------------------------

    def _is_done(self, name: str) -> bool:
        if name not in self._done:
            # from an earlier run; what was cut in the middle is made again
            whole = self._shelf is not None and self._shelf.read(name) is not None
            if whole or (self.folder / name).is_dir():
                self._done.add(name)
        return name in self._done


def packed(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack(folder: Path, files: Files) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _file(name: str) -> str:
    return f"{name}.safetensors"


def _difference(first: Mapping[str, Any], other: Mapping[str, Any], worker: int) -> str | None:
    """In one line, how a worker differs from the first one."""
    differs = [
        f"{key} {other.get(key)!s:.60} instead of {first.get(key)!s:.60}"
        for key in first
        if first.get(key) != other.get(key)
    ]
    if not differs:
        return None
    return (
        f"worker {worker} does not measure the same as the others: {'; '.join(differs)}. "
        "name the same model and the same files on all nodes"
    )
