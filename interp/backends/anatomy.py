"""Find the parts of a decoder by watching it run, not by knowing its class.

One short forward with hooks on every module shows which modules call the shared attention
dispatch (and with what soft-cap, window, sinks), which norm stands between an attention output and
the residual, which norm is the last. What is found is checked against the numbers that passed:
an output projection that does not reproduce the attention's output is not used.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import ModelError
from interp.spec import ModelSpec

OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "dense", "out_proj", "wo")
N_WATCHED = 16
"""Tokens of the watched forward; enough for rotary and windows to be non-trivial."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm seen from outside: gain, whether it centres, and its scale at a given input."""

    module: nn.Module
    gain: Tensor
    centres: bool

    def fold(self, direction: Tensor) -> Tensor:
        """The direction before the norm that the frozen norm maps onto `direction`."""
        folded = direction * self.gain.to(direction)
        return folded - folded.mean(-1, keepdim=True) if self.centres else folded

    def scale(self, x: Tensor) -> Tensor:
        """By what the norm divides its input, from what it really returns: `[..., 1]`."""
        with torch.no_grad():
            # forward, not __call__: this runs inside hooks of the same module
            centred = x.float() - x.float().mean(-1, keepdim=True) if self.centres else x.float()
            zero = self.module.forward(torch.zeros_like(x)).float()
            out = self.module.forward(x).float() - zero
            norm = (centred * self.gain.to(centred)).norm(dim=-1, keepdim=True)
            return norm / out.norm(dim=-1, keepdim=True).clamp(min=1e-30)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The modules of a decoder that reads and edits hook on to.

    `writers` are the modules whose output, times the residual multiplier, attention adds to the
    residual *before* the feed-forward part reads it; None where the two work side by side and
    there is no `resid_mid`. `in_tuple` says which layers return a tuple.
    """

    spec: ModelSpec
    layers: tuple[nn.Module, ...]
    attention: tuple[nn.Module | None, ...]
    mlp: tuple[nn.Module | None, ...]
    projections: tuple[nn.Module | None, ...]
    post_norms: tuple[Norm | None, ...]
    final_norm: Norm | None
    residual_multiplier: float
    writers: tuple[nn.Module | None, ...]
    in_tuple: tuple[bool, ...]

    @property
    def can_write(self) -> bool:
        """Contributions can be read: heads are only projected, and the final norm is known."""
        known = all(self.projections[i] is not None for i in self.spec.attention_layers)
        return known and self.final_norm is not None

    def layer_of(self, module: nn.Module) -> int:
        """Layer whose attention this module is."""
        return self._index[id(module)]

    @property
    def _index(self) -> dict[int, int]:
        return {id(m): i for i, m in enumerate(self.attention) if m is not None}


@dataclass(eq=False)
class _Watch:
    """Everything that one watched forward showed."""

    calls: list[tuple[nn.Module, dict[str, Any]]]
    inputs: dict[int, Tensor]
    outputs: dict[int, Tensor]
    tuples: set[int]


def first(value: Any) -> Any:
    """The tensor of a module's output, which may be a tuple."""
    return value[0] if isinstance(value, tuple) else value


def dissect(model: Any, run: Callable[[Tensor, list], None], n_vocab: int) -> Anatomy:
    """Watch `run(tokens, calls)`, one forward that records its attention calls, and name parts.

    Raises:
        ModelError: no attention goes through the shared dispatch, or layers are irregular.
    """
    watch = _observe(model, run, n_vocab)
    if not watch.calls:
        raise ModelError(
            f"{type(model).__name__} does not send its attention through transformers' shared "
            "dispatch, so its rows cannot be read; use a model of another family"
        )
    layers = _layers(model, [m for m, _ in watch.calls])
    attention = _attention_by_layer(layers, watch)
    spec = _spec(model, attention, watch)
    multiplier = float(getattr(model.config.get_text_config(), "residual_multiplier", 1.0))
    post = tuple(_post_norm(la, at, watch) for la, at in zip(layers, attention, strict=True))
    return Anatomy(
        spec,
        tuple(layers),
        attention,
        tuple(_mlp(layer) for layer in layers),
        tuple(None if a is None else _projection(a, watch) for a in attention),
        post,
        _final_norm(model, layers, watch),
        multiplier,
        tuple(
            _writer(layer, attn, norm, watch, multiplier)
            for layer, attn, norm in zip(layers, attention, post, strict=True)
        ),
        tuple(id(layer) in watch.tuples for layer in layers),
    )


def _observe(model: nn.Module, run: Callable[[Tensor, list], None], n_vocab: int) -> _Watch:
    watch = _Watch([], {}, {}, set())

    def keep(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor) and isinstance(first(out), Tensor):
            watch.inputs[id(module)] = given
            watch.outputs[id(module)] = first(out)
            if isinstance(out, tuple):
                watch.tuples.add(id(module))

    tokens = torch.randint(n_vocab, (1, N_WATCHED), generator=torch.Generator().manual_seed(0))
    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        run(tokens, watch.calls)
    return watch


def _layers(model: nn.Module, attentions: list[nn.Module]) -> nn.ModuleList:
    """The module list whose entries hold one attention each (some may hold none)."""
    wanted = {id(a) for a in attentions}
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            held = [sum(id(m) in wanted for m in layer.modules()) for layer in module]
            if sum(held) == len(wanted) and max(held) == 1:
                return module
    raise ModelError(
        f"{type(model).__name__}: no list of layers with one attention each was found; "
        "only decoder-only models with one attention per layer are supported"
    )


