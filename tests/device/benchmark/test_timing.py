import itertools
import threading
import time

import pytest
from edgeprune_device.benchmark import timing
from edgeprune_device.errors import DeviceError, InputError


class Clock:
    """A clock that advances only when a stage runs."""

    def __init__(self, monkeypatch):
        self.now = 1_000
        monkeypatch.setattr(timing.time, "monotonic_ns", lambda: self.now)

    def stage(self, *durations_ms):
        durations = list(durations_ms)

        def run(value):
            self.now += int(1e6 * (durations.pop(0) if len(durations) > 1 else durations[0]))
            return value

        return run


def measure(stages, frames, *, seconds=10.0, min_samples=64, warmup_seconds=10.0, **more):
    """Call `timing.measure` with endlessly repeated frames."""
    plan = timing.TimingPlan(seconds, min_samples, warmup_seconds)
    return timing.measure(stages, itertools.cycle(frames).__next__, plan, **more)


def test_each_stage_is_timed_and_passes_its_value_on(monkeypatch):
    clock, seen = Clock(monkeypatch), []

    def tag(name, ms):
        inner = clock.stage(ms)
        return lambda value: inner(f"{value}{name}")

    stages = {"a": tag("a", 10), "b": tag("b", 30), "end": seen.append}
    samples = measure(stages, ["x", "y"], seconds=2)
    assert set(seen) == {"xab", "yab"} and seen[:3] == ["xab", "yab", "xab"]
    assert set(samples.stages_ns["a"]) == {10_000_000} and set(samples.stages_ns["b"]) == {30_000_000}
    assert set(samples.frames_ns) == {40_000_000}
    assert len(samples.frames_ns) == 64  # 2 s would give 50; p90 needs 64
    assert samples.wall_ns == 64 * 40_000_000 and samples.first_ns["b"] == 30_000_000
    assert samples.settled and len(samples.stages_ns["a"]) == len(samples.frames_ns)


def test_warm_up_lasts_until_the_timings_are_stable(monkeypatch):
    clock = Clock(monkeypatch)
    slow_start = [200 - 5 * i for i in range(30)]  # 200 ms falling to 55 ms, then always 50 ms
    samples = measure({"a": clock.stage(*slow_start, 50)}, [0], seconds=5, warmup_seconds=60)
    assert samples.settled and samples.warmup_frames >= 30
    assert set(samples.frames_ns) == {50_000_000}  # the samples contain none of the slow start


def test_warm_up_that_never_settles_is_flagged(monkeypatch):
    clock = Clock(monkeypatch)
    samples = measure({"a": clock.stage(*range(10, 2000), 1)}, [0], seconds=1, warmup_seconds=3)
    assert not samples.settled and 3e9 <= samples.warmup_ns < 4e9


@pytest.mark.parametrize("mode", ["one", "pipelined"])
def test_at_least_one_frame_is_measured(mode):
    stages = {"a": lambda value: value, "b": lambda value: value, "c": lambda value: value}
    plan = timing.TimingPlan(seconds=1e-9, warmup_seconds=0.01)
    frames = itertools.count().__next__
    run = timing.measure if mode == "one" else lambda *given: timing.pipelined(*given, middle=["b"])
    assert len(run(stages, frames, plan).frames_ns) >= 1


def test_run_with_slow_frames_is_limited(monkeypatch):
    clock = Clock(monkeypatch)
    samples = measure({"a": clock.stage(1000)}, [0], seconds=5, warmup_seconds=2)
    assert len(samples.frames_ns) == 20  # 64 would take 64 s: stopped at four times the 5 s


def test_work_after_a_frame_is_not_measured(monkeypatch):
    clock, called = Clock(monkeypatch), []
    after = clock.stage(5)
    samples = measure(
        {"a": clock.stage(10)}, ["x"], seconds=1, after=lambda frame, end: called.append((frame, end, after(0)))
    )
    assert {frame for frame, _, _ in called} == {"x"}
    assert [end for _, end, _ in called] == [b + f for b, f in zip(samples.begins_ns, samples.frames_ns)]
    assert set(samples.frames_ns) == {10_000_000} and len(called) == len(samples.frames_ns)  # none in the warm-up
    assert samples.warmup_frames > 1 and samples.wall_ns == len(called) * 15_000_000


def test_real_clock():
    samples = measure({"sleep": lambda _: time.sleep(0.002)}, [0], seconds=0.2, min_samples=10, warmup_seconds=1)
    assert min(samples.frames_ns) >= 2e6 and len(samples.frames_ns) >= 10
    assert samples.wall_ns >= sum(samples.frames_ns)


def test_error_in_a_stage_is_raised():
    def fail(value):
        raise InputError("p3.png: not an image")

    with pytest.raises(InputError, match=r"p3\.png"):
        measure({"a": fail}, [0])


def test_median_frame_time_is_reported_after_the_warm_up(monkeypatch):
    clock, calls = Clock(monkeypatch), []
    measure({"a": clock.stage(10)}, [0], seconds=1, warmed=lambda ns: calls.append((ns, clock.now)))
    assert calls == [(10_000_000, calls[0][1])] and calls[0][1] > 1_000


def test_interrupt_keeps_the_measured_frames(monkeypatch):
    clock, seen = Clock(monkeypatch), itertools.count()
    work = clock.stage(10)

    def stage(value):
        if clock.now > 3e9:
            raise KeyboardInterrupt
        next(seen)
        return work(value)

    samples = measure({"a": stage}, [0], seconds=60)
    assert samples.interrupted and set(samples.frames_ns) == {10_000_000}
    assert len(samples.frames_ns) + samples.warmup_frames == next(seen)


