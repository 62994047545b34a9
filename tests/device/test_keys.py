import stat
import subprocess
import sys

import pytest
from edgeprune_device import keys
from edgeprune_device.errors import InputError, SignatureError
from nacl.signing import SigningKey


def test_home_order(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert keys.home() == tmp_path / "a"
    monkeypatch.delenv("EDGEPRUNE_HOME")
    assert keys.home() == tmp_path / "b" / "edgeprune"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert keys.home() == tmp_path / "c" / ".config" / "edgeprune"


def test_made_once_and_private(home):
    key = keys.load_or_create()
    path = home / "keys" / "host.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert bytes(keys.load_or_create()) == bytes(key)
    assert keys.read_public(home / "keys" / "host.pub") == key.verify_key
    assert sorted(p.name for p in path.parent.iterdir()) == ["host.key", "host.pub"]


def test_two_processes_at_once_end_with_one_key(home):
    code = "from edgeprune_device import keys; print(bytes(keys.load_or_create()).hex())"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({run.communicate(timeout=60)[0] for run in runs}) == 1
    assert all(run.returncode == 0 for run in runs)


def test_trusted_is_own_and_the_folder(home):
    assert keys.trusted() == {}
    own, other = keys.load_or_create().verify_key, SigningKey.generate().verify_key
    (home / "trusted").mkdir()
    (home / "trusted" / "friend.pub").write_text(bytes(other).hex() + "\n")
    assert keys.trusted() == {keys.fingerprint(own): own, keys.fingerprint(other): other}
    assert keys.own() == {keys.fingerprint(own): own}


def test_nothing_is_made_by_asking(home):
    keys.trusted()
    assert not home.exists()


def test_fingerprint_is_short_and_of_the_key():
    a, b = SigningKey(b"a" * 32).verify_key, SigningKey(b"b" * 32).verify_key
    assert keys.fingerprint(a).startswith("SHA256:") and len(keys.fingerprint(a)) == 29
    assert keys.fingerprint(a) != keys.fingerprint(b)


@pytest.mark.parametrize("content", [b"", b"xyz", b"00" * 31, b"00" * 33, b"\xff" * 64, "ü".encode()])
@pytest.mark.parametrize("which", ["keys/host.key", "trusted/a.pub"])
def test_a_damaged_file_is_one_line_that_names_it(home, which, content):
    keys.load_or_create()
    path = home / which
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match="64 hexadecimal digits") as caught:
        keys.trusted()
    assert str(path) in str(caught.value)


def test_a_home_that_cannot_be_made(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be made"):
        keys.load_or_create()


def test_the_report_key_is_another_and_signs_no_bundles(home):
    host, report = keys.load_or_create(), keys.load_or_create("report")
    assert bytes(host) != bytes(report) and bytes(keys.load_or_create("report")) == bytes(report)
    assert sorted(p.name for p in (home / "keys").iterdir()) == ["host.key", "host.pub", "report.key", "report.pub"]
    assert stat.S_IMODE((home / "keys" / "report.key").stat().st_mode) == 0o600
    assert list(keys.trusted().values()) == [host.verify_key]


def test_enrolled_devices_are_known_by_name_and_sign_no_bundles(home):
    key = SigningKey.generate().verify_key
    assert keys.enrolled() == {} and not home.exists()
    assert keys.enrol("drone-7.local", key) is True and keys.enrol("drone-7.local", key) is False
    assert keys.enrolled() == {keys.fingerprint(key): ("drone-7.local", key)}
    assert keys.trusted() == {}


def test_a_changed_key_of_a_known_device_is_refused_with_both_fingerprints(home):
    old, new = SigningKey.generate().verify_key, SigningKey.generate().verify_key
    keys.enrol("drone", old)
    with pytest.raises(SignatureError, match="--re-enrol") as caught:
        keys.enrol("drone", new)
    assert keys.fingerprint(old) in str(caught.value) and keys.fingerprint(new) in str(caught.value)
    assert keys.read_public(home / "devices" / "drone.pub") == old
    assert keys.enrol("drone", new, replace=True) is True
    assert keys.enrolled() == {keys.fingerprint(new): ("drone", new)}


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "-o", "x" * 101, "ü"])
def test_a_name_that_would_leave_the_folder_is_refused(home, name):
    with pytest.raises(InputError, match="not a device's name"):
        keys.enrol(name, SigningKey.generate().verify_key)
    assert not home.exists()


def test_a_public_key_from_a_stranger_is_64_digits():
    key = SigningKey.generate().verify_key
    assert keys.public(bytes(key).hex(), "drone") == key
    for text in ("", "0" * 63, "0" * 65, "g" * 64, "A" * 64, " " + "0" * 63):
        with pytest.raises(InputError, match="drone: not a public key"):
            keys.public(text, "drone")
