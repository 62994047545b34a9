"""rootfs: deployment into a root file system in a folder: content, ownership, and the state after a kill."""

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
from edgeprune_device.installation import contents
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys

from edgeprune.drones.deploy import DeploySettings, rootfs

from ... import drone_root
from .roots import BARE, ROOT, deploy, snapshot


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


@ROOT
def test_the_release_is_on_trial_with_the_planned_owners_modes_and_times(root, tmp_path, fake_registry):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    output = deploy(bundle, root, DeploySettings(precision="fp32"))
    base = root / "opt/edgeprune"
    releases = Releases(base)
    release = releases.current()
    assert (release.state, release.starts, release.sequence, release.counter) == ("trial", 0, 1, 5)
    assert releases.open(release).sha256 == bundle.sha256
    assert os.readlink(base / "current") == f"releases/{release.identity}"
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
    assert "pilot (1000:1000)" in output and "every file was read back" in output
    assert not list(root.rglob("*edgeprune-new*"))


@ROOT
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_release_files_are_listed_and_a_second_deployment_repairs_them(root, tmp_path, fake_registry, precision):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings(precision=precision))
    releases = Releases(root / "opt/edgeprune")
    release = releases.current()
    folder = releases.folder(release)
    assert contents.problem(releases, release) is None and (folder / "model.onnx").exists() == (precision == "fp32")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in set(before) & set(contents.NAMES):
        (folder / name).write_bytes(b"rotten")
        assert str(folder / name) in contents.problem(releases, release)
        deploy(bundle, root, DeploySettings(precision=precision))
        assert contents.problem(releases, release) is None
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_second_deployment_writes_nothing_and_loses_nothing(root, tmp_path, fake_registry):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings())
    releases = Releases(root / "opt/edgeprune")
    releases.confirm(releases.current())
    (releases.root / "state.json").chmod(0o600)
    before = snapshot(root)
    assert "0 files, 0 folders, 0 links" in deploy(bundle, root, DeploySettings())
    assert snapshot(root) == before and releases.current().state == "good"


def test_a_dry_run_changes_nothing(root, tmp_path, fake_registry):
    before = snapshot(root)
    output = deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings(dry_run=True))
    assert snapshot(root) == before and "would write release" in output


def test_a_bundle_that_changes_after_verification_is_not_deployed(root, tmp_path):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    data = bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(SignatureError, match=r"tiny.epb: changed during the deployment"):
        deploy(bundle, root)
    assert not (root / "opt/edgeprune/current").exists()


def test_a_folder_without_a_root_file_system_is_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(InputError, match="not a root file system"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), tmp_path / "pictures")


def test_without_root_the_files_belong_to_the_user_with_a_notice(root, tmp_path):
    if os.geteuid() != 0:
        assert "belong to you" in deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
        return
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    for path in [root, *root.rglob("*"), tmp_path / "home", *(tmp_path / "home").rglob("*")]:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    for path in [tmp_path, *tmp_path.parents]:
        path.chmod(path.stat().st_mode | 0o555) if path != Path("/") else None
    output = drone_root.as_nobody(lambda: deploy(bundle, root))
    assert "belong to you (65534:65534), not to pilot (1000:1000)" in output, output
    assert {path.lstat().st_uid for path in (root / "opt").rglob("*")} == {65534}
    assert Releases(root / "opt/edgeprune").current().identity == bundle.sha256[:16]


#: Every call with which `rootfs.write` changes a disk.
_CALLS = ("mkdir", "chown", "fchmod", "unlink", "symlink", "open", "fchown", "utime", "rename", "rmdir")


def _killed_at(number, work):
    """Run work() in a process that is killed with -9 before the `number`th change; return whether it got there."""
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
def test_after_a_kill_before_any_change_current_is_complete_and_the_next_run_finishes(root, tmp_path):
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
        releases = Releases(fresh / "opt/edgeprune")
        assert releases.open(releases.current()).sha256 in (old.sha256, new.sha256), number
        seen.append(releases.current().name)
        assert releases.current().name == "old" or releases.fallback().name == "old", number
        deploy(new, fresh, settings)
        assert releases.current().name == "new" and {r.name for r in releases.all()} == {"old", "new"}, number
        assert not list(fresh.rglob("*edgeprune-new*")), number
        shutil.rmtree(fresh)
        if not killed:
            break
        number += 1
    assert number > 30 and seen == sorted(seen, key=("old", "new").index) and set(seen) == {"old", "new"}
