"""What forwards cost, on paper: operations, bytes and calls, from sizes and counts alone.

Work is a list of `Forward`s. Each has amounts of a few kinds (`TERMS`), which are facts of the
model and the lengths; how fast a machine does each kind is measured (`circuits.cost_machine`), so
that time = sum of amount / speed. A multiplication and an addition count as two operations.

With n tokens behind p cached ones, L layers, H query and K key-value heads of width d:

    step      weights of the layers run, in bytes: once a forward (`few`: the same, see `FEW`)
    dense     2 x weights of the layers run x n
    causal    4 H d L x n (n + 1) / 2    one plain sequence: masked pairs are skipped by the kernel
    masked    4 H d L x n (p + n)        anything packed, behind a cache, or in a sliding window: a
                                         mask is applied to all pairs, so a window saves no time
    rows      H L x rows x (p + n)       logits of attention rows that are read or edited
    logits    2 d_model d_vocab x rows
    join      2 K d L (p + n) numbers    cached and new keys and values, put together once a forward
    kept      rows of single heads that are brought back whole and looked at one by one
    edits     edits of a forward, each placed and made by itself

Left out: norms, activation functions, rotary embedding, sampling (all linear in tokens and far
below `dense`), and whatever is done with results afterwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

CHUNK = 4096
"""Tokens of one forward of a prefill (`interp.backends.hf.CHUNK`)."""
PACK = 512
"""Tokens of a packed forward of suffixes, at least (`interp.backends.hf.PACK`)."""
FEW = 16
"""Tokens up to which a forward costs about the same whatever their number: weights are read from
memory once, and matrix products are too thin to be efficient."""

TERMS: dict[str, str] = {
    "step": "each forward: weights through memory, calls",
    "few": f"the same of 2 to {FEW} tokens: batched decoding",
    "dense": "matrix products of the layers",
    "causal": "attention in a prefill",
    "masked": "attention behind a cache",
    "rows": "attention rows read or edited",
    "logits": "unembedding",
    "join": "copying keys and values",
    "kept": "looking at whole attention rows",
    "edits": "placing edits and making them",
}
"""Kinds of amount. `step`, `few` and `join` are bytes (a call costs so little beside the weights
that it is counted with them), `rows` attention logits, `kept` rows of single heads,
`edits` edits, the others operations."""


@dataclass(frozen=True)
class Sizes:
    """What the cost of a decoder depends on.

    Attributes:
        layer_weights: weights that multiply a token in one layer, on average over layers; of a
            mixture of experts only those of the experts that a token meets.
        all_weights: parameters in all, tied ones once: what memory holds.
        d_wide: the widest activation inside a layer (of the feed-forward part).
        masked_layers: layers that never skip a pair: sliding windows, soft-caps, learned sinks.
        itemsize: bytes of a number.
        limit: the longest sequence, None where the model does not say.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    d_vocab: int
    d_wide: int
    layer_weights: float
    all_weights: int
    masked_layers: int
    itemsize: int
    limit: int | None = None


def sizes_of(model: "HFModel") -> Sizes:
    """Read the sizes off a loaded model."""
    spec, layers = model.spec, model.anatomy.layers
    weights = [p for layer in layers for p in layer.parameters() if p.ndim > 1]
    by_hand = spec.softcap is not None or spec.has_sinks
    return Sizes(
        n_layers=spec.n_layers,
        n_heads=spec.n_heads,
        n_kv_heads=spec.n_kv_heads,
        d_head=spec.d_head,
        d_model=spec.d_model,
        d_vocab=spec.d_vocab,
        d_wide=max(max(p.shape[-2:]) for p in weights),
        layer_weights=sum(p.numel() * _share(model, p) for p in weights) / spec.n_layers,
        all_weights=sum(p.numel() for p in model.hf.parameters()),
        masked_layers=spec.n_layers if by_hand else sum(w is not None for w in spec.windows),
        itemsize=model.dtype.itemsize,
        limit=spec.context_length,
    )


def _share(model: "HFModel", weight: object) -> float:
    """Part of a weight that a token meets: all, or that of its experts."""
    config = model.hf.config.get_text_config()
    n = next((v for k in _EXPERTS if (v := getattr(config, k, None))), None)
    stacked = n is not None and weight.ndim == 3 and weight.shape[0] == n  # type: ignore[attr-defined]
    return config.num_experts_per_tok / n if stacked else 1.0


