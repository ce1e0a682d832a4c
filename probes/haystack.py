"""Haystacks: long natural text, cut at sentence starts into stretches of known token length.

Retrieval heads are found by hiding a needle in a long text (arXiv 2404.15574). We differ from the
published protocol in three ways. The text is public-domain prose that is checked for verbatim
repeats (half of the published haystack is an exact copy of its other half, which rewards heads
that copy for other reasons). Stretches do not overlap, so that haystacks are independent draws.
Text is tokenised one sentence at a time, so that a sentence boundary is a token boundary with
every tokenizer and a planted needle never has to walk back to find one.
"""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import PromptError
from probes.corpus import Document, Repetition, check_repetition, load_text, repetition
from probes.sentences import sentences

__all__ = [
    "Document",
    "Haystack",
    "Repetition",
    "adds_space",
    "check_repetition",
    "cut",
    "load_text",
    "repetition",
]

LONGEST = 100  # tokens; a longer "sentence" is split at whitespace, so that depths stay near
ANCHOR = "a"  # white space after it starts a token of its own in every tokenizer we know


@dataclass(frozen=True)
class Haystack:
    """Token ids of consecutive sentences; `name` says which, as `file[first:last+1]`."""

    name: str
    sentences: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all sentences."""
        return sum(map(len, self.sentences))


def cut(
    docs: Sequence[Document], tokenizer: Any, *, n_haystacks: int, n_tokens: int, seed: int = 0
) -> list[Haystack]:
    """Cut non-overlapping stretches of at least `n_tokens` tokens that begin at sentence starts.

    Stretches are dealt over the documents in turn and placed at random by `seed`. Where single
    documents are too short for the request they are joined end to end, which the name shows.
    Raises PromptError when the text cannot give as many, with what it has and what to do.
    """
    if n_haystacks < 1 or n_tokens < 1:
        raise PromptError(
            f"cannot cut {n_haystacks} haystacks of {n_tokens} tokens; give numbers of at least 1"
        )
    rng = random.Random(seed)
    sources = [Haystack(doc.name, _tokenise(doc.text, tokenizer)) for doc in docs]
    rng.shuffle(sources)
    if sum(len(_latest_starts(source, n_tokens)) for source in sources) < n_haystacks:
        everything = tuple(itertools.chain.from_iterable(s.sentences for s in sources))
        sources = [Haystack("+".join(s.name for s in sources), everything)]
    room = [len(_latest_starts(source, n_tokens)) for source in sources]
    if sum(room) < n_haystacks:
        raise _too_short(sources, sum(room), n_haystacks, n_tokens)
    shares = _deal(room, n_haystacks)
    placed = [_place(s, k, n_tokens, rng) for s, k in zip(sources, shares, strict=True)]
    return [h for turn in itertools.zip_longest(*placed) for h in turn if h is not None]


def adds_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space of its own in front of a text.

    SentencePiece models with a dummy prefix do (their space is \u2581), and byte-level BPE with
    `add_prefix_space` (its space is \u0120).
    """
    first = tokenizer.convert_ids_to_tokens(_ids([ANCHOR], tokenizer)[0])
    return bool(first) and first[0].startswith(("\u2581", "\u0120"))


def _tokenise(text: str, tokenizer: Any) -> tuple[tuple[int, ...], ...]:
    """Token ids per sentence; a document opens with a blank line, as after another text."""
    pieces = sentences("\n\n" + text.strip())
    own_space = adds_space(tokenizer)
    ids = _encode(pieces, tokenizer, own_space)
    while any(len(i) > LONGEST and _middle(p) for p, i in zip(pieces, ids, strict=True)):
        halves = [_halve(p) if len(i) > LONGEST else [p] for p, i in zip(pieces, ids, strict=True)]
        changed = [half for parts in halves if len(parts) > 1 for half in parts]
        fresh = iter(_encode(changed, tokenizer, own_space))
        ids = [
            new
            for parts, old in zip(halves, ids, strict=True)
            for new in ([next(fresh) for _ in parts] if len(parts) > 1 else [old])
        ]
        pieces = [part for parts in halves for part in parts]
    return tuple(tuple(i) for i in ids if i)


def _encode(pieces: list[str], tokenizer: Any, own_space: bool) -> list[list[int]]:
    """Ids of each piece as it stands after other text, in one batch call.

    A tokenizer that adds a space would put one before every piece, even before a line break. So
    each is read behind an anchor, whose tokens are then taken off.
    """
    if not own_space or not pieces:
        return _ids(pieces, tokenizer)
    anchor = _ids([ANCHOR], tokenizer)[0]
    whole = _ids([ANCHOR + piece for piece in pieces], tokenizer)
    return [
        # a token that reaches over the seam cannot be parted: then the added space stays
        ids[len(anchor) :] if ids[: len(anchor)] == anchor else _ids([piece], tokenizer)[0]
        for piece, ids in zip(pieces, whole, strict=True)
    ]


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _middle(piece: str) -> int:
    """Index of the whitespace nearest the middle at which to split; 0 if there is none."""
    inner = [m.start() for m in re.finditer(r"(?<=\S)\s+(?=\S)", piece)]
    return min(inner, key=lambda i: abs(i - len(piece) // 2), default=0)


def _halve(piece: str) -> list[str]:
    middle = _middle(piece)
    return [piece[:middle], piece[middle:]] if middle else [piece]


def _latest_starts(source: Haystack, n_tokens: int) -> list[int]:
    """Latest first sentences of as many disjoint stretches as fit, in the order of the text."""
    starts: list[int] = []
    count = 0
    for index in range(len(source.sentences) - 1, -1, -1):
        count += len(source.sentences[index])
        if count >= n_tokens:
            starts.append(index)
            count = 0
    return starts[::-1]


def _deal(room: list[int], n: int) -> list[int]:
    """Share `n` stretches over sources in turn, none getting more than its room."""
    shares = [0] * len(room)
    while sum(shares) < n:
        for i in range(len(room)):
            if shares[i] < room[i] and sum(shares) < n:
                shares[i] += 1
    return shares


def _place(source: Haystack, n: int, n_tokens: int, rng: random.Random) -> list[Haystack]:
    """Place `n` disjoint stretches; each leaves room for those after it."""
    if n == 0:
        return []
    placed, begin = [], 0
    for latest in _latest_starts(source, n_tokens)[-n:]:
        first = rng.randint(begin, latest)
        stop, count = first, 0
        while count < n_tokens:
            count += len(source.sentences[stop])
            stop += 1
        name = f"{source.name}[{first}:{stop}]"
        placed.append(Haystack(name, source.sentences[first:stop]))
        begin = stop
    return placed


def _too_short(sources: list[Haystack], room: int, n_haystacks: int, n_tokens: int) -> PromptError:
    have = sum(source.n_tokens for source in sources)
    fewer = f"ask for at most {room} haystacks, or " if room else ""
    return PromptError(
        f"the text has {have} tokens with this tokenizer; {n_haystacks} haystacks of {n_tokens} "
        f"need {n_haystacks * n_tokens} (cut at whole sentences); {fewer}choose shorter lengths, "
        "or give more text with --haystack"
    )
