"""Tests of the notification about a new release with a FAKE systemctl, a script that keeps its units in files and logs
its calls. tests/rig uses the real one."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

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
    installed = Release("ab" * 32, "tiny", 1, "SHA256:x", True, clock.wall(), sequence=1)
    releases.folder(installed).mkdir()
    releases.write(installed)
    releases.switch(installed)
    return installed


@pytest.fixture
def systemd(tmp_path, monkeypatch):
    """units: a folder with a file of properties per unit; .asked(): the commands that systemctl received."""
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
    """says(state, frames, …): what `edgeprune run` would write of itself. This process has the service's lock open, and
    so has each process that it starts with `pass_fds=[says.lock]`."""
    lock = os.open(str(releases.root / "run" / "lock"), os.O_RDWR | os.O_CREAT, 0o644)

    def says(state="running", frames=1, pid=None, age_s=0.0, **more):
        now = clock.now()
        data = {
            "schema_version": 1, "pid": os.getpid() if pid is None else pid, "boot_id": now["boot_id"],
            "boot_s": now["boottime_s"] - age_s, "release": release.identity, "state": state, "frames": frames,
            "restarts": 0, "reason": None, "last_frame_boot_s": None, "lost_lines": 0, "since_boot_s": 0.0, **more,
        }  # fmt: skip
        beside = releases.root / "run" / ".status"
        beside.write_text(json.dumps(data))
        beside.rename(releases.root / "run" / "status.json")

    says.lock = lock
    yield says
    os.close(lock)


def test_without_a_service_nothing_is_restarted_or_watched(releases, release, no_systemd):
    service = restart.find(releases)
    service.restart()
    assert service.watch(release, 9.0, print) == (True, "no service runs the release, so the health check is skipped")


@pytest.mark.parametrize("age_s", [60.0, -60.0])
def test_old_status_is_ignored(releases, says, age_s, no_systemd):
    says()
    assert restart.status(releases)["state"] == "running"
    says(age_s=age_s)
    assert restart.status(releases) is None


def test_status_of_an_ended_process_or_another_boot_is_ignored(releases, says):
    ended = subprocess.Popen(["true"])
    ended.wait()
    says(pid=ended.pid)
    assert restart.status(releases) is None
    says(boot_id="0" * 36)
    assert restart.status(releases) is None
    (releases.root / "run" / "status.json").write_text("[]")
    assert restart.status(releases) is None


@pytest.mark.parametrize("pid", [-1, 0, 1, "group", "foreign", True, "12", 2.5, 2**70])
def test_only_a_process_that_holds_the_lock_of_the_service_is_its_supervisor(
    releases, says, no_systemd, pid, monkeypatch, own_signals
):
    """A number in a file may be any process: it gets no signal, and there is no service."""
    sent = []
    foreign = subprocess.Popen(["sleep", "60"], start_new_session=True)
    says(pid={"group": -foreign.pid, "foreign": foreign.pid}.get(pid, pid))
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
            assert restart.status(releases) is None
            service = restart.find(releases)
            service.restart()
        assert service.description == "no service runs the release" and not sent and foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()


def test_a_service_of_another_user_is_known_by_its_owner_and_refused_before_anything_happens(
    releases, says, no_systemd, monkeypatch
):
    def hidden(path):
        raise PermissionError(13, "Permission denied", path)

    def strange(path, **_):
        return SimpleNamespace(st_uid=12345) if str(path).startswith("/proc/") else os.lstat(path)

    says()
    monkeypatch.setattr(os, "listdir", hidden)  # as the descriptors of another user's process
    assert restart.status(releases)["state"] == "running"
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, number: hidden(pid))
        with pytest.raises(InputError, match="belongs to another user"):
            restart.find(releases)
    monkeypatch.setattr(os, "stat", strange)
    assert restart.status(releases) is None  # whoever wrote the status is not the owner of that process


def test_without_systemd_edgeprune_run_gets_a_sighup(releases, says, no_systemd):
    script = "import signal, sys; signal.signal(1, lambda *_: sys.exit(7)); print(flush=True); signal.pause()"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, pass_fds=[says.lock])
    process.stdout.readline()
    says(pid=process.pid)
    restart.find(releases).restart()
    assert process.wait(10) == 7
    process.stdout.close()


def test_unit_of_edgeprune_run_is_restarted(releases, says, systemd):
    systemd.unit("edgeprune.service")
    service = restart.find(releases)
    service.restart()
    assert systemd.asked() == ["restart --no-block edgeprune.service"]
    assert "edgeprune.service" in service.description


def test_service_is_healthy_after_frames_for_long_enough(releases, release, says, no_systemd):
    says("running", 1)
    frames, begin = [1], time.monotonic()

    def flow(text):
        frames[0] += 1
        says("running", frames[0])

    healthy, why = restart.find(releases).watch(release, 0.6, flow)
    assert healthy and "0 restarts" in why and time.monotonic() - begin >= 0.6


def test_frames_that_do_not_flow_are_not_healthy(releases, release, says, no_systemd, monkeypatch):
    monkeypatch.setattr(restart, "LONGEST_WATCH_S", 0.5)
    says("running", 1)
    assert restart.find(releases).watch(release, 0.2, lambda _: says("running", 1))[0] is False


def test_it_is_not_healthy_before_its_restarts_have_ended(releases, release, says, no_systemd, monkeypatch):
    monkeypatch.setattr(restart, "LONGEST_WATCH_S", 1.0)
    count = [0]

    def crash(text):
        count[0] += 1
        says("running", count[0], restarts=count[0])

    says("running", 1)
    healthy, why = restart.find(releases).watch(release, 0.5, crash)
    assert healthy is False and "did not stay healthy" in why


def test_watch_follows_the_decision_of_the_service(releases, release, says, no_systemd):
    says()
    service = restart.find(releases)
    releases.mark(release, "bad", "it crashed three times")
    assert service.watch(release, 9.0, print) == (False, "it crashed three times")
    releases.mark(release, "good")
    assert service.watch(release, 9.0, print)[0] is True
    releases.switch(None)
    assert service.watch(release, 9.0, print) == (False, "the service returned to no release")


def test_camera_without_frames_leaves_the_release_on_trial(releases, release, says, no_systemd):
    says("waiting", 0, reason="no camera \x1b[2J")
    healthy, why = restart.find(releases).watch(release, 0.3, lambda _: None)
    assert healthy is None and why == "the source delivers no frames (no camera ?[2J)"


def test_service_that_does_not_restart_is_not_healthy(releases, release, says, no_systemd, monkeypatch):
    monkeypatch.setattr(restart, "_START_S", 0.3)
    says()
    service = restart.find(releases)
    says(age_s=100)
    assert service.watch(release, 9.0, print) == (
        False,
        "the service has not reported for 0.3 s (edgeprune run has written no status)",
    )


def test_other_unit_is_healthy_if_it_stays_active(releases, release, systemd):
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
    assert healthy is False and why == "unit mine.service is failed (result exit-code, 0 restarts)"


def test_missing_unit_is_an_error(releases, systemd):
    for name in ("none", "none.service"):
        with pytest.raises(InputError, match="no such systemd unit"):
            restart.find(releases, name)
    for name in ("", "-a", "a b", "a/b", "x" * 300):
        with pytest.raises(InputError, match="invalid unit name"):
            restart.find(releases, name)


def test_missing_permission_to_restart_is_reported_first(releases, systemd, monkeypatch):
    systemd.unit("edgeprune.service")
    monkeypatch.setattr(restart, "privileged", lambda: None)
    with pytest.raises(InputError, match="restarted only by root"):
        restart.find(releases)


def test_unit_is_written_completely_and_enabled(systemd):
    restart.write_unit("[Unit]\n")
    assert restart.UNIT_FILE.read_text() == "[Unit]\n"
    assert systemd.asked() == ["daemon-reload", "enable edgeprune.service"]


def test_failing_systemctl_is_one_line(releases, release, systemd):
    systemd.unit("edgeprune.service")
    service = restart.find(releases)
    (systemd.units / "edgeprune.service").unlink()
    with pytest.raises(InputError, match=r"systemctl restart .*: Unit edgeprune\.service not found\.$"):
        service.restart()


def test_service_that_has_ended_receives_no_signal(releases, release, says, no_systemd, own_signals):
    says()
    service = restart.find(releases)
    says(pid=2**22 - 3)
    with pytest.raises(InputError, match="edgeprune run: no longer running"):
        service.restart()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL  # the signal would have reached this process


def test_watching_changes_no_records(releases, release, says, no_systemd):
    says()
    restart.find(releases).watch(release, 0.1, lambda _: says("running", 5))
    assert releases.current() == replace(release)
