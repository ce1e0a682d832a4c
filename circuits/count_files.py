"""Counts on disk: one file a column, mapped into memory when read, merged piece by piece.

Raw little-endian columns (no pickle, no archive): a column of 10^9 entries can be opened at once
and read where it is needed, and merging appends to it. Lengths are those of the files.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from circuits.feature_counting import merged
from circuits.feature_counts import FIELDS, FeatureCounts
from interp.errors import ResultError
from interp.store import write_folder, write_json

COLUMNS = {"feature": "<i4", "count": "<i4", "documents": "<i4", "largest": "<f4", "total": "<f4"}
"""Of entries; `occurrences`, `token_documents` and `indptr` are of tokens."""
BY_TOKEN = ("occurrences", "token_documents", "indptr")
ENTRIES = 20_000_000
"""Entries of all parts that are merged at a time (about 2 GB of arrays)."""


def write_counts(counts: FeatureCounts, folder: str | Path) -> Path:
    """Write counts into a folder, whole or not at all."""

    def fill(target: Path) -> None:
        for name, kind in COLUMNS.items():
            getattr(counts, name).astype(kind, copy=False).tofile(target / name)
        _write_head(counts, target)

    return write_folder(Path(folder), fill)


def read_counts(folder: str | Path) -> FeatureCounts:
    """Counts that are read from the disk as they are used.

    Raises:
        ResultError: no counts there, or files that do not fit together.
    """
    import json

    folder = Path(folder)
    try:
        head = json.loads((folder / "counts.json").read_text("utf-8"))
        tokens = {name: np.fromfile(folder / name, "<i8") for name in BY_TOKEN}
        columns = {name: _mapped(folder / name, kind) for name, kind in COLUMNS.items()}
    except (OSError, ValueError) as error:
        raise ResultError(f"{folder} holds no readable counts ({error}); run it again") from None
    n = int(tokens["indptr"][-1]) if len(tokens["indptr"]) else -1
    if any(len(column) != n for column in columns.values()):
        raise ResultError(f"{folder} is damaged: its columns differ in length; run it again")
    return FeatureCounts(head["n_features"], n_documents=head["n_documents"], **tokens, **columns)


def merge_counts(
    parts: Sequence[FeatureCounts], folder: str | Path, *, entries: int = ENTRIES
) -> FeatureCounts:
    """The counts of stretches of text that share no document, written and mapped.

    Tokens are taken in ranges that hold at most `entries` entries of all parts together, so that
    memory is bounded whatever the parts hold.
    """

    def fill(target: Path) -> None:
        files = {name: (target / name).open("wb") for name in COLUMNS}
        try:
            sizes = [np.zeros(1, np.int64)]
            for first, last in _ranges(parts, entries):
                piece = merged([_tokens(p, first, last) for p in parts])
                for name, kind in COLUMNS.items():
                    files[name].write(getattr(piece, name).astype(kind, copy=False).tobytes())
                sizes.append(np.diff(piece.indptr))
        finally:
            for file in files.values():
                file.close()
        none = {name: np.empty(0, kind) for name, kind in COLUMNS.items()}
        whole = FeatureCounts(
            parts[0].n_features,
            np.sum([p.occurrences for p in parts], axis=0),
            np.sum([p.token_documents for p in parts], axis=0),
            sum(p.n_documents for p in parts),
            np.cumsum(np.concatenate(sizes)),
            **none,
        )
        _write_head(whole, target)

    return read_counts(write_folder(Path(folder), fill))


# -- helpers ----------------------------------------------------------------------------------


def _write_head(counts: FeatureCounts, target: Path) -> None:
    for name in BY_TOKEN:
        getattr(counts, name).astype("<i8", copy=False).tofile(target / name)
    head = {"n_features": counts.n_features, "n_documents": counts.n_documents}
    write_json(target / "counts.json", head)


def _mapped(path: Path, kind: str) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, kind)  # an empty file cannot be mapped
    return np.memmap(path, kind, mode="r")


def _ranges(parts: Sequence[FeatureCounts], entries: int) -> Iterator[tuple[int, int]]:
    """Ranges of tokens with at most `entries` entries, or one token that has more."""
    ends = np.sum([p.indptr[1:] for p in parts], axis=0)
    first, n_tokens = 0, parts[0].n_tokens
    while first < n_tokens:
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + entries, side="right")))
        yield first, last
        first = last


def _tokens(counts: FeatureCounts, first: int, last: int) -> FeatureCounts:
    """The rows of a range of tokens, numbered from 0."""
    lo, hi = int(counts.indptr[first]), int(counts.indptr[last])
    return FeatureCounts(
        counts.n_features,
        counts.occurrences[first:last],
        counts.token_documents[first:last],
        counts.n_documents,
        counts.indptr[first : last + 1] - lo,
        **{name: np.asarray(getattr(counts, name)[lo:hi]) for name in FIELDS},
    )
