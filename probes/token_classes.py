"""Classes of tokens: by what they are, whatever the tokenizer, and by lists of one's own.

The "function tokens" of arXiv 2510.08203 are the most frequent ones (`probes.token_counts`), which
takes in digits, braces and the suffix "ing". Here a token is classed by its text: a closed list
of English function words, punctuation, digits, markup, and whether it begins a word or goes on
with one. That a token begins a word is told from its space marker, so "The" without one is taken
as a beginning for its capital, "the" without one as the inside of a word.
"""

import functools
import json
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from interp.errors import PromptError
from probes.token_text import token_bytes, visible

CLASSES: dict[str, str] = {
    "function word": "in the closed list: articles, prepositions, pronouns, auxiliaries, ...",
    "punctuation": "marks of writing only",
    "digit": "digits only",
    "markup": "holds a symbol of code or markup: \\ { } < > [ ] | _ ^ ~ ` # * = + @ $ & %",
    "whitespace": "spaces, tabs, line ends only",
    "word-internal": "letters without a space before them, which go on with a word",
    "content": "letters that begin a word which is not in the list",
    "special": "added by the tokenizer: begin, end, padding, chat turns",
    "other": "the rest: bytes of half a character, symbols, words mixed with digits, and letters "
    "of scripts that leave no space between words",
}
"""Name of each class, in the order of its index, and what falls into it."""

INDEX = {name: i for i, name in enumerate(CLASSES)}
MARKUP = frozenset("\\{}<>[]|_^~`#*=+@$&%")
WITHIN_WORDS = frozenset("-'\u2019")
ABBREVIATIONS = frozenset({"US", "IT", "AM"})
"""In capitals these are no pronouns or auxiliaries."""
SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "BOPOMOFO")


def linguistic_classes(tokenizer: Any, *, n_vocab: int | None = None) -> Int[np.ndarray, " token"]:
    """Index into `CLASSES` of every token; ids beyond the tokenizer's up to `n_vocab` are "other".

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    pieces = token_bytes(tokenizer)
    out = np.full(max(n_vocab or 0, len(pieces)), INDEX["other"])
    out[: len(pieces)] = [INDEX[_class_of(piece)] for piece in pieces]
    special = set(tokenizer.all_special_ids)
    special |= {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    out[[i for i in special if i < len(out)]] = INDEX["special"]
    return out[:n_vocab]


@functools.cache
def function_words() -> Mapping[str, str]:
    """Every function word of the list, in lower case, with its kind."""
    text = (resources.files("probes") / "data" / "function_words.json").read_text("utf-8")
    kinds: dict[str, list[str]] = {k: v for k, v in json.loads(text).items() if k != "note"}
    return {word: kind for kind, words in kinds.items() for word in words}


def read_classes(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Classes of one's own: a JSON file {name: [text of a token, ...]}.

    Raises:
        PromptError: unreadable, of another form, or a text in two classes.
    """
    try:
        rows = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise PromptError(f"{path} cannot be read as JSON ({reason}); give a JSON file") from None
    if not isinstance(rows, dict) or not rows or not all(map(_texts, rows.values())):
        raise PromptError(f'{path} holds no classes; write {{"name": [" the", ","]}}')
    seen: dict[str, str] = {}
    for name, texts in rows.items():
        for text in texts:
            if text in seen:
                raise PromptError(f"{path}: {text!r} is in {seen[text]} and {name}, or twice")
            seen[text] = name
    return {name: tuple(texts) for name, texts in rows.items()}


def given_classes(
    tokenizer: Any, classes: Mapping[str, Sequence[str]], *, n_vocab: int | None = None
) -> tuple[tuple[str, ...], Int[np.ndarray, " token"]]:
    """Names, with "other" last, and the index of each token's class.

    A token is named by its text, the space before it written as it is or as in tables: " the" or
    "␣the".

    Raises:
        PromptError: a text that is no single token.
        ModelError: the tokenizer is not a fast one.
    """
    pieces = token_bytes(tokenizer)
    by_text = {visible(piece): i for i, piece in enumerate(pieces)}
    names = (*(n for n in classes if n != "other"), "other")
    out = np.full(max(n_vocab or 0, len(pieces)), len(names) - 1)
    for name, texts in classes.items():
        for text in texts:
            token = by_text.get(visible(text.encode()))
            if token is None:
                raise PromptError(
                    f"class {name}: {text!r} is no single token of this tokenizer; see how it "
                    "cuts the text, and mind the space in front"
                )
            out[token] = names.index(name)
    return names, out[:n_vocab]


def _class_of(piece: bytes) -> str:
    try:
        text = piece.decode("utf-8")
    except UnicodeDecodeError:
        return "other"
    core = text.strip()
    if not core:
        return "whitespace" if text else "other"
    if core.isdecimal():
        return "digit"
    if MARKUP & set(core):
        return "markup"
    if all(unicodedata.category(c).startswith("P") or c.isspace() for c in core):
        return "function word" if core in function_words() else "punctuation"
    return _word_class(core, begins=text[0].isspace())


def _word_class(core: str, *, begins: bool) -> str:
    word = core.lower()
    capital = len(core) > 1 and core[0].isupper() and not core.isupper()
    listed = word in function_words() and core not in ABBREVIATIONS
    if listed and (begins or capital or "'" in word or "\u2019" in word):
        return "function word"
    letters = [c for c in core if c not in WITHIN_WORDS]
    if not all(unicodedata.category(c)[0] in "LM" for c in letters):
        return "other"
    if any(unicodedata.name(c, "").startswith(SPACELESS) for c in letters):
        return "other"
    return "content" if begins else "word-internal"


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) and t for t in value)
