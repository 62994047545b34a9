import time

import pytest
from edgeprune_device import bench
from edgeprune_device.errors import InputError
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    """Time that passes only where a stage says so."""

    def __init__(self, monkeypatch):
        self.now = 1_000
        monkeypatch.setattr(bench.time, "perf_counter_ns", lambda: self.now)

    def stage(self, *durations_ms):
        durations = list(durations_ms)

        def run(value):
            self.now += int(1e6 * (durations.pop(0) if len(durations) > 1 else durations[0]))
            return value

        return run


def test_each_stage_gets_its_own_time_and_the_value_flows(monkeypatch):
    clock, seen = Clock(monkeypatch), []

    def tag(name, ms):
        inner = clock.stage(ms)
        return lambda value: inner(f"{value}{name}")

    stages = {"a": tag("a", 10), "b": tag("b", 30), "end": seen.append}
    samples = bench.measure(stages, ["x", "y"], seconds=2)
    assert set(seen) == {"xab", "yab"} and seen[:3] == ["xab", "yab", "xab"]
    assert set(samples.stages_ns["a"]) == {10_000_000} and set(samples.stages_ns["b"]) == {30_000_000}
    assert set(samples.frames_ns) == {40_000_000}
    assert len(samples.frames_ns) == 64  # 2 s would be 50; p90 wants 64
    assert samples.wall_ns == 64 * 40_000_000 and samples.first_ns["b"] == 30_000_000
    assert samples.settled and len(samples.stages_ns["a"]) == len(samples.frames_ns)


def test_warm_up_goes_on_until_it_settles(monkeypatch):
    clock = Clock(monkeypatch)
    slow_start = [200 - 5 * i for i in range(30)]  # 200 ms falling to 55 ms, then 50 ms for ever
    samples = bench.measure({"a": clock.stage(*slow_start, 50)}, [0], seconds=5, warmup_seconds=60)
    assert samples.settled and samples.warmup_frames >= 30
    assert set(samples.frames_ns) == {50_000_000}  # nothing of the slow start among the samples


def test_a_warm_up_that_never_settles_is_flagged(monkeypatch):
    clock = Clock(monkeypatch)
    samples = bench.measure({"a": clock.stage(*range(10, 2000), 1)}, [0], seconds=1, warmup_seconds=3)
    assert not samples.settled and 3e9 <= samples.warmup_ns < 4e9


def test_slow_frames_do_not_take_for_ever(monkeypatch):
    clock = Clock(monkeypatch)
    samples = bench.measure({"a": clock.stage(1000)}, [0], seconds=5, warmup_seconds=2)
    assert len(samples.frames_ns) == 20  # 64 would take 64 s: stopped at four times the 5 s


def test_what_comes_after_a_measured_frame_is_outside_its_time(monkeypatch):
    clock, called = Clock(monkeypatch), []
    after = clock.stage(5)
    samples = bench.measure({"a": clock.stage(10)}, [0], seconds=1, after=lambda: called.append(after(0)))
    assert set(samples.frames_ns) == {10_000_000} and len(called) == len(samples.frames_ns)  # none in the warm-up
    assert samples.warmup_frames > 1 and samples.wall_ns == len(called) * 15_000_000


def test_real_time():
    samples = bench.measure({"sleep": lambda _: time.sleep(0.002)}, [0], seconds=0.2, min_samples=10, warmup_seconds=1)
    assert min(samples.frames_ns) >= 2e6 and len(samples.frames_ns) >= 10
    assert samples.wall_ns >= sum(samples.frames_ns)


def test_no_frames():
    with pytest.raises(InputError, match="no frames"):
        bench.measure({"a": lambda v: v}, [])


def test_an_error_in_a_stage_comes_out():
    def fail(value):
        raise InputError("p3.png: not a picture")

    with pytest.raises(InputError, match=r"p3\.png"):
        bench.measure({"a": fail}, [0])


@pytest.mark.parametrize("percent, needed", [(50, 1), (90, 64), (95, 130), (99, 662)])
def test_percentiles_need_enough_samples(percent, needed):
    assert bench.percentile(range(needed), percent) is not None
    assert bench.percentile(range(needed - 1), percent) is None


@given(st.lists(st.integers(0, 10**9), min_size=64, max_size=200), st.sampled_from([50, 90]))
def test_percentile_is_the_nearest_rank(samples, percent):
    value = bench.percentile(samples, percent)
    at_or_below = sum(sample <= value for sample in samples)
    below = sum(sample < value for sample in samples)
    assert value in samples
    assert 100 * at_or_below >= percent * len(samples) > 100 * below


def test_percentiles_by_hand():
    assert bench.percentile([5, 1, 3], 50) == 3
    assert bench.percentile(list(range(1, 101)), 90) == 90
    assert bench.percentile(list(range(1, 1001)), 99) == 990


def test_summary_has_units_and_nulls():
    few = bench.summary([1_000_000, 3_000_000])
    assert few == {
        "samples": 2,
        "min_ms": 1.0,
        "mean_ms": 2.0,
        "p50_ms": 1.0,
        "p90_ms": None,
        "p99_ms": None,
        "max_ms": 3.0,
    }
