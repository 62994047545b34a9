import os

import pytest
from edgeprune_device.commands import find_bundle
from edgeprune_device.errors import InputError

from .calls import edgeprune


@pytest.mark.parametrize("command", ["info", "bench"])
def test_a_changed_or_foreign_bundle_is_exit_1(capsys, bundle, home, command):
    data = bundle.path.read_bytes()
    bundle.path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, out, err = edgeprune(capsys, command, str(bundle.path))
    assert code == 1 and out == "" and "evaluation.zip does not match" in err
    bundle.path.write_bytes(data)
    (home / "keys" / "host.key").unlink()
    code, out, err = edgeprune(capsys, command, str(bundle.path))
    assert code == 1 and "not trusted here" in err and bundle.key_fingerprint in err


def test_find_bundle(tmp_path):
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
    with pytest.raises(InputError, match="several bundles here"):
        find_bundle(None, tmp_path)
    assert find_bundle(tmp_path / "given.epb", tmp_path) == tmp_path / "given.epb"
