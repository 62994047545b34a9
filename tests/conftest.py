"""How the tests are shared out among pytest-xdist's workers, and what all of them need."""

import os
import signal
from pathlib import Path

import pytest

# As many workers as cores, so one thread each: a second one of PyTorch's or ONNX Runtime's only waits, spinning.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
#: One drone, one kernel's name spaces, one world: all of a folder by one worker. What takes longest begins first.
WHOLE = ("rig", "docs")
ORDER = ("rig", "docs", "host", "device")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """A file's tests go to one worker, with what its fixtures made once."""
    items.sort(key=lambda item: ORDER.index(folder(item)))
    for item in items:
        name = folder(item) if folder(item) in WHOLE else item.path.relative_to(TESTS).as_posix()
        item.add_marker(pytest.mark.xdist_group(name))


def folder(item):
    return item.path.relative_to(TESTS).parts[0]


@pytest.fixture
def own_signals():
    """Who started the tests with nohup or a shell's & has all their children ignore SIGHUP and SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
