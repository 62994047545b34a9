import itertools
import os
import signal
import threading
import time

import pytest
from edgeprune_device import pipeline
from edgeprune_device.errors import DeviceError, InputError

WAIT_S = 60  # far longer than any of these waits takes; reached only if a test fails


def numbers(count=None):
    """A supply: 0, 1, 2 …"""
    return iter(itertools.count() if count is None else range(count)).__next__


def until(condition):
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("latest", [False, True])
def test_frames_come_in_order_until_the_supply_ends(latest):
    taken = []
    with pipeline.Ahead(numbers(20), lambda frame: frame * 10, latest) as ahead, pytest.raises(StopIteration):
        while True:
            taken.append(ahead.take())
    assert taken == [10 * i for i in range(20)]


@pytest.mark.parametrize("latest", [False, True])
def test_next_frame_is_prepared_while_the_caller_works_on_the_current_one(latest):
    """Each meeting passes only if the caller and the thread are at work at the same time."""
    meeting = threading.Barrier(2)

    def prepare(frame):
        if frame:
            meeting.wait(WAIT_S)
        return frame

    with pipeline.Ahead(numbers(), prepare, latest) as ahead:
        for expected in range(10):
            assert ahead.take() == expected
            meeting.wait(WAIT_S)


def test_without_overlap_a_frame_is_taken_only_when_the_caller_waits():
    working, overlapped = threading.Event(), []
    with pipeline.Ahead(lambda: overlapped.append(working.is_set()), lambda frame: frame, overlap=False) as ahead:
        for _ in range(5):
            ahead.take()
            working.set()
            time.sleep(0.02)
            working.clear()
    assert overlapped == [False] * 5


def test_at_most_two_frames_exist():
    supplied, counts = itertools.count(1), []

    def supply():
        counts.append(next(supplied))
        return counts[-1]

    with pipeline.Ahead(supply, lambda frame: frame) as ahead:
        for i in range(1, 6):
            ahead.take()
            until(lambda i=i: counts[-1] == i + 1)  # the next frame …
            time.sleep(0.02)  # … and time for a third, which the thread must not take
            assert counts[-1] == i + 1


def test_latest_frame_is_taken_towards_the_end_of_the_callers_work():
    shares, begun = [], []
    work_s = 0.05

    def supply():
        if begun:
            shares.append((time.monotonic() - begun[-1]) / work_s)

    with pipeline.Ahead(supply, lambda frame: frame, latest=True) as ahead:
        for _ in range(12):
            ahead.take()
            begun.append(time.monotonic())
            time.sleep(work_s)
    assert sorted(shares[2:])[len(shares[2:]) // 2] > 0.5  # without `latest`: almost 0


def test_caller_that_is_done_early_ends_the_delay(monkeypatch):
    monkeypatch.setattr(pipeline.Ahead, "_delay_s", lambda self: 3600.0)
    with pipeline.Ahead(numbers(), lambda frame: frame, latest=True) as ahead:
        assert [ahead.take() for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "error", [InputError("p3.png: not an image"), DeviceError("the camera is gone"), MemoryError()]
)
@pytest.mark.parametrize("where", ["supply", "prepare"])
def test_error_is_raised_after_the_frames_before_it(error, where):
    supply = numbers()

    def fails(frame):
        if frame == 3:
            raise error
        return frame

    given = (lambda: fails(supply()), lambda frame: frame) if where == "supply" else (supply, fails)
    with pipeline.Ahead(*given) as ahead:
        assert [ahead.take() for _ in range(3)] == [0, 1, 2]
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                ahead.take()
            assert caught.value is error


def test_signal_interrupts_the_wait_for_a_frame():
    class Interrupted(BaseException):
        pass

    def interrupt(*_):
        raise Interrupted

    never = threading.Event()
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pipeline.Ahead(never.wait, lambda frame: frame) as ahead:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(Interrupted):
                ahead.take()
    finally:
        signal.signal(signal.SIGUSR1, before)
        never.set()


def test_thread_ends_after_the_block():
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "edgeprune-ahead"]

    with pipeline.Ahead(numbers(), lambda frame: frame) as ahead:
        ahead.take()
        assert threads()
    until(lambda: not threads())


@pytest.mark.parametrize(
    "decode, pre, infer, post, slow",
    [
        (5, 5, 20, 5, None),
        (20, 10, 20, 10, None),  # each part takes 30 ms of 33, both together 60
        (30, 5, 20, 1, "decode"),
        (10, 30, 20, 1, "pre"),
        (5, 5, 40, 1, "infer"),
        (5, 5, 10, 30, "post"),
        (30, 5, 50, 1, "infer"),  # the slower of two slow parts
    ],
)
def test_slow_stage_is_the_longest_of_the_part_that_exceeds_the_limit(decode, pre, infer, post, slow):
    assert pipeline.slow_stage({"decode": decode, "pre": pre, "infer": infer, "post": post}, 33.3) == slow
