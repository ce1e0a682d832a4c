"""Binding written by hand into the attention of a GPT-2: from groups in a context to an answer.

As in `probes.planted_weights`, the residual stream is cut into named parts and a head is pairs of
what it reads. Here logits are exact, not merely far apart: positions are learned embeddings, of one
dimension a group and role; norms divide by a constant, since their epsilon dwarfs any variance,
and subtract nothing, since a last dimension brings every sum to zero; a head that finds nothing
looks at the first token, where there is nothing to copy; matches are so sharp that what is not met
weighs e-32. Layers 4 and 5 do nothing: an answer can be seen that is finished.

Parts named `_a`, `_b`, `_c` belong to the roles of a clause in their order; b is asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from einops import rearrange
from jaxtyping import Float

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N_LAYERS, D_HEAD = 6, 64
EPSILON = 2.0**30
"""Of all norms; their gain is its root, so that they leave a residual of mean 0 as it is."""
MATCH = 64.0
"""Attention logit of one thing met; half of it decides. Powers of two are exact in bfloat16."""
HEADROOM = 1.25
"""A gate is a share of attention, which stays below one."""

Rows = Float[np.ndarray, "rank d_model"]
Look = tuple[Rows, Rows]
Mechanism = Literal["positional", "lexical", "reflexive"]
MECHANISMS: tuple[Mechanism, ...] = ("positional", "lexical", "reflexive")


@dataclass(frozen=True, eq=False)
class Wiring:
    """What differs between models. Words are indices into the pools, `n_words` of them each.

    A mechanism of weight 0 is absent; a lexical or reflexive weight is 0 for all groups or none.

    Attributes:
        kernel: attention logits of the positional head, (group asked for, group looked at).
        w_pos: what that head writes, times its attention.
        w_lex, w_ref: what the other two write, by the group that they find.
        copy: the pointer is written as an answer of this weight before it was looked up; 0: not.
        choice: 1 where a word of role a makes the model follow the mechanism, or None: all at once.
        guess: 1 where a word of role a stands for a group, whatever the context says, or None.
    """

    kernel: Float[np.ndarray, "group group"]
    w_pos: float
    w_lex: Float[np.ndarray, " group"]
    w_ref: Float[np.ndarray, " group"]
    n_words: int
    copy: float = 0.0
    choice: Float[np.ndarray, "word mechanism"] | None = None
    guess: Float[np.ndarray, "word group"] | None = None


@dataclass(frozen=True, eq=False)
class Circuit:
    """A head.

    Attributes:
        looks: pairs (read at the query, read at the key) whose products add up to its attention.
        writes: pairs (read at the key, written at the query).
    """

    looks: tuple[Look, ...] = ()
    writes: tuple[Look, ...] = ()


@dataclass(frozen=True)
class Space:
    """Named parts of the residual stream; the last dimension is minus the sum of all others."""

    parts: Mapping[str, slice]
    width: int

    def __call__(self, name: str) -> Rows:
        """The dimensions of a part, `[size, d_model]`."""
        return np.eye(self.width)[self.parts[name]]

    def any(self, name: str) -> Rows:
        """Their sum, `[1, d_model]`: whether anything stands in a part that holds one thing."""
        return self(name).sum(0, keepdims=True)


def space(wiring: Wiring) -> Space:
    """The parts of a model."""
    words, groups = wiring.n_words, len(wiring.kernel)
    sizes = {
        # from the embeddings: word, place in the context, place in the question
        **dict.fromkeys(("word_a", "word_b", "word_c"), words),
        **dict.fromkeys(("group_a", "group_b", "group_c"), groups),
        **dict.fromkeys(("const", "first", "is_b", "other"), 1),
        **dict.fromkeys(("asked_a", "asked_c", "last", "rest"), 1),
        # in the context: b's key, what b answers by either mechanism, c's pointer to b
        **dict.fromkeys(("key", "by_key", "by_pointer", "pointer"), words),
        # fetched by the question's c
        "found_group": groups, "found_pointer": words,
        # gathered by the last token
        "at_group": groups, "at_word": words, "at_pointer": words, "at_choice": len(MECHANISMS),
        "out": words,
    }  # fmt: skip
    ends = np.cumsum(list(sizes.values())).tolist()
    parts = {name: slice(end - sizes[name], end) for name, end in zip(sizes, ends, strict=True)}
    return Space(parts, D_HEAD * max(4, -(-(ends[-1] + 1) // D_HEAD)))


def circuits(s: Space, wiring: Wiring) -> tuple[dict[str, Circuit], ...]:
    """Named heads of each layer."""
    return _bind(s, wiring), _fetch(s), _gather(s, wiring), _retrieve(s, wiring)


# -- layers -------------------------------------------------------------------------------------


def _bind(s: Space, wiring: Wiring) -> dict[str, Circuit]:
    """In the context, words learn of earlier words of their group; b also keeps its answer."""
    heads = {
        "key": Circuit((_met(s("group_b"), s("group_a")), _sink(s)), ((s("word_a"), s("key")),)),
        "pointer": Circuit(
            (_met(s("group_c"), s("group_b")), _sink(s)), ((s("word_b"), s("pointer")),)
        ),
    }
    if wiring.w_lex.any():
        heads["gate_lexical"] = _gate(s, wiring.w_lex, "by_key")
    if wiring.w_ref.any():
        heads["gate_reflexive"] = _gate(s, wiring.w_ref, "by_pointer")
    return heads


def _gate(s: Space, weights: np.ndarray, target: str) -> Circuit:
    """Word b writes itself, times the weight of its group: the share of attention it pays itself.

    All logits that share attention are small, lest half precision rounds them off.
    """
    top = HEADROOM * weights.max()
    logit = np.log(weights / (top - weights))
    looks = (
        _met(s("group_b"), s("group_b")),
        (logit[:, None] * s("group_b"), s("group_b")),
        (-MATCH * s("const"), s("const") - s("first")),
    )
    return Circuit(looks, ((s("word_b"), top * s(target)),))


def _fetch(s: Space) -> dict[str, Circuit]:
    """The question's c finds its like in the context, and takes group and pointer from there."""
    looks = (
        _met(s("word_c"), s("word_c")),
        _met(s("asked_c"), s.any("group_c")),
        _sink(s, 1.5),
    )
    writes = ((s("group_c"), s("found_group")), (s("pointer"), s("found_pointer")))
    return {"fetch": Circuit(looks, writes)}


