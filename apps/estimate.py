"""What a scan will cost, before it runs: forwards, tokens, FLOPs, memory, time."""

import time
from typing import TYPE_CHECKING, Any

from apps.console import print_mapping
from apps.doctor import kv_bytes

if TYPE_CHECKING:
    from circuits.plan import ScanPlan
    from interp.backends.hf import HFModel

N_TIMED = 512


def estimate(model: "HFModel", plan: "ScanPlan") -> dict[str, Any]:
    """Counts from the plan; time from one short prefill on this machine."""
    spec = model.spec
    weights = sum(p.numel() for p in model.hf.parameters())
    embedded = model.hf.get_input_embeddings().weight.numel()
    longest = max(len(c.tokens) for c in plan.contexts)
    flops = sum(_flops(spec, weights - embedded, len(c.tokens), 0) for c in plan.contexts)
    flops += sum(
        _flops(spec, weights - embedded, len(t.suffix) + len(t.answer), t.length)
        for group in plan.trials
        for t in group
    )
    kept = [t for _, t in plan.kept_trials]  # attention rows for looking at: two passes more
    flops += sum(
        2 * _flops(spec, weights - embedded, len(t.suffix) + len(t.answer), t.length) for t in kept
    )
    flops += sum(_flops(spec, weights - embedded, t.length, 0) for t in kept[:1])
    speed = _speed(model, weights - embedded)
    bytes_each = model.dtype.itemsize
    return {
        "contexts": len(plan.contexts),
        "lengths": list(plan.lengths),
        "needles per context": len(plan.contexts[0].planted),
        "trials": plan.n_trials,
        "prefill forwards": len(plan.contexts),
        "tokens": plan.n_tokens,
        "tokens if every cell ran alone": sum(
            t.length + len(t.suffix) + len(t.answer) for g in plan.trials for t in g
        ),
        "TFLOP": round(flops / 1e12, 2),
        "weights MiB": round(weights * bytes_each / 2**20),
        "keys and values MiB": round(kv_bytes(spec, longest, bytes_each) / 2**20),
        "seconds at most (no early stop, no generation)": round(flops / speed, 1),
        "warnings": list(plan.warnings),
    }


def _flops(spec: Any, n_weights: int, n_tokens: int, n_before: int) -> float:
    """Multiply-adds count twice; causal attention over what is before each token."""
    pairs = n_tokens * n_before + n_tokens * n_tokens / 2
    attention = 4 * len(spec.attention_layers) * spec.n_heads * spec.d_head * pairs
    return 2 * n_weights * n_tokens + attention


def _speed(model: "HFModel", n_weights: int) -> float:
    """FLOP/s of a short prefill, the better of two."""
    n = min(N_TIMED, model.spec.context_length or N_TIMED)
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        model.prefill([1] * n)
        best = min(best, time.perf_counter() - start)
    return _flops(model.spec, n_weights, n, 0) / best


def table(cost: dict[str, Any]) -> None:
    """Print an estimate."""
    print_mapping({k: v for k, v in cost.items() if v != []})
