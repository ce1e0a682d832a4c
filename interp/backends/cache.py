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

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object):
        """Store the new tokens; return all tokens so far, as views."""
        if self.keys is None:
            self.keys = _buffer(key_states, self.n_tokens)
            self.values = _buffer(value_states, self.n_tokens)
        stop = self.n_seen + key_states.shape[-2]
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
        self.prefix = None if keys is None else (keys[:, :, :n_prefix], values[:, :, :n_prefix])
        self.n_seen = n_prefix
        self.keep = keep
        self.tail: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object):
        """Return prefix, kept tokens and new tokens, joined."""
        tail = (key_states, value_states)
        if self.tail is not None:
            tail = tuple(torch.cat(pair, dim=-2) for pair in zip(self.tail, tail, strict=True))
        if self.keep:
            self.tail = tail
            self.n_seen += key_states.shape[-2]
        assert self.prefix is not None, "a layer without a prefix was asked for its keys"
        return tuple(torch.cat(pair, dim=-2) for pair in zip(self.prefix, tail, strict=True))


def filling(n_layers: int, n_tokens: int) -> Cache:
    """A cache for a prefill of exactly `n_tokens`."""
    return Cache(layers=[FillingLayer(n_tokens) for _ in range(n_layers)])


def extending(
    keys: Sequence[Tensor | None], values: Sequence[Tensor | None], n_prefix: int, *, keep: bool
) -> Cache:
    """A cache that continues the first `n_prefix` tokens of a prefix."""
    layers = [ExtendingLayer(k, v, n_prefix, keep) for k, v in zip(keys, values, strict=True)]
    return Cache(layers=layers)


def _buffer(like: Tensor, n_tokens: int) -> Tensor:
    return like.new_empty((*like.shape[:-2], n_tokens, like.shape[-1]))