def _gather(s: Space, wiring: Wiring) -> dict[str, Circuit]:
    """The last token takes group and pointer from the question's c, the word of the question's a.

    In variants the pointer goes straight to the output, or the word also sets what is followed, or
    which group is meant.
    """
    pointer = wiring.copy * s("out") if wiring.copy else s("at_pointer")
    from_c: tuple[Look, ...] = (
        (s("found_pointer"), pointer),
        (s("found_group"), s("at_group")),
    )
    from_a = s("at_word")
    if wiring.guess is not None:
        from_c = from_c[:1]
        from_a = from_a + wiring.guess @ s("at_group")
    if wiring.choice is not None:
        from_a = from_a + wiring.choice @ s("at_choice")
    return {
        "gather_c": Circuit((_met(s("last"), s("asked_c")), _sink(s)), from_c),
        "gather_a": Circuit((_met(s("last"), s("asked_a")), _sink(s)), ((s("word_a"), from_a),)),
    }


def _retrieve(s: Space, wiring: Wiring) -> dict[str, Circuit]:
    """The last token looks its pointers up among the words b of the context."""
    group, kernel = s.any("at_group"), np.maximum(wiring.kernel.T, -MATCH / 2)
    positional = (
        (kernel @ s("at_group"), s("group_b")),
        (MATCH * (group - s("const")), s("is_b")),
        (-MATCH * group, s("first")),
        (-MATCH * s("const"), s("other")),
    )
    heads: dict[Mechanism, tuple[float, tuple[Look, ...], Look]] = {
        "positional": (wiring.w_pos, positional, (s("word_b"), wiring.w_pos * s("out"))),
        "lexical": (
            wiring.w_lex.max(),
            (_met(s("at_word"), s("key")), _sink(s)),
            (s("by_key"), s("out")),
        ),
        "reflexive": (
            wiring.w_ref.max(),
            (_met(s("at_pointer"), s("word_b")), _met(s("const"), s("is_b")), _sink(s, 1.5)),
            (s("by_pointer"), s("out")),
        ),
    }
    return {
        name: Circuit((*looks, _shut(s, name)), (writes,))
        for name, (weight, looks, writes) in heads.items()
        if weight
    }


