"""What an explorer page of a large run weighs, how long it takes to open, and to answer a click.

The run is made up, at the size of a large model: all weights are random, so that it compresses
worse than a real one. Beside it: the same attention as whole patterns, in the two forms that other
viewers send, worked out from one head and a smaller context.
"""

import json
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from circuits.attention.record import REGIONS, STEPS, AttentionRecord, TrialRows

if TYPE_CHECKING:
    from circuits.scan_result import ScanResult

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
N_ROWS, N_KEYS, N_TRIALS, N_CLICKS = 12, 16, 20, 12
SMALL = 2048
"""Tokens at which a whole pattern is really written, to scale from."""
CLICK = """async (head) => {
  const begin = performance.now();
  document.querySelector(`#panel-ranking tr[data-key="${head}"]`).click();
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));
  return performance.now() - begin;
}"""


def run(*, layers: int, heads: int, tokens: int, folder: str | Path | None = None) -> dict:
    """Size and times of the page of a made-up run, or of a real one in `folder`."""
    from apps.explorer.opening import opened
    from apps.explorer.page import export
    from apps.explorer.payload import build

    runs = opened([made_up(layers, heads, tokens) if folder is None else folder])
    result = runs[0].result
    started = time.perf_counter()
    payload = build(runs)
    with TemporaryDirectory() as place:
        page = export(payload, Path(place) / "page.html")
        built, size = time.perf_counter() - started, page.stat().st_size
        timed = _in_browser(page.as_uri())
    layers, heads = result.shape
    longest = max(t.length for t in result.attention.trials) if result.attention else 0
    return {
        "run": "made up, random weights" if folder is None else str(folder),
        "layers": layers, "heads": heads, "tokens": longest,
        "page_mb": size / 1e6,
        "trials_in_page": len((payload.about["runs"][0]["attention"] or {"trials": ()})["trials"]),
        "trials_left_out": sum(payload.left_out.values()), "build_s": built, **timed,
        "whole_patterns": _whole(layers * heads, longest),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def find_browser() -> str | None:
    """Path of a browser on this machine; None where there is none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def _in_browser(address: str) -> dict[str, Any]:
    """Milliseconds from opening to ready, and of clicks on heads; why not, where there is none."""
    path = find_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        return {"opened_ms": None, "click_ms": None, "browser": "none, or Playwright is missing"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        times = []
        for _ in range(3):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address)
            page.wait_for_selector("#explorer[data-ready]")
            times.append(page.evaluate("Explorer.ready.after"))
            names = page.eval_on_selector_all(
                "#panel-ranking tr[data-key]", "rows => rows.map(r => r.dataset.key)"
            )
            clicks = [page.evaluate(CLICK, name) for name in names[:N_CLICKS]]
            heap = page.evaluate("performance.memory ? performance.memory.usedJSHeapSize : null")
            page.close()
        version = browser.version
        browser.close()
    return {
        "opened_ms": float(np.median(times)), "click_ms": float(np.median(clicks)),
        "slowest_click_ms": max(clicks), "heap_mb": heap and heap / 1e6,
        "browser": f"Chromium {version}",
    }  # fmt: skip


def _whole(n_heads: int, tokens: int) -> dict[str, Any]:
    """Megabytes of whole T x T patterns of all heads, scaled from one smaller pattern."""
    rng = np.random.default_rng(0)
    pattern = np.tril(rng.dirichlet(np.ones(SMALL) * 0.01, size=SMALL))
    lists = len(json.dumps(np.round(pattern, 4).tolist()))
    scale = n_heads * (tokens / SMALL) ** 2 / 1e6
    return {"as_json_lists_mb": lists * scale, "as_uint8_mb": SMALL**2 * scale}


def made_up(layers: int, heads: int, tokens: int) -> "ScanResult":
    """A scan of that size: random scores, sparse rows with random keys."""
    import pandas as pd

    from circuits.scan_result import ScanResult
    from interp.store import Provenance

    rng = np.random.default_rng(0)
    lengths, depths = [tokens // 8, tokens // 4, tokens // 2, tokens], [0, 0.25, 0.5, 0.75, 1]
    cells = [(n, d) for n in lengths for d in depths]
    rows = [
        {"trial": f"c{i % 6:03d}-n{n}-d{d:.2f}-made-up-{i}", "length": n, "depth": d,
         "needle": f"needle-{i % 30}", "value": "value", "generated": "", "logprob": -1.0,
         "passed": bool(rng.random() < 0.8), "forced": True, "exact": True, "rouge": 1.0}
        for i, (n, d) in enumerate(cells * 6)
    ]  # fmt: skip
    trials = pd.DataFrame(rows)
    names = ("copy", "mass", "query_focus", "frequency")
    values = {n: rng.random((len(trials), layers, heads), np.float32) for n in names}
    roles = {n: rng.random((2, layers, heads), np.float32) for n in ("induction", "previous")}
    words = [f" word{i}" for i in range(5000)]
    context = tuple(words[i] for i in rng.integers(len(words), size=tokens))
    kept = [_rows(rng, row, layers, heads) for row in rows[:N_TRIALS][::-1]]
    made = Provenance(
        "made-up", "random numbers", None, None, None, "", "none", layers, heads, "float32", "cpu",
        "none", {}, "", 0.0, None, n_kv_heads=max(1, heads // 4),
    )  # fmt: skip
    settings = {"top": 10, "threshold": 0.1, "seed": 0, "lengths": lengths}
    record = AttentionRecord({0: context}, tuple(kept))
    return ScanResult(settings, made, trials, values, roles, attention=record)


def _rows(rng: np.random.Generator, row: dict, layers: int, heads: int) -> TrialRows:
    length, shape = row["length"], (layers, heads, N_ROWS, N_KEYS)
    weights = -np.sort(-rng.dirichlet(np.ones(N_KEYS), size=shape[:3]), -1)
    regions = rng.dirichlet(np.ones(len(REGIONS)), size=shape[:3])
    at = length // 2
    return TrialRows(
        row["trial"], 0, length, ("answer",) * 24, tuple(range(length + 12, length + 24)),
        ("",) * 8 + ("answer",) * 4,
        {"value": [at, at + 3], "needle": [at - 12, at + 4], "distractors": [[9, 20]],
         "question": [length, length + 12]},
        rng.integers(0, length, size=shape, dtype=np.int32),
        np.rint(weights * STEPS).astype(np.uint16),
        rng.standard_normal(shape).astype(np.float16),
        np.rint(regions * STEPS).astype(np.uint16),
    )  # fmt: skip
