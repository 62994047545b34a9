"""A disk image of a drone: GPT with an ext4 partition APP, as in L4T, or a bare ext4 file system in a file.

The image is examined before anything is written: an image that is in use, damaged, dirty or full, or that has unknown
features, is refused. Then all changes are made in an `Overlay` beside it, where e2fsck checks them and every file is
read back. One short step copies them into the image; a journal undoes it after an interruption. With root the kernel
writes (a loop mount), without root debugfs does. Both give the same files, owners, modes, links and times.
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
from typing import BinaryIO

from edgeprune_device.errors import GateError, InputError, reason
from edgeprune_device.option import named
from edgeprune_device.progress import Say
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DeploySettings, agent, debugfs, ext4, gpt, mount, overlay, tree
from edgeprune.drones.deploy.debugfs import FileSystem, Place
from edgeprune.drones.deploy.ext4 import Superblock
from edgeprune.drones.deploy.tree import TreePlan

__all__ = ["ImageFileSystem", "deploy", "target"]

_NAME = "APP"
_JOURNAL = "journal"
_SPARE_BYTES = 64 << 20
#: The first bytes of files that are not raw images, and advice.
_OTHERS = {
    b"\x3a\xff\x26\xed": "an Android sparse image; convert the image with simg2img (L4T has system.img.raw beside it)",
    b"\x1f\x8b": "compressed with gzip; unpack the image first",
    b"\xfd7zXZ\0": "compressed with xz; unpack the image first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack the image first",
    b"BZh": "compressed with bzip2; unpack the image first",
    b"PK\x03\x04": "a zip archive; unpack the image first",
    b"QFI\xfb": "a qcow2 image; convert the image with qemu-img convert -O raw",
    b"hsqs": "a squashfs, which is read-only",
}


@dataclass(frozen=True)
class ImageFileSystem:
    """The file system in an image.

    Attributes:
        name: Its name in messages, such as "partition 1 APP".
        offset_bytes: Its beginning in the image.
        superblock: Its superblock.
    """

    name: str
    offset_bytes: int
    superblock: Superblock


def deploy(bundle: Bundle, file: Path, settings: DeploySettings, say: Say, *, kernel: bool | None = None) -> None:
    """Put `bundle` into the image `file`; with settings.dry_run only print the steps.

    Args:
        bundle: The bundle.
        file: The image.
        settings: The settings of the deployment.
        say: Called with the progress, as text.
        kernel: True: write through a loop mount. False: write through debugfs. None: use a loop mount if possible, else
            debugfs.

    Raises:
        InputError: The image cannot be deployed to; it is unchanged, byte for byte.
        GateError: The new content failed its checks; the image is unchanged, byte for byte.
    """
    file = file.resolve()
    with _opened(file, settings) as descriptor:
        work = file.parent / f".{file.name}.edgeprune"
        _repair(descriptor, file, work, settings, say)
        file_system = target(descriptor, str(file), settings.partition)
        where = f"{file}: {file_system.name}"
        place = Place(descriptor, file_system.offset_bytes, where)
        _check_clean(place, file_system.superblock)
        root = FileSystem(place)
        if not {"etc", "usr"} <= set(root.names("/")):
            raise InputError(
                f"{where}: not a root file system (expected the folders etc and usr); select another "
                f"partition with {named('partition')}"
            )
        plan = tree.plan(root, bundle, settings, agent=agent.files(root, settings, say))
        say(f"{where}: {settings.root} belongs to {plan.owner}, everything else to root")
        for line in plan.notes:
            say(f"{where}: {line}")
        _check_room(where, file, file_system.superblock, plan)
        if settings.dry_run:
            say(f"{where}: would write {plan.described()}")
            return
        if not plan.entries and not plan.removed:
            say(f"{where}: {plan.described().split(':')[0]} is already complete; nothing was changed")
            return
        try:
            work.mkdir(mode=0o700)
        except OSError as error:
            raise InputError(f"{work}: cannot be created ({reason(error)})") from error
        try:
            how = _prepare(place, root, plan, work, file_system.superblock.block_bytes, kernel, say)
            changed = _bring(descriptor, place, plan, work)
        finally:
            if not (work / _JOURNAL).exists():  # else the image is not restored yet, and the next run restores it
                shutil.rmtree(work, ignore_errors=True)
    say(f"{where}: {plan.described()}; written by {how}, {changed / 1e6:.1f} MB of the image changed")
    say(f"{where}: e2fsck reports no errors; every file was read back, and its SHA-256, owner, mode and time match")


def target(descriptor: int, what: str, wanted: str | None) -> ImageFileSystem:
    """The file system to deploy to: partition `wanted`, else the one named APP, else the only ext4.

    Args:
        descriptor: The open image.
        what: Begins the message of an error.
        wanted: The name or the number of a partition, or None.

    Raises:
        InputError: There is no such partition, or the choice is ambiguous.
    """
    with open(os.dup(descriptor), "rb") as stream:
        partitions = gpt.read(stream, what)
        if partitions is None:
            return _bare(stream, what, wanted)
        blocks = {partition: ext4.read(stream, partition.offset_bytes) for partition in partitions}
    listed = ", ".join(f"{p} ({'ext4' if blocks[p] else 'not ext4'}, {p.size_bytes / 1e6:.0f} MB)" for p in partitions)
    default = [p for p in partitions if p.name == _NAME]
    if wanted is not None:
        chosen = [p for p in partitions if wanted in (p.name, str(p.number))]
    else:
        chosen = default or [p for p in partitions if blocks[p]]
    if len(chosen) != 1:
        why = "ambiguous partition" if len(chosen) > 1 else "no such partition"
        raise InputError(
            f"{what}: {why} (found {listed or 'no partition'}); give {named('partition')} with a name or a number"
        )
    (partition,) = chosen
    superblock = blocks[partition]
    if superblock is None:
        raise InputError(f"{what}: partition {partition}: not ext4 (found {listed}); give another {named('partition')}")
    if superblock.size_bytes > partition.size_bytes:
        raise InputError(f"{what}: the file system of partition {partition} is larger than the partition")
    return ImageFileSystem(f"partition {partition}", partition.offset_bytes, superblock)


def _bare(stream: BinaryIO, what: str, wanted: str | None) -> ImageFileSystem:
    superblock = ext4.read(stream, 0)
    total = stream.seek(0, os.SEEK_END)
    if superblock is None:
        stream.seek(0)
        head = stream.read(16)
        kind = next((text for magic, text in _OTHERS.items() if head.startswith(magic)), None)
        raise InputError(f"{what}: not a supported disk image (found {kind or 'neither GPT nor ext4'})")
    if wanted is not None:
        raise InputError(f"{what}: no partitions in this image; leave out {named('partition', wanted)}")
    if superblock.size_bytes > total:
        raise InputError(
            f"{what}: cut off (found {total} bytes, expected {superblock.size_bytes}); copy the image again"
        )
    return ImageFileSystem("ext4", 0, superblock)


# --- before ----------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path, settings: DeploySettings) -> Iterator[int]:
    """The image, open and locked."""
    try:
        descriptor = os.open(file, os.O_RDONLY if settings.dry_run else os.O_RDWR)
    except OSError as error:
        raise InputError(f"{file}: cannot be opened ({reason(error)})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{file}: not a file; deploy to an image file, then write the image to the card")
        if user := _loop(descriptor):
            raise InputError(f"{file}: in use as {user}; unmount the image, then run losetup -d {user}")
        _lock(descriptor, file, fcntl.F_RDLCK if settings.dry_run else fcntl.F_WRLCK)
        yield descriptor
    finally:
        os.close(descriptor)


def _loop(descriptor: int) -> str | None:
    """The loop device that uses this file, or None."""
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
    """Lock the open file, as qemu does, against other deployments and virtual machines."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqixxxx", kind, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise InputError(
                f"{file}: in use by another deployment or a virtual machine; stop the other program"
            ) from error
        if error.errno not in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP):  # some network file systems have no locks
            raise


