"""Training a sparse dictionary from stored activations: minutes on a CPU for a small model.

TopK or BatchTopK (arXiv 2406.04093, 2412.06410) with rows scaled to unit variance, decoder rows of
norm one, Adam with a warm-up and a decay, and dead latents revived. The result reads raw
activations: the scaling is folded into its weights. A run that was interrupted goes on from its
last checkpoint, and ends with the same weights to the last bit on a CPU.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import PromptError
from interp.sites import Site
from probes.feature_batches import (
    OUTLIER,
    Rows,
    Scaling,
    batch_rows,
    check_rows,
    rows_digest,
    scaling,
    take,
    usable,
)
from probes.feature_run import Run, begun, keep, resumed
from probes.feature_steps import Rule, initial, step, tidy
from probes.features import Dictionary

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and a line on how it goes."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        d_dict: latents; k: active ones, of each row (`topk`) or on average (`batchtopk`).
        steps, batch: so many steps of so many rows, over as many epochs as it takes.
        lr, warmup, decay: Adam's rate, reached after `warmup` steps (at most a quarter of all),
            going to nothing over the last share `decay` of the steps.
        dead_after: steps without firing after which a latent is dead; the `aux_k` best of the dead
            of each row are trained on what is left over, with weight `aux_coefficient`.
        activation: `batchtopk` or `topk`.
        dtype: `float32` or `bfloat16`, for the one large product; bfloat16 only chooses, values
            are computed in float32 afterwards.

    Raises:
        PromptError: settings that cannot be.
    """

    d_dict: int = 4096
    k: int = 32
    activation: str = "batchtopk"
    steps: int = 400
    batch: int = 2048
    lr: float = 8e-4
    warmup: int = 100
    decay: float = 0.2
    aux_k: int = 64
    aux_coefficient: float = 1 / 32
    dead_after: int = 100
    seed: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("d_dict", "k", "steps", "batch", "aux_k", "dead_after"):
            if getattr(self, name) < 1:
                raise PromptError(f"{name} = {getattr(self, name)}, expected 1 or more")
        if self.k > self.d_dict:
            raise PromptError(f"k = {self.k} of {self.d_dict} latents; take fewer, or more latents")
        if not 0 <= self.decay <= 1 or self.lr <= 0:
            raise PromptError(f"lr = {self.lr}, decay = {self.decay}: expected lr > 0, decay 0-1")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                told = f"{name} = {getattr(self, name)!r}"
                raise PromptError(f"{told}, expected {' or '.join(known)}")


_CHOICES = {"activation": ("batchtopk", "topk"), "dtype": ("float32", "bfloat16")}


