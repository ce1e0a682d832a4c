"""Needles: sentences that state one made-up fact, the question that asks for it, and its values.

A needle is hidden in a haystack and asked for (arXiv 2404.15574). We differ from the published
protocol in three ways. There are dozens of needles of several kinds and languages where it has
three, because scores vary between needles and hardly within one. Each needle has several
interchangeable values, so that no answer can come from what the model learnt in training. And
the tokens of the answer are found from character offsets, never by searching for similar tokens.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from interp.errors import PromptError, UnknownNameError
from probes.haystack import adds_space
from probes.needle_files import Needle, load_needles

__all__ = [
    "Group",
    "Needle",
    "NeedleTokens",
    "load_needles",
    "select",
    "sentence_with",
    "similarity",
    "spread",
    "tokenise",
    "value_for",
]

# Scripts written without spaces between words: no space before a planted sentence either.
_UNSPACED = re.compile("[\u0e00-\u0eff\u3000-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]")


@dataclass(frozen=True)
class Group:
    """Needles that share a haystack, and each one's greatest similarity (0 to 1) to another."""

    needles: tuple[Needle, ...]
    similarity: tuple[float, ...]


@dataclass(frozen=True)
class NeedleTokens:
    """A needle's token ids and, in them, the positions of its answer.

    `lead` holds the ids of whitespace just before the answer that is not part of its first token:
    a continuation after a cue is `lead + answer_ids`. `exact` is False where an answer token also
    covers punctuation beside the value.
    """

    ids: tuple[int, ...]
    answer: range
    lead: tuple[int, ...]
    exact: bool

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """Token ids of the answer."""
        return self.ids[self.answer.start : self.answer.stop]


def sentence_with(needle: Needle, value: str) -> str:
    """The needle's sentence with `value` in its slot."""
    return needle.sentence.replace("{value}", value)


def value_for(needle: Needle, seed: int) -> str:
    """One of the needle's values, the same for a seed on every machine."""
    digest = hashlib.sha256(f"{seed}:{needle.id}".encode()).digest()
    return needle.values[int.from_bytes(digest[:8], "big") % len(needle.values)]


def select(
    needles: Sequence[Needle],
    n: int,
    *,
    seed: int,
    kinds: Collection[str] | None = None,
    languages: Collection[str] | None = None,
) -> tuple[Needle, ...]:
    """Draw `n` needles without replacement, taking the kinds in turn.

    Raises UnknownNameError for a kind or language that no needle has, PromptError when fewer than
    `n` are left.
    """
    _check_names("needle kind", kinds, {needle.kind for needle in needles})
    _check_names("needle language", languages, {needle.language for needle in needles})
    rng = random.Random(seed)
    by_kind: dict[str, list[Needle]] = {}
    for needle in sorted(needles, key=lambda needle: needle.id):
        if (kinds is None or needle.kind in kinds) and (
            languages is None or needle.language in languages
        ):
            by_kind.setdefault(needle.kind, []).append(needle)
    there = sum(map(len, by_kind.values()))
    if not 0 < n <= there:
        raise PromptError(
            f"cannot draw {n} needles: {there} fit; ask for 1 to {there}, allow more kinds or "
            "languages, or give a needle file of your own"
        )
    piles = list(by_kind.values())
    rng.shuffle(piles)
    for pile in piles:
        rng.shuffle(pile)
    rounds = (pile[i] for i in range(max(map(len, piles))) for pile in piles if i < len(pile))
    return tuple(needle for needle, _ in zip(rounds, range(n), strict=False))


def similarity(a: Needle, b: Needle) -> float:
    """Likeness in [0, 1]: 0.8 x Jaccard of content words, + 0.1 same kind, + 0.1 same answer type.

    Content words are the case-folded words of over 3 letters in sentence and question, and pairs
    of neighbouring characters in scripts without spaces. Answer types: number, code, words.
    """
    x, y = _content(a), _content(b)
    jaccard = len(x & y) / len(x | y) if x | y else 0.0
    return 0.8 * jaccard + 0.1 * (a.kind == b.kind) + 0.1 * (_answer_type(a) == _answer_type(b))


