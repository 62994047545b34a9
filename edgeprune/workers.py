"""Distributes work over single-threaded processes, one for each core that this process may use.

A worker is a copy of this process (fork), so models, data sets and functions need not be copied. Short work, and work
on a single core, runs in this process.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

__all__ = ["ordered", "wanted"]

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Free memory required per worker, bytes; a network of usual size with its activations needs about half.
_MEMORY_BYTES = 1 << 30
#: Items in flight per worker: enough to keep each busy, but few enough that finished results do not accumulate.
_AHEAD = 4
#: prctl's option (linux/prctl.h): the kernel sends a signal to this process when its parent ends.
_PR_SET_PDEATHSIG = 1

#: The function of a worker, which is inherited by fork and not pickled.
_function: Callable[[Any], Any]


def wanted() -> int:
    """The number of threads: the first value of OMP_NUM_THREADS, which has one value per nesting level, or all cores if
    it is not a number.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else len(os.sched_getaffinity(0))


def ordered(
    function: Callable[[_T], _R],
    items: Sequence[_T],
    *,
    begin: Callable[[], None] | None = None,
    count: int | None = None,
    warn: Callable[[str], None] | None = None,
) -> Iterator[_R]:
    """Yield `function(item)` for each item, in the order of the items.

    The results equal those of a loop in this process; an exception in `function` is raised in place of its result. If a
    worker is killed, for example by the kernel when memory runs out, this process computes the remaining items.

    Args:
        function: Called in a worker; its result is pickled.
        items: The items; only their indices are sent to the workers.
        begin: Called once in each worker, before its first item.
        count: The number of workers; None for `wanted()`, or fewer if memory is short.
        warn: Receives one line if a worker was killed; None raises a RuntimeWarning.
    """
    workers = min(_affordable() if count is None else count, len(items) // 2)
    done = 0
    if workers > 1:
        try:
            for result in _spread(function, items, begin, workers):
                yield result
                done += 1
        except BrokenProcessPool:
            text = (
                f"a worker process was killed, probably because memory ran out; the other {len(items) - done} of "
                f"{len(items)} images are processed by one process"
            )
            if warn is None:
                warnings.warn(text, RuntimeWarning, stacklevel=2)
            else:
                warn(text)
    for item in items[done:]:
        yield function(item)


def _affordable() -> int:
    """`wanted()`, or fewer if memory is short."""
    return max(1, min(wanted(), _free_bytes() // _MEMORY_BYTES))


def _free_bytes() -> int:
    """The memory that new processes can use, within the limits of the machine and of this process's control group."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            free = min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError, StopIteration):
        pass  # no such file, or no limit ("max")
    return free


def _spread(
    function: Callable[[_T], _R], items: Sequence[_T], begin: Callable[[], None] | None, workers: int
) -> Iterator[_R]:
    def call(index: int) -> _R:
        return function(items[index])

    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=_begin, initargs=(call, begin, os.getpid())
    )
    try:
        waiting: deque[Future[_R]] = deque()
        with warnings.catch_warnings():
            # Python warns about every fork of a process with threads. A worker takes no lock that those threads may
            # hold.
            warnings.simplefilter("ignore", DeprecationWarning)
            waiting.append(pool.submit(_call, 0))  # forks all workers
        for index in range(1, len(items)):
            waiting.append(pool.submit(_call, index))
            if len(waiting) >= _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[int], Any], begin: Callable[[], None] | None, parent: int) -> None:
    """Prepare a worker: it ends with its parent, and only the parent handles Ctrl-C."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call of prctl
        os._exit(1)
    _function = function
    if begin is not None:
        begin()


def _call(index: int) -> Any:
    return _function(index)
