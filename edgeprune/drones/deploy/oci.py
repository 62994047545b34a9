"""A container for arm64: a base image and one more layer, with the same content as a deployment to a disk image.

The base is an OCI layout, as a folder or as a tar archive (skopeo copy … oci:FOLDER or oci-archive:FILE). Every blob
that is read from it is hashed. The layer is a plain tar whose bytes depend only on its content, so the same bundle on
the same base gives the same image; registries and skopeo compress it in transit. A container has no systemd: with a
source, the service is its entry point.

Source: OCI Image Specification 1.1.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from edgeprune_device import strict_json
from edgeprune_device.agent import COMMAND
from edgeprune_device.errors import InputError, SignatureError, reason
from edgeprune_device.files import replacing
from edgeprune_device.printable import printable
from edgeprune_device.progress import Say
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones.deploy import DeploySettings, agent, tar, tree
from edgeprune.drones.deploy.tree import Node, Root, TreePlan, User

__all__ = ["Layers", "pack"]

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_GZIP = f"{_LAYER}+gzip"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_MAX_JSON_BYTES = 4 << 20
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 100  # folders above a file
#: Bytes of a layer without compression. NVIDIA's largest images have some ten gigabytes.
_MAX_LAYER_BYTES = 64 << 30
#: A layer may have this many times its packed bytes, or this many bytes. gzip reaches 1032 with zeros, 3 with programs.
_MOST_EXPANDED, _FREE_BYTES = 100, 64 << 20
_MAX_LAYERS = 256  # Docker makes 127 at most
_CHUNK_BYTES = 1 << 20
_OPAQUE, _WHITEOUT = ".wh..wh..opq", ".wh."
_MOST_INDEXES = 4
_MOST_DOCUMENTS = 200
_FED_BYTES = 16 << 10  # the rest of a piece is copied for each member in it

#: A descriptor, manifest, index or config of the specification; its fields are checked where they are read.
Json = dict[str, Any]


def pack(bundle: Bundle, base: Path, out: Path, settings: DeploySettings, say: Say) -> None:
    """Write `out`, an OCI archive: `base` for arm64 with the bundle, its agent and this host's key.

    Args:
        bundle: The bundle.
        base: The base image.
        out: The archive to write.
        settings: The settings of the deployment.
        say: Called with the progress, as text.

    Raises:
        InputError: The base is not an OCI layout, is damaged, or is not for arm64.
        SignatureError: A blob of the base does not match its hash.
    """
    with ExitStack() as stack, replacing(out) as temporary:
        layout = stack.enter_context(_Layout(base))
        manifest = _choose(layout)
        config = layout.json(manifest["config"])
        if (config.get("os"), config.get("architecture")) != ("linux", "arm64"):
            what = printable(f"{config.get('os')}/{config.get('architecture')}"[:60])
            raise InputError(f"{base}: wrong platform (found {what}, expected linux/arm64)")
        root = stack.enter_context(Layers(layout, manifest, config))
        account = None if root.find(str(settings.root))[1] else _account(root, config)
        plan = tree.plan(
            root, bundle, settings, agent=agent.files(root, settings, say), account=account, unit=False,
            installed=bundle.manifest.created,
        )  # fmt: skip
        for line in plan.notes:
            say(f"{base}: {line}")
        layer = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "layer.tar"
        _write_layer(layer, plan)
        _write(temporary, layout, manifest, config, layer, bundle, settings)
    say(f"{out}: {plan.described()}; {settings.root} belongs to {plan.owner}, everything else to root")
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
                self._archive = tar.opened(str(self.path))
                listed = tar.members(self._archive, str(self.path))
                self._members = {m.name.removeprefix("./"): m for m in listed if m.isreg()}
            marker = self._open("oci-layout")
        except (OSError, InputError) as error:
            self.__exit__()
            raise InputError(
                f"{self.path}: not a readable OCI image layout (expected a folder or an uncompressed tar archive); "
                "create one with: skopeo copy SOURCE oci-archive:base.tar"
            ) from error
        marker.close()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._archive is not None:
            self._archive.close()

    def index(self) -> Json:
        """The index, which is the entry point of the layout."""
        with self._open("index.json") as stream:
            return self._object(stream.read(_MAX_JSON_BYTES), "index.json")

    def json(self, descriptor: Json) -> Json:
        """The JSON object that a descriptor names."""
        data = b"".join(self.chunks(descriptor, _MAX_JSON_BYTES))
        return self._object(data, descriptor["digest"])

    def chunks(self, descriptor: Json, limit_bytes: int | None = None) -> Iterator[bytes]:
        """A blob, in pieces. The hash is verified at the end of the iteration."""
        digest, size = self.checked(descriptor)
        if limit_bytes is not None and size > limit_bytes:
            raise InputError(
                f"{self.path}: blob {digest}: too large (found {size} bytes, expected at most {limit_bytes})"
            )
        total, hashed = 0, hashlib.sha256()
        with self._open(f"blobs/sha256/{digest[7:]}") as stream:
            for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
                total += len(chunk)
                hashed.update(chunk)
                if total > size:
                    break
                yield chunk
        if total != size or hashed.hexdigest() != digest[7:]:
            raise SignatureError(f"{self.path}: blob {digest}: damaged; copy the image again")

    def checked(self, descriptor: Json) -> tuple[str, int]:
        """The digest and the size of a descriptor."""
        digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
        size = descriptor.get("size") if isinstance(descriptor, dict) else None
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise InputError(f"{self.path}: invalid digest (found {printable(repr(digest)[:100])}, expected a SHA-256)")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise InputError(f"{self.path}: blob {digest}: invalid size; copy the image again")
        return digest, size

    def _object(self, data: bytes, what: str) -> Json:
        value = strict_json.loads(data, f"{self.path}: {what}")
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: {what}: not a JSON object; copy the image again")
        return value

    def _open(self, name: str) -> BinaryIO:
        try:
            if self._archive is not None:
                return tar.content(self._archive, self._members[name])
            return open(self.path / name, "rb")
        except (KeyError, OSError) as error:
            raise InputError(f"{self.path}: {name} is missing; copy the image again") from error


def _choose(layout: _Layout) -> Json:
    """The manifest for linux/arm64."""
    chosen: list[Json] = []
    todo, read = [(descriptor, 1) for descriptor in _listed(layout, layout.index())], 1
    while todo and len(chosen) < 2:
        descriptor, depth = todo.pop()
        kind = descriptor.get("mediaType") if isinstance(descriptor, dict) else None
        platform = descriptor.get("platform") if isinstance(descriptor, dict) else None
        if kind == _INDEX:
            if depth > _MOST_INDEXES or read == _MOST_DOCUMENTS:
                raise InputError(f"{layout.path}: malformed index; copy the image again")
            todo += [(below, depth + 1) for below in _listed(layout, layout.json(descriptor))]
            read += 1
        elif kind == _MANIFEST and (not isinstance(platform, dict) or _is_arm64(platform)):
            chosen.append(descriptor)
    if not chosen:
        raise InputError(
            f"{layout.path}: no linux/arm64 image with an OCI manifest; convert the image with: skopeo copy SOURCE "
            "oci-archive:base.tar"
        )
    if len(chosen) > 1:
        raise InputError(
            f"{layout.path}: several linux/arm64 images (expected one); copy the one that you want to a separate "
            "archive with skopeo copy"
        )
    manifest = layout.json(chosen[0])
    if not isinstance(manifest.get("config"), dict) or not isinstance(manifest.get("layers"), list):
        raise InputError(f"{layout.path}: malformed manifest; copy the image again")
    return manifest


def _listed(layout: _Layout, index: Json) -> list[Any]:
    listed = index.get("manifests")
    if not isinstance(listed, list) or len(listed) > _MOST_DOCUMENTS:
        raise InputError(f"{layout.path}: malformed index; copy the image again")
    return listed


def _is_arm64(platform: Json) -> bool:
    return (platform.get("os"), platform.get("architecture")) == ("linux", "arm64")


@dataclass(frozen=True)
class _Member:
    node: Node
    layer: int
    info: tarfile.TarInfo | None


class Layers(Root):
    """The layers of a base image, merged as the container will see them. Use it with `with`."""

    def __init__(self, layout: _Layout, manifest: Json, config: Json):
        self.what = str(layout.path)
        self._layout, self._manifest = layout, manifest
        rootfs = config.get("rootfs")
        ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if not isinstance(ids, list) or len(ids) != len(manifest["layers"]):
            found = f"{len(ids)} diff_ids" if isinstance(ids, list) else "no diff_ids"
            raise InputError(
                f"{self.what}: the config lists {found} for {len(manifest['layers'])} layers; copy the image again"
            )
        if len(ids) > _MAX_LAYERS:
            raise InputError(f"{self.what}: too many layers (found {len(ids)}, expected at most {_MAX_LAYERS})")
        self._ids: list[object] = ids
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

    def __exit__(self, *exc: object) -> None:
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
        assert member.info is not None, "a folder has no content"
        with tar.content(self._archives[member.layer], member.info) as stream:
            yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")

    def _add(self, number: int, descriptor: Json, expected: object) -> None:
        kind = descriptor.get("mediaType") if isinstance(descriptor, dict) else None
        if kind not in (_LAYER, _GZIP):
            raise InputError(
                f"{self.what}: unsupported layer type (found {printable(repr(kind)[:80])}, expected tar or tar+gzip); "
                "convert the image with skopeo copy --dest-compress-format gzip"
            )
        plain = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        hashed, total, what = hashlib.sha256(), 0, f"{self.what}: layer {number + 1}"
        limit = min(max(_MOST_EXPANDED * self._layout.checked(descriptor)[1], _FREE_BYTES), _MAX_LAYER_BYTES)
        try:
            packed = self._layout.chunks(descriptor)
            for chunk in _inflated(packed) if kind == _GZIP else packed:
                total += len(chunk)
                if total > limit:
                    raise InputError(f"{what}: too large when decompressed (expected at most {limit} bytes)")
                hashed.update(chunk)
                plain.write(chunk)
            if f"sha256:{hashed.hexdigest()}" != expected:
                raise SignatureError(
                    f"{self.what}: layer {number + 1}: wrong hash (changed or damaged); copy the image again"
                )
            plain.seek(0)
            archive = self._stack.enter_context(tar.opened(what, cast(BinaryIO, plain)))
            self._archives.append(archive)
            members = tar.members(archive, what)
        except (zlib.error, EOFError) as error:
            raise InputError(
                f"{what}: cannot be unpacked ({printable(str(error)[:100])}); copy the image again"
            ) from error
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: {what} cannot be unpacked into this folder ({reason(error)}); free some "
                "space, or set TMPDIR"
            ) from error
        if len(members) + len(self._members) > _MAX_ENTRIES:
            raise InputError(f"{self.what}: too many files (expected at most {_MAX_ENTRIES:,})")
        # Whiteouts hide content of the layers below, whatever their position in their own layer.
        for info in members:
            self._hide(info)
        for info in members:
            self._put(number, info)

    def _hide(self, info: tarfile.TarInfo) -> None:
        folder, name = self._place(info.name)
        if name == _OPAQUE:
            for below in self._below.get(folder, set()).copy():
                self._remove(_joined(folder, below))
        elif name == _WHITEOUT:
            raise InputError(f"{self.what}: invalid whiteout file {name} (expected a name after .wh.)")
        elif name.startswith(_WHITEOUT):
            self._remove(_joined(folder, name[len(_WHITEOUT) :]))

    def _put(self, number: int, info: tarfile.TarInfo) -> None:
        folder, name = self._place(info.name)
        if not name or name.startswith(_WHITEOUT):
            return
        path = _joined(folder, name)
        kind = {tarfile.DIRTYPE: tree.FOLDER, tarfile.SYMTYPE: tree.LINK}.get(info.type, "other")
        node = Node(
            tree.FILE if info.isreg() else kind, info.mode & 0o7777, info.uid, info.gid, info.size,
            int(info.mtime), info.linkname if kind == tree.LINK else None,
        )  # fmt: skip
        member = self._linked(path, info.linkname) if info.islnk() else _Member(node, number, info)
        if node.kind != tree.FOLDER:
            self._remove(path)
        self._parents(folder, number)
        self._members[path] = member
        self._below[folder].add(name)
        if node.kind == tree.FOLDER:
            self._below.setdefault(path, set())

    def _linked(self, path: str, target: str) -> _Member:
        """The member that a hard link names."""
        member = self._members.get(_joined(*self._place(target)))
        if member is None:
            raise InputError(f"{self.what}: {printable(path[:200])}: hard link to a missing file")
        return member

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
            raise InputError(f"{self.what}: {printable(name[:200])}: path outside the image")
        if len(parts) > _MAX_DEPTH:
            raise InputError(
                f"{self.what}: {printable(name[:200])}: nested too deeply (expected at most {_MAX_DEPTH} folders)"
            )
        return "/" + "/".join(parts[:-1]), parts[-1] if parts else ""


def _inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The unpacked content of gzip data with any number of members."""
    unpacker = zlib.decompressobj(wbits=31)
    for chunk in (whole[at : at + _FED_BYTES] for whole in chunks for at in range(0, len(whole), _FED_BYTES)):
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


