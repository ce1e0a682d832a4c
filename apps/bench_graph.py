"""`mnemoscope bench graph`: what encoding and counting add to the bare forward.

The forward that is compared is the same with nothing read but the site: windows, layers up to it,
no logits. Counting is compared with dense adding into a token x feature array, whose numbers it
must equal.
"""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from apps.options import machine
from circuits.feature_counting import Counter
from interp.errors import ResultError
from interp.sites import Site
from interp.store import provenance
from probes.activations import site_activations
from probes.features import Dictionary, Sparse

if TYPE_CHECKING:
    from interp.backends.hf import HFModel

K = 32
"""Features active at a position of the random dictionary."""


def run(model: "HFModel", *, layer: int, width: int, tokens: int, length: int) -> dict[str, Any]:
    """Time the parts on random tokens, with a random TopK dictionary; plain values.

    Raises:
        ResultError: sizes below one window, or a layer that the model does not have.
    """
    spec = model.spec
    layer = spec.n_layers // 2 if layer < 0 else layer
    if tokens < length or length < 8 or layer >= spec.n_layers or width < K:
        raise ResultError(
            f"a bench needs a window of 8 tokens or more, one window, {K} features and a layer "
            f"below {spec.n_layers}"
        )
    rng = np.random.default_rng(0)
    # frequencies as in text: few tokens stand at most positions
    share = 1 / np.arange(1, spec.d_vocab + 1)
    drawn = rng.choice(spec.d_vocab, tokens // length * length, p=share / share.sum())
    windows = drawn.reshape(-1, length)
    site = Site("resid_post", layer)
    dictionary = _random(spec.d_model, width, site).to(model.device)
    _read(model, windows[:1], site)
    forward, activations = _timed(lambda: _read(model, windows, site))
    dictionary.encode_sparse(activations[:64])
    encode, fired = _timed(lambda: [dictionary.encode_sparse(x) for x in activations.split(4096)])
    count, counts = _timed(lambda: _count(windows, fired, spec.d_vocab, width))
    dense, same = _dense(windows, fired, counts)
    n, active = windows.size, sum(len(z.row) for z in fired)
    whole = forward + encode + count
    return {
        "command": f"mnemoscope bench graph {model.source.name} --layer {layer} --width {width} "
        f"--tokens {tokens} --length {length}",
        "machine": machine(model),
        "site": str(site), "positions": n, "activations": active,
        "tokens a second, end to end": round(n / whole, 1),
        "bare forward up to the site, seconds": round(forward, 3),
        "encoding, share of that": round(encode / forward, 4),
        "counting, share of that": round(count / forward, 4),
        "counting, nanoseconds an activation": round(count / active * 1e9, 1),
        "dense counting, nanoseconds an activation": round(dense / active * 1e9, 1),
        "same counts": same,
        "provenance": vars(provenance(model, seconds=whole)),
    }  # fmt: skip


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    out = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, out


def _read(model: "HFModel", windows: np.ndarray, site: Site) -> torch.Tensor:
    found = site_activations(model, windows.tolist(), [site], skip_first=0)
    return found[site].to(model.device)


def _random(d_model: int, width: int, site: Site) -> Dictionary:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(width, d_model, generator=generator), dim=1)
    zero = torch.zeros
    return Dictionary(
        "random", "topk", rows.T.contiguous(), zero(width), rows, zero(d_model), site=site, k=K
    )


def _count(windows: np.ndarray, fired: Sequence[Sparse], d_vocab: int, width: int) -> Any:
    counter, tokens, start = Counter(d_vocab, width), windows.ravel(), 0
    for number, z in enumerate(fired):
        own = tokens[start : start + z.n_rows]
        start += z.n_rows
        arrays = (x.cpu().numpy() for x in (z.row, z.feature, z.value))
        counter.add(own, number, *arrays)
    return counter.counts()


def _dense(windows: np.ndarray, fired: Sequence[Sparse], counts: Any) -> tuple[float, bool]:
    """Adding into a dense array of the tokens that occur: seconds, and are the counts the same."""
    kinds, place = np.unique(windows.ravel(), return_inverse=True)
    table = np.zeros((len(kinds), counts.n_features), np.int32)
    start, begin = 0, time.perf_counter()
    for z in fired:
        np.add.at(table, (place[start + z.row.cpu().numpy()], z.feature.cpu().numpy()), 1)
        start += z.n_rows
    seconds = time.perf_counter() - begin
    rows, features = table.nonzero()
    same = np.array_equal(kinds[rows], counts.token) and np.array_equal(features, counts.feature)
    return seconds, bool(same and np.array_equal(table[rows, features], counts.count))
