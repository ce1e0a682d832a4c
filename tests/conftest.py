"""Fixtures: tiny random models of every family, and the bundled model where it was fetched."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# two threads can be twenty times slower than one when anything else runs
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread():
    """Commands that are typed in a test set the threads of the whole process."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real():
    """The small bundled model under the instrument."""
    import interp
    from interp.bundled import model_path

    if model_path("smollm2-135m") is None:
        pytest.skip("smollm2-135m is not here: mnemoscope models fetch smollm2-135m")
    return interp.load("smollm2-135m")
