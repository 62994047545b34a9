"""Who is told of a new release, with a FAKE systemctl: a script that has its units in files and writes down what it is
asked. The real one: tests/rig."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from edgeprune_device import clock
from edgeprune_device.errors import InputError
from edgeprune_device.installation import restart
from edgeprune_device.releases import Release, Releases

SYSTEMCTL = """#!/bin/sh
echo "$@" >>{log}
case $1 in
show) cat {units}/"$5" 2>/dev/null || echo LoadState=not-found;;
restart) [ -e {units}/"$3" ] || {{ echo "Unit $3 not found." >&2; exit 5; }}; : >{restarted};;
esac
"""


@pytest.fixture
def releases(tmp_path):
    root = tmp_path / "root"
    (root / "releases").mkdir(parents=True)
    (root / "run").mkdir()
    return Releases(root)


@pytest.fixture
def release(releases):
    found = Release("ab" * 32, "tiny", 1, "SHA256:x", True, clock.wall(), sequence=1)
    releases.folder(found).mkdir()
    releases.write(found)
    releases.switch(found)
    return found


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """units: a folder with a file for each unit, of its properties; .asked(): what systemctl was asked to do."""
    folder, units = tmp_path / "bin", tmp_path / "units"
    folder.mkdir()
    units.mkdir()
    log, restarted = tmp_path / "log", tmp_path / "restarted"
    script = folder / "systemctl"
    script.write_text(SYSTEMCTL.format(log=log, units=units, restarted=restarted))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(restart, "_SYSTEMD", tmp_path)
    monkeypatch.setattr(restart, "UNIT_FILE", tmp_path / "edgeprune.service")
    monkeypatch.setattr(restart, "privileged", lambda: [])

    class Systemd:
        def __init__(self):
            self.units = units

        def unit(self, name, **properties):
            shown = {"LoadState": "loaded", "ActiveState": "active", "Result": "success", "NRestarts": "0"}
            shown.update(properties)
            (units / name).write_text("".join(f"{key}={value}\n" for key, value in shown.items()))

        def asked(self):
            return [line for line in log.read_text().splitlines() if not line.startswith("show")]

    return Systemd()


@pytest.fixture
def no_systemd(tmp_path, monkeypatch):
    monkeypatch.setattr(restart, "_SYSTEMD", tmp_path / "nowhere")


@pytest.fixture
def says(releases, release):
    """says(state, frames, …): what `edgeprune run` would write of itself, by a process that is alive."""

    def says(state="running", frames=1, pid=None, age_s=0.0, **more):
        now = clock.now()
        data = {
            "schema_version": 1, "pid": pid or os.getpid(), "boot_id": now["boot_id"],
            "boot_s": now["boottime_s"] - age_s, "release": release.identity, "state": state, "frames": frames,
            "restarts": 0, "reason": None, **more,
        }  # fmt: skip
        beside = releases.root / "run" / ".status"
        beside.write_text(json.dumps(data))
        beside.rename(releases.root / "run" / "status.json")

    return says


def test_where_nothing_runs_nobody_is_told(releases, release, no_systemd):
    service = restart.find(releases)
    service.restart()
    assert service.watch(release, 9.0, print) == (True, "nothing runs it here, so nothing was watched")


@pytest.mark.parametrize("age_s", [60.0, -60.0])
def test_an_old_status_is_none(releases, says, age_s, no_systemd):
    says()
    assert restart.status(releases)["state"] == "running"
    says(age_s=age_s)
    assert restart.status(releases) is None


def test_a_status_of_a_process_that_has_ended_or_of_another_boot_is_none(releases, says):
    ended = subprocess.Popen(["true"])
    ended.wait()
    says(pid=ended.pid)
    assert restart.status(releases) is None
    says(boot_id="0" * 36)
    assert restart.status(releases) is None
    (releases.root / "run" / "status.json").write_text("[]")
    assert restart.status(releases) is None


def test_without_systemd_edgeprune_run_gets_a_sighup(releases, says, no_systemd):
    script = "import signal, sys; signal.signal(1, lambda *_: sys.exit(7)); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    says(pid=process.pid)
    restart.find(releases).restart()
    assert process.wait(10) == 7
    process.stdout.close()


def test_with_systemd_its_unit_is_restarted(releases, says, systemd):
    systemd.unit("edgeprune.service")
    service = restart.find(releases)
    service.restart()
    assert systemd.asked() == ["restart --no-block edgeprune.service"]
    assert "edgeprune.service" in service.description


def test_it_is_healthy_when_frames_have_flowed_for_long_enough(releases, release, says, no_systemd):
    says("running", 1)
    frames, begin = [1], time.monotonic()

    def flow(text):
        frames[0] += 1
        says("running", frames[0])

    healthy, why = restart.find(releases).watch(release, 0.6, flow)
    assert healthy and "0 restarts" in why and time.monotonic() - begin >= 0.6


def test_frames_that_do_not_flow_are_not_healthy(releases, release, says, no_systemd, monkeypatch):
    monkeypatch.setattr(restart, "_LONGEST_S", 0.5)
    says("running", 1)
    assert restart.find(releases).watch(release, 0.2, lambda _: says("running", 1))[0] is False


def test_it_is_not_healthy_before_its_restarts_have_ended(releases, release, says, no_systemd, monkeypatch):
    monkeypatch.setattr(restart, "_LONGEST_S", 1.0)
    count = [0]

    def crash(text):
        count[0] += 1
        says("running", count[0], restarts=count[0])

    says("running", 1)
    healthy, why = restart.find(releases).watch(release, 0.5, crash)
    assert healthy is False and "was not healthy" in why


def test_what_the_service_itself_decided_counts(releases, release, says, no_systemd):
    says()
    service = restart.find(releases)
    releases.mark(release, "bad", "it crashed three times")
    assert service.watch(release, 9.0, print) == (False, "it crashed three times")
    releases.mark(release, "good")
    assert service.watch(release, 9.0, print)[0] is True
    releases.switch(None)
    assert service.watch(release, 9.0, print) == (False, "the service went back to None")


def test_a_camera_that_gives_nothing_leaves_it_on_trial(releases, release, says, no_systemd):
    says("waiting", 0, reason="no camera \x1b[2J")
    healthy, why = restart.find(releases).watch(release, 0.3, lambda _: None)
    assert healthy is None and why == "its source gives no frames (no camera ?[2J)"


def test_a_service_that_does_not_come_back_is_not_healthy(releases, release, says, no_systemd, monkeypatch):
    monkeypatch.setattr(restart, "_START_S", 0.3)
    says()
    service = restart.find(releases)
    says(age_s=100)
    assert service.watch(release, 9.0, print) == (False, "the service does not start: it has written no status")


def test_another_unit_is_healthy_when_it_stays_up(releases, release, systemd):
    systemd.unit("mine.service")
    service = restart.find(releases, "mine")
    service.restart()
    assert systemd.asked() == ["restart --no-block mine.service"]
    assert service.watch(release, 0.3, print)[0] is True
    count = [0]

    def crash(text):
        count[0] += 1
        systemd.unit("mine.service", NRestarts=count[0])

    assert service.watch(release, 0.6, crash)[0] is False
    systemd.unit("mine.service", ActiveState="failed", Result="exit-code")
    healthy, why = service.watch(release, 0.3, print)
    assert healthy is False and why == "unit mine.service is failed (exit-code), started again 0 times"


def test_a_unit_that_is_not_there_is_said(releases, systemd):
    for name in ("none", "none.service"):
        with pytest.raises(InputError, match="systemd knows no such unit"):
            restart.find(releases, name)
    for name in ("", "-a", "a b", "a/b", "x" * 300):
        with pytest.raises(InputError, match="not a unit's name"):
            restart.find(releases, name)


def test_without_the_right_to_restart_it_is_said_before_anything_happens(releases, systemd, monkeypatch):
    systemd.unit("edgeprune.service")
    monkeypatch.setattr(restart, "privileged", lambda: None)
    with pytest.raises(InputError, match="restarted by root only"):
        restart.find(releases)


def test_the_unit_is_written_whole_and_enabled(systemd):
    restart.write_unit("[Unit]\n")
    assert restart.UNIT_FILE.read_text() == "[Unit]\n"
    assert systemd.asked() == ["daemon-reload", "enable edgeprune.service"]


def test_a_systemctl_that_fails_is_one_line(releases, release, systemd):
    systemd.unit("edgeprune.service")
    service = restart.find(releases)
    (systemd.units / "edgeprune.service").unlink()
    with pytest.raises(InputError, match=r"systemctl restart .*: Unit edgeprune\.service not found\.$"):
        service.restart()


def test_a_service_that_has_ended_meanwhile_is_not_sent_a_signal(releases, release, says, no_systemd, own_signals):
    says()
    service = restart.find(releases)
    says(pid=2**22 - 3)
    with pytest.raises(InputError, match="has ended meanwhile"):
        service.restart()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL  # it would have been this process


def test_records_do_not_change_while_it_watches(releases, release, says, no_systemd):
    says()
    restart.find(releases).watch(release, 0.1, lambda _: says("running", 5))
    assert releases.current() == replace(release)
