"""Texts: reading files, and repetition against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import PromptError
from probes.corpus import Document, check_repetition, load_text, repetition


@pytest.fixture(scope="module")
def docs():
    return load_text()


def brute_repetition(text, window):
    seen, repeats = set(), 0
    windows = [text[i : i + window] for i in range(len(text) - window + 1)]
    for piece in windows:
        repeats += piece in seen
        seen.add(piece)
    return repeats / len(windows) if windows else 0.0


@settings(deadline=None)
@given(st.text(alphabet="ab€", max_size=80), st.integers(1, 12))
def test_repetition_equals_brute_force(text, window):
    assert repetition(text, window=window) == pytest.approx(brute_repetition(text, window))


def test_repetition_counts_across_documents_and_warns():
    text = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 1000)))
    twice = check_repetition([Document("a", text), Document("b", text)])
    assert twice.shares == (("a", 0.0), ("b", 1.0)) and twice.total == 0.5
    assert "b 100.0%" in twice.warning and "a " not in twice.warning.split(":")[1][:4]
    assert check_repetition([Document("a", text)]).warning is None
    assert check_repetition([]).total == 0.0
    with pytest.raises(PromptError, match="window of 0"):
        repetition(text, window=0)


def test_our_texts_are_clean(docs):
    sizes = [len(doc.text.encode()) for doc in docs]
    assert len(docs) >= 3 and 350_000 <= sum(sizes) <= 550_000
    assert check_repetition(docs).total < 0.005 and check_repetition(docs).warning is None
    for doc in docs:
        lowered = doc.text.casefold()
        for dirt in ("gutenberg", "ebook", "transcriber", "[", "]", "_", "*", "|", "  ", "\t"):
            assert dirt not in lowered, (doc.name, dirt)
        assert doc.text.isprintable() or set(filter(lambda c: not c.isprintable(), doc.text)) == {
            "\n"
        }


def test_files_folders_and_patterns(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_bytes("\ufeffOne.\r\nTwo.".encode())
    (tmp_path / "sub" / "b.md").write_text("Three.", "utf-8")
    assert load_text(tmp_path / "a.txt") == [Document("a.txt", "One.\nTwo.")]
    assert [d.name for d in load_text(str(tmp_path))] == ["a.txt", "b.md"]
    assert [d.name for d in load_text([tmp_path / "*.txt", tmp_path])] == ["a.txt", "b.md"]
    (tmp_path / "b.md").write_text("Four.", "utf-8")
    assert len({d.name for d in load_text(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bin.txt", b"\x00\x01", "binary"),
        ("empty.txt", b" \n", "empty"),
        ("latin.txt", b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        ("missing.txt", None, "does not exist"),
        ("*.text", None, "no file matches"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        load_text(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_text_and_an_empty_list_are_refused(tmp_path):
    with pytest.raises(PromptError, match="holds no"):
        load_text(tmp_path)
    with pytest.raises(PromptError, match="no haystack file"):
        load_text([])
