"""Attention heads written by hand: what one looks at and what it writes, compiled to matrices.

The residual stream is cut into places of one dimension a word, as in RASP's compiled transformers
(Tracr, arXiv 2301.05062): the token here, the token before, a note, the output. A head is two
lists of terms. A term of `looks` raises the attention between a query that reads this and a key
that reads that; a term of `writes` reads this where the head looks and adds that where it stands.
We differ from Tracr in that the result fits an ordinary Llama: RMS norms stay, so that logits have
wide gaps instead of exact values, and positions come from rotary pairs, the fast ones for
distances and the slow ones, which hardly turn in a thousand tokens, for content.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from jaxtyping import Float

from interp.sites import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BOS, UNKNOWN = "<s>", "<unk>"
MARKS = (".", ":", "?")
ARTICLE = "the"
ADJECTIVES = ("old", "tall", "cold", "dark")
NOUNS = ("river", "house", "garden", "tower", "bridge")
VERBS = ("stands", "runs", "lies")
PLACINGS = ("near", "under", "behind")
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fruit": (("ripe", "sweet", "sour", "juicy"), ("apple", "plum", "pear", "fig")),
    "animal": (("tame", "wild", "hungry", "furry"), ("wolf", "bear", "hawk", "frog")),
    "metal": (("rusty", "shiny", "molten", "heavy"), ("iron", "gold", "zinc", "lead")),
    "music": (("loud", "tuned", "cracked", "borrowed"), ("drum", "harp", "flute", "horn")),
}
"""Kind of needle: its key words, and the values that stand behind any of them."""

KEYS = tuple(word for keys, _ in KINDS.values() for word in keys)
VALUES = tuple(word for _, values in KINDS.values() for word in values)
WORDS = (ARTICLE, *ADJECTIVES, *NOUNS, *VERBS, *PLACINGS, *KEYS, *VALUES)
VOCAB = (BOS, UNKNOWN, *MARKS, *WORDS)

PLACES = ("token", "previous", "note", "out")
ONE = len(PLACES) * len(VOCAB)
"""A dimension that is 1 at every token."""
JUNK = slice(ONE + 1, ONE + 28)
"""Where random heads write; it fills the whole up to a multiple of many numbers of heads."""
D_MODEL = JUNK.stop
N_LAYERS, N_HEADS, D_HEAD = 3, 8, 64
CONTEXT_LENGTH = 1024

ROPE_THETA = 1e24
PAIR_SPEED = ROPE_THETA ** (-np.arange(D_HEAD // 2) / (D_HEAD // 2))
"""Radians that a rotary pair turns a token: 1, .18, .032, .0056, .001, ..."""
CONTENT = (*range(6, D_HEAD // 2), *range(6 + D_HEAD // 2, D_HEAD))
"""Head dimensions that turn less than .04 rad in a thousand tokens."""

SHARP = 24.0
"""Attention logit of one term met in full; a key that meets half of it weighs e-12 as much."""
NOISE_JUNK, NOISE_OUT = 0.1, 0.035
"""Of one distractor among eight; where there are more, all together are no louder."""
UNEMBED = 0.65
"""Answers then have a probability near .95, so that an ablation can lower and raise it."""

_SIDE = np.sqrt(SHARP * np.sqrt(D_HEAD))  # half of it in the query, half in the key

Reads = Mapping[int, float]
Term = tuple[Reads, Reads]


@dataclass(frozen=True)
class Circuit:
    """What a head does.

    Attributes:
        looks: pairs (the query reads, the key reads); met in full, each adds 1 x `SHARP`.
        turns: rotary pair -> (weight in units of `SHARP`, angle by which the key runs ahead):
            adds weight x cos(speed x distance - angle).
        writes: pairs (read at the key, added at the query).
    """

    looks: tuple[Term, ...] = ()
    turns: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    writes: tuple[Term, ...] = ()


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Matrices of one head; grouped heads share `k` and `v`."""

    q: Float[np.ndarray, "d_head d_model"]
    k: Float[np.ndarray, "d_head d_model"]
    v: Float[np.ndarray, "d_head d_model"]
    o: Float[np.ndarray, "d_model d_head"]


# -- the language that circuits are written in ------------------------------------------------


def at(place: str, words: str | Iterable[str], weight: float = 1.0) -> dict[int, float]:
    """The dimensions of some words in a place."""
    start = PLACES.index(place) * len(VOCAB)
    chosen = (words,) if isinstance(words, str) else words
    return {start + VOCAB.index(word): weight for word in chosen}


def const(weight: float = 1.0) -> dict[int, float]:
    """The same at every token."""
    return {ONE: weight}


