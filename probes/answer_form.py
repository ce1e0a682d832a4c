"""In which form a model writes its answers: found from what it says, never assumed.

The published read-out scores ` country` where the model says `Country`, a token with 2e-5 of the
probability (an independent audit of arXiv 2510.06182). Here the model speaks first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from interp.errors import PromptError
from probes.binding_prompts import BindingPrompt
from probes.format import encode_behind

FORMS: dict[str, Callable[[str], str]] = {
    "space": lambda w: f" {w}",
    "bare": lambda w: w,
    "space, capital": lambda w: f" {w[:1].upper()}{w[1:]}",
    "capital": lambda w: f"{w[:1].upper()}{w[1:]}",
}
"""How a word may be written where an answer begins; among equals the first is meant."""


@dataclass(frozen=True)
class Answers:
    """Answer tokens of words in one form.

    Attributes:
        mass: mean probability that the prompts seen put on their candidates in this form.
        others: the same for the other forms.
    """

    form: str
    mass: float
    others: dict[str, float]
    tokenizer: Any

    def token(self, word: str) -> int:
        """The token with which the word is answered.

        Raises:
            PromptError: the word is not one token in this form.
        """
        ids = encode_behind(self.tokenizer, FORMS[self.form](word))
        if len(ids) != 1:
            raise PromptError(
                f"{word!r} is {len(ids)} tokens as an answer ({self.form}); take it out of the pool"
            )
        return ids[0]

    def writable(self, words: Sequence[str]) -> list[str]:
        """The words that are one token of their own as an answer."""
        out, seen = [], set()
        for word in words:
            ids = encode_behind(self.tokenizer, FORMS[self.form](word))
            if len(ids) == 1 and ids[0] not in seen:
                seen.add(ids[0])
                out.append(word)
        return out


def find_form(
    tokenizer: Any,
    prompts: Sequence[BindingPrompt],
    logits: Tensor,
    *,
    words: Sequence[str],
    least: int,
) -> Answers:
    """The form with the most probability on the candidates' first tokens, mean over prompts.

    Args:
        logits: `[prompt, d_vocab]` after each prompt.
        words, least: a form in which fewer of these words are one token is not considered; how
            much of the probability is lost by that shows in `others`.

    Raises:
        PromptError: there is no such form.
    """
    probs = logits.float().softmax(-1)
    mass, room = {}, {}
    for name, write in FORMS.items():
        firsts = [{encode_behind(tokenizer, write(w))[0] for w in p.candidates} for p in prompts]
        each = [float(row[sorted(ids)].sum()) for row, ids in zip(probs, firsts, strict=True)]
        mass[name] = float(np.mean(each))
        room[name] = len(Answers(name, 0.0, {}, tokenizer).writable(words))
    able = [name for name in FORMS if room[name] >= least]
    if not able:
        raise PromptError(
            f"answers cannot be scored: {max(room.values())} of {len(words)} words are one token "
            f"as an answer, {least} are needed; use a smaller n or other words"
        )
    best = max(able, key=lambda name: mass[name])  # the first among equals
    others = {name: value for name, value in mass.items() if name != best}
    return Answers(best, mass[best], others, tokenizer)
