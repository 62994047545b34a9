"""A root file system in a folder of this host, such as L4T's rootfs/ before it becomes an image.

Every file is written under a temporary name and renamed. `current` is switched last, after everything else is on the
disk. So a killed deployment has changed no file in use, and the next one completes it. As root (or under fakeroot)
every file gets its planned owner. Otherwise all files belong to the caller, and `deploy` prints a notice.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeprune_device.errors import GateError, InputError, reason
from edgeprune_device.progress import Say
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DeploySettings, agent, tree
from edgeprune.drones.deploy.tree import Node, Root, TreeEntry, TreePlan

__all__ = ["RootFolder", "deploy", "write"]

_CHUNK_BYTES = 1 << 20
_SPARE_BYTES = 16 << 20
_KINDS = {stat.S_IFREG: tree.FILE, stat.S_IFDIR: tree.FOLDER, stat.S_IFLNK: tree.LINK}


def deploy(bundle: Bundle, folder: Path, settings: DeploySettings, say: Say) -> None:
    """Put `bundle` into the root file system in `folder`; with settings.dry_run only print the steps.

    Args:
        bundle: The bundle.
        folder: The folder.
        settings: The settings of the deployment.
        say: Called with the progress, as text.

    Raises:
        InputError: The bundle cannot be deployed; no file in use was changed.
        GateError: The written files failed their checks.
    """
    root = RootFolder(folder)
    if not {"etc", "usr"} <= set(root.names("/")):
        raise InputError(f"{folder}: not a root file system (expected the folders etc and usr)")
    with _alone(folder):
        plan = tree.plan(root, bundle, settings, agent=agent.files(root, settings, say))
        owners = os.geteuid() == 0
        if owners:
            say(f"{folder}: {settings.root} belongs to {plan.owner}, everything else to root")
        else:
            say(
                f"{folder}: without root the written files belong to you ({os.getuid()}:{os.getgid()}), not to "
                f"{plan.owner}; change the owner before you make the image, or run this command as root or under "
                "fakeroot"
            )
        for line in plan.notes:
            say(f"{folder}: {line}")
        if settings.dry_run:
            say(f"{folder}: would write {plan.described()}")
            return
        _check_room(folder, plan)
        write(folder, plan, owners=owners)
        wrong = tree.differences(root, plan, owners=owners)
        if wrong:
            raise GateError(
                f"{folder}: {len(wrong)} entries differ after writing ({wrong[0]}); check the disk, and deploy again"
            )
    say(f"{folder}: {plan.described()}; every file was read back, and its SHA-256 matches")


def write(folder: Path, plan: TreePlan, *, owners: bool) -> None:
    """Carry out the plan.

    Args:
        folder: The folder.
        plan: The plan.
        owners: Give the files their owners, which only root can.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            switches = [entry for entry in plan.entries if entry.kind == tree.LINK]
            others = [entry for entry in plan.entries if entry.kind != tree.LINK]
            for entry in others:
                _put(top, entry, owners)
            _sync(top)
            for entry in switches:
                _put(top, entry, owners)
            _sync(top)
            for path, kind in plan.removed:
                _remove(top, path, kind)
            for entry in reversed(plan.entries):
                if entry.kind == tree.FOLDER:  # its new entries have changed its time
                    with _parent(top, entry.path) as (parent, name):
                        os.utime(name, (entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)
            _sync(top)
        finally:
            os.close(top)
    except OSError as error:
        raise InputError(f"{folder}: {error.filename or ''}: {reason(error)}") from error


class RootFolder(Root):
    """A folder as a root file system. Its methods raise InputError if it cannot be read."""

    def __init__(self, folder: Path):
        self.what = str(folder)
        self._folder = folder

    def lstat(self, path: str) -> Node | None:
        """See `Root`."""
        here = self._here(path)
        try:
            status = os.lstat(here)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._explained(error) from error
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "other")
        target = os.readlink(here) if kind == tree.LINK else None
        mode = stat.S_IMODE(status.st_mode)
        return Node(kind, mode, status.st_uid, status.st_gid, status.st_size, int(status.st_mtime), target)

    def names(self, path: str) -> list[str]:
        """See `Root`."""
        try:
            return os.listdir(self._here(path))
        except OSError as error:
            raise self._explained(error) from error

    def chunks(self, path: str) -> Iterator[bytes]:
        """See `Root`."""
        try:
            with open(self._here(path), "rb", opener=lambda p, flags: os.open(p, flags | os.O_NOFOLLOW)) as stream:
                yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")
        except OSError as error:
            raise self._explained(error) from error

    def _here(self, path: str) -> str:
        return f"{self._folder}/{path.lstrip('/')}"

    def _explained(self, error: OSError) -> InputError:
        return InputError(f"{error.filename}: cannot be read ({reason(error)})")


def _put(top: int, entry: TreeEntry, owners: bool) -> None:
    """Write one entry under a temporary name, then rename it."""
    with _parent(top, entry.path) as (parent, name):
        if entry.kind == tree.FOLDER:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=parent)
            if owners:
                os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
            descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.fchmod(descriptor, entry.mode)  # independent of the umask
            os.close(descriptor)
            return
        beside = f".{name}.edgeprune-new"  # a fixed name, so that killed deployments leave at most one file
        with suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=parent)
        try:
            _make(parent, beside, entry, owners)
            os.rename(beside, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:  # an interrupt, too
            with suppress(OSError):
                os.unlink(beside, dir_fd=parent)
            raise


def _make(parent: int, name: str, entry: TreeEntry, owners: bool) -> None:
    """Make a new file or link in an open folder."""
    if entry.kind == tree.LINK:
        os.symlink(entry.target or "", name, dir_fd=parent)
        if owners:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
    else:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
        with open(descriptor, "wb") as stream:
            for chunk in entry.chunks():
                stream.write(chunk)
            stream.flush()
            if owners:
                os.fchown(descriptor, entry.uid, entry.gid)
            os.fchmod(descriptor, entry.mode)
    os.utime(name, (entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)


def _remove(top: int, path: str, kind: str) -> None:
    with _parent(top, path) as (parent, name), suppress(FileNotFoundError):
        if kind == tree.FOLDER:
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)


@contextmanager
def _parent(top: int, path: str) -> Iterator[tuple[int, str]]:
    """(the open folder of a path, the name in it). No link is followed, even if one appears during the walk."""
    *folders, name = path.strip("/").split("/")
    here = os.dup(top)
    try:
        for folder in folders:
            below = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = below
        yield here, name
    finally:
        os.close(here)


def _sync(descriptor: int) -> None:
    """Sync the whole file system at once; syncing a thousand small files separately takes minutes."""
    if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _check_room(folder: Path, plan: TreePlan) -> None:
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    needed = plan.size_bytes + len(plan.entries) * disk.f_frsize + _SPARE_BYTES
    if free < needed:
        raise InputError(
            f"{folder}: too little free space ({free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed); free some space"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Allow one deployment into this folder at a time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise InputError(
            f"{folder}: another deployment is running in this folder; wait until it has finished"
        ) from error
    finally:
        os.close(descriptor)