def spread(needles: Sequence[Needle], n_groups: int, *, seed: int = 0) -> tuple[Group, ...]:
    """Partition needles into groups, one per haystack, that hold needles as unlike as possible.

    Group sizes differ by one at most. Greedy: the needle most like any other goes first, each to
    the group with room where its nearest member is farthest; `seed` settles ties.
    """
    if not 0 < n_groups <= len(needles):
        raise PromptError(
            f"cannot spread {len(needles)} needles over {n_groups} haystacks; give 1 to "
            f"{len(needles)} haystacks, or more needles"
        )
    rng = random.Random(seed)
    pool = sorted(needles, key=lambda needle: needle.id)
    rng.shuffle(pool)
    pool.sort(key=lambda n: -max((similarity(n, m) for m in pool if m is not n), default=0.0))
    big, large = divmod(len(pool), n_groups)
    groups: list[list[Needle]] = [[] for _ in range(n_groups)]
    for needle in pool:
        full = sum(len(group) > big for group in groups) >= large
        open_ = [g for g in groups if len(g) < big or (len(g) == big and not full)]
        nearest = [max((similarity(needle, m) for m in g), default=-1.0) for g in open_]
        ranked = sorted(zip(nearest, map(len, open_), range(len(open_)), strict=True))
        open_[ranked[0][2]].append(needle)
    return tuple(_group(group) for group in groups)


def tokenise(needle: Needle, value: str, tokenizer: Any) -> NeedleTokens:
    """Token ids of the sentence with `value`, as after other text, and where its answer lies.

    Answer tokens are those whose characters overlap the value's. Raises PromptError when they
    also cover other words, when they do not decode to the value, or without a fast tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            "this tokenizer gives no character offsets, so answers cannot be found in its tokens; "
            "load the fast one (AutoTokenizer with use_fast=True, a tokenizer.json file)"
        )
    sentence = sentence_with(needle, value)
    space = "" if _UNSPACED.match(sentence) or adds_space(tokenizer) else " "
    text = space + sentence
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = tuple(coded["input_ids"]), coded["offset_mapping"]
    start = len(space) + needle.sentence.index("{value}")
    stop = start + len(value)
    hits = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
    if not hits:
        raise _unplaceable(needle, value, "no token covers it")
    answer = range(hits[0], hits[-1] + 1)
    beside = text[min(offsets[i][0] for i in hits) : start].strip()
    beside += text[stop : max(offsets[i][1] for i in hits)].strip()
    if any(unicodedata.category(char)[0] not in "PS" for char in beside):
        raise _unplaceable(needle, value, f"its tokens also cover {beside!r}")
    decoded = _decode(tokenizer, ids[answer.start : answer.stop])
    if value not in decoded:
        raise _unplaceable(needle, value, f"its tokens decode to {decoded!r}")
    first = answer.start
    while first and _is_blank(text, offsets[first - 1], ids[first - 1], tokenizer):
        first -= 1
    return NeedleTokens(ids, answer, ids[first : answer.start], not beside)


def _is_blank(text: str, offset: tuple[int, int], token: int, tokenizer: Any) -> bool:
    """Some tokenizers give a lone space the offsets of no character, so ask the token too."""
    a, b = offset
    return not text[a:b].strip() and not _decode(tokenizer, [token]).strip()


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _unplaceable(needle: Needle, value: str, why: str) -> PromptError:
    return PromptError(
        f"needle {needle.id!r} cannot be placed by this tokenizer with value {value!r}: {why}; "
        "leave the needle out, or put a space or punctuation around its value"
    )


def _group(members: list[Needle]) -> Group:
    nearest = (max((similarity(a, b) for b in members if b is not a), default=0.0) for a in members)
    return Group(tuple(members), tuple(nearest))


@cache
def _content(needle: Needle) -> frozenset[str]:
    found: set[str] = set()
    for word in re.findall(r"\w+", f"{needle.sentence} {needle.question}".casefold()):
        if _UNSPACED.match(word):
            found.update(word[i : i + 2] for i in range(len(word) - 1))
        elif len(word) > 3 and word != "value":
            found.add(word)
    return frozenset(found)


def _answer_type(needle: Needle) -> str:
    text = "".join(needle.values)
    if not any(char.isdigit() for char in text):
        return "words"
    return "code" if any(char.isalpha() for char in text) else "number"


def _check_names(what: str, names: Collection[str] | None, known: set[str]) -> None:
    for name in names or ():
        if name not in known:
            raise UnknownNameError(what, name, known)
