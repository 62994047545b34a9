"""A worker that loads, works or hangs, as seen by its supervisor. The workers are fakes of a few lines."""

import os
import time

import pytest
from edgeprune_device.service import child, protocol
from edgeprune_device.service.child import Child

HEAD = """
import json, os, sys, time
from edgeprune_device.service.protocol import *
order = json.loads(sys.stdin.readline())
pulse = Pulse(order["pulse"])
cells = pulse.cells
"""


@pytest.fixture
def start(monkeypatch):
    """start(code) -> a Child that runs the code after reading its order."""
    made = []

    def starts(code):
        monkeypatch.setattr(child, "COMMAND", HEAD + code)
        made.append(Child({}, ()))
        return made[-1]

    yield starts
    for each in made:
        each.kill()
        while each.code is None:
            time.sleep(0.01)
        each.close()


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_messages_and_counts_are_known_after_the_end(start):
    code = 'os.write(order["messages"], b\'{"step": "reading", "text": "a"}\\n{"end": \')\n'
    worker = start(code + 'cells[FRAMES] = 7; cells[LOST] = 2; os.write(order["messages"], b\'"b"}\\n\'); os._exit(11)')
    until(lambda: worker.code is not None)
    assert worker.hear() == [{"step": "reading", "text": "a"}, {"end": "b"}] and worker.code == protocol.UNFIT
    worker.look()
    assert (worker.frames, worker.lost) == (7, 2)


def test_silence_after_the_first_frame_is_a_hang(start):
    worker = start(
        "for i in range(5):\n cells[FRAMES] += 1; cells[DEADLINE] = time.monotonic_ns() + 10**9; cells[LOADING] = 0\n"
        " time.sleep(0.3)\nwhile True: pass"
    )
    until(lambda: worker.frames == 5 or worker.look() or worker.hangs())
    assert worker.frames == 5
    until(worker.hangs)  # a busy CPU no longer excuses it


def test_loading_worker_hangs_only_if_it_does_not_use_the_cpu(start, monkeypatch):
    monkeypatch.setattr(child, "LOAD_S", 1.0)
    busy = start("end = time.monotonic() + 4\nwhile time.monotonic() < end: pass\ntime.sleep(60)")
    begin = time.monotonic()
    until(lambda: busy.hangs())
    assert time.monotonic() - begin > 4


def test_cpu_time_of_child_processes_counts(start, monkeypatch):
    """A separate process builds an engine."""
    monkeypatch.setattr(child, "LOAD_S", 1.0)
    builds = "import time; e = time.monotonic() + 4\nwhile time.monotonic() < e: pass"
    worker = start(f"import subprocess; subprocess.run([sys.executable, '-c', {builds!r}]); time.sleep(60)")
    begin = time.monotonic()
    until(lambda: worker.hangs())
    assert time.monotonic() - begin > 4


def test_loading_time_is_limited(start, monkeypatch):
    monkeypatch.setattr(child, "LOAD_S", 0.5)
    monkeypatch.setattr(child, "_LONGEST_LOAD_S", 2.0)
    begin = time.monotonic()  # before the worker starts, so that the interval contains its two seconds
    worker = start("while True: pass")
    until(worker.hangs)
    assert 2 <= time.monotonic() - begin < 6


def test_child_closes_its_descriptors(start):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        worker = Child({}, ())
        worker.kill()
        until(lambda worker=worker: worker.code is not None)
        assert "killed (SIGKILL)" in worker.death()
        worker.close()
    assert len(os.listdir("/proc/self/fd")) == before
