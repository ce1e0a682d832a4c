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

__all__ = [
    "Document",
    "Haystack",
    "Repetition",
    "adds_space",
    "check_repetition",
    "cut",
    "load_text",
    "repetition",
    "sentences",
]

LONGEST = 200  # tokens; a longer "sentence" (a table, code) is split at whitespace

_ENDING = re.compile(
    r"(?P<stop>[.!?…]+)[\"'”’»)\]]*(?=\s+[\"'“‘«(\[¿¡]*(?P<next>[^\W_]))"
    r"|[。！？]+[」』”’）]*(?=\s*\S)"
    r"|(?<=\S)(?=[^\S\n]*\n[^\S\n]*\n\s*\S)"
)
_WORD_BEFORE = re.compile(r"[\w.]+$")
_NEVER_LAST = re.compile(
    r"mrs?|ms|mme|mlle|messrs|dr|prof|st|sir|hon|rev|gen|col|maj|capt|lt|sgt|jr"
    r"|vs|cf|viz|ca|approx|dept|inc|ltd"
)
_BEFORE_NUMBER = re.compile(r"nos?|vols?|pp?|figs?|ch|sec|art|c|ll?")


@dataclass(frozen=True)
class Haystack:
    """Token ids of consecutive sentences; `name` says which, as `file[first:last+1]`."""

    name: str
    sentences: tuple[tuple[int, ...], ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all sentences."""
        return sum(map(len, self.sentences))


def sentences(text: str) -> list[str]:
    """Split into sentences, each with the whitespace before it, so that joining gives `text`."""
    cuts = [0, *(m.end() for m in _ENDING.finditer(text) if _is_end(text, m))]
    end = len(text) if len(text) > cuts[-1] else cuts.pop()
    pieces = [text[a:b] for a, b in itertools.pairwise([*cuts, end])]
    return [piece for piece in pieces if piece]


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
    """Whether the tokenizer puts a space of its own in front of a text (SentencePiece style)."""
    first = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    return bool(first) and first[0].startswith(("▁", "Ġ"))


def _is_end(text: str, match: re.Match[str]) -> bool:
    """False after abbreviations and initials, and where the next word is in lower case."""
    following = match["next"]
    if following is None:
        return True  # a paragraph's end, or a full stop of a script without capitals
    if following.islower():
        return False
    word = _WORD_BEFORE.search(text, max(0, match.start() - 20), match.start())
    if match["stop"] != "." or word is None:
        return True
    last = word[0].casefold()
    initial = (len(last) == 1 and last.isalpha()) or re.fullmatch(r"(\w\.)+\w", last)
    numbered = following.isdigit() and _BEFORE_NUMBER.fullmatch(last)
    return not (initial or numbered or _NEVER_LAST.fullmatch(last))


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
    """One batch call. A space that the tokenizer adds by itself must not double ours."""
    if not pieces:
        return []
    texts = [p[1:] if own_space and p.startswith(" ") else p for p in pieces]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if not own_space:
        return ids
    # In front of a line break the added space is a token of its own, and not in the text.
    lone = {tokenizer.convert_tokens_to_ids("▁"), tokenizer.convert_tokens_to_ids("Ġ")}
    return [
        i[1:] if text[:1] == "\n" and i and i[0] in lone else i
        for text, i in zip(texts, ids, strict=True)
    ]


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