def test_an_interrupt_in_the_middle_of_a_frame_leaves_whole_rows(monkeypatch):
    clock = Clock(monkeypatch)
    first, calls = clock.stage(10), itertools.count()

    def second(value):
        if next(calls) >= 31 and clock.now > 1e9:
            raise KeyboardInterrupt
        return value

    samples = measure({"a": first, "b": second}, [0])
    assert samples.interrupted and len(samples.frames_ns) >= 1
    assert {len(column) for column in (samples.begins_ns, *samples.stages_ns.values())} == {len(samples.frames_ns)}
    # The interrupted frame does not count.
    assert samples.wall_ns == len(samples.frames_ns) * 10_000_000


def test_progress_is_reported_at_intervals_and_the_rows_leave_the_batch(monkeypatch):
    clock, told = Clock(monkeypatch), []
    samples = measure({"a": clock.stage(10)}, [0], seconds=2, progress=told.append)
    measuring = [text for text in told if text.startswith("measuring")]
    assert 10 <= len(measuring) <= 12 and measuring[-1] == "measuring 2 of 2 s"
    assert len(samples.frames_ns) == 200 and list(samples.frames_ns) == list(samples.stages_ns["a"])


def test_interrupt_before_the_first_sample_is_raised(monkeypatch):
    def stage(value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"a": stage}, [0])


def test_device_failure_keeps_the_measured_frames(monkeypatch):
    clock = Clock(monkeypatch)
    work = clock.stage(10)

    def stage(value):
        if clock.now > 3e9:
            raise DeviceError("the camera is gone")
        return work(value)

    samples = measure({"a": stage}, [0], seconds=60)
    assert samples.interrupted and samples.failure == "the camera is gone" and set(samples.frames_ns) == {10_000_000}
    with pytest.raises(DeviceError):
        measure({"a": stage}, [0])  # nothing was measured, so the error is raised


def pipelined(stages, **more):
    frames = itertools.count()
    plan = timing.TimingPlan(seconds=more.pop("seconds", 0.3), min_samples=5, warmup_seconds=0.05)
    return timing.pipelined(stages, frames.__next__, plan, middle=["b"], **more)


def test_pipeline_overlaps_its_parts_and_keeps_the_order():
    ended, threads = [], {}

    def step(name, seconds):
        def run(value):
            threads.setdefault(name, set()).add(threading.current_thread().name)
            time.sleep(seconds)
            return value

        return run

    def last(value):
        threads.setdefault("c", set()).add(threading.current_thread().name)
        time.sleep(0.02)
        ended.append(value)

    samples = pipelined({"a": step("a", 0.02), "b": step("b", 0.02), "c": last}, seconds=0.6)
    assert ended == sorted(ended) and list(samples.begins_ns) == sorted(samples.begins_ns)
    assert list(samples.stages_ns) == ["a", "b", "c"]
    assert {len(column) for column in samples.stages_ns.values()} == {len(samples.frames_ns)}
    # 60 ms of work per frame: sequentially, 0.6 s would suffice for 10 frames. Each frame still takes 60 ms.
    assert len(samples.frames_ns) > 15 and min(samples.frames_ns) >= 60_000_000
    assert "MainThread" in threads["b"] and len(threads["b"]) == 1


def test_pipeline_begins_the_middle_only_after_its_older_results_are_done():
    live, most = set(), []
    lock = threading.Lock()

    def middle(value):
        with lock:
            live.add(value)
            most.append(len(live))
        return value

    def last(value):
        time.sleep(0.005)
        with lock:
            live.discard(value)

    pipelined({"a": lambda v: v, "b": middle, "c": last})
    assert max(most) == 2  # a runtime keeps two results valid


def test_camera_pipeline_prepares_the_next_frame_during_the_current_one():
    """Each meeting passes only if the parts are at work at the same time."""
    meeting, ended = threading.Barrier(2), []
    measured = threading.Event()

    def first(value):
        if measured.is_set() and value != frames_before[-1]:
            meeting.wait(60)
        return value

    def second(value):
        if measured.is_set():
            meeting.wait(60)
        return value

    frames_before = []
    frames = itertools.count()
    plan = timing.TimingPlan(seconds=0.1, min_samples=5, warmup_seconds=0.01)

    def warmed(_):
        frames_before.append(next(frames) + 1)  # the number of the first measured frame
        measured.set()

    def after(frame, end_ns):
        ended.append((frame, end_ns, threading.current_thread() is threading.main_thread()))

    stages = {"a": first, "b": second, "c": lambda value: value}
    samples = timing.pipelined(
        stages, frames.__next__, plan, middle=["b", "c"], latest=True, warmed=warmed, after=after
    )
    assert [frame for frame, _, _ in ended] == [frames_before[-1] + i for i in range(len(samples.frames_ns))]
    assert [end for _, end, _ in ended] == [b + f for b, f in zip(samples.begins_ns, samples.frames_ns)]
    assert all(main for _, _, main in ended) and len(ended) >= 5


@pytest.mark.parametrize("broken", ["a", "b", "c"])
def test_error_anywhere_in_a_pipeline_is_raised(broken):
    calls = itertools.count()

    def fail(value):
        if next(calls) > 20:
            raise InputError("p3.png: not an image")
        return value

    stages = {name: fail if name == broken else (lambda v: v) for name in "abc"}
    with pytest.raises(InputError, match=r"p3\.png"):
        pipelined(stages, seconds=30)


def test_overhead_of_the_loop_is_small():
    """Compares the time between frames with frames of 0.1 ms of work; it is no absolute time limit."""

    def work(value):
        until = time.monotonic_ns() + 100_000
        while time.monotonic_ns() < until:
            pass

    samples = measure({"a": work, "b": lambda v: v, "c": lambda v: v}, [0], seconds=0.5, warmup_seconds=1)
    assert sum(samples.frames_ns) > 0.5 * samples.wall_ns
