"""How fast this machine trains and applies a dictionary of sparse features: a few steps, timed.

Training is not a matter of forwards, and most of it is not a matter of operations either (what is
active is gathered and summed), so a step is run as it is, on random rows, and counted.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from circuits.feature_counting import Counter
from circuits.graph_plan import GraphSettings
from probes.feature_training import TrainSettings, train_dictionary

STEPS = 8
"""Steps that are run; the first ones look for the border of what is active, and are slower."""
LAST = 4
MOST = 4e10
"""Operations of the large product of one timed step; a larger batch is timed in part."""
POSITIONS = 2048
"""Positions that are encoded and counted."""
N_TOKENS = 5000
"""Tokens that occur, about as many as in a text of that length's vocabulary."""


@dataclass(frozen=True)
class DictionaryTimes:
    """Seconds of a training step, and of encoding and counting a position, for one dictionary."""

    step: float = 0.0
    position: float = 0.0


def measure_dictionary(
    d_in: int, settings: GraphSettings, *, device: torch.device, d_out: int | None = None
) -> DictionaryTimes:
    """Train a dictionary of the size of the settings for a few steps, then use it.

    Raises:
        PromptError: sizes that no dictionary can have.
    """
    whole = 2.0 * d_in * settings.d_dict * settings.batch
    batch = min(settings.batch, max(128, int(settings.batch * min(1.0, MOST / whole))))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * batch, d_in, generator=generator)
    targets = None if d_out is None else torch.randn(4 * batch, d_out, generator=generator)
    times: list[float] = []
    trained = train_dictionary(
        rows,
        TrainSettings(settings.d_dict, settings.k, settings.activation, steps=STEPS, batch=batch),
        site=None, name="timed", targets=targets, device=device,
        progress=lambda *_: times.append(time.perf_counter()),
    )  # fmt: skip
    step = float(np.diff(times)[-LAST:].min()) * settings.batch / batch
    position = _position(trained.to(device), rows[:POSITIONS].to(device))
    return DictionaryTimes(step, position)


def _position(dictionary: object, rows: torch.Tensor) -> float:
    """Seconds of a position: encoded once, counted with its own token and with a random one."""
    tokens = np.random.default_rng(0).integers(0, N_TOKENS, len(rows))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        fired = dictionary.encode_sparse(rows)  # type: ignore[attr-defined]
        arrays = [x.cpu().numpy() for x in (fired.row, fired.feature, fired.value)]
        for _ in range(2):
            counter = Counter(N_TOKENS, dictionary.d_dict)  # type: ignore[attr-defined]
            counter.add(tokens, 0, *arrays)
            counter.counts()
        best = min(best, time.perf_counter() - start)
    return best / len(rows)
