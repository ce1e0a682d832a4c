"""What a head does on random tokens: the pattern scores that explain a retrieval head.

A random sequence is read once and repeated; rows of the repeat are read. On natural text these
patterns mix; random tokens keep them apart (arXiv 2209.11895).
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from circuits.scores import ROLE_METRICS
from interp.trace import RowRead

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

N_SEQUENCES = 8
N_RANDOM = 64


def role_scores(
    model: "HFModel",
    *,
    n_sequences: int = N_SEQUENCES,
    n_tokens: int = N_RANDOM,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Each role metric on each random sequence: `[sequence, layer, head]`."""
    generator = torch.Generator().manual_seed(seed)
    ordinary = ordinary_tokens(model)
    limit = model.spec.context_length
    n_tokens = n_tokens if limit is None else min(n_tokens, (limit - 1) // 2)
    out: dict[str, list[np.ndarray]] = {name: [] for name in ROLE_METRICS}
    for _ in range(n_sequences):
        picked = torch.randperm(len(ordinary), generator=generator)[: n_tokens + 1]
        tokens = ordinary[picked]
        for name, value in _one(model, tokens[:1].tolist(), tokens[1:].tolist()).items():
            out[name].append(value)
    return {name: np.stack(values).astype(np.float32) for name, values in out.items()}


def ordinary_tokens(model: "HFModel") -> torch.Tensor:
    """Ids of all tokens that are not special."""
    special = set(getattr(model.tokenizer, "all_special_ids", None) or [])
    return torch.tensor([i for i in range(_n_tokens(model)) if i not in special])


def _n_tokens(model: "HFModel") -> int:
    known = len(model.tokenizer) if model.tokenizer is not None else model.spec.d_vocab
    return min(known, model.spec.d_vocab)


def _one(model: "HFModel", first: list[int], random: list[int]) -> dict[str, np.ndarray]:
    """[first, r_1..r_n] is the context, r_1..r_n again the suffix."""
    n, start = len(random), len(first)
    here = start + n + torch.arange(n)
    # in the order of ROLE_METRICS: induction, duplicate, previous, sink
    keys = torch.stack([here - n + 1, here - n, here - 1, torch.zeros_like(here)], dim=-1)
    read = RowRead((tuple(range(n)),), keys=(keys,), peaks=False)
    prefix = model.prefill(first + random)
    rows = model.extend(prefix, [random], read=[read]).rows[0]
    assert rows.at_keys is not None
    mean = rows.at_keys.mean(2).numpy()
    return {name: mean[..., i] for i, name in enumerate(ROLE_METRICS)}
