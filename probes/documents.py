"""Texts of any length, one document after the other, and their tokens in windows.

    for document in stream_documents([Path("corpus"), Path("more/*.jsonl")]):
    for window in windows(stream_documents(dataset), tokenizer, length=1024):

Nothing is held but the document or the batch at hand, so a corpus may be far larger than memory.
Documents stay apart: no window holds tokens of two of them.
"""

import codecs
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp.errors import PromptError
from probes.corpus import Document, expand_paths

LONGEST = 200_000
"""Characters of a document beyond which it is cut at the end of a paragraph."""
BATCH_CHARACTERS = 1_000_000
"""Characters that are tokenised at a time; a fast tokenizer uses all cores for a batch."""

Source = str | Path | Iterable[Any]


@dataclass(frozen=True)
class Window:
    """Tokens that stand one after the other in a document.

    Attributes:
        document: running number of the document.
        name: its name.
        start: place of the first token in the document; a `bos` in front of it is not counted.
        tokens: ids, `bos` included where one was asked for.
    """

    document: int
    name: str
    start: int
    tokens: tuple[int, ...]


def stream_documents(
    source: Source, *, field: str = "text", longest: int = LONGEST
) -> Iterator[Document]:
    """Documents of files, folders, patterns, a `datasets` dataset, or any iterable of texts.

    .txt and .md: a file is a document. .jsonl: an object a line. .parquet: a row. Of objects, rows
    and mappings, `field` is read. A document longer than `longest` characters is cut at paragraph
    ends and goes on as name#2, name#3; blank ones are passed over. A string on its own is a path;
    in a list it is a path if it is one line and ends in one of the four suffixes or names what
    exists, else a text.

    Raises:
        PromptError: at once for paths that do not exist; when it is reached for a file that is
            empty, binary or not UTF-8, for a line or row without the field, and at the end if
            there was no text at all.
    """
    if longest < 1:
        raise PromptError(f"a document of at most {longest} characters holds nothing; give more")
    if isinstance(source, str | Path):
        items: Iterable[Any] = expand_paths(Path(source), suffixes=tuple(READERS))
    elif isinstance(source, Sequence):
        items = [found for item in source for found in _expanded(item)]
    else:
        items = itertools.chain.from_iterable(map(_expanded, source))
    return _documents(items, field, longest)


def windows(
    documents: Iterable[Document],
    tokenizer: Any,
    *,
    length: int,
    first: int = 0,
    bos: int | None = None,
) -> Iterator[Window]:
    """Each document's tokens (no special ones) in windows of at most `length`, `bos` included.

    Documents are numbered from `first`, so that an interrupted run can go on.

    Raises:
        PromptError: a length that leaves no room for a token.
    """
    room = length - (bos is not None)
    if room < 1:
        raise PromptError(f"a window of {length} holds no token of the text; give a longer one")
    return _windows(documents, tokenizer, room, first, () if bos is None else (bos,))


