"""A disk image of a drone: GPT with an ext4 partition APP, as in L4T, or a bare ext4 file system in a file.

The image is examined before anything is written: one that is in use, damaged, dirty, full, or has unknown features is
refused. Then all changes are made in an `Overlay` beside it, checked there by e2fsck and by reading every file back,
and brought into the image in one short step, which a journal undoes if it is cut off. With root the kernel writes (a
loop mount), without root debugfs does. Both give the same files, owners, modes, links and times.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgeprune_device.errors import GateError, InputError
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DeploySettings, agent, debugfs, ext4, gpt, mount, overlay, tree
from edgeprune.drones.deploy.debugfs import FileSystem, Place
from edgeprune.drones.deploy.ext4 import Superblock
from edgeprune.drones.deploy.tree import Say, TreePlan

__all__ = ["ImageFileSystem", "deploy", "target"]

_NAME = "APP"
_JOURNAL = "journal"
_SPARE_BYTES = 64 << 20
#: The first bytes of files that are no raw images, and advice.
_OTHERS = {
    b"\x3a\xff\x26\xed": "an Android sparse image: simg2img makes it raw (L4T keeps system.img.raw beside)",
    b"\x1f\x8b": "packed by gzip: unpack it first",
    b"\xfd7zXZ\0": "packed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it first",
    b"BZh": "packed by bzip2: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"QFI\xfb": "a qcow2 image: qemu-img convert -O raw makes it raw",
    b"hsqs": "a squashfs, which cannot be written to",
}


@dataclass(frozen=True)
class ImageFileSystem:
    """The file system in an image.

    Attributes:
        name: In messages, such as "partition 1 APP".
        offset_bytes: Its beginning in the image.
        superblock: Its superblock.
    """

    name: str
    offset_bytes: int
    superblock: Superblock


def deploy(bundle: Bundle, file: Path, settings: DeploySettings, say: Say, *, kernel: bool | None = None) -> None:
    """Put `bundle` into the image `file`; with settings.dry_run only tell what would be done.

    Args:
        bundle: The bundle.
        file: The image.
        settings: The settings of the deployment.
        say: Called with the progress, as text.
        kernel: True: write through a loop mount. False: write through debugfs. None: the former where it is possible.

    Raises:
        InputError: The image cannot be deployed to; it is as before, byte for byte.
        GateError: The new content failed its checks; the image is as before, byte for byte.
    """
    file = file.resolve()
    with _opened(file, settings) as descriptor:
        work = file.parent / f".{file.name}.edgeprune"
        _repair(descriptor, file, work, settings, say)
        found = target(descriptor, str(file), settings.partition)
        where = f"{file}: {found.name}"
        place = Place(descriptor, found.offset_bytes, where)
        _check_clean(place, found.superblock)
        root = FileSystem(place)
        if not {"etc", "usr"} <= set(root.names("/")):
            raise InputError(f"{where}: is not a root file system: it has no etc and usr")
        plan = tree.plan(root, bundle, settings, agent=agent.files(root, settings, say))
        say(f"{where}: what is below {settings.root} belongs to {plan.owner}, the rest to root")
        for line in plan.told:
            say(f"{where}: {line}")
        _check_room(where, file, found.superblock, plan)
        if settings.dry_run:
            say(f"{where}: would get {plan.described()}")
            return
        if not plan.entries and not plan.removed:
            say(f"{where}: has all of {plan.described().split(':')[0]} already; nothing was changed")
            return
        try:
            work.mkdir(mode=0o700)
        except OSError as error:
            raise InputError(f"{work}: cannot be made ({str(error.strerror).lower()})") from error
        try:
            how = _prepare(place, root, plan, work, found.superblock.block_bytes, kernel, say)
            changed = _bring(descriptor, place, plan, work)
        finally:
            if not (work / _JOURNAL).exists():  # else the image was not restored: the next run does it
                shutil.rmtree(work, ignore_errors=True)
    say(f"{where}: {plan.described()}; written by {how}, {changed / 1e6:.1f} MB of the image changed")
    say(f"{where}: e2fsck reports no error; read back from the image, every file has its SHA-256, owner, mode and time")


def target(descriptor: int, what: str, wanted: str | None) -> ImageFileSystem:
    """The file system to deploy to: partition `wanted`, else the one named APP, else the only ext4.

    Args:
        descriptor: The open image.
        what: Begins the message of an error.
        wanted: The name or the number of a partition, or None.

    Raises:
        InputError: There is none, or the choice is ambiguous.
    """
    with open(os.dup(descriptor), "rb") as stream:
        partitions = gpt.read(stream, what)
        if partitions is None:
            return _bare(stream, what, wanted)
        blocks = {partition: ext4.read(stream, partition.offset_bytes) for partition in partitions}
    listed = ", ".join(f"{p} ({'ext4' if blocks[p] else 'not ext4'}, {p.size_bytes / 1e6:.0f} MB)" for p in partitions)
    named = [p for p in partitions if p.name == _NAME]
    if wanted is not None:
        chosen = [p for p in partitions if wanted in (p.name, str(p.number))]
    else:
        chosen = named or [p for p in partitions if blocks[p]]
    if len(chosen) != 1:
        why = "which partition is meant is not clear" if len(chosen) > 1 else "no such partition"
        raise InputError(f"{what}: {why}: give --partition, a name or a number; there are {listed or 'none at all'}")
    (partition,) = chosen
    superblock = blocks[partition]
    if superblock is None:
        raise InputError(f"{what}: partition {partition} is not ext4; there are {listed}")
    if superblock.size_bytes > partition.size_bytes:
        raise InputError(f"{what}: the file system of partition {partition} is larger than the partition")
    return ImageFileSystem(f"partition {partition}", partition.offset_bytes, superblock)


def _bare(stream, what: str, wanted: str | None) -> ImageFileSystem:
    superblock = ext4.read(stream, 0)
    total = stream.seek(0, os.SEEK_END)
    if superblock is None:
        stream.seek(0)
        head = stream.read(16)
        kind = next((text for magic, text in _OTHERS.items() if head.startswith(magic)), None)
        raise InputError(f"{what}: is {kind or 'no disk image that is known here: neither GPT nor ext4'}")
    if wanted is not None:
        raise InputError(f"{what}: has no partitions, and --partition {wanted} was given")
    if superblock.size_bytes > total:
        raise InputError(f"{what}: is cut off: its file system has {superblock.size_bytes} bytes, the file {total}")
    return ImageFileSystem("ext4", 0, superblock)


# --- before ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path, settings: DeploySettings) -> Iterator[int]:
    """The image, open and locked."""
    try:
        descriptor = os.open(file, os.O_RDONLY if settings.dry_run else os.O_RDWR)
    except OSError as error:
        raise InputError(f"{file}: cannot be opened ({str(error.strerror).lower()})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{file}: is not a file; write the image to the card after the deployment")
        if user := _loop(descriptor):
            raise InputError(f"{file}: is in use as {user}: unmount it, and losetup -d {user}")
        _lock(descriptor, file, fcntl.F_RDLCK if settings.dry_run else fcntl.F_WRLCK)
        yield descriptor
    finally:
        os.close(descriptor)


def _loop(descriptor: int) -> str | None:
    """The loop device that shows this file; None where there is none."""
    mine = os.fstat(descriptor)
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            theirs = os.stat(path.read_text().rstrip("\n"))
        except OSError:
            continue
        if (theirs.st_dev, theirs.st_ino) == (mine.st_dev, mine.st_ino):
            return f"/dev/{path.parts[3]}"
    return None


def _lock(descriptor: int, file: Path, kind: int) -> None:
    """Lock the open file, as qemu does: against another deployment, and a machine that runs from it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqixxxx", kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InputError(f"{file}: is in use, by another deployment or a virtual machine") from error
        if error.errno not in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):  # some network file systems have none
            raise


