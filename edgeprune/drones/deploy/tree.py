"""Plans the files of a deployment into a root file system that is not running; this module writes nothing.

`Root` is a readable root file system: a folder, an ext4 partition or the layers of a container. Its symbolic links
never lead outside of it: an absolute link begins at its own top. `plan` compares the planned state with the present
one. Therefore a second deployment of the same bundle has nothing to do, and a second run completes an interrupted one.

Ownership: everything below the deployment's root (/opt/edgeprune) belongs to the owner of that folder if it exists,
else to the ordinary user 1000, else to root. All other entries belong to root. Folders are 0755, files 0644, programs
0755; every entry has the bundle's time.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from edgeprune_device import clock, releases, strict_json
from edgeprune_device.agent import AGENT, COMMAND
from edgeprune_device.errors import GateError, InputError, SignatureError
from edgeprune_device.installation import contents
from edgeprune_device.option import named
from edgeprune_device.printable import printable
from edgeprune_device.releases import Release
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DeploySettings
from edgeprune.drones.setup import host_name

__all__ = ["ROOT_USER", "Node", "Root", "TreeEntry", "TreePlan", "User", "differences", "owner", "plan", "users"]

FILE, FOLDER, LINK = "file", "folder", "link"
_MOST_LINKS = 40  # as Linux
_MAX_TEXT_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Node:
    """The entry at a path.

    Attributes:
        kind: "file", "folder", "link", or "other".
        mode: The permissions.
        uid: The owner.
        gid: The group.
        size_bytes: The size.
        mtime: The time of the last change, seconds.
        target: Of a link.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size_bytes: int
    mtime: int
    target: str | None = None

    @property
    def link_target(self) -> str:
        """The target of a link."""
        assert self.kind == LINK and self.target is not None
        return self.target


@dataclass(frozen=True)
class User:
    """An account of the root file system.

    Example: User("pilot", 1000, 1000, "/home/pilot").

    Attributes:
        name: The name.
        uid: Its number.
        gid: The number of its group.
        home: Its home folder.
    """

    name: str
    uid: int
    gid: int
    home: str

    def __str__(self) -> str:
        return f"{self.name} ({self.uid}:{self.gid})"


ROOT_USER = User("root", 0, 0, "/root")


@dataclass(frozen=True)
class TreeEntry:
    """A planned entry.

    Example: TreeEntry("/opt/edgeprune/current", "link", 0o777, 1000, 1000, 1764000000, target="…").

    Attributes:
        path: Without links in its folders.
        kind: "file", "folder" or "link".
        mode: The permissions.
        uid: The owner.
        gid: The group.
        mtime: The time of the last change, seconds.
        content: Of a file: bytes, or a file of this host.
        target: Of a link.
        known_sha256: The hash of the host's file when it was verified.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int
    content: bytes | Path | None = None
    target: str | None = None
    known_sha256: str | None = None

    @property
    def size_bytes(self) -> int:
        """The size of a file's content; 0 for other kinds."""
        if isinstance(self.content, Path):
            return self.content.stat().st_size
        return len(self.content or b"")

    def chunks(self) -> Iterator[bytes]:
        """A file's content, in pieces.

        Raises:
            SignatureError: The host's file has changed since it was verified.
        """
        if not isinstance(self.content, Path):
            yield self.content or b""
            return
        digest = hashlib.sha256()
        with open(self.content, "rb") as stream:
            for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
                digest.update(chunk)
                yield chunk
        if digest.hexdigest() != self.known_sha256:
            raise SignatureError(f"{self.content}: changed during the deployment; deploy again")

    def sha256(self) -> str:
        """The SHA-256 of a file's content."""
        return self.known_sha256 or _digest(self.chunks())


