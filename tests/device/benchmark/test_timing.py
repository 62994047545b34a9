import itertools
import threading
import time

import pytest
from edgeprune_device.benchmark import timing
from edgeprune_device.errors import DeviceError, InputError


class Clock:
    """Time that passes only where a stage says so."""

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
    """`bench.measure` of frames that come again and again."""
    plan = timing.TimingPlan(seconds, min_samples, warmup_seconds)
    return timing.measure(stages, itertools.cycle(frames).__next__, plan, **more)


def test_each_stage_gets_its_own_time_and_the_value_flows(monkeypatch):
    clock, seen = Clock(monkeypatch), []

    def tag(name, ms):
        inner = clock.stage(ms)
        return lambda value: inner(f"{value}{name}")

    stages = {"a": tag("a", 10), "b": tag("b", 30), "end": seen.append}
    samples = measure(stages, ["x", "y"], seconds=2)
    assert set(seen) == {"xab", "yab"} and seen[:3] == ["xab", "yab", "xab"]
    assert set(samples.stages_ns["a"]) == {10_000_000} and set(samples.stages_ns["b"]) == {30_000_000}
    assert set(samples.frames_ns) == {40_000_000}
    assert len(samples.frames_ns) == 64  # 2 s would be 50; p90 wants 64
    assert samples.wall_ns == 64 * 40_000_000 and samples.first_ns["b"] == 30_000_000
    assert samples.settled and len(samples.stages_ns["a"]) == len(samples.frames_ns)


def test_warm_up_goes_on_until_it_settles(monkeypatch):
    clock = Clock(monkeypatch)
    slow_start = [200 - 5 * i for i in range(30)]  # 200 ms falling to 55 ms, then 50 ms for ever
    samples = measure({"a": clock.stage(*slow_start, 50)}, [0], seconds=5, warmup_seconds=60)
    assert samples.settled and samples.warmup_frames >= 30
    assert set(samples.frames_ns) == {50_000_000}  # nothing of the slow start among the samples


def test_a_warm_up_that_never_settles_is_flagged(monkeypatch):
    clock = Clock(monkeypatch)
    samples = measure({"a": clock.stage(*range(10, 2000), 1)}, [0], seconds=1, warmup_seconds=3)
    assert not samples.settled and 3e9 <= samples.warmup_ns < 4e9


@pytest.mark.parametrize("mode", ["one", "pipelined"])
def test_there_is_always_a_frame(mode):
    stages = {"a": lambda value: value, "b": lambda value: value, "c": lambda value: value}
    plan = timing.TimingPlan(seconds=1e-9, warmup_seconds=0.01)
    frames = itertools.count().__next__
    run = timing.measure if mode == "one" else lambda *given: timing.pipelined(*given, middle="b")
    assert len(run(stages, frames, plan).frames_ns) >= 1


def test_slow_frames_do_not_take_for_ever(monkeypatch):
    clock = Clock(monkeypatch)
    samples = measure({"a": clock.stage(1000)}, [0], seconds=5, warmup_seconds=2)
    assert len(samples.frames_ns) == 20  # 64 would take 64 s: stopped at four times the 5 s


def test_what_comes_after_a_measured_frame_is_outside_its_time(monkeypatch):
    clock, called = Clock(monkeypatch), []
    after = clock.stage(5)
    samples = measure(
        {"a": clock.stage(10)}, ["x"], seconds=1, after=lambda frame, end: called.append((frame, end, after(0)))
    )
    assert {frame for frame, _, _ in called} == {"x"}
    assert [end for _, end, _ in called] == [b + f for b, f in zip(samples.begins_ns, samples.frames_ns)]
    assert set(samples.frames_ns) == {10_000_000} and len(called) == len(samples.frames_ns)  # none in the warm-up
    assert samples.warmup_frames > 1 and samples.wall_ns == len(called) * 15_000_000