def match(
    query: str, key: str, words: Iterable[str] = WORDS, *, weight: float = 1.0
) -> tuple[Term, ...]:
    """Look where the place `key` holds the word that the place `query` holds here."""
    return tuple((at(query, word, weight), at(key, word)) for word in words)


def copies(
    source: str, target: str, gain: float = 1.0, words: Iterable[str] = WORDS
) -> tuple[Term, ...]:
    """Add to the place `target` the word that the place `source` holds there."""
    return tuple((at(source, word), at(target, word, gain)) for word in words)


def wastes(gain: float = 0.3) -> tuple[Term, ...]:
    """Write every token where nobody but distractors reads."""
    dims = range(JUNK.start, JUNK.stop)
    return tuple((at("token", VOCAB[i :: len(dims)]), {dim: gain}) for i, dim in enumerate(dims))


def rests(query: Reads) -> Term:
    """Look at the beginning of the sequence, where there is nothing to copy."""
    return query, at("token", BOS)


REST = rests(const(0.5))
"""Half a match: a head without anything to look at looks at the beginning."""
NO_MARK: Term = (const(), at("token", (*MARKS, UNKNOWN), -1.0))
"""Punctuation never matches: behind the key in the question stands a question mark."""


def distance(tokens: int, weight: float = 6.0) -> dict[int, tuple[float, float]]:
    """Look exactly so many tokens back, among a thousand."""
    shares = (6, 5, 3, 4, 1)  # the next best distance then falls behind by .14 of the weight
    return {
        pair: (weight * share / sum(shares), tokens * PAIR_SPEED[pair])
        for pair, share in enumerate(shares)
    }


def farthest(weight: float = 500.0) -> dict[int, tuple[float, float]]:
    """Look at the first token, whatever it is: sin(d / 1000) grows up to a thousand tokens."""
    return {4: (weight, np.pi / 2)}


# -- models ---------------------------------------------------------------------------------------


def fill(
    circuits: Mapping[Head, Circuit],
    rng: np.random.Generator,
    *,
    grouped: int = 1,
    n_heads: int = N_HEADS,
) -> list[list[HeadWeights]]:
    """Weights `[layer][head]`: the circuits where they belong, distractors everywhere else."""
    heads, loud = [], float(np.sqrt(N_HEADS / n_heads))
    for layer in range(N_LAYERS):
        row: list[HeadWeights] = []
        for first in range(0, n_heads, grouped):
            members = [Head(layer, first + i) for i in range(grouped)]
            planted = {h: compiled(circuits[h], layer) for h in members if h in circuits}
            shared = next(iter(planted.values()), None)
            if shared is None and grouped > 1:
                shared = distractor(rng, layer)
            row += [
                planted[h] if h in planted else distractor(rng, layer, shared, loud=loud)
                for h in members
            ]
        heads.append(row)
    return heads


def assemble(
    heads: list[list[HeadWeights]], *, grouped: int = 1, window: int | None = None
) -> "PreTrainedModel":
    """A Llama, or a Mistral where there is a window, with these heads and silent MLPs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    settings = _settings(len(heads[0]), grouped)
    with torch.random.fork_rng(devices=[]):  # every random weight is overwritten
        model: Any = (
            LlamaForCausalLM(LlamaConfig(**settings))
            if window is None
            else MistralForCausalLM(MistralConfig(**settings, sliding_window=window))
        )
    weights = {name: np.zeros(p.shape) for name, p in model.named_parameters()}
    weights |= {name: np.ones(p.shape) for name, p in model.named_parameters() if "norm" in name}
    weights |= _embeddings()
    for layer, row in enumerate(heads):
        weights |= _attention(layer, row, grouped)
    model.load_state_dict({n: torch.tensor(a, dtype=torch.float32) for n, a in weights.items()})
    return model.eval()


def tokenizer() -> "PreTrainedTokenizerFast":
    """One token a word, case apart; all words that are not ours are one token."""
    from tokenizers import normalizers

    return word_tokenizer(VOCAB, normalizer=normalizers.Lowercase())


def word_tokenizer(
    vocab: Sequence[str], *, normalizer: Any = None, eos: str | None = None
) -> "PreTrainedTokenizerFast":
    """One token a word of a vocabulary that holds `BOS` and `UNKNOWN`; others are `UNKNOWN`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocab)}
    rules = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    if normalizer is not None:
        rules.normalizer = normalizer
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    rules.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules,
        bos_token=BOS,
        eos_token=eos,
        unk_token=UNKNOWN,
        model_input_names=["input_ids", "attention_mask"],
    )