def pieces_of(blocks: Iterable[str], longest: int) -> Iterator[str]:
    """A text that comes in blocks, cut into pieces of at most `longest` characters.

    Cut behind the last blank line, else the last line end, else the last space, else anywhere.
    """
    held = ""
    for block in blocks:
        held, start = held + block, 0
        while len(held) - start > longest:
            stop = start + longest
            ends = (held.rfind(mark, start, stop) + len(mark) for mark in ("\n\n", "\n", " "))
            at = next((end for end in ends if start + longest // 2 < end <= stop), stop)
            yield held[start:at]
            start = at
        held = held[start:]
    if held:
        yield held


def _expanded(item: Any) -> list[Any]:
    """A path as the files that it stands for; anything else as it is."""
    if isinstance(item, str) and "\n" not in item:
        path = Path(item)
        if path.suffix.lower() in READERS or _is_there(path):
            item = path
    return expand_paths(item, suffixes=tuple(READERS)) if isinstance(item, Path) else [item]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text too long to be a name
        return False


def _documents(items: Iterable[Any], field: str, longest: int) -> Iterator[Document]:
    found = False
    for number, item in enumerate(items):
        for name, blocks in _texts(item, number, field, longest):
            part = 1
            for text in pieces_of(blocks, longest):
                if text.strip():
                    yield Document(name if part == 1 else f"{name}#{part}", text)
                    found, part = True, part + 1
    if not found:
        raise PromptError("there is no text in what was given; name files or rows that hold some")


def _texts(item: Any, number: int, field: str, longest: int) -> Iterator[tuple[str, Iterable[str]]]:
    """Names and texts in blocks, of a file or of one item of an iterable."""
    if isinstance(item, Path):
        if item.suffix.lower() not in READERS:
            raise PromptError(f"{item} is of no kind that is read here: {', '.join(READERS)}")
        yield from READERS[item.suffix.lower()](item, field, longest)
    elif isinstance(item, Document):
        yield item.name, [item.text]
    elif isinstance(item, str):
        yield f"text {number + 1}", [item]
    elif isinstance(item, Mapping):
        yield f"row {number + 1}", [_field(item, field, f"row {number + 1}")]
    else:
        raise PromptError(
            f"item {number + 1} is a {type(item).__name__}; give texts, mappings with a field "
            f"{field!r}, or paths"
        )


def _field(row: Any, field: str, where: str) -> str:
    if not isinstance(row, Mapping) or field not in row:
        names = ", ".join(map(str, row)) if isinstance(row, Mapping) else "no mapping"
        raise PromptError(f"{where} has no field {field!r} (it has {names}); name its text field")
    if not isinstance(row[field], str):
        kind = type(row[field]).__name__
        raise PromptError(f"{where}: field {field!r} is a {kind}, not a text; name another field")
    return str(row[field])


def _plain(path: Path, _: str, longest: int) -> Iterator[tuple[str, Iterable[str]]]:
    blocks = _blocks(path, min(longest, 1 << 16))
    start = next((b for b in blocks if b.strip()), None)
    if start is None:
        raise PromptError(f"{path} is empty; leave it out, or name a file with text")
    yield str(path), itertools.chain([start], blocks)


def _lines(path: Path, field: str, _: int) -> Iterator[tuple[str, Iterable[str]]]:
    number, held = 0, ""
    for block in itertools.chain(_blocks(path, 1 << 16), ["\n"]):
        *whole, held = (held + block).split("\n")
        for line in whole:
            number += 1
            if line.strip():
                where = f"{path} line {number}"
                yield f"{path}:{number}", [_field(_object(line, where), field, where)]


def _object(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise PromptError(f"{where} is no JSON ({reason}); a .jsonl has an object a line") from None


def _rows(path: Path, field: str, _: int) -> Iterator[tuple[str, Iterable[str]]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if field not in names:
                known = ", ".join(names)
                raise PromptError(f"{path} has no column {field!r} (it has {known}); name one")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if value is not None:
                        yield f"{path}:{number}", [_field({field: value}, field, str(path))]
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PromptError(f"{path} is no readable parquet file ({reason})") from None


def _blocks(path: Path, size: int) -> Iterator[str]:
    """A UTF-8 file in blocks, line ends as in Unix; checked as it is read."""
    decoder, line = codecs.getincrementaldecoder("utf-8-sig")(), 1
    try:
        with path.open("rb") as file:
            waiting = ""
            while True:
                data = file.read(size)
                text = waiting + decoder.decode(data, final=not data)
                waiting = "\r" if text.endswith("\r") and data else ""
                text = text.removesuffix(waiting).replace("\r\n", "\n").replace("\r", "\n")
                if "\0" in text:
                    line += text[: text.index("\0")].count("\n")
                    raise PromptError(f"{path} is a binary file (NUL in line {line}); give text")
                line += text.count("\n")
                yield text
                if not data:
                    return
    except UnicodeDecodeError as error:
        line += bytes(error.object[: error.start]).count(b"\n")
        raise PromptError(
            f"{path} is not UTF-8 (line {line}); save it as UTF-8 and try again"
        ) from None
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}; check its permissions") from None


Reader = Callable[[Path, str, int], Iterator[tuple[str, Iterable[str]]]]
READERS: dict[str, Reader] = {".txt": _plain, ".md": _plain, ".jsonl": _lines, ".parquet": _rows}
"""Suffixes that are read, and how."""


def _windows(
    documents: Iterable[Document], tokenizer: Any, room: int, first: int, front: tuple[int, ...]
) -> Iterator[Window]:
    number = first
    for batch in _batches(documents):
        texts = [document.text for document in batch]
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, ids in zip(batch, encoded, strict=True):
            for start in range(0, len(ids), room):
                yield Window(number, document.name, start, (*front, *ids[start : start + room]))
            number += 1


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
