"""The cache of converted models: a folder appears whole or not at all.

Work happens in a scratch folder beside the target and ends with one rename, under a lock file, so
processes that start together do the work once and one that is killed leaves nothing that looks
like a model. The record (`mnemoscope.json`) is written last and lists the files with their sizes.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any

from interp.errors import ModelError

log = logging.getLogger(__name__)

RECORD_NAME = "mnemoscope.json"
RECORD_FORMAT = 1  # raised when the conversion changes, so that old folders are made again


def cache_dir() -> Path:
    """Where converted models live: MNEMOSCOPE_CACHE, else the XDG cache, else ~/.cache."""
    if own := environ.get("MNEMOSCOPE_CACHE"):
        return Path(own).expanduser()
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "mnemoscope"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a converted folder, or None if the folder is absent, old or damaged."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        whole = all((folder / n).stat().st_size == size for n, size in record["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole and record.get("format") == RECORD_FORMAT else None


def build_once(
    target: Path,
    build: Callable[[Path], dict[str, Any]],
    current: Callable[[dict[str, Any]], bool],
    *,
    force: bool = False,
    report: Callable[[str], None] | None = None,
) -> Path:
    """`target`, made by `build(folder)` unless it is there and `current(record)`.

    `build` fills the folder and returns the record. Raises ModelError if the cache cannot be
    written, and lets whatever `build` raises through, with nothing left behind.
    """

    def good() -> bool:
        record = None if force else read_record(target)
        return record is not None and current(record)

    if good():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target, report or log.info):
            if not good():  # another process may have made it meanwhile
                _build(target, build)
    except OSError as error:
        raise ModelError(
            f"cannot write the model cache {target.parent}: {error.strerror or error}; "
            "set MNEMOSCOPE_CACHE to a folder with room"
        ) from error
    return target


@contextmanager
def _locked(target: Path, report: Callable[[str], None]) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is making {target.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(target: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    scratch = target.parent / f".{target.name}.partial"
    shutil.rmtree(scratch, ignore_errors=True)  # whoever left it is dead: we hold the lock
    try:
        new = scratch / "new"
        new.mkdir(parents=True)
        record = build(new) | {"format": RECORD_FORMAT}
        record["files"] = {p.name: p.stat().st_size for p in sorted(new.iterdir()) if p.is_file()}
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (new / RECORD_NAME).write_text(text, encoding="utf-8")
        if target.exists():
            target.rename(scratch / "old")  # a folder cannot be renamed onto a full one
        new.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def need_room(folder: Path, n_bytes: int) -> None:
    """Raise ModelError unless the disk that holds `folder` has `n_bytes` free, and 5 % more."""
    while not folder.exists():
        folder = folder.parent
    free, need = shutil.disk_usage(folder).free, int(1.05 * n_bytes)
    if free < need:
        raise ModelError(
            f"{need / 1e9:.1f} GB needed in {folder}, {free / 1e9:.1f} GB free; "
            "make room or set MNEMOSCOPE_CACHE to a folder on another disk"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
