"""Key files that another user could have written or could change are refused."""

import os
import stat

import pytest
from edgeprune_device import cli, doctor
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.trust import keys, permissions
from edgeprune_device.trust.bundle import Bundle
from nacl.signing import SigningKey

OTHER = 54321
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of another user")


@pytest.fixture
def store(home):
    """A home with a key of each kind."""
    keys.load_or_create()
    keys.load_or_create("report")
    keys.trust("friend", SigningKey.generate().verify_key)
    keys.enrol("drone", SigningKey.generate().verify_key)
    keys.revoke(keys.fingerprint(SigningKey.generate().verify_key))
    return home


def readers():
    return {"trusted": keys.trusted_files, "revoked": keys.revoked, "devices": keys.enrolled, "keys": keys.own}


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_no_other_user_may_write_to_a_folder_with_any_umask(tmp_path, monkeypatch, umask):
    monkeypatch.delenv("EDGEPRUNE_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "a" / "b"))
    monkeypatch.setattr(keys, "SYSTEM", tmp_path / "etc")
    before = os.umask(umask)
    try:
        keys.trust("friend", SigningKey.generate().verify_key)
        keys.revoke(keys.fingerprint(SigningKey.generate().verify_key))
        keys.enrol("drone", SigningKey.generate().verify_key)
        keys.renew()
        keys.renew()
        keys.next_counter()
    finally:
        os.umask(before)
    made = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    assert len(made) > 12
    for path in made:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path
    for path in (keys.home() / "keys").glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(keys.trusted()) == 3 and keys.problems() == []


@pytest.mark.parametrize("kind", ["trusted", "revoked", "devices", "keys"])
@pytest.mark.parametrize("which", ["file", "folder", "home", "above"])
def test_keys_in_a_place_writable_by_others_are_refused(store, kind, which):
    folder = store / kind
    file = folder / "report.key" if kind == "keys" else next(folder.iterdir())
    place = {"file": file, "folder": folder, "home": store, "above": store.parent}[which]
    read = (lambda: keys.own("report")) if kind == "keys" else readers()[kind]
    read()
    before = stat.S_IMODE(place.stat().st_mode)
    place.chmod(before | 0o002)
    with pytest.raises(InputError, match=rf"^{place}: other users may write to this path.*; run chmod go-w {place}$"):
        read()
    assert any(line.startswith(f"{place}: ") for line in keys.problems())
    place.chmod(before)
    read()


@root_only
@pytest.mark.parametrize("kind", ["trusted", "revoked", "devices", "keys"])
@pytest.mark.parametrize("which", ["file", "folder"])
def test_keys_in_a_place_of_another_user_are_refused(store, kind, which):
    folder = store / kind
    place = (folder / "host.key" if kind == "keys" else next(folder.iterdir())) if which == "file" else folder
    os.chown(place, OTHER, OTHER)
    with pytest.raises(InputError, match=rf"^{place}: belongs to another user.*found user {OTHER}, expected root"):
        readers()[kind]()
    assert any(line.startswith(f"{place}: ") for line in keys.problems())


@root_only
def test_file_of_another_user_is_not_trusted_and_blocks_no_other_key(store, bundle):
    assert len(keys.trusted()) == 2
    os.chown(store / "trusted" / "friend.pub", OTHER, OTHER)
    assert list(keys.trusted()) == [bundle.key_fingerprint] and Bundle.open(bundle.path).trusted


@pytest.mark.parametrize("mode", [0o666, 0o644, 0o640, 0o604])
def test_private_key_readable_by_others_signs_nothing(store, mode):
    (store / "keys" / "host.key").chmod(mode)
    for use in (keys.load_or_create, keys.own, keys.renew, keys.trusted):
        with pytest.raises(InputError, match=r"host\.key: other users may (read this private key|write to this path)"):
            use()
    (store / "keys" / "host.key").chmod(0o400)
    assert keys.own()


def test_link_is_checked_at_its_target(store, tmp_path):
    elsewhere = tmp_path / "open" / "a.pub"
    elsewhere.parent.mkdir()
    elsewhere.write_text(bytes(SigningKey.generate().verify_key).hex())
    (store / "trusted" / "a.pub").symlink_to(elsewhere)
    assert len(keys.trusted_files()) == 2
    elsewhere.parent.chmod(0o777)
    with pytest.raises(InputError, match=f"^{elsewhere.parent}: other users"):
        keys.trusted_files()
    assert len(keys.trusted()) == 2  # the own one and friend


def test_store_without_revoked_keys_in_an_unsafe_folder_is_refused(store):
    (store / "revoked").rename(store / "away")
    assert keys.revoked() == {}
    store.chmod(0o777)
    with pytest.raises(InputError, match=f"^{store}: other users may write to this path"):
        keys.revoked()


def test_nothing_is_written_in_a_folder_writable_by_others(home):
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    for write in (
        keys.load_or_create,
        lambda: keys.trust("a", SigningKey.generate().verify_key),
        lambda: keys.enrol("a", SigningKey.generate().verify_key),
    ):
        with pytest.raises(InputError, match=f"chmod go-w {home}$"):
            write()
    assert list(home.iterdir()) == []


def test_sticky_folder_such_as_tmp_is_accepted(store):
    store.parent.chmod(0o1777)
    assert keys.trusted()
    assert keys.problems() == []


def test_group_with_one_member_is_accepted(store, monkeypatch):
    """FAKE accounts: the owner's own group, without and with another member."""
    import grp
    import pwd

    members = []
    group = grp.struct_group(("pilot", "x", os.getgid(), members))
    me = pwd.struct_passwd(("pilot", "x", os.getuid(), os.getgid(), "", "/", "/bin/sh"))
    monkeypatch.setattr(grp, "getgrgid", lambda number: group)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: me)
    (store / "trusted").chmod(0o775)
    assert keys.trusted()
    members.append("other")
    with pytest.raises(InputError, match="other users may write to this path"):
        keys.trusted()
    members.clear()
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}["no such user"])
    with pytest.raises(InputError, match="other users may write to this path"):
        keys.trusted()