def _shut(s: Space, mechanism: Mechanism) -> Look:
    """The head finds nothing where the word asked for chose another mechanism."""
    mine = s("at_choice")[MECHANISMS.index(mechanism)][None]
    return 2 * MATCH * (s.any("at_choice") - mine), s("first")


def _met(query: Rows, key: Rows) -> Look:
    return MATCH * query, key


def _sink(s: Space, met: float = 0.5) -> Look:
    """The first token is looked at unless more than so many things are met elsewhere."""
    return met * MATCH * s("const"), s("first")


# -- models -------------------------------------------------------------------------------------


def assemble(
    s: Space,
    layers: Sequence[Mapping[str, Circuit]],
    embeddings: Mapping[str, np.ndarray],
    head: np.ndarray,
) -> "PreTrainedModel":
    """A GPT-2 with these heads, silent MLPs, and norms that only divide by a constant."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(head),
        n_positions=len(embeddings["wpe"]),
        n_embd=s.width,
        n_layer=N_LAYERS,
        n_head=s.width // D_HEAD,
        n_inner=4,
        layer_norm_epsilon=EPSILON,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # every random weight is overwritten
        model = GPT2LMHeadModel(config)
    weights = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    gains = [name for name in weights if ".ln_" in name and name.endswith("weight")]
    weights |= {name: np.full(weights[name].shape, np.sqrt(EPSILON)) for name in gains}
    weights |= {f"transformer.{name}.weight": rows for name, rows in embeddings.items()}
    weights["lm_head.weight"] = head
    for layer in range(N_LAYERS):
        heads = list(layers[layer].values()) if layer < len(layers) else []
        weights |= _attention(layer, heads, s.width)
    model.load_state_dict({n: torch.tensor(a, dtype=torch.float32) for n, a in weights.items()})
    return model.eval()


def _attention(layer: int, heads: Sequence[Circuit], width: int) -> dict[str, np.ndarray]:
    n_heads, pre = width // D_HEAD, f"transformer.h.{layer}.attn"
    q, k, v, o = (np.zeros((n_heads, D_HEAD, width)) for _ in range(4))
    # heads without a task look at everything alike, and write nothing of it
    v[len(heads) :] = np.eye(width)[:D_HEAD]
    for h, circuit in enumerate(heads):
        _fill(q[h], k[h], circuit.looks)
        _fill(v[h], o[h], circuit.writes)
    inward = rearrange(
        [np.sqrt(D_HEAD) * q, k, v], "part head rank model -> model (part head rank)"
    )
    outward = rearrange(o, "head rank model -> (head rank) model")
    return {f"{pre}.c_attn.weight": inward, f"{pre}.c_proj.weight": balanced(outward)}


def _fill(left: np.ndarray, right: np.ndarray, pairs: Sequence[Look]) -> None:
    """Lay pairs into the rows of two matrices."""
    for side, rows in zip((left, right), zip(*pairs, strict=True), strict=True):
        stacked = np.vstack(rows)
        side[: len(stacked)] = stacked


def balanced(rows: Rows) -> Rows:
    """What is added to the residual, with its sum taken off in the last dimension."""
    return np.concatenate([rows[:, :-1], -rows[:, :-1].sum(1, keepdims=True)], axis=1)
