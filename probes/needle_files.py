"""The needle record, and its files: our JSON lines, and the layout of the published needles.

Ours: one object a line with `id`, `kind`, `language`, `sentence` (holding `{value}` once),
`question`, `values`. The published layout of arXiv 2404.15574 (`needle`, `question`,
`real_needle`, the last a part of the first) is read too. A JSON array of either does as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from interp.errors import PromptError
from probes.rouge import contains

SLOT = "{value}"


@dataclass(frozen=True)
class Needle:
    """A sentence with a slot `{value}`, its question, and interchangeable values to fill it."""

    id: str
    kind: str
    language: str
    sentence: str
    question: str
    values: tuple[str, ...]


def load_needles(path: str | Path | None = None) -> tuple[Needle, ...]:
    """Our needles, or those of a user's JSON or JSON-lines file, in either layout.

    Raises PromptError, naming file, line and field, for a row that cannot be used.
    """
    if path is None:
        name = "needles.jsonl"
        text = (resources.files("probes") / "data" / name).read_text("utf-8")
    else:
        name, text = str(path), _read(Path(path))
    needles: dict[str, Needle] = {}
    for place, row in _rows(text, name):
        needle = _needle(row, place)
        if needle.id in needles:
            raise PromptError(f"{place}: id {needle.id!r} occurs twice; give each needle its own")
        needles[needle.id] = needle
    if not needles:
        raise PromptError(f"{name} holds no needle; give one JSON object a line")
    return tuple(needles.values())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise PromptError(f"{path} is not UTF-8 text; save it as UTF-8 JSON") from None
    except OSError as error:
        raise PromptError(f"cannot read needles from {path}: {error.strerror}") from None


def _rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, row): rows of one JSON array, or one row a line."""
    if text.lstrip().startswith("["):
        for number, row in enumerate(_parse(text, name), 1):
            yield f"{name}, row {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name}, line {number}"
            yield place, _parse(line, place)


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(
            f"{place}: not JSON ({error.msg}); write one object a line, or one array"
        ) from None


def _needle(row: Any, place: str) -> Needle:
    if not isinstance(row, dict):
        raise PromptError(f"{place}: expected a JSON object, got {type(row).__name__}")
    if "real_needle" in row or "needle" in row:
        return _published(row, place)
    sentence = _text(row, "sentence", place)
    if sentence.count(SLOT) != 1:
        raise PromptError(
            f"{place}: field 'sentence' must hold {SLOT} exactly once, where the answer stands"
        )
    values = row.get("values")
    if not isinstance(values, list) or not values or not all(map(_is_text, values)):
        raise PromptError(f"{place}: field 'values' must be a list of at least one text")
    if len(set(values)) < len(values):
        raise PromptError(f"{place}: field 'values' lists a value twice; remove one")
    kind, language = (_text(row, field, place) for field in ("kind", "language"))
    name, question = (_text(row, field, place) for field in ("id", "question"))
    _check_question(question, values, place)
    return Needle(name, kind, language, sentence, question, tuple(values))


def _published(row: dict[str, Any], place: str) -> Needle:
    """One value: the answer part as it stands in the sentence (the first letter may differ)."""
    sentence, answer = (_text(row, field, place) for field in ("needle", "real_needle"))
    answer = answer.strip()
    forms = dict.fromkeys([answer, answer[0].swapcase() + answer[1:]])
    found = [form for form in forms if form in sentence]
    if len(found) != 1 or sentence.count(found[0]) != 1:
        raise PromptError(
            f"{place}: field 'real_needle' must be a part of field 'needle', and occur in it once"
        )
    question = _text(row, "question", place)
    _check_question(question, found, place)
    return Needle(
        id=str(row.get("id") or place.rsplit(", ", 1)[1].replace(" ", "-")),
        kind=str(row.get("kind") or "published"),
        language=str(row.get("language") or "en"),
        sentence=sentence.strip().replace(found[0], SLOT),
        question=question,
        values=(found[0],),
    )


def _check_question(question: str, values: list[str], place: str) -> None:
    for value in values:
        if contains(value, question):
            raise PromptError(
                f"{place}: field 'question' gives the answer {value!r} away; ask without it"
            )


def _text(row: dict[str, Any], field: str, place: str) -> str:
    if field not in row:
        raise PromptError(f"{place}: field {field!r} is missing; add it")
    if not _is_text(row[field]):
        raise PromptError(f"{place}: field {field!r} must be a text that is not empty")
    return str(row[field])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
