"""Second module trees over the same tensors: what a library is given in place of a user's model.

Booting a TransformerBridge on a model replaces its submodules for good, so a bridge is only ever
booted on a copy of the tree; the other way round, a plain model is built over the tensors of a
bridge that somebody brought. No weight is copied either way.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from interp.backends.versions import need
from interp.errors import ModelError

WRAPPED = "_original_component"
"""Where a bridge keeps the module that it stands for."""


def shared_copy(model: Any) -> Any:
    """A new module tree over the same parameters and buffers, with a configuration of its own."""
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, tensors)


def plain_model(bridge: Any) -> Any:
    """The transformers model that a bridge was booted on, as transformers builds it.

    Raises:
        ModelError: the bridge does not wrap a transformers model, or has lost some of its weights.
    """
    need("transformer-lens")
    from accelerate import init_empty_weights
    from transformers import PreTrainedModel

    wrapped = getattr(bridge, "original_model", None)
    if not isinstance(wrapped, PreTrainedModel):
        raise ModelError(
            f"the {type(bridge).__name__} wraps no transformers model: nothing to hold its logits "
            "against; boot a TransformerBridge from one"
        )
    with init_empty_weights(include_buffers=False):
        plain = type(wrapped)(copy.deepcopy(wrapped.config))
    tensors = _by_plain_name(wrapped)
    missing = sorted(plain.state_dict().keys() - tensors.keys())
    if missing:
        raise ModelError(
            f"the bridge lacks {len(missing)} weights of {type(wrapped).__name__} "
            f"({missing[0]} first); give the transformers model itself"
        )
    for name, module in plain.named_modules():
        for key in [*module._parameters, *module._buffers]:
            kept = module._parameters if key in module._parameters else module._buffers
            found = tensors.get(f"{name}.{key}" if name else key)
            # a bridge gives every unembedding a bias, of zeros where the model has none
            if found is not None and (kept[key] is not None or found.any()):
                kept[key] = found
    _to_one_device(plain)
    return plain.eval()


def _by_plain_name(wrapped: nn.Module) -> dict[str, Any]:
    """Parameters and buffers under the names that they had before the bridge took over."""
    found: dict[str, Any] = {}
    everything = [
        *wrapped.named_parameters(remove_duplicate=False),
        *wrapped.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in everything:
        found.setdefault(re.sub(rf"(^|\.){WRAPPED}(?=\.|$)", "", name).lstrip("."), tensor)
    return found


def _to_one_device(plain: nn.Module) -> None:
    """Buffers that had to be computed anew go where the weights are."""
    device = next(plain.parameters()).device
    for module in plain.modules():
        for key, tensor in module._buffers.items():
            if tensor is not None and tensor.device != device and device.type != "meta":
                module._buffers[key] = tensor.to(device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """No dropout and no gradients; every module's own training flag is given back."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        for m, _ in flags:
            m.training = False
        with torch.no_grad():
            yield
    finally:
        for m, flag in flags:
            m.training = flag


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Eager attention, which has patterns to show; then as it was.

    Models outside the shared dispatch refuse the change, but go by their configuration all the
    same. (To ask a fast path for its patterns is no way out: falcon's then forgets its mask.)
    """
    before = model.config._attn_implementation
    try:
        if model._can_set_attn_implementation():
            model.set_attn_implementation("eager")
        else:
            model.config._attn_implementation = "eager"
        yield
    finally:
        if model._can_set_attn_implementation():
            model.set_attn_implementation(before)
        else:
            model.config._attn_implementation = before
