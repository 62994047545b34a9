import re
import time
from pathlib import Path

from edgeprune_device import clock


def test_boot_and_the_time_since():
    now = clock.now()
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    assert re.fullmatch(r"[0-9a-f-]{36}", now["boot_id"]) and abs(now["boottime_s"] - uptime) < 5
    assert clock.now()["boottime_s"] >= now["boottime_s"] and clock.now()["boot_id"] == now["boot_id"]
    assert now["synchronized"] in (True, False, None)


def test_where_the_kernel_says_nothing(monkeypatch):
    monkeypatch.setattr(clock.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(clock.Path, "read_text", lambda *given, **more: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert clock.now() == {"boot_id": None, "boottime_s": None, "synchronized": None}


def test_a_boot_id_that_is_none(monkeypatch, tmp_path):
    (tmp_path / "boot_id").write_text("../../etc\n")
    monkeypatch.setattr(clock, "_BOOT_ID", tmp_path / "boot_id")
    assert clock.now()["boot_id"] is None  # the report's schema knows no other


def test_the_wall_clock():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", clock.wall())
