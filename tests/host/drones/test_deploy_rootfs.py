"""A bundle goes into a root file system that lies in a folder: what, to whom it belongs, and what a kill leaves."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from nacl.signing import SigningKey

from edgeprune.drones import wheels
from edgeprune.drones.deploy import DeploySettings, agent, rootfs
from edgeprune.drones.deploy.rootfs import RootFolder

from .. import drone_root

BARE = DeploySettings(agent=False)
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def root(tmp_path):
    return drone_root.tree(tmp_path / "root")


@pytest.fixture
def fake_registry(tmp_path, monkeypatch):
    """The registry's answer is a wheel made here; the device package's own wheel is real."""
    asked = []

    def fetch(python, extras):
        asked.append((python, tuple(extras)))
        return Path("pip.whl"), [drone_root.wheel(tmp_path)]

    monkeypatch.setattr(wheels, "fetch", fetch)
    return asked


def deploy(bundle, folder, settings=BARE):
    said = []
    rootfs.deploy(bundle, folder, settings, said.append)
    return "\n".join(said)


def snapshot(folder):
    """{path: what it is} of everything in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        here = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (here.st_mode, here.st_uid, here.st_gid, here.st_mtime_ns, content)
    return found


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


def test_a_release_that_was_bad_is_tried_again_when_it_is_deployed_again(root, tmp_path):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root)
    found = Releases(root / "opt/edgeprune")
    found.mark(found.current(), "bad", "it crashed")
    deploy(bundle, root)
    assert (found.current().state, found.current().reason, found.current().sequence) == ("trial", None, 2)


def test_a_dry_run_changes_nothing(root, tmp_path, fake_registry):
    before = snapshot(root)
    said = deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings(dry_run=True))
    assert snapshot(root) == before and "would get release" in said


def test_links_of_the_image_are_followed_inside_of_it_only(root, tmp_path):
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
def test_what_is_in_the_way_is_named_and_nothing_is_written(root, tmp_path, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("in the way")
    before = snapshot(root)
    with pytest.raises(InputError, match=f"{name}.* (is not a folder|is in the way)"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
    assert snapshot(root) == before


def test_links_in_a_circle_are_refused(root, tmp_path):
    (root / "opt").symlink_to("/opt2")
    (root / "opt2").symlink_to("opt")
    with pytest.raises(InputError, match="circle"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)


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


def test_former_releases_go_but_never_the_newest_good_one(root, tmp_path):
    found = Releases(root / "opt/edgeprune")
    bundles = [drone_root.bundle(tmp_path / f"b{n}.epb", counter=n) for n in range(5)]
    for number, bundle in enumerate(bundles):
        deploy(bundle, root, replace(BARE, keep=10))
        found.mark(found.current(), "good" if number == 1 else "bad")
    said = deploy(drone_root.bundle(tmp_path / "new.epb", counter=9), root, replace(BARE, keep=1))
    left = {release.name: release.state for release in found.all()}
    assert left == {"new": "trial", "b1": "good"} and found.fallback().name == "b1"
    assert sorted(path.name for path in (found.root / "releases").iterdir()) == sorted(r.identity for r in found.all())
    assert "former releases that go" in said


def test_an_older_bundle_is_refused_unless_it_is_asked_for(root, tmp_path):
    found = Releases(root / "opt/edgeprune")
    deploy(drone_root.bundle(tmp_path / "new.epb", counter=7), root)
    found.confirm(found.current())
    old = drone_root.bundle(tmp_path / "old.epb", counter=6)
    before = snapshot(root)
    with pytest.raises(GateError, match=r"counter 6, and 7 was confirmed.*--allow-older"):
        deploy(old, root)
    assert snapshot(root) == before
    deploy(old, root, replace(BARE, allow_older=True))
    assert found.current().older and found.counter == 7
    (found.root / "state.json").write_text("{}")
    with pytest.raises(InputError, match="holds no counter"):
        deploy(old, root)


@pytest.mark.parametrize("place", ["etc/edgeprune/revoked/x", "home/pilot/.config/edgeprune/revoked/x"])
@pytest.mark.parametrize("written", ["fingerprint", "digits"])
def test_a_key_that_is_revoked_there_is_refused(root, tmp_path, place, written):
    key = keys.load_or_create().verify_key
    (root / place).parent.mkdir(parents=True)
    (root / place).write_text(keys.fingerprint(key) if written == "fingerprint" else bytes(key).hex())
    with pytest.raises(SignatureError, match="revoked there"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
    assert not (root / "opt").exists()


def test_a_bundle_of_another_host_brings_that_key_and_an_untrusted_one_brings_none(root, tmp_path):
    other = SigningKey.generate()
    drone_root.bundle(tmp_path / "tiny.epb", key=other)
    bundle = Bundle.open(tmp_path / "tiny.epb", allow_untrusted=True)
    deploy(bundle, root)
    found = Releases(root / "opt/edgeprune")
    assert not found.current().trusted and not (root / "etc/edgeprune").exists()
    bundle = Bundle.open(drone_root.bundle(tmp_path / "second.epb", key=other).path, allow_untrusted=True)
    (tmp_path / "home/trusted").mkdir(parents=True)
    (tmp_path / "home/trusted/x.pub").write_text(bytes(other.verify_key).hex())
    deploy(Bundle.open(bundle.path), root)
    trusted = {path.read_text().strip() for path in (root / "etc/edgeprune/trusted").glob("*.pub")}
    assert trusted == {bytes(key.verify_key).hex() for key in (other, keys.load_or_create())}
    assert found.current().trusted


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


@ROOT
def test_with_a_source_the_service_starts_at_boot_as_the_owner_and_makes_its_key_there(root, tmp_path, fake_registry):
    said = deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings(source="camera:0"))
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
    assert "pilot is not in the group video" in said
    (root / "etc/group").write_text("video:x:44:somebody,pilot\n")
    settings = DeploySettings(source="camera:0")
    assert "not in the group" not in deploy(drone_root.bundle(tmp_path / "b.epb"), root, settings)


def test_a_service_without_an_agent_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="no agent that a service could run"):
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
def test_the_deployment_belongs_to_whom_the_folder_belongs_to_else_to_1000_else_to_root(tmp_path, passwd, there, right):
    root = drone_root.tree(tmp_path / "root", passwd=passwd)
    if there:
        (root / "opt/edgeprune").mkdir(parents=True)
        os.chown(root / "opt/edgeprune", *there)
    deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)
    assert {path.lstat()[4:6] for path in (root / "opt/edgeprune").rglob("*")} == {right}


