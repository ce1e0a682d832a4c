"""A binding matrix and a question as tokens of a given model, with the place of every entity.

The whole prompt is one text, tokenised once and natural to the model; places come from character
offsets, never from looking for a word (the published code finds `tin` in `platinum`). What prompts
of one context share is found as their common beginning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import PromptError, UnknownNameError
from probes.binding_tasks import BindingTask, Piece, Question, pieces
from probes.filler import filler
from probes.format import encode_behind

Matrix = tuple[tuple[str, ...], ...]
"""Words `[group][role]`, all different."""

ONE_WORD = "Answer in one word."
STYLES: dict[str, tuple[bool, str, str]] = {
    "chat": (True, "{context}\n\n{ask} " + ONE_WORD, ""),
    "chat-cue": (True, "{context}\n\n{ask} " + ONE_WORD, "Answer:"),
    "chat-complete": (True, "{context}\n\n{ask} " + ONE_WORD, "{complete}"),
    "plain": (False, "{context}\n\nQuestion: {ask}\n", "Answer:"),
    "completion": (False, "{context}\n", "{complete}"),
}
"""Name: whether the chat template is used, what is said, and how the answer is begun."""

_SAID = "\u2402SAID\u2403"


@dataclass(frozen=True)
class BindingPrompt:
    """One prompt.

    Attributes:
        tokens: the whole of it; the answer is the token that comes next.
        matrix: the words `[group][role]` of its context.
        asked: the word that stands for each named role in the question.
        group: index of the group whose words are asked for, or None (a made-up entity).
        places: token of each word in the context, by (group, role).
        named: token of each named role in the question; in the text that asks, not in the cue.
        context: tokens of the groups and what stands between them.
        target: index of the role asked for.
    """

    tokens: tuple[int, ...]
    matrix: Matrix
    asked: Mapping[str, str]
    group: int | None
    places: Mapping[tuple[int, int], int]
    named: Mapping[str, int]
    context: range
    target: int

    @property
    def answer(self) -> str | None:
        """The word that the question asks for."""
        return None if self.group is None else self.matrix[self.group][self.target]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The target entities of all groups."""
        return tuple(row[self.target] for row in self.matrix)


@dataclass(frozen=True)
class Writer:
    """Writes prompts of one question in one style for one tokenizer.

    Attributes:
        sentences, kind: filler between two groups; contexts of the same words have the same.
    """

    tokenizer: Any
    task: BindingTask
    question: Question
    style: str
    sentences: int = 0
    kind: str = "plain"

    def write(
        self,
        matrix: Matrix,
        group: int | None,
        *,
        asked: Mapping[str, str] | None = None,
    ) -> BindingPrompt:
        """The prompt that asks for a group of the matrix, or names the words in `asked`.

        Raises:
            PromptError: a word of several tokens.
        """
        roles, target = self.task.roles, self.task.roles.index(self.question.target)
        if asked is None:
            assert group is not None
            asked = {r: matrix[group][roles.index(r)] for r in self.question.asked}
        text, marks = self._text(matrix, asked)
        tokens, spans = _tokenised(self.tokenizer, text, self._begins(text))
        places, named = {}, {}
        for (kind, key), (start, stop) in marks.items():
            found = _single(spans, start, stop, text)
            if kind == "named":
                named[str(key)] = found
            else:
                places[key] = found
        last = max(places.values())
        context = range(min(places.values()), last + 1)
        return BindingPrompt(tokens, matrix, dict(asked), group, places, named, context, target)

    def _text(self, matrix: Matrix, asked: Mapping[str, str]) -> tuple[str, dict]:
        """The whole text, and the characters of every entity in it."""
        chat, said, begun = STYLES[self.style]
        out = _Text()
        before, after = _template(self.tokenizer) if chat else ("", "")
        out.add([(before, None)])
        for text, slot in pieces(said):
            if slot == "context":
                self._context(out, matrix)
            elif slot == "ask":
                out.add(pieces(self.question.ask), asked, "named")
            else:
                out.add([(text, None)])
        out.add([(after, None)])
        cue = self.question.complete if begun == "{complete}" else begun
        marked = "again" if "{ask}" in said else "named"
        out.add(pieces(cue), asked, marked)
        marks = {k: v for k, v in out.marks.items() if k[0] != "again"}
        return out.text, marks

    def _context(self, out: "_Text", matrix: Matrix) -> None:
        task = self.task
        between = filler(
            task, matrix, gaps=len(matrix) - 1, sentences=self.sentences, kind=self.kind
        )
        if task.prefix:
            out.add([(f"{task.prefix}{task.opening}", None)])
        for i, row in enumerate(matrix):
            if i and between:
                # each clause becomes a sentence of its own, with filler behind it
                out.add([(f"{task.end} {between[i - 1]} ", None)])
            elif i:
                out.add([(task.last_joiner if i == len(matrix) - 1 else task.joiner, None)])
            words = dict(zip(task.roles, row, strict=True))
            out.add(pieces(task.clause), words, "place", i, task.roles)
        out.add([(task.end, None)])

    def _begins(self, text: str) -> bool:
        """Whether the tokenizer has to put its beginning-of-sequence token first."""
        bos = self.tokenizer.bos_token
        return not STYLES[self.style][0] and bool(bos) and not text.startswith(str(bos))


