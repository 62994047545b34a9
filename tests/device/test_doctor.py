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


def test_this_machine():
    found = by_name()
    for name in ("Python", "numpy", "Pillow", "PyNaCl", "spool"):
        assert found[name].state == "ok", found[name]
    assert sys.prefix in found["Python"].found
    assert all(check.state in ("ok", "note", "missing") and check.found for check in found.values())
    assert found["trusted keys"].state == "note" and "edgeprune setup" in found["trusted keys"].advice


def test_the_command_says_what_is_missing_and_fails(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", [doctor.python, lambda: Check("TensorRT", "missing", "not there", "apt it")])
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^missing  TensorRT +not there\n +-> apt it$", out, re.M) and "missing here: TensorRT" in err
    assert cli.main(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [check["state"] for check in data["checks"]] == ["ok", "missing"]
    monkeypatch.setattr(doctor, "CHECKS", [doctor.python])
    assert cli.main(["doctor"]) == 0


def test_a_check_that_breaks_is_one_line_and_stops_no_other(monkeypatch):
    def broken_thing():
        raise RuntimeError("a\nb")

    monkeypatch.setattr(doctor, "CHECKS", [broken_thing, doctor.python])
    first, second = doctor.examine()
    assert first == Check("broken thing", "missing", "RuntimeError: a b") and second.state == "ok"


def test_a_library_that_is_broken_is_not_one_that_is_absent(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import nowhere_at_all")
    (tmp_path / "old.py").write_text("raise AttributeError('_ARRAY_API not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert doctor.library("x", "nowhere_at_all", "get it", "note") == Check("x", "note", "not installed", "get it")
    assert "does not load: No module named" in doctor.library("x", "halfway", "").found
    assert doctor.library("x", "old", "", "note").state == "missing"


def test_a_jetson_without_tensorrt(tmp_path, monkeypatch):
    """On a recorded board: TensorRT is needed there, and an environment that hides apt's packages is named."""
    if doctor.library("t", "tensorrt", "").state == "ok":
        pytest.skip("TensorRT is installed here")
    monkeypatch.setenv("EDGEPRUNE_SYSROOT", str(boards.write("jetson-orin-nx, JetPack 6", tmp_path / "board")))
    monkeypatch.setattr(doctor.sys, "prefix", str(tmp_path / "venv"))
    assert by_name()["TensorRT"].advice == "sudo apt install python3-libnvinfer"
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("include-system-site-packages = false\n")
    found = by_name()
    assert found["TensorRT"].state == "missing" and "--system-site-packages" in found["TensorRT"].advice
    assert "L4T 36.4.3" in found["board"].found and "power" in found["sensors"].found
    (tmp_path / "venv" / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    assert "apt install" in by_name()["TensorRT"].advice


def test_a_spool_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "file" / "spool"))
    found = {check.name: check for check in doctor.examine()}["spool"]
    assert found.state == "missing" and "EDGEPRUNE_SPOOL" in found.found