def _account(root: Layers, config: Json) -> User:
    """The user that the container runs as; this user owns a new deployment in it."""
    configured = config.get("config", {}).get("User") if isinstance(config.get("config"), dict) else None
    name = configured.split(":")[0] if isinstance(configured, str) else ""
    if name in ("", "0", "root"):
        return tree.ROOT_USER
    account = next((user for user in tree.users(root) if name in (user.name, str(user.uid))), None)
    if account is None:
        raise InputError(
            f"{root.what}: unknown user {printable(name[:80])} (missing from the image's /etc/passwd); add the user, "
            "or set USER"
        )
    return account


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
    path: Path, layout: _Layout, manifest: Json, config: Json, layer: Path, bundle: Bundle, settings: DeploySettings
) -> None:
    """Write the whole archive: the base's layers unchanged, then the new one, and the files that name them."""
    digest = hashlib.sha256()
    with open(layer, "rb") as stream:
        for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    created = bundle.manifest.created
    name = f"sha256:{digest.hexdigest()}"
    former = config.get("history")
    history = former if isinstance(former, list) else []
    entry = {"created": created, "created_by": f"edgeprune pack: {bundle.manifest.name} {bundle.sha256[:16]}"}
    config = {
        **config,
        "created": created,
        "rootfs": {"type": "layers", "diff_ids": [*config["rootfs"]["diff_ids"], name]},
        "history": [*history, entry],
    }
    if settings.source is not None:
        words = ["run", "--root", str(settings.root), "--source", settings.source, "--output", settings.output or "-"]
        runs = dict(config["config"]) if isinstance(config.get("config"), dict) else {}
        runs.pop("Cmd", None)
        config["config"] = {**runs, "Entrypoint": [f"{settings.root}/{COMMAND}", *words]}
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


def _blob(archive: tarfile.TarFile, kind: str, value: Json) -> Json:
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