class _Text:
    """A text as it grows, with the characters of its entities."""

    def __init__(self) -> None:
        self.text = ""
        self.marks: dict[tuple[str, Any], tuple[int, int]] = {}

    def add(
        self, parts: Sequence[Piece], words: Mapping[str, str] = {}, kind: str = "",  # noqa: B006
        group: int | None = None, roles: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Go on with pieces; the words of their slots are marked as of this kind."""
        for text, role in parts:
            word = text if role is None else words[role]
            if role is not None:
                key = role if group is None else (group, roles.index(role))
                self.marks[kind, key] = (len(self.text), len(self.text) + len(word))
            self.text += word


def styles_of(tokenizer: Any) -> tuple[str, ...]:
    """The styles that a tokenizer can write."""
    chat = bool(getattr(tokenizer, "chat_template", None))
    return tuple(name for name, (needs, _, _) in STYLES.items() if chat or not needs)


def check_style(tokenizer: Any, style: str) -> None:
    """Refuse a style that is unknown or cannot be written.

    Raises:
        UnknownNameError, PromptError
    """
    if style not in STYLES:
        raise UnknownNameError("prompt style", style, ("auto", *STYLES))
    if style not in styles_of(tokenizer):
        raise PromptError(f"the tokenizer has no chat template; use {' or '.join(styles_of(None))}")


def shared_start(prompts: Sequence[BindingPrompt]) -> int:
    """How many tokens all prompts begin with alike, the last token of each left out."""
    shortest = min(len(p.tokens) for p in prompts) - 1
    first = prompts[0].tokens
    for i in range(shortest):
        if any(p.tokens[i] != first[i] for p in prompts[1:]):
            return i
    return shortest


def split_words(tokenizer: Any, words: Sequence[str]) -> list[str]:
    """The words that are not one token where they follow a space."""
    return [w for w in words if len(encode_behind(tokenizer, f" {w}")) != 1]


def _template(tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and behind what a user says."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": _SAID}], tokenize=False, add_generation_prompt=True
    )
    if text.count(_SAID) != 1:
        raise PromptError("the chat template does not show the user's text once; use plain style")
    before, after = text.split(_SAID)
    return before, after


def _tokenised(tokenizer: Any, text: str, bos: bool) -> tuple[tuple[int, ...], list[tuple]]:
    """Token ids, and the characters that each stands for."""
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            "binding prompts need a fast tokenizer (one that tells character offsets); "
            "convert this one with `AutoTokenizer.from_pretrained(..., use_fast=True)`"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = list(found["input_ids"]), list(found["offset_mapping"])
    added = tokenizer("a")["input_ids"]
    if bos and added[:1] == [tokenizer.bos_token_id]:
        ids, spans = [tokenizer.bos_token_id, *ids], [(0, 0), *spans]
    return tuple(ids), spans


def _single(spans: Sequence[tuple], start: int, stop: int, text: str) -> int:
    """The one token of a word; a space before it may belong to it."""
    found = [i for i, (a, b) in enumerate(spans) if a < stop and b > start]
    word = text[start:stop]
    if len(found) != 1 or text[spans[found[0]][0] : spans[found[0]][1]].strip() != word:
        parts = [text[spans[i][0] : spans[i][1]] for i in found]
        raise PromptError(
            f"the word {word!r} is not one token in this prompt but {parts}; "
            "take it out of the pool, or put a space before its slot"
        )
    return found[0]
