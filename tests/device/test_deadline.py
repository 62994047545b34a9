"""A block that never ends, in Python or in native code, ends with its process; one that ends in time is not touched."""

import signal
import subprocess
import sys
import time

import pytest
from edgeprune_device import deadline

CODE = """
import ctypes, signal, sys, time
from edgeprune_device import deadline
deadline._GRACE_S = 0.3
library = ctypes.CDLL(None) if {unlocked} else ctypes.PyDLL(None)
print(flush=True)
with deadline.limited({seconds}, "the block"):
    while True:
        library.pause()  # native code, which returns only for a signal
"""


def started(seconds, unlocked=True):
    code = CODE.format(seconds=seconds, unlocked=unlocked)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    return process


def ended(process):
    code = process.wait(20)
    error = process.stderr.read()
    process.stdout.close()
    process.stderr.close()
    return code, error


def test_endless_native_code_is_ended_with_one_line():
    assert ended(started(0.2)) == (
        1,
        "edgeprune: error: the block did not finish within 0.2 s; raise limit\n",
    )


def test_native_code_that_keeps_the_interpreter_is_ended_by_the_kernel():
    assert ended(started(0.2, unlocked=False)) == (-signal.SIGALRM, "")


LOOP = CODE.replace("library.pause()", "[library.usleep(100000) for _ in range(100)]").replace(
    "while True:", "signal.signal(signal.SIGINT, lambda *_: None)\n    signal.signal(signal.SIGTERM, lambda *_: None)\n"
    "    while True:",
)  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_has_no_effect_ends_the_process_after_a_grace_period(number):
    code = LOOP.format(seconds=60, unlocked=True)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(number)
    assert ended(process) == (130, "edgeprune: interrupted: the block was interrupted\n")


def test_block_that_ends_in_time_leaves_nothing_behind():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with deadline.limited(0.3, "the block", lambda *_: pytest.fail("it was ended")) as renew:
        for _ in range(5):
            time.sleep(0.1)
            renew()
        with deadline.paused():
            time.sleep(0.5)
        with deadline.limited(0.01, "a block inside"):
            time.sleep(0.1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.set_wakeup_fd(before) == before


def test_time_limit_counts_again_after_a_pause():
    found = []
    with deadline.limited(0.2, "the block", lambda code, message: found.append(code)):
        with deadline.paused():
            time.sleep(0.4)
            assert not found
        time.sleep(0.5)
    assert found == [1]