def _attention_by_layer(layers: nn.ModuleList, watch: _Watch) -> tuple[nn.Module | None, ...]:
    fired = {id(m): m for m, _ in watch.calls}
    if len(watch.calls) != len(fired):
        raise ModelError("an attention module ran more than once in one forward; not supported")
    return tuple(
        next((fired[id(m)] for m in layer.modules() if id(m) in fired), None) for layer in layers
    )


def _spec(model: Any, attention: tuple[nn.Module | None, ...], watch: _Watch) -> ModelSpec:
    seen = {id(m): call for m, call in watch.calls}
    shapes = {(c["n_heads"], c["n_kv_heads"], c["d_head"]) for c in seen.values()}
    if len(shapes) != 1:
        raise ModelError(f"layers differ in heads, kv heads or width {sorted(shapes)}; unsupported")
    n_heads, n_kv_heads, d_head = shapes.pop()
    config = model.config.get_text_config()
    softcaps = {c["softcap"] for c in seen.values()}
    return ModelSpec(
        architecture=type(model).__name__,
        n_layers=len(attention),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_model=model.get_input_embeddings().embedding_dim,
        d_vocab=model.get_output_embeddings().weight.shape[0],
        attention_layers=tuple(i for i, a in enumerate(attention) if a is not None),
        windows=tuple(None if a is None else seen[id(a)]["window"] for a in attention),
        softcap=softcaps.pop() if len(softcaps) == 1 else None,
        has_sinks=any(c["sinks"] for c in seen.values()),
        context_length=getattr(config, "max_position_embeddings", None)
        or getattr(config, "n_positions", None),
    )


def _mlp(layer: nn.Module) -> nn.Module | None:
    names = ("mlp", "feed_forward", "block_sparse_moe", "ffn")
    return next((getattr(layer, n) for n in names if hasattr(layer, n)), None)


def _projection(attention: nn.Module, watch: _Watch) -> nn.Module | None:
    """The output projection, if the attention returns just what it returns."""
    for name in OUTPUT_PROJECTIONS:
        module = getattr(attention, name, None)
        if module is None or id(module) not in watch.outputs:
            continue
        same = torch.equal(
            watch.outputs[id(module)], watch.outputs.get(id(attention), torch.empty(0))
        )
        call = next(c for m, c in watch.calls if m is attention)
        z = call["z"].flatten(-2)
        if same and torch.equal(watch.inputs[id(module)].reshape(z.shape), z):
            return module
    return None


def projection_weight(module: Any) -> Tensor:
    """`[head x d_head, d_model]`, whichever way round the module keeps it."""
    transposed = type(module).__name__ == "Conv1D"
    return module.weight if transposed else module.weight.T


def _post_norm(layer: nn.Module, attention: nn.Module | None, watch: _Watch) -> Norm | None:
    """The norm that an attention output passes before it is added to the residual, if any."""
    if attention is None:
        return None
    out = watch.outputs[id(attention)]
    for module in layer.modules():
        given = watch.inputs.get(id(module))
        same = given is not None and given.shape == out.shape and torch.equal(given, out)
        if same and _is_norm(module):
            return measure_norm(module, out.shape[-1], out)
    return None


def _writer(
    layer: nn.Module, attention: nn.Module | None, post: Norm | None, watch: _Watch, times: float
) -> nn.Module | None:
    """The module whose output makes the residual that some later module of the layer reads."""
    if attention is None or id(layer) not in watch.inputs:
        return None
    writer = attention if post is None else post.module
    middle = watch.inputs[id(layer)] + times * watch.outputs[id(writer)]
    for module in layer.modules():
        given = watch.inputs.get(id(module))
        if given is None or given.shape != middle.shape:
            continue
        if torch.allclose(given, middle, rtol=1e-3, atol=1e-5):
            return writer
    return None


def _final_norm(model: nn.Module, layers: nn.ModuleList, watch: _Watch) -> Norm | None:
    inside = {id(m) for layer in layers for m in layer.modules()}
    last = watch.outputs[id(layers[-1])]
    for module in model.modules():
        given = watch.inputs.get(id(module))
        if id(module) in inside or given is None or not _is_norm(module):
            continue
        if given.shape == last.shape and torch.equal(given, last):
            return measure_norm(module, last.shape[-1], last)
    return None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def measure_norm(module: nn.Module, width: int, like: Tensor) -> Norm:
    """Read gain and centring off a norm's answers: classes disagree on how they store a gain.

    On a vector of alternating signs, mean 0 and mean square 1, every norm returns sign x gain +
    bias; on a vector of ones a centring norm returns its bias alone.
    """
    with torch.no_grad():
        ones = torch.ones(1, 1, width, dtype=like.dtype, device=like.device)
        signs = ones.clone()
        signs[..., 1::2] = -1
        bias = module(torch.zeros_like(ones)).float()
        gain = (module(signs).float() - bias) * signs.float()
        centres = bool((module(ones).float() - bias).abs().max() < 1e-2 * gain.abs().max())
    return Norm(module, gain.flatten(), centres)
