"""Checks the permissions of key files and of each folder above them, like sshd's StrictModes.

A file is accepted only if no user except this user and root could have written it. The check goes up to this user's
home folder, or to / for a file outside it. A folder that the user's own group may also write to is accepted if that
group has no other member, as with the umask 002 of Debian and Ubuntu.
"""

from __future__ import annotations

import os
import shlex
import stat
from contextlib import suppress
from pathlib import Path
from typing import Iterator, Set

from edgeprune_device.errors import InputError, reason

__all__ = ["check"]

_OTHERS_READ = stat.S_IRWXG | stat.S_IRWXO


def check(path: Path, base: Path, private: bool = False) -> None:
    """Check that no other user could have changed a file or a folder, if it exists.

    Args:
        path: The file or folder.
        base: The folder of this user's keys. Its owner is also accepted if root runs the program for another user.
        private: Also refuse a file that other users may read.

    Raises:
        InputError: The file, or a folder above it, belongs to another user or may be changed by one.
    """
    if os.name != "posix":
        return
    owners = _owners(base)
    named, real = os.path.abspath(str(path)), os.path.realpath(str(path))
    for place in dict.fromkeys([*_upwards(named), *_upwards(real)]):
        try:
            status = os.stat(place)
        except (FileNotFoundError, NotADirectoryError):  # the caller handles missing files
            continue
        except OSError as error:
            raise InputError(f"{place}: cannot be read ({reason(error)})") from error
        _check_one(place, status, owners)
        if private and place == real and stat.S_IMODE(status.st_mode) & _OTHERS_READ:
            mode = stat.S_IMODE(status.st_mode)
            raise InputError(
                f"{path}: other users may read this private key (found mode {mode:04o}, expected 0600); run chmod 600 "
                f"{shlex.quote(str(path))}; if another user may have a copy, replace the key with edgeprune keys make"
            )


def _check_one(place: str, status: os.stat_result, owners: Set[int]) -> None:
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in owners:
        expected = " or ".join("root" if uid == 0 else f"user {uid}" for uid in sorted(owners))
        raise InputError(
            f"{place}: belongs to another user, who could change the trusted keys (found user {status.st_uid}, "
            f"expected {expected}); run chown {os.geteuid()} {shlex.quote(place)}, or set EDGEPRUNE_HOME to a folder "
            "of your own"
        )
    if stat.S_ISDIR(status.st_mode) and mode & stat.S_ISVTX:
        return  # sticky, such as /tmp: only the owner of a file may replace it
    if mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _of_one_user(status)):
        raise InputError(
            f"{place}: other users may write to this path, and thus change the trusted keys (found mode {mode:04o}, "
            f"expected {mode & ~0o022:04o}); run chmod go-w {shlex.quote(place)}"
        )


def _owners(base: Path) -> Set[int]:
    owners = {0, os.geteuid()}
    if os.geteuid() == 0:
        with suppress(OSError):
            owners.add(os.stat(str(base)).st_uid)
    return owners


def _upwards(path: str) -> Iterator[str]:
    """The path and the folders above it, up to this user's home folder or to /."""
    home = os.path.expanduser("~")
    stops = {home, os.path.realpath(home)} if os.path.isabs(home) else set()
    yield path
    while path not in stops and path != os.path.dirname(path):
        path = os.path.dirname(path)
        yield path


def _of_one_user(status: os.stat_result) -> bool:
    """Whether the file's group is the owner's private group, without other members."""
    import grp  # not present on Windows
    import pwd

    try:
        group, owner = grp.getgrgid(status.st_gid), pwd.getpwuid(status.st_uid)
    except KeyError:
        return False
    return group.gr_name == owner.pw_name and group.gr_gid == owner.pw_gid and set(group.gr_mem) <= {owner.pw_name}