class Root(ABC):
    """A readable root file system. `what`: its name in messages."""

    what: str

    @abstractmethod
    def lstat(self, path: str) -> Node | None:
        """The node at an absolute path whose folders are not links; None if nothing is there."""

    @abstractmethod
    def names(self, path: str) -> list[str]:
        """The names in a folder; the path is as `resolve` returns it."""

    @abstractmethod
    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's content, in pieces; the path is as `resolve` returns it."""

    def preload(self, paths: Sequence[str]) -> None:  # noqa: B027
        """Read these nodes and contents in advance; the paths are as `resolve` returns them."""

    def resolve(self, path: str, *, last: bool = True) -> str:
        """The path with every link followed inside of this root. Parts that do not exist stay as given.

        Args:
            path: An absolute path.
            last: Whether to follow a link at the end of the path.

        Raises:
            InputError: Links form a circle, or lead through an entry that is not a folder.
        """
        done: list[str] = []
        todo, links = _parts(path)[::-1], 0
        while todo:
            name = todo.pop()
            if name == "..":
                done = done[:-1]
                continue
            here = "/" + "/".join([*done, name])
            node = self.lstat(here)
            if node is not None and node.kind == LINK and (todo or last):
                links += 1
                if links > _MOST_LINKS:
                    raise InputError(f"{self.what}: {printable(path)}: symbolic links form a loop")
                if node.link_target.startswith("/"):
                    done = []
                todo += _parts(node.link_target)[::-1]
                continue
            if node is not None and node.kind != FOLDER and todo:
                raise InputError(f"{self.what}: {printable(here)}: not a folder")
            done.append(name)
        return "/" + "/".join(done)

    def find(self, path: str) -> tuple[str, Node | None]:
        """(the resolved path, the node there)."""
        real = self.resolve(path)
        return real, self.lstat(real)

    def listing(self, path: str) -> list[str]:
        """The names in a folder, sorted; empty if the folder does not exist."""
        real, node = self.find(path)
        return sorted(self.names(real)) if node is not None and node.kind == FOLDER else []

    def read(self, path: str, limit_bytes: int) -> bytes | None:
        """The content of a small file; None if the file does not exist.

        Raises:
            InputError: The file is larger than `limit_bytes`.
        """
        real, node = self.find(path)
        if node is None or node.kind != FILE:
            return None
        content = bytearray()
        for chunk in self.chunks(real):
            content += chunk
            if len(content) > limit_bytes:
                raise InputError(f"{self.what}: {printable(path)}: too large (expected at most {limit_bytes} bytes)")
        return bytes(content)

    def sha256(self, path: str) -> str:
        """The SHA-256 of a file."""
        return _digest(self.chunks(path))


@dataclass(frozen=True)
class TreePlan:
    """The changes of a deployment, in this order: the entries (folders before their content, `current` last), the
    removals.

    Attributes:
        release: The deployed release.
        owner: The owner of the deployment.
        entries: The entries to write.
        removed: (path, kind) of former releases, in an order in which they can be removed.
        notes: Notes for the user.
    """

    release: Release
    owner: User
    entries: tuple[TreeEntry, ...]
    removed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(entry.size_bytes for entry in self.entries)

    def described(self) -> str:
        """A description, such as "release 9f86d081884c7d65 (demo): 1403 files, 102 folders, 3 links, 61.3 MB"."""
        files, folders, links = (sum(entry.kind == kind for entry in self.entries) for kind in (FILE, FOLDER, LINK))
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return f"release {self.release}: {files} files, {folders} folders, {links} links, {size}"