@ROOT
def test_a_folder_of_a_user_whom_the_image_does_not_know_is_refused(root, tmp_path):
    (root / "opt/edgeprune").mkdir(parents=True)
    os.chown(root / "opt/edgeprune", 4321, 4321)
    with pytest.raises(InputError, match="user 4321, who is not in its /etc/passwd"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root)


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


# --- the agent ---


@pytest.mark.parametrize("version", ["3.8.10", "3.10.12", "3.12.3"])
def test_the_images_own_python_glibc_and_packages_decide(tmp_path, version, fake_registry):
    root = drone_root.tree(tmp_path / "root", version)
    content = agent.files(RootFolder(root), DeploySettings(), lambda text: None)
    python, extras = fake_registry[0]
    assert (python.version, python.machine, python.glibc) == (version, "aarch64", (2, 35))
    assert python.packages == {"numpy": "1.21.5", "tensorrt": "10.3.0"} and extras == ()
    script = content["bin/edgeprune"].decode()
    assert f"exec /usr/bin/python{version.rpartition('.')[0]} -c 'import sys; sys.path" in script
    assert "PYTHONPATH=/opt/edgeprune/agent/lib" in script
    assert content["lib/helper/__init__.py"] == b"A = 1\n" and "lib/edgeprune_device/trust/keys.py" in content


def test_where_there_is_no_tensorrt_the_agent_brings_onnx_runtime(root, fake_registry):
    os.rename(root / "usr/lib/python3.10/dist-packages/tensorrt", root / "gone")
    said = []
    agent.files(RootFolder(root), DeploySettings(), said.append)
    assert fake_registry[0][1] == ("ort",) and "ONNX Runtime" in said[-1]


def test_the_python_that_sees_tensorrt_is_taken(root, fake_registry):
    (root / "usr/bin/python3.12").write_bytes(drone_root.program("3.12.1"))
    (root / "usr/bin/python3").unlink()
    (root / "usr/bin/python3").symlink_to("/usr/bin/python3.12")
    assert agent.learn(RootFolder(root))[1] == "/usr/bin/python3.10"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda root: (root / "usr/bin/python3.10").write_bytes(drone_root.program("3.10.1", drone_root.X86_64)),
         "is for x86_64, not for aarch64"),
        (lambda root: (root / "usr/bin/python3.10").write_bytes(b"#!/bin/sh\n"), "for an unknown processor"),
        (lambda root: (root / "usr/bin/python3.10").unlink(), "there is no /usr/bin/python3"),
        (lambda root: os.rename(root / "usr/bin/python3.10", root / "usr/bin/python3.6"), "no Python"),
        (lambda root: (root / "usr/lib/aarch64-linux-gnu/libc.so.6").write_bytes(b"musl"), "has no glibc"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_have_the_agent_is_refused(root, tmp_path, fake_registry, change, told):
    change(root)
    with pytest.raises(InputError, match=told):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings())
    assert not (root / "opt").exists()


