"""tree: the planned files, their owners, and the refusals before anything is written."""

import os
import stat
from dataclasses import replace

import pytest
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from nacl.signing import SigningKey

from edgeprune.drones.deploy import DeploySettings

from ... import drone_root
from .roots import BARE, ROOT, deploy, snapshot


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


def test_a_bad_release_is_on_trial_again_after_a_new_deployment(root, tmp_path):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root)
    releases = Releases(root / "opt/edgeprune")
    releases.mark(releases.current(), "bad", "it crashed")
    deploy(bundle, root)
    assert (releases.current().state, releases.current().reason, releases.current().sequence) == ("trial", None, 2)


def test_links_are_followed_inside_the_image_only(root, tmp_path):
    (root / "opt").symlink_to("/data/../data/opt")
    (root / "data/opt").mkdir(parents=True)
    (root / "data/opt/edgeprune").mkdir()
    (root / "data/opt/edgeprune/releases").symlink_to("../../../../../../../../../srv/releases")
    (root / "etc/edgeprune").symlink_to(tmp_path / "outside")  # an absolute path of this machine
    (tmp_path / "outside").mkdir()
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root)
    assert (root / f"srv/releases/{bundle.sha256[:16]}/bundle.epb").read_bytes() == bundle.path.read_bytes()
    assert os.readlink(root / "data/opt/edgeprune/current") == f"releases/{bundle.sha256[:16]}"
    inside = root / str(tmp_path / "outside").lstrip("/") / "trusted"
    assert list((tmp_path / "outside").iterdir()) == [] and len(list(inside.glob("*.pub"))) == 1


