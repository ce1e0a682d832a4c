"""What goes into and comes out of the instrument: `Prefix`, `RowRead`, `SiteRead`, `Trace`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import SiteError
from interp.sites import Edit, Head, Site, SiteKind
from interp.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class RowRead:
    """Attention rows to read, reduced inside the layer.

    Attributes:
        positions: for each suffix, the positions inside it whose rows are read (a prefill is one
            suffix that begins at 0).
        keys: for each suffix, `[row, slot]` absolute key positions whose weight is wanted;
            -1 fills unused slots. All suffixes have the same number of slots.
        directions: `[row, d_model]` residual directions, rows of all suffixes in order; brings
            back the contribution of every head, and of every named key, along them.
        whole: heads of which complete rows are kept.
        peaks: whether the argmax of each row is wanted; a pass over the rows less without.
        through_final_norm: the directions live behind the final norm (they are unembeddings);
            its gain is folded in and its scale at the row is frozen at its own value.
    """

    positions: tuple[tuple[int, ...], ...]
    keys: tuple[Int[Tensor, "row slot"], ...] | None = None
    directions: Float[Tensor, "row d_model"] | None = None
    whole: tuple[Head, ...] = ()
    peaks: bool = True
    through_final_norm: bool = True

    def __post_init__(self) -> None:
        n_rows = [len(p) for p in self.positions]
        if self.keys is not None and [len(k) for k in self.keys] != n_rows:
            raise SiteError("keys must hold one row for each position of each suffix")
        if self.directions is not None and len(self.directions) != sum(n_rows):
            raise SiteError(f"directions must have {sum(n_rows)} rows, not {len(self.directions)}")


@dataclass(frozen=True)
class SiteRead:
    """Activations to bring back, from any site but `pattern`.

    `positions` as in `RowRead`. A `q` or `z` site without a head reads all heads, `k` and `v`
    all key-value heads; with a (query) head they read the key-value head that it uses.
    """

    sites: tuple[Site, ...]
    positions: tuple[tuple[int, ...], ...]


Read = RowRead | SiteRead


@dataclass(frozen=True, eq=False)
class RowTrace:
    """Rows of all suffixes, in order; layers without attention hold NaN, and -1 for argmax.

    Attributes:
        suffix, position: where each row was read.
        argmax: absolute position of the key with the largest weight.
        top: its weight.
        at_keys: weights on the named keys; 0 where a slot is unused or not visible.
        toward, toward_all: contributions along the row's direction, in logits.
        whole: complete rows, by head; a list with one `[n_keys]` array a row, over positions.
    """

    suffix: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    argmax: Int[Tensor, "layer head row"] | None = None
    top: Float[Tensor, "layer head row"] | None = None
    at_keys: Float[Tensor, "layer head row slot"] | None = None
    toward: Float[Tensor, "layer head row slot"] | None = None
    toward_all: Float[Tensor, "layer head row"] | None = None
    whole: Mapping[Head, tuple[Tensor, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one `extend` (or the reads of a `prefill`) brought back.

    Attributes:
        logits: `[row, d_vocab]`, float32, rows of all suffixes in the order asked for.
        rows: one for each `RowRead`, in the order asked for.
        sites: activations by site, `[row, width]` (`z` without head: `[row, head, d_head]`).
        writes: how many (token, head) places each edit changed.
    """

    logits: Float[Tensor, "row d_vocab"]
    rows: tuple[RowTrace, ...] = ()
    sites: Mapping[Site, Tensor] = field(default_factory=dict)
    writes: tuple[int, ...] = ()

    def to_activation_cache(self, bridge: Any = None, *, batch: int = 1) -> Any:
        """The sites and whole rows as TransformerLens' `ActivationCache`, `[batch, pos, ...]`.

        Args:
            bridge: a TransformerBridge, for the cache's own methods.
            batch: how many suffixes, of one length, the trace holds.

        Raises:
            SiteError: activations of single heads, or of sequences of different lengths.
        """
        from interp.backends.lens_cache import activation_cache

        return activation_cache(self, bridge, batch=batch)


