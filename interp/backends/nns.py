"""nnsight as a backend: every forward is a trace, every site an envoy or an operation of a source.

This file maps names and runs; what reads and edits mean is in `interp.backends.whole`. Inside an
attention module nnsight's source hooks reach what torch hooks cannot: the call of the attention
function, or, in models outside the shared dispatch, their own softmax. Source hooks replace a
module's forward for good, so a trace runs on a copy of the tree over the same weights.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from interp.backends.anatomy import Anatomy, first
from interp.backends.edits import HEAD_SITES
from interp.backends.outline import output_projection
from interp.backends.twins import eager_attention, evaluating, shared_copy
from interp.backends.versions import need
from interp.backends.whole_forward import WholeForward
from interp.errors import ModelError, SiteError

N_PROBED = 4
"""Tokens of a forward that finds out what runs."""


@dataclass(frozen=True)
class Style:
    """How the source of an attention module shows its heads.

    Attributes:
        holds: what the name of the operation holds.
        which: the last such operation, or the first.
        query_at: place of the query among the operation's arguments, keys and values behind it;
            None where the operation is a softmax, which shows the pattern alone.
        heads_first: the operation returns its outputs as `[row, head, pos, d_head]`.
    """

    holds: str
    which: int
    query_at: int | None
    heads_first: bool = False


Visit = Callable[[str, Tensor], Tensor]
Intervene = Callable[..., Any]

STYLES = (
    Style("attention_interface_", -1, 1),
    Style("self__attn_", 0, 0, heads_first=True),
    Style("softmax_", 0, None),
)
"""The call of the shared dispatch; a method of the module; the softmax in its own code."""


@dataclass(frozen=True)
class Reach:
    """A style as one model has it: the name of the operation, and how many heads it serves."""

    style: Style
    operation: str
    n_heads: int


@dataclass(frozen=True)
class Stop:
    """Envoys of one layer, in the order in which a forward meets them."""

    layer: int
    block: Any
    attention: Any
    projection: Any
    writer: Any
    mlp: Any


class NNsightTap:
    """Runs traces of an nnsight wrapper; see `interp.backends.whole.Tap`."""

    name = "nnsight"

    def __init__(self, envoy: Any, plain: nn.Module, anatomy: Anatomy, **how: Any) -> None:
        """`envoy` wraps a tree like that of `plain`; `how` goes to every trace (`remote=True`)."""
        need("nnsight")
        self.envoy = envoy
        self.anatomy = anatomy
        self.how: dict[str, Any] = how
        paths = {id(m): path for path, m in plain.named_modules()}

        def at(module: nn.Module | None) -> Any:
            return None if module is None else _envoy_at(envoy, paths[id(module)])

        self.stops = [
            Stop(layer, at(block), at(attention), at(output_projection(attention)),
                 at(anatomy.writers[layer]), at(anatomy.mlp[layer]))
            for layer, (block, attention) in enumerate(
                zip(anatomy.layers, anatomy.attention, strict=True)
            ) if attention is not None
        ]  # fmt: skip

    @cached_property
    def reach(self) -> Reach:
        """Looked for when heads are asked for: reading a source leaves a mark on its module."""
        return _reach(self.envoy, self.stops[0].attention, self.anatomy)

    @property
    def writes(self) -> frozenset[str]:
        """Where there is only a softmax to hook, its result can be replaced."""
        return frozenset({"pattern"} if self.reach.style.query_at is None else ())

    def refusal(self, kind: str, layer: int, *, verb: str) -> str | None:
        """Outside the shared dispatch, what a module does not show apart is refused."""
        del verb
        if kind in ("q", "k", "v") and self.reach.style.query_at is None:
            return (
                f"the source of {self.anatomy.spec.architecture} shows no {kind} of heads at one "
                "place; read or edit pattern or z"
            )
        if kind in ("attn_out", "mlp_out") and self.anatomy.projections[layer] is None:
            return (
                f"modules of {self.anatomy.spec.architecture} do not return what they add alone; "
                "use z, resid_pre or resid_post"
            )
        return None

    def run(self, tokens: Tensor, forward: WholeForward) -> tuple[Tensor, WholeForward]:
        """See `interp.backends.whole.Tap`."""
        module, stops = self.envoy._module, self.stops
        inside = any(kind in HEAD_SITES for kind, _ in forward.places)
        reach = self.reach if inside else None
        _ship(self.how, forward)
        with evaluating(module), eager_attention(module):
            return traced(self.envoy, tokens, stops, forward, reach, **self.how)

    def free(self, tokens: Tensor, intervene: Intervene, *given: Any) -> Tensor:
        """Logits `[row, pos, d_vocab]` of one trace whose body is somebody else's.

        `intervene(envoy, *given)` is run inside it and may read and edit whatever nnsight reaches.
        """
        module = self.envoy._module
        _ship(self.how, intervene, *given)
        with evaluating(module), eager_attention(module):
            return freely(self.envoy, tokens, intervene, given, **self.how)


def freely(envoy: Any, tokens: Tensor, intervene: Intervene, given: tuple, **how: Any) -> Tensor:
    """One trace of a free body."""
    from nnsight import save

    with envoy.trace(tokens, use_cache=False, **how):
        intervene(envoy, *given)
        logits = save(envoy.output.logits)
    return logits  # noqa: RET504 (nnsight runs the body, and brings back what has a name)


def traced(
    envoy: Any,
    tokens: Tensor,
    stops: Sequence[Stop],
    forward: WholeForward,
    reach: Reach | None,
    **how: Any,
) -> tuple[Tensor, WholeForward]:
    """One trace. What its body names is what travels, when it runs elsewhere."""
    from nnsight import save

    with envoy.trace(tokens, use_cache=False, **how):
        walk(stops, forward, reach)
        logits = save(envoy.output.logits)
        forward = save(forward)
    return logits, forward


def walk(stops: Sequence[Stop], forward: WholeForward, reach: Reach | None) -> None:
    """Visit the places of a forward, inside a trace, in the order in which they come.

    `reach` is needed where there are places inside heads.
    """
    for stop in stops:
        kinds = {kind for kind, layer in forward.places if layer == stop.layer}

        def visit(kind: str, x: Tensor, layer: int = stop.layer) -> Tensor:
            return forward.visit(kind, layer, x)

        if "resid_pre" in kinds:
            stop.block.input = visit("resid_pre", stop.block.input)
        if reach is not None and kinds & set(HEAD_SITES):
            (_softmax if reach.style.query_at is None else _call)(stop, kinds, visit, reach)
        if "attn_out" in kinds:
            _on_output(stop.attention, "attn_out", visit)
        if "attn_write" in kinds:
            _on_output(stop.writer, "attn_write", visit)
        if "mlp_in" in kinds:
            stop.mlp.input = visit("mlp_in", stop.mlp.input)
        if "mlp_out" in kinds:
            _on_output(stop.mlp, "mlp_out", visit)
        if "resid_post" in kinds:
            _on_output(stop.block, "resid_post", visit)


def _call(stop: Stop, kinds: set[str], visit: Visit, reach: Reach) -> None:
    """The call of an attention function: queries, keys, values go in, outputs and pattern out."""
    call, style = stop.attention.source.node(reach.operation), reach.style
    if kinds & {"q", "k", "v"}:
        args, kwargs = call.inputs
        new = list(args)
        for i, kind in enumerate(("q", "k", "v"), start=style.query_at or 0):
            if kind in kinds:
                new[i] = visit(kind, args[i].transpose(1, 2)).transpose(1, 2)
        call.inputs = (tuple(new), kwargs)
    if kinds & {"pattern", "z"}:
        z, weights, *rest = call.output
        if "pattern" in kinds:
            if weights is None:
                raise SiteError(
                    "the model runs under fused attention, which shows no pattern; ask for z, or "
                    "for a model that was loaded with attn_implementation='eager'"
                )
            visit("pattern", weights)
        if "z" in kinds:
            z = visit("z", z.transpose(1, 2) if style.heads_first else z)
            call.output = (z.transpose(1, 2) if style.heads_first else z, weights, *rest)


def _softmax(stop: Stop, kinds: set[str], visit: Visit, reach: Reach) -> None:
    """A softmax returns the pattern; what the output projection is given are the heads' outputs."""
    if "pattern" in kinds:
        call = stop.attention.source.node(reach.operation)
        call.output = visit("pattern", call.output)
    if "z" in kinds:
        joined = stop.projection.input
        z = visit("z", joined.unflatten(-1, (reach.n_heads, -1)))
        stop.projection.input = z.flatten(-2)


