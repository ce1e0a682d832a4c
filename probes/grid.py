"""Needles planted along haystacks, so that one context holds a whole length x depth grid.

Attention is causal: the first L tokens of a long context are exactly the context of length L. A
needle at position p therefore serves at depth p/L for every length L beyond it, and planting
needles at the union of all wanted positions gives every cell from a single prefill. Positions are
exact by assembly from token pieces; nothing is searched for afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from interp.errors import PromptError
from probes.format import Format, encode
from probes.haystack import Haystack
from probes.needle import Needle, NeedleTokens, tokenise, value_for

Mode = Literal["shared", "single"]


@dataclass(frozen=True)
class Planted:
    """A needle in a context: its value, and where its tokens and its answer's tokens stand."""

    needle: Needle
    value: str
    tokens: NeedleTokens
    start: int

    @property
    def stop(self) -> int:
        """Position after the needle's last token."""
        return self.start + len(self.tokens.ids)

    @property
    def answer(self) -> range:
        """Absolute positions of the answer's tokens."""
        return range(self.start + self.tokens.answer.start, self.start + self.tokens.answer.stop)


@dataclass(frozen=True, eq=False)
class Context:
    """Tokens to prefill, with the needles in them; `similarity` is between needle and mates."""

    index: int
    haystack: str
    tokens: tuple[int, ...]
    planted: tuple[Planted, ...]
    similarity: tuple[float, ...]
    n_head: int


@dataclass(frozen=True)
class Trial:
    """One question: a needle of a context, asked at one length.

    Attributes:
        length: tokens of context before the question.
        depth: the depth that the cell asks for, in [0, 1].
        true_depth: where the needle begins, as a share of the room it could begin in.
        question: positions of the question's tokens inside `suffix`.
        suffix: tokens after the context up to the answer.
        answer: the answer's tokens, the same ids as in the needle.
    """

    context: int
    needle: str
    kind: str
    language: str
    value: str
    length: int
    depth: float
    true_depth: float
    planted: int
    suffix: tuple[int, ...]
    question: range
    answer: tuple[int, ...]

    @property
    def name(self) -> str:
        """Unique within a scan."""
        return f"c{self.context:03d}-n{self.length}-d{self.depth:.2f}-{self.needle}"


def positions(
    lengths: Sequence[int], depths: Sequence[float], *, n_head: int, n_needle: int
) -> list[int]:
    """Where needles must begin so that every (length, depth) has one; near ones are merged.

    At depth 1 a needle ends with the context, so it begins one needle earlier.
    """
    wanted = sorted(
        n_head + round(depth * (length - n_head - n_needle))
        for length in lengths
        for depth in depths
    )
    kept: list[int] = []
    for position in wanted:
        # of two that would overlap the earlier stays, for it still fits the shorter context
        if not kept or position >= kept[-1] + 2 * n_needle:
            kept.append(position)
    return kept


def plant(
    haystack: Haystack,
    needles: Sequence[Needle],
    at: Sequence[int],
    *,
    fmt: Format,
    index: int,
    n_tokens: int,
    seed: int,
    similarity: Sequence[float] = (),
) -> Context:
    """Assemble a context of `n_tokens` with needles at the sentence ends nearest before `at`.

    Raises:
        PromptError: the haystack is shorter than that.
    """
    tokens = list(fmt.head)
    planted: list[Planted] = []
    waiting = list(zip(needles, at, strict=True))
    for sentence in haystack.sentences:
        while waiting and len(tokens) + len(sentence) / 2 >= waiting[0][1]:
            needle, _ = waiting.pop(0)
            value = value_for(needle, seed + index)
            pieces = tokenise(needle, value, fmt.tokenizer)
            planted.append(Planted(needle, value, pieces, len(tokens)))
            tokens += pieces.ids
        tokens += sentence
        if len(tokens) >= n_tokens and not waiting:
            break
    if len(tokens) < n_tokens or waiting:
        raise PromptError(
            f"haystack {haystack.name} has {haystack.n_tokens} tokens, {n_tokens} are needed; "
            "use shorter lengths or a longer text"
        )
    return Context(
        index, haystack.name, tuple(tokens[:n_tokens]), tuple(planted), tuple(similarity),
        len(fmt.head),
    )  # fmt: skip


def trials(
    context: Context,
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    fmt: Format,
    cue_words: int,
) -> list[Trial]:
    """One trial for each cell that a needle of the context can serve: the nearest in depth."""
    out = []
    for length in lengths:
        if length > len(context.tokens):
            raise PromptError(f"length {length} exceeds the context of {len(context.tokens)}")
        fitting = [i for i, p in enumerate(context.planted) if p.stop <= length]
        for depth in depths:
            if fitting:
                best = min(fitting, key=lambda i: abs(true_depth(context, i, length) - depth))
                out.append(_trial(context, best, length, depth, fmt, cue_words))
    return out


def true_depth(context: Context, planted: int, length: int) -> float:
    """Where a needle begins, as a share of the room it could begin in."""
    place = context.planted[planted]
    room = length - context.n_head - len(place.tokens.ids)
    return (place.start - context.n_head) / room if room > 0 else 0.0


def _trial(
    context: Context, planted: int, length: int, depth: float, fmt: Format, cue_words: int
) -> Trial:
    place = context.planted[planted]
    needle = place.needle
    tail = fmt.tail(needle.question)
    cue = encode(fmt.tokenizer, opening(needle, cue_words)) if cue_words else []
    return Trial(
        context=context.index,
        needle=needle.id,
        kind=needle.kind,
        language=needle.language,
        value=place.value,
        length=length,
        depth=depth,
        true_depth=true_depth(context, planted, length),
        planted=planted,
        # white space that is a token of its own belongs to the cue, not to the answer
        suffix=(*tail.tokens, *cue, *place.tokens.lead),
        question=tail.question,
        answer=place.tokens.answer_ids,
    )


def opening(needle: Needle, n_words: int) -> str:
    """The last words before the answer in the needle: they open the answer for the model.

    A cue for models that answer a bare question with something else; scripts without spaces count
    two characters as a word.
    """
    before = needle.sentence.split("{value}")[0].rstrip()
    words = before.split()
    if needle.language in ("zh", "ja"):
        return before[-2 * n_words :]
    return " " + " ".join(words[-n_words:])
