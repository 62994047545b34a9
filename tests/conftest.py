"""The distribution of tests over pytest-xdist's workers, the programs that they need, and their time limits."""

import faulthandler
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

# With one worker per core, each uses one thread: a second thread of PyTorch or ONNX Runtime would only spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
#: Folders that one worker runs, because they share a drone, the kernel's name spaces or a world. The longest come
#: first.
WHOLE = ("rig", "docs")
ORDER = {name: place for place, name in enumerate(("rig", "docs", "host", "device"))}


#: Debian programs that tests call: {program: its packages}. `.ci/run` installs and hides them.
TOOLS = {
    tool: packages
    for tool, *packages in map(str.split, (TESTS / "tools.txt").read_text().splitlines())
    if not tool.startswith("#")
}
#: Programs that a fixture or all tests of a folder call; these tests are marked `needs` here.
FIXTURES = {
    "browser": ["chromium"], "clip": ["ffmpeg"], "cudart": ["gcc"], "cudart_build": ["gcc"], "fuse": ["fusermount3"],
    "long_clip": ["ffmpeg"], "make_clip": ["ffmpeg"],
}  # fmt: skip
FOLDERS = {"rig": ["mmdebstrap", "ip", "tc", "nft", "ssh", "mkfs.ext4", "qemu-aarch64-static"]}
#: Seconds for one test with its fixtures; `rig` first makes a root file system, and `docs` a build.
LIMIT_S, LONG_S = 300, 1800


def missing(tool):
    """The Debian packages of a program that is not installed; a user's PATH often lacks /usr/sbin."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return () if shutil.which(tool, path=path) else TOOLS[tool]


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks
def pytest_collection_modifyitems(config, items):
    limits = config.pluginmanager.hasplugin("timeout")
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        for tools in (FOLDERS.get(folder), *(FIXTURES.get(name) for name in item.fixturenames)):
            if tools:
                item.add_marker(pytest.mark.needs(*tools))
        needed = [tool for mark in item.iter_markers("needs") for tool in mark.args]
        packages = dict.fromkeys(package for tool in needed for package in missing(tool))
        if packages:
            item.add_marker(pytest.mark.skip(reason=f"needs Debian's {', '.join(packages)}"))
        if limits and item.get_closest_marker("timeout") is None:
            long = folder in WHOLE or item.get_closest_marker("slow")
            item.add_marker(pytest.mark.timeout(LONG_S if long else LIMIT_S))
    items.sort(key=lambda item: ORDER.get(item.path.relative_to(TESTS).parts[0], len(ORDER)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """pytest-timeout raises in Python code. A hang elsewhere (an import lock or a library) ends the worker: pytest then
    names the test in which it crashed, and another worker continues."""
    mark = item.get_closest_marker("timeout")
    if mark:
        faulthandler.dump_traceback_later(mark.args[0] + 60, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """End the processes of a test that exceeds its limit. A KeyboardInterrupt from a test is a failure of the test,
    because a worker would take it for the user's, and no other test would run."""
    before = _children()
    try:
        return (yield)
    except KeyboardInterrupt:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            raise
        pytest.fail("KeyboardInterrupt came out of the test")
    except pytest.fail.Exception as error:
        if "Timeout" in str(error):
            for pid in _children() - before:
                os.kill(pid, signal.SIGKILL)
        raise


def _children():
    pids = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                pids.add(int(stat.parent.name))
        except OSError:
            continue  # the process has ended
    return pids


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The tests of a file run in one worker, so that their fixtures are made once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return next((name for name in WHOLE if file.startswith(f"tests/{name}/")), file)

        def remove_node(self, node):
            """Do not repeat a test in which a worker crashed: xdist would give it to the next worker, and so on."""
            units = self.assigned_work[node].values()
            at = next(((unit, test) for unit in units for test, done in unit.items() if not done), None)
            if at is None:
                return super().remove_node(node)
            unit, crashed = at
            unit[crashed] = True
            super().remove_node(node)
            return crashed

    config.option.loadscopereorder = False  # keep ORDER, not the order by number of tests; an option since xdist 3.7
    return ByFile(config, log)


@pytest.fixture(autouse=True, scope="session")
def disk_that_is_not_waited_for():
    """Replace fsync with a no-op: no power is cut here, and thousands of calls take minutes. Tests that count or break
    fsync replace it themselves; child processes have the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def own_signals():
    """Restore signals: after nohup or a shell's & all children would ignore SIGHUP and SIGINT."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
