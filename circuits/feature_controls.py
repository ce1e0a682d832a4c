"""What a direction of a feature is compared with: others as long, of features as frequent."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Frequencies:
    """Features in the order of how often they fire, and the place of each in it."""

    order: Int[np.ndarray, " feature"]
    rank: Int[np.ndarray, " feature"]

    @classmethod
    def of(cls, firing: Int[np.ndarray, " feature"]) -> "Frequencies":
        """Ranked by counts of firing; ties by number."""
        order = np.argsort(firing, kind="stable")
        rank = np.empty(len(order), int)
        rank[order] = np.arange(len(order))
        return cls(order, rank)

    def near(self, feature: int, *, width: int) -> Int[np.ndarray, " other"]:
        """The features within `width` places of one, itself left out."""
        place = int(self.rank[feature])
        found = self.order[max(0, place - width) : place + width + 1]
        return found[found != feature]


def random_direction(own: Float[Tensor, " width"], rng: np.random.Generator) -> Tensor:
    """A random direction of the same length."""
    other = torch.from_numpy(rng.standard_normal(len(own))).float()
    return as_long(other, own)


def as_long(other: Float[Tensor, " width"], own: Float[Tensor, " width"]) -> Tensor:
    """One vector at the length of another."""
    return other * own.norm() / other.norm().clamp(min=1e-12)
