"""How much of the gradient each group of predictions gives: the one share that bears on what
drives the weights, which a share of the loss does not.

The loss of all positions is a sum over groups, and so is its gradient with respect to all
parameters. Per group: the norm of its part, and the share of the whole gradient that its part
makes along the whole: g . G / |G|^2. These shares add up to one, and may be negative.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from circuits.loss_plan import GROUPS, TARGETS, LossText, cells
from probes.documents import Window

if TYPE_CHECKING:
    from interp.backends.hf import HFModel


def gradient_shares(
    model: "HFModel", text: LossText, chosen: Sequence[Window]
) -> list[dict[str, Any]]:
    """A row a group: group, gradient_norm, gradient_norm_share, gradient_share.

    The norm is that of the group's part of the gradient of the mean loss, in nats. Holds a copy of
    the parameters' size for each group. The model is given back as it was.
    """
    n_positions = sum(len(w.tokens) - text.begin - 1 for w in chosen)
    with _trainable(model.hf) as weights:
        total = [[torch.zeros_like(w, dtype=torch.float32) for w in weights] for _ in GROUPS]
        for window in chosen:
            losses = _group_losses(model, text, window)
            for group, loss in enumerate(losses):
                own = torch.autograd.grad(
                    loss / n_positions, weights, retain_graph=group + 1 < len(losses),
                    allow_unused=True,
                )  # fmt: skip
                for held, part in zip(total[group], own, strict=True):
                    if part is not None:
                        held += part
    products = np.array([[_dot(a, b) for b in total] for a in total])
    norms, along = np.sqrt(np.diag(products)), products.sum(1)
    return [
        {"group": name, "gradient_norm": float(norms[i]),
         "gradient_norm_share": float(norms[i] / norms.sum()),
         "gradient_share": float(along[i] / along.sum())}
        for i, name in enumerate(GROUPS)
    ]  # fmt: skip


def gradient_windows(text: LossText, wanted: int) -> list[Window]:
    """So many windows, spread evenly over the measured text."""
    n = min(wanted, len(text.windows))
    return [text.windows[i * len(text.windows) // n] for i in range(n)]


def _group_losses(model: "HFModel", text: LossText, window: Window) -> list[Tensor]:
    """Summed loss of each group of a window, by the model's own forward."""
    tokens = np.array(window.tokens, np.int64)
    ids = torch.from_numpy(tokens)[None].to(model.device)
    logits = model.hf(input_ids=ids, use_cache=False).logits[0, text.begin : -1].float()
    goals = ids[0, text.begin + 1 :].to(logits.device)
    losses = F.cross_entropy(logits, goals, reduction="none")
    group = torch.from_numpy(
        cells(tokens, text.function, text.internal, begin=text.begin) // len(TARGETS)
    ).to(logits.device)
    return [losses[group == g].sum() for g in range(len(GROUPS))]


@contextmanager
def _trainable(hf: Any) -> Iterator[list[Tensor]]:
    """All floating parameters, asking for gradients; evaluation mode; both given back after."""
    weights = [p for p in hf.parameters() if p.is_floating_point()]
    before, training = [p.requires_grad for p in weights], hf.training
    hf.eval()
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield weights
    finally:
        for weight, asked in zip(weights, before, strict=True):
            weight.requires_grad_(asked)
        hf.train(training)


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return float(sum((x * y).sum(dtype=torch.float64).item() for x, y in zip(a, b, strict=True)))
