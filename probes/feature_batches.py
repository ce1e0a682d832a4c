"""Rows of activations for training: which are used, how they are scaled, and in which order.

Rows may lie in a memory map of half precision, larger than memory. The order of an epoch is a
permutation from (seed, epoch), so that a run that goes on sees what an uninterrupted one saw.
"""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import PromptError, ResultError

Rows = Tensor | np.ndarray
"""`[row, width]`, of any floating precision, in memory or mapped."""

OUTLIER = 4.0
"""Rows longer than this many times the median are left out: attention sinks, mostly."""
SLICE = 8192
SAMPLES = 64


@dataclass(frozen=True, eq=False)
class Scaling:
    """Mean of the rows, and their distance from it: root mean square over root width."""

    mean: Float[Tensor, " width"]
    size: float

    def scaled(self, rows: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
        """Rows with mean zero and a mean square of one in each entry on average."""
        return (rows - self.mean.to(rows)) / self.size


def take(rows: Rows, index: Int[np.ndarray, " some"]) -> Float[Tensor, "some width"]:
    """Some rows, in memory and float32."""
    if isinstance(rows, Tensor):
        return rows[torch.from_numpy(index).to(rows.device)].detach().float()
    return torch.from_numpy(np.asarray(rows[index], dtype=np.float32))


def usable(*tables: Rows, batch: int) -> Int[np.ndarray, " kept"]:
    """Rows that are no outlier in any of the tables.

    Raises:
        ResultError: a row that is not finite; tables of different lengths.
        PromptError: fewer such rows than a batch.
    """
    lengths = [len(rows) for rows in tables]
    if len(set(lengths)) > 1:
        raise ResultError(f"{lengths[0]} inputs and {lengths[1]} targets; give one target a row")
    good = np.ones(lengths[0], dtype=bool)
    for rows in tables:
        norms = np.concatenate([_norms(rows, part) for part in _parts(np.arange(lengths[0]))])
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            raise ResultError(f"row {bad[0]} of the activations is not finite; take it out")
        good &= norms <= OUTLIER * np.median(norms)
    _check_enough(int(good.sum()), batch)
    return np.flatnonzero(good)


def scaling(rows: Rows, kept: Int[np.ndarray, " kept"]) -> Scaling:
    """The scaling of the rows that are kept.

    Raises:
        ResultError: all rows are the same.
    """
    width = rows.shape[1]
    total, squares = torch.zeros(width, dtype=torch.float64), 0.0
    for index in _parts(kept):
        part = take(rows, index).cpu()
        total += part.sum(0).double()
        squares += part.square().sum().double().item()
    mean = total / len(kept)
    spread = squares / len(kept) - mean.square().sum().item()
    if spread <= 1e-9 * squares / len(kept):
        raise ResultError("the activations do not vary; there is nothing to learn from them")
    return Scaling(mean.float(), float((spread / width) ** 0.5))


def batch_rows(
    kept: Int[np.ndarray, " kept"], batch: int, step: int, *, seed: int
) -> Int[np.ndarray, " batch"]:
    """Rows of the batch of a step, in the order in which they lie; a short rest of an epoch is
    left to the next permutation.
    """
    per_epoch = len(kept) // batch
    epoch, at = divmod(step, per_epoch)
    chosen = _order(len(kept), seed, epoch)[at * batch : (at + 1) * batch]
    return kept[np.sort(chosen)]


def check_rows(rows: Rows, batch: int) -> None:
    """Refuse a table that is no matrix, or shorter than a batch."""
    if rows.ndim != 2:
        raise ResultError(f"activations have shape {tuple(rows.shape)}, expected [row, width]")
    _check_enough(len(rows), batch)


def rows_digest(*tables: Rows) -> str:
    """Sixteen hex digits over shapes and some rows spread over the tables."""
    digest = hashlib.sha256()
    for rows in tables:
        index = np.unique(np.linspace(0, len(rows) - 1, SAMPLES).astype(np.int64))
        digest.update(f"{tuple(rows.shape)}".encode())
        digest.update(take(rows, index).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_enough(n_rows: int, batch: int) -> None:
    if n_rows < batch:
        raise PromptError(
            f"{n_rows} usable rows of activations are fewer than a batch of {batch}; use more text "
            "or a smaller batch"
        )


def _norms(rows: Rows, index: np.ndarray) -> np.ndarray:
    return take(rows, index).norm(dim=1).cpu().numpy()


def _parts(index: np.ndarray) -> list[np.ndarray]:
    return [index[start : start + SLICE] for start in range(0, len(index), SLICE)]


@functools.lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
