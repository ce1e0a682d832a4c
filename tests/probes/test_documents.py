"""Streamed texts and windows: nothing lost, nothing held, every bad file named with its line."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from interp.errors import PromptError
from probes.corpus import Document
from probes.documents import stream_documents, windows


@pytest.fixture(scope="module")
def letters():
    """A tokenizer with a token a character."""
    vocab = {chr(c): c for c in range(128)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")


def test_every_kind_of_source_gives_the_same_texts(tmp_path):
    import datasets

    texts = ["One.\n\nTwo.", "Drei äöü €", "four"]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text, "utf-8")
    lines = "\n".join(json.dumps({"text": t}) for t in texts)
    (tmp_path / "all.jsonl").write_text(f"{lines}\n\n", "utf-8")
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "all.parquet")
    sources = [
        tmp_path / "*.txt", [str(tmp_path / f"{i}.txt") for i in range(3)],
        tmp_path / "all.jsonl", str(tmp_path / "all.parquet"), texts, (t for t in texts),
        [Document(t, t) for t in texts], datasets.Dataset.from_dict({"text": texts}),
        datasets.Dataset.from_dict({"text": texts}).to_iterable_dataset(),
    ]  # fmt: skip
    for source in sources:
        assert [d.text for d in stream_documents(source)] == texts
    assert len(list(stream_documents(tmp_path))) == 9
    names = [d.name for d in stream_documents(tmp_path / "all.jsonl")]
    assert names[2] == f"{tmp_path / 'all.jsonl'}:3"


def test_long_texts_are_cut_at_paragraphs_and_lose_nothing(tmp_path):
    paragraphs = ["word " * (5 + i % 7) + "end." for i in range(200)]
    whole = "\n\n".join(paragraphs) + "\n\n" + "x" * 300
    path = tmp_path / "a.md"
    path.write_bytes(("\ufeff" + whole.replace("\n", "\r\n")).encode())
    found = list(stream_documents(path, longest=100))
    assert "".join(d.text for d in found) == whole
    assert max(len(d.text) for d in found) <= 100
    assert all(d.text.endswith("\n\n") for d in found[:50])
    assert [d.name for d in found[:2]] == [str(path), f"{path}#2"]


def test_a_large_file_is_read_as_it_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "big.txt"
    path.write_bytes(b"line of text\n" * 200_000)
    read = []
    monkeypatch.setattr(Path, "open", counting_open(read))
    stream = stream_documents(path, longest=10_000)
    next(stream)
    assert sum(read) < 50_000


def counting_open(read):
    original = Path.open

    def opened(self, *args, **kwargs):
        file = original(self, *args, **kwargs)

        class Counting:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def read(self, n):
                read.append(n)
                return file.read(n)

        return Counting()

    return opened


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "does not exist"),
        ("empty.txt", b" \n", "is empty"),
        ("bin.txt", b"a\nb\x00", "binary file .NUL in line 2"),
        ("latin.txt", b"ok\n\ncaf\xe9 au lait", "not UTF-8 .line 3"),
        ("torn.txt", b"caf\xc3", "not UTF-8"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is no JSON"),
        ("other.jsonl", b'{"text": "a"}\n{"body": "b"}', "line 2 has no field 'text' .it has body"),
        ("list.jsonl", b"[1]", "line 1 has no field"),
        ("number.jsonl", b'{"text": 3}', "is a int, not a text"),
        ("blank.jsonl", b'{"text": " "}', "no text in what"),
        ("bad.parquet", b"PAR?", "no readable parquet"),
        ("table.csv", b"a,b", "no kind that is read"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=message) as caught:
        list(stream_documents(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or "no text" in message


def test_rows_without_the_field_and_odd_items_are_refused(tmp_path):
    parquet.write_table(pyarrow.table({"body": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(PromptError, match="no column 'text'"):
        list(stream_documents(tmp_path / "t.parquet"))
    assert [d.text for d in stream_documents(tmp_path / "t.parquet", field="body")] == ["a"]
    with pytest.raises(PromptError, match="row 1 has no field"):
        list(stream_documents([{"body": "a"}]))
    with pytest.raises(PromptError, match="item 1 is a int"):
        list(stream_documents([3]))
    with pytest.raises(PromptError, match="no text"):
        list(stream_documents([]))
    with pytest.raises(PromptError, match="does not exist"):
        stream_documents(["gone.txt"])


def test_windows_hold_every_token_once_and_never_two_documents(letters, monkeypatch):
    monkeypatch.setattr("probes.documents.BATCH_CHARACTERS", 20)
    texts = ["abcdefg", "hij", "klmnopqrstuvwxyz", "x"]
    found = list(windows(stream_documents(texts), letters, length=4, first=5, bos=1))
    assert all(w.tokens[0] == 1 and len(w.tokens) <= 4 for w in found)
    for i, text in enumerate(texts):
        mine = [w for w in found if w.document == 5 + i]
        assert "".join(chr(t) for w in mine for t in w.tokens[1:]) == text
        assert [w.start for w in mine] == list(range(0, len(text), 3))
    bare = list(windows([Document("a", "abcd")], letters, length=4))
    assert [w.tokens for w in bare] == [tuple(map(ord, "abcd"))]
    with pytest.raises(PromptError, match="window of 1"):
        windows([], letters, length=1, bos=0)


def test_a_long_line_in_a_list_is_a_text():
    """Longer than any file name may be."""
    text = "word " * 400
    assert [d.text for d in stream_documents([text])] == [text]
