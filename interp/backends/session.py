"""The attention function that transformers calls while the instrument runs a forward.

Registered once under the name `mnemoscope`; it finds the session of the running forward in a
context variable. Outputs come from scaled-dot-product attention; rows that were asked for are
computed from the same queries and keys and reduced at once; edits act on the heads' outputs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from interp import rows
from interp.layout import Layout

NAME = "mnemoscope"
ROW_BUDGET = {"cpu": 2**20}
"""Attention logits held at once, in numbers: on a CPU what its caches hold (4 MB of float32)."""
GPU_ROW_BUDGET = 2**26

_SESSION: ContextVar["Session | None"] = ContextVar("mnemoscope_session", default=None)

LayerHook = Callable[["LayerCall"], Tensor]
InputHook = Callable[[nn.Module, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class LayerCall:
    """One attention layer in the middle of a forward: what edits and reads get to see."""

    def __init__(self, module, query, key, value, z, *, visible, scaling, softcap, sinks) -> None:
        self.module: nn.Module = module
        self.query: Tensor = query
        self.key: Tensor = key
        self.value: Tensor = value
        self.z: Tensor = z
        self.scaling: float = scaling
        self.softcap: float | None = softcap
        self.sinks: Tensor | None = sinks
        self.visible: Callable[[Tensor], Tensor] = visible

    def logits(self, queries: Tensor) -> Tensor:
        """Attention logits `[head, row, key]` of chosen packed queries."""
        return rows.row_logits(
            self.query[:, queries],
            self.key,
            scaling=self.scaling,
            visible=self.visible(queries),
            softcap=self.softcap,
        )

    def blocks(self, queries: Tensor, *, n_heads: int | None = None) -> Iterator[Tensor]:
        """The queries in blocks whose logits (of all heads, or of so many) fit the budget."""
        budget = ROW_BUDGET.get(queries.device.type, GPU_ROW_BUDGET)
        size = max(1, budget // ((n_heads or self.query.shape[0]) * self.key.shape[1]))
        yield from queries.split(size)


class Session:
    """One forward: where its tokens stand, and what happens inside its attention layers."""

    def __init__(
        self,
        layout: Layout | None,
        *,
        on_layer: LayerHook | None = None,
        on_inputs: InputHook | None = None,
        calls: list | None = None,
    ) -> None:
        self.layout = layout
        self.on_layer = on_layer
        self.on_inputs = on_inputs
        self.calls = calls
        self._device_layout: dict[torch.device, Layout] = {}

    def layout_on(self, device: torch.device) -> Layout:
        """The layout, moved once to each device that holds layers."""
        assert self.layout is not None
        if device not in self._device_layout:
            self._device_layout[device] = self.layout.to(device)
        return self._device_layout[device]

    def mask(self, mask_function: Callable, device: torch.device) -> Tensor | None:
        """What the model's own mask rule says at our positions: `[1, 1, query, key]` or None.

        transformers gives the rule (causal, sliding, chunked) as a function of indices; it gets
        absolute positions here, so that windows hold whatever the packing.
        """
        layout = self.layout_on(torch.device(device))
        if layout.plain and mask_function is causal_mask_function:
            return None
        rule = mask_function(0, 0, layout.q_pos[:, None], layout.k_pos[None, :])
        return (rule & layout.visible())[None, None]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make this the session of the forwards inside."""
        token = _SESSION.set(self)
        try:
            yield
        finally:
            _SESSION.reset(token)


def _mask(batch_size: int, q_length: int, kv_length: int, **kwargs: Any) -> Tensor | None:
    session = _SESSION.get()
    if session is None or session.layout is None:
        return sdpa_mask(batch_size, q_length, kv_length, **kwargs)
    return session.mask(kwargs.get("mask_function", causal_mask_function), kwargs["device"])


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,  # noqa: ARG001 (part of the protocol; zero outside training)
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention protocol: query `[batch, head, pos, d]`, keys not repeated."""
    if position_bias is not None:
        raise NotImplementedError("attention with a position bias is not supported")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    session = _SESSION.get()
    if session is not None and session.on_inputs is not None:
        query, key, value = session.on_inputs(module, query, key, value)
    call = LayerCall(
        module, query[0], key[0], value[0], query[0],
        visible=_visibility(session, attention_mask, query, key),
        scaling=scaling, softcap=softcap, sinks=s_aux,
    )  # fmt: skip
    if softcap is None and s_aux is None:
        z = _sdpa(query, key, value, attention_mask, scaling)
    else:
        z = _by_hand(call, query).to(query.dtype)[None]
    if session is not None and session.calls is not None:
        session.calls.append((module, _describe(query, key, z, softcap, sliding_window, s_aux)))
    if session is not None and session.on_layer is not None:
        call.z = z[0]
        z = session.on_layer(call)[None]
    return z.contiguous(), None


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """`[batch, pos, head, d_head]`; the flash kernel wherever there is one."""
    group = query.shape[1] // key.shape[1]
    # with a mask, CUDA has no fused kernel for grouped heads and would build T x T
    grouped = group > 1 and (mask is None or query.device.type == "cpu")
    if group > 1 and not grouped:
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling,
        is_causal=mask is None and query.shape[2] > 1, enable_gqa=grouped,
    )  # fmt: skip
    return out.transpose(1, 2)


def _by_hand(call: LayerCall, query: Tensor) -> Tensor:
    """`[pos, head, d_head]` where SDPA cannot: soft-capped logits, learned sinks. In blocks."""
    everything = torch.arange(query.shape[2], device=query.device)
    parts = [rows.attend(call.logits(b), call.value, call.sinks) for b in call.blocks(everything)]
    return rearrange(torch.cat(parts, dim=1), "head pos d -> pos head d")


def _visibility(
    session: Session | None, mask: Tensor | None, query: Tensor, key: Tensor
) -> Callable[[Tensor], Tensor]:
    if mask is not None:
        return lambda queries: mask[0, 0, queries]
    if session is not None and session.layout is not None:
        return session.layout_on(query.device).visible
    offset = key.shape[2] - query.shape[2]
    columns = torch.arange(key.shape[2], device=query.device)
    return lambda queries: columns[None] <= queries[:, None] + offset


def _describe(query, key, z, softcap, window, sinks) -> dict[str, Any]:
    """What the anatomy needs of one attention call."""
    return {
        "n_heads": query.shape[1],
        "n_kv_heads": key.shape[1],
        "d_head": z.shape[-1],
        "softcap": softcap,
        "window": window,
        "sinks": sinks is not None,
        "z": z,
    }


def register() -> None:
    """Make the attention function known to transformers; harmless when done twice."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
