"""image: deployment into a disk image, through debugfs and through the kernel with the same result, only into intact
images, and completely or not at all. sfdisk and mke2fs make the images; e2fsck and the kernel judge the result."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from edgeprune_device import cli
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle
from fakes import models

from edgeprune.drones import wheels
from edgeprune.drones.deploy import DeploySettings, debugfs, ext4, image, overlay

from ... import drone_root
from ...drone_root import PATH
from .images import OFFSET, SIZE_MB

pytestmark = pytest.mark.needs("debugfs", "mke2fs", "sfdisk")
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, mounts")
BARE = DeploySettings(agent=False)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "home"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def deploy(bundle, file, settings=BARE, kernel=False):
    messages = []
    image.deploy(bundle, file, settings, messages.append, kernel=kernel)
    return "\n".join(messages)


def e2fsck(path, offset=OFFSET, *options):
    command = ["e2fsck", "-f", *(options or ["-n"]), f"{path}?offset={offset}"]
    return subprocess.run(command, env={**os.environ, "PATH": PATH}, capture_output=True, text=True)


def run(*command):
    subprocess.run(command, env={**os.environ, "PATH": PATH}, check=True, capture_output=True)


def seen_by_the_kernel(path, tmp_path, offset=OFFSET, size=SIZE_MB << 20):
    """{path in the file system: description}, through a read-only loop mount."""
    folder = tmp_path / "mounted"
    folder.mkdir(exist_ok=True)
    script = """
import hashlib, json, os, sys
entries = {}
for top, folders, files in os.walk(sys.argv[1]):
    for name in folders + files:
        p = os.path.join(top, name)
        s = os.lstat(p)
        what = os.readlink(p) if os.path.islink(p) else ""
        if os.path.isfile(p) and not os.path.islink(p):
            what = hashlib.sha256(open(p, "rb").read()).hexdigest()
        entries[p[len(sys.argv[1]):]] = [s.st_mode, s.st_uid, s.st_gid, s.st_nlink, int(s.st_mtime), what]
print(json.dumps(entries))
"""
    options = f"loop,ro,offset={offset},sizelimit={size}"
    shell = 'mount -t ext4 -o "$1" "$2" "$3" && python3 -c "$4" "$3"; code=$?; umount "$3"; exit $code'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", options, str(path), str(folder), script],
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.fixture
def fake_registry(tmp_path, monkeypatch):
    """The registry answers with a wheel made here; the device package's own wheel is real, and made once."""
    (tmp_path / "wheels").mkdir()
    fetched, own = [drone_root.wheel(tmp_path / "wheels")], wheels.device_wheel(tmp_path / "wheels")
    monkeypatch.setattr(wheels, "device_wheel", lambda folder: own)
    monkeypatch.setattr(wheels, "fetch", lambda python, extras: (Path("pip.whl"), fetched))


@ROOT
def test_debugfs_and_the_kernel_write_the_same_and_change_nothing_else(drone, bundle, tmp_path, fake_registry):
    before, begun = seen_by_the_kernel(drone, tmp_path), int(time.time())
    second = drone_root.bundle(tmp_path / "second.epb", counter=6)
    after = {}
    for kernel in (False, True):
        file = tmp_path / f"{kernel}.img"
        shutil.copy(drone, file)
        output = deploy(bundle, file, DeploySettings(source="camera:0", precision="fp32"), kernel=kernel)
        assert ("loop mount" if kernel else "debugfs, without root") in output
        assert "every file was read back" in output and "partition 1 APP" in output
        deploy(second, file, DeploySettings(keep=2), kernel=kernel)
        assert e2fsck(file).returncode == 0 and e2fsck(file, OFFSET + (SIZE_MB << 20)).returncode == 0
        after[kernel] = seen_by_the_kernel(file, tmp_path)
        for entry in after[kernel].values():
            entry[4] = "now" if entry[0] & 0o040000 and entry[4] >= begun else entry[4]
        for release in ("first", "second"):  # entries with the time of the deployment may differ
            folder = f"/opt/edgeprune/releases/{(bundle if release == 'first' else second).sha256[:16]}/release.json"
            assert after[kernel].pop(folder)[:5] == [0o100644, 1000, 1000, 1, 1795390800]
        outside = file.read_bytes()
        assert outside[:OFFSET] == drone.read_bytes()[:OFFSET]
        assert outside[OFFSET + (SIZE_MB << 20) :] == drone.read_bytes()[OFFSET + (SIZE_MB << 20) :]
    new = {path: entry for path, entry in after[False].items() if path not in before}
    assert len(new) > 60 and {path: after[True].get(path) for path in new} == new
    assert after[True].keys() == after[False].keys()
    for path, entry in before.items():  # folders with new entries have another time and number of links
        for entries in after.values():
            same = entry == entries[path] or (entry[0] & 0o040000 and entry[:3] == entries[path][:3])
            assert same, path
    assert new["/opt/edgeprune/current"] == [0o120777, 1000, 1000, 1, 1795390800, f"releases/{second.sha256[:16]}"]
    assert new[f"/opt/edgeprune/releases/{bundle.sha256[:16]}/bundle.epb"][5] == bundle.sha256
    assert new["/usr/local/bin/edgeprune"][:3] == [0o120777, 0, 0]
    assert new["/etc/systemd/system/edgeprune.service"][:3] == [0o100644, 0, 0]


