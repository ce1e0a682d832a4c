"""A Ray cluster: what each worker needs of it, joining or starting one, and what can go wrong."""

import io
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from interp.errors import ClusterError

REACHED = 5.0
"""Seconds after which a cluster that does not answer counts as unreachable."""


@dataclass(frozen=True)
class Cluster:
    """Where workers run, and what each of them gets.

    Attributes:
        workers: how many, each with a model of its own.
        cpus: of each: what Ray sets aside, and threads (at least one).
        gpus: of each; a fraction puts several workers on one GPU, more than one is for a model
            with `device_map="auto"`.
        memory_gb: main memory that Ray sets aside for each; 0: none.
        address: `auto` for the cluster that this machine belongs to, `HOST:PORT`, or empty to
            start one on this machine for the time of the run.
        deaths: workers that may die and be replaced, in all.
    """

    workers: int = 2
    cpus: float = 1
    gpus: float = 0
    memory_gb: float = 0
    address: str = ""
    deaths: int = 3

    def __post_init__(self) -> None:
        if self.workers < 1 or self.cpus < 0 or self.gpus < 0 or self.memory_gb < 0:
            raise ClusterError(
                f"{self.workers} workers with {self.cpus:g} CPUs, {self.gpus:g} GPUs and "
                f"{self.memory_gb:g} GB each; give one worker or more, and nothing below zero"
            )

    @property
    def needs(self) -> dict[str, float]:
        """Resources of one worker, by Ray's names."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gb * 1e9}
        return {k: v for k, v in wanted.items() if v}

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        return f"ray, {self.workers} worker{'s' * (self.workers > 1)} of {each}"


@contextmanager
def connected(cluster: Cluster) -> Iterator[Any]:
    """Ray, connected; what was started here is stopped, what was there stays."""
    ray = _ray()
    if ray.is_initialized():
        with redirect_stdout(_WithoutRay(sys.stdout)):
            yield ray
        return
    _check_address(cluster.address)
    options: dict[str, Any] = {"address": cluster.address or "local"}
    if not cluster.address:
        options |= {
            "num_cpus": max(1, -(-cluster.workers * cluster.cpus // 1)), "include_dashboard": False,
            "object_store_memory": 512 * 2**20,
        }  # fmt: skip
    try:
        ray.init(logging_level="ERROR", log_to_driver=False, configure_logging=True, **options)
    except ConnectionError:
        raise ClusterError(_unreachable(cluster.address)) from None
    except (RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cannot start or join the cluster {cluster.address or 'on this machine'}: "
            f"{first_line(error)}"
        ) from None
    try:
        with redirect_stdout(_WithoutRay(sys.stdout)):
            yield ray
    finally:
        ray.shutdown()


class _WithoutRay(io.TextIOBase):
    """Standard output without what Ray's own threads say on it: deaths are told in our words, and
    a program may be reading.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Pass on what other threads write."""
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self.stream.write(text))

    def flush(self) -> None:
        """As the stream does."""
        self.stream.flush()

    def isatty(self) -> bool:
        """As the stream is."""
        return bool(self.stream.isatty())


def check_room(ray: Any, cluster: Cluster) -> None:
    """Refuse workers that would wait for ever."""
    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"]]
    room = sum(
        int(min((node.get(k, 0) + 1e-9) // v for k, v in cluster.needs.items()))
        for node in nodes
    ) if cluster.needs else cluster.workers  # fmt: skip
    if room >= cluster.workers:
        return
    each = ", ".join(
        f"{v / 1e9:g} GB memory" if k == "memory" else f"{v:g} {k}"
        for k, v in cluster.needs.items()
    )
    have = "; ".join(
        f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU, {n.get('memory', 0) / 1e9:.1f} GB"
        for n in nodes
    )
    raise ClusterError(
        f"{cluster.workers} workers with {each} each do not fit: there is room for {room} (nodes: "
        f"{have}); ask for fewer workers, or for less for each"
    )


def idle_gpus(there: float, cluster: Cluster, device: str | None) -> str | None:
    """A line for a user who asks for no GPU where there are some, and did not ask for the CPU."""
    if not there or cluster.gpus or device is not None:
        return None
    return (
        f"the cluster has {there:g} GPUs and none was asked for: workers run on the CPU; "
        "--gpus-per-worker 1 gives each one of them"
    )


def first_line(error: BaseException) -> str:
    """Why Ray says that something ended, in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    if kind == "OutOfMemoryError":
        return "out of memory: its node killed it"
    return {"WorkerCrashedError": "its process was killed or crashed"}.get(
        kind, f"{kind}: {lines[0][:160] if lines else ''}"
    )


def _ray() -> Any:
    # nothing is reported to anyone unless the user's environment says so
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError:
        raise ClusterError(
            "--engine ray needs Ray on every node: pip install 'mnemoscope[ray]'"
        ) from None
    return ray


def _check_address(address: str) -> None:
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address}: a driver outside the cluster cannot keep the parts; run this command on a "
            "node of the cluster, with --address auto"
        )
    if not address or address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(f"--address is auto or HOST:PORT, got {address!r}")
    with suppress(OSError), socket.create_connection((host, int(port)), timeout=REACHED):
        return
    raise ClusterError(_unreachable(address))


def _unreachable(address: str) -> str:
    where = "on this machine" if address == "auto" else f"at {address}"
    return (
        f"no Ray cluster answers {where}; start one (ray start --head), check --address, or leave "
        "it out to start one here for this run"
    )