_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclass(frozen=True)
class Forward:
    """One forward of the model, or `times` equal ones.

    Attributes:
        n_new, n_before: tokens that run, and cached tokens in front of them.
        logits: positions whose logits are made.
        rows: positions whose attention rows are read, all heads of all layers run.
        head_rows: rows of single heads that an edit of their pattern or query computes anew.
        whole: rows kept entire, each of one head: they are held until they are looked at.
        edits: changes of a site that are made, each in rows of its own.
        layers: how many layers run; None for all.
        plain: one sequence that begins here: causal attention, no mask.
        gathered: rows of logits of the whole call that it belongs to, which are held together.
    """

    n_new: float
    n_before: float = 0
    logits: float = 0
    rows: float = 0
    head_rows: float = 0
    whole: float = 0
    edits: float = 0
    layers: float | None = None
    plain: bool = False
    gathered: float = 0
    times: float = 1

    def amounts(self, sizes: Sizes) -> dict[str, float]:
        """How much there is of each of `TERMS`, all `times` together."""
        s, n, keys = sizes, self.n_new, self.n_before + self.n_new
        layers = s.n_layers if self.layers is None else self.layers
        pair = 4 * s.n_heads * s.d_head
        masked = layers * s.masked_layers / s.n_layers if self.plain else layers
        few = 1 < n <= FEW
        found = {
            "few" if few else "step": layers * s.layer_weights * s.itemsize,
            "dense": 2 * s.layer_weights * layers * n,
            "causal": pair * (layers - masked) * n * (n + 1) / 2,
            "masked": pair * masked * n * keys,
            "rows": (s.n_heads * layers * self.rows + self.head_rows) * keys,
            "logits": 2 * s.d_model * s.d_vocab * self.logits,
            "join": 0 if self.plain else layers * kv_bytes(s, keys) / s.n_layers,
            "kept": self.whole,
            "edits": self.edits,
        }
        return {name: value * self.times for name, value in found.items()}


def operations(sizes: Sizes, amounts: Mapping[str, float]) -> float:
    """Floating-point operations of amounts; a row's logit is a product of two vectors."""
    dense = sum(amounts.get(k, 0.0) for k in ("dense", "causal", "masked", "logits"))
    return dense + 2 * sizes.d_head * amounts.get("rows", 0.0)


def total(sizes: Sizes, work: Iterable[Forward]) -> dict[str, float]:
    """Amounts of a list of forwards."""
    found = dict.fromkeys(TERMS, 0.0)
    for one in work:
        for name, value in one.amounts(sizes).items():
            found[name] += value
    return found


# -- what the instrument's calls run ----------------------------------------------------------


def prefill(n_tokens: int) -> list[Forward]:
    """A context read once, in chunks: the first is plain, later ones stand behind a cache."""
    starts = range(0, n_tokens, CHUNK)
    sizes = [min(CHUNK, n_tokens - s) for s in starts]
    return [
        Forward(n, s, plain=s == 0, logits=float(s + n == n_tokens))
        for s, n in zip(starts, sizes, strict=True)
    ]


def grow(n_before: int, n_tokens: int) -> list[Forward]:
    """More tokens read behind a context."""
    return [Forward(n_tokens, n_before, logits=1)] if n_tokens else []


@dataclass(frozen=True)
class Suffix:
    """A suffix of an `extend`: its tokens, how much context it sees, and what is wanted of it."""

    n_tokens: int
    n_before: int
    logits: float = 1
    rows: float = 0
    head_rows: float = 0
    edits: float = 0
    first: int = 0


def extend(sizes: Sizes, suffixes: Sequence[Suffix], *, shared: bool = False) -> list[Forward]:
    """Packed forwards of suffixes, which run together up to a pack.

    Args:
        shared: most suffixes are of the same tokens, so that each pack begins at the lowest layer
            in which one of them is edited (`first`); their common lower part runs once.
    """
    order = sorted(suffixes, key=lambda s: (s.n_before, s.first if shared else 0))
    budget = max(PACK, min(max(s.n_before for s in suffixes) // 4, 4 * PACK))
    groups: list[list[Suffix]] = []
    room = 0
    for one in order:
        if not groups or one.n_tokens > room:
            groups.append([])
            room = budget
        groups[-1].append(one)
        room -= one.n_tokens
    rows = sum(s.logits for s in suffixes)
    found = [_packed(sizes, group, min(s.first for s in group) if shared else 0, rows)
             for group in groups]  # fmt: skip
    begun = max((min(s.first for s in group) for group in groups), default=0)
    if shared and begun:
        stem = order[-1]
        found.append(
            Forward(stem.n_tokens, stem.n_before, layers=begun, logits=1, plain=not stem.n_before)
        )
    return found


def _packed(sizes: Sizes, group: Sequence[Suffix], begin: int, rows: float) -> Forward:
    return Forward(
        n_new=sum(s.n_tokens for s in group),
        n_before=max(s.n_before for s in group),
        logits=sum(s.logits for s in group),
        rows=sum(s.rows for s in group),
        head_rows=sum(s.head_rows for s in group),
        edits=sum(s.edits for s in group),
        layers=sizes.n_layers - begin,
        plain=len(group) == 1 and not group[0].n_before,
        gathered=rows,
    )


def generate(sizes: Sizes, suffixes: Sequence[Suffix], n_new: int) -> list[Forward]:
    """Greedy decoding: the suffixes, then token after token of all that go on, to the end."""
    found = []
    for first in extend(sizes, [replace(s, logits=1, first=0) for s in suffixes]):
        live = first.logits
        found.append(first)
        # tokens decoded so far stand behind the suffixes: half of them on average
        behind = first.n_before + first.n_new + live * (n_new - 1) / 2
        found.append(Forward(live, behind, logits=live, times=n_new - 1))
    return found


def kv_bytes(sizes: Sizes, n_tokens: float) -> float:
    """Keys and values of so many tokens, all layers, whole: never cut to a window."""
    s = sizes
    return 2 * s.n_layers * s.n_kv_heads * s.d_head * n_tokens * s.itemsize
