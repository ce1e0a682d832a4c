"""Transformers whose binding mechanism is known: what a detector must be able to tell.

Each answers "who keeps which fruit where" by the pointers of *Mixing Mechanisms* (2510.06182): the
group's place, the asked word itself, or a pointer to the answer. With the last token's residual
entering layer 3 taken from another prompt, whose pointers lead to the groups i_P, i_L and i_R of
this one, the logit of group i is exactly

    Y_i = w_pos N(i | i_P, sigma(i_P)) + w_lex[i_L] 1{i = i_L} + w_ref[i_R] 1{i = i_R}
    sigma(i_P) = alpha (i_P / n)^2 + beta (i_P / n) + gamma

where, unlike the paper's unnormalised kernel, N sums to one over the groups (it is attention). The
logits of all other words are 0. Other rows of the table look like a mixture and are none.

    planted = build("mixture")
    model = interp.load(planted.model, tokenizer=planted.tokenizer)
    formula(planted.truth, 2, 5, 1)      # logits [group] after an interchange entering layer 3
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from interp.errors import PromptError, UnknownNameError
from interp.sites import Head
from probes import planted_binding_weights as w
from probes.planted_binding_table import PLANTED_BINDING, BindingRow, Verdict
from probes.planted_binding_task import (
    END,
    SPARE,
    draw_task,
    embed,
    layout,
    unembed,
    vocabulary,
)
from probes.planted_binding_weights import MECHANISMS, Mechanism
from probes.planted_weights import word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

POINTER_LAYER = 3
"""That whose heads look the pointers up."""


@dataclass(frozen=True, eq=False)
class BindingTruth:
    """What is true of one built model.

    Attributes:
        row: its row of the table.
        n: groups of every prompt.
        pointer_layer: the last token holds its pointers entering this layer, and at no other that
            a patch can tell apart; None: it never does.
        answer_layer: it holds the finished answer entering this layer and those above.
        w_pos, alpha, beta, gamma, w_lex, w_ref, kernel: of `formula`; the kernel sums to one.
        heads: the planted heads, by what they do. Every model carries all pointers to the last
            token; where a mechanism is absent, nobody reads its pointer.
        prior: logit that an answer has in any case, by word; empty: none.
        choice: the mechanism that a prompt follows, by the word of the first role it asks for.
            It travels with the last token: after an interchange the donor's counts.
        guess: the group that the model takes in place of i_P, by the same word.
        forms: the token that answers, by the word in the context.
    """

    row: BindingRow
    n: int
    pointer_layer: int | None
    answer_layer: int
    w_pos: float
    alpha: float
    beta: float
    gamma: float
    w_lex: Float[np.ndarray, " group"]
    w_ref: Float[np.ndarray, " group"]
    heads: Mapping[str, Head]
    prior: Mapping[str, float]
    choice: Mapping[str, Mechanism]
    guess: Mapping[str, int]
    forms: Mapping[str, str]
    kernel: Literal["discrete"] = "discrete"
    n_layers: int = w.N_LAYERS

    @property
    def expected(self) -> Verdict:
        """What an honest detector says."""
        return self.row.expected

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms that are there."""
        return self.row.mechanisms

    @property
    def notes(self) -> tuple[str, ...]:
        """What an honest detector says besides."""
        return self.row.notes

    @property
    def sigma(self) -> Float[np.ndarray, " group"]:
        """Width of the positional term, in groups, by i_P."""
        return widths(self.n, self.alpha, self.beta, self.gamma)