@ROOT
def test_a_deployment_without_root_is_complete(drone, bundle, tmp_path):
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/"):
            path.chmod(path.stat().st_mode | 0o555)
    for path in (tmp_path / "home", *(tmp_path / "home").rglob("*"), drone, tmp_path):
        os.chown(path, 65534, 65534)
    output = drone_root.as_nobody(lambda: deploy(bundle, drone, kernel=None))
    assert "written by debugfs, without root" in output, output
    entries = seen_by_the_kernel(drone, tmp_path)
    release = f"/opt/edgeprune/releases/{bundle.sha256[:16]}"
    assert entries[release][:3] == [0o040755, 1000, 1000] and entries["/etc/edgeprune"][:3] == [0o040755, 0, 0]
    assert entries[f"{release}/bundle.epb"][5] == bundle.sha256


KINDS = {
    "blocks of 1 KiB": ("-b", "1024"),
    "blocks of 2 KiB": ("-b", "2048"),
    "blocks of 4 KiB": ("-b", "4096"),
    "made by old tools": ("-O", "^metadata_csum,^64bit,^huge_file", "-I", "128"),
    "without a journal": ("-O", "^has_journal"),
    "folders without an index": ("-O", "^dir_index"),
    "on a disk that reports no holes": ("-b", "1024"),
}


@ROOT
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_existing_files_stay_for_every_kind_of_ext4(tmp_path, fake_registry, monkeypatch, kernel, kind):
    """They stay even if blocks of the new files are zero and the free blocks are not."""
    root = drone_root.tree(tmp_path / "root")
    for number in range(200):  # neighbours for every new block
        (root / f"home/pilot/{number}").write_bytes(os.urandom(1 + number * 37))
    file = drone_root.ext4(root, tmp_path / "bare.ext4", 24, *KINDS[kind])
    # Deleted content is still in the free blocks.
    script = "".join(f"rm /home/pilot/{number}\n" for number in range(0, 200, 3))
    (tmp_path / "script").write_text(script)
    run("debugfs", "-w", "-f", str(tmp_path / "script"), str(file))
    assert e2fsck(file, 0).returncode == 0
    before = seen_by_the_kernel(file, tmp_path, 0, 24 << 20)
    if "no holes" in kind:
        monkeypatch.setattr(overlay, "_data", lambda descriptor: [(0, os.fstat(descriptor).st_size)])
    content = models.unreadable(5000) + bytes(200_000) + os.urandom(3000) + bytes(9000)
    data = {**drone_root.MANIFEST, "counter": 1}
    bundle = Bundle.write(tmp_path / "z.epb", data, {"model.fp32.onnx": content}, keys.load_or_create())
    deploy(bundle, file, DeploySettings(), kernel)
    assert e2fsck(file, 0).returncode == 0
    after = seen_by_the_kernel(file, tmp_path, 0, 24 << 20)
    assert after[f"/opt/edgeprune/releases/{bundle.sha256[:16]}/bundle.epb"][5] == bundle.sha256
    files = [path for path, entry in before.items() if not entry[0] & 0o040000]
    assert len(files) > 130 and [path for path in files if before[path] != after[path]] == []


