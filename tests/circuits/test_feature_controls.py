"""Controls of a direction: as long, as frequent, and never itself."""

import numpy as np
import pytest
import torch

from circuits.feature_controls import Frequencies, as_long, random_direction


def test_neighbours_are_the_nearest_in_frequency_and_never_the_feature_itself():
    firing = np.random.default_rng(0).permutation(50)
    often = Frequencies.of(firing)
    for feature in range(50):
        near = often.near(feature, width=3)
        gaps = np.abs(firing[near] - firing[feature])
        assert feature not in near and gaps.max() <= 3
        assert len(near) == sum(0 < abs(f - firing[feature]) <= 3 for f in firing)


def test_directions_are_as_long_as_what_they_stand_for():
    own, rng = torch.tensor([3.0, 4.0, 0.0]), np.random.default_rng(0)
    a, b = random_direction(own, rng), random_direction(own, rng)
    assert float(a.norm()) == pytest.approx(5) and not torch.allclose(a, b)
    assert torch.allclose(as_long(torch.tensor([0.0, 0.0, 2.0]), own), torch.tensor([0.0, 0, 5]))
