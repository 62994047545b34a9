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
ORDER = {name: place for place, name in enumerate(("rig", "docs", "host", "device"))}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: ORDER.get(item.path.relative_to(TESTS).parts[0], len(ORDER)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one worker, with what its fixtures made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return next((name for name in WHOLE if file.startswith(f"tests/{name}/")), file)

    config.option.loadscopereorder = False  # ORDER's, not that of the number of tests; an option since xdist 3.7
    return ByFile(config, log)


@pytest.fixture
def own_signals():
    """Who started the tests with nohup or a shell's & has all their children ignore SIGHUP and SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