@pytest.mark.parametrize("name", ["opt", "opt/edgeprune", "opt/edgeprune/releases", "etc/edgeprune/trusted"])
def test_an_entry_of_the_wrong_type_is_named_and_nothing_is_written(root, tmp_path, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("in the way")
    before = snapshot(root)
    with pytest.raises(InputError, match=f"{name}.* (not a folder|wrong type)"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
    assert snapshot(root) == before


def test_links_in_a_circle_are_refused(root, tmp_path):
    (root / "opt").symlink_to("/opt2")
    (root / "opt2").symlink_to("opt")
    with pytest.raises(InputError, match="form a loop"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)


def test_former_releases_are_removed_except_the_newest_good_one(root, tmp_path):
    releases = Releases(root / "opt/edgeprune")
    bundles = [drone_root.bundle(tmp_path / f"b{n}.epb", counter=n) for n in range(5)]
    for number, bundle in enumerate(bundles):
        deploy(bundle, root, replace(BARE, keep=10))
        releases.mark(releases.current(), "good" if number == 1 else "bad")
    output = deploy(drone_root.bundle(tmp_path / "new.epb", counter=9), root, replace(BARE, keep=1))
    left = {release.name: release.state for release in releases.all()}
    assert left == {"new": "trial", "b1": "good"} and releases.fallback().name == "b1"
    folders = sorted(path.name for path in (releases.root / "releases").iterdir())
    assert folders == sorted(release.identity for release in releases.all())
    assert "former releases to remove" in output


def test_an_older_bundle_is_refused_unless_allowed(root, tmp_path):
    releases = Releases(root / "opt/edgeprune")
    deploy(drone_root.bundle(tmp_path / "new.epb", counter=7), root)
    releases.confirm(releases.current())
    old = drone_root.bundle(tmp_path / "old.epb", counter=6)
    before = snapshot(root)
    with pytest.raises(GateError, match=r"found counter 6, expected at least 7\); .*allow_older.*keys make"):
        deploy(old, root)
    assert snapshot(root) == before
    deploy(old, root, replace(BARE, allow_older=True))
    assert releases.current().older and list(releases.counters.values()) == [7]
    (releases.root / "state.json").write_text("{}")
    with pytest.raises(InputError, match="holds no counters"):
        deploy(old, root)


@pytest.mark.parametrize("place", ["etc/edgeprune/revoked/x", "home/pilot/.config/edgeprune/revoked/x"])
@pytest.mark.parametrize("written", ["fingerprint", "digits"])
def test_a_key_that_the_image_revoked_is_refused(root, tmp_path, place, written):
    key = keys.load_or_create().verify_key
    (root / place).parent.mkdir(parents=True)
    (root / place).write_text(keys.fingerprint(key) if written == "fingerprint" else bytes(key).hex())
    with pytest.raises(SignatureError, match="a key that is revoked there"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
    assert not (root / "opt").exists()


def test_the_image_trusts_another_hosts_key_but_no_untrusted_key(root, tmp_path):
    other = SigningKey.generate()
    drone_root.bundle(tmp_path / "tiny.epb", key=other)
    bundle = Bundle.open(tmp_path / "tiny.epb", allow_untrusted=True)
    deploy(bundle, root)
    releases = Releases(root / "opt/edgeprune")
    assert not releases.current().trusted and not (root / "etc/edgeprune").exists()
    bundle = Bundle.open(drone_root.bundle(tmp_path / "second.epb", key=other).path, allow_untrusted=True)
    (tmp_path / "home/trusted").mkdir(parents=True)
    (tmp_path / "home/trusted/x.pub").write_text(bytes(other.verify_key).hex())
    deploy(Bundle.open(bundle.path), root)
    trusted = {path.read_text().strip() for path in (root / "etc/edgeprune/trusted").glob("*.pub")}
    assert trusted == {bytes(key.verify_key).hex() for key in (other, keys.load_or_create())}
    assert releases.current().trusted


@ROOT
def test_the_service_starts_at_boot_as_the_owner_and_makes_its_own_key(root, tmp_path, fake_registry):
    output = deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings(source="camera:0"))
    system = root / "etc/systemd/system"
    text = (system / "edgeprune.service").read_text()
    assert "ExecStart=/opt/edgeprune/agent/bin/edgeprune run --root /opt/edgeprune --source camera:0 --output -" in text
    assert "User=pilot" in text and "XDG_CONFIG_HOME=/home/pilot/.config\n" in text
    wanted = system / "multi-user.target.wants/edgeprune.service"
    assert os.readlink(wanted) == "/etc/systemd/system/edgeprune.service"
    home = root / "home/pilot/.config/edgeprune"
    assert "ReadWritePaths=/opt/edgeprune -/home/pilot/.config/edgeprune/keys\n" in text
    assert list((home / "keys").iterdir()) == [] and stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
    (trusted,) = (home / "trusted").iterdir()
    assert trusted.read_text().strip() == bytes(keys.load_or_create().verify_key).hex()
    assert {path.stat().st_uid for path in [home.parent, home, *home.rglob("*")]} == {1000}
    assert {path.lstat().st_uid for path in system.rglob("edgeprune*")} == {0}
    assert "pilot is not in the group video" in output
    (root / "etc/group").write_text("video:x:44:somebody,pilot\n")
    settings = DeploySettings(source="camera:0")
    assert "not in the group" not in deploy(drone_root.bundle(tmp_path / "b.epb"), root, settings)


def test_a_service_without_an_agent_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="no agent for the service to run"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, replace(BARE, source="camera:0"))
    assert not (root / "opt").exists()


@ROOT
@pytest.mark.parametrize(
    "passwd, there, right",
    [
        (drone_root.PASSWD, None, (1000, 1000)),
        ("root:x:0:0:root:/root:/bin/sh\n", None, (0, 0)),
        (drone_root.PASSWD + "eve:x:1001:50:Eve:/home/eve:/bin/sh\n", (1001, 7), (1001, 7)),
    ],
)
def test_the_owner_is_the_folders_owner_else_1000_else_root(tmp_path, passwd, there, right):
    root = drone_root.tree(tmp_path / "root", passwd=passwd)
    if there:
        (root / "opt/edgeprune").mkdir(parents=True)
        os.chown(root / "opt/edgeprune", *there)
    deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
    assert {path.lstat()[4:6] for path in (root / "opt/edgeprune").rglob("*")} == {right}


@ROOT
def test_a_folder_of_an_unknown_user_is_refused(root, tmp_path):
    (root / "opt/edgeprune").mkdir(parents=True)
    os.chown(root / "opt/edgeprune", 4321, 4321)
    with pytest.raises(InputError, match="found UID 4321, which is not in /etc/passwd of that root"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