def plan(
    root: Root,
    bundle: Bundle,
    settings: DeploySettings,
    *,
    agent: Mapping[str, bytes] | None = None,
    account: User | None = None,
    unit: bool = True,
    installed: str | None = None,
) -> TreePlan:
    """Plan the deployment of `bundle` into a root file system.

    Args:
        root: The root file system.
        bundle: The bundle.
        settings: The settings of the deployment.
        agent: The agent's files below its folder, such as {"bin/edgeprune": …}; None leaves the agent as it is.
        account: The owner of the deployment; None: see this module.
        unit: Write a systemd unit if a source is given.
        installed: The time in the release's record; None takes the present.

    Raises:
        InputError: The present state contradicts the plan.
        SignatureError: The root file system has revoked the bundle's key.
        GateError: The bundle is older than the newest confirmed release of its key.
    """
    created = datetime.strptime(bundle.manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    base = root.resolve(str(settings.root))
    user = account or owner(root, base)
    made = _Tree(root, user, int(created.timestamp()))
    there = _releases(root, base)
    _check_revoked(root, bundle, user)
    older = _check_counter(root, base, bundle, settings)
    in_use = _in_use(root, base, there, bundle)
    release = in_use or _release(bundle, settings, there, older, installed)
    folder = f"{base}/releases/{release.identity}"
    notes: list[str] = []
    made.owned_folder(base)
    made.owned_folder(f"{base}/releases")
    made.owned_folder(folder)
    made.owned_copy(f"{folder}/{releases.BUNDLE}", bundle.path, bundle.sha256)
    for name, text in contents.texts(bundle.manifest).items():
        made.owned_file(f"{folder}/{name}", text)
    # A release that was installed on the drone itself keeps its engine, and the model that was chosen there.
    kept = contents.listed(root.read(f"{folder}/{contents.SUMS}", releases.MAX_RECORD_BYTES) or b"")
    digests = {contents.PLAN: kept[contents.PLAN]} if contents.PLAN in kept else {}
    model = _model(bundle, settings.precision, kept.get(contents.MODEL))
    if model is not None:
        made.owned_file(f"{folder}/{contents.MODEL}", model)
        digests[contents.MODEL] = hashlib.sha256(model).hexdigest()
    made.owned_file(f"{folder}/{contents.SUMS}", contents.sums(bundle, digests))
    if in_use is None:
        made.owned_file(f"{folder}/{releases.RECORD}", strict_json.pretty(release.to_json()).encode())
    removed = _removals(root, base, there, release, settings.keep)
    if agent is not None:
        name = _agent(made, base, str(settings.root), agent)
        for other in root.listing(base):
            if re.fullmatch("agent-[0-9a-f]{12}", other) and other != name:
                removed += _below(root, f"{base}/{other}")
    source = settings.source if unit else None
    if source is not None:
        _unit(made, settings, source, user, notes, has_agent=agent is not None)
    if bundle.trusted:
        _trust(made, bundle, "/etc/edgeprune/trusted", made.system_file, notes)
        if source is not None:  # and in its user's folder, where `edgeprune setup` puts it on a live drone
            _trust(made, bundle, f"{user.home.rstrip('/')}/.config/edgeprune/trusted", made.owned_file, notes)
    else:
        notes.append(
            f"the bundle's key {bundle.key_fingerprint} is not trusted on this machine; the release is deployed as "
            "untrusted"
        )
    made.owned_link(f"{base}/current", f"releases/{release.identity}")
    gone = [path.rpartition("/")[2] for path, kind in removed if releases.IDENTITY.fullmatch(path.rpartition("/")[2])]
    if gone:
        notes.append(f"former releases to remove: {', '.join(gone)}")
    return TreePlan(release, user, tuple(made.entries), tuple(removed), tuple(notes))


def differences(root: Root, plan: TreePlan, *, owners: bool = True) -> list[str]:
    """The differences between the plan and the present state, one line each; every file is read and hashed.

    Args:
        root: The root file system.
        plan: The plan.
        owners: Whether to compare owners, too.
    """
    wrong = []
    root.preload([entry.path for entry in plan.entries])
    for entry in plan.entries:
        node = root.lstat(entry.path)
        if node is None:
            wrong.append(f"{entry.path}: missing")
        elif difference := _difference(root, entry, node, owners=owners, times=True):
            wrong.append(f"{entry.path}: {difference}")
    wrong += [f"{path}: not removed" for path, _ in plan.removed if root.lstat(path) is not None]
    return wrong


def owner(root: Root, base: str) -> User:
    """The owner of a deployment below `base`: see this module.

    Raises:
        InputError: The folder belongs to a user that is not in /etc/passwd.
    """
    node = root.lstat(base)
    known_users = users(root)
    if node is not None:
        known = next((user for user in known_users if user.uid == node.uid), None)
        if known is None and node.uid != 0:
            raise InputError(
                f"{root.what}: {base}: unknown owner (found UID {node.uid}, which is not in /etc/passwd of that root "
                "file system); chown the folder to a user listed there"
            )
        return replace(known or ROOT_USER, gid=node.gid)
    return next((user for user in known_users if user.uid == 1000), ROOT_USER)


class _Tree:
    """Collects the entries that differ from the present state, with the missing folders above them."""

    def __init__(self, root: Root, user: User, mtime: int):
        self.root, self.user, self.mtime = root, user, mtime
        self.entries: list[TreeEntry] = []
        self._folders: set[str] = set()

    def owned_folder(self, path: str, mode: int = 0o755) -> None:
        self._folder(path, self.user, mode)

    def owned_file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._file(path, content, mode, self.user)

    def owned_copy(self, path: str, source: Path, sha256: str) -> None:
        self._file(path, source, 0o644, self.user, sha256)

    def owned_link(self, path: str, target: str) -> None:
        self._link(path, target, self.user)

    def system_file(self, path: str, content: bytes) -> None:
        self._file(path, content, 0o644, ROOT_USER)

    def system_link(self, path: str, target: str) -> None:
        self._link(path, target, ROOT_USER)

    def _folder(self, path: str, user: User, mode: int = 0o755) -> str:
        """Return the folder's resolved path; add it if it is missing. Missing folders above it belong to root."""
        real = self.root.resolve(path)
        if real in self._folders:
            return real
        node = self.root.lstat(real)
        if node is not None:
            if node.kind != FOLDER:
                raise InputError(
                    f"{self.root.what}: {printable(real)}: wrong type (found {node.kind}, expected folder); remove "
                    "the file"
                )
        else:
            above = real.rpartition("/")[0] or "/"
            if above != "/":
                self._folder(above, ROOT_USER)
            self.entries.append(TreeEntry(_named(real), FOLDER, mode, user.uid, user.gid, self.mtime))
        self._folders.add(real)
        return real

    def _file(self, path: str, content: bytes | Path, mode: int, user: User, sha256: str | None = None) -> None:
        self._put(TreeEntry(path, FILE, mode, user.uid, user.gid, self.mtime, content, known_sha256=sha256))

    def _link(self, path: str, target: str, user: User) -> None:
        self._put(TreeEntry(path, LINK, 0o777, user.uid, user.gid, self.mtime, target=_named(target)))

    def _put(self, entry: TreeEntry) -> None:
        above, _, name = entry.path.rpartition("/")
        folder = self._folder(above, ROOT_USER)
        entry = replace(entry, path=_named(f"{folder}/{name}"))
        node = self.root.lstat(entry.path)
        if node is not None and node.kind not in (FILE, LINK):
            raise InputError(
                f"{self.root.what}: {entry.path}: wrong type (found {node.kind}, expected {entry.kind}); remove it "
                "first"
            )
        if node is None or _difference(self.root, entry, node):
            self.entries.append(entry)


def _difference(root: Root, entry: TreeEntry, node: Node, *, owners: bool = True, times: bool = False) -> str | None:
    """The difference between `node` and `entry`, or None."""
    if node.kind != entry.kind:
        return f"is a {node.kind}, not a {entry.kind}"
    if node.kind != LINK and node.mode != entry.mode:
        return f"has mode {node.mode:04o}, not {entry.mode:04o}"
    if owners and (node.uid, node.gid) != (entry.uid, entry.gid):
        return f"belongs to {node.uid}:{node.gid}, not {entry.uid}:{entry.gid}"
    if times and node.mtime != entry.mtime:
        return f"has time {node.mtime}, not {entry.mtime}"
    if node.kind == LINK and node.target != entry.target:
        return f"points to {printable(node.link_target)}, not {entry.target}"
    if node.kind == FILE and (node.size_bytes != entry.size_bytes or root.sha256(entry.path) != entry.sha256()):
        return "has different content"
    return None


# --- the present state -----------------------------------------------------------------------------------------------


def _releases(root: Root, base: str) -> list[Release]:
    """The releases whose records can be read, the newest first."""
    valid = []
    for name in root.listing(f"{base}/releases"):
        if releases.IDENTITY.fullmatch(name):
            path = f"{base}/releases/{name}/{releases.RECORD}"
            try:
                data = root.read(path, releases.MAX_RECORD_BYTES)
                release = None if data is None else Release.from_json(strict_json.loads(data, path), path)
            except InputError:
                continue  # as on the drone, a folder without a valid record is not a release
            if release is not None and release.identity == name:
                valid.append(release)
    return sorted(valid, key=lambda release: -release.sequence)


def _current(root: Root, base: str) -> str | None:
    node = root.lstat(f"{base}/current")
    return node.link_target.rpartition("/")[2] if node is not None and node.kind == LINK else None


def _in_use(root: Root, base: str, there: Sequence[Release], bundle: Bundle) -> Release | None:
    """The release of this bundle if it is current and not bad; its record is then kept."""
    identity = releases.identity(bundle.sha256)
    former = next((known for known in there if known.identity == identity), None)
    return former if former is not None and former.state != "bad" and _current(root, base) == identity else None


def _check_counter(root: Root, base: str, bundle: Bundle, settings: DeploySettings) -> bool:
    """Whether the bundle is older than the newest confirmed release of its key there.

    Raises:
        GateError: The bundle is older, and the settings do not allow that.
    """
    data = root.read(f"{base}/state.json", releases.MAX_RECORD_BYTES)
    counters = {} if data is None else releases.parse_counters(data, f"{root.what}: {base}/state.json")
    counter = counters.get(bundle.key_fingerprint, 0)
    if bundle.manifest.counter >= counter:
        return False
    if not settings.allow_older:
        raise GateError(
            f"{root.what}: {bundle.path} is older than the newest confirmed release of its key there (found "
            f"counter {bundle.manifest.counter}, expected at least {counter}); deploy a newer build, or give "
            f"{named('allow_older')}; if this host's clock was wrong, start a new count with edgeprune keys make"
        )
    return True


def _check_revoked(root: Root, bundle: Bundle, user: User) -> None:
    for folder in ("/etc/edgeprune/revoked", f"{user.home.rstrip('/')}/.config/edgeprune/revoked"):
        for name in root.listing(folder):
            path = f"{folder}/{name}"
            text = (root.read(path, releases.MAX_RECORD_BYTES) or b"").decode("ascii", "replace").strip()
            mark = keys.fingerprint(keys.public(text, path)) if re.fullmatch("[0-9a-f]{64}", text) else text
            if mark == bundle.key_fingerprint:
                raise SignatureError(
                    f"{root.what}: {bundle.path} is signed by {mark}, a key that is revoked there ({path}); sign with "
                    "another key (edgeprune keys make)"
                )


def users(root: Root) -> list[User]:
    """The accounts of /etc/passwd, in its order; malformed lines are left out."""
    accounts = []
    for line in (root.read("/etc/passwd", _MAX_TEXT_BYTES) or b"").decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) == 7 and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", fields[0]):
            uid, gid, home = fields[2], fields[3], fields[5]
            numbers = re.fullmatch(r"\d{1,10}:\d{1,10}", f"{uid}:{gid}")
            if numbers and re.fullmatch(r"/[A-Za-z0-9._/-]{0,200}", home):
                accounts.append(User(fields[0], int(uid), int(gid), home))
    return accounts


