import re
import time
from pathlib import Path
from types import SimpleNamespace

from edgeprune_device import clock


def test_boot_id_and_time_since_boot():
    now = clock.now()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert re.fullmatch(r"[0-9a-f-]{36}", now["boot_id"]) and abs(now["boottime_s"] - uptime) < 5
    assert clock.now()["boottime_s"] >= now["boottime_s"] and clock.now()["boot_id"] == now["boot_id"]
    assert now["synchronized"] in (True, False, None)


def test_values_that_the_kernel_does_not_report_are_none(monkeypatch):
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(clock.Path, "read_text", lambda *given, **more: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert clock.now() == {"boot_id": None, "boottime_s": None, "synchronized": None}


def test_synchronization_is_read_from_the_kernel(monkeypatch):
    for state, known in ((0, True), (5, False), (-1, None)):
        monkeypatch.setattr(clock.ctypes, "CDLL", lambda name, s=state: SimpleNamespace(adjtimex=lambda buffer: s))
        assert clock.synchronized() is known


def test_invalid_boot_id_is_none(monkeypatch, tmp_path):
    (tmp_path / "boot_id").write_text("../../etc\n")
    monkeypatch.setattr(clock, "_BOOT_ID", tmp_path / "boot_id")
    assert clock.now()["boot_id"] is None  # the report's schema permits nothing else


def test_wall_clock_has_its_format():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", clock.wall())
