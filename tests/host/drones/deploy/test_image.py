"""A bundle goes into a disk image: by debugfs and by the kernel alike, into nothing that is not sound, whole or not at
all. The images are made by sfdisk and mke2fs; e2fsck and the kernel say whether what we left is right."""

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
    said = []
    image.deploy(bundle, file, settings, said.append, kernel=kernel)
    return "\n".join(said)


def e2fsck(path, offset=OFFSET, *options):
    command = ["e2fsck", "-f", *(options or ["-n"]), f"{path}?offset={offset}"]
    return subprocess.run(command, env={**os.environ, "PATH": PATH}, capture_output=True, text=True)


def run(*command):
    subprocess.run(command, env={**os.environ, "PATH": PATH}, check=True, capture_output=True)


def seen_by_the_kernel(path, tmp_path, offset=OFFSET, size=SIZE_MB << 20):
    """{path in the file system: what it is}, through a loop mount that is only read."""
    folder = tmp_path / "mounted"
    folder.mkdir(exist_ok=True)
    script = """
import hashlib, json, os, sys
found = {}
for top, folders, files in os.walk(sys.argv[1]):
    for name in folders + files:
        p = os.path.join(top, name)
        s = os.lstat(p)
        what = os.readlink(p) if os.path.islink(p) else ""
        if os.path.isfile(p) and not os.path.islink(p):
            what = hashlib.sha256(open(p, "rb").read()).hexdigest()
        found[p[len(sys.argv[1]):]] = [s.st_mode, s.st_uid, s.st_gid, s.st_nlink, int(s.st_mtime), what]
print(json.dumps(found))
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
    """The registry's answer is a wheel made here; the device package's own wheel is real, and made once."""
    (tmp_path / "wheels").mkdir()
    found, own = [drone_root.wheel(tmp_path / "wheels")], wheels.device_wheel(tmp_path / "wheels")
    monkeypatch.setattr(wheels, "device_wheel", lambda folder: own)
    monkeypatch.setattr(wheels, "fetch", lambda python, extras: (Path("pip.whl"), found))


@ROOT
def test_debugfs_and_the_kernel_leave_the_same_and_nothing_else_changes(drone, bundle, tmp_path, fake_registry):
    before, begun = seen_by_the_kernel(drone, tmp_path), int(time.time())
    second = drone_root.bundle(tmp_path / "second.epb", counter=6)
    after = {}
    for kernel in (False, True):
        file = tmp_path / f"{kernel}.img"
        shutil.copy(drone, file)
        said = deploy(bundle, file, DeploySettings(source="camera:0", precision="fp32"), kernel=kernel)
        assert ("loop mount" if kernel else "debugfs, without root") in said
        assert "every file has its SHA-256" in said and "partition 1 APP" in said
        deploy(second, file, DeploySettings(keep=2), kernel=kernel)
        assert e2fsck(file).returncode == 0 and e2fsck(file, OFFSET + (SIZE_MB << 20)).returncode == 0
        after[kernel] = seen_by_the_kernel(file, tmp_path)
        for entry in after[kernel].values():
            entry[4] = "now" if entry[0] & 0o040000 and entry[4] >= begun else entry[4]
        for release in ("first", "second"):  # what tells the time of the deployment may differ
            folder = f"/opt/edgeprune/releases/{(bundle if release == 'first' else second).sha256[:16]}/release.json"
            assert after[kernel].pop(folder)[:5] == [0o100644, 1000, 1000, 1, 1795390800]
        outside = file.read_bytes()
        assert outside[:OFFSET] == drone.read_bytes()[:OFFSET]
        assert outside[OFFSET + (SIZE_MB << 20) :] == drone.read_bytes()[OFFSET + (SIZE_MB << 20) :]
    new = {path: entry for path, entry in after[False].items() if path not in before}
    assert len(new) > 60 and {path: after[True].get(path) for path in new} == new
    assert after[True].keys() == after[False].keys()
    for path, entry in before.items():  # folders got entries, and with them another time and number of links
        for found in after.values():
            same = entry == found[path] or (entry[0] & 0o040000 and entry[:3] == found[path][:3])
            assert same, path
    assert new["/opt/edgeprune/current"] == [0o120777, 1000, 1000, 1, 1795390800, f"releases/{second.sha256[:16]}"]
    assert new[f"/opt/edgeprune/releases/{bundle.sha256[:16]}/bundle.epb"][5] == bundle.sha256
    assert new["/usr/local/bin/edgeprune"][:3] == [0o120777, 0, 0]
    assert new["/etc/systemd/system/edgeprune.service"][:3] == [0o100644, 0, 0]


@ROOT
def test_without_root_nothing_is_missing(drone, bundle, tmp_path):
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/"):
            path.chmod(path.stat().st_mode | 0o555)
    for path in (tmp_path / "home", *(tmp_path / "home").rglob("*"), drone, tmp_path):
        os.chown(path, 65534, 65534)
    said = drone_root.as_nobody(lambda: deploy(bundle, drone, kernel=None))
    assert "written by debugfs, without root" in said, said
    found = seen_by_the_kernel(drone, tmp_path)
    release = f"/opt/edgeprune/releases/{bundle.sha256[:16]}"
    assert found[release][:3] == [0o040755, 1000, 1000] and found["/etc/edgeprune"][:3] == [0o040755, 0, 0]
    assert found[f"{release}/bundle.epb"][5] == bundle.sha256


KINDS = {
    "blocks of 1 KiB": ("-b", "1024"),
    "blocks of 2 KiB": ("-b", "2048"),
    "blocks of 4 KiB": ("-b", "4096"),
    "as old tools made it": ("-O", "^metadata_csum,^64bit,^huge_file", "-I", "128"),
    "without a journal": ("-O", "^has_journal"),
    "folders without an index": ("-O", "^dir_index"),
    "on a disk that tells of no holes": ("-b", "1024"),
}


@ROOT
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_that_were_there_stay_whatever_the_file_system_is_like(
    tmp_path, fake_registry, monkeypatch, kernel, kind
):
    """Also where blocks of the new files are zeros, and the free blocks are not."""
    root = drone_root.tree(tmp_path / "root")
    for number in range(200):  # neighbours for every new block
        (root / f"home/pilot/{number}").write_bytes(os.urandom(1 + number * 37))
    file = drone_root.ext4(root, tmp_path / "bare.ext4", 24, *KINDS[kind])
    # What was deleted once lies in the free blocks still.
    script = "".join(f"rm /home/pilot/{number}\n" for number in range(0, 200, 3))
    (tmp_path / "script").write_text(script)
    run("debugfs", "-w", "-f", str(tmp_path / "script"), str(file))
    assert e2fsck(file, 0).returncode == 0
    before = seen_by_the_kernel(file, tmp_path, 0, 24 << 20)
    if "no holes" in kind:
        monkeypatch.setattr(overlay, "_data", lambda descriptor: [(0, os.fstat(descriptor).st_size)])
    content = os.urandom(5000) + bytes(200_000) + os.urandom(3000) + bytes(9000)
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
    assert "already; nothing was changed" in deploy(bundle, drone, DeploySettings())
    assert sha256(drone) == before


def test_a_dry_run_changes_no_byte_and_leaves_nothing_beside(drone, bundle, tmp_path):
    before = sha256(drone), sorted(tmp_path.iterdir())
    drone.chmod(0o444)
    assert "would get release" in deploy(bundle, drone, replace(BARE, dry_run=True))
    assert (sha256(drone), sorted(tmp_path.iterdir())) == before


def test_former_releases_go_and_their_room_comes_back(drone, tmp_path):
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
def test_names_with_spaces_quotes_and_worse_are_only_names(drone, bundle, place, kernel):
    deploy(bundle, drone, replace(BARE, root=PurePosixPath(place)), kernel=kernel)
    with open(drone, "rb") as stream:
        root = debugfs.FileSystem(debugfs.Place(stream.fileno(), OFFSET, "drone"))
        assert root.lstat(f"{place}/current").target == f"releases/{bundle.sha256[:16]}"
        assert root.sha256(f"{place}/releases/{bundle.sha256[:16]}/bundle.epb") == bundle.sha256


@pytest.mark.parametrize("place", ["/opt/a\nb", "/opt/a\x1b[0m", "/opt/" + "x" * 4100])
def test_names_that_no_script_can_hold_are_refused(drone, bundle, place):
    before = sha256(drone)
    with pytest.raises(InputError) as caught:
        deploy(bundle, drone, replace(BARE, root=PurePosixPath(place)))
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert sha256(drone) == before


# --- which file system is meant ---


@pytest.mark.parametrize("wanted, name", [(None, "1 APP"), ("APP_b", "2 APP_b"), ("2", "2 APP_b"), ("1", "1 APP")])
def test_app_is_meant_unless_another_is_named(drone, bundle, wanted, name):
    assert f"partition {name}:" in deploy(bundle, drone, replace(BARE, partition=wanted, dry_run=True))


@pytest.mark.parametrize("wanted", ["nothing", "A_kernel"])
def test_a_partition_that_is_not_there_or_not_ext4_is_refused_with_what_there_is(drone, bundle, wanted):
    with pytest.raises(InputError, match=r"1 APP \(ext4, 34 MB\).*3 A_kernel \(not ext4"):
        deploy(bundle, drone, replace(BARE, partition=wanted))


def test_without_the_name_app_the_only_ext4_is_taken_and_of_two_none(made, bundle, tmp_path):
    folder = made.parent
    one = drone_root.gpt(tmp_path / "one.img", [("root", SIZE_MB, folder / "app.ext4")])
    assert "partition 1 root" in deploy(bundle, one)
    parts = [("a", SIZE_MB, folder / "app.ext4"), ("b", 8, folder / "other.ext4")]
    with pytest.raises(InputError, match="not clear: give --partition"):
        deploy(bundle, drone_root.gpt(tmp_path / "two.img", parts))
    with pytest.raises(InputError, match="no such partition"):
        deploy(bundle, drone_root.gpt(tmp_path / "none.img", [("APPS", 8, None)]))


def test_a_bare_ext4_is_taken(made, bundle, tmp_path):
    path = tmp_path / "bare.ext4"
    shutil.copy(made.parent / "app.ext4", path)
    assert "ext4: release" in deploy(bundle, path)
    assert e2fsck(path, 0).returncode == 0
    with pytest.raises(InputError, match="has no partitions"):
        deploy(bundle, path, replace(BARE, partition="APP"))


@pytest.mark.parametrize("name", ["odd ?offset=0 name.img", "-n.img", 'quo"te.img', "new\nline.img"])
def test_an_image_may_have_any_name(drone, bundle, tmp_path, name):
    file = tmp_path / name
    drone.rename(file)
    deploy(bundle, file)
    file.rename(drone)
    assert e2fsck(drone).returncode == 0


# --- what is refused, before a byte is written ---


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
    """The file system says that it is larger than its partition."""
    run("debugfs", "-w", "-R", f"set_super_value blocks_count {SIZE_MB << 11}", f"{path}?offset={OFFSET}")


def filled(path):
    """Full, but for a few blocks."""
    fill = path.with_name("fill")
    with open(path, "rb") as stream:
        found = ext4.read(stream, OFFSET)
    fill.write_bytes(os.urandom((found.free_blocks - 200) * found.block_bytes))
    run("debugfs", "-w", "-R", f"write {fill} /fill", f"{path}?offset={OFFSET}")


def without_inodes(path):
    with open(path, "rb") as stream:
        free = ext4.read(stream, OFFSET).free_inodes
    script = path.with_name("script")
    script.write_text("".join(f"symlink /home/{n} x\n" for n in range(free - 5)))
    run("debugfs", "-w", "-f", str(script), f"{path}?offset={OFFSET}")


REFUSED = {
    "damaged header of the GPT": (flipped(512 + 40), "header of its GPT is damaged"),
    "damaged entries of the GPT": (flipped(1024 + 8), "entries of its GPT are damaged"),
    "cut off within the partition": (truncated(OFFSET + (10 << 20)), "is cut off: partition 1 APP"),
    "cut off within the table": (truncated(900), "cut off|neither GPT nor ext4"),
    "empty": (truncated(0), "neither GPT nor ext4"),
    "needs_recovery": (feature("needs_recovery"), "needs_recovery"),
    "errors are noted": (superblock(0x3A, 2, "<H"), "errors are noted"),
    "not cleanly unmounted": (superblock(0x3A, 0, "<H"), "not unmounted cleanly"),
    "orphans": (superblock(0xE8, 13), "not unmounted cleanly"),
    "casefold": (superblock(0x60, 0x2C2 | 0x20000), "not handled here .casefold"),
    "inline_data": (superblock(0x60, 0x2C2 | 0x8000), "not handled here .inline_data"),
    "an unknown incompatible feature": (superblock(0x60, 0x2C2 | 0x40000000), "incompat 0x40000000"),
    "an unknown read-only feature": (superblock(0x64, 0x46B | 0x80000000), "ro_compat 0x80000000"),
    "bigalloc": (superblock(0x64, 0x46B | 0x200), "bigalloc"),
    "ext3": (superblock(0x60, 0x2), "ext2 or ext3, not ext4"),
    "a superblock whose checksum is wrong": (flipped(OFFSET + 1024 + 0x78), "e2fsck reported errors"),
    "a damaged block bitmap": (superblock(0xC, 7), "e2fsck reported errors"),
    "larger than its partition": (resized, "larger than the partition"),
    "full": (filled, "MB are free, and .* MB are needed: remove something"),
    "without inodes": (without_inodes, "inodes are free"),
    "an Android sparse image": (lambda path: path.write_bytes(b"\x3a\xff\x26\xed" * 4096), "simg2img"),
    "packed": (lambda path: path.write_bytes(b"\x1f\x8b" * 4096), "packed by gzip"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_an_image_that_is_not_sound_is_refused_before_a_byte_is_written(drone, tmp_path, case, kernel):
    change, told = REFUSED[case]
    change(drone)
    before = sha256(drone)
    bundle = drone_root.bundle(tmp_path / "tiny.epb", size=1_000_000)
    with pytest.raises(InputError, match=told) as caught:
        deploy(bundle, drone, kernel=kernel)
    assert "\n" not in str(caught.value) and str(drone) in str(caught.value)
    assert sha256(drone) == before and not (tmp_path / ".drone.img.edgeprune").exists()


@ROOT
@pytest.mark.parametrize("mounted", [False, True])
def test_an_image_that_is_in_use_as_a_loop_device_is_refused(drone, bundle, tmp_path, mounted):
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


def test_an_image_that_a_virtual_machine_or_another_deployment_has_is_refused(drone, bundle):
    import fcntl

    with open(drone, "r+b") as stream:
        lock = struct.pack("hhqqixxxx", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)  # as qemu does
        fcntl.fcntl(stream, fcntl.F_OFD_SETLK, lock)
        with pytest.raises(InputError, match="in use, by another deployment or a virtual machine"):
            deploy(bundle, drone)
    deploy(bundle, drone)


def test_a_device_or_a_fifo_is_no_image(bundle, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="is not a file"):
        deploy(bundle, tmp_path / "fifo")


def test_an_image_without_a_root_file_system_is_refused(bundle, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match="no etc and usr"):
        deploy(bundle, drone_root.ext4(tmp_path / "data", tmp_path / "data.ext4", 8))


def test_where_the_hosts_disk_has_no_room_nothing_is_begun(drone, bundle, monkeypatch):
    real = os.statvfs

    def full(path):
        found = real(path)
        return os.statvfs_result((*found[:4], 10, *found[5:]))

    monkeypatch.setattr(os, "statvfs", full)
    with pytest.raises(InputError, match="are needed there meanwhile"):
        deploy(bundle, drone)


# --- whole or not at all ---


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_what_the_writer_did_wrong_never_reaches_the_image(drone, bundle, monkeypatch, kernel):
    """A fake of a fault: the tail of the bundle is lost, as debugfs loses it on a full file system."""
    real = image._verify
    before = sha256(drone)

    def broken(place, plan):
        found = next(entry for entry in plan.entries if entry.path.endswith("bundle.epb"))
        with open(os.dup(place.descriptor), "r+b") as stream:
            stream.seek(0)
            content = stream.read()
            where = content.index(found.content.read_bytes()[30_000:34_000])
            stream.seek(where)
            stream.write(bytes(4000))
        real(place, plan)

    monkeypatch.setattr(image, "_verify", broken)
    with pytest.raises(GateError, match=r"1 things are not as they were written .*bundle.epb: has other content"):
        deploy(bundle, drone, kernel=kernel)
    assert sha256(drone) == before


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_a_bundle_that_changes_after_it_was_verified_never_reaches_the_image(drone, bundle, kernel):
    before, data = sha256(drone), bytearray(bundle.path.read_bytes())
    data[-1] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises((GateError, InputError), match=r"bundle.epb: has other content|changed while it was deployed"):
        deploy(bundle, drone, kernel=kernel)
    assert sha256(drone) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_within_the_last_step_is_undone(drone, bundle, tmp_path, monkeypatch, error):
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
    """A deployment that is killed by -9 before the `number`th write to the image; whether it came so far."""
    child = os.fork()
    if child == 0:
        real, left, itself = os.pwrite, [number], os.open(file, os.O_RDONLY)

        def counted(*args):
            left[0] -= os.path.sameopenfile(args[0], itself)
            if left[0] < 0:
                real(args[0], args[1][: len(args[1]) // 3 // 512 * 512], args[2])  # a write that is cut within
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args)

        os.pwrite = counted
        deploy(bundle, file)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_at_each_write_to_the_image_the_next_run_gives_it_back_byte_for_byte(drone, bundle, tmp_path):
    before, number = sha256(drone), 0
    old = drone_root.bundle(tmp_path / "old.epb", counter=1)
    while _killed(bundle, drone, number):
        assert number == 0 or sha256(drone) != before
        with pytest.raises(InputError, match="was killed; the next one without --dry-run"):
            deploy(old, drone, replace(BARE, dry_run=True))
        assert "no such partition" in str(_refused(old, drone))
        assert sha256(drone) == before, number
        number += 1
    assert number >= 8
    assert e2fsck(drone).returncode == 0 and sha256(drone) != before


def _refused(bundle, file):
    """What a run says that repairs, and goes no further."""
    with pytest.raises(InputError) as caught:
        deploy(bundle, file, replace(BARE, partition="nothing"))
    return caught.value


@pytest.mark.parametrize("kernel", [False, pytest.param(True, marks=ROOT)])
def test_killed_at_any_moment_the_image_is_the_old_or_the_next_run_makes_it_so(drone, tmp_path, fake_registry, kernel):
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
        while "is in use" in (told := str(_refused(bundle, drone))):  # by a program of it that has not ended yet
            time.sleep(0.05)
        assert "no such partition" in told
        assert e2fsck(drone).returncode == 0
        if sha256(drone) != before:
            assert "already; nothing was changed" in deploy(bundle, drone, DeploySettings(), kernel)
            whole += 1
            break
    done = deploy(bundle, drone, DeploySettings(), kernel)
    assert e2fsck(drone).returncode == 0 and ("SHA-256" in done or whole)
    assert not [p for p in Path("/sys/block").glob("loop*/loop/backing_file") if str(tmp_path) in p.read_text()]


def test_an_image_that_was_used_after_a_kill_is_left_alone(drone, bundle, tmp_path):
    assert _killed(bundle, drone, 4)
    run("debugfs", "-w", "-R", "set_super_value mtime 12345", f"{drone}?offset={OFFSET}")
    before = sha256(drone)
    with pytest.raises(InputError, match=r"it was changed since.*remove .*\.drone\.img\.edgeprune"):
        deploy(bundle, drone)
    assert sha256(drone) == before


def test_the_drones_own_code_reads_what_was_written(drone, bundle, tmp_path):
    """What debugfs takes out of the image again is a deployment as `edgeprune run` takes it."""
    deploy(bundle, drone)
    run("debugfs", "-R", f"rdump /opt {tmp_path}", f"{drone}?offset={OFFSET}")
    found = Releases(tmp_path / "opt/edgeprune")
    assert found.open(found.current()).sha256 == bundle.sha256 and found.current().state == "trial"


def test_the_command_says_what_went_in_and_how_it_was_verified(drone, bundle, capsys):
    assert cli.main(["deploy", str(bundle.path), str(drone), "--no-agent"]) == 0
    said = capsys.readouterr().err
    assert f"release {bundle.sha256[:16]} (tiny): 5 files, 4 folders, 1 links" in said
    assert "e2fsck reports no error" in said
    assert cli.main(["deploy", str(bundle.path), str(drone), "--no-agent", "--partition", "kernel"]) == 2
    assert "no such partition: give --partition" in capsys.readouterr().err