@root_only
def test_root_accepts_the_keys_of_the_user_for_whom_it_runs(store):
    for path in (store, *store.rglob("*")):
        os.chown(path, OTHER, OTHER)
    assert len(keys.trusted()) == 2 and keys.problems() == []
    os.chown(store / "trusted" / "friend.pub", OTHER + 1, OTHER)
    with pytest.raises(InputError, match=f"expected root or user {OTHER}"):
        keys.trusted_files()


def test_check_ends_at_the_home_folder_as_with_ssh(tmp_path, monkeypatch):
    mine = tmp_path / "me" / ".config" / "edgeprune"
    mine.mkdir(parents=True)
    tmp_path.chmod(0o777)
    with pytest.raises(InputError, match=f"^{tmp_path}: other users"):
        permissions.check(mine, mine)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    permissions.check(mine, mine)


def test_command_and_doctor_name_the_place_and_the_remedy(store, bundle, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", [doctor.trust])
    monkeypatch.setattr(doctor, "_from_host", lambda: [])
    assert doctor.trust().state == "ok"
    (store / "trusted").chmod(0o777)
    check = doctor.trust()
    assert check.state == "missing" and f"chmod go-w {store / 'trusted'}" in check.detail
    assert cli.main(["doctor"]) == 1
    capsys.readouterr()
    for command in (["info", str(bundle.path)], ["keys"]):
        assert cli.main(command) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and f"chmod go-w {store / 'trusted'}" in err


def test_key_file_named_by_the_user_may_be_anywhere(home, tmp_path, capsys):
    shared = tmp_path / "stick"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "laptop.pub").write_text(bytes(SigningKey.generate().verify_key).hex())
    (shared / "laptop.pub").chmod(0o666)
    assert cli.main(["keys", "trust", str(shared / "laptop.pub")]) == 0
    assert len(keys.trusted()) == 1


def test_bundle_of_an_unsafe_key_is_refused_with_the_reason(home, bundle, monkeypatch):
    path = home / "trusted" / "friend.pub"
    key = keys.load_or_create().verify_key
    (home / "keys" / "host.key").unlink()
    keys.trust("friend", key)
    assert Bundle.open(bundle.path).trusted
    path.chmod(0o666)
    with pytest.raises((InputError, SignatureError), match=r"friend\.pub: other users may write to this path"):
        Bundle.open(bundle.path)
