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


def test_order_of_the_home_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert keys.home() == tmp_path / "a"
    monkeypatch.delenv("EDGEPRUNE_HOME")
    assert keys.home() == tmp_path / "b" / "edgeprune"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert keys.home() == tmp_path / "c" / ".config" / "edgeprune"


def test_key_is_made_once_and_is_private(home):
    key = keys.load_or_create()
    path = home / "keys" / "host.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert bytes(keys.load_or_create()) == bytes(key)
    assert keys.read_public(home / "keys" / "host.pub") == key.verify_key
    assert sorted(p.name for p in path.parent.iterdir()) == ["host.key", "host.pub"]


def test_two_processes_at_once_make_one_key(home):
    code = "from edgeprune_device.trust import keys; print(bytes(keys.load_or_create()).hex())"
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(4)]
    assert len({run.communicate(timeout=60)[0] for run in runs}) == 1
    assert all(run.returncode == 0 for run in runs)


def test_trusted_keys_are_the_own_key_and_those_of_the_folder(home):
    assert keys.trusted() == {}
    own, other = keys.load_or_create().verify_key, SigningKey.generate().verify_key
    (home / "trusted").mkdir()
    (home / "trusted" / "friend.pub").write_text(bytes(other).hex() + "\n")
    assert keys.trusted() == {keys.fingerprint(own): own, keys.fingerprint(other): other}
    assert keys.own() == {keys.fingerprint(own): own}


def test_queries_make_no_key(home):
    keys.trusted()
    assert not home.exists()


def test_fingerprint_is_short_and_derived_from_the_key():
    a, b = SigningKey(b"a" * 32).verify_key, SigningKey(b"b" * 32).verify_key
    assert keys.fingerprint(a).startswith("SHA256:") and len(keys.fingerprint(a)) == 29
    assert keys.fingerprint(a) != keys.fingerprint(b)


@pytest.mark.parametrize("content", [b"", b"xyz", b"00" * 31, b"00" * 33, b"\xff" * 64, "ü".encode()])
@pytest.mark.parametrize("which", ["keys/host.key", "trusted/a.pub"])
def test_damaged_file_is_one_line_with_its_name(home, which, content):
    keys.load_or_create()
    path = home / which
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(InputError, match="64 hexadecimal digits") as caught:
        keys.own()
        keys.trusted_files()
    assert str(path) in str(caught.value)


def test_damaged_file_of_one_key_does_not_block_bundles_of_another(home, bundle):
    put(home / "trusted" / "torn.pub", "")
    assert Bundle.open(bundle.path).trusted and list(keys.trusted()) == [bundle.key_fingerprint]
    (home / "keys" / "host.key").unlink()
    with pytest.raises(InputError, match=r"torn\.pub: not a public key"):  # it may be the key of this bundle
        Bundle.open(bundle.path)


def test_home_that_cannot_be_created_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be created"):
        keys.load_or_create()


def test_report_key_is_separate_and_signs_no_bundles(home):
    host, report = keys.load_or_create(), keys.load_or_create("report")
    assert bytes(host) != bytes(report) and bytes(keys.load_or_create("report")) == bytes(report)
    assert sorted(p.name for p in (home / "keys").iterdir()) == ["host.key", "host.pub", "report.key", "report.pub"]
    assert stat.S_IMODE((home / "keys" / "report.key").stat().st_mode) == 0o600
    assert list(keys.trusted().values()) == [host.verify_key]


def test_enrolled_devices_have_names_and_sign_no_bundles(home):
    key = SigningKey.generate().verify_key
    assert keys.enrolled() == {} and not home.exists()
    assert keys.enrol("drone-7.local", key) is True and keys.enrol("drone-7.local", key) is False
    assert keys.enrolled() == {keys.fingerprint(key): ("drone-7.local", key)}
    assert keys.trusted() == {}


def test_changed_key_of_a_known_device_is_refused_with_both_fingerprints(home):
    old, new = SigningKey.generate().verify_key, SigningKey.generate().verify_key
    keys.enrol("drone", old)
    with pytest.raises(SignatureError, match="--re-enrol") as caught:
        keys.enrol("drone", new)
    assert keys.fingerprint(old) in str(caught.value) and keys.fingerprint(new) in str(caught.value)
    assert keys.read_public(home / "devices" / "drone.pub") == old
    assert keys.enrol("drone", new, replace=True) is True
    assert keys.enrolled() == {keys.fingerprint(new): ("drone", new)}


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "-o", "x" * 101, "ü"])
def test_name_that_would_leave_the_folder_is_refused(home, name):
    with pytest.raises(InputError, match="not a valid device name"):
        keys.enrol(name, SigningKey.generate().verify_key)
    assert not home.exists()