def test_without_wheels_it_is_said_that_the_agent_can_be_left_out(root, tmp_path, monkeypatch):
    def fetch(python, extras):
        raise InputError("no wheels for Python 3.10.12 on aarch64: no connection")

    monkeypatch.setattr(wheels, "fetch", fetch)
    with pytest.raises(InputError, match=r"--no-agent leaves it out \(no wheels for Python 3.10.12"):
        deploy(drone_root.bundle(tmp_path / "tiny.epb"), root, DeploySettings())


def test_a_new_agent_takes_the_place_of_the_former_one(root, tmp_path, fake_registry, monkeypatch):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings())
    former = os.readlink(root / "opt/edgeprune/agent")
    monkeypatch.setattr(wheels, "fetch", lambda *a: (None, [drone_root.wheel(tmp_path, files={"b.py": b"B = 2"})]))
    deploy(bundle, root, DeploySettings())
    now = os.readlink(root / "opt/edgeprune/agent")
    assert now != former and sorted(p.name for p in (root / "opt/edgeprune").glob("agent*")) == sorted(["agent", now])
    assert (root / "opt/edgeprune/agent/lib/b.py").read_bytes() == b"B = 2"
    (root / "usr/local/bin/edgeprune").unlink()
    (root / "usr/local/bin/edgeprune").write_text("somebody else's")
    deploy(bundle, root, DeploySettings())
    assert (root / "usr/local/bin/edgeprune").read_text() == "somebody else's"


HOSTILE = ["../x.py", "/etc/x.py", "a/../../x.py", "a\\..\\x.py", "./x.py", "a//x.py", "a\nb.py", "x" * 600]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_wheel_puts_nothing_anywhere(tmp_path, name):
    with pytest.raises(InputError, match="not a path inside of it"):
        agent.unpack([drone_root.wheel(tmp_path, files={name: b"x"})])


def test_a_wheel_with_a_link_twice_the_same_file_or_a_false_size_is_refused(tmp_path):
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="not a plain file"):
        agent.unpack([path])
    first, second = (drone_root.wheel(tmp_path, f"{n}-1", {"same.py": b"x"}) for n in "ab")
    with pytest.raises(InputError, match="in another wheel, too"):
        agent.unpack([first, second])
    a, b = drone_root.wheel(tmp_path, "c-1", {"m": b"x"}), drone_root.wheel(tmp_path, "d-1", {"m/n.py": b"x"})
    with pytest.raises(InputError, match="a file in one wheel and a folder in another"):
        agent.unpack([a, b])
    (tmp_path / "no.whl").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(InputError, match="not a wheel that can be unpacked"):
        agent.unpack([tmp_path / "no.whl"])
    raw = bytearray(drone_root.wheel(tmp_path, "e-1", {"m.py": b"x" * 100}).read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 24 : at + 28] = (50).to_bytes(4, "little")  # the size, in the directory at the end
    (tmp_path / "lies.whl").write_bytes(raw)
    with pytest.raises(InputError, match="not a wheel that can be unpacked"):
        agent.unpack([tmp_path / "lies.whl"])


def test_a_wheel_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(agent, "_MAX_FILES", 3)
    with pytest.raises(InputError, match="too many or too large"):
        agent.unpack([drone_root.wheel(tmp_path, files={f"{n}.py": b"" for n in range(4)})])


def test_a_wheels_data_folders_go_where_pip_would_put_them(tmp_path):
    files = {"a-1.data/purelib/p.py": b"p", "a-1.data/scripts/run": b"s", "a-1.data/data/share/x": b"d", "m.py": b"m"}
    assert agent.unpack([drone_root.wheel(tmp_path, files=files)]) == {"p.py": b"p", "m.py": b"m"}


def test_another_place_is_taken_where_it_is_asked_for(root, tmp_path, fake_registry):
    bundle = drone_root.bundle(tmp_path / "tiny.epb")
    deploy(bundle, root, DeploySettings(root=PurePosixPath("/srv/it's here")))
    base = root / "srv/it's here"
    assert hashlib.sha256((base / "current/bundle.epb").read_bytes()).hexdigest() == bundle.sha256
    assert "'/srv/it'\\''s here/agent/lib'" in (base / "agent/bin/edgeprune").read_text()