def _on_output(envoy: Any, kind: str, visit: Visit) -> None:
    out = envoy.output
    new = visit(kind, first(out))
    if new is not first(out):
        envoy.output = (new, *out[1:]) if isinstance(out, tuple) else new


def _envoy_at(envoy: Any, path: str) -> Any:
    for part in path.split(".") if path else ():
        envoy = envoy[int(part)] if part.isdigit() else getattr(envoy, part)
    return envoy


def _reach(envoy: Any, attention: Any, anatomy: Anatomy) -> Reach:
    """How this family's attention is reached.

    Names are numbered by nnsight's own rules, which change between its versions, so they are read
    off the source.

    Raises:
        ModelError: none of the known ways.
    """
    names = attention.source.names
    for style in STYLES:
        found = [name for name in names if style.holds in name]
        if style.query_at is None and len(found) > 1:
            # branches of one forward, of which a configuration takes one
            found = [name for name in found if _runs(envoy, attention, name)]
        if found:
            return Reach(style, found[style.which], anatomy.spec.n_heads)
    raise ModelError(
        f"the source of {anatomy.spec.architecture}'s attention shows no call that nnsight could "
        f"hook (looked for {', '.join(s.holds for s in STYLES)}); use a model of another family"
    )


def _runs(envoy: Any, attention: Any, operation: str) -> bool:
    """Whether a short forward comes by this operation."""
    from nnsight.intervention.interleaver import OutOfOrderError

    tokens = torch.arange(1, 1 + N_PROBED)[None]
    with evaluating(envoy._module), eager_attention(envoy._module):
        try:
            with envoy.trace(tokens.to(envoy.device), use_cache=False):
                _ = attention.source.node(operation).output
        except OutOfOrderError:
            return False
    return True


def _ship(how: dict[str, Any], *things: Any) -> None:
    """Let the code that a remote trace needs travel with it: no server has these packages."""
    if not how.get("remote"):
        return
    from nnsight import register

    for thing in things:
        home = getattr(thing, "__module__", "builtins").split(".")[0]
        if home not in ("builtins", "torch"):
            register(sys.modules[home])


def wrap(module: nn.Module) -> Any:
    """An nnsight wrapper; the module gets nnsight's forward for good, so give it a copy."""
    need("nnsight")
    from nnsight import NNsight

    return NNsight(module)


def unwrapped(envoy: Any) -> nn.Module:
    """The plain module behind a wrapper: a copy of its tree without nnsight's forwards.

    Raises:
        ModelError: the weights have not been loaded.
    """
    need("nnsight")
    module = envoy._module
    if any(p.device.type == "meta" for p in module.parameters()):
        raise ModelError(
            f"the weights of this {type(envoy).__name__} are not loaded; make it with dispatch=True"
        )
    plain = shared_copy(module)
    for each in plain.modules():
        if each.__dict__.pop("__nnsight__", None) is not None:
            del each.__dict__["forward"]
    return plain
