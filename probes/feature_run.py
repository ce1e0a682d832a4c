"""The state of a training run: weights, optimizer and tallies, and its checkpoint on disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import ResultError
from interp.store import cannot_write
from probes.feature_steps import Weights

CHECKPOINT = "training.safetensors"


@dataclass(frozen=True, eq=False)
class Run:
    """What changes while training, in place.

    Attributes:
        last_fired: the step at which each latent fired last.
        tally: the smallest activation of the last batch; sums of it, and of the share of variance
            unexplained, over the steps of the decay.
    """

    weights: Weights
    adam: torch.optim.Adam
    last_fired: Int[Tensor, " latent"]
    tally: Float[Tensor, "3"]

    def descend(self, gradients: Weights, rate: float) -> None:
        """One step of Adam; decoder rows keep norm one."""
        for weight, gradient in zip(self.weights.all(), gradients.all(), strict=True):
            weight.grad = gradient
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.weights.decoder.copy_(F.normalize(self.weights.decoder, dim=1))


def begun(weights: Weights) -> Run:
    """A run before its first step."""
    adam = torch.optim.Adam(weights.all(), fused=True)
    fired = torch.zeros(len(weights.bias), dtype=torch.long, device=weights.bias.device)
    return Run(weights, adam, fired, torch.zeros(3, dtype=torch.float64))


def keep(run: Run, folder: Path, label: dict[str, Any], done: int) -> None:
    """Write the checkpoint, whole or not at all.

    Raises:
        ResultError: the folder cannot be written to.
    """
    from safetensors.torch import save

    tensors = {"last_fired": run.last_fired, "tally": run.tally, **_moving(run)}
    told = {"label": json.dumps(label), "done": str(done)}
    fresh = folder / f".{CHECKPOINT}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fresh.write_bytes(save({n: t.contiguous() for n, t in tensors.items()}, metadata=told))
        fresh.replace(folder / CHECKPOINT)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        fresh.unlink(missing_ok=True)


def resumed(run: Run, folder: Path, label: dict[str, Any]) -> int:
    """Put a checkpoint into a run that has just begun; how many steps it has done.

    Raises:
        ResultError: the checkpoint is damaged, or of other settings or rows.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT
    if not path.exists():
        return 0
    try:
        with safe_open(str(path), framework="pt") as file:
            told = file.metadata()
            found, done = json.loads(told["label"]), int(told["done"])
            tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        raise ResultError(f"{path} is damaged; remove it and train again") from None
    differs = [k for k in label if found.get(k) != label[k]]
    if differs:
        raise ResultError(
            f"{path} is of another training ({', '.join(differs)} differ); use the same settings "
            "and rows, or remove it"
        )
    _restore(run, tensors, done)
    return done


def _moving(run: Run) -> dict[str, Tensor]:
    """Weights and Adam's moments by name."""
    out: dict[str, Tensor] = {}
    for name, weight in vars(run.weights).items():
        state = run.adam.state[weight]
        out |= {name: weight, f"{name}.1": state["exp_avg"], f"{name}.2": state["exp_avg_sq"]}
    return out


def _restore(run: Run, tensors: dict[str, Tensor], done: int) -> None:
    for name, weight in vars(run.weights).items():
        weight.copy_(tensors[name])
        run.adam.state[weight] = {
            "step": torch.tensor(float(done), device=weight.device),
            "exp_avg": tensors[f"{name}.1"].to(weight.device),
            "exp_avg_sq": tensors[f"{name}.2"].to(weight.device),
        }
    run.last_fired.copy_(tensors["last_fired"])
    run.tally.copy_(tensors["tally"])
