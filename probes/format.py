"""How a context and a question become tokens for a given model, without any searching.

A prompt is assembled from token pieces: head + context + tail, where the tail carries the
question and the cue after which the answer is expected. The chat template is rendered once with
two marks in it and cut there, so every family's template works and nothing is decoded again.
"""

from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import PromptError

Style = Literal["auto", "chat", "plain"]

INSTRUCTION = "Read this text. A question about it follows.\n\n"
ASK = "\n\nAnswer from the text, in as few words as possible.\nQuestion: {question}"
CUE = "Answer:"
_LEAD = "\n"
_CONTEXT, _QUESTION = "\u2402CONTEXT\u2403", "\u2402QUESTION\u2403"


@dataclass(frozen=True)
class Format:
    """Token pieces around a context.

    Attributes:
        style: `chat` or `plain`, as resolved.
        head: tokens before the context, the beginning-of-sequence token included where the model
            has one.
        before_question, after_question: text between context and question, and between question
            and answer.
    """

    style: str
    head: tuple[int, ...]
    before_question: str
    after_question: str
    tokenizer: Any

    def tail(self, question: str) -> "Tail":
        """The tokens after the context, up to where the answer begins.

        The pieces are tokenised apart, so the question's tokens are known by construction.
        """
        before = encode(self.tokenizer, self.before_question)
        asked = encode(self.tokenizer, " " + question)
        after = encode(self.tokenizer, self.after_question)
        return Tail((*before, *asked, *after), range(len(before), len(before) + len(asked)))


@dataclass(frozen=True)
class Tail:
    """Tokens after a context, and which of them are the question's."""

    tokens: tuple[int, ...]
    question: range


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a piece of text; special tokens written in it count as such, none is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_behind(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a piece of text where other text stands before it.

    Tokenizers that put a space before every text (Llama-2, Mistral) would otherwise write a word
    without one as if it stood there, or see two.
    """
    lead = encode(tokenizer, _LEAD)
    both = encode(tokenizer, _LEAD + text)
    return both[len(lead) :] if both[: len(lead)] == lead else encode(tokenizer, text)


def prompt_format(tokenizer: Any, style: Style = "auto") -> Format:
    """The model's own chat form where it has one, else a plain question and answer.

    Raises:
        PromptError: `chat` was asked of a tokenizer without a template, or the template hides
            what the user says.
    """
    if style == "auto":
        style = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
    if style == "plain":
        bos = [] if tokenizer.bos_token_id is None else _bos(tokenizer)
        head = (*bos, *encode(tokenizer, INSTRUCTION))
        ask = ASK.format(question=_QUESTION)
        before, after = ask.split(_QUESTION)
        return Format("plain", head, before.rstrip(" "), f"{after}\n{CUE}", tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError("the tokenizer has no chat template; use the plain style")
    return _chat(tokenizer)


def _bos(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token, if this tokenizer puts one before a text by itself."""
    added = tokenizer("a")["input_ids"]
    return [tokenizer.bos_token_id] if added[:1] == [tokenizer.bos_token_id] else []


def _chat(tokenizer: Any) -> Format:
    said = INSTRUCTION + _CONTEXT + ASK.format(question=_QUESTION)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
    )
    if text.count(_CONTEXT) != 1 or text.count(_QUESTION) != 1:
        raise PromptError("the chat template does not show the user's text once; use plain style")
    head, rest = text.split(_CONTEXT)
    before, after = rest.split(_QUESTION)
    return Format(
        "chat", tuple(encode(tokenizer, head)), before.rstrip(" "), after + CUE, tokenizer
    )
