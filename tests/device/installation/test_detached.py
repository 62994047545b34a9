"""Whom a second command follows: by locks, so that neither a moment nor a clock decides."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.installation import detached
from edgeprune_device.releases import Release, Releases

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
    """In another process: signals are for the main thread only."""
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def test_a_result_that_is_written_after_the_installation_has_ended_is_waited_for(releases, capfd, monkeypatch):
    def act(say):
        with releases.locked():
            say("measure", "slow")
            time.sleep(0.5)
        return RELEASE

    monkeypatch.setattr(Releases, "current", lambda self: time.sleep(1.0))  # what follows the lock takes its time
    first = in_background(lambda: run(releases, act, "ticket00"))
    wait_for(releases.at_work)
    assert run(releases, act, "ticket00") == 0
    first.join()
    ends = [json.loads(line) for line in capfd.readouterr().out.splitlines() if "result" in line]
    assert [end["result"]["exit"] for end in ends] == [0, 0]


def test_the_same_ticket_twice_at_once_is_one_installation(releases, tmp_path):
    def act(say):
        with open(tmp_path / "acts", "ab") as stream:
            stream.write(b".")
        time.sleep(0.5)  # before it holds the lock
        with releases.locked():
            return RELEASE

    first = in_background(lambda: run(releases, act, "ticket00"))
    wait_for((tmp_path / "acts").exists)
    assert run(releases, act, "ticket00") == 0
    first.join()
    assert (tmp_path / "acts").read_bytes() == b"."


def test_the_log_of_one_that_was_killed_is_not_followed_while_another_is_at_work(releases, tmp_path):
    folder = tmp_path / ".installations"
    folder.mkdir()
    (folder / "ticket00.jsonl").write_text('{"request": ["a"]}\n')
    with releases.locked(), pytest.raises(InputError, match="another installation is at work"):
        run(releases, lambda say: RELEASE, "ticket00")


def test_what_is_at_work_is_found_whatever_the_clock_says(releases, tmp_path):
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


def test_a_folder_that_cannot_be_written_is_told(releases, tmp_path):
    (tmp_path / ".installations").write_text("a file")
    with pytest.raises(InputError, match="installations: cannot be made"):
        run(releases, lambda say: RELEASE, None)


def test_whoever_follows_an_installation_loads_no_numpy():
    """The command that follows stays small while a Nano measures."""
    code = "import sys; from edgeprune_device.installation import describe, detached, install; "
    code += "sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