def test_real_time():
    samples = measure({"sleep": lambda _: time.sleep(0.002)}, [0], seconds=0.2, min_samples=10, warmup_seconds=1)
    assert min(samples.frames_ns) >= 2e6 and len(samples.frames_ns) >= 10
    assert samples.wall_ns >= sum(samples.frames_ns)


def test_an_error_in_a_stage_comes_out():
    def fail(value):
        raise InputError("p3.png: not a picture")

    with pytest.raises(InputError, match=r"p3\.png"):
        measure({"a": fail}, [0])


def test_the_median_frame_is_told_between_warm_up_and_measuring(monkeypatch):
    clock, told = Clock(monkeypatch), []
    measure({"a": clock.stage(10)}, [0], seconds=1, warmed=lambda ns: told.append((ns, clock.now)))
    assert told == [(10_000_000, told[0][1])] and told[0][1] > 1_000


def test_an_interrupt_keeps_what_was_measured(monkeypatch):
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


def test_an_interrupt_in_the_middle_of_a_row_leaves_whole_ones(monkeypatch):
    appended = itertools.count()

    class Column(timing.array):
        def append(self, value):
            if next(appended) == 31:  # three figures a row
                raise KeyboardInterrupt
            super().append(value)

    monkeypatch.setattr(timing, "array", Column)
    samples = measure({"a": Clock(monkeypatch).stage(10)}, [0])
    assert samples.interrupted
    assert [len(column) for column in (samples.begins_ns, samples.stages_ns["a"], samples.frames_ns)] == [10, 10, 10]


def test_an_interrupt_before_the_first_sample_is_one(monkeypatch):
    def stage(value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure({"a": stage}, [0])


def test_a_device_that_fails_keeps_what_was_measured(monkeypatch):
    clock = Clock(monkeypatch)
    work = clock.stage(10)

    def stage(value):
        if clock.now > 3e9:
            raise DeviceError("the camera is gone")
        return work(value)

    samples = measure({"a": stage}, [0], seconds=60)
    assert samples.interrupted and samples.failure == "the camera is gone" and set(samples.frames_ns) == {10_000_000}
    with pytest.raises(DeviceError):
        measure({"a": stage}, [0])  # nothing was measured: nothing is kept


def pipelined(stages, **more):
    frames = itertools.count()
    plan = timing.TimingPlan(seconds=more.pop("seconds", 0.3), min_samples=5, warmup_seconds=0.05)
    return timing.pipelined(stages, frames.__next__, plan, middle="b", **more)


def test_a_pipeline_overlaps_its_parts_and_keeps_the_order():
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
    # 60 ms of work a frame: one after another 0.6 s would hold 10 frames, and each frame still takes its 60 ms.
    assert len(samples.frames_ns) > 15 and min(samples.frames_ns) >= 60_000_000
    assert "MainThread" in threads["b"] and len(threads["b"]) == 1


def test_a_pipeline_begins_the_middle_only_when_its_older_results_are_done():
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


@pytest.mark.parametrize("broken", ["a", "b", "c"])
def test_an_error_anywhere_in_a_pipeline_comes_out(broken):
    calls = itertools.count()

    def fail(value):
        if next(calls) > 20:
            raise InputError("p3.png: not a picture")
        return value

    stages = {name: fail if name == broken else (lambda v: v) for name in "abc"}
    with pytest.raises(InputError, match=r"p3\.png"):
        pipelined(stages, seconds=30)


def test_the_loop_itself_costs_little():
    """Not a limit of time: what is between the frames, beside a frame whose work takes a tenth of a millisecond."""

    def work(value):
        until = time.monotonic_ns() + 100_000
        while time.monotonic_ns() < until:
            pass

    samples = measure({"a": work, "b": lambda v: v, "c": lambda v: v}, [0], seconds=0.5, warmup_seconds=1)
    assert sum(samples.frames_ns) > 0.5 * samples.wall_ns
