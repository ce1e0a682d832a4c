"""A tiny model with a dictionary of its residual, for the tests of traces."""

import functools

import families
import numpy as np
import torch

from interp.backends.hf import HFModel
from interp.sites import Site
from probes.features import Dictionary

TOKENS = torch.randint(3, 120, (18,), generator=torch.Generator().manual_seed(4)).tolist()
FUNCTION = np.arange(120) % 3 == 0


@functools.cache
def model():
    return HFModel(families.tiny("llama"))


def dictionary(*, layer=1, kind="resid_post", n=24, **changes):
    """Random unit directions, which fire at about half of all positions."""
    g = torch.Generator().manual_seed(2)
    decoder = torch.nn.functional.normalize(torch.randn(n, 32, generator=g), dim=1)
    return Dictionary(
        "tiny", "jumprelu", 0.5 * decoder.T.contiguous(), torch.zeros(n), decoder,
        torch.randn(32, generator=g) * 0.1, site=Site(kind, layer), threshold=torch.full((n,), 0.1),
        **changes,
    )  # fmt: skip