@dataclass(frozen=True, eq=False)
class Gradients:
    """An objective, the logits behind it, and activations with the objective's gradients.

    Sites of heads are `[pos, head, d_head]` (`k`, `v`: key-value heads), others `[pos, d_model]`,
    over the whole suffix.
    """

    value: float
    logits: Float[Tensor, "row d_vocab"]
    activations: Mapping[Site, Tensor]
    grads: Mapping[Site, Tensor]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values of a context that was read once.

    Attributes:
        tokens: the context, `[pos]`.
        keys, values: for each layer `[1, kv_head, pos, d_head]`, whole: never cut to a window.
        logits: `[d_vocab]`, float32, after the last token.
        trace: reads of the prefill itself.
        edits: for backends that keep no keys and run the context again: the edits that it was read
            with, at absolute positions.
    """

    tokens: Int[Tensor, " pos"]
    keys: tuple[Tensor | None, ...]
    values: tuple[Tensor | None, ...]
    logits: Float[Tensor, " d_vocab"] | None
    trace: Trace | None = None
    edits: tuple[Edit, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.nbytes for t in (*self.keys, *self.values) if t is not None)

    def crop(self, n_tokens: int) -> "Prefix":
        """The first `n_tokens` of the context, as views: exact, since attention is causal.

        Raises:
            SiteError: the prefix is shorter than that.
        """
        if not 0 < n_tokens <= len(self):
            raise SiteError(f"cannot crop a prefix of {len(self)} tokens to {n_tokens}")
        if n_tokens == len(self):
            return self
        keys = tuple(None if k is None else k[:, :, :n_tokens] for k in self.keys)
        values = tuple(None if v is None else v[:, :, :n_tokens] for v in self.values)
        edits = tuple(e for e in (_before(e, n_tokens) for e in self.edits) if e.positions)
        return Prefix(self.tokens[:n_tokens], keys, values, None, edits=edits)


def _before(edit: Edit, n_tokens: int) -> Edit:
    """The part of a context's edit that is left of the first `n_tokens`."""
    kept = [i for i, p in enumerate(edit.positions or ()) if p < n_tokens]
    value = edit.value
    if value is not None and value.ndim == 2:
        value = value[kept]
    return replace(edit, value=value, positions=tuple((edit.positions or ())[i] for i in kept))


def everything(spec: ModelSpec, n_tokens: int, *, batch: int = 1) -> tuple[Read, ...]:
    """Reads of all that an activation cache holds, for `batch` suffixes of `n_tokens` each.

    Whole patterns are among it: `n_layers x n_heads x n_tokens x n_tokens` numbers.
    """
    where = (tuple(range(n_tokens)),) * batch
    kinds: tuple[SiteKind, ...] = (
        "resid_pre", "q", "k", "v", "z", "attn_out", "mlp_out", "resid_post",
    )  # fmt: skip
    sites = tuple(Site(kind, layer) for kind in kinds for layer in range(spec.n_layers))
    return RowRead(where, whole=tuple(spec.heads()), peaks=False), SiteRead(sites, where)


def nothing(n_layers: int) -> Prefix:
    """The prefix of sequences that stand alone: no token."""
    absent = (None,) * n_layers
    return Prefix(torch.empty(0, dtype=torch.long), absent, absent, None)


def cat_rows(parts: list[RowTrace]) -> RowTrace:
    """Join row traces of groups of suffixes along the row axis."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str, dim: int) -> Tensor | None:
        values = [getattr(p, name) for p in parts]
        return None if values[0] is None else torch.cat(values, dim=dim)

    flat = {name: joined(name, 0) for name in ("suffix", "position")}
    deep = {name: joined(name, 2) for name in ("argmax", "top", "at_keys", "toward", "toward_all")}
    whole = {h: tuple(r for p in parts for r in p.whole[h]) for h in parts[0].whole}
    return RowTrace(**flat, **deep, whole=whole)  # type: ignore[arg-type]
