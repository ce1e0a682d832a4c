"""Key-value caches that never truncate: one that fills a prefix, one that extends it for free.

transformers' own caches cut sliding-window layers to their window, which loses the positions of
the keys; these keep every key, and the mask applies the window.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _WholeLayer(CacheLayerMixin):
    """What both kinds share: a layer that holds all the tokens it was given."""

    is_sliding = False
    is_compileable = False

    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True
        self.n_seen = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002
        """Nothing to do: the layer is ready when it is made."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that the next forward will meet."""
        return self.n_seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.n_seen

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


class FillingLayer(_WholeLayer):
    """Writes into buffers made once at full length, so that chunks are not copied again."""

    def __init__(
        self, n_tokens: int, keys: Tensor | None = None, values: Tensor | None = None
    ) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        if keys is not None and values is not None:
            self.update(keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object):
        """Store the new tokens; return all tokens so far, as views."""
        if self.keys is None:
            self.keys = _buffer(key_states, self.n_tokens)
            self.values = _buffer(value_states, self.n_tokens)
        stop = self.n_seen + key_states.shape[-2]
        assert self.keys is not None and self.values is not None
        self.keys[:, :, self.n_seen : stop] = key_states
        self.values[:, :, self.n_seen : stop] = value_states
        self.n_seen = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop]


class ExtendingLayer(_WholeLayer):
    """A view of a prefix with new tokens behind it; the prefix is never written to.

    The new tokens are kept only when more will follow (`keep`), as in decoding.
    """

    def __init__(self, keys: Tensor | None, values: Tensor | None, n_prefix: int, keep: bool):
        super().__init__()
        self.prefix: tuple[Tensor, Tensor] | None = None
        if keys is not None and values is not None:
            self.prefix = (keys[:, :, :n_prefix], values[:, :, :n_prefix])
        self.n_seen = n_prefix
        self.keep = keep
        self.tail: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object):
        """Return prefix, kept tokens and new tokens, joined."""
        tail = (key_states, value_states)
        if self.tail is not None:
            tail = _joined(self.tail, tail)
        if self.keep:
            self.tail = tail
            self.n_seen += key_states.shape[-2]
        return tail if self.prefix is None else _joined(self.prefix, tail)


def _joined(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([a[0], b[0]], dim=-2), torch.cat([a[1], b[1]], dim=-2)


def contents(cache: Cache) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Keys and values of every layer."""
    layers = [layer for layer in cache.layers if isinstance(layer, CacheLayerMixin)]
    return tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers)


def filling(
    n_layers: int,
    n_tokens: int,
    keys: Sequence[Tensor | None] = (),
    values: Sequence[Tensor | None] = (),
) -> Cache:
    """A cache for a prefill of exactly `n_tokens`, the first of which may be there already."""
    nothing = (None,) * n_layers
    pairs = zip(keys or nothing, values or nothing, strict=True)
    return Cache(layers=[FillingLayer(n_tokens, k, v) for k, v in pairs])


def extending(
    keys: Sequence[Tensor | None], values: Sequence[Tensor | None], n_prefix: int, *, keep: bool
) -> Cache:
    """A cache that continues the first `n_prefix` tokens of a prefix, which may be none."""
    pairs = zip(keys, values, strict=True)
    return Cache(layers=[ExtendingLayer(k, v, n_prefix, keep) for k, v in pairs])


def _buffer(like: Tensor, n_tokens: int) -> Tensor:
    return like.new_empty((*like.shape[:-2], n_tokens, like.shape[-1]))
