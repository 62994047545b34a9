"""Tests of which installation a second command follows. Locks decide this, not timing or clocks."""

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.installation import detached
from edgeprune_device.releases import Release, Releases

from ... import fuzz

RELEASE = Release("0" * 64, "tiny", 1, "SHA256:" + "A" * 22, True, "2026-11-24T12:00:00Z", 1, state="good")


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path)


def wait_for(what):
    until = time.monotonic() + 20
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def run(releases, act, ticket, request=("a",)):
    return detached.run(releases, act, request=list(request), ticket=ticket, as_json=True)


def in_background(call):
    """Run in another process, because only the main thread receives signals."""
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def test_command_waits_for_a_result_written_after_the_installation(releases, capfd, monkeypatch):
    def act(say):
        with releases.locked():
            say("measure", "slow")
            time.sleep(0.5)
        return RELEASE

    monkeypatch.setattr(Releases, "current", lambda self: time.sleep(1.0))  # the work after the lock is slow
    first = in_background(lambda: run(releases, act, "ticket00"))
    wait_for(releases.at_work)
    assert run(releases, act, "ticket00") == 0
    first.join()
    ends = [json.loads(line) for line in capfd.readouterr().out.splitlines() if "result" in line]
    assert [end["result"]["exit"] for end in ends] == [0, 0]


def test_same_ticket_twice_at_once_starts_one_installation(releases, tmp_path):
    def act(say):
        with open(tmp_path / "acts", "ab") as stream:
            stream.write(b".")
        time.sleep(0.5)  # before it takes the lock
        with releases.locked():
            return RELEASE

    first = in_background(lambda: run(releases, act, "ticket00"))
    wait_for((tmp_path / "acts").exists)
    assert run(releases, act, "ticket00") == 0
    first.join()
    assert (tmp_path / "acts").read_bytes() == b"."


def test_log_of_a_killed_installation_is_not_followed_during_another(releases, tmp_path):
    folder = tmp_path / ".installations"
    folder.mkdir()
    (folder / "ticket00.jsonl").write_text('{"request": ["a"]}\n')
    with releases.locked(), pytest.raises(InputError, match="another installation is in progress"):
        run(releases, lambda say: RELEASE, "ticket00")


def test_installation_in_progress_is_found_independently_of_the_clock(releases, tmp_path):
    def act(say):
        with releases.locked():
            time.sleep(0.7)
            return RELEASE

    first = in_background(lambda: run(releases, act, "ticket00"))
    wait_for(releases.at_work)
    old = tmp_path / ".installations" / "ticket01.jsonl"
    old.write_text('{"request": ["b"]}\n')
    os.utime(str(old), (2**32, 2**32))
    assert run(releases, act, None) == 0
    first.join()
    assert len(list(old.parent.iterdir())) == 2


def test_unwritable_folder_is_an_error(releases, tmp_path):
    (tmp_path / ".installations").write_text("a file")
    with pytest.raises(InputError, match="installations: cannot be created"):
        run(releases, lambda say: RELEASE, None)


DAMAGED = [
    b"",
    b"\n",
    b'{"request": ["a"]}\n{"step"',
    b"\xff\xfe\0" * 100,
    b'{"request": ["a"]}\n[]\n7\nnull\n{"step": "measure"}\n',
    b'{"request": 5}\n{"result": null}\n{"result": {"exit": 0}}\n{"result": {"exit": "0", "error": null}}\n',
    b'{"request": ["a"]}\n{"result": {"exit": 0, "error": null, "release": {}, "current": null}}\n',
    b'{"result": ' + b"[" * 100000,
]


@pytest.mark.parametrize("log", DAMAGED)
def test_a_damaged_log_counts_as_missing(releases, tmp_path, log, capfd):
    """The same command starts the installation anew, and a log beside it does not stop another one."""
    folder = tmp_path / ".installations"
    folder.mkdir()
    for ticket in ("ticket00", "ticket01"):
        (folder / f"{ticket}.jsonl").write_bytes(log)
    assert run(releases, lambda say: RELEASE, "ticket00") == 0
    assert json.loads(capfd.readouterr().out)["result"]["release"]["name"] == "tiny"


@pytest.mark.parametrize("log", DAMAGED)
def test_a_log_that_is_damaged_while_it_is_written_ends_in_one_line(releases, tmp_path, log, capfd):
    def act(say):
        path = tmp_path / ".installations" / "ticket00.jsonl"
        path.write_bytes(b"")
        with open(path, "ab") as stream:
            stream.write(log + b"\n")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match=r"its log was damaged; .* run the same command again"):
        run(releases, act, "ticket00")


@pytest.mark.parametrize("pid", [None, -1, 0, 1, True, "12", 2.5, "group", "foreign"])
def test_abort_signals_only_the_process_that_writes_the_log(releases, tmp_path, pid, monkeypatch):
    sent = []
    folder = tmp_path / ".installations"
    folder.mkdir()
    log = folder / "ticket00.jsonl"
    foreign = subprocess.Popen(["sleep", "60"], start_new_session=True)
    pid = {"group": -foreign.pid, "foreign": foreign.pid}.get(pid, pid)
    log.write_text(f'{{"request": ["a"]}}\n{json.dumps({"pid": pid})}\n')
    monkeypatch.setattr(detached, "_END_S", 0.2)
    try:
        with open(log, "rb") as stream, monkeypatch.context() as patch:
            patch.setattr(os, "kill", lambda *arguments: sent.append(arguments))
            fcntl.flock(stream, fcntl.LOCK_EX)
            with pytest.raises(InputError, match="cannot be ended"):
                detached.abort(releases)
    finally:
        foreign.kill()
        foreign.wait()
    assert not sent


def test_abort_where_no_installation_is_at_work(releases, tmp_path):
    assert not detached.abort(Releases(tmp_path / "nowhere"))
    with releases.locked(), pytest.raises(InputError, match="a rollback is in progress"):
        detached.abort(releases)


def test_only_a_regular_file_is_a_log(releases, tmp_path):
    folder = tmp_path / ".installations"
    folder.mkdir()
    os.mkfifo(folder / "ticket00.jsonl")  # its opening would wait for ever
    (folder / "ticket01.jsonl").mkdir()
    for ticket in ("ticket00", "ticket01"):
        with pytest.raises(InputError, match="not a regular file"):
            run(releases, lambda say: RELEASE, ticket)
    with releases.locked(), pytest.raises(InputError, match="another installation is in progress"):
        run(releases, lambda say: RELEASE, None)


def test_following_an_installation_does_not_import_numpy():
    """The command that follows stays small while a Nano measures."""
    code = "import sys; from edgeprune_device.installation import describe, detached, install; "
    code += "sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@fuzz.counts(150, 5_000)
def test_any_log_of_a_ticket_ends_the_command(tmp_path, count):
    """The log of an installation that has ended, spoiled by a disk or by another program."""
    release = {**RELEASE.to_json(), "identity": RELEASE.identity}
    result = {"exit": 0, "error": None, "release": release, "current": RELEASE.identity}
    lines = [{"request": ["a"]}, {"step": "verify", "text": "demo"}, {"result": result}]
    folder = tmp_path / ".installations"
    folder.mkdir()

    def attempt(mutant):
        (folder / "ticket00.jsonl").write_bytes(mutant)
        code = run(Releases(tmp_path), lambda say: RELEASE, "ticket00")
        assert isinstance(code, int)

    good = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    outcomes = fuzz.run(attempt, fuzz.of_bytes(good, count))
    assert outcomes["accepted"]
