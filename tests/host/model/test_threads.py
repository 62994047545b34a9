"""threads: the wait policy is set before torch loads, the user's own setting has priority, and ONNX Runtime follows."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import edgeprune_device
import onnxruntime
import pytest
from onnx import TensorProto, helper

import edgeprune
from edgeprune import quantize
from edgeprune.exporting.parity import measure_parity
from edgeprune.model import threads

POOLS = ("intra", "inter")
DECIDES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


class Opened(Exception):
    """Raised where a session would be opened."""


class Recorder:
    """Records the warnings to a verb's reporter."""

    def __init__(self):
        self.warned = []

    def warn(self, text):
        self.warned.append(text)


@pytest.fixture
def machine(monkeypatch):
    """A fresh process: (its environment, its modules)."""
    environment, modules = {"OMP_NUM_THREADS": "2"}, {}
    monkeypatch.setattr(threads, "os", SimpleNamespace(environ=environment, sched_getaffinity=lambda _: {0, 1}))
    monkeypatch.setattr(threads, "wanted", lambda: int(environment["OMP_NUM_THREADS"]))
    monkeypatch.setattr(threads, "sys", SimpleNamespace(modules=modules))
    monkeypatch.setattr(threads, "_late", False)
    monkeypatch.setattr(threads, "use_all_cores", lambda: None)
    return environment, modules


@pytest.fixture
def spins(monkeypatch):
    """of(call, …): whether the threads of the session that the call opens would spin."""

    def opened(source, options, **_):
        raise Opened(*(options.get_session_config_entry(f"session.{pool}_op.allow_spinning") for pool in POOLS))

    def of(call, *given, **more):
        with monkeypatch.context() as patch, pytest.raises(Opened) as raised:
            patch.setattr(onnxruntime, "InferenceSession", opened)
            call(*given, **more)
        return {("0", "0"): False, ("1", "1"): True}[raised.value.args]

    return of


def graph():
    """One convolution, the smallest network that can be measured and run."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 3, 1, 1), [0.5] * 12)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, channels, 32, 32))
        for name, channels in (("images", 3), ("out", 4))
    ]
    node = helper.make_node("Conv", ["images", "w"], ["out"], name="conv")
    model = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def child(code, **environment):
    """(standard output, standard error) of a fresh Python."""
    inherited = {name: value for name, value in os.environ.items() if name not in DECIDES}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**inherited, **environment}
    )
    return done.stdout, done.stderr


def test_torch_loads_with_the_passive_wait_policy():
    """The output comes from the OpenMP library in torch."""
    spins = {}
    for order in ("torch, edgeprune", "edgeprune, torch"):
        _, stderr = child(f"import {order}", OMP_DISPLAY_ENV="verbose", OMP_NUM_THREADS="2")
        spins[order] = {int(count) for count in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", stderr)}
    if not spins["torch, edgeprune"]:
        pytest.skip("this torch is not built with GNU's OpenMP, the only one that prints its spin count")
    assert spins == {"torch, edgeprune": {300_000}, "edgeprune, torch": {0}}


def test_torch_imported_first_causes_one_warning():
    code = (
        "import torch, edgeprune\n"
        "from edgeprune.console import progress; from edgeprune.model import threads\n"
        "for _ in range(2): threads.ready(progress.Reporter(quiet=True))\n"
    )
    (line,) = child(code, OMP_NUM_THREADS="2")[1].splitlines()
    assert line.startswith("warning: torch was imported before edgeprune") and "OMP_WAIT_POLICY=PASSIVE" in line


def test_every_verb_sets_up_the_threads():
    for file in (Path(edgeprune.__file__).parent / "api").glob("*.py"):
        text = file.read_text()
        assert ("Reporter(quiet=" in text) == (" ready(" in text), file.name


def test_a_fresh_process_yields_without_a_warning(machine):
    environment, _ = machine
    threads.prepare()
    assert environment == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    reporter = Recorder()
    assert threads.ready(reporter) is reporter and reporter.warned == []


def test_the_warning_about_torch_is_printed_once(machine):
    environment, modules = machine
    modules["torch"] = None
    threads.prepare()
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"  # for children
    reporter = Recorder()
    threads.ready(reporter)
    threads.ready(reporter)
    assert len(reporter.warned) == 1


def test_one_thread_needs_no_warning(machine):
    environment, modules = machine
    environment["OMP_NUM_THREADS"], modules["torch"] = "1", None
    threads.prepare()
    reporter = Recorder()
    threads.ready(reporter)
    assert reporter.warned == []


@pytest.mark.parametrize("name", DECIDES)
def test_the_users_own_setting_stays(machine, name):
    environment, modules = machine
    environment[name], modules["torch"] = "7", None
    threads.prepare()
    assert environment == {"OMP_NUM_THREADS": "2", name: "7"}
    reporter = Recorder()
    threads.ready(reporter)
    assert reporter.warned == []


@pytest.mark.parametrize(("policy", "spinning"), [(None, False), ("PASSIVE", False), ("active", True)])
def test_onnx_runtime_sessions_follow_the_policy(monkeypatch, spins, policy, spinning):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    model = graph()
    assert spins(quantize.reference_session, model, threads=2) is spinning
    assert spins(quantize.calibrate, model, [], threads=2) is spinning
    assert spins(measure_parity, None, model, []) is spinning


def test_every_session_uses_the_same_options():
    """`ort.options` is the only function that makes them, and every opener of a session calls it."""
    roots = [Path(package.__file__).parent for package in (edgeprune, edgeprune_device)]
    texts = {p.relative_to(root).as_posix(): p.read_text() for root in roots for p in root.rglob("*.py")}
    assert [name for name, text in texts.items() if "SessionOptions()" in text] == ["runtimes/ort.py"]
    opens = {name for name, text in texts.items() if ".InferenceSession(" in text}
    # The tests above try each of them.
    assert opens == {"runtimes/ort.py", "quantize/reference.py", "quantize/calibrate.py", "exporting/parity.py"}