@dataclass(frozen=True, eq=False)
class PlantedBinding:
    """A live model with its tokenizer, the task that it answers, and what is true of it.

    The task is a mapping as `probes.binding_tasks.read_task` takes it; it is answered in the
    `completion` style, with `truth.n` groups.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerFast"
    task: dict[str, Any]
    truth: BindingTruth


def build(name: str, *, n: int = 8, seed: int = 0) -> PlantedBinding:
    """A model of the table for prompts of `n` groups; the seed draws words, gates and priors.

    Raises:
        UnknownNameError: no such model.
        PromptError: a number of groups that the words do not suffice for.
    """
    if name not in PLANTED_BINDING:
        raise UnknownNameError("planted binding model", name, PLANTED_BINDING)
    row = PLANTED_BINDING[name]
    rng = np.random.default_rng([seed, n, zlib.crc32(name.encode())])
    task = draw_task(n, rng)
    wiring = _wiring(row, n, rng)
    priors = row.prior * rng.standard_normal(n + SPARE)
    asked, target, _ = task["roles"]
    forms = {x: x.capitalize() if row.capitals else x for x in task["pools"][target]}
    answers = list(forms.values())
    vocab = vocabulary(task, answers)
    s = w.space(wiring)
    layers = w.circuits(s, wiring)
    embeddings = embed(s, vocab, task, layout(task, n))
    model = w.assemble(s, layers, embeddings, unembed(s, vocab, answers, priors))
    model.name_or_path = f"planted-binding-{name}-{seed}"
    copied = row.wired == "copy"
    truth = BindingTruth(
        row,
        n,
        None if copied else POINTER_LAYER,
        POINTER_LAYER if copied else POINTER_LAYER + 1,
        row.w_pos,
        *row.sigma,
        w_lex=wiring.w_lex,
        w_ref=np.full(n, wiring.copy) if copied else wiring.w_ref,
        heads={h: Head(i, j) for i, layer in enumerate(layers) for j, h in enumerate(layer)},
        prior=dict(zip(forms, priors.tolist(), strict=True)) if row.prior else {},
        choice=_named(task["pools"][asked], wiring.choice, MECHANISMS),
        guess=_named(task["pools"][asked], wiring.guess, range(n)),
        forms=forms,
    )
    return PlantedBinding(_converted(model, row.dtype), word_tokenizer(vocab, eos=END), task, truth)


def formula(
    truth: BindingTruth,
    i_p: int,
    i_l: int | None,
    i_r: int | None,
    *,
    asked: str | None = None,
    words: Sequence[str] | None = None,
) -> Float[np.ndarray, " group"]:
    """Logits of the groups after an interchange entering `pointer_layer`; also of a clean prompt.

    Args:
        i_p: group that the donor asks for.
        i_l: group of the recipient that holds the donor's asked word; None: it is not there.
        i_r: group of the recipient that holds the donor's answer; None: it is not there.
        asked: the donor's asked word of the first role; needed where it chooses or guesses.
        words: the recipient's possible answers by group; needed where words have priors.

    Raises:
        PromptError: `asked` or `words` are needed.
    """
    if (truth.choice or truth.guess) and asked is None:
        raise PromptError(f"{truth.row.name} depends on the asked word; pass asked=")
    if truth.prior and words is None:
        raise PromptError(f"the words of {truth.row.name} have priors; pass words=")
    i_p = truth.guess.get(asked or "", i_p)
    terms: dict[Mechanism, np.ndarray] = {
        "positional": truth.w_pos * np.exp(_log_kernel(truth.sigma))[i_p],
        "lexical": _at(truth.w_lex, i_l),
        "reflexive": _at(truth.w_ref, i_r),
    }
    followed = [truth.choice[asked or ""]] if truth.choice else MECHANISMS
    logits = np.sum([terms[m] for m in followed], axis=0)
    return logits + [truth.prior[word] for word in words or ()] if truth.prior else logits


def widths(n: int, alpha: float, beta: float, gamma: float) -> Float[np.ndarray, " group"]:
    """Width of the positional term, in groups, by i_P."""
    place = np.arange(n) / n
    return alpha * place**2 + beta * place + gamma


def _at(weights: np.ndarray, group: int | None) -> np.ndarray:
    """The weight of a group, where it stands; nothing for no group."""
    return weights * (np.arange(len(weights)) == (-1 if group is None else group))


def _log_kernel(sigma: Float[np.ndarray, " group"]) -> Float[np.ndarray, "asked group"]:
    """Logarithms of a discrete normal around each group, which sums to one over all."""
    away = np.arange(len(sigma)) - np.arange(len(sigma))[:, None]
    logits = -(away**2) / (2 * sigma[:, None] ** 2)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def _wiring(row: BindingRow, n: int, rng: np.random.Generator) -> w.Wiring:
    n_words, copied = n + SPARE, row.wired == "copy"
    gates = 1 + row.spread * rng.uniform(-1, 1, (2, n))
    return w.Wiring(
        _log_kernel(widths(n, *row.sigma)),
        row.w_pos,
        row.w_lex * gates[0],
        np.zeros(n) if copied else row.w_ref * gates[1],
        n_words,
        copy=row.w_ref if copied else 0.0,
        choice=np.eye(len(MECHANISMS))[np.arange(n_words) % 3] if row.wired == "switch" else None,
        guess=np.eye(n)[np.arange(n_words) % n] if row.wired == "guess" else None,
    )


def _named(words: Sequence[str], table: np.ndarray | None, names: Sequence[Any]) -> dict[str, Any]:
    """What each word stands for, from a one-hot table `[word, name]`."""
    found = [] if table is None else table.argmax(1).tolist()
    return {word: names[i] for word, i in zip(words, found, strict=False)}


def _converted(model: "PreTrainedModel", dtype: str) -> "PreTrainedModel":
    import torch

    return model.to(getattr(torch, dtype))
