"""TransformerLens as a backend: a TransformerBridge runs forwards, its hook points are the sites.

This file maps names and runs; what reads and edits mean is in `interp.backends.whole`. A bridge
that is booted here is booted on a copy of the module tree, since booting rewrites what it is given;
a bridge that a user brings is run as it is, under hooks that are gone afterwards.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from interp.backends.anatomy import Anatomy
from interp.backends.twins import evaluating, shared_copy
from interp.backends.versions import need
from interp.backends.whole_forward import Place, WholeForward
from interp.errors import ModelError
from interp.hook_names import BARE, HOOKS
from interp.spec import ModelSpec

N_PROBED = 4
"""Tokens of the forward that finds out which hook points fire."""


def boot(plain: Any, spec: ModelSpec) -> Any:
    """A TransformerBridge over the same weights; `plain` is left as it is.

    Raises:
        ModelError: TransformerLens has no adapter for the architecture.
    """
    need("transformer-lens")
    with quiet():
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        twin = shared_copy(plain)
        if getattr(twin.config, "num_key_value_heads", None) is not None:
            # configurations may carry a number that their model does not go by
            twin.config.num_key_value_heads = spec.n_kv_heads
        try:
            return build_bridge_from_module(twin, type(plain).__name__, hf_config=twin.config)
        except Exception as error:  # adapters raise kinds of their own
            raise ModelError(
                f"TransformerLens cannot bridge {type(plain).__name__} ({_line(error)}); "
                "load it without backend="
            ) from error


class LensTap:
    """Runs a bridge with hooks; see `interp.backends.whole.Tap`."""

    name = "lens"
    writes = frozenset({"pattern"})

    def __init__(self, bridge: Any, anatomy: Anatomy) -> None:
        self.bridge = bridge
        rotary = self._fires([f"blocks.0.{n}" for n in ("attn.hook_cos", HOOKS["q"])])
        names: dict[str, str] = HOOKS | ({} if rotary else BARE)
        layers = range(anatomy.spec.n_layers)
        self.names = {(k, la): f"blocks.{la}.{name}" for k, name in names.items() for la in layers}
        for layer, norm in enumerate(anatomy.post_norms):
            # hook_attn_out is behind a norm where there is one, and behind a multiplier in others
            inside = HOOKS["attn_out"] if norm is None else "hook_attn_out"
            self.names["attn_write", layer] = f"blocks.{layer}.{inside}"
        self.fired = self._fires(list(self.names.values()))

    def refusal(self, kind: str, layer: int, *, verb: str) -> str | None:
        """A hook point that this bridge lacks, or that never fires, is refused."""
        del verb
        name = self.names[kind, layer]
        if name in self.fired:
            return None
        return f"{name} does not fire in this bridge; load the same object without backend="

    def run(self, tokens: Tensor, forward: WholeForward) -> tuple[Tensor, WholeForward]:
        """See `interp.backends.whole.Tap`."""
        # what attention returns before what it adds: without a norm between, they are one place
        places = sorted(forward.places, key=lambda p: p[0] == "attn_write")
        hooks = [(self.names[p], _visiting(forward, p)) for p in places]
        return self._forward(tokens, hooks), forward

    def _forward(self, tokens: Tensor, hooks: list) -> Tensor:
        with evaluating(self.bridge), self.bridge.hooks(fwd_hooks=hooks):
            return self.bridge(tokens.to(self.bridge.cfg.device), return_type="logits")

    def _fires(self, names: list[str]) -> set[str]:
        """Which of these hook points a short forward reaches."""
        seen: set[str] = set()

        def noting(name: str) -> Any:
            return lambda _x, hook: seen.add(name)  # noqa: ARG005 (TransformerLens names it)

        known = [n for n in names if n in self.bridge.hook_dict]
        self._forward(torch.arange(1, 1 + N_PROBED)[None], [(n, noting(n)) for n in known])
        return seen


def _visiting(forward: WholeForward, place: Place) -> Any:
    def hook(x: Tensor, hook: Any) -> Tensor | None:  # noqa: ARG001 (TransformerLens names it)
        new = forward.visit(*place, x)
        return None if new is x else new

    return hook


@contextmanager
def quiet() -> Iterator[None]:
    """TransformerLens' and its dependencies' warnings at import and boot are not the user's."""
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning, UserWarning, SyntaxWarning):
            warnings.filterwarnings("ignore", category=kind)
        yield


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
