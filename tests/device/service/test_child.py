"""A worker that loads, works or hangs, seen from its supervisor. The workers here are fakes of a few lines."""

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
    """start(code) -> a Child that runs it, after the order was read."""
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


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_it_said_and_did_is_known_when_it_has_ended(start):
    said = 'os.write(order["messages"], b\'{"step": "reading", "text": "a"}\\n{"end": \')\n'
    worker = start(said + 'cells[FRAMES] = 7; cells[LOST] = 2; os.write(order["messages"], b\'"b"}\\n\'); os._exit(11)')
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
    until(worker.hangs)  # a processor that is busy is no excuse any more


def test_who_loads_and_works_does_not_hang_and_who_only_waits_does(start, monkeypatch):
    monkeypatch.setattr(child, "LOAD_S", 1.0)
    busy = start("end = time.monotonic() + 4\nwhile time.monotonic() < end: pass\ntime.sleep(60)")
    begin = time.monotonic()
    until(lambda: busy.hangs())
    assert 4 < time.monotonic() - begin < 12


def test_what_a_workers_own_children_do_counts(start, monkeypatch):
    """An engine is built by a process of its own."""
    monkeypatch.setattr(child, "LOAD_S", 1.0)
    builds = "import time; e = time.monotonic() + 4\nwhile time.monotonic() < e: pass"
    worker = start(f"import subprocess; subprocess.run([sys.executable, '-c', {builds!r}]); time.sleep(60)")
    begin = time.monotonic()
    until(lambda: worker.hangs())
    assert 4 < time.monotonic() - begin < 12


def test_no_load_takes_for_ever(start, monkeypatch):
    monkeypatch.setattr(child, "LOAD_S", 0.5)
    monkeypatch.setattr(child, "_LONGEST_LOAD_S", 2.0)
    begin = time.monotonic()  # before the worker begins: its two seconds lie within
    worker = start("while True: pass")
    until(worker.hangs)
    assert 2 <= time.monotonic() - begin < 6


def test_it_leaves_no_descriptors_behind(start):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        worker = Child({}, ())
        worker.kill()
        until(lambda worker=worker: worker.code is not None)
        assert "killed (SIGKILL)" in worker.death()
        worker.close()
    assert len(os.listdir("/proc/self/fd")) == before
