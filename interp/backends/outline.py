"""Attention modules of models outside transformers' shared dispatch, found by what they return.

bloom, falcon, gptj, mpt and their like compute attention in code of their own, but under eager
attention each such module returns its whole pattern beside its output. That, and the input of its
output projection, are what the anatomy needs to know of an attention call.
"""

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from interp.backends.anatomy import OUTPUT_PROJECTIONS
from interp.backends.twins import eager_attention, evaluating

KV_HEADS = ("num_kv_heads", "num_key_value_heads", "n_kv_heads")


def watch_modules(model: Any, tokens: Tensor, calls: list) -> None:
    """Run one eager forward and describe its attention calls, as the shared dispatch would."""
    given: dict[int, Tensor] = {}
    found: list[tuple[nn.Module, Tensor]] = []

    def before(module: nn.Module, args: tuple) -> None:
        if args and isinstance(args[0], Tensor):
            given[id(module)] = args[0]

    def after(module: nn.Module, _args: tuple, out: Any) -> None:
        inside = {id(m) for m in module.modules()}
        known = any(id(m) in inside for m, _ in found)
        if _pattern(out, tokens.shape[1]) is not None and not known:
            found.append((module, out[1]))

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(eager_attention(model))
        model(tokens, use_cache=False, output_attentions=True)
    calls.extend(
        (module, _described(model, module, pattern, given))
        for module, pattern in found
        if output_projection(module) is not None
    )


def output_projection(attention: nn.Module) -> nn.Module | None:
    """The module that joins the heads' outputs, by its usual names."""
    own = (getattr(attention, name, None) for name in OUTPUT_PROJECTIONS)
    return next((m for m in own if isinstance(m, nn.Module)), None)


def _pattern(out: Any, n_tokens: int) -> Tensor | None:
    """The pattern `[1, head, query, key]` in a module's output, if there is one."""
    second = out[1] if isinstance(out, tuple) and len(out) > 1 else None
    if isinstance(second, Tensor) and second.ndim == 4 and second.shape[2:] == (n_tokens,) * 2:
        return second
    return None


def _described(
    model: Any, module: nn.Module, pattern: Tensor, given: dict[int, Tensor]
) -> dict[str, Any]:
    n_heads = pattern.shape[1]
    z = given[id(output_projection(module))]
    z = z.view(*z.shape[:-1], n_heads, -1)
    kv = next((getattr(module, n) for n in KV_HEADS if hasattr(module, n)), n_heads)
    return {
        "n_heads": n_heads,
        "n_kv_heads": kv,
        "d_head": z.shape[-1],
        "softcap": None,
        "window": _window(model.config, module),
        "sinks": False,
        "z": z,
    }


def _window(config: Any, module: nn.Module) -> int | None:
    """Width of a local layer, for configurations that name the kind of every layer."""
    kinds = getattr(config, "attention_layers", None)
    layer = getattr(module, "layer_id", getattr(module, "layer_idx", None))
    if kinds is None or layer is None or kinds[layer] != "local":
        return None
    return int(config.window_size)
