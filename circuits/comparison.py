"""Do two runs find the same heads, and how alike could they be at most?"""

from pathlib import Path
from typing import Any

import numpy as np

from circuits.published import read_scores
from circuits.scan_result import ScanResult
from circuits.uncertainty import top
from interp.errors import ResultError
from interp.sites import Head


def compare(
    first: str | Path | ScanResult, second: str | Path | ScanResult, *, metric: str = "copy",
    k: int = 10,
) -> dict[str, Any]:  # fmt: skip
    """Pearson, Spearman and top-k overlap of two scans (results, folders, published score files).

    The ceiling is the geometric mean of both runs' split-half reliabilities: two perfect
    repetitions of these runs would correlate so; None where a run cannot tell. It takes needles to
    be independent: two scans that asked the same questions can lie above it.

    Raises:
        ResultError: unreadable, or models of different shape.
    """
    from scipy.stats import pearsonr, spearmanr

    a, reliable_a = _read(first, metric, k)
    b, reliable_b = _read(second, metric, k)
    if a.shape != b.shape:
        raise ResultError(
            f"{_called(first)} has {a.shape[0]} x {a.shape[1]} heads, {_called(second)} "
            f"{b.shape[0]} x {b.shape[1]}; only models of one shape can be compared head by head"
        )
    both = ~(np.isnan(a) | np.isnan(b))
    if both.sum() < 3:
        raise ResultError("fewer than 3 heads are scored in both; nothing to compare")
    x, y = a[both], b[both]
    best_a, best_b = (set(top(v.reshape(-1), k).tolist()) for v in (a, b))
    ceiling = None
    if reliable_a is not None and reliable_b is not None:
        ceiling = float(np.sqrt(max(0.0, reliable_a[0] * reliable_b[0])))
    constant = np.ptp(x) == 0 or np.ptp(y) == 0
    return {
        "metric": metric,
        "heads": int(both.sum()),
        "pearson": None if constant else float(pearsonr(x, y).statistic),
        "pearson_ceiling": ceiling,
        "spearman": None if constant else float(spearmanr(x, y).statistic),
        "top_k": k,
        "top_overlap": len(best_a & best_b),
        "top_overlap_split_half": [r[1] if r else None for r in (reliable_a, reliable_b)],
        "shared": sorted(_name(i, a.shape[1]) for i in best_a & best_b),
        "only_first": sorted(_name(i, a.shape[1]) for i in best_a - best_b),
        "only_second": sorted(_name(i, a.shape[1]) for i in best_b - best_a),
    }


def _name(index: int, n_heads: int) -> str:
    return str(Head(*divmod(index, n_heads)))


def _called(run: str | Path | ScanResult) -> str:
    return f"the scan of {run.provenance.model}" if isinstance(run, ScanResult) else str(run)


def _read(
    run: str | Path | ScanResult, metric: str, k: int
) -> tuple[np.ndarray, tuple[float, float] | None]:
    if not isinstance(run, ScanResult):
        if Path(run).is_file():
            return read_scores(Path(run)), None
        run = ScanResult.load(run)
    half = run.reliability(metric, k=k)
    return run.mean(metric), None if half is None else (half.ceiling, half.overlap)
