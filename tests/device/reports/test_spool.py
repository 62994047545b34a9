import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.reports.spool import Spool

from ... import fuzz


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def test_name_of_a_report_is_its_hash(spool):
    identity = spool.put(b"one")
    assert identity == hashlib.sha256(b"one").hexdigest() and spool.read(identity) == b"one"
    (entry,) = spool.entries()
    assert entry == (identity, 3, spool.folder / "pending" / f"{identity}.json", False)
    assert entry.path.read_bytes() == b"one"


def test_same_report_twice_is_stored_once(spool):
    assert spool.put(b"one") == spool.put(b"one")
    assert len(spool.entries()) == 1
    deliver(spool)
    spool.put(b"one")
    assert [entry.delivered for entry in spool.entries()] == [True]


def deliver(spool):
    """Deliver the reports with `mv`, like `edgeprune collect`."""
    for entry in spool.entries():
        entry.path.rename(spool.folder / "delivered" / entry.path.name)


def test_only_delivered_reports_are_pruned(spool):
    first = spool.put(b"one")
    deliver(spool)
    second = spool.put(b"two")
    assert spool.prune() == [first]
    assert [entry.id for entry in spool.entries()] == [second]


def test_copy_to_a_stick_keeps_the_reports_pending(spool, tmp_path):
    stick = tmp_path / "stick"
    stick.mkdir()
    spool.put(b"delivered")
    deliver(spool)
    identity = spool.put(b"one")
    assert spool.copy_pending(stick) == [identity] and spool.copy_pending(stick) == []
    assert [path.name for path in stick.iterdir()] == [f"{identity}.json"]
    assert [entry.delivered for entry in spool.entries()] == [False, True]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)])
def test_only_a_file_is_a_report(spool, tmp_path, make):
    kept = spool.put(b"one")
    for folder in ("pending", "delivered"):
        make(spool.folder / folder / f"{'0' * 64}.json")
    assert [entry.id for entry in spool.entries()] == spool.copy_pending(tmp_path) == [kept]
    assert spool.prune() == []


@fuzz.counts(300, 20_000)
def test_any_name_in_the_spool_is_ignored_or_refused_in_one_line(tmp_path, count):
    """Another program has put a file beside the reports. Its content is never what its name says."""
    stick = tmp_path / "stick"
    stick.mkdir()
    spool = Spool(tmp_path / "spool")
    kept = spool.put(b"one")

    def attempt(mutant):
        name = mutant.translate(None, b"/\0")[:255]
        paths = [os.path.join(os.fsencode(spool.folder), folder, name) for folder in (b"pending", b"delivered")]
        paths = paths if name.strip(b".") else []
        for path in paths:
            with open(path, "xb") as stream:
                stream.write(b"x")
        try:
            assert kept in {entry.id for entry in spool.entries() if not entry.delivered}
            assert len(spool.prune()) <= 1
            spool.copy_pending(stick)
        finally:
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)

    result = fuzz.run(attempt, fuzz.of_bytes(f"{'0' * 64}.json".encode(), count))
    assert result["accepted"] and result["refused"]
    assert [path.name for path in stick.iterdir()] == [f"{kept}.json"]


def test_damaged_copy_is_written_again(spool, tmp_path):
    identity = spool.put(b"one")
    spool.copy_pending(tmp_path)
    (tmp_path / f"{identity}.json").write_bytes(b"")  # the stick was removed too early
    assert spool.copy_pending(tmp_path) == [identity]
    assert (tmp_path / f"{identity}.json").read_bytes() == b"one"


def test_damaged_report_does_not_prevent_copies_of_the_others(spool, tmp_path):
    names = [spool.put(data) for data in (b"one", b"two", b"three")]
    bad = spool.entries()[0]
    bad.path.write_bytes(b"?")
    with pytest.raises(SignatureError, match=rf"{bad.id}\.json: damaged"):
        spool.copy_pending(tmp_path)
    assert {path.stem for path in tmp_path.glob("*.json")} == set(names) - {bad.id}


def test_other_files_are_left_alone(spool):
    spool.put(b"one")
    for name in (".x.tmp", "notes.txt", "A" * 64 + ".json", "0" * 63 + ".json"):
        (spool.folder / "pending" / name).write_bytes(b"?")
    assert len(spool.entries()) == 1
    with pytest.raises(InputError, match="no such report"):
        spool.read("0" * 64)


