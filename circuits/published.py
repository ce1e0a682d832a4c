"""Score files that other tools write: `{"layer-head": [score, ...]}`."""

import json
from pathlib import Path

import numpy as np

from interp.errors import ResultError, SiteError
from interp.sites import Head


def read_scores(path: str | Path) -> np.ndarray:
    """Mean scores `[layer, head]` of a published score file; heads that are absent are NaN.

    Raises:
        ResultError: unreadable, or not of that layout.
    """
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict) or not value:
        raise ResultError(f'{path} is no score file; expected {{"layer-head": [scores]}}')
    try:
        means = {Head.parse(k): float(np.mean(v)) for k, v in value.items()}
    except (SiteError, TypeError, ValueError) as error:
        raise ResultError(f'{path}: expected {{"layer-head": [scores]}}; {error}') from None
    shape = (max(h.layer for h in means) + 1, max(h.head for h in means) + 1)
    out = np.full(shape, np.nan)
    for head, mean in means.items():
        out[head.layer, head.head] = mean
    return out
