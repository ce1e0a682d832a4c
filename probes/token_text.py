"""The text of a single token, for any fast tokenizer, and a form of it that shows in a table.

A token may be half a character, and decoding it alone drops the space that tells "the" from the
"the" in "other". So texts are taken from the vocabulary itself, by the tokenizer's own decoder:
byte-level (GPT-2 and its heirs), sentencepiece with its bar, or WordPiece with its double hash.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from interp.errors import ModelError

SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"}
"""Blanks, and how tables show them."""


def token_text(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token in a visible form: ␣ a space, ⏎ a line end, ⇥ a tab, <0xNN> half a character.

    Ids beyond the vocabulary are shown as <id>.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    pieces = token_bytes(tokenizer)
    return [visible(pieces[i]) if 0 <= i < len(pieces) else f"<{i}>" for i in map(int, ids)]


def token_bytes(tokenizer: Any) -> list[bytes]:
    """Every token of the vocabulary as bytes; a space in front where it begins a word.

    Raises:
        ModelError: the tokenizer is not a fast one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} is no fast tokenizer; load it with AutoTokenizer"
        )
    state = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    kinds = _kinds(state)
    read = next((DECODERS[kind] for kind in DECODERS if kind in kinds), str.encode)
    added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items()}
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return [added[i].encode() if i in added else read(name or "") for i, name in enumerate(names)]


def visible(piece: bytes) -> str:
    """Bytes as a text in which blanks, control characters and lone bytes can be seen."""
    out = []
    for char in piece.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(f"<0x{code - 0xDC00:02X}>")
        elif char in SHOWN:
            out.append(SHOWN[char])
        else:
            out.append(char if char.isprintable() else f"<U+{code:04X}>")
    return "".join(out)


def _kinds(state: Any) -> set[str]:
    """Types of a decoder and of those that it is made of."""
    if not isinstance(state, dict):
        return set()
    found = {str(state.get("type"))}
    if state.get("type") == "Replace" and state.get("content") == " ":
        found.add("Metaspace")  # sentencepiece models spell the same step in two ways
    return found.union(*(_kinds(part) for part in state.get("decoders", [])))


def _byte_table() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTES = _byte_table()


def _byte_level(name: str) -> bytes:
    if all(c in BYTES for c in name):
        return bytes(BYTES[c] for c in name)
    return name.encode()


def _sentencepiece(name: str) -> bytes:
    byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("\u2581", " ").encode()


def _wordpiece(name: str) -> bytes:
    return name[2:].encode() if name.startswith("##") else f" {name}".encode()


DECODERS: dict[str, Callable[[str], bytes]] = {
    "ByteLevel": _byte_level, "Metaspace": _sentencepiece, "WordPiece": _wordpiece,
}  # fmt: skip
"""How a name in the vocabulary is read, by the tokenizer's decoder."""
