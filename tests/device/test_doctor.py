import json
import re
import sys

import pytest
import sysfs as boards
from edgeprune_device import cli, doctor
from edgeprune_device.doctor import Check


@pytest.fixture(autouse=True)
def only_the_devices_own(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_from_host", lambda: [])
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "spool"))


def by_name():
    return {check.name: check for check in doctor.examine()}


def test_this_machine_is_examined():
    checks = by_name()
    for name in ("Python", "numpy", "Pillow", "PyNaCl", "spool"):
        assert checks[name].state == "ok", checks[name]
    assert sys.prefix in checks["Python"].detail
    assert all(check.state in ("ok", "note", "missing") and check.detail for check in checks.values())
    assert checks["trusted keys"].state == "note" and "edgeprune setup" in checks["trusted keys"].advice


def test_command_lists_missing_parts_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", [doctor.python, lambda: Check("TensorRT", "missing", "not there", "apt it")])
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert (
        re.search(r"^missing  TensorRT +not there\n +-> apt it$", out, re.M)
        and "missing on this machine: TensorRT" in err
    )
    assert cli.main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [check["state"] for check in data["checks"]] == ["ok", "missing"]
    monkeypatch.setattr(doctor, "CHECKS", [doctor.python])
    assert cli.main(["doctor"]) == 0


def test_failing_check_is_one_line_and_does_not_stop_the_others(monkeypatch):
    def broken_thing():
        raise RuntimeError("a\nb")

    monkeypatch.setattr(doctor, "CHECKS", [broken_thing, doctor.python])
    first, second = doctor.examine()
    assert first == Check("broken thing", "missing", "RuntimeError: a b") and second.state == "ok"


def test_broken_library_is_distinguished_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import nowhere_at_all")
    (tmp_path / "old.py").write_text("raise AttributeError('_ARRAY_API not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.library("x", "nowhere_at_all", "get it", "note") == Check("x", "note", "not installed", "get it")
    assert "does not load: No module named" in doctor.library("x", "halfway", "").detail
    assert doctor.library("x", "old", "", "note").state == "missing"


def test_missing_tensorrt_on_a_jetson_is_reported(tmp_path, monkeypatch):
    """Uses a recorded board. TensorRT is required there, and an environment that hides apt's packages is reported."""
    if doctor.library("t", "tensorrt", "").state == "ok":
        pytest.skip("TensorRT is installed on this machine")
    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "board")))
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path / "venv"))
    assert by_name()["TensorRT"].advice == "sudo apt install python3-libnvinfer"
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    checks = by_name()
    assert checks["TensorRT"].state == "missing" and "--system-site-packages" in checks["TensorRT"].advice
    assert "L4T 36.4.3" in checks["board"].detail and "power" in checks["sensors"].detail
    (tmp_path / "venv" / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert "apt install" in by_name()["TensorRT"].advice


def test_unwritable_spool_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "file" / "spool"))
    spool = {check.name: check for check in doctor.examine()}["spool"]
    assert spool.state == "missing" and "EDGEPRUNE_SPOOL" in spool.detail
