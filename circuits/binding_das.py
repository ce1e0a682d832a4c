"""Distributed alignment search: a subspace of the last token's vector, learned by gradient.

An orthonormal basis B is learned so that an interchange within it alone, h + B'B (h' - h), gives
the answer that the whole interchange gives (Geiger et al. 2024, arXiv 2303.02536). The model stays
as it is: the gradient at the patched vector comes from one backward pass above the layer. A basis
learned for shuffled answers is the control: what so many directions can be fitted to do anyway.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.interchange import LastToken, entering

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

STEPS, BATCH, RATE = 300, 8, 0.05
"""Steps of Adam, pairs in each, learning rate. After 100 steps a planted pointer was found with an
agreement of .3 to .9, by the seed and by the processor's rounding; after 300 with .8 or more."""


@dataclass(frozen=True, eq=False)
class Lesson:
    """A pair to learn from.

    Attributes:
        own, given: the recipient's and the donor's vector, `[d_model]`.
        ids: answer tokens of the recipient's groups.
        answer: the group that the whole interchange gives.
    """

    at: LastToken
    own: Tensor
    given: Tensor
    ids: Tensor
    answer: int


def learned_basis(
    model: "HFModel", lessons: Sequence[Lesson], layer: int, rank: int, *, seed: int = 0,
    shuffled: bool = False, steps: int = STEPS,
) -> Float[Tensor, "rank d_model"]:  # fmt: skip
    """Rows of an orthonormal basis; `shuffled` learns the answers of other pairs."""
    rng = np.random.default_rng([seed, rank, shuffled])
    order = rng.permutation(len(lessons)) if shuffled else np.arange(len(lessons))
    answers = [lessons[i].answer for i in order]
    # nothing outside the span of the differences can be learned, and inside it few steps do
    differences = torch.stack([one.given - one.own for one in lessons]).double()
    _, sizes, span = torch.linalg.svd(differences, full_matrices=False)
    span = span[sizes > 1e-6 * sizes[0]]
    # a singular vector's sign is the library's choice: fix it, or machines would start apart
    largest = span.gather(1, span.abs().argmax(1, keepdim=True))
    span = (span * largest.sign()).float()
    turned = _orthogonal(len(span), min(rank, len(span)), rng)
    adam = torch.optim.Adam(turned.parameters(), lr=RATE)
    with torch.enable_grad():
        for _ in range(steps):
            picked = rng.choice(len(lessons), min(BATCH, len(lessons)), replace=False)
            basis = turned.weight @ span
            total = torch.zeros(())
            for k in picked.tolist():
                one = lessons[k]
                vector = one.own + basis.T @ (basis @ (one.given - one.own))
                slope = _slope(model, one, vector.detach(), layer, answers[k])
                total = (
                    total + vector @ slope
                )  # its gradient is that of the loss, by the chain rule
            adam.zero_grad()
            total.backward()
            adam.step()
    return (turned.weight @ span).detach()


def _orthogonal(width: int, rank: int, rng: np.random.Generator) -> Any:
    """A linear map whose rows stay orthonormal whatever the optimiser does."""
    made = torch.nn.Linear(width, rank, bias=False)
    with torch.no_grad():
        start = np.linalg.qr(rng.standard_normal((width, rank)))[0].T
        made.weight.copy_(torch.from_numpy(start.copy()))
    # reflections cost rank x width; a matrix exponential would cost width cubed
    # a trivialised one would complete the start by numbers of the global generator
    return torch.nn.utils.parametrizations.orthogonal(
        made, orthogonal_map="householder", use_trivialization=False
    )


def _slope(
    model: "HFModel", one: Lesson, vector: Tensor, layer: int, answer: int
) -> Float[Tensor, " d_model"]:
    """Gradient of the cross-entropy over the groups, at the patched vector."""
    site = entering(model, layer)

    def loss(logits: Tensor, _activations: object) -> Tensor:
        return -logits[0, one.ids].log_softmax(-1)[answer]

    found = model.gradients(
        one.at.prefix, [one.at.token], sites=[site], objective=loss, values={site: vector[None]}
    )
    return found.grads[site][0]
