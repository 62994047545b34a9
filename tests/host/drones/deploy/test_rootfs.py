"""A bundle goes into a root file system that lies in a folder: what, to whom it belongs, and what a kill leaves."""

import json
import os
import shutil
import signal
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys

from edgeprune.drones.deploy import DeploySettings, rootfs

from ... import drone_root
from .roots import BARE, ROOT, deploy, snapshot


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


@ROOT
def test_the_release_is_on_trial_and_everything_has_its_owner_mode_and_time(root, tmp_path, fake_registry):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    said = deploy(bundle, root, DeploySettings(precision="fp32"))
    base = root / "opt/edgeprune"
    found = Releases(base)
    release = found.current()
    assert (release.state, release.starts, release.sequence, release.counter) == ("trial", 0, 1, 5)
    assert (
        found.open(release).sha256 == bundle.sha256 and os.readlink(base / "current") == f"releases/{release.identity}"
    )
    folder = base / "current"
    assert (folder / "model.onnx").read_bytes() == bundle.read("model.fp32.onnx")
    assert (folder / "labels.txt").read_text() == "person\ncar\n"
    assert json.loads((folder / "manifest.json").read_text())["name"] == "tiny"
    assert (root / "etc/edgeprune/trusted").is_dir() and not (base / "state.json").exists()
    (trusted,) = (root / "etc/edgeprune/trusted").glob("*.pub")
    assert trusted.read_text() == bytes(keys.load_or_create().verify_key).hex() + "\n"
    times = {1795390800}  # 2026-11-22T23:40:00Z
    for path in [base, *base.rglob("*")]:
        here = path.lstat()
        right = 0o777 if path.is_symlink() else 0o755 if path.is_dir() or path.parent.name == "bin" else 0o644
        assert (here.st_uid, here.st_gid, stat.S_IMODE(here.st_mode)) == (1000, 1000, right), path
        times.add(int(here.st_mtime))
    assert len(times) == 1
    for path in (root / "opt", root / "etc/edgeprune", trusted, root / "usr/local/bin/edgeprune"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (0, 0), path
    assert os.readlink(root / "usr/local/bin/edgeprune") == "/opt/edgeprune/agent/bin/edgeprune"
    assert "pilot (1000:1000)" in said and "every file has its SHA-256" in said
    assert not list(root.rglob("*edgeprune-new*"))


def test_a_second_deployment_has_nothing_to_do_and_forgets_nothing(root, tmp_path, fake_registry):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings())
    found = Releases(root / "opt/edgeprune")
    found.confirm(found.current())
    (found.root / "state.json").chmod(0o600)
    before = snapshot(root)
    assert "0 files, 0 folders, 0 links" in deploy(bundle, root, DeploySettings())
    assert snapshot(root) == before and found.current().state == "good"


def test_a_dry_run_changes_nothing(root, tmp_path, fake_registry):
    before = snapshot(root)
    said = deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings(dry_run=True))
    assert snapshot(root) == before and "would get release" in said


def test_a_bundle_that_changes_after_it_was_verified_is_not_deployed(root, tmp_path):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    data = bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(SignatureError, match=r"tiny.epb: changed while it was deployed"):
        deploy(bundle, root)
    assert not (root / "opt/edgeprune/current").exists()


def test_a_folder_that_is_no_root_file_system_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="no etc and usr"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), tmp_path / "pictures")


def test_without_root_every_file_is_ones_own_and_that_is_said(root, tmp_path):
    if os.geteuid() != 0:
        assert "belongs to you" in deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
        return
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    for path in [root, *root.rglob("*"), tmp_path / "home", *(tmp_path / "home").rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for path in [tmp_path, *tmp_path.parents]:
        path.chmod(path.stat().st_mode | 0o555) if path != Path("/") else None
    said = drone_root.as_nobody(lambda: deploy(bundle, root))
    assert "belongs to you (65534:65534), not to pilot (1000:1000)" in said, said
    assert {path.lstat().st_uid for path in (root / "opt").rglob("*")} == {65534}
    assert Releases(root / "opt/edgeprune").current().identity == bundle.sha256[:16]


#: Everything by which `rootfs.write` changes a disk.
_CALLS = ("mkdir", "chown", "fchmod", "unlink", "symlink", "open", "fchown", "utime", "rename", "rmdir")


def _killed_at(number, work):
    """Run work() in a process that is killed by -9 before the `number`th change; whether it came so far."""
    child = os.fork()
    if child == 0:
        left = [number]

        def counted(call):
            def replacement(*args, **options):
                writes = call is not os_open or args[1] & os.O_CREAT
                if writes:
                    left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return replacement

        os_open = os.open
        for name in _CALLS:
            setattr(os, name, counted(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@ROOT
def test_killed_before_each_change_current_names_a_whole_release_and_the_next_run_completes_it(root, tmp_path):
    names = ("stale", "old", "new")
    stale, old, new = (drone_root.bundle(tmp_path / f"{name}.epb", counter=n) for n, name in enumerate(names))
    settings = replace(BARE, keep=2)
    for bundle in (stale, old):
        deploy(bundle, root)
        Releases(root / "opt/edgeprune").confirm(Releases(root / "opt/edgeprune").current())
    seen, number = [], 0
    fresh = tmp_path / "fresh"
    while True:
        subprocess.run(["cp", "-a", str(root), str(fresh)], check=True)
        killed = _killed_at(number, lambda: rootfs.deploy(new, fresh, settings, lambda text: None))
        found = Releases(fresh / "opt/edgeprune")
        assert found.open(found.current()).sha256 in (old.sha256, new.sha256), number
        seen.append(found.current().name)
        assert found.current().name == "old" or found.fallback().name == "old", number
        deploy(new, fresh, settings)
        assert found.current().name == "new" and {r.name for r in found.all()} == {"old", "new"}, number
        assert not list(fresh.rglob("*edgeprune-new*")), number
        shutil.rmtree(fresh)
        if not killed:
            break
        number += 1
    assert number > 30 and seen == sorted(seen, key=("old", "new").index) and set(seen) == {"old", "new"}
