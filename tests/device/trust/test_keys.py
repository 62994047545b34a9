import json
import re
import stat
import subprocess
import sys
import time

import pytest
from edgeprune_device import cli, releases
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
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
    code = "from edgeprune_device.trust import keys; print(bytes(keys.load_or_create()).hex())"
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
        keys.own()
        keys.trusted_files()
    assert str(path) in str(caught.value)


def test_a_damaged_file_of_one_key_keeps_nobody_from_running_what_another_signed(home, bundle):
    put(home / "trusted" / "torn.pub", "")
    assert Bundle.open(bundle.path).trusted and list(keys.trusted()) == [bundle.key_fingerprint]
    (home / "keys" / "host.key").unlink()
    with pytest.raises(InputError, match=r"torn\.pub: not a public key"):  # it may have been the one
        Bundle.open(bundle.path)


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


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    """Whatever is installed on the machine that runs these tests."""
    monkeypatch.setattr(releases, "DEFAULT_ROOT", tmp_path / "nothing")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A /etc/edgeprune of this test's own, and a user without EDGEPRUNE_HOME; the user's folder."""
    monkeypatch.delenv("EDGEPRUNE_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(keys, "SYSTEM", tmp_path / "etc")
    return tmp_path / "etc"


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def a_key():
    key = SigningKey.generate().verify_key
    return key, bytes(key).hex(), keys.fingerprint(key)


def test_the_machines_own_store_counts_for_every_user_but_not_with_a_home_of_ones_own(system, monkeypatch, home):
    (key, text, mark), (_, other_text, other_mark) = a_key(), a_key()
    put(system / "trusted" / "image.pub", text)
    put(keys.home() / "trusted" / "host.pub", other_text)
    assert set(keys.trusted()) == {mark, other_mark} and keys.trusted()[mark] == key
    put(system / "revoked" / "stolen.pub", other_text)
    assert set(keys.trusted()) == {mark} and set(keys.revoked()) == {other_mark}
    monkeypatch.setenv("EDGEPRUNE_HOME", str(home))
    assert keys.trusted() == {} and keys.revoked() == {}


def test_a_revoked_key_is_trusted_nowhere_whoever_trusts_it(system):
    key, text, mark = a_key()
    put(system / "trusted" / "image.pub", text)
    keys.trust("host", SigningKey.generate().verify_key)
    assert mark in keys.trusted() and keys.revoke(mark) is True and keys.revoke(mark) is False
    assert mark not in keys.trusted() and len(keys.trusted()) == 1
    with pytest.raises(SignatureError, match="was revoked here; if that was a mistake, remove "):
        keys.trust("again", key)
    keys.revoked()[mark].unlink()
    assert mark in keys.trusted()


@pytest.mark.parametrize("name", ["stolen", "stolen.pub", "stolen.key", "x.txt"])
def test_whatever_a_file_among_the_revoked_is_called_it_counts(home, name):
    key, text, mark = a_key()
    keys.trust("host", key)
    put(home / "revoked" / name, text)
    assert keys.trusted() == {}
    put(home / "revoked" / name, mark)
    assert keys.trusted() == {}


@pytest.mark.parametrize("content", ["", "SHA256:", "SHA256:" + "A" * 23, "00" * 31, "\x00"])
def test_what_cannot_be_read_among_the_revoked_passes_nothing(home, content):
    key, _, _ = a_key()
    keys.trust("host", key)
    put(home / "revoked" / "torn", content)
    with pytest.raises(InputError, match="torn: not a public key"):
        keys.trusted()


def test_a_store_that_is_no_folder_passes_nothing(home):
    put(home / "revoked", "")
    with pytest.raises(InputError, match="revoked: cannot be read"):
        keys.trusted()


def test_a_revoked_device_signs_no_reports_and_does_not_come_back(home):
    key, _, mark = a_key()
    keys.enrol("drone", key)
    keys.revoke(mark)
    assert keys.enrolled() == {}
    for replace in (False, True):
        with pytest.raises(SignatureError, match=r"^drone: its report key .* was revoked here"):
            keys.enrol("drone", key, replace=replace)


def test_a_key_that_signs_reports_is_never_trusted_for_bundles(home):
    key, _, _ = a_key()
    keys.enrol("drone", key)
    with pytest.raises(InputError, match="the key by which drone signs its reports"):
        keys.trust("host", key)
    with pytest.raises(InputError, match="the key by which this machine signs its reports"):
        keys.trust("host", keys.load_or_create("report").verify_key)
    assert keys.trusted() == {}


def test_the_own_key_in_use_is_not_revoked_by_mistake(home):
    mark = keys.fingerprint(keys.load_or_create().verify_key)
    with pytest.raises(InputError, match="make another one first: edgeprune keys make"):
        keys.revoke(mark)
    assert mark in keys.trusted()


def test_a_new_key_leaves_the_former_one_trusted_until_it_is_revoked(home):
    first, former = keys.renew()
    assert former is None and bytes(keys.load_or_create()) == bytes(first)
    second, former = keys.renew()
    assert bytes(second) != bytes(first) and former == first.verify_key
    assert bytes(keys.load_or_create()) == bytes(second)
    assert keys.read_public(home / "keys" / "host.pub") == second.verify_key
    mark = keys.fingerprint(first.verify_key)
    assert set(keys.trusted()) == {mark, keys.fingerprint(second.verify_key)}
    (kept,) = (home / "keys").glob("former-*.key")
    assert kept.read_text().strip() == bytes(first).hex() and stat.S_IMODE(kept.stat().st_mode) == 0o600
    keys.revoke(mark)
    assert list(keys.trusted()) == [keys.fingerprint(second.verify_key)]


def killed_at(step, real):
    """`real`, but its call number `step` (from 1) is where the process ends."""
    taken = []

    def write(*args, **options):
        taken.append(args)
        if len(taken) == step:
            raise KeyboardInterrupt
        return real(*args, **options)

    return write


def test_killed_between_any_two_writes_there_is_one_whole_key_and_none_that_was_in_use_is_lost(home, monkeypatch):
    first, real = keys.load_or_create(), keys.write_atomic
    for step in (1, 2, 3, 4):  # trusted/former-….pub, former-….key, host.key, host.pub
        monkeypatch.setattr(keys, "write_atomic", killed_at(step, real))
        with pytest.raises(KeyboardInterrupt):
            keys.renew()
        monkeypatch.setattr(keys, "write_atomic", real)
        now = keys.load_or_create().verify_key
        assert {keys.fingerprint(now), keys.fingerprint(first.verify_key)} <= set(keys.trusted())
        assert keys.read_public(home / "keys" / "host.pub") == now
    monkeypatch.setattr(keys, "write_atomic", killed_at(5, real))
    assert keys.renew()[1] == now  # there is no fifth


def test_the_counter_grows_whatever_the_clock_says(home, monkeypatch):
    before = int(time.time())
    first = keys.next_counter()
    assert before <= first <= time.time() and keys.next_counter() > first
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # back to the seventies
    last = keys.next_counter()
    assert last > first and keys.next_counter() == last + 1
    monkeypatch.setattr(time, "time", lambda: -5.0)
    assert keys.next_counter() == last + 2
    assert stat.S_IMODE((home / "keys" / "host.counter").stat().st_mode) == 0o600


def test_a_new_key_goes_on_counting(home, monkeypatch):
    first = keys.next_counter()
    keys.renew()
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert keys.next_counter() > first


@pytest.mark.parametrize("content", [b"", b"x", b"-7", b"1.5", b"9" * 16, b"9" * 400, b"\xff\x00", b"9007199254740991"])
def test_a_damaged_counter_goes_on_from_when_it_was_written(home, monkeypatch, content):
    first = keys.next_counter()
    (home / "keys" / "host.counter").write_bytes(content)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert first <= keys.next_counter() <= first + 100


def test_many_builds_at_once_each_have_a_counter_of_their_own(home):
    code = "from edgeprune_device.trust import keys\nfor _ in range(25): print(keys.next_counter())"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    seen = [int(line) for run in runs for line in run.communicate(timeout=120)[0].split()]
    assert len(seen) == len(set(seen)) == 100 and all(run.returncode == 0 for run in runs)
    assert keys.next_counter() > max(seen)


def edgeprune(capsys, *args, warns=False):
    code = cli.main(["keys", *map(str, args)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("\n") == (code != 0 or warns)
    return code, out, err


def test_the_command_lists_and_makes_nothing(capsys, home):
    code, out, _ = edgeprune(capsys)
    assert code == 0 and out.count("none yet") == 2 and not home.exists()
    code, out, _ = edgeprune(capsys, "list", "--json")
    assert code == 0 and not home.exists()
    empty = {"own": None, "report": None, "trusted": [], "revoked": [], "devices": []}
    assert json.loads(out) == {"home": str(home), **empty}


def test_two_machines_that_come_to_trust_each_other(capsys, home, tmp_path, monkeypatch):
    code, out, _ = edgeprune(capsys, "export")
    assert code == 0 and re.fullmatch("[0-9a-f]{64}\n", out)
    public, mark = out.strip(), next(iter(keys.own()))
    code, out, _ = edgeprune(capsys, "export", tmp_path / "laptop.pub")
    assert code == 0 and mark in out and (tmp_path / "laptop.pub").read_text() == public + "\n"
    code, _, err = edgeprune(capsys, "export", tmp_path / "laptop.pub")
    assert code == 2 and "exists already" in err
    code, out, _ = edgeprune(capsys, "export", "--report")
    assert code == 0 and out.strip() == bytes(keys.load_or_create("report").verify_key).hex() != public

    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "drone"))
    code, out, _ = edgeprune(capsys, "trust", tmp_path / "laptop.pub")
    assert code == 0 and out == f"trusted  {mark}\n" and list(keys.trusted()) == [mark]
    code, out, _ = edgeprune(capsys, "trust", public.upper(), "--name", "other")
    assert code == 0 and "as before" in out
    code, out, _ = edgeprune(capsys)
    assert code == 0 and f"trusted  {mark}  laptop\n" in out
    code, out, _ = edgeprune(capsys, "list", "--json")
    (entry,) = json.loads(out)["trusted"]
    path = str(tmp_path / "drone" / "trusted" / "laptop.pub")
    assert entry == {"fingerprint": mark, "name": "laptop", "public": public, "path": path}
    for what in (mark, public, path):
        code, out, _ = edgeprune(capsys, "revoke", what)
        assert code == 0 and out.startswith(f"revoked  {mark}")
    assert keys.trusted() == {}
    code, out, _ = edgeprune(capsys)
    assert f"revoked  {mark}  laptop\n" in out and "trusted" not in out
    code, _, err = edgeprune(capsys, "trust", public)
    assert code == 1 and "was revoked here" in err


def test_a_stolen_host_key_is_replaced_by_make_and_revoke(capsys, home):
    edgeprune(capsys, "make")
    (old,) = keys.own()
    code, out, _ = edgeprune(capsys, "make")
    (new,) = keys.own()
    assert code == 0 and new in out and f"edgeprune keys revoke {old}" in out and old != new
    code, _, err = edgeprune(capsys, "revoke", new)
    assert code == 2 and "keys make" in err
    code, _, _ = edgeprune(capsys, "revoke", old)
    assert code == 0 and list(keys.trusted()) == [new]


def test_a_drone_says_that_what_it_runs_was_signed_by_the_key_that_is_revoked(capsys, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "DEFAULT_ROOT", tmp_path / "opt")
    there = releases.Releases(tmp_path / "opt")
    for sequence, mark in ((1, "SHA256:" + "A" * 22), (2, bundle.key_fingerprint), (3, bundle.key_fingerprint)):
        release = releases.Release(f"{sequence:064x}"[::-1], "tiny", 0, mark, True, "2026-11-24T12:00:00Z", sequence)
        there.folder(release).mkdir(parents=True)
        there.write(release)
        there.switch(release)
    edgeprune(capsys, "make")
    code, out, err = edgeprune(capsys, "revoke", bundle.key_fingerprint, warns=True)
    assert code == 0 and out == f"revoked  {bundle.key_fingerprint}\n"
    assert f"2 of the releases in {there.root} do not start again, the one in use too: deploy one" in err
    code, _, err = edgeprune(capsys, "revoke", "SHA256:" + "A" * 22, warns=True)
    assert code == 0 and "1 of the releases" in err and "in use" not in err
    assert edgeprune(capsys, "revoke", "SHA256:" + "B" * 22)[2] == ""


def test_a_name_belongs_to_one_key(capsys, home):
    (_, one, mark), (_, two, _) = a_key(), a_key()
    assert edgeprune(capsys, "trust", one, "--name", "laptop")[0] == 0
    code, _, err = edgeprune(capsys, "trust", two, "--name", "laptop")
    assert code == 2 and mark in err and "--name" in err
    assert edgeprune(capsys, "trust", two)[0] == 0
    assert sorted(p.name for p in (home / "trusted").iterdir()) == sorted(["laptop.pub", f"{two[:8]}.pub"])


@pytest.mark.parametrize(
    "args, word",
    [
        (["make", "x"], "takes no key"),
        (["list", "x"], "takes no key"),
        (["trust"], "which one"),
        (["revoke"], "which one"),
        (["trust", "SHA256:" + "A" * 22], "a fingerprint is not a key"),
        (["trust", "nowhere.pub"], "cannot be read"),
        (["trust", "0" * 64, "--name", "../x"], "not a name"),
        (["trust", "host.key"], "a private key; give its public half, host.pub"),
        (["revoke", "nonsense"], "cannot be read"),
        (["burn"], "invalid choice"),
        (["list", "--report"], "--report belongs to keys export"),
        (["export", "--name", "x"], "--name belongs to keys trust"),
        (["make", "--json"], "--json belongs to keys list"),
    ],
)
def test_misuse_is_one_line_and_changes_nothing(capsys, home, args, word):
    code, out, err = edgeprune(capsys, *args)
    assert code == 2 and out == "" and word in err and not home.exists()


@pytest.mark.parametrize("args", [["trust", "0" * 64], ["revoke", "0" * 64], ["make"], ["export"]])
def test_a_home_that_is_none_is_one_line(capsys, home, args):
    home.write_text("a file")
    code, out, err = edgeprune(capsys, *args)
    assert code == 2 and out == "" and str(home) in err