def test_a_second_deployment_changes_no_byte(drone, bundle, fake_registry):
    deploy(bundle, drone, DeploySettings())
    before = sha256(drone)
    assert "complete; nothing was changed" in deploy(bundle, drone, DeploySettings())
    assert sha256(drone) == before


def test_a_dry_run_changes_no_byte_and_leaves_no_file(drone, bundle, tmp_path):
    before = sha256(drone), sorted(tmp_path.iterdir())
    drone.chmod(0o444)
    assert "would write release" in deploy(bundle, drone, replace(BARE, dry_run=True))
    assert (sha256(drone), sorted(tmp_path.iterdir())) == before


def test_removed_releases_free_their_space(drone, tmp_path):
    names = []
    for number in range(4):
        bundle = drone_root.bundle(tmp_path / f"b{number}.epb", counter=number, size=2_000_000)
        deploy(bundle, drone, replace(BARE, keep=2))
        names.append(bundle.sha256[:16])
    with open(drone, "rb") as stream:
        root = debugfs.FileSystem(debugfs.Place(stream.fileno(), OFFSET, "drone"))
        assert sorted(root.names("/opt/edgeprune/releases")) == sorted(names[-2:])
        assert ext4.read(stream, OFFSET).usable_bytes > 20_000_000
    assert e2fsck(drone).returncode == 0


@pytest.mark.parametrize("place", ["/opt/edge prune", '/srv/it "is" here', "/srv/'$(x)`;|<12>", "/srv/ünï"])
@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_names_with_special_characters_are_handled(drone, bundle, place, kernel):
    deploy(bundle, drone, replace(BARE, root=PurePosixPath(place)), kernel=kernel)
    with open(drone, "rb") as stream:
        root = debugfs.FileSystem(debugfs.Place(stream.fileno(), OFFSET, "drone"))
        assert root.lstat(f"{place}/current").target == f"releases/{bundle.sha256[:16]}"
        assert root.sha256(f"{place}/releases/{bundle.sha256[:16]}/bundle.epb") == bundle.sha256


@pytest.mark.parametrize("place", ["/opt/a\nb", "/opt/a\x1b[0m", "/opt/" + "x" * 4100])
def test_unprintable_names_are_refused(drone, bundle, place):
    before = sha256(drone)
    with pytest.raises(InputError) as caught:
        deploy(bundle, drone, replace(BARE, root=PurePosixPath(place)))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert sha256(drone) == before


# --- the choice of the file system ---


@pytest.mark.parametrize("wanted, name", [(None, "1 APP"), ("APP_b", "2 APP_b"), ("2", "2 APP_b"), ("1", "1 APP")])
def test_app_is_the_default_partition(drone, bundle, wanted, name):
    assert f"partition {name}:" in deploy(bundle, drone, replace(BARE, partition=wanted, dry_run=True))


@pytest.mark.parametrize("wanted", ["nothing", "A_kernel"])
def test_a_missing_or_other_partition_is_refused_with_a_list(drone, bundle, wanted):
    with pytest.raises(InputError, match=r"1 APP \(ext4, 34 MB\).*3 A_kernel \(not ext4"):
        deploy(bundle, drone, replace(BARE, partition=wanted))


def test_without_app_the_only_ext4_is_chosen_but_not_one_of_two(made, bundle, tmp_path):
    folder = made.parent
    one = drone_root.gpt(tmp_path / "one.img", [("root", SIZE_MB, folder / "app.ext4")])
    assert "partition 1 root" in deploy(bundle, one)
    parts = [("a", SIZE_MB, folder / "app.ext4"), ("b", 8, folder / "other.ext4")]
    with pytest.raises(InputError, match=r"ambiguous partition .*; give partition"):
        deploy(bundle, drone_root.gpt(tmp_path / "two.img", parts))
    with pytest.raises(InputError, match="no such partition"):
        deploy(bundle, drone_root.gpt(tmp_path / "none.img", [("APPS", 8, None)]))


def test_a_bare_ext4_is_accepted(made, bundle, tmp_path):
    path = tmp_path / "bare.ext4"
    shutil.copy(made.parent / "app.ext4", path)
    assert "ext4: release" in deploy(bundle, path)
    assert e2fsck(path, 0).returncode == 0
    with pytest.raises(InputError, match="no partitions in this image"):
        deploy(bundle, path, replace(BARE, partition="APP"))


