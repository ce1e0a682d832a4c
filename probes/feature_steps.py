"""One step of training a sparse dictionary: which latents fire, the loss, and its gradients.

The encoder's product with the batch is the only dense one. Everything behind the selection touches
the few active latents alone, forth (a weighted sum of decoder rows) and back (sums over the rows
in which a latent fired), so a step costs a third of one with automatic differentiation. Latents
that have not fired for long learn to reconstruct what is left over (AuxK, arXiv 2406.04093).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

NEAR = 0.9
"""Where a batch's border is looked for: above this share of the last one's."""


@dataclass(frozen=True, eq=False)
class Weights:
    """Parameters, or their gradients; rows of encoder and decoder are latents."""

    encoder: Float[Tensor, "latent d_in"]
    bias: Float[Tensor, " latent"]
    decoder: Float[Tensor, "latent d_out"]
    offset: Float[Tensor, " d_out"]

    def all(self) -> list[Tensor]:
        """The four tensors."""
        return [self.encoder, self.bias, self.decoder, self.offset]

    def to(self, device: str | torch.device) -> "Weights":
        """The same on another device."""
        return Weights(*(weight.to(device) for weight in self.all()))


@dataclass(frozen=True, eq=False)
class Fired:
    """Active latents of a batch, by row."""

    row: Int[Tensor, " active"]
    latent: Int[Tensor, " active"]
    value: Float[Tensor, " active"]


@dataclass(frozen=True, eq=False)
class Step:
    """Gradients of a step, and what it shows: share of variance unexplained, and what fired."""

    gradients: Weights
    fvu: float
    fired: Fired

    @property
    def least(self) -> float:
        """The smallest activation; 0 where nothing fired."""
        return self.fired.value.min().item() if len(self.fired.value) else 0.0


@dataclass(frozen=True)
class Rule:
    """How a step chooses and counts: see `TrainSettings`."""

    activation: str
    k: int
    aux_k: int
    aux_coefficient: float
    half: bool


def initial(d_in: int, d_dict: int, d_out: int, *, tied: bool, seed: int) -> Weights:
    """Random decoder rows of norm one; encoder rows half of them, or of their own if not tied."""
    generator = torch.Generator().manual_seed(seed)
    decoder = F.normalize(torch.randn(d_dict, d_out, generator=generator), dim=1)
    own = decoder if tied else F.normalize(torch.randn(d_dict, d_in, generator=generator), dim=1)
    return Weights(0.5 * own, torch.zeros(d_dict), decoder, torch.zeros(d_out))


def step(
    weights: Weights,
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    rule: Rule,
    *,
    dead: Int[Tensor, " dead"],
    border: float = 0.0,
) -> Step:
    """Loss of a batch and its gradients.

    The loss is the mean square of what is left over, per entry, plus `aux_coefficient` times the
    share of that which the dead latents leave of it.

    Args:
        dead: latents that have not fired for long.
        border: the smallest activation of the last batch (`batchtopk`); saves time, changes
            nothing.
    """
    pre = _pre(weights, x, half=rule.half)
    fired = _largest(weights, x, _near(pre, rule, border), rule)
    left = _made(weights, fired, len(x)) + weights.offset - y
    slope = left * (2 / left.numel())
    gradients = _gradients(weights, x, fired, slope)
    gradients.offset.copy_(slope.sum(0))
    if len(dead) and rule.aux_coefficient:
        for total, part in zip(
            gradients.all(), _aux(weights, x, pre, left, dead, rule).all(), strict=True
        ):
            total.add_(part)
    spread = (y - y.mean(0)).square().sum()
    return Step(gradients, (left.square().sum() / spread).item(), fired)


def tidy(weights: Weights, gradients: Weights) -> None:
    """Take the part of the decoder's gradient along its rows away, in place: norms stay one."""
    along = (gradients.decoder * weights.decoder).sum(1, keepdim=True)
    gradients.decoder.addcmul_(along, weights.decoder, value=-1)


def _pre(weights: Weights, x: Tensor, *, half: bool) -> Tensor:
    if not half:
        return torch.addmm(weights.bias, x, weights.encoder.T)
    parts = (weights.bias, x, weights.encoder.T)
    return torch.addmm(*(part.to(torch.bfloat16) for part in parts))


