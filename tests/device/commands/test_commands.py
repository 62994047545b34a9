import os

import pytest
from edgeprune_device import cli
from edgeprune_device.commands import find_bundle
from edgeprune_device.errors import InputError

from .calls import edgeprune


@pytest.mark.parametrize("command", ["info", "bench"])
def test_changed_or_untrusted_bundle_exits_with_1(capsys, bundle, home, command):
    data = bundle.path.read_bytes()
    bundle.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, err = edgeprune(capsys, command, str(bundle.path))
    assert code == 1 and out == "" and "evaluation.zip: does not match" in err
    bundle.path.write_bytes(data)
    (home / "keys" / "host.key").unlink()
    code, out, err = edgeprune(capsys, command, str(bundle.path))
    assert code == 1 and "not trusted on this machine" in err and bundle.key_fingerprint in err


def test_find_bundle_takes_the_only_or_newest_bundle(tmp_path):
    with pytest.raises(InputError, match="none found"):
        find_bundle(None, tmp_path)
    for i, name in enumerate(["old", "new"]):
        path = tmp_path / "runs" / name / "a.epb"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(str(path), (i, i))
    assert find_bundle(None, tmp_path) == tmp_path / "runs" / "new" / "a.epb"
    (tmp_path / "b.epb").write_bytes(b"")
    assert find_bundle(None, tmp_path) == tmp_path / "b.epb"
    (tmp_path / "c.epb").write_bytes(b"")
    with pytest.raises(InputError, match="BUNDLE: several in this folder"):
        find_bundle(None, tmp_path)
    assert find_bundle(tmp_path / "given.epb", tmp_path) == tmp_path / "given.epb"


@pytest.mark.parametrize("command", [["info"], ["bench"], ["engine"], ["keys", "trust"], ["keys", "revoke"]])
def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused_at_once(capsys, tmp_path, command):
    os.mkfifo(tmp_path / "pipe.epb")
    for path, kind in ((tmp_path / "pipe.epb", "a pipe"), ("/dev/zero", "a device")):
        assert cli.main([*command, str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and f"{path}: not a regular file (found {kind}" in err