def _in_group(root: Root, user: User, group: str) -> bool:
    for line in (root.read("/etc/group", _MAX_TEXT_BYTES) or b"").decode("utf-8", "replace").splitlines():
        name, *_, number, members = [*line.split(":"), "", "", ""][:4]
        if name == group:
            return user.name in members.split(",") or number == str(user.gid)
    return False


# --- the planned state -----------------------------------------------------------------------------------------------


def _release(
    bundle: Bundle, settings: DeploySettings, there: Sequence[Release], older: bool, installed: str | None
) -> Release:
    """The record of the release, which is on trial until the drone's first start confirms it or falls back."""
    return Release(
        bundle_sha256=bundle.sha256,
        name=bundle.manifest.name,
        counter=bundle.manifest.counter,
        key_fingerprint=bundle.key_fingerprint,
        trusted=bundle.trusted,
        installed=installed or clock.wall(),
        sequence=max((release.sequence for release in there), default=0) + 1,
        older=older,
        precision=None if settings.precision == "auto" else settings.precision,
    )


def _model(bundle: Bundle, precision: str, there: str | None) -> bytes | None:
    """The model of this precision; for "auto" the one with the SHA-256 `there`, or None if the bundle lacks it."""
    models = bundle.manifest.models
    if precision == "auto":
        names = [entry["payload"] for entry in models.values() if entry["payload"] is not None]
        name = next((name for name in names if bundle.payloads[name].sha256 == there), None)
        return None if name is None else bundle.read(name)
    entry = models.get(precision)
    if entry is None or entry["payload"] is None:
        why = f" ({entry['reason']})" if entry else ""
        raise InputError(f"{bundle.path}: no {precision} model in this bundle{why}")
    return bundle.read(entry["payload"])