def _near(pre: Tensor, rule: Rule, border: float) -> Fired:
    """The k largest of each row; for `batchtopk` at least the k x rows largest of the batch."""
    if rule.activation == "topk":
        value, latent = pre.topk(rule.k, dim=1, sorted=False)
        row, slot = (value > 0).nonzero(as_tuple=True)
        return Fired(row, latent[row, slot], value[row, slot])
    row, latent = (pre > NEAR * border).nonzero(as_tuple=True)
    if len(row) < rule.k * len(pre) and border > 0:
        row, latent = (pre > 0).nonzero(as_tuple=True)
    return Fired(row, latent, pre[row, latent])


def _largest(weights: Weights, x: Tensor, near: Fired, rule: Rule) -> Fired:
    """The k x rows largest of those near the border, their values in full precision."""
    if rule.half:
        near = _exact(weights, x, near)
    n = rule.k * len(x)
    if len(near.value) <= n:
        return near
    kept = near.value.topk(n, sorted=False).indices.sort().values
    return Fired(near.row[kept], near.latent[kept], near.value[kept])


def _exact(weights: Weights, x: Tensor, fired: Fired) -> Fired:
    value = _dots(fired, x, weights.encoder) + weights.bias[fired.latent]
    good = value > 0
    return Fired(fired.row[good], fired.latent[good], value[good])


def _made(weights: Weights, fired: Fired, n_rows: int) -> Tensor:
    """Sums of decoder rows, weighted by activation, for each row of the batch."""
    begins = _begins(fired.row, n_rows)
    return _bag(fired.latent, weights.decoder, begins, fired.value)


def _gradients(weights: Weights, x: Tensor, fired: Fired, slope: Tensor) -> Weights:
    """From the loss' slope along the reconstruction to that along each parameter."""
    n = len(weights.bias)
    of_value = _dots(fired, slope, weights.decoder)
    order = fired.latent.argsort(stable=True)
    row, begins = fired.row[order], _begins(fired.latent, n)
    return Weights(
        encoder=_bag(row, x, begins, of_value[order]),
        bias=torch.zeros_like(weights.bias).index_add_(0, fired.latent, of_value),
        decoder=_bag(row, slope, begins, fired.value[order]),
        offset=torch.zeros_like(weights.offset),
    )


def _aux(
    weights: Weights, x: Tensor, pre: Tensor, left: Tensor, dead: Tensor, rule: Rule
) -> Weights:
    """Gradients of the share of what is left over that the best dead latents leave of it."""
    value, slot = pre[:, dead].topk(min(rule.aux_k, len(dead)), dim=1, sorted=False)
    row, place = (value > 0).nonzero(as_tuple=True)
    fired = Fired(row, dead[slot[row, place]], value[row, place].float())
    fired = _exact(weights, x, fired) if rule.half else fired
    spread = (left - left.mean(0)).square().sum()
    slope = (_made(weights, fired, len(x)) + left) * (2 * rule.aux_coefficient / spread)
    return _gradients(weights, x, fired, slope)


def _begins(owner: Tensor, n: int) -> Tensor:
    """Where each owner's stretch begins in a list sorted by owner."""
    counts = torch.bincount(owner, minlength=n)
    return counts.cumsum(0) - counts


def _bag(index: Tensor, table: Tensor, begins: Tensor, weight: Tensor) -> Tensor:
    return F.embedding_bag(index, table, begins, mode="sum", per_sample_weights=weight)


def _dots(fired: Fired, rows: Tensor, table: Tensor) -> Tensor:
    """`rows[row] @ table[latent]` of all that fired: the slope of a weighted sum along a weight.

    Asked of `embedding_bag`, which does not gather the two factors first: five times as fast.
    """
    with torch.enable_grad():
        weight = torch.zeros(len(fired.row), device=rows.device, requires_grad=True)
        made = _bag(fired.latent, table, _begins(fired.row, len(rows)), weight)
    return torch.autograd.grad(made, weight, rows)[0]
