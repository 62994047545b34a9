"""An ext4 file system in a file, read and written with debugfs from e2fsprogs, without root and without a mount.

debugfs always ends with exit status 0, so its whole output is checked: any output other than a known success message is
a failure. It never overwrites, so an existing file is removed first. Names are quoted, and a name that does not fit on
one line is refused. `tree.differences` reads the written files back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune_device import files
from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable

from edgeprune.drones.deploy import tree
from edgeprune.drones.deploy.tree import Node, Root, TreePlan

__all__ = ["FileSystem", "Place", "blocks", "check", "tool", "write"]

_KINDS = {"regular": tree.FILE, "directory": tree.FOLDER, "symlink": tree.LINK}
_TYPE_BITS = {tree.FILE: 0o100000, tree.FOLDER: 0o040000, tree.LINK: 0o120000}
_BANNER = re.compile(rb"debugfs [0-9.]+ \([^)\n]*\)")
_ECHO = b"debugfs: "
_SUCCESS = re.compile(rb"(Allocated inode: \d+)?")
_LISTED = re.compile(rb"/(\d+)/(\d*)/(\d*)/(\d*)/(.*)/(\d*)/")
_CHUNK_BYTES = 1 << 20
_MAX_LINK_BYTES = 4096  # of Linux
_LIMIT_S = 600.0  # of each call; a damaged or hostile file system may keep e2fsck and debugfs busy without end


@dataclass(frozen=True)
class Place:
    """A file system: an open file and an offset in it.

    Programs get the open file, not its name, because another file may take that name.

    Attributes:
        descriptor: The open file.
        offset_bytes: The beginning of the file system.
        what: Its name in messages.
    """

    descriptor: int
    offset_bytes: int
    what: str

    @property
    def name(self) -> str:
        """The argument for e2fsprogs' programs."""
        return f"/proc/self/fd/{self.descriptor}?offset={self.offset_bytes}"


def tool(name: str) -> str:
    """The path of a program of e2fsprogs; the PATH of many users lacks /usr/sbin.

    Raises:
        InputError: The program is not installed.
    """
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        raise InputError(f"{name}: not found, but needed to write into an image; apt install e2fsprogs")
    return path


def run(name: str, *words: str, place: Place, cwd: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a program of e2fsprogs on an open file.

    Args:
        name: The program.
        *words: Its arguments.
        place: The open file that it inherits.
        cwd: Its working folder.

    Returns:
        The ended process; the caller judges its exit status.

    Raises:
        InputError: The program is not installed, or did not end in time.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("E2FS", "DEBUGFS", "LC_"))}
    try:
        return subprocess.run(
            [tool(name), *words], stdin=subprocess.DEVNULL, capture_output=True, cwd=cwd,
            env={**environment, "LC_ALL": "C"}, pass_fds=[place.descriptor], timeout=_LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{place.what}: {name} did not end within {_LIMIT_S:g} s; the file system may be damaged: repair a copy "
            "with e2fsck -f, or use another image"
        ) from error


def check(place: Place) -> str | None:
    """The first error that e2fsck reports without changing anything; None if the file system is clean.

    Raises:
        InputError: e2fsck is not installed, or did not end in time.
    """
    done = run("e2fsck", "-f", "-n", place.name, place=place)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()]
    errors = [line for line in lines if line and not line.startswith(("e2fsck ", "Pass "))]
    return printable((errors or [f"exit code {done.returncode}"])[0][:200])