def _agent(made: _Tree, base: str, root_path: str, agent: Mapping[str, bytes]) -> str:
    """Add the agent beside a former one, then the link to it.

    Returns:
        The name of its folder, which contains a hash of its content.
    """
    content = hashlib.sha256(
        strict_json.canonical({path: hashlib.sha256(data).hexdigest() for path, data in agent.items()})
    )
    name = f"agent-{content.hexdigest()[:12]}"
    folders = {name}
    for path in agent:
        parts = path.split("/")[:-1]
        folders |= {"/".join([name, *parts[:depth]]) for depth in range(1, len(parts) + 1)}
    for folder in sorted(folders):
        made.owned_folder(f"{base}/{folder}")
    made.root.preload([f"{base}/{name}/{path}" for path in agent])
    for path, data in sorted(agent.items()):
        made.owned_file(f"{base}/{name}/{path}", data, 0o755 if path.startswith("bin/") else 0o644)
    made.owned_link(f"{base}/{AGENT}", name)
    command = "/usr/local/bin/edgeprune"
    node = made.root.lstat(made.root.resolve(command, last=False))
    if node is None:  # another installation's command stays
        made.system_link(command, f"{root_path}/{COMMAND}")
    return name


def _trust(made: _Tree, bundle: Bundle, folder: str, put: Callable[[str, bytes], None], notes: list[str]) -> None:
    """Let the drone trust this host's key, and the key that signed the bundle."""
    own = keys.load_or_create().verify_key
    known = {
        (made.root.read(f"{folder}/{name}", releases.MAX_RECORD_BYTES) or b"").decode("ascii", "replace").strip()
        for name in made.root.listing(folder)
        if name.endswith(".pub")
    }
    accepted = keys.trusted()
    for name, key in ((host_name(), own), ("signer", accepted.get(bundle.key_fingerprint, own))):
        text = bytes(key).hex()
        if text in known:
            continue
        known.add(text)
        path = f"{folder}/{name}.pub"
        if made.root.find(path)[1] is not None:
            path = f"{folder}/{name}-{text[:8]}.pub"
        put(path, f"{text}\n".encode())
        notes.append(f"bundles signed by {keys.fingerprint(key)} are trusted there ({path})")


