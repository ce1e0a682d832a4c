"""Peak memory of a piece of work beyond what was there before it, and how much there is to take.

On a CPU the high-water mark belongs to the whole process, so each way that is compared is run in a
process of its own; there it is reset before every piece, and freed memory is given back first, or
the next piece would use it unseen.
"""

import contextlib
import gc
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

MB = 1e6
REPEATS = 3
SHORT = 5.0
"""Seconds of work that is not repeated."""
STATUS = Path("/proc/self/status")


def peak_mb(
    work: Callable[[], Any], device: torch.device, *, repeats: int = REPEATS
) -> float | None:
    """MB that `work` takes at its peak, beyond what was held before; None where nothing tells.

    Linux tells, and CUDA. Short work is repeated and the least counts: the allocator and the size
    of the system's pages only ever add.
    """
    start = time.perf_counter()
    least = _once(work, device)
    again = repeats - 1 if time.perf_counter() - start < SHORT else 0
    found = [least, *(_once(work, device) for _ in range(again))]
    return None if least is None else min(peak for peak in found if peak is not None)


def _once(work: Callable[[], Any], device: torch.device) -> float | None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / MB
    _give_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / MB


def free_bytes(device: torch.device) -> float | None:
    """Memory that could be taken now; None where the system does not tell."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(free + idle)
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024.0
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError):
        return None


def in_own_process(work: Callable[..., Any], *args: Any) -> Any:
    """What `work(*args)` returns, run in a fresh process; None if that was killed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(work, *args).result()
        except BrokenProcessPool:
            return None


def _give_back() -> None:
    """Freed memory goes back to the system, which glibc alone can be asked for."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status(field: str) -> int:
    """Bytes in a line of this process's status."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")