@pytest.mark.parametrize("name", ["odd ?offset=0 name.img", "-n.img", 'quo"te.img', "new\nline.img"])
def test_an_image_may_have_any_name(drone, bundle, tmp_path, name):
    file = tmp_path / name
    drone.rename(file)
    deploy(bundle, file)
    file.rename(drone)
    assert e2fsck(drone).returncode == 0


# --- images that are refused before a byte is written ---


def at(offset, data):
    def change(path):
        with open(path, "r+b") as stream:
            stream.seek(offset)
            stream.write(data)

    return change


def flipped(offset):
    def change(path):
        with open(path, "r+b") as stream:
            stream.seek(offset)
            old = stream.read(1)[0]
            stream.seek(offset)
            stream.write(bytes([old ^ 0x10]))

    return change


def superblock(field, value, kind="<I"):
    return at(OFFSET + 1024 + field, struct.pack(kind, value))


def feature(*words):
    def change(path):
        run("debugfs", "-w", "-R", " ".join(["feature", *words]), f"{path}?offset={OFFSET}")

    return change


def truncated(size):
    return lambda path: os.truncate(path, size)


def resized(path):
    """The superblock gives a size larger than the partition."""
    run("debugfs", "-w", "-R", f"set_super_value blocks_count {SIZE_MB << 11}", f"{path}?offset={OFFSET}")


def filled(path):
    """Fill the file system except for a few blocks."""
    fill = path.with_name("fill")
    with open(path, "rb") as stream:
        superblock = ext4.read(stream, OFFSET)
    fill.write_bytes(os.urandom((superblock.free_blocks - 200) * superblock.block_bytes))
    run("debugfs", "-w", "-R", f"write {fill} /fill", f"{path}?offset={OFFSET}")


def without_inodes(path):
    with open(path, "rb") as stream:
        free = ext4.read(stream, OFFSET).free_inodes
    script = path.with_name("script")
    script.write_text("".join(f"symlink /home/{n} x\n" for n in range(free - 5)))
    run("debugfs", "-w", "-f", str(script), f"{path}?offset={OFFSET}")


