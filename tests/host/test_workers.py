"""Processes that share work give the results of a loop, in order, and lose nothing when one of them is killed."""

import os
import signal
import textwrap
import time
from types import SimpleNamespace

import pytest
from edgeprune_device.errors import InputError

from edgeprune import workers

from . import forked


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(count):
    def slow_at_first(item):
        time.sleep(0.05 if item == 0 else 0)
        return item * 10, os.getpid()

    results = list(workers.ordered(slow_at_first, range(40), count=count))
    assert [value for value, _ in results] == [i * 10 for i in range(40)]
    pids = {pid for _, pid in results}
    assert pids == {os.getpid()} if count == 1 else len(pids) == count and os.getpid() not in pids


def test_begin_runs_once_in_each_worker():
    seen = []

    def item(_):
        time.sleep(0.01)
        return os.getpid(), len(seen)

    results = list(workers.ordered(item, range(20), begin=lambda: seen.append(1), count=2))
    assert {times for _, times in results} == {1} and not seen


def test_error_is_raised_in_place_of_its_result():
    def fails_at_five(item):
        if item == 5:
            raise InputError("image 5: damaged")
        return item

    results = []
    with pytest.raises(InputError, match="image 5: damaged"):
        for value in workers.ordered(fails_at_five, range(20), count=2):
            results.append(value)
    assert results == [0, 1, 2, 3, 4]


def test_this_process_computes_the_items_of_a_killed_worker():
    parent, warned = os.getpid(), []

    def killed_at_seven(item):
        if item == 7 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(workers.ordered(killed_at_seven, range(20), count=2, warn=warned.append)) == list(range(20))
    assert len(warned) == 1 and "killed" in warned[0]
    with pytest.warns(RuntimeWarning, match="killed"):  # without a receiver the line is still seen
        assert list(workers.ordered(killed_at_seven, range(20), count=2)) == list(range(20))


def test_items_in_flight_are_bounded(tmp_path):
    """A consumer that is slow does not let finished results pile up."""

    def item(index):
        (tmp_path / str(index)).touch()
        return index

    results = workers.ordered(item, range(100), count=2)
    next(results)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) <= 2 * 4 + 1
    results.close()


def test_workers_end_with_a_killed_parent(tmp_path):
    text = f"""
    import os, pathlib, time
    from edgeprune import workers
    def item(index):
        pathlib.Path({str(tmp_path)!r}, f"pid-{{os.getpid()}}").touch()
        time.sleep(600)
    list(workers.ordered(item, range(10), count=2))
    """
    process = forked.Process(textwrap.dedent(text), folder=tmp_path)
    process.until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    process.kill(signal.SIGKILL)
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    end = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}/status") and not _zombie(pid) for pid in pids):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.05)


def _zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_short_work_starts_no_process():
    assert list(workers.ordered(lambda _: os.getpid(), range(3), count=8)) == [os.getpid()] * 3


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("4,2", 4), (" 2 ", 2), ("0", 2), ("many", 2), ("", 2)])
def test_omp_num_threads_sets_the_number_of_workers(monkeypatch, text, count):
    monkeypatch.setattr(
        workers, "os", SimpleNamespace(environ={"OMP_NUM_THREADS": text}, sched_getaffinity=lambda _: {0, 1})
    )
    assert workers.wanted() == count


def test_scarce_memory_lowers_the_number_of_workers(monkeypatch):
    monkeypatch.setattr(workers, "wanted", lambda: 16)
    monkeypatch.setattr(workers, "_free_bytes", lambda: 3 << 30)
    assert workers._affordable() == 3
    monkeypatch.setattr(workers, "_free_bytes", lambda: 1 << 20)
    assert workers._affordable() == 1