def _repair(descriptor: int, file: Path, work: Path, settings: DeploySettings, say: Say) -> None:
    """Undo the changes of a run that was killed."""
    if not work.exists():
        return
    if settings.dry_run:
        raise InputError(f"{file}: a deployment into it was killed; the next one without --dry-run repairs that")
    if work.lstat().st_uid != os.geteuid() or not work.is_dir() or work.is_symlink():
        raise InputError(f"{work}: is not this user's: whose deployment was killed there runs it again, or removes it")
    if (work / _JOURNAL).exists():
        overlay.undo(descriptor, work / _JOURNAL, str(file))
        say(f"{file}: a deployment into it was killed within its last step; the image is again what it was before")
    shutil.rmtree(work)


def _check_clean(place: Place, superblock: Superblock) -> None:
    if obstacle := superblock.obstacle():
        raise InputError(f"{place.what}: {obstacle}")
    if wrong := debugfs.check(place):
        raise InputError(f"{place.what}: e2fsck reported errors ({wrong}); repair a copy with e2fsck -f")


def _check_room(where: str, file: Path, superblock: Superblock, plan: TreePlan) -> None:
    """Check the room in the file system, and beside the image for the overlay and the journal."""
    block = superblock.block_bytes
    blocks, inodes = 0, 16
    for entry in plan.entries:
        name = entry.path.rpartition("/")[2].encode("utf-8", "surrogateescape")
        blocks += -(-entry.size_bytes // block) + 1 + (len(name) + 12) / block
        inodes += 1
    # The kernel keeps up to 4,096 blocks for itself; folders grow by whole blocks.
    blocks = int(blocks * 1.01) + 64 + min(superblock.blocks // 50, 4096)
    if blocks * block > superblock.usable_bytes:
        raise InputError(
            f"{where}: {superblock.usable_bytes / 1e6:.1f} MB are free, and {blocks * block / 1e6:.1f} MB are needed: "
            "remove something, or make the file system larger (resize2fs)"
        )
    if inodes > superblock.free_inodes:
        raise InputError(f"{where}: {superblock.free_inodes} inodes are free, and {inodes} are needed")
    found = os.statvfs(file.parent)
    free, needed = found.f_bavail * found.f_frsize, 4 * plan.size_bytes + _SPARE_BYTES
    if free < needed:
        raise InputError(
            f"{file.parent}: {free / 1e6:.0f} MB are free, and {needed / 1e6:.0f} MB are needed there meanwhile"
        )


# --- the work --------------------------------------------------------------------------------------------------------


def _prepare(
    place: Place, root: FileSystem, plan: TreePlan, work: Path, block_bytes: int, kernel: bool | None, say: Say
) -> str:
    """Do everything but the change of the image, which work/journal then holds; return the way of writing, as text."""
    copy = overlay.Overlay(work, place, block_bytes)
    try:
        how = "the kernel through a loop mount"
        try:
            if kernel is False:
                raise mount.CannotMount("debugfs was asked for")
            mount.write(copy.place, plan)
        except mount.CannotMount as error:
            if kernel:
                raise InputError(f"{place.what}: cannot be mounted ({error})") from error
            if kernel is None and os.geteuid() == 0:
                say(f"{place.what}: cannot be mounted ({error}); debugfs writes")
            debugfs.write(copy.place, root, plan)
            how = "debugfs, without root"
        _verify(copy.place, plan)
        held = debugfs.blocks(copy.place, [entry.path for entry in plan.entries if entry.kind == tree.FILE])
        try:
            overlay.write_journal(work / _JOURNAL, copy.changes(held))
        except OSError as error:
            raise InputError(f"{work}: {str(error.strerror or error).lower()}") from error
        return how
    finally:
        copy.close()


def _bring(descriptor: int, place: Place, plan: TreePlan, work: Path) -> int:
    """Apply the journal to the image, and undo it if the result fails its checks; return the bytes changed."""
    journal = work / _JOURNAL
    try:
        changed = overlay.apply(descriptor, journal)
        _verify(place, plan)
    except BaseException as error:  # an interrupt, too
        overlay.undo(descriptor, journal, place.what)
        journal.unlink()
        if isinstance(error, OSError):
            raise InputError(f"{place.what}: cannot be written ({str(error.strerror or error).lower()})") from error
        raise
    journal.unlink()  # from here on the deployment counts, also if the rest of this run is cut off
    return changed


def _verify(place: Place, plan: TreePlan) -> None:
    if wrong := debugfs.check(place):
        raise GateError(f"{place.what}: e2fsck reported errors in the new content ({wrong}); nothing was changed")
    different = tree.differences(FileSystem(place), plan)
    if different:
        raise GateError(
            f"{place.what}: read back, {len(different)} things are not as they were written ({different[0]}); nothing "
            "was changed"
        )