def _repair(descriptor: int, file: Path, work: Path, settings: DeploySettings, say: Say) -> None:
    """Undo the changes of a run that was killed."""
    if not work.exists():
        return
    if settings.dry_run:
        raise InputError(
            f"{file}: an earlier deployment was killed; deploy without {named('dry_run')} to restore the image"
        )
    if work.lstat().st_uid != os.geteuid() or not work.is_dir() or work.is_symlink():
        raise InputError(
            f"{work}: left by another user's killed deployment; that user must deploy again or remove the folder"
        )
    if (work / _JOURNAL).exists():
        overlay.undo(descriptor, work / _JOURNAL, str(file))
        say(f"{file}: an earlier deployment was killed during its last step; the image has been restored")
    shutil.rmtree(work)


def _check_clean(place: Place, superblock: Superblock) -> None:
    if obstacle := superblock.obstacle():
        raise InputError(f"{place.what}: {obstacle}")
    if wrong := debugfs.check(place):
        raise InputError(f"{place.what}: e2fsck reported errors ({wrong}); repair a copy with e2fsck -f")


def _check_room(where: str, file: Path, superblock: Superblock, plan: TreePlan) -> None:
    """Check the room in the file system, and beside the image for the overlay and the journal."""
    block = superblock.block_bytes
    blocks, inodes = 0.0, 16
    for entry in plan.entries:
        name = entry.path.rpartition("/")[2].encode("utf-8", "surrogateescape")
        blocks += -(-entry.size_bytes // block) + 1 + (len(name) + 12) / block
        inodes += 1
    # The kernel reserves up to 4,096 blocks; folders grow by whole blocks.
    blocks = int(blocks * 1.01) + 64 + min(superblock.blocks // 50, 4096)
    if blocks * block > superblock.usable_bytes:
        raise InputError(
            f"{where}: too little free space ({superblock.usable_bytes / 1e6:.1f} MB free, {blocks * block / 1e6:.1f} "
            "MB needed); remove files, or enlarge the file system (resize2fs)"
        )
    if inodes > superblock.free_inodes:
        raise InputError(f"{where}: too few free inodes ({superblock.free_inodes} free, {inodes} needed); remove files")
    disk = os.statvfs(file.parent)
    free, needed = disk.f_bavail * disk.f_frsize, 4 * plan.size_bytes + _SPARE_BYTES
    if free < needed:
        raise InputError(
            f"{file.parent}: too little free space for temporary files ({free / 1e6:.0f} MB free, {needed / 1e6:.0f} "
            "MB needed); free some space"
        )


# --- the work --------------------------------------------------------------------------------------------------------


def _prepare(
    place: Place, root: FileSystem, plan: TreePlan, work: Path, block_bytes: int, kernel: bool | None, say: Say
) -> str:
    """Prepare the change of the image in work/journal; return a description of the writer."""
    copy = overlay.Overlay(work, place, block_bytes)
    try:
        how = "the kernel through a loop mount"
        try:
            if kernel is False:
                raise mount.CannotMount("debugfs requested")
            mount.write(copy.place, plan)
        except mount.CannotMount as error:
            if kernel:
                raise InputError(f"{place.what}: cannot be mounted ({error})") from error
            if kernel is None and os.geteuid() == 0:
                say(f"{place.what}: cannot be mounted ({error}); writing with debugfs")
            debugfs.write(copy.place, root, plan)
            how = "debugfs, without root"
        _verify(copy.place, plan)
        held = debugfs.blocks(copy.place, [entry.path for entry in plan.entries if entry.kind == tree.FILE])
        try:
            overlay.write_journal(work / _JOURNAL, copy.changes(held))
        except OSError as error:
            raise InputError(f"{work}: {reason(error)}") from error
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
            raise InputError(f"{place.what}: cannot be written ({reason(error)})") from error
        raise
    journal.unlink()  # the deployment is now final, even if this run is killed
    return changed


def _verify(place: Place, plan: TreePlan) -> None:
    if wrong := debugfs.check(place):
        raise GateError(f"{place.what}: e2fsck reported errors in the new content ({wrong}); nothing was changed")
    different = tree.differences(FileSystem(place), plan)
    if different:
        raise GateError(
            f"{place.what}: {len(different)} entries differ after writing ({different[0]}), so the image was not "
            "changed; check the disk"
        )
