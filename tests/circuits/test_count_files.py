"""Counts come back from the disk as they went, and merge there as in memory."""

import numpy as np
import pytest
from graphs import random_counts

from circuits.count_files import COLUMNS, merge_counts, read_counts, write_counts
from circuits.feature_counting import merged
from interp.errors import ResultError

SIZES = {"n": 300, "n_tokens": 17, "n_features": 29}


def same(a, b):
    names = ("occurrences", "token_documents", "indptr", "feature", "count", "documents")
    assert a.n_features == b.n_features and a.n_documents == b.n_documents
    for name in names:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    for name in ("largest", "total"):
        assert np.allclose(getattr(a, name), getattr(b, name), rtol=1e-6), name


def test_what_is_written_is_read(tmp_path):
    counts = random_counts(1, **SIZES)
    same(read_counts(write_counts(counts, tmp_path / "a")), counts)


@pytest.mark.parametrize("entries", [1, 40, 10**6])
def test_merging_on_the_disk_is_merging_in_memory(tmp_path, entries):
    parts = [random_counts(i, **SIZES) for i in range(4)]
    written = [read_counts(write_counts(p, tmp_path / str(i))) for i, p in enumerate(parts)]
    same(merge_counts(written, tmp_path / "whole", entries=entries), merged(parts))


def test_counts_without_an_entry_can_be_kept(tmp_path):
    none = random_counts(0, rate=0.0, **SIZES)
    back = read_counts(write_counts(none, tmp_path / "none"))
    assert back.n_entries == 0 and back.n_positions == none.n_positions


def test_damage_is_told(tmp_path):
    with pytest.raises(ResultError, match="no readable counts"):
        read_counts(tmp_path)
    folder = write_counts(random_counts(2, **SIZES), tmp_path / "a")
    (folder / next(iter(COLUMNS))).write_bytes(b"1234")
    with pytest.raises(ResultError, match="differ in length"):
        read_counts(folder)
