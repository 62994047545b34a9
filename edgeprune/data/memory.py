"""A cache of facts about files that are slow to compute, in ~/.cache/edgeprune/files.sqlite.

A key is made from the file's device, inode, size and times. Changing the file changes its key, so an outdated fact is
never used. Links to the same file share its facts. If the cache cannot be read or written, nothing is cached and no
error is raised.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from edgeprune_device.files import make_folder

from edgeprune import cache

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["identity", "keep", "recall"]

#: A file that changed this recently could change again without a new time stamp, s.
_SETTLED_S = 2.0
#: Maximum number of facts, about 200 bytes each; the oldest are deleted first.
_MOST = 1_000_000
_WAIT_S = 2.0  # wait for another process that writes
_AT_ONCE = 500  # keys per query; SQLite may refuse more than 999
_TABLE = "CREATE TABLE IF NOT EXISTS facts (number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, fact BLOB NOT NULL)"

_T = TypeVar("_T")


def identity(fact: str, status: os.stat_result) -> bytes | None:
    """The key of a fact about a file.

    Args:
        fact: The kind of the fact, with everything besides the file on which it depends.
        status: The result of `os.stat` for the file.

    Returns:
        The key; None if the file changed so recently that its facts may not be cached.
    """
    changed = max(status.st_mtime_ns, status.st_ctime_ns)
    if time.time_ns() - changed < _SETTLED_S * 1e9:
        return None
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.blake2b(f"{fact} {numbers}".encode(), digest_size=16).digest()


def recall(keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """Read the cached facts of some keys: {key: fact}."""
    wanted = list(keys)

    def read(database: Connection) -> dict[bytes, bytes]:
        facts: dict[bytes, bytes] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            facts.update(database.execute(f"SELECT key, fact FROM facts WHERE key IN ({marks})", some))
        return facts

    return _with_database(read, {}) if wanted else {}


def keep(facts: Mapping[bytes, bytes]) -> None:
    """Add facts to the cache: {key: fact}."""

    def write(database: Connection) -> None:
        database.executemany("INSERT OR REPLACE INTO facts (key, fact) VALUES (?, ?)", facts.items())
        database.execute("DELETE FROM facts WHERE number <= (SELECT MAX(number) FROM facts) - ?", (_MOST,))
        database.commit()

    if facts:
        _with_database(write, None)


def _with_database(act: Callable[[Connection], _T], otherwise: _T) -> _T:
    """Return the result of `act`, or `otherwise` if the database cannot be used. A damaged database is deleted."""
    try:
        import sqlite3  # Python may be built without sqlite3
    except ImportError:
        return otherwise
    try:
        path = cache.folder("files.sqlite")
        make_folder(path.parent)
        with contextlib.closing(sqlite3.connect(path, timeout=_WAIT_S)) as database:
            database.execute(_TABLE)
            return act(database)
    except sqlite3.OperationalError:  # locked, read-only, or the disk is full
        return otherwise
    except sqlite3.DatabaseError:
        with contextlib.suppress(OSError):
            path.unlink()
        return otherwise
    except (OSError, RuntimeError):  # the home folder is missing or read-only
        return otherwise