class FileSystem(Root):
    """The root file system at a `Place`, for reading. It must not change, because answers are cached."""

    def __init__(self, place: Place):
        self.what = place.what
        self._place = place
        self._names: dict[str, set[str]] = {}
        self._nodes: dict[str, Node] = {}
        self._digests: dict[str, str] = {}

    def lstat(self, path: str) -> Node | None:
        """See `Root`."""
        if path == "/":
            return self._stat(path)
        above, _, name = path.rpartition("/")
        if above not in ("", "/"):
            node = self.lstat(above)
            if node is None or node.kind != tree.FOLDER:
                return None
        return self._stat(path) if name in self._listed(above or "/") else None

    def names(self, path: str) -> list[str]:
        """See `Root`."""
        return sorted(self._listed(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        """See `Root`."""
        with tempfile.TemporaryDirectory() as folder:
            self._script([f"dump {_quoted(path)} content"], Path(folder))
            with open(Path(folder) / "content", "rb") as stream:
                yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")

    def sha256(self, path: str) -> str:
        """See `Root`."""
        if path not in self._digests:
            self._digests[path] = super().sha256(path)
        return self._digests[path]

    def preload(self, paths: Sequence[str]) -> None:
        """See `Root`; one call of debugfs serves all files, instead of two calls for each."""
        there = [path for path in paths if path not in self._nodes and self._is_there(path)]
        for path, answer in zip(there, self._script([f"stat {_quoted(path)}" for path in there])):
            self._nodes[path] = self._parse(path, answer)
        read = [path for path in there if self._nodes[path].kind == tree.FILE]
        with tempfile.TemporaryDirectory() as folder:
            self._script([f"dump {_quoted(path)} {number}" for number, path in enumerate(read)], Path(folder))
            for number, path in enumerate(read):
                self._digests[path] = files.sha256(Path(folder) / str(number))

    def _is_there(self, path: str) -> bool:
        above, _, name = path.rpartition("/")
        return self.lstat(above or "/") is not None and name in self._listed(above or "/")

    def _stat(self, path: str) -> Node:
        if path not in self._nodes:
            (answer,) = self._script([f"stat {_quoted(path)}"])
            self._nodes[path] = self._parse(path, answer)
        return self._nodes[path]

    def _listed(self, path: str) -> set[str]:
        if path not in self._names:
            (answer,) = self._script([f"ls -p {_quoted(path)}"])
            lines = [_LISTED.fullmatch(line) for line in answer.split(b"\n")]
            names = {line[5].decode("utf-8", "surrogateescape") for line in lines if line and line[1] != b"0"}
            self._names[path] = names - {".", ".."}
        return self._names[path]

    def _parse(self, path: str, answer: bytes) -> Node:
        text = answer.decode("utf-8", "surrogateescape")
        head = re.search(r"^Inode: \d+\s+Type: ([a-z ]+?)\s+Mode:\s+(\d+)", text)
        people = re.search(r"^User:\s+(\d+)\s+Group:\s+(\d+)\s+(?:Project:\s+\d+\s+)?Size: (\d+)", text, re.M)
        changed = re.search(r"^\s*mtime: 0x([0-9a-f]+)(?::([0-9a-f]{8}))? --", text, re.M)
        if not (head and people and changed):
            raise InputError(f"{self.what}: {printable(path)}: unexpected answer from debugfs to stat")
        kind, target = _KINDS.get(head[1], "other"), None
        if kind == tree.LINK:
            if int(people[3]) > _MAX_LINK_BYTES:
                raise InputError(f"{self.what}: {printable(path)}: link too long (found {people[3]} bytes)")
            fast = re.search(r'^Fast link dest: "(.*)"\s*\Z', text, re.M | re.S)
            target = fast[1] if fast else b"".join(self.chunks(path)).decode("utf-8", "surrogateescape")
        seconds = int(changed[1], 16)
        seconds -= (seconds & 0x80000000) << 1
        seconds += (int(changed[2] or "0", 16) & 3) << 32
        return Node(kind, int(head[2], 8) & 0o7777, int(people[1]), int(people[2]), int(people[3]), seconds, target)

    def _script(self, commands: Sequence[str], folder: Path | None = None) -> list[bytes]:
        return _execute(self._place, commands, folder)


def blocks(place: Place, paths: Sequence[str]) -> list[int]:
    """The numbers of the blocks that hold these files."""
    answers = _execute(place, [f"blocks {_quoted(path)}" for path in paths])
    return [int(number) for text in answers for number in text.split()]


def write(place: Place, root: Root, plan: TreePlan) -> None:
    """Carry out the plan.

    Args:
        place: The file system.
        root: The same file system, as it is now.
        plan: The plan.

    Raises:
        InputError: debugfs reported anything but success, or did not end in time. Discard the file system then.
    """
    commands = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, entry in enumerate(plan.entries):
            path = _quoted(entry.path)
            if entry.kind != tree.FOLDER and root.lstat(entry.path) is not None:
                commands.append(f"rm {path}")
            if entry.kind == tree.FOLDER:
                commands.append(f"mkdir {path}")
            elif entry.kind == tree.LINK:
                commands.append(f"symlink {path} {_quoted(entry.target or '')}")
            else:
                source = folder / str(number)  # a name that needs no quotes
                if isinstance(entry.content, Path):
                    source.symlink_to(entry.content.absolute())
                else:
                    source.write_bytes(entry.content or b"")
                commands.append(f"write {number} {path}")
        # Last, because a new entry in a folder changes the folder's time.
        for entry in plan.entries:
            for key, value in (
                ("mode", f"0{_TYPE_BITS[entry.kind] | entry.mode:o}"), ("uid", entry.uid), ("gid", entry.gid),
                ("atime", f"@{entry.mtime}"), ("mtime", f"@{entry.mtime}"),
            ):  # fmt: skip
                commands.append(f"set_inode_field {_quoted(entry.path)} {key} {value}")
        # The kernel would set the time of existing folders that get or lose an entry; debugfs does not.
        made = {entry.path for entry in plan.entries}
        changed = {path.rpartition("/")[0] or "/" for path in (*made, *(path for path, _ in plan.removed))}
        for path in sorted(changed - made - {path for path, _ in plan.removed}):
            commands.append(f"set_inode_field {_quoted(path)} mtime @{int(time.time())}")
        for path, kind in plan.removed:
            commands.append(f"{'rmdir' if kind == tree.FOLDER else 'rm'} {_quoted(path)}")
        for answer in _execute(place, commands, folder, writing=True):
            if not _SUCCESS.fullmatch(answer.strip()):
                text = answer.decode("utf-8", "replace").strip()
                raise InputError(f"{place.what}: debugfs failed: {printable(text[:300])}")


def _execute(
    place: Place, commands: Sequence[str], folder: Path | None = None, *, writing: bool = False
) -> list[bytes]:
    """The answers of debugfs to each command, from one run of it with the working folder `folder`.

    Raises:
        InputError: debugfs printed an error, or did not end in time.
    """
    if not commands:
        return []
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", errors="surrogateescape", newline="\n") as script:
        script.write("".join(f"{command}\n" for command in commands))
        script.flush()
        # -c leaves out the bitmaps, which only writing needs.
        done = run("debugfs", "-w" if writing else "-c", "-f", script.name, place.name, place=place, cwd=folder)
    complaints = [line for line in done.stderr.splitlines() if line.strip() and not _BANNER.fullmatch(line.strip())]
    if complaints or done.returncode:
        reason = complaints[0].decode("utf-8", "replace") if complaints else f"exit code {done.returncode}"
        raise InputError(f"{place.what}: debugfs failed: {printable(reason.strip()[:300])}")
    return _answers(done.stdout, commands, place)


def _answers(output: bytes, commands: Sequence[str], place: Place) -> list[bytes]:
    """Split the output of debugfs, which echoes each command before its answer."""
    answers: list[list[bytes]] = []
    echoed = []
    for line in output.splitlines(keepends=True):
        if line.startswith(_ECHO):
            echoed.append(line[len(_ECHO) :].rstrip(b"\n"))
            answers.append([])
        elif answers:
            answers[-1].append(line)
    if echoed != [command.encode("utf-8", "surrogateescape") for command in commands]:
        raise InputError(f"{place.what}: the output of debugfs does not match the commands")
    return [b"".join(lines) for lines in answers]


def _quoted(path: str) -> str:
    """The path, quoted for a line of debugfs: in quotes, with each quote doubled."""
    if not path.isprintable():
        raise InputError(
            f"{printable(path[:200])}: unsupported name for debugfs; rename the file, or deploy as root (loop mount)"
        )
    return '"' + path.replace('"', '""') + '"'