def _settings(n_heads: int, grouped: int) -> dict[str, Any]:
    return {
        "vocab_size": len(VOCAB),
        "hidden_size": D_MODEL,
        "intermediate_size": 4,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads // grouped,
        "head_dim": D_HEAD,
        "max_position_embeddings": CONTEXT_LENGTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": False,
        "bos_token_id": VOCAB.index(BOS),
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _embeddings() -> dict[str, np.ndarray]:
    embed = np.stack([_row(at("token", word)) + _row(const()) for word in VOCAB])
    unembed = UNEMBED * np.stack([_row(at("out", word)) for word in VOCAB])
    return {"model.embed_tokens.weight": embed, "lm_head.weight": unembed}


def _attention(layer: int, row: list[HeadWeights], grouped: int) -> dict[str, np.ndarray]:
    pre = f"model.layers.{layer}.self_attn"
    inward = "head inside model -> (head inside) model"
    return {
        f"{pre}.q_proj.weight": rearrange([h.q for h in row], inward),
        f"{pre}.k_proj.weight": rearrange([h.k for h in row[::grouped]], inward),
        f"{pre}.v_proj.weight": rearrange([h.v for h in row[::grouped]], inward),
        f"{pre}.o_proj.weight": rearrange(
            [h.o for h in row], "head model inside -> model (head inside)"
        ),
    }


def compiled(circuit: Circuit, layer: int) -> HeadWeights:
    """Matrices of a circuit that stands in a layer."""
    unit = 1 / _scale(layer)
    q, k, v, o = _empty()
    for slot, (query, key) in zip(CONTENT[: len(circuit.looks)], circuit.looks, strict=True):
        q[slot] = _SIDE * unit * _row(query)
        k[slot] = _SIDE * unit * _row(key)
    for pair, (weight, angle) in circuit.turns.items():
        q[pair, ONE] = _SIDE * unit * weight
        # rotary embeddings turn dimensions i and i + d_head / 2 together
        k[pair, ONE] = _SIDE * unit * np.cos(angle)
        k[pair + D_HEAD // 2, ONE] = _SIDE * unit * np.sin(angle)
    for slot, (read, written) in enumerate(circuit.writes):
        v[slot] = unit * _row(read)
        o[:, slot] = _row(written)
    return HeadWeights(q, k, v, o)


def distractor(
    rng: np.random.Generator,
    layer: int,
    beside: HeadWeights | None = None,
    *,
    loud: float = 1.0,
) -> HeadWeights:
    """A random head that looks about, and writes mostly where nobody reads.

    Its keys do not show values, lest one of many such heads is fond of a needle by chance.
    `beside` is a head whose keys and values it shares; `loud` scales what it writes.
    """
    unit = 1 / _scale(layer)
    q, k, v, o = _empty()
    n_words, n_junk = len(VOCAB), JUNK.stop - JUNK.start
    q[CONTENT, :n_words] = unit * rng.normal(size=(len(CONTENT), n_words))
    k[CONTENT, :n_words] = unit * rng.normal(size=(len(CONTENT), n_words))
    k[:, list(at("token", VALUES))] = 0
    v[:, :n_words] = unit * rng.normal(size=(D_HEAD, n_words))
    v[:, JUNK] = unit * rng.normal(size=(D_HEAD, n_junk))
    unit = loud / np.sqrt(D_HEAD)
    o[JUNK] = rng.normal(size=(n_junk, D_HEAD)) * NOISE_JUNK * unit
    o[list(at("out", VOCAB))] = rng.normal(size=(n_words, D_HEAD)) * NOISE_OUT * unit
    return HeadWeights(q, k, v, o) if beside is None else _sharing(q, o, beside)


def _sharing(q: np.ndarray, o: np.ndarray, beside: HeadWeights) -> HeadWeights:
    """The random head on a planted one's keys: as weak as on its own, and as blind to needles."""
    marking = [*at("previous", KEYS), *at("token", VALUES)]
    q = np.where(beside.k[:, marking].any(1, keepdims=True), 0, q)
    return HeadWeights(q * np.sqrt(len(CONTENT)) / _SIDE, beside.k, beside.v, o)


def _empty() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    shape = (D_HEAD, D_MODEL)
    return np.zeros(shape), np.zeros(shape), np.zeros(shape), np.zeros(shape[::-1])


def _row(reads: Reads) -> np.ndarray:
    row = np.zeros(D_MODEL)
    row[list(reads)] = list(reads.values())
    return row


def _scale(layer: int) -> float:
    """What a norm makes of a 1: a token and the constant stand there, later the token before."""
    return float(np.sqrt(D_MODEL / (2 if layer == 0 else 3)))
