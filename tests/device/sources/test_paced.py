import threading
import time

import numpy as np
import pytest
from edgeprune_device import sources
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.sources.source import Frame, Source
from hypothesis import given
from hypothesis import strategies as st

from .clips import COLOURS, colour_index


class Clock:
    """A clock that only sleeping and the test advance."""

    def __init__(self):
        self.now_ns, self.slept_s = 10**12, []

    def __call__(self):
        return self.now_ns

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_ns += int(np.ceil(seconds * 1e9))

    def work(self, ms):
        self.now_ns += int(ms * 1e6)


class Numbers(Source):
    """Frames 0, 1, 2 …; `decode` gives the number."""

    name, description = "numbers", "numbers"

    def frames(self):
        number = 0
        while True:
            yield Frame(str(number), number, 0)
            number += 1

    def decode(self, frame):
        return frame.data


def test_no_frame_is_dropped_at_a_rate_that_is_kept():
    clock = Clock()
    paced = sources.Paced(Numbers(), 20, clock, clock.sleep)
    assert (paced.live, paced.fps, paced.description) == (True, 20, "numbers, paced at 20 fps")
    begin, seen = clock(), []
    for _ in range(10):
        frame = paced.next(1)
        seen.append((paced.decode(frame), frame.due_ns - begin, clock() - begin))
        clock.work(ms=30)
    assert seen == [(i, i * 50_000_000, i * 50_000_000) for i in range(10)]
    assert (paced.arrived, paced.dropped, paced.late) == (10, 0, 0)
    assert clock.slept_s == pytest.approx([0.02] * 9)  # one sleep per frame, without polling


def test_at_too_high_a_rate_the_newest_frame_is_taken_and_the_others_are_counted():
    clock = Clock()
    paced = sources.Paced(Numbers(), 20, clock, clock.sleep)
    begin, seen = clock(), []
    for work_ms in (120, 0, 60, 260, 0):
        frame = paced.next(1)
        seen.append((frame.data, (frame.due_ns - begin) // 10**6, (clock() - begin) // 10**6))
        clock.work(work_ms)
    #               number, due, taken at: ms
    assert seen == [(0, 0, 0), (2, 100, 120), (3, 150, 150), (4, 200, 210), (9, 450, 470)]
    assert (paced.arrived, paced.dropped) == (10, 5)


@given(st.floats(0.5, 1000), st.lists(st.floats(0, 5000), min_size=1, max_size=30))
def test_every_due_frame_is_either_taken_or_dropped(fps, work_ms):
    clock = Clock()
    paced = sources.Paced(Numbers(), fps, clock, clock.sleep)
    last = -1
    for taken, ms in enumerate(work_ms, 1):
        frame = paced.next(1)
        assert frame.data > last and frame.due_ns <= clock() < frame.due_ns + 1e9 / fps + 2
        assert paced.arrived == frame.data + 1 == taken + paced.dropped
        last = frame.data
        clock.work(ms)


def test_frames_of_a_source_slower_than_its_rate_count_as_late():
    """A video whose decoder needs 70 ms instead of the available 50. Decoding advances the clock."""
    clock, turn = Clock(), threading.Semaphore(0)

    class Slow(Numbers):
        streamed = True

        def decode(self, frame):
            assert frame.data == 0 or turn.acquire(timeout=10)  # one frame for each request of the test
            clock.work(ms=70 if frame.data else 5000)  # the first one takes long, because a decoder has to start
            return frame.data

    paced = sources.Paced(Slow(), 20, clock, clock.sleep)
    begin, seen = clock() + 5_000_000_000, []
    for _ in range(4):
        frame = paced.next(10)
        seen.append((paced.decode(frame), (frame.due_ns - begin) // 10**6, paced.late))
        turn.release()
    # A frame is due when it is ready, so its age is the time in this process.
    assert seen == [(0, 0, 0), (1, 70, 1), (2, 140, 2), (3, 210, 3)]
    assert paced.dropped == 0


def test_paced_video_has_each_frame_ready_when_it_is_due(decoder, clip):
    with sources.Paced(sources.open(str(clip)), 40) as paced:
        assert paced.description.endswith("decoded ahead by a thread, paced at 40 fps")
        last = -1
        for i in range(12):
            frame = paced.next(10)
            now = time.monotonic_ns()
            number = int(frame.name.split()[-1])
            assert frame.due_ns <= now and number > last
            assert colour_index(paced.decode(frame)) == number % len(COLOURS)
            last = number
            time.sleep(0.1 if i % 2 else 0)  # 4 frames become due in the meantime
        assert paced.dropped >= 6 and paced.arrived - paced.dropped in (12, 13)
        assert paced.warnings and "repeated" in paced.warnings[0]


def test_error_of_a_cut_off_video_is_raised_by_a_paced_one(fake_ffmpeg):
    with sources.Paced(sources.open(fake_ffmpeg("frame((9, 9, 9)); sys.exit('gone')")), 100) as paced:
        paced.next(10)
        with pytest.raises(InputError, match="gone"):
            paced.next(10)


def test_hanging_paced_video_times_out(fake_ffmpeg):
    with sources.Paced(sources.open(fake_ffmpeg("frame((9, 9, 9)); time.sleep(600)")), 100) as paced:
        paced.next(10)
        with pytest.raises(DeviceError, match=r"no frame for 0\.2 s"):
            paced.next(0.2)
