"""A container for arm64: a given base image and one further layer, with the content that an image of a drone would get.

The base is an OCI layout, as a folder or as a tar archive (skopeo copy … oci:FOLDER or oci-archive:FILE). Every blob of
it is hashed as it is read. The layer is a plain tar whose bytes depend on nothing but its content, so the same bundle
on the same base gives the same image; registries and skopeo compress it in transit. There is no systemd in a container:
with a source the service is its entry point.

Source: OCI Image Specification 1.1.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgeprune_device import strict_json
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.files import replacing
from edgeprune_device.printable import printable
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DeploySettings, agent, tree
from edgeprune.drones.deploy.tree import Node, Root, Say, TreePlan, User

__all__ = ["Layers", "pack"]

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_GZIP = f"{_LAYER}+gzip"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_MAX_JSON_BYTES = 4 << 20
_MAX_ENTRIES = 2_000_000
_CHUNK_BYTES = 1 << 20
_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."
_MOST_INDEXES = 4


def pack(bundle: Bundle, base: Path, out: Path, settings: DeploySettings, say: Say) -> None:
    """Write `out`, an OCI archive: `base` for arm64 with the bundle, its agent and this host's key.

    Args:
        bundle: The bundle.
        base: The base image.
        out: The archive to write.
        settings: The settings of the deployment.
        say: Called with the progress, as text.

    Raises:
        InputError: The base is no OCI layout, is damaged, or is not for arm64.
        SignatureError: A hash in it does not match.
    """
    with ExitStack() as stack, replacing(out) as temporary:
        layout = stack.enter_context(_Layout(base))
        manifest = _choose(layout)
        config = layout.json(manifest["config"])
        if (config.get("os"), config.get("architecture")) != ("linux", "arm64"):
            what = printable(f"{config.get('os')}/{config.get('architecture')}"[:60])
            raise InputError(f"{base}: is for {what}, not for linux/arm64")
        root = stack.enter_context(Layers(layout, manifest, config))
        account = None if root.find(str(settings.root))[1] else _account(root, config)
        plan = tree.plan(
            root, bundle, settings, agent=agent.files(root, settings, say), account=account, unit=False,
            installed=bundle.manifest.created,
        )  # fmt: skip
        for line in plan.told:
            say(f"{base}: {line}")
        layer = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "layer.tar"
        _write_layer(layer, plan)
        _write(temporary, layout, manifest, config, layer, bundle, settings)
    say(f"{out}: {plan.described()}; what is below {settings.root} belongs to {plan.owner}, the rest to root")
    say(f"{out}: linux/arm64, {len(manifest['layers'])} layers of {base} and one more")


class _Layout:
    """The blobs of an OCI layout. Use it with `with`."""

    def __init__(self, path: Path):
        self.path = path
        self._archive: tarfile.TarFile | None = None
        self._members: dict[str, tarfile.TarInfo] = {}

    def __enter__(self) -> _Layout:
        try:
            if not self.path.is_dir():
                self._archive = tarfile.open(self.path)
                self._members = {m.name.removeprefix("./"): m for m in self._archive if m.isreg()}
            marker = self._open("oci-layout")
        except (OSError, tarfile.TarError, InputError, EOFError) as error:
            self.__exit__()
            raise InputError(
                f"{self.path}: is no OCI layout, neither as a folder nor as a tar archive; skopeo copy SOURCE "
                f"oci-archive:base.tar makes one"
            ) from error
        marker.close()
        return self

    def __exit__(self, *exc) -> None:
        if self._archive is not None:
            self._archive.close()

    def index(self) -> dict:
        """The index, which everything begins with."""
        with self._open("index.json") as stream:
            return self._object(stream.read(_MAX_JSON_BYTES), "index.json")

    def json(self, descriptor: dict) -> dict:
        """The JSON object that a descriptor names."""
        data = b"".join(self.chunks(descriptor, _MAX_JSON_BYTES))
        return self._object(data, descriptor["digest"])

    def chunks(self, descriptor: dict, limit_bytes: int | None = None) -> Iterator[bytes]:
        """A blob, in pieces. It matches its hash if the iteration ends without an error."""
        digest, size = self._checked(descriptor)
        if limit_bytes is not None and size > limit_bytes:
            raise InputError(f"{self.path}: {digest} has more than {limit_bytes} bytes")
        found, hashed = 0, hashlib.sha256()
        with self._open(f"blobs/sha256/{digest[7:]}") as stream:
            for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
                found += len(chunk)
                hashed.update(chunk)
                if found > size:
                    break
                yield chunk
        if found != size or hashed.hexdigest() != digest[7:]:
            raise SignatureError(f"{self.path}: the blob {digest} is damaged; copy the image again")

    def _checked(self, descriptor: dict) -> tuple[str, int]:
        digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
        size = descriptor.get("size") if isinstance(descriptor, dict) else None
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise InputError(f"{self.path}: names something by {printable(repr(digest)[:100])}, which is no SHA-256")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"{self.path}: does not say how large {digest} is")
        return digest, size

    def _object(self, data: bytes, what: str) -> dict:
        value = strict_json.loads(data, f"{self.path}: {what}")
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: {what} is no JSON object")
        return value

    def _open(self, name: str) -> BinaryIO:
        try:
            if self._archive is not None:
                return self._archive.extractfile(self._members[name])
            return open(self.path / name, "rb")
        except (KeyError, OSError) as error:
            raise InputError(f"{self.path}: has no {name}; copy the image again") from error


def _choose(layout: _Layout) -> dict:
    """The manifest for linux/arm64."""
    index, found = layout.index(), []
    todo = [(index, 0)]
    while todo:
        one, depth = todo.pop()
        listed = one.get("manifests")
        if not isinstance(listed, list) or depth > _MOST_INDEXES:
            raise InputError(f"{layout.path}: its index cannot be understood")
        for descriptor in listed:
            kind = descriptor.get("mediaType") if isinstance(descriptor, dict) else None
            platform = descriptor.get("platform") if isinstance(descriptor, dict) else None
            if kind == _INDEX:
                todo.append((layout.json(descriptor), depth + 1))
            elif kind == _MANIFEST and (not isinstance(platform, dict) or _is_arm64(platform)):
                found.append(layout.json(descriptor))
    if len(found) != 1:
        why = "several images" if found else "no image in OCI's own format"
        raise InputError(f"{layout.path}: has {why} for linux/arm64; skopeo copy one to an oci-archive of its own")
    (manifest,) = found
    if not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("layers"), list):
        raise InputError(f"{layout.path}: its manifest cannot be understood")
    return manifest


def _is_arm64(platform: dict) -> bool:
    return (platform.get("os"), platform.get("architecture")) == ("linux", "arm64")


@dataclass(frozen=True)
class _Member:
    node: Node
    layer: int
    info: tarfile.TarInfo | None


class Layers(Root):
    """The layers of a base image, one over the other, as the container will see them. Use it with `with`."""

    def __init__(self, layout: _Layout, manifest: dict, config: dict):
        self.what = str(layout.path)
        self._layout, self._manifest = layout, manifest
        rootfs = config.get("rootfs")
        self._ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(self._ids, list) or len(self._ids) != len(manifest["layers"]):
            raise InputError(f"{self.what}: its config does not fit its layers")
        self._stack = ExitStack()
        self._archives: list[tarfile.TarFile] = []
        self._members: dict[str, _Member] = {"/": _Member(Node(tree.FOLDER, 0o755, 0, 0, 0, 0), 0, None)}
        self._below: dict[str, set[str]] = {"/": set()}

    def __enter__(self) -> Layers:
        with self._stack:
            for number, (descriptor, expected) in enumerate(zip(self._manifest["layers"], self._ids)):
                self._add(number, descriptor, expected)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc) -> None:
        self._stack.close()

    def lstat(self, path: str) -> Node | None:
        """See `Root`."""
        member = self._members.get(path)
        return member.node if member else None

    def names(self, path: str) -> list[str]:
        """See `Root`."""
        return sorted(self._below.get(path, ()))

    def chunks(self, path: str) -> Iterator[bytes]:
        """See `Root`."""
        member = self._members[path]
        with self._archives[member.layer].extractfile(member.info) as stream:
            yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")

    def _add(self, number: int, descriptor: dict, expected: str) -> None:
        kind = descriptor.get("mediaType") if isinstance(descriptor, dict) else None
        if kind not in (_LAYER, _GZIP):
            raise InputError(
                f"{self.what}: has a layer of the kind {printable(repr(kind)[:80])}; skopeo copy "
                "--dest-compress-format gzip makes one that is known here"
            )
        plain = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        hashed = hashlib.sha256()
        try:
            packed = self._layout.chunks(descriptor)
            for chunk in _inflated(packed) if kind == _GZIP else packed:
                hashed.update(chunk)
                plain.write(chunk)
            if f"sha256:{hashed.hexdigest()}" != expected:
                raise SignatureError(f"{self.what}: layer {number + 1} is not the one that its config names")
            plain.seek(0)
            archive = self._stack.enter_context(tarfile.open(fileobj=plain, mode="r:"))  # noqa: SIM115
            self._archives.append(archive)
            members = list(archive)
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise InputError(f"{self.what}: layer {number + 1} cannot be unpacked ({error})") from error
        # Whiteouts hide content of the layers below their own, wherever they stand in it.
        for info in members:
            self._hide(info)
        for info in members:
            self._put(number, info)
        if len(self._members) > _MAX_ENTRIES:
            raise InputError(f"{self.what}: has more than {_MAX_ENTRIES} files")

    def _hide(self, info: tarfile.TarInfo) -> None:
        folder, name = self._place(info.name)
        if name == _OPAQUE:
            for below in self._below.get(folder, set()).copy():
                self._remove(_joined(folder, below))
        elif name.startswith(_WHITEOUT):
            self._remove(_joined(folder, name[len(_WHITEOUT) :]))

    def _put(self, number: int, info: tarfile.TarInfo) -> None:
        folder, name = self._place(info.name)
        if not name or name.startswith(_WHITEOUT):
            return
        path = _joined(folder, name)
        kind = {tarfile.DIRTYPE: tree.FOLDER, tarfile.SYMTYPE: tree.LINK}.get(info.type, "other")
        node = Node(
            tree.FILE if info.isreg() else kind, stat.S_IMODE(info.mode), info.uid, info.gid, info.size,
            int(info.mtime), info.linkname if kind == tree.LINK else None,
        )  # fmt: skip
        member = _Member(node, number, info)
        if info.islnk():
            member = self._members.get(_joined(*self._place(info.linkname)))
            if member is None:
                raise InputError(f"{self.what}: {printable(path[:200])} is a link to what is not there")
        if node.kind != tree.FOLDER:
            self._remove(path)
        self._parents(folder, number)
        self._members[path] = member
        self._below[folder].add(name)
        if node.kind == tree.FOLDER:
            self._below.setdefault(path, set())

    def _parents(self, folder: str, number: int) -> None:
        """Add the folders of a path; a layer need not hold the folders that its files are in."""
        if folder in self._below:
            return
        above, _, name = folder.rpartition("/")
        self._parents(above or "/", number)
        self._remove(folder)
        self._members[folder] = _Member(Node(tree.FOLDER, 0o755, 0, 0, 0, 0), number, None)
        self._below[folder] = set()
        self._below[above or "/"].add(name)

    def _remove(self, path: str) -> None:
        todo = [path]
        while todo:
            one = todo.pop()
            todo += [_joined(one, name) for name in self._below.pop(one, ())]
            self._members.pop(one, None)
        above, _, name = path.rpartition("/")
        self._below.get(above or "/", set()).discard(name)

    def _place(self, name: str) -> tuple[str, str]:
        """(folder, name) of a member; ("/", "") is the top."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise InputError(f"{self.what}: {printable(name[:200])} leads out of the image")
        return "/" + "/".join(parts[:-1]), parts[-1] if parts else ""


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The unpacked content of gzip data, of any number of members."""
    unpacker = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        while chunk:
            if unpacker.eof:
                unpacker = zlib.decompressobj(wbits=31)
            data = unpacker.decompress(chunk, _CHUNK_BYTES)
            chunk = unpacker.unconsumed_tail or unpacker.unused_data
            if data:
                yield data
    yield unpacker.flush()
    if not unpacker.eof:
        raise EOFError("cut off")


def _joined(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if name else folder


def _account(root: Layers, config: dict) -> User:
    """The user that runs the container: the owner of a new deployment in it."""
    said = config.get("config", {}).get("User") if isinstance(config.get("config"), dict) else None
    name = said.split(":")[0] if isinstance(said, str) else ""
    if name in ("", "0", "root"):
        return tree.ROOT_USER
    found = next((user for user in tree.users(root) if name in (user.name, str(user.uid))), None)
    if found is None:
        raise InputError(f"{root.what}: runs as {printable(name[:80])}, who is not in its /etc/passwd")
    return found


# --- the new archive -------------------------------------------------------------------------------------------------


def _write_layer(path: Path, plan: TreePlan) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in sorted(plan.entries, key=lambda entry: entry.path):  # a folder before its content
            info = _info(entry.path.lstrip("/"), entry.mtime, entry.mode)
            info.uid, info.gid = entry.uid, entry.gid
            if entry.kind == tree.FILE:
                info.size = entry.size_bytes
                with _Chunks(entry.chunks()) as stream:
                    archive.addfile(info, stream)
            else:
                info.type = tarfile.DIRTYPE if entry.kind == tree.FOLDER else tarfile.SYMTYPE
                info.linkname = entry.target or ""
                archive.addfile(info)
        gone = {path for path, _ in plan.removed}
        for path_ in sorted(gone):
            above, _, name = path_.rpartition("/")
            if above not in gone:
                archive.addfile(_info(f"{above.lstrip('/')}/{_WHITEOUT}{name}", 0, 0o644))


class _Chunks(io.RawIOBase):
    """An iterator of bytes as a stream, for tarfile."""

    def __init__(self, chunks: Iterator[bytes]):
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        """True, for tarfile."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, or fewer at the end."""
        while len(self._rest) < size and (chunk := next(self._chunks, b"")):
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _write(
    path: Path, layout: _Layout, manifest: dict, config: dict, layer: Path, bundle: Bundle, settings: DeploySettings
) -> None:
    """Write the whole archive: the base's layers unchanged, then the new one, and the files that name them."""
    digest = hashlib.sha256()
    with open(layer, "rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    created = bundle.manifest.created
    name = f"sha256:{digest.hexdigest()}"
    history = config.get("history") if isinstance(config.get("history"), list) else []
    said = {"created": created, "created_by": f"edgeprune pack: {bundle.manifest.name} {bundle.sha256[:16]}"}
    config = {
        **config,
        "created": created,
        "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], name]},
        "history": [*history, said],
    }
    if settings.source is not None:
        words = ["run", "--root", str(settings.root), "--source", settings.source, "--output", settings.output or "-"]
        runs = dict(config["config"]) if isinstance(config.get("config"), dict) else {}
        runs.pop("Cmd", None)
        config["config"] = {**runs, "Entrypoint": [f"{settings.root}/agent/bin/edgeprune", *words]}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        _put(archive, "oci-layout", strict_json.canonical({"imageLayoutVersion": "1.0.0"}))
        written = {name}
        with open(layer, "rb") as stream:
            info = _info(f"blobs/sha256/{name[7:]}", 0, 0o644)
            info.size = layer.stat().st_size
            archive.addfile(info, stream)
        for descriptor in manifest["layers"]:
            if descriptor["digest"] not in written:
                written.add(descriptor["digest"])
                info = _info(f"blobs/sha256/{descriptor['digest'][7:]}", 0, 0o644)
                info.size = descriptor["size"]
                with _Chunks(layout.chunks(descriptor)) as stream:
                    archive.addfile(info, stream)
        ours = {"mediaType": _LAYER, "digest": name, "size": layer.stat().st_size}
        described = _blob(archive, manifest["config"].get("mediaType", _CONFIG), config)
        renewed = {**manifest, "config": described, "layers": [*manifest["layers"], ours]}
        top = {
            **_blob(archive, _MANIFEST, renewed),
            "platform": {"architecture": "arm64", "os": "linux"},
            "annotations": {"org.opencontainers.image.ref.name": bundle.manifest.name},
        }
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [top]}
        _put(archive, "index.json", strict_json.canonical(index))


def _blob(archive: tarfile.TarFile, kind: str, value: dict) -> dict:
    """Write a blob; return its descriptor."""
    data = strict_json.canonical(value)
    digest = hashlib.sha256(data).hexdigest()
    _put(archive, f"blobs/sha256/{digest}", data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _put(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = _info(name, 0, 0o644)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _info(name: str, mtime: int, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mtime, info.mode = mtime, mode
    return info