def _unit(made: _Tree, settings: DeploySettings, source: str, user: User, notes: list[str], *, has_agent: bool) -> None:
    """Add the service, which starts at boot, and the folders in its user's home, which it may only read."""
    from edgeprune_device.service import unit

    root_path = str(settings.root)
    executable = f"{root_path}/{COMMAND}"
    if not has_agent and made.root.find(executable)[1] is None:
        raise InputError(f"{made.root.what}: no agent for the service to run; leave out {named('no_agent')}")
    above = user.home.rstrip("/")
    home = f"{above}/.config/edgeprune"
    # Each drone makes its own key: a key in the image would be the same on all drones with this image.
    for folder in (user.home, f"{above}/.config", home, f"{home}/trusted"):
        made.owned_folder(folder)
    made.owned_folder(f"{home}/keys", 0o700)
    content = unit.text(user.name, executable, root_path, source, settings.output or "-", home)
    folder = "/etc/systemd/system"
    made.system_file(f"{folder}/{unit.NAME}", content.encode())
    made.system_link(f"{folder}/multi-user.target.wants/{unit.NAME}", f"{folder}/{unit.NAME}")
    notes.append(f"{unit.NAME} starts at boot as {user.name}")
    if user != ROOT_USER and not _in_group(made.root, user, "video"):
        notes.append(
            f"{user.name} is not in the group video there, which the camera and the GPU of a Jetson need; add the "
            "user to the group"
        )


def _removals(root: Root, base: str, there: Sequence[Release], release: Release, keep: int) -> list[tuple[str, str]]:
    """The releases to remove, chosen as on the drone, but always keep the newest good one: the new one is on trial."""
    others = releases.worthiest(there, release.identity)
    kept = {release.identity, *(known.identity for known in others[: max(keep - 1, 1)])}
    folder = root.resolve(f"{base}/releases")
    removed: list[tuple[str, str]] = []
    for name in root.listing(folder):
        if releases.IDENTITY.fullmatch(name) and name not in kept:
            removed += _below(root, f"{folder}/{name}")
    return removed


def _below(root: Root, path: str, depth: int = 0) -> list[tuple[str, str]]:
    """(path, kind) of everything below a path, the content of a folder before the folder; links are not followed."""
    node = root.lstat(path)
    if node is None:
        return []
    below = []
    if node.kind == FOLDER:
        if depth > 40:
            raise InputError(
                f"{root.what}: {printable(path[:200])}: folders nested too deeply; remove the folder by hand"
            )
        for name in sorted(root.names(path)):
            below += _below(root, _named(f"{path}/{name}"), depth + 1)
    return [*below, (path, node.kind)]


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _named(path: str) -> str:
    """The path, checked for names that one of the writers cannot handle."""
    if not path.isprintable() or len(path.encode("utf-8", "surrogateescape")) > 4000:
        raise InputError(f"{printable(path[:200])}: invalid name (unprintable or too long); rename the file")
    return path


def _digest(chunks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()