def test_public_key_has_64_digits():
    key = SigningKey.generate().verify_key
    assert keys.public(bytes(key).hex(), "drone") == key
    for text in ("", "0" * 63, "0" * 65, "g" * 64, "A" * 64, " " + "0" * 63):
        with pytest.raises(InputError, match="drone: not a public key"):
            keys.public(text, "drone")


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    """Ignore the keys of the machine that runs these tests."""
    monkeypatch.setattr(releases, "DEFAULT_ROOT", tmp_path / "nothing")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A temporary /etc/edgeprune and a user without EDGEPRUNE_HOME; returns the user's folder."""
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


def test_store_of_the_machine_counts_for_every_user_except_with_edgeprune_home(system, monkeypatch, home):
    (key, text, mark), (_, other_text, other_mark) = a_key(), a_key()
    put(system / "trusted" / "image.pub", text)
    put(keys.home() / "trusted" / "host.pub", other_text)
    assert set(keys.trusted()) == {mark, other_mark} and keys.trusted()[mark] == key
    put(system / "revoked" / "stolen.pub", other_text)
    assert set(keys.trusted()) == {mark} and set(keys.revoked()) == {other_mark}
    monkeypatch.setenv("EDGEPRUNE_HOME", str(home))
    assert keys.trusted() == {} and keys.revoked() == {}


def test_revoked_key_is_never_trusted(system):
    key, text, mark = a_key()
    put(system / "trusted" / "image.pub", text)
    keys.trust("host", SigningKey.generate().verify_key)
    assert mark in keys.trusted() and keys.revoke(mark) is True and keys.revoke(mark) is False
    assert mark not in keys.trusted() and len(keys.trusted()) == 1
    with pytest.raises(SignatureError, match="is revoked here; if that was a mistake, remove "):
        keys.trust("again", key)
    keys.revoked()[mark].unlink()
    assert mark in keys.trusted()


@pytest.mark.parametrize("name", ["stolen", "stolen.pub", "stolen.key", "x.txt"])
def test_file_in_revoked_counts_whatever_its_name(home, name):
    key, text, mark = a_key()
    keys.trust("host", key)
    put(home / "revoked" / name, text)
    assert keys.trusted() == {}
    put(home / "revoked" / name, mark)
    assert keys.trusted() == {}


@pytest.mark.parametrize("content", ["", "SHA256:", "SHA256:" + "A" * 23, "00" * 31, "\x00"])
def test_unreadable_file_in_revoked_blocks_every_bundle(home, content):
    key, _, _ = a_key()
    keys.trust("host", key)
    put(home / "revoked" / "torn", content)
    with pytest.raises(InputError, match="torn: not a public key"):
        keys.trusted()


def test_store_that_is_not_a_folder_blocks_every_bundle(home):
    put(home / "revoked", "")
    with pytest.raises(InputError, match="revoked: cannot be read"):
        keys.trusted()


def test_reports_of_a_revoked_device_are_refused_and_it_cannot_enrol_again(home):
    key, _, mark = a_key()
    keys.enrol("drone", key)
    keys.revoke(mark)
    assert keys.enrolled() == {}
    for replace in (False, True):
        with pytest.raises(SignatureError, match=r"^drone: the report key .* is revoked here"):
            keys.enrol("drone", key, replace=replace)


def test_report_key_is_never_trusted_for_bundles(home):
    key, _, _ = a_key()
    keys.enrol("drone", key)
    with pytest.raises(InputError, match="the report key of drone"):
        keys.trust("host", key)
    with pytest.raises(InputError, match="the report key of this machine"):
        keys.trust("host", keys.load_or_create("report").verify_key)
    assert keys.trusted() == {}


def test_own_key_in_use_cannot_be_revoked(home):
    mark = keys.fingerprint(keys.load_or_create().verify_key)
    with pytest.raises(InputError, match="run edgeprune keys make to create a new key"):
        keys.revoke(mark)
    assert mark in keys.trusted()


def test_former_key_stays_trusted_until_it_is_revoked(home):
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
    """`real`, except that call number `step` (from 1) ends the process."""
    taken = []

    def write(*args, **options):
        taken.append(args)
        if len(taken) == step:
            raise KeyboardInterrupt
        return real(*args, **options)

    return write


def test_kill_between_any_two_writes_leaves_a_complete_key_and_loses_no_used_one(home, monkeypatch):
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
    assert keys.renew()[1] == now  # a fifth write does not exist


def test_counter_grows_whatever_the_clock_shows(home, monkeypatch):
    before = int(time.time())
    first = keys.next_counter()
    assert before <= first <= time.time() and keys.next_counter() > first
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # the clock is set back to 1970
    last = keys.next_counter()
    assert last > first and keys.next_counter() == last + 1
    monkeypatch.setattr(time, "time", lambda: -5.0)
    assert keys.next_counter() == last + 2
    assert stat.S_IMODE((home / "keys" / "host.counter").stat().st_mode) == 0o600


