import time

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import DeviceError, GateError
from edgeprune_device.installation import install, measure
from fakes import models

from .installing import QUICK, leftovers, quiet


def test_model_that_loses_accuracy_on_the_device_is_not_installed(releases, make, manifest, capfd):
    from conftest import make_onnx

    assert cli.main(["install", str(make(1)), "--root", str(releases.root)]) == 0
    former = releases.current()
    blind = make(2, onnx=make_onnx([(8, 8, 6, 6, 0)]))  # the manifest still claims 1.0
    assert cli.main(["install", str(blind), "--root", str(releases.root)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("edgeprune: error: bench: mAP50-95: 1.0000 lower than on the host")
    assert error.count("\n") == 1
    assert releases.current() == former and releases.all() == [former] and not leftovers(releases)


@pytest.mark.parametrize("above", [0.0, 0.97], ids=["every-image", "one-image"])
def test_model_that_never_ends_is_not_installed(releases, make, above, capfd):
    """The installation ends within its limit, with one line, and its lock is free."""
    began = time.monotonic()
    assert (
        cli.main(["install", str(make(1, onnx=models.endless(above))), "--root", str(releases.root), "--limit=2"]) == 1
    )
    assert capfd.readouterr().err == (
        "edgeprune: error: bench: the first inference and the measurement did not finish within 12 s; raise --limit\n"
    )
    assert time.monotonic() - began < 60 and not releases.at_work()
    assert releases.all() == [] and not leftovers(releases)


def test_tool_that_hangs_gets_sigterm_then_sigkill(releases, monkeypatch):
    monkeypatch.setattr(measure, "_TOOL", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)")
    monkeypatch.setattr(measure, "_GRACE_S", 0.5)
    began = time.monotonic()
    with pytest.raises(DeviceError, match=r"bench: killed after 1 s, because it did not finish"):
        measure.run_tool(releases, ["bench"], 1.0)
    assert time.monotonic() - began < 20


def test_of_a_tool_that_prints_without_end_only_the_last_line_is_kept(releases, monkeypatch):
    flood = r"[sys.stderr.write('x' * 100_000 + '\n') for _ in range(200)]; sys.exit('the end')"
    monkeypatch.setattr(measure, "_TOOL", flood)
    with pytest.raises(GateError, match=r"^bench: the end$"):
        measure.run_tool(releases, ["bench"], 60.0)


def test_a_model_that_no_runtime_takes_is_not_installed(releases, make, capfd):
    assert cli.main(["install", str(make(1, onnx=b"garbage")), "--root", str(releases.root)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("edgeprune: error: bench: ") and error.count("\n") == 1
    assert releases.current() is None and releases.all() == [] and not leftovers(releases)


def test_error_of_a_killed_benchmark_gives_the_remedy(releases, make, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "_TOOL", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(DeviceError, match=r"bench: killed, probably because memory ran out.*stop the service"):
        install.install(releases, make(1), QUICK, quiet)
    assert releases.all() == [] and not leftovers(releases)