REFUSED = {
    "damaged header of the GPT": (flipped(512 + 40), "the GPT's header is damaged"),
    "damaged entries of the GPT": (flipped(1024 + 8), "the GPT's entries are damaged"),
    "cut off within the partition": (truncated(OFFSET + (10 << 20)), "cut off .partition 1 APP"),
    "cut off within the table": (truncated(900), "cut off|neither GPT nor ext4"),
    "empty": (truncated(0), "neither GPT nor ext4"),
    "needs_recovery": (feature("needs_recovery"), "needs_recovery"),
    "recorded errors": (superblock(0x3A, 2, "<H"), "the superblock records errors"),
    "not cleanly unmounted": (superblock(0x3A, 0, "<H"), "not unmounted cleanly"),
    "orphans": (superblock(0xE8, 13), "not unmounted cleanly"),
    "casefold": (superblock(0x60, 0x2C2 | 0x20000), "unsupported features .casefold"),
    "inline_data": (superblock(0x60, 0x2C2 | 0x8000), "unsupported features .inline_data"),
    "an unknown incompatible feature": (superblock(0x60, 0x2C2 | 0x40000000), "incompat 0x40000000"),
    "an unknown read-only feature": (superblock(0x64, 0x46B | 0x80000000), "ro_compat 0x80000000"),
    "bigalloc": (superblock(0x64, 0x46B | 0x200), "bigalloc"),
    "ext3": (superblock(0x60, 0x2), "unsupported file system"),
    "a superblock whose checksum is wrong": (flipped(OFFSET + 1024 + 0x78), "e2fsck reported errors"),
    "a damaged block bitmap": (superblock(0xC, 7), "e2fsck reported errors"),
    "larger than its partition": (resized, "larger than the partition"),
    "full": (filled, "too little free space .* MB needed.; remove files"),
    "without inodes": (without_inodes, "too few free inodes"),
    "an Android sparse image": (lambda path: path.write_bytes(b"\x3a\xff\x26\xed" * 4096), "simg2img"),
    "packed": (lambda path: path.write_bytes(b"\x1f\x8b" * 4096), "compressed with gzip"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_an_unsuitable_image_is_refused_before_a_byte_is_written(drone, tmp_path, case, kernel):
    change, message = REFUSED[case]
    change(drone)
    before = sha256(drone)
    bundle = drone_root.bundle(tmp_path / "tiny.epb", size=1_000_000)
    with pytest.raises(InputError, match=message) as caught:
        deploy(bundle, drone, kernel=kernel)
    assert "\n" not in str(caught.value) and str(drone) in str(caught.value)
    assert sha256(drone) == before and not (tmp_path / ".drone.img.edgeprune").exists()


@ROOT
@pytest.mark.parametrize("mounted", [False, True])
def test_an_image_in_use_as_a_loop_device_is_refused(drone, bundle, tmp_path, mounted):
    done = subprocess.run(
        ["losetup", "--show", "-f", "-o", str(OFFSET), "--sizelimit", str(SIZE_MB << 20), str(drone)],
        env={**os.environ, "PATH": PATH}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    device = done.stdout.strip()
    try:
        if mounted:
            run("mount", "-o", "ro", device, str(tmp_path / "home"))
        before = sha256(drone)
        with pytest.raises(InputError, match=f"in use as {device}"):
            deploy(bundle, drone)
        assert sha256(drone) == before
    finally:
        if mounted:
            run("umount", str(tmp_path / "home"))
        run("losetup", "-d", device)


def test_an_image_locked_by_a_virtual_machine_or_a_deployment_is_refused(drone, bundle):
    import fcntl

    with open(drone, "r+b") as stream:
        lock = struct.pack("hhqqixxxx", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)  # as qemu does
        fcntl.fcntl(stream, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(InputError, match="in use by another deployment or a virtual machine"):
            deploy(bundle, drone)
    deploy(bundle, drone)


def test_a_device_or_a_fifo_is_refused(bundle, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a file; deploy to an image file"):
        deploy(bundle, tmp_path / "fifo")


def test_an_image_without_a_root_file_system_is_refused(bundle, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="not a root file system"):
        deploy(bundle, drone_root.ext4(tmp_path / "data", tmp_path / "data.ext4", 8))


def test_without_space_on_the_hosts_disk_nothing_is_written(drone, bundle, monkeypatch):
    real = os.statvfs

    def full(path):
        status = real(path)
        return os.statvfs_result((*status[:4], 10, *status[5:]))

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(InputError, match="too little free space for temporary files"):
        deploy(bundle, drone)


# --- completely or not at all ---


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_a_faulty_writer_does_not_change_the_image(drone, bundle, monkeypatch, kernel):
    """A fake fault: the end of the bundle is lost, as debugfs does on a full file system."""
    real = image._verify
    before = sha256(drone)

    def broken(place, plan):
        bundle_entry = next(entry for entry in plan.entries if entry.path.endswith("bundle.epb"))
        with open(os.dup(place.descriptor), "r+b") as stream:
            stream.seek(0)
            content = stream.read()
            where = content.index(bundle_entry.content.read_bytes()[30_000:34_000])
            stream.seek(where)
            stream.write(bytes(4000))
        real(place, plan)

    monkeypatch.setattr(image, "_verify", broken)
    with pytest.raises(GateError, match=r"1 entries differ after writing .*bundle.epb: has different content"):
        deploy(bundle, drone, kernel=kernel)
    assert sha256(drone) == before


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_a_bundle_that_changes_after_verification_does_not_change_the_image(drone, bundle, kernel):
    before, data = sha256(drone), bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(
        (GateError, InputError), match=r"bundle.epb: has different content|changed during the deployment"
    ):
        deploy(bundle, drone, kernel=kernel)
    assert sha256(drone) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_last_step_is_undone(drone, bundle, tmp_path, monkeypatch, error):
    before, real, calls, image_itself = sha256(drone), os.pwrite, [], open(drone, "rb")  # noqa: SIM115

    def failing(*args):
        if os.path.sameopenfile(args[0], image_itself.fileno()):
            calls.append(args)
            if len(calls) == 5:
                raise error
        return real(*args)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises((InputError, KeyboardInterrupt)):
        deploy(bundle, drone)
    assert len(calls) > 9 and sha256(drone) == before
    assert not (tmp_path / ".drone.img.edgeprune").exists()


def _killed(bundle, file, number):
    """Kill a deployment with -9 before the `number`th write to the image; return whether it got there."""
    child = os.fork()
    if child == 0:
        real, left, itself = os.pwrite, [number], os.open(file, os.O_RDONLY)

        def counted(*args):
            left[0] -= os.path.sameopenfile(args[0], itself)
            if left[0] < 0:
                real(args[0], args[1][: len(args[1]) // 3 // 512 * 512], args[2])  # an incomplete write
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        os.pwrite = counted
        deploy(bundle, file)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_the_run_after_a_kill_at_any_write_restores_the_image_exactly(drone, bundle, tmp_path):
    before, number = sha256(drone), 0
    old = drone_root.bundle(tmp_path / "old.epb", counter=1)
    while _killed(bundle, drone, number):
        assert number == 0 or sha256(drone) != before
        with pytest.raises(InputError, match="was killed; deploy without dry_run"):
            deploy(old, drone, replace(BARE, dry_run=True))
        assert "no such partition" in str(_refused(old, drone))
        assert sha256(drone) == before, number
        number += 1
    assert number >= 8
    assert e2fsck(drone).returncode == 0 and sha256(drone) != before


def _refused(bundle, file):
    """The error of a run that restores the image and then stops."""
    with pytest.raises(InputError) as caught:
        deploy(bundle, file, replace(BARE, partition="nothing"))
    return caught.value


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_after_a_kill_at_any_moment_the_image_is_unchanged_or_restored(drone, tmp_path, fake_registry, kernel):
    bundle = drone_root.bundle(tmp_path / "tiny.epb", size=5_000_000)
    spare = tmp_path / "spare.img"
    shutil.copy(drone, spare)
    begun = time.monotonic()
    deploy(bundle, spare, DeploySettings(), kernel)
    seconds, before, whole = time.monotonic() - begun, sha256(drone), 0
    for part in range(1, 5):
        child = os.fork()
        if child == 0:
            deploy(bundle, drone, DeploySettings(), kernel)
            os._exit(0)
        time.sleep(seconds * part / 4)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while "in use" in (message := str(_refused(bundle, drone))):  # a program of the killed run has not ended yet
            time.sleep(0.05)
        assert "no such partition" in message
        assert e2fsck(drone).returncode == 0
        if sha256(drone) != before:
            assert "complete; nothing was changed" in deploy(bundle, drone, DeploySettings(), kernel)
            whole += 1
            break
    done = deploy(bundle, drone, DeploySettings(), kernel)
    assert e2fsck(drone).returncode == 0 and ("SHA-256" in done or whole)
    assert not [p for p in Path("/sys/block").glob("loop*/loop/backing_file") if str(tmp_path) in p.read_text()]


def test_an_image_that_was_changed_after_a_kill_is_not_restored(drone, bundle, tmp_path):
    assert _killed(bundle, drone, 4)
    run("debugfs", "-w", "-R", "set_super_value mtime 12345", f"{drone}?offset={OFFSET}")
    before = sha256(drone)
    with pytest.raises(InputError, match=r"has changed it since.*remove .*\.drone\.img\.edgeprune"):
        deploy(bundle, drone)
    assert sha256(drone) == before


def test_the_drones_code_reads_the_deployment(drone, bundle, tmp_path):
    """The files that debugfs extracts from the image are a deployment for `edgeprune run`."""
    deploy(bundle, drone)
    run("debugfs", "-R", f"rdump /opt {tmp_path}", f"{drone}?offset={OFFSET}")
    releases = Releases(tmp_path / "opt/edgeprune")
    assert releases.open(releases.current()).sha256 == bundle.sha256 and releases.current().state == "trial"


def test_the_command_prints_the_content_and_its_verification(drone, bundle, capsys):
    assert cli.main(["deploy", str(bundle.path), str(drone), "--no-agent"]) == 0
    output = capsys.readouterr().err
    assert f"release {bundle.sha256[:16]} (tiny): 6 files, 4 folders, 1 links" in output
    assert "e2fsck reports no error" in output
    assert cli.main(["deploy", str(bundle.path), str(drone), "--no-agent", "--partition", "kernel"]) == 2
    assert "no such partition (found " in capsys.readouterr().err
