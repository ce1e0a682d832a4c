"""Weights of heads as TransformerLens' factored matrices, with the norms around them folded in.

A bridge gives the weights as the checkpoint has them. What a head reads has passed a norm, whose
gain (and centring) belongs to the circuit; so do the gains of a norm behind the attention and of
the final norm before the unembedding. Norms' scales are numbers per token and drop out of all
ratios. Not folded: gains of query-key norms, rotary embeddings.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.backends.anatomy import Norm, measure_norm
from interp.backends.lens import quiet
from interp.backends.twins import evaluating
from interp.backends.versions import need
from interp.sites import Head

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_PROBED = 4
"""Tokens of the forward that finds the norms."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """Factored matrices of all heads, `[layer, head, d_model, d_model]`, keys and values repeated.

    Attributes:
        qk: `W_Q W_K^T`; ov: `W_V W_O`; both act on row vectors, norms folded in.
        through: unembedding times embedding, `[d_model, d_model]`: what copying is measured by.
        alike: the embedding's Gram matrix, `[d_model, d_model]`: what matching is measured by.
    """

    qk: Any
    ov: Any
    through: Float[Tensor, "d_model d_model"]
    alike: Float[Tensor, "d_model d_model"]


def head_weights(bridge: Any, model: "HFModel") -> HeadWeights:
    """Read a bridge's weights; `model` has the same ones."""
    need("transformer-lens")
    anatomy = model.anatomy
    with quiet():
        from transformer_lens import FactoredMatrix

    with torch.no_grad():
        qk, ov = bridge.QK, bridge.OV
        before = input_norms(model)
        query = _each(qk.A.float().transpose(-1, -2), before).transpose(-1, -2)
        key = _each(qk.B.float(), before)
        value = _each(ov.A.float().transpose(-1, -2), before).transpose(-1, -2)
        output = torch.stack([
            _written(o, norm) for o, norm in zip(ov.B.float(), anatomy.post_norms, strict=True)
        ])  # fmt: skip
        embed, unembed = bridge.W_E.float(), bridge.W_U.float().T
        if anatomy.final_norm is not None:
            unembed = anatomy.final_norm.fold(unembed)
        return HeadWeights(
            FactoredMatrix(query, key), FactoredMatrix(value, output),
            unembed.T @ embed, embed.T @ embed,
        )  # fmt: skip


def composition(left: Any, right: Any) -> Float[np.ndarray, "left right"]:
    """TransformerLens' composition scores, every left matrix with every right one.

    A head that writes nothing feeds none, and one that reads nothing is fed by none: 0.
    """
    from transformer_lens.utilities import composition_scores

    with torch.no_grad():
        found = composition_scores(left, right, broadcast_dims=True)
        empty = (left.norm() == 0)[:, None] | (right.norm() == 0)
        return torch.where(empty, torch.zeros_like(found), found).cpu().numpy()


def paired_composition(left: Any, right: Any) -> Float[np.ndarray, " pair"]:
    """The same of left and right matrices one by one."""
    from transformer_lens.utilities import composition_scores

    with torch.no_grad():
        return composition_scores(left, right, broadcast_dims=False).cpu().numpy()


def readers(weights: HeadWeights, heads: Sequence[Head]) -> Any:
    """What heads read with, `[mode x head, d_model, d_model]`: QK, its transpose, OV."""
    from transformer_lens import FactoredMatrix

    qk, ov = picked(weights.qk, heads), picked(weights.ov, heads)
    parts = (qk, qk.T, ov)
    return FactoredMatrix(torch.cat([p.A for p in parts]), torch.cat([p.B for p in parts]))


def picked(matrix: Any, heads: Sequence[Head]) -> Any:
    """The factored matrices of some heads, `[head, d_model, d_model]`."""
    from transformer_lens import FactoredMatrix

    at = ([h.layer for h in heads], [h.head for h in heads])
    return FactoredMatrix(matrix.A[at], matrix.B[at])


def positive_share(matrix: Any, middle: Tensor) -> Float[np.ndarray, " head"]:
    """Sum of the eigenvalues over the sum of their sizes, of `matrix @ middle`, in -1 to 1.

    With `middle` = `through` these are the eigenvalues of the full circuit from tokens to tokens,
    `W_E (W_V W_O) W_U`, which has the same ones apart from zeros. Where there are none but zeros
    nothing is raised nor lowered: 0.
    """
    from transformer_lens import FactoredMatrix

    with torch.no_grad():
        found = FactoredMatrix(middle.to(matrix.A) @ matrix.A, matrix.B).eigenvalues
    size = found.abs().sum(-1)
    share = found.real.sum(-1) / size
    return torch.where(size > 0, share, torch.zeros_like(share)).cpu().numpy()


def random_like(matrix: Any, n: int, generator: torch.Generator) -> Any:
    """`n` factored matrices of the same shapes with independent normal entries."""
    from transformer_lens import FactoredMatrix

    a = torch.randn(n, *matrix.A.shape[-2:], generator=generator)
    b = torch.randn(n, *matrix.B.shape[-2:], generator=generator)
    return FactoredMatrix(a.to(matrix.A), b.to(matrix.B))


def _each(weights: Tensor, norms: Sequence[Norm | None]) -> Tensor:
    """Directions in the residual `[layer, head, d_head, d_model]`, seen from before each norm."""
    pairs = zip(weights, norms, strict=True)
    return torch.stack([w if norm is None else norm.fold(w) for w, norm in pairs])


def _written(output: Tensor, norm: Norm | None) -> Tensor:
    """What a head writes, `[head, d_head, d_model]`, behind a norm of the attention's output."""
    if norm is None:
        return output
    centred = output - output.mean(-1, keepdim=True) if norm.centres else output
    return centred * norm.gain.to(output)


def input_norms(model: "HFModel") -> list[Norm | None]:
    """The norm in front of each layer's attention; None where it reads the residual as it is.

    Found by what passes: the module of the layer whose output the attention is given.
    """
    given: dict[int, Tensor] = {}
    returned: dict[int, list[tuple[nn.Module, Tensor]]] = {}
    tokens = torch.arange(1, 1 + N_PROBED, device=model.device)[None]

    def on_attention(layer: int) -> Any:
        def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            given[layer] = args[0] if args else kwargs["hidden_states"]

        return hook

    def on_any(layer: int) -> Any:
        def hook(module: nn.Module, _args: tuple, out: Any) -> None:
            if isinstance(out, Tensor) and "norm" in type(module).__name__.lower():
                returned.setdefault(layer, []).append((module, out))

        return hook

    with ExitStack() as stack:
        for i, (layer, attention) in enumerate(
            zip(model.anatomy.layers, model.anatomy.attention, strict=True)
        ):
            if attention is not None:
                hook = attention.register_forward_pre_hook(on_attention(i), with_kwargs=True)
                stack.callback(hook.remove)
            for module in layer.modules():
                stack.callback(module.register_forward_hook(on_any(i)).remove)
        stack.enter_context(evaluating(model.hf))
        model.hf(tokens, use_cache=False)
    return [
        next(
            (
                measure_norm(module, model.spec.d_model, out)
                for module, out in returned.get(i, ())
                if i in given and out.shape == given[i].shape and torch.equal(out, given[i])
            ),
            None,
        )
        for i in range(model.spec.n_layers)
    ]
