"""Timing of a pipeline, stage by stage: warm-up, then the times of every frame.

The module does not depend on models, images or bundles: a stage is a callable, its result is the next stage's input,
and the caller's `supply` gives the frames. The wait for a frame counts for no stage.
"""

from __future__ import annotations

import statistics
import time
from array import array
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

from edgeprune_device import pipeline
from edgeprune_device.errors import DeviceError
from edgeprune_device.progress import Say, silent

__all__ = ["FrameTimes", "TimingPlan", "measure", "pipelined"]

_WINDOW_SECONDS, _WINDOW_FRAMES = 0.2, 5  # a warm-up window lasts at least both
_BATCH_NS = 200_000_000  # interval at which frames are stored and progress is reported
_AGREE = 0.05  # of the smallest of three consecutive window medians

Stages = Mapping[str, Callable[[Any], Any]]
Supply = Callable[[], Any]


@dataclass(frozen=True)
class FrameTimes:
    """Every sample of a run, in the order taken.

    Attributes:
        begins_ns: When each frame's first stage began, ns (CLOCK_MONOTONIC).
        frames_ns: Time from there to the end of its last stage, ns.
        stages_ns: {stage: one value per frame, ns}.
        wall_ns: Duration of the measured loop, including the time between frames, ns.
        first_ns: {stage: time of the very first frame}, before any warm-up, ns.
        warmup_frames: Number of frames of the warm-up.
        warmup_ns: Duration of the warm-up, ns.
        settled: Whether the medians of three consecutive windows agreed within 5 %.
        interrupted: Whether Ctrl-C or a failure ended the run; earlier samples are kept.
        failure: Message of that failure, else None.
    """

    begins_ns: Sequence[int]
    frames_ns: Sequence[int]
    stages_ns: Mapping[str, Sequence[int]]
    wall_ns: int
    first_ns: Mapping[str, int]
    warmup_frames: int
    warmup_ns: int
    settled: bool
    interrupted: bool = False
    failure: Optional[str] = None


@dataclass(frozen=True)
class TimingPlan:
    """The duration of a run.

    Attributes:
        seconds: Duration of the measured loop, s. It is extended, up to four times, until there are `min_samples`
            frames; at least one frame is always measured.
        min_samples: Number of frames to reach.
        warmup_seconds: Maximum warm-up, s. It ends earlier once the timings are stable; otherwise `FrameTimes.settled`
            is False. 0: one frame.
    """

    seconds: float = 10.0
    min_samples: int = 64
    warmup_seconds: float = 10.0

    @property
    def longest_s(self) -> float:
        """Longest time of warm-up and measurement, s, but for the first and the last frame of each."""
        return self.warmup_seconds + 4 * self.seconds


def measure(
    stages: Stages,
    supply: Supply,
    plan: TimingPlan = TimingPlan(),
    *,
    warmed: Optional[Callable[[int], None]] = None,
    after: Optional[Callable[[Any, int], None]] = None,
    progress: Say = silent,
) -> FrameTimes:
    """Time one frame after another through all stages.

    Args:
        stages: {name: callable}, in order.
        supply: Returns the next frame.
        plan: How long to measure.
        warmed: Called with the median time of a frame, ns, between warm-up and measuring.
        after: Called with each measured frame and its end, ns; this time is not measured.
        progress: Receives lines of text.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first measured frame.
        DeviceError: The GPU or the camera failed before the first measured frame.
    """
    run = _TimedRun(stages, supply, plan, progress, warmed)
    # All names are looked up in advance, and the code of `_frame` is repeated here: between two frames the loop must
    # touch few objects, because after a megabyte of image each of them is a cache miss.
    steps, clock, goes_on, add = list(stages.values()), time.monotonic_ns, run.goes_on, run.add
    end = clock()
    try:
        while goes_on(end):
            value = frame = supply()
            begin = end = clock()
            row = [begin]
            for step in steps:
                value = step(value)
                now = clock()
                row.append(now - end)
                end = now
            row.append(end - begin)
            add(row)
            if after:
                after(frame, end)
    except (KeyboardInterrupt, DeviceError) as error:
        run.interrupt(error)
    return run.samples()


def pipelined(
    stages: Stages,
    supply: Supply,
    plan: TimingPlan = TimingPlan(),
    *,
    middle: Sequence[str],
    latest: bool = False,
    warmed: Optional[Callable[[int], None]] = None,
    after: Optional[Callable[[Any, int], None]] = None,
    progress: Say = silent,
) -> FrameTimes:
    """Time several frames at once.

    While the stages `middle` work on one frame, the stages before them prepare the next one (`pipeline.Ahead`), and the
    stages after them, if any, work on the previous one in another thread. A frame's time includes its waits between
    these parts.

    `middle` runs in the caller's thread, as a CUDA context may belong to one thread. It begins a frame only when the
    one before the last has left the pipeline, because a runtime's results stay valid that long.

    Args:
        stages: {name: callable}, in order.
        supply: Returns the next frame.
        plan: How long to measure.
        middle: Names of consecutive stages.
        latest: Take each frame as late as possible, see `pipeline.Ahead`.
        warmed: See `measure`.
        after: See `measure`; called in the thread of the last stage.
        progress: See `measure`.

    Raises:
        KeyboardInterrupt: See `measure`.
        DeviceError: See `measure`.
    """
    run = _TimedRun(stages, supply, plan, progress, warmed)
    names = list(stages)
    begin, end = names.index(middle[0]), names.index(middle[-1]) + 1
    first, inner, final = ([stages[n] for n in part] for part in (names[:begin], names[begin:end], names[end:]))

    def prepare(frame: Any) -> Tuple[Any, Any, List[int]]:
        times = [time.monotonic_ns()]
        return frame, _through(first, frame, times), times

    def finish(frame: Any, value: Any, times: List[int]) -> None:
        _through(final, value, times)
        now = time.monotonic_ns()
        run.add((*times, now - times[0]))
        if after:
            after(frame, now)

    with pipeline.Ahead(supply, prepare, latest) as ahead, ThreadPoolExecutor(1) as behind:
        try:
            leaving: Optional[Future[None]] = None
            while run.goes_on(time.monotonic_ns()):
                frame, value, times = ahead.take()
                value = _through(inner, value, times)
                if not final:
                    finish(frame, value, times)
                    continue
                if leaving is not None:
                    leaving.result()
                leaving = behind.submit(finish, frame, value, times)
            if leaving is not None:
                leaving.result()
        except (KeyboardInterrupt, DeviceError) as error:
            run.interrupt(error)
    return run.samples()


