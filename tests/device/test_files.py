import errno
import hashlib
import os
import stat
import threading
import time

import pytest
from edgeprune_device import files
from edgeprune_device.errors import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_write_atomic_writes_bytes_and_text_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    files.write_atomic(path, "grün")
    assert path.read_bytes() == "grün".encode()
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_mode_is_subject_to_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        files.write_atomic(tmp_path / "open", b"")
        files.write_atomic(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("code, word", [(errno.ENOSPC, "no space"), (errno.EROFS, "read-only")])
def test_failing_disk_leaves_the_old_file_and_no_temporary_one(tmp_path, monkeypatch, function, code, word):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, function, fail)
    with pytest.raises(InputError, match=rf"a\.bin.*{word}"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_missing_folder_and_folder_in_place_of_a_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        files.write_atomic(tmp_path / "nowhere" / "a", b"")
    with pytest.raises(InputError, match="is a folder"):
        files.write_atomic(tmp_path, b"")


def test_replacing_keeps_the_suffix_and_the_old_file_on_an_error(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as temporary:
        assert temporary.suffix == ".onnx" and temporary.parent == tmp_path
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["model.onnx"]


def test_replacing_with_a_file_that_was_never_written_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"model\.onnx"), files.replacing(tmp_path / "model.onnx"):
        pass
    assert names(tmp_path) == []


def test_two_simultaneous_writers_leave_one_complete_file(tmp_path):
    path, contents = tmp_path / "a", [bytes([65 + i]) * 200_000 for i in range(4)]
    threads = [threading.Thread(target=files.write_atomic, args=(path, data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and names(tmp_path) == ["a"]


def test_check_writable_refuses_early_and_leaves_no_file(tmp_path):
    files.check_writable(tmp_path / "r.json")
    with pytest.raises(InputError, match="does not exist"):
        files.check_writable(tmp_path / "x" / "r.json")
    assert names(tmp_path) == []


def test_sha256(tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(InputError, match="no such file"):
        files.sha256(tmp_path / "b")


def test_check_room_refuses_too_little_space(tmp_path):
    files.check_room(tmp_path, 1)
    with pytest.raises(InputError, match=r"MB, expected 1000000000000\.0 MB\); free some"):
        files.check_room(tmp_path, 10**18)
    with pytest.raises(InputError, match="cannot be written"):
        files.check_room(tmp_path / "none", 1)


def test_lock_waits_at_most_as_long_as_requested(tmp_path):
    with open(tmp_path / "lock", "wb") as one, open(tmp_path / "lock", "wb") as other:
        assert files.lock(one.fileno()) and files.lock(one.fileno(), 0.0)
        begin = time.monotonic()
        assert not files.lock(other.fileno(), 0.0) and not files.lock(other.fileno(), 0.1)
        assert time.monotonic() - begin >= 0.1
        freed = threading.Timer(0.2, one.close)
        freed.start()
        assert files.lock(other.fileno(), 20.0)
        freed.join()
