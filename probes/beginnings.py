"""The token in front of a window of text: whether there is one, and which."""

from typing import Any

from interp.errors import ModelError, UnknownNameError

BOS = {
    "auto": "in front of each window if the tokenizer itself would put it in front of a text",
    "always": "in front of each window",
    "never": "nowhere",
}
"""What is done about a token that begins a sequence."""


def beginning(tokenizer: Any, how: str) -> int | None:
    """The token in front of every window, or None.

    Raises:
        UnknownNameError: no such way. ModelError: `always`, and the tokenizer has none.
    """
    if how not in BOS:
        raise UnknownNameError("way to begin", how, BOS)
    bos = tokenizer.bos_token_id
    if how == "always" and bos is None:
        raise ModelError("the tokenizer has no token that begins a sequence; use bos 'never'")
    if how == "always":
        return int(bos)
    adds = how == "auto" and bos is not None and tokenizer("a").input_ids[:1] == [bos]
    return int(bos) if adds else None
