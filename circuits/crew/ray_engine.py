"""An experiment on a Ray cluster: one model for each worker, parts shared, deaths made good.

Ray starts the workers, says when one died, and carries the parts; what is made by whom is decided
on the board (`circuits.crew.board`), which lives beside the driver and writes into the run's own
folder. On CPU, with as many threads, the result is that of a single process bit for bit.
"""

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuits.crew.board import Board, News, unpack
from circuits.crew.ray_cluster import Cluster, check_room, connected, first_line, idle_gpus
from circuits.crew.work import Assignment, Outcome, experiment, versions, work
from circuits.tally import Progress
from interp import errors
from interp.errors import ClusterError
from interp.store import write_folder

TICK = 0.3
"""Seconds between two looks at the workers."""
BUSY = 60.0
"""Seconds without news after which the user is told why that may be."""


def run_on_ray(
    name: str,
    model: str,
    *given: Any,
    settings: Any,
    cluster: Cluster | None = None,
    parts: str | Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    threads: int | None = None,
    **loading: Any,
) -> Any:
    """Run an experiment with several workers.

    Args:
        name: one of `circuits.crew.work.EXPERIMENTS`: scan, validate, bind, graph, ....
        model: a reference of `interp.load` that means the same model on every node.
        given: what the experiment is about beside the model: heads to validate, a graph's text.
        settings: of the experiment, such as `ScanSettings`.
        parts: a folder on this machine for finished parts; any engine goes on after them.
        progress: called with what all workers have done, how much there is, and what is running.
        say: called with lines for the user: which worker is where, which one died.
        threads: of each worker; as many as it has CPUs if not given.
        loading: options of `interp.load`: `dtype`, `device`, `device_map`, `revision`.

    Raises:
        ClusterError: no cluster there, no room for the workers, other versions on a node, or no
            worker left alive; finished parts are kept.
        MnemoscopeError: as the experiment itself raises.
    """
    chosen, cluster = experiment(name), cluster or Cluster()
    if not isinstance(model, str | Path):
        raise ClusterError(
            f"every worker loads the model itself: name it as a folder, a bundled or a hub name, "
            f"not as a {type(model).__name__}"
        )
    folder = Path(parts) if parts is not None else Path(tempfile.mkdtemp(prefix="mnemoscope-"))
    job = Assignment(
        name, str(model), loading, given, settings, cluster.workers,
        threads or max(1, int(cluster.cpus)), versions(), str(Path.cwd()),
    )  # fmt: skip
    with connected(cluster) as ray:
        check_room(ray, cluster)
        there = ray.cluster_resources().get("GPU", 0)
        if say is not None and (line := idle_gpus(there, cluster, loading.get("device"))):
            say(line)
        crew = _Crew(ray, cluster, job, folder, progress or (lambda *_: None), say)
        files = crew.result()
    target = write_folder(folder / "result", lambda to: unpack(to, files))
    result = chosen.load(target)
    if parts is None:  # tables of the result may lie in its files
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


@dataclass
class _Crew:
    """The workers of a run, watched until one brings the result."""

    ray: Any
    cluster: Cluster
    job: Assignment
    folder: Path
    progress: Progress
    say: Callable[[str], None] | None
    running: dict[Any, int] = field(default_factory=dict)
    n_deaths: int = 0

    def result(self) -> Mapping[str, bytes]:
        """Files of the result.

        Raises:
            ClusterError: all are dead.
            MnemoscopeError: what a worker said of its input.
        """
        ray = self.ray
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        place = {"num_cpus": 0, "scheduling_strategy": here}
        board = ray.remote(Board).options(**place).remote(str(self.folder.resolve()))
        for worker in range(self.cluster.workers):
            self._start(board, worker)
        told, began = News(-1, 0, "", 0), time.monotonic()
        try:
            while True:
                ready, _ = ray.wait(list(self.running), timeout=TICK)
                told = self._tell(board, told)
                if not told.total and time.monotonic() - began > BUSY:
                    began = float("inf")
                    self._say("nothing has begun yet: models load, or others use the cluster")
                for ref in ready:
                    outcome = self._outcome(board, ref)
                    if outcome is not None:
                        self._tell(board, told)
                        return _files(outcome)
        finally:
            for ref in self.running:
                ray.cancel(ref, force=True)

    def _start(self, board: Any, worker: int) -> None:
        needs = self.cluster.needs
        placed = self.ray.remote(_work).options(
            num_cpus=needs.get("CPU", 0), num_gpus=needs.get("GPU", 0),
            memory=needs.get("memory"), max_retries=0, scheduling_strategy="SPREAD",
        )  # fmt: skip
        self.running[placed.remote(board, worker, self.job)] = worker

    def _outcome(self, board: Any, ref: Any) -> Outcome | None:
        """What a worker brings; None where it died, and another takes its place if it may."""
        worker = self.running.pop(ref)
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None  # a bug: keep its traceback
        except self.ray.exceptions.RayError as error:
            reason = first_line(error)
        self.ray.get(board.release.remote(worker))
        self.n_deaths += 1
        replaced = self.n_deaths <= self.cluster.deaths
        then = "another takes its place" if replaced else "the others go on"
        self._say(f"worker {worker} died ({reason}); {then}, nothing is lost")
        if replaced:
            self._start(board, worker)
        if not self.running:
            raise ClusterError(
                f"no worker is left: {self.n_deaths} died, the last one of: {reason}. Finished "
                "parts are kept; give each worker more memory or run fewer, and go on with --resume"
            )
        return None

    def _tell(self, board: Any, told: News) -> News:
        news, lines = self.ray.get([board.news.remote(), board.lines.remote()])
        for line in lines:
            self._say(line)
        if news != told and news.total:
            if news.done != told.done:
                self.progress(news.done, news.total, "")
            if news.what:
                self.progress(news.done, news.total, f"{news.worker}: {news.what}")
        return news

    def _say(self, line: str) -> None:
        if self.say is not None:
            self.say(line)


def _work(board: Any, worker: int, job: Assignment) -> Outcome:
    return work(_Answers(board), worker, job)


class _Answers:
    """An actor's methods, each called and waited for."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        import ray

        method = getattr(self._actor, name)
        return lambda *args: ray.get(method.remote(*args))


def _files(outcome: Outcome) -> Mapping[str, bytes]:
    if outcome.files is not None:
        return outcome.files
    if outcome.kind == "memory":
        raise ClusterError(
            f"a worker ran out of memory ({outcome.why}); give each more (--gpus-per-worker, "
            "--worker-memory), run fewer, or load a smaller --dtype; finished parts are kept"
        )
    kind = getattr(errors, outcome.kind, errors.MnemoscopeError)
    error = kind.__new__(kind)  # some take other arguments than their message
    Exception.__init__(error, outcome.why)
    raise error
