"""The board and the shared shelf: every job once, whoever makes it, whoever dies."""

import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from circuits.crew.board import Board, News
from circuits.crew.shared_shelf import SharedShelf
from circuits.crew.work import Assignment, versions, work
from circuits.shelf import Job, Part, Shelf
from interp.errors import ResultError

LABEL = {"settings": 1}
JOBS = [("a0", "a"), ("a1", "a"), ("b0", "b"), ("b1", "b"), ("c0", "c")]


def files(text="x"):
    return {"part.txt": text.encode()}


def board_of(tmp_path):
    board = Board(tmp_path / "parts")
    assert board.open(0, LABEL) is None
    return board


class Locked:
    """A board that several threads may ask, as an actor is asked: one call at a time."""

    def __init__(self, board):
        self._board, self._lock = board, threading.Lock()

    def __getattr__(self, name):
        def call(*args):
            with self._lock:
                return getattr(self._board, name)(*args)

        return call


def test_a_worker_stays_with_its_group_and_helps_out_from_the_end(tmp_path):
    board = board_of(tmp_path)
    assert board.next(0, JOBS)[0] == "a0" and board.next(1, JOBS)[0] == "b0"
    for worker, name in ((0, "a0"), (1, "b0")):
        board.finish(worker, name, files())
    given = [board.next(0, JOBS)[0], board.next(1, JOBS)[0], board.next(0, JOBS)[0]]
    assert given == ["a1", "b1", "c0"]
    for worker, name in ((0, "a1"), (1, "b1"), (0, "c0")):
        board.finish(worker, name, files())
    assert board.next(0, JOBS) == (None, [n for n, _ in JOBS])
    more = [("d0", "d"), ("d1", "d"), ("d2", "d")]
    # the only group left is another's: its last job, not its next one
    assert [board.next(0, more)[0], board.next(1, more)[0]] == ["d0", "d2"]


def test_a_dead_workers_job_goes_to_another_and_what_it_sends_late_is_dropped(tmp_path):
    board = board_of(tmp_path)
    jobs = [("only", "")]
    assert board.next(0, jobs)[0] == "only" and board.next(1, jobs)[0] is None
    board.release(0)
    assert board.next(1, jobs)[0] == "only"
    board.finish(0, "only", files("late"))
    assert board.next(0, jobs) == (None, [])
    board.finish(1, "only", files("first"))
    board.finish(0, "only", files("again"))
    assert board.files("only") == files("first")
    assert board.next(0, jobs) == (None, ["only"])


def test_one_worker_goes_on_and_another_where_it_dies(tmp_path):
    board = board_of(tmp_path)
    assert [board.goes_on(w) for w in (1, 0, 1)] == [True, False, True]
    board.release(1)
    assert board.goes_on(0) and not board.goes_on(1)


def test_progress_never_goes_back(tmp_path):
    board = board_of(tmp_path)
    for done in (3, 1):
        board.tell(News(done, 9, "", 0))
    assert board.news().done == 3 and board.news().total == 9


def test_workers_that_measure_something_else_are_refused(tmp_path):
    board = board_of(tmp_path)
    refused = board.open(1, {"settings": 2})
    assert "worker 1" in refused and "settings 2 instead of 1" in refused
    (tmp_path / "old").mkdir()
    Shelf(tmp_path / "old", {"settings": 7})
    assert "parts of another run" in Board(tmp_path / "old").open(0, LABEL)
    with pytest.raises(ResultError, match="settings 2"):
        SharedShelf(board, 1, width=2, folder=tmp_path / "own", label={"settings": 2})


def test_parts_of_an_earlier_run_are_not_made_again_but_damaged_ones_are(tmp_path):
    shelf = Shelf(tmp_path / "parts", LABEL)
    shelf.write("whole", Part({"v": np.arange(3)}))
    shelf.write("cut", Part({"v": np.arange(3)}))
    path = tmp_path / "parts" / "cut.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    board = board_of(tmp_path)
    assert board.next(0, [("whole", ""), ("cut", "")]) == ("cut", ["whole"])


def crew(tmp_path, work, width=3):
    """Run `work(shelf)` in threads of one board; what each gave."""
    board, given = Locked(Board(tmp_path / "parts")), {}

    def one(worker):
        shelf = SharedShelf(
            board, worker, width=width, folder=tmp_path / f"own-{worker}", label=LABEL
        )
        given[worker] = work(shelf, worker)

    threads = [threading.Thread(target=partial(one, w)) for w in range(width)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return given


def test_a_crew_makes_every_part_once_and_all_see_the_same(tmp_path):
    made = []

    def jobs(worker):
        def make(i):
            made.append((i, worker))
            time.sleep(0.01)
            return Part({"v": np.full(2, i)}, [{"i": i}])

        return [Job(f"p{i}", partial(make, i), f"g{i % 4}") for i in range(12)]

    def go(shelf, worker):
        ticked = []
        found = shelf.parts(jobs(worker), lambda job: ticked.append(job.name))
        assert sorted(ticked) == sorted(found)
        return [(name, part.values["v"].tolist(), part.rows) for name, part in found.items()]

    given = crew(tmp_path, go)
    alone = Shelf(None, {}).parts(jobs(9))
    expected = [(n, p.values["v"].tolist(), p.rows) for n, p in alone.items()]
    assert list(given) and all(each == expected for each in given.values()) and len(given) == 3
    by_crew = [i for i, worker in made if worker != 9]
    assert sorted(by_crew) == list(range(12))
    assert len({worker for _, worker in made} - {9}) > 1


def test_a_crew_fills_folders_once_and_sends_them_to_all(tmp_path):
    def go(shelf, worker):
        def fill(i, folder):
            (folder / "deep").mkdir()
            (folder / "deep" / "who").write_text(f"{i}")
            time.sleep(0.01)

        found = shelf.folders([Job(f"f{i}", partial(fill, i)) for i in range(5)])
        return [(path / "deep" / "who").read_text() for path in found.values()]

    given = crew(tmp_path, go)
    assert list(given.values()) == [["0", "1", "2", "3", "4"]] * 3


def test_a_worker_with_other_versions_is_refused_in_one_line(tmp_path):
    other = versions() | {"torch": "1.0"}
    job = Assignment("scan", "no-such-model", {}, (), None, 1, 1, other, str(Path.cwd()))
    outcome = work(Board(tmp_path / "parts"), 2, job)
    assert outcome.files is None and outcome.kind == "ClusterError"
    assert "worker 2" in outcome.why and "here 1.0" in outcome.why
    same = Assignment("scan", "no-such-model", {}, (), None, 1, 1, versions(), str(Path.cwd()))
    assert work(Board(tmp_path / "parts"), 2, same).kind == "UnknownNameError"