class _TimedRun:
    """A run that warms up on construction, then keeps the time and the rows.

    A row is (begin, ns of each stage …, ns of the frame). The rows are stored in plain memory, 8 bytes per figure. As
    Python objects, hours of them would take a gigabyte, which the report would count as memory of the model. They are
    moved there in batches, which takes less time between two frames.
    """

    def __init__(
        self, stages: Stages, supply: Supply, plan: TimingPlan, progress: Say, warmed: Optional[Callable[[int], None]]
    ) -> None:
        steps = list(stages.values())
        self._names, self._plan, self._progress = list(stages), plan, progress
        self._width = len(stages) + 2
        begin = time.monotonic_ns()
        row = _frame(steps, supply())
        self._first = dict(zip(stages, row[1:]))
        more, self._settled, median = _warm_up(steps, supply, begin + int(plan.warmup_seconds * 1e9), progress)
        self._warmup_frames, self._warmup_ns = more + 1, time.monotonic_ns() - begin
        if warmed:
            warmed(median or row[-1])
        self._rows = array("q")
        self._batch: List[Sequence[int]] = []
        self.add = self._batch.append
        self._interrupted = False
        self._failure: Optional[str] = None
        self._start = self._next = time.monotonic_ns()

    def goes_on(self, now: int) -> bool:
        """Whether to measure another frame at `now`, ns."""
        return now < self._next or self._decide(now)

    def _decide(self, now: int) -> bool:
        """Move the batch, report progress, and set the time of the next move."""
        count = self._move()
        elapsed, plan = (now - self._start) / 1e9, self._plan
        self._progress(f"measuring {elapsed:.0f} of {plan.seconds:.0f} s")
        if count and elapsed >= plan.seconds:
            # From here on one frame at a time, because each may reach `min_samples`.
            return count < plan.min_samples and elapsed < 4 * plan.seconds
        self._next = min(now + _BATCH_NS, self._start + int(plan.seconds * 1e9))
        return True

    def _move(self) -> int:
        """Move the batch to the rows, and return the number of all rows."""
        for row in self._batch:
            self._rows.extend(row)
        self._batch.clear()
        return len(self._rows) // self._width

    def interrupt(self, error: BaseException) -> None:
        """End the run with the samples measured so far; without any, raise the error."""
        if not self._move():
            raise error
        self._interrupted = True
        self._failure = str(error) if isinstance(error, DeviceError) else None

    def samples(self) -> FrameTimes:
        self._move()
        begins, *columns, frames = (self._rows[i :: self._width] for i in range(self._width))
        return FrameTimes(
            begins_ns=begins,
            frames_ns=frames,
            stages_ns=dict(zip(self._names, columns)),
            # An interrupt can leave a partial frame, which is ignored.
            wall_ns=(begins[-1] + frames[-1] if self._interrupted else time.monotonic_ns()) - self._start,
            first_ns=self._first,
            warmup_frames=self._warmup_frames,
            warmup_ns=self._warmup_ns,
            settled=self._settled,
            interrupted=self._interrupted,
            failure=self._failure,
        )


def _through(steps: Sequence[Callable[[Any], Any]], value: Any, times: List[int]) -> Any:
    """Run `steps` on a value and append the time of each, ns, to `times`."""
    last = time.monotonic_ns()
    for step in steps:
        value = step(value)
        now = time.monotonic_ns()
        times.append(now - last)
        last = now
    return value


def _frame(steps: Sequence[Callable[[Any], Any]], value: Any) -> Tuple[int, ...]:
    """Run one frame through all stages: (begin, ns of each stage …, ns of the frame)."""
    clock, taken = time.monotonic_ns, []
    begin = last = clock()
    for step in steps:
        value = step(value)
        now = clock()
        taken.append(now - last)
        last = now
    return (begin, *taken, last - begin)


def _warm_up(
    steps: Sequence[Callable[[Any], Any]], supply: Supply, deadline_ns: int, progress: Say
) -> Tuple[int, bool, Optional[int]]:
    """Return (frames run, settled, the last window's median)."""
    clock, frames = time.monotonic_ns, 0
    medians: List[float] = []
    while True:
        window: List[int] = []
        began = clock()
        while len(window) < _WINDOW_FRAMES or clock() - began < _WINDOW_SECONDS * 1e9:
            if clock() >= deadline_ns:
                return frames, False, int(statistics.median(window or medians or [0])) or None
            window.append(_frame(steps, supply())[-1])
            frames += 1
            progress(f"warming up, frame {frames}")
        medians = [*medians[-2:], statistics.median(window)]
        if len(medians) == 3 and max(medians) - min(medians) <= _AGREE * min(medians):
            return frames, True, int(medians[-1])