def test_a_new_key_starts_a_new_count_after_a_clock_in_2099(home, monkeypatch):
    keys.load_or_create()
    monkeypatch.setattr(time, "time", lambda: 4.1e9)
    wrong = keys.next_counter()
    monkeypatch.setattr(time, "time", lambda: 1.8e9)
    assert keys.next_counter() == wrong + 1  # the same key never counts downwards
    keys.renew()
    assert keys.next_counter() == 1_800_000_000


@pytest.mark.parametrize("content", [b"", b"x", b"-7", b"1.5", b"9" * 16, b"9" * 400, b"\xff\x00", b"9007199254740991"])
def test_damaged_counter_continues_from_its_time_of_writing(home, monkeypatch, content):
    first = keys.next_counter()
    (home / "keys" / "host.counter").write_bytes(content)
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert first <= keys.next_counter() <= first + 100


def test_simultaneous_builds_have_different_counters(home):
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


def test_list_makes_no_key(capsys, home):
    code, out, _ = edgeprune(capsys)
    assert code == 0 and out.count("none yet") == 2 and not home.exists()
    code, out, _ = edgeprune(capsys, "list", "--json")
    assert code == 0 and not home.exists()
    empty = {"own": None, "report": None, "trusted": [], "revoked": [], "devices": []}
    assert json.loads(out) == {"home": str(home), **empty}


def test_two_machines_trust_and_revoke_each_other(capsys, home, tmp_path, monkeypatch):
    code, out, _ = edgeprune(capsys, "export")
    assert code == 0 and re.fullmatch("[0-9a-f]{64}\n", out)
    public, mark = out.strip(), next(iter(keys.own()))
    code, out, _ = edgeprune(capsys, "export", tmp_path / "laptop.pub")
    assert code == 0 and mark in out and (tmp_path / "laptop.pub").read_text() == public + "\n"
    code, _, err = edgeprune(capsys, "export", tmp_path / "laptop.pub")
    assert code == 2 and "already exists" in err
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
    assert code == 1 and "is revoked here" in err


def test_stolen_host_key_is_replaced_by_make_and_revoke(capsys, home):
    edgeprune(capsys, "make")
    (old,) = keys.own()
    code, out, _ = edgeprune(capsys, "make")
    (new,) = keys.own()
    assert code == 0 and new in out and f"edgeprune keys revoke {old}" in out and old != new
    code, _, err = edgeprune(capsys, "revoke", new)
    assert code == 2 and "keys make" in err
    code, _, _ = edgeprune(capsys, "revoke", old)
    assert code == 0 and list(keys.trusted()) == [new]


def test_revoke_warns_of_releases_that_the_key_signed(capsys, bundle, tmp_path, monkeypatch):
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
    assert f"{there.root}: releases signed by this key will not start again (2, including the one in use)" in err
    code, _, err = edgeprune(capsys, "revoke", "SHA256:" + "A" * 22, warns=True)
    assert code == 0 and "start again (1);" in err and "in use" not in err
    assert edgeprune(capsys, "revoke", "SHA256:" + "B" * 22)[2] == ""


def test_name_belongs_to_one_key(capsys, home):
    (_, one, mark), (_, two, _) = a_key(), a_key()
    assert edgeprune(capsys, "trust", one, "--name", "laptop")[0] == 0
    code, _, err = edgeprune(capsys, "trust", two, "--name", "laptop")
    assert code == 2 and mark in err and "--name" in err
    assert edgeprune(capsys, "trust", two)[0] == 0
    assert sorted(p.name for p in (home / "trusted").iterdir()) == sorted(["laptop.pub", f"{two[:8]}.pub"])


@pytest.mark.parametrize(
    "args, word",
    [
        (["make", "x"], "takes no KEY"),
        (["list", "x"], "takes no KEY"),
        (["trust"], "KEY is missing"),
        (["revoke"], "KEY is missing"),
        (["trust", "SHA256:" + "A" * 22], "a fingerprint, not a key"),
        (["trust", "nowhere.pub"], "cannot be read"),
        (["trust", "0" * 64, "--name", "../x"], "not a valid name"),
        (["trust", "host.key"], "a private key; give the public key, host.pub"),
        (["revoke", "nonsense"], "cannot be read"),
        (["burn"], "invalid choice"),
        (["list", "--report"], "--report: applies only to keys export"),
        (["export", "--name", "x"], "--name: applies only to keys trust"),
        (["make", "--json"], "--json: applies only to keys list"),
    ],
)
def test_misuse_is_one_line_and_changes_nothing(capsys, home, args, word):
    code, out, err = edgeprune(capsys, *args)
    assert code == 2 and out == "" and word in err and not home.exists()


@pytest.mark.parametrize("args", [["trust", "0" * 64], ["revoke", "0" * 64], ["make"], ["export"]])
def test_home_that_is_not_a_folder_is_one_line(capsys, home, args):
    home.write_text("a file")
    code, out, err = edgeprune(capsys, *args)
    assert code == 2 and out == "" and str(home) in err