def test_changed_content_is_detected(spool):
    identity = spool.put(b"one")
    spool.entries()[0].path.write_bytes(b"two")
    with pytest.raises(SignatureError, match="damaged"):
        spool.read(identity)


def test_empty_spool_creates_no_folder(tmp_path):
    assert Spool(tmp_path / "none").entries() == [] and not (tmp_path / "none").exists()


def test_environment_variables_set_the_folder_of_the_spool(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "a"))
    assert Spool().folder == tmp_path / "a"
    monkeypatch.delenv("EDGEPRUNE_SPOOL")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "b"))
    assert Spool().folder == tmp_path / "b" / "edgeprune" / "spool"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert Spool().folder == tmp_path / "c" / ".local" / "state" / "edgeprune" / "spool"


def test_folder_that_cannot_be_created_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="the spool cannot be created"):
        Spool(tmp_path / "file" / "spool").put(b"one")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], stderr=subprocess.DEVNULL)
    if mounted.returncode:
        pytest.skip("needs permission to mount a tmpfs")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_full_disk_leaves_no_partial_file(small_disk):
    spool = Spool(small_disk / "spool")
    identity = spool.put(b"x" * 300_000)
    with pytest.raises(InputError, match="no space left"):
        spool.put(b"y" * 900_000)
    assert [entry.id for entry in spool.entries()] == [identity]
    assert sorted(path.name for path in (spool.folder / "pending").iterdir()) == [f"{identity}.json"]
    spool.put(b"z" * 300_000)


def test_space_is_reserved_for_the_report_of_a_running_measurement(small_disk):
    spool = Spool(small_disk / "spool")
    spool.reserve(500_000)
    other = small_disk / "log"
    with pytest.raises(OSError), open(str(other), "wb") as stream:
        stream.write(b"l" * 2_000_000)
    assert 300_000 < other.stat().st_size < 600_000
    spool.put(b"x" * 400_000)
    with pytest.raises(InputError, match=r"too little free space for this run's report of about 2\.0 MB"):
        spool.reserve(2_000_000)
    assert not [path for path in spool.folder.iterdir() if path.name.startswith(".reserved")]


def killed_writers(folder, kills):
    """Fork a writer, kill it at a random moment and check the spool, `kills` times; return how many were stored."""
    spool, rng, acknowledged, moved = Spool(folder), random.Random(7), set(), 0
    for seed in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            try:
                own = random.Random(seed)
                for i in range(10**6):
                    size = own.choice([10, 5000, 100_000])
                    identity = spool.put(f"{seed} {i} ".encode("ascii") * (size // 8 + 1))
                    os.write(writer, identity.encode("ascii") + b"\n")
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(rng.random() * 0.04)
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        with os.fdopen(reader, "rb") as stream:
            identities = stream.read().decode("ascii").split("\n")
        acknowledged |= {identity for identity in identities if len(identity) == 64}  # the last one may be cut off
        if seed % 10 == 9 or seed == kills - 1:
            entries = spool.entries()
            names = [entry.id for entry in entries]
            assert len(names) == len(set(names)), "doubled"
            assert not acknowledged - set(names), "lost"
            assert all(hashlib.sha256(entry.path.read_bytes()).hexdigest() == entry.id for entry in entries)
            for entry in entries[:3]:  # the collector, at the same time
                if not entry.delivered:
                    entry.path.rename(spool.folder / "delivered" / entry.path.name)
                    moved += 1
    spool.put(b"the next writer tidies up")
    assert moved and not list((spool.folder / "pending").glob("*.tmp*"))
    return len(acknowledged)


def test_killed_writers_lose_and_duplicate_no_report(tmp_path):
    assert killed_writers(tmp_path / "spool", 60) > 5


@pytest.mark.slow
def test_thousand_kills_lose_no_report(tmp_path):
    acknowledged = killed_writers(tmp_path / "spool", 1000)
    print(f"1000 kill -9, {acknowledged} reports stored, 0 lost, 0 duplicated", file=sys.stderr)
    assert acknowledged > 100