def train_dictionary(
    activations: Rows,
    settings: TrainSettings,
    *,
    site: Site | None,
    name: str,
    targets: Rows | None = None,
    out_site: Site | None = None,
    parts: Path | None = None,
    every: int = 100,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Dictionary:
    """Train a dictionary of the rows of a site.

    Rows longer than `feature_batches.OUTLIER` times the median are left out; their number is in
    `about["training"]`. BatchTopK ends as JumpReLU with one threshold: the mean, over the last
    share `decay` of the steps, of the smallest activation of a batch.

    Args:
        activations: `[row, d_in]`, in memory or mapped, of any floating precision.
        targets: `[row, d_out]`; a transcoder from the activations to these is trained.
        parts: folder of the checkpoint, written every so many steps; the caller removes it.
        progress: called after every step.

    Raises:
        PromptError: fewer usable rows than a batch.
        ResultError: rows that are not finite; a checkpoint of another run, or a damaged one.
    """
    tables = [activations] if targets is None else [activations, targets]
    for rows in tables:
        check_rows(rows, settings.batch)
    kept = usable(*tables, batch=settings.batch)
    scales = [scaling(rows, kept) for rows in tables]
    label = {**asdict(settings), "rows": rows_digest(*tables)}
    sizes = (activations.shape[1], settings.d_dict, tables[-1].shape[1])
    run = begun(initial(*sizes, tied=targets is None, seed=settings.seed).to(device))
    done = 0 if parts is None else resumed(run, parts, label)
    for at in range(done, settings.steps):
        index = batch_rows(kept, settings.batch, at, seed=settings.seed)
        x, *others = (
            s.scaled(take(t, index)).to(device) for s, t in zip(scales, tables, strict=True)
        )
        line = _advance(run, x, others[0] if others else x, settings, at)
        if parts is not None and ((at + 1) % every == 0 or at + 1 == settings.steps):
            keep(run, parts, label, at + 1)
        if progress is not None:
            progress(at + 1, settings.steps, f"{name}: {line}")
    return Dictionary(
        name=name, site=site, out_site=out_site, **_folded(run, scales, settings),
        about=_about(run, settings, len(activations), len(kept)),
    )  # fmt: skip


def _advance(run: Run, x: Tensor, y: Tensor, settings: TrainSettings, at: int) -> str:
    """One step: changes the run in place, and tells how it went."""
    dead = (at - run.last_fired > settings.dead_after).nonzero()[:, 0]
    rule = Rule(
        settings.activation, settings.k, settings.aux_k, settings.aux_coefficient,
        half=settings.dtype == "bfloat16",
    )  # fmt: skip
    made = step(run.weights, x, y, rule, dead=dead, border=run.tally[0].item())
    tidy(run.weights, made.gradients)
    run.descend(made.gradients, settings.lr * _rate(settings, at))
    run.last_fired[made.fired.latent] = at
    run.tally[0] = made.least
    if at >= settings.steps - _tail(settings):
        run.tally[1:] += torch.tensor([made.least, made.fvu], dtype=torch.float64)
    l0, share = len(made.fired.row) / len(x), len(dead) / settings.d_dict
    return f"FVU {made.fvu:.3f}, L0 {l0:.1f}, dead {share:.1%}"


def _tail(settings: TrainSettings) -> int:
    """Steps over which the rate decays, and over which the threshold is averaged."""
    return max(1, round(settings.decay * settings.steps))


def _rate(settings: TrainSettings, at: int) -> float:
    """The learning rate of a step, as a share of the highest."""
    warmup = min(settings.warmup, settings.steps // 4)
    left = (settings.steps - at) / (_tail(settings) + 1)
    return min(1.0, (at + 1) / (warmup + 1), left)


def _folded(run: Run, scales: list[Scaling], settings: TrainSettings) -> dict[str, Any]:
    """Fields of a dictionary that reads raw rows: features in their units, decoder rows of one."""
    w, before, after = run.weights, scales[0], scales[-1]
    ratio = after.size / before.size
    encoder, mean = w.encoder.cpu().double() * ratio, before.mean.double()
    fields: dict[str, Any] = {
        "activation": "topk",
        "W_enc": encoder.T.float().contiguous(),
        "b_enc": (after.size * w.bias.cpu().double() - encoder @ mean).float(),
        "W_dec": w.decoder.cpu(),
        "b_dec": after.size * w.offset.cpu() + after.mean,
    }
    if settings.activation == "topk":
        return {**fields, "k": settings.k}
    border = after.size * run.tally[1].item() / _tail(settings)
    threshold = torch.full((settings.d_dict,), border)
    return {**fields, "activation": "jumprelu", "threshold": threshold}


def _about(run: Run, settings: TrainSettings, n_rows: int, n_kept: int) -> dict[str, Any]:
    dead = int((settings.steps - run.last_fired > settings.dead_after).sum())
    record = {
        **asdict(settings),
        "rows": n_rows,
        "left_out": n_rows - n_kept,
        "outlier": OUTLIER,
        "fvu": run.tally[2].item() / _tail(settings),
        "dead": dead,
    }
    return {"training": record, "trained_as": settings.activation}
