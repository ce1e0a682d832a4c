"""Prompts of the published retrieval-head protocol (arXiv 2404.15574), its defects as switches.

One needle in one context per trial. What the released code does beyond the paper is listed in
`DEFECTS`; each can be switched off, to see what it changes. Wording and needles are ours.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import PromptError, UnknownNameError
from probes.needle import Needle, sentence_with

DEFECTS: dict[str, str] = {
    "retokenise": "context and needle are tokenised apart with special tokens, joined, decoded "
    "with them, and tokenised again: a BOS stands before the needle",
    "period_ids": "the needle is moved back to a token with id 29889 or 869, LLaMA's full stops, "
    "whatever the tokenizer",
    "overlap_finder": "the answer's span is the first window sharing over 90 % of its token set",
    "multiset": "a position counts each time it is copied, so scores can exceed 1",
    "no_eos": "decoding stops at LLaMA's or Yi's newline token alone, never at the end token",
    "zero_trials": "a trial whose span was not found, so that nothing can score, is averaged in",
}
LLAMA_PERIODS = (29889, 869)
YI_NEWLINE = 144
BUFFER = 200
"""Tokens of the context that the published code keeps free."""


@dataclass(frozen=True)
class PublishedPrompt:
    """Token ids, and the span of the answer in them; None where it was not found."""

    tokens: tuple[int, ...]
    span: tuple[int, int] | None
    answer: str
    answer_ids: tuple[int, ...]


def check_defects(names: Collection[str]) -> frozenset[str]:
    """The defects to keep, as a set.

    Raises:
        UnknownNameError: no such defect.
    """
    for name in names:
        if name not in DEFECTS:
            raise UnknownNameError("defect", name, DEFECTS)
    return frozenset(names)


def published_prompt(
    text: str,
    needle: Needle,
    value: str,
    tokenizer: Any,
    *,
    length: int,
    depth: float,
    defects: Collection[str] = tuple(DEFECTS),
) -> PublishedPrompt:
    """One needle at a depth of a context of `length` tokens, question behind it.

    Raises:
        PromptError: the text is too short.
    """
    body = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    wanted = max(0, length - BUFFER)
    if len(body) < wanted:
        raise PromptError(f"the text has {len(body)} tokens, {wanted} are needed; give more text")
    hidden = list(
        tokenizer(" " + sentence_with(needle, value), add_special_tokens="retokenise" in defects)[
            "input_ids"
        ]
    )
    body = body[: max(0, wanted - len(hidden))]
    at = _place(body, depth, tokenizer, "period_ids" in defects)
    tail = f" Using only the text above, answer this question: {needle.question}\nThe answer is:"
    if "retokenise" in defects:
        begin = list(tokenizer("")["input_ids"])
        joined = tokenizer.decode(begin + body[:at] + hidden + body[at:])
        tokens = list(tokenizer(joined + tail)["input_ids"])
    else:
        begin = [] if tokenizer.bos_token_id is None else list(tokenizer("")["input_ids"])
        ending = list(tokenizer(tail, add_special_tokens=False)["input_ids"])
        tokens = begin + body[:at] + hidden + body[at:] + ending
    ids = tuple(tokenizer(value, add_special_tokens=False)["input_ids"])
    if "overlap_finder" in defects:
        return PublishedPrompt(tuple(tokens), overlap_span(tokens, ids), value, ids)
    spaced = tuple(tokenizer(" " + value, add_special_tokens=False)["input_ids"])
    found = [(s, i) for i in (spaced, ids) if (s := exact_span(tokens, i)) is not None]
    span, ids = found[0] if found else (None, spaced)
    return PublishedPrompt(tuple(tokens), span, value, ids)


def overlap_span(tokens: Sequence[int], answer: Sequence[int]) -> tuple[int, int] | None:
    """First window of the answer's length that shares over 90 % of its token set."""
    wanted, n = set(answer), len(answer)
    for i in range(len(tokens) - n + 1):
        if len(wanted & set(tokens[i : i + n])) > 0.9 * len(wanted):
            return i, i + n
    return None


def exact_span(tokens: Sequence[int], answer: Sequence[int]) -> tuple[int, int] | None:
    """First place where the answer's tokens stand in order."""
    n, wanted = len(answer), tuple(answer)
    return next(
        ((i, i + n) for i in range(len(tokens) - n + 1) if tuple(tokens[i : i + n]) == wanted), None
    )


def _place(body: list[int], depth: float, tokenizer: Any, llama_ids: bool) -> int:
    """Where the needle goes: after the last full stop before the depth asked for."""
    at = int(len(body) * depth)
    if depth >= 1:
        return len(body)

    def stops(token: int) -> bool:
        if llama_ids:
            return token in LLAMA_PERIODS
        return str(tokenizer.decode([token])).rstrip().endswith(".")

    while at > 0 and not stops(body[at - 1]):
        at -= 1
    return at
