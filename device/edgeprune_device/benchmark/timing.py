"""Timing of a pipeline, stage by stage: warm-up, then the times of every frame.

The module does not depend on models, images or bundles: a stage is a callable, its result is the next stage's input,
and the caller's `supply` gives the frames. The wait for a frame counts for no stage.
"""

from __future__ import annotations

import statistics
import time
from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

from edgeprune_device.errors import DeviceError

__all__ = ["FrameTimes", "TimingPlan", "measure", "pipelined"]

_WINDOW_SECONDS, _WINDOW_FRAMES = 0.2, 5  # a warm-up window lasts at least both
_TELL_SECONDS = 0.2
_AGREE = 0.05  # of the smallest of three consecutive window medians

Stages = Mapping[str, Callable[[Any], Any]]
Supply = Callable[[], Any]


@dataclass(frozen=True)
class FrameTimes:
    """Every sample of a run, in the order taken.

    Attributes:
        begins_ns: When each frame's first stage began, ns (CLOCK_MONOTONIC).
        frames_ns: Time from there to the end of its last stage, ns.
        stages_ns: {stage: one value a frame, ns}.
        wall_ns: Duration of the measured loop, including the time between the frames, ns.
        first_ns: {stage: time of the very first frame}, before any warm-up, ns.
        warmup_frames: Number of frames of the warm-up.
        warmup_ns: Duration of the warm-up, ns.
        settled: Whether the medians of three consecutive windows agreed within 5 %.
        interrupted: Whether Ctrl-C or a failure ended the run; the samples until then are kept.
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
    """How long a run lasts.

    Attributes:
        seconds: Duration of the measured loop, s. It lasts longer, up to four times that, until it has `min_samples`,
            and it measures at least one frame.
        min_samples: Number of frames to reach.
        warmup_seconds: Longest warm-up, s. It ends when the timings settle, else `FrameTimes.settled` is False. 0: one
            frame.
    """

    seconds: float = 10.0
    min_samples: int = 64
    warmup_seconds: float = 10.0


def measure(
    stages: Stages,
    supply: Supply,
    plan: TimingPlan = TimingPlan(),
    *,
    warmed: Optional[Callable[[int], None]] = None,
    after: Optional[Callable[[Any, int], None]] = None,
    progress: Optional[Callable[[str], None]] = None,
) -> FrameTimes:
    """Time one frame after another through all stages.

    Args:
        stages: {name: callable}, in order.
        supply: Returns the next frame.
        plan: How long to measure.
        warmed: Called with the median time of a frame, ns, between warm-up and measuring.
        after: Called with each measured frame and its end, ns, outside its time.
        progress: Called with a line of text.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first measured frame.
        DeviceError: The GPU or the camera failed before the first measured frame.
    """
    run = _TimedRun(stages, supply, plan, progress, warmed)
    steps = list(stages.values())
    try:
        while run.goes_on():
            frame = supply()
            row = _frame(steps, frame)
            run.add(row)
            if after:
                after(frame, row[0] + row[-1])
    except (KeyboardInterrupt, DeviceError) as error:
        run.interrupt(error)
    return run.samples()


def pipelined(
    stages: Stages,
    supply: Supply,
    plan: TimingPlan = TimingPlan(),
    *,
    middle: str,
    warmed: Optional[Callable[[int], None]] = None,
    progress: Optional[Callable[[str], None]] = None,
) -> FrameTimes:
    """Time up to three frames at once.

    While `middle` works on one frame, the stages before it have the next one and the stages after it the previous one.
    The result is the most frames a second that the machine can do. A frame's time includes its waits between the three
    parts.

    `middle` stays in the caller's thread, as a CUDA context may belong to one thread. It begins a frame only when the
    one before the last has left the pipeline, because a runtime's results stay valid that long.

    Args:
        stages: {name: callable}, in order.
        supply: Returns the next frame.
        plan: How long to measure.
        middle: Name of the stage in the middle.
        warmed: See `measure`.
        progress: See `measure`.

    Raises:
        KeyboardInterrupt: See `measure`.
        DeviceError: See `measure`.
    """
    run = _TimedRun(stages, supply, plan, progress, warmed)
    names = list(stages)
    cut = names.index(middle)
    before, after = [stages[n] for n in names[:cut]], [stages[n] for n in names[cut + 1 :]]

    def first() -> Tuple[Any, List[int]]:
        frame, times = supply(), [time.monotonic_ns()]
        return _through(before, frame, times), times

    def last(value: Any, times: List[int]) -> None:
        _through(after, value, times)
        run.add((*times, time.monotonic_ns() - times[0]))

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        try:
            coming, leaving = ahead.submit(first), None
            while run.goes_on():
                value, times = coming.result()
                coming = ahead.submit(first)
                value = _through([stages[middle]], value, times)
                if leaving:
                    leaving.result()
                leaving = behind.submit(last, value, times)
            leaving.result()
        except (KeyboardInterrupt, DeviceError) as error:
            run.interrupt(error)
    return run.samples()


class _TimedRun:
    """A run that warms up when it is made, then keeps the time and the rows.

    A row is (begin, ns of each stage …, ns of the frame). The rows are stored column by column in plain memory, 8 bytes
    a figure. Hours of them as Python objects would take a gigabyte, which the report would count as memory of the
    model.
    """

    def __init__(self, stages: Stages, supply: Supply, plan: TimingPlan, progress, warmed):
        steps = list(stages.values())
        self._names, self._plan, self._progress = list(stages), plan, progress
        begin = time.monotonic_ns()
        row = _frame(steps, supply())
        self._first = dict(zip(stages, row[1:]))
        more, self._settled, median = _warm_up(steps, supply, begin + int(plan.warmup_seconds * 1e9), progress)
        self._warmup_frames, self._warmup_ns = more + 1, time.monotonic_ns() - begin
        if warmed:
            warmed(median or row[-1])
        self._columns = [array("q") for _ in range(len(stages) + 2)]
        self._interrupted, self._failure, self._told = False, None, 0.0
        self._start = self._now = time.monotonic_ns()

    def goes_on(self) -> bool:
        self._now = time.monotonic_ns()
        elapsed, plan = (self._now - self._start) / 1e9, self._plan
        if self._progress and elapsed >= self._told + _TELL_SECONDS:  # a line for each frame would cost some of them
            self._told = elapsed
            self._progress(f"measuring {elapsed:.0f} of {plan.seconds:.0f} s")
        count = len(self._columns[-1])
        return elapsed < plan.seconds or not count or (count < plan.min_samples and elapsed < 4 * plan.seconds)

    def add(self, row: Tuple[int, ...]) -> None:
        for column, value in zip(self._columns, row):
            column.append(value)
        self._now = time.monotonic_ns()

    def interrupt(self, error: BaseException) -> None:
        """End the run with the samples measured until now; where there are none, raise the error."""
        if not self._columns[-1]:
            raise error
        self._interrupted = True
        self._failure = str(error) if isinstance(error, DeviceError) else None

    def samples(self) -> FrameTimes:
        # Ctrl-C may have come in the middle of a row.
        begins, *columns, frames = (column[: len(self._columns[-1])] for column in self._columns)
        return FrameTimes(
            begins_ns=begins,
            frames_ns=frames,
            stages_ns=dict(zip(self._names, columns)),
            wall_ns=self._now - self._start,
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


def _warm_up(steps, supply: Supply, deadline_ns: int, progress) -> Tuple[int, bool, Optional[int]]:
    """(frames run, settled, the last window's median)."""
    clock, medians, frames = time.monotonic_ns, [], 0
    while True:
        window, began = [], clock()
        while len(window) < _WINDOW_FRAMES or clock() - began < _WINDOW_SECONDS * 1e9:
            if clock() >= deadline_ns:
                return frames, False, int(statistics.median(window or medians or [0])) or None
            window.append(_frame(steps, supply())[-1])
            frames += 1
            if progress:
                progress(f"warming up, frame {frames}")
        medians = [*medians[-2:], statistics.median(window)]
        if len(medians) == 3 and max(medians) - min(medians) <= _AGREE * min(medians):
            return frames, True, int(medians[-1])
