"""Attention rows of a scan's trials, sparse: what an explorer shows without the model.

A pattern of T x T weights is never kept. For each query row of a trial and each head there are the
`k` heaviest keys, their contributions to the answer's logit, and the sums over regions of tokens,
which add up to 1; so what the kept keys leave out is known and can be told. For a few heads one
trial has its whole map, max-pooled, in which a single heavy token cannot vanish.

Weights are kept in steps of 1/65535, contributions in half precision.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16, Int, UInt16

from interp.sites import Head

REGIONS: dict[str, str] = {
    "sink": "the first token",
    "value": "tokens of the needle that are the answer",
    "needle": "the other tokens of the needle asked for",
    "distractors": "tokens of needles that are not asked for",
    "question": "tokens of the question",
    "recent": "the 32 tokens before the query that are in no region above, the query too",
    "rest": "everything else",
}
"""Regions of keys; a key belongs to the first one that it fits. Sums over all of them are 1."""
RECENT = 32
STEPS = 65535
TENSORS, INDEX = "attention.safetensors", "attention.json"
_ROWS = ("keys", "weights", "toward", "regions")


@dataclass(frozen=True, eq=False)
class TrialRows:
    """Rows of one trial, all heads; layers without attention hold key -1 and weight 0.

    Attributes:
        trial, context, length: which trial, which token list, how much of it was read.
        suffix: tokens behind the context, as text.
        positions: absolute position of each query row, the question's first, then the answer's.
        produced: the answer token that each row produces; empty for the question's rows.
        spans: `value`, `needle`, `question` as start and stop; `distractors` as a list of them.
        keys: absolute positions of the heaviest keys, heaviest first; -1 where there are fewer.
        weights: their weights, in steps of 1/65535.
        toward: their contributions to the logit of the row's answer token minus that of another
            value's, final norm folded in; NaN in the question's rows, and where unknown.
        regions: sums over `REGIONS`, in steps of 1/65535.
    """

    trial: str
    context: int
    length: int
    suffix: tuple[str, ...]
    positions: tuple[int, ...]
    produced: tuple[str, ...]
    spans: Mapping[str, Any]
    keys: Int[np.ndarray, "layer head row k"]
    weights: UInt16[np.ndarray, "layer head row k"]
    toward: Float16[np.ndarray, "layer head row k"]
    regions: UInt16[np.ndarray, "layer head row region"]

    @cached_property
    def kept(self) -> Float[np.ndarray, "layer head row"]:
        """Share of each row's mass that the kept keys hold."""
        return self.weights.astype(np.float64).sum(-1) / STEPS

    def about(self) -> dict[str, Any]:
        """All but the arrays, as plain values."""
        return {
            "trial": self.trial, "context": self.context, "length": self.length,
            "suffix": list(self.suffix), "positions": list(self.positions),
            "produced": list(self.produced), "spans": dict(self.spans),
        }  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {name: getattr(self, name) for name in _ROWS}

    @classmethod
    def of(cls, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "TrialRows":
        """Put together what `about` and `arrays` gave."""
        parts: dict[str, Any] = {**about, **arrays}
        names = ("suffix", "positions", "produced")
        return cls(**parts | {n: tuple(about[n]) for n in names})


@dataclass(frozen=True, eq=False)
class PooledMaps:
    """Max-pooled attention of a few heads over one whole trial.

    `values[h, q, k]` is the largest weight from any query in `[q_edges[q], q_edges[q+1])` to any
    key in `[k_edges[k], k_edges[k+1])`, in steps of 1/65535.
    """

    trial: str
    heads: tuple[Head, ...]
    q_edges: tuple[int, ...]
    k_edges: tuple[int, ...]
    values: UInt16[np.ndarray, "chosen q k"]

    def about(self) -> dict[str, Any]:
        """All but the array, as plain values."""
        return {
            "trial": self.trial, "heads": [str(h) for h in self.heads],
            "q_edges": list(self.q_edges), "k_edges": list(self.k_edges),
        }  # fmt: skip

    @classmethod
    def of(cls, about: Mapping[str, Any], values: np.ndarray) -> "PooledMaps":
        """Put together what `about` gave and the array."""
        heads = tuple(Head.parse(h) for h in about["heads"])
        return cls(about["trial"], heads, tuple(about["q_edges"]), tuple(about["k_edges"]), values)


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """Rows of several trials of a scan, and the tokens of their contexts as text, by index."""

    contexts: Mapping[int, tuple[str, ...]]
    trials: tuple[TrialRows, ...]
    maps: PooledMaps | None = None
    by_name: Mapping[str, TrialRows] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {t.trial: t for t in self.trials})

    def save(self, folder: Path) -> None:
        """Write two files into a folder that is being filled."""
        from safetensors.numpy import save_file

        tensors = {f"{i:03d}.{n}": v for i, t in enumerate(self.trials)
                   for n, v in t.arrays().items()}  # fmt: skip
        if self.maps is not None:
            tensors["maps"] = self.maps.values
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / TENSORS)
        about = {
            "regions": list(REGIONS),
            "contexts": {str(i): list(t) for i, t in self.contexts.items()},
            "trials": [t.about() for t in self.trials],
            "maps": None if self.maps is None else self.maps.about(),
        }
        (folder / INDEX).write_text(json.dumps(about, ensure_ascii=False), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "AttentionRecord | None":
        """Read it from a run folder; None where the run kept no attention."""
        from safetensors.numpy import load_file

        if not (folder / INDEX).exists():
            return None
        about = json.loads((folder / INDEX).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
        if about["regions"] != list(REGIONS):
            raise ValueError(f"regions {about['regions']}, expected {list(REGIONS)}")
        trials = tuple(
            TrialRows.of(a, {n: tensors[f"{i:03d}.{n}"] for n in _ROWS})
            for i, a in enumerate(about["trials"])
        )
        maps = None if about["maps"] is None else PooledMaps.of(about["maps"], tensors["maps"])
        contexts = {int(i): tuple(t) for i, t in about["contexts"].items()}
        return cls(contexts, trials, maps)


def in_steps(weights: Float[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Weights in [0, 1] as whole steps of 1/65535."""
    return np.rint(np.clip(np.nan_to_num(weights), 0, 1) * STEPS).astype(np.uint16)
