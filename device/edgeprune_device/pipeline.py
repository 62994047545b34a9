"""A pipeline of two frames: a thread prepares the next frame while the caller works on the current one.

The module does not depend on models or images: a frame is any object. `edgeprune run` and `edgeprune bench` share it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Callable, Collection, Deque, Generic, List, Mapping, Optional, TypeVar

__all__ = ["AHEAD", "STAGES", "Ahead", "slow_stage"]

#: The stages of a frame, in order, and those that run ahead in a thread.
STAGES = ("decode", "pre", "infer", "post")
AHEAD = ("decode", "pre")

_RECENT = 9  # durations from which the next one is estimated

Taken = TypeVar("Taken")
Prepared = TypeVar("Prepared")


class Ahead(Generic[Taken, Prepared]):
    """Prepares the next frame in a thread: Ahead(source.next, decode, latest=True).

    At most two frames exist: the caller's, and the one that is being prepared or waits for the caller. The order is
    kept. An error of `supply` or `prepare` is raised by `take`, after the frames before it.

    Frames of a camera become stale, so with `latest` the thread takes a frame as late as possible: when the remaining
    work of the caller will last as long as preparing a frame does, both by the median of the last nine. A caller that
    is done earlier ends this delay. Without `latest`, the thread takes the next frame at once.

    Args:
        supply: Returns the next frame, and may wait for it.
        prepare: Turns a frame into the caller's input.
        latest: Take each frame as late as possible.
        overlap: False: take a frame only when the caller waits for it, so that only one of the two works at a time.
    """

    def __init__(
        self,
        supply: Callable[[], Taken],
        prepare: Callable[[Taken], Prepared],
        latest: bool = False,
        overlap: bool = True,
    ):
        self._supply, self._prepare, self._latest, self._overlap = supply, prepare, latest, overlap
        self._changed = threading.Condition()
        self._ready: List[Prepared] = []  # at most one
        self._failure: Optional[BaseException] = None
        self._wanted = self._closed = False
        self._given_ns: Optional[int] = None  # when the caller began its current frame
        self._working_ns: Deque[int] = deque(maxlen=_RECENT)  # the caller's time per frame
        self._preparing_ns: Deque[int] = deque(maxlen=_RECENT)
        # A daemon thread: a hanging decoder must not keep the process from ending.
        threading.Thread(target=self._run, name="edgeprune-ahead", daemon=True).start()

    def take(self) -> Prepared:
        """Return the next prepared frame, and let the thread prepare another one. A signal may interrupt the wait."""
        with self._changed:
            if self._given_ns is not None:
                self._working_ns.append(time.monotonic_ns() - self._given_ns)
            self._wanted = True
            self._changed.notify_all()
            while not self._ready:
                if self._failure is not None:
                    raise self._failure
                self._changed.wait()
            self._wanted, self._given_ns = False, time.monotonic_ns()
            self._changed.notify_all()
            return self._ready.pop()

    def close(self) -> None:
        """Let the thread end after the frame that it prepares. It does not wait, because `supply` may never return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __enter__(self) -> Ahead[Taken, Prepared]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        try:
            while self._begins():
                frame = self._supply()
                begin = time.monotonic_ns()
                prepared = self._prepare(frame)
                self._preparing_ns.append(time.monotonic_ns() - begin)
                with self._changed:
                    self._ready.append(prepared)
                    self._changed.notify_all()
                del frame, prepared  # the caller's now: this thread must not keep a third frame alive
        except BaseException as error:  # the caller must receive any error
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _begins(self) -> bool:
        """Wait until it is time to take a frame; return False if the pipeline is closed."""
        with self._changed:
            while self._ready and not self._closed:
                self._changed.wait()
            while not self._wanted and not self._closed:
                left_s = self._delay_s()
                if left_s is not None and left_s <= 0:
                    break
                self._changed.wait(left_s)
            return not self._closed

    def _delay_s(self) -> Optional[float]:
        """Time until the next frame is to be taken, s; None: when the caller waits for it."""
        if not self._overlap:
            return None
        if not self._latest or self._given_ns is None or not self._working_ns:
            return 0.0
        spare_ns = _median(self._working_ns) - _median(self._preparing_ns)
        return (self._given_ns + spare_ns - time.monotonic_ns()) / 1e9


def _median(values: Collection[int]) -> int:
    return sorted(values)[len(values) // 2]  # the module statistics is large, and the service's supervisor small


def slow_stage(stages: Mapping[str, float], limit: float) -> Optional[str]:
    """The stage that keeps a pipeline below the rate of its source, or None if the pipeline keeps up.

    The stages `AHEAD` and the others work at the same time, so the slower of the two parts sets the rate. An example:
    slow_stage({"decode": 30, "pre": 5, "infer": 20, "post": 1}, 33.3) == "decode".

    Args:
        stages: {stage: typical time per frame}, in any unit.
        limit: Time between two frames of the source, in the same unit.
    """
    parts = AHEAD, [name for name in STAGES if name not in AHEAD]
    slower = max(parts, key=lambda names: sum(stages[name] for name in names))
    if sum(stages[name] for name in slower) <= limit:
        return None
    return max(slower, key=lambda name: stages[name])
