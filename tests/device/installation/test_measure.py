import pytest
from edgeprune_device import cli
from edgeprune_device.errors import DeviceError
from edgeprune_device.installation import install, measure

from .installing import QUICK, leftovers, quiet


def test_a_model_that_loses_accuracy_here_is_not_installed(releases, make, manifest, capfd):
    from conftest import make_onnx

    assert cli.main(["install", str(make(1)), "--root", str(releases.root)]) == 0
    former = releases.current()
    blind = make(2, onnx=make_onnx([(8, 8, 6, 6, 0)]))  # the manifest still claims 1.0
    assert cli.main(["install", str(blind), "--root", str(releases.root)]) == 1
    error = capfd.readouterr().err
    assert error.startswith("edgeprune: error: bench: mAP50-95 is 1.0000 lower than on the host")
    assert error.count("\n") == 1
    assert releases.current() == former and releases.all() == [former] and not leftovers(releases)


def test_a_model_that_no_runtime_takes_is_not_installed(releases, make, capfd):
    assert cli.main(["install", str(make(1, onnx=b"garbage")), "--root", str(releases.root)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("edgeprune: error: bench: ") and error.count("\n") == 1
    assert releases.current() is None and releases.all() == [] and not leftovers(releases)


def test_a_benchmark_that_is_killed_says_what_to_do(releases, make, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "_TOOL", "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(DeviceError, match=r"bench: was killed, most likely because memory ran out.*stop the service"):
        install.install(releases, make(1), QUICK, quiet)
    assert releases.all() == [] and not leftovers(releases)
