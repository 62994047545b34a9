"""A bundle, `NAME.epb`: one signed file with everything that a drone needs to run a model and to measure it.

All numbers are little-endian.

    offset  bytes
    0       8       magic  89 45 50 42 0D 0A 1A 0A  (like PNG's: it reveals a transfer in text mode)
    8       4       format version, 1
    12      4       length M of the manifest, at most 1 MiB
    16      32      Ed25519 public key of the signer
    48      64      Ed25519 signature over bytes 0..47 followed by the manifest
    112     M       manifest: canonical JSON (`schema/manifest.json`)
    112+M   …       payloads, back to back in the manifest's order; nothing after them

The manifest holds offset, size and SHA-256 of each payload, so the signature covers every byte of the file. The bytes
before the payloads are the *envelope*. It can be verified alone, and each payload later by its hash. A model that loads
weights or an engine from outside its own file is refused, because they are not signed.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Callable, Iterable, List, Mapping, Optional, Tuple, Union

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from edgeprune_device import onnx_file, strict_json
from edgeprune_device.errors import InputError, SignatureError, reason
from edgeprune_device.files import check_file, replacing
from edgeprune_device.hint import no_such_file
from edgeprune_device.trust import keys
from edgeprune_device.trust.manifest import Manifest, Payload

__all__ = ["Bundle", "read_manifest"]

MAGIC = b"\x89EPB\r\n\x1a\n"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 8 << 30  # all of them together
MAX_MODEL_BYTES = (2 << 30) - 1  # of one ONNX file, protobuf's limit; a larger model needs other files
_HEADER = struct.Struct("<8sII32s")
_SIGNATURE_BYTES = 64
_CHUNK_BYTES = 1 << 20


class Bundle:
    """A verified bundle. Only `open` and `write` make one, so no content of an unverified file is ever returned.

    Attributes:
        path: The file.
        manifest: The verified manifest.
        sha256: SHA-256 of the whole file.
        key_fingerprint: Fingerprint of the key that signed it.
        trusted: Whether that key is trusted.
        payloads: {name: payload}.
        envelope_bytes: Size of the part before the payloads; payload offsets are relative to it.
    """

    def __init__(self, path: Path, manifest: Manifest, envelope_bytes: int, key: VerifyKey, trusted: bool, sha256: str):
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256
        self.key_fingerprint = keys.fingerprint(key)
        self.trusted = trusted
        self.payloads: Mapping[str, Payload] = MappingProxyType({entry.name: entry for entry in manifest.payloads})
        self.envelope_bytes = envelope_bytes

    @classmethod
    def write(
        cls,
        path: Union[str, Path],
        manifest: Mapping[str, Any],
        payloads: Mapping[str, Union[bytes, Path]],
        key: SigningKey,
    ) -> Bundle:
        """Sign and write a bundle, completely or not at all.

        Args:
            path: The file to write.
            manifest: A JSON object without "payloads"; "schema_version" and "task" may be left out.
            payloads: {name: content}; contents given as paths are streamed.
            key: The key to sign with.

        Returns:
            The bundle, read back and verified.

        Raises:
            InputError: The manifest does not fit its schema, or a file cannot be read or written.
            SignatureError: `key` was revoked.
        """
        path = Path(path)
        _refuse_revoked(key.verify_key, str(path))
        entries, offset = [], 0
        for name, source in payloads.items():
            size, digest = _digest(_chunks(source))
            entries.append({"name": name, "offset_bytes": offset, "size_bytes": size, "sha256": digest})
            offset += size
        data = {"schema_version": 1, "task": "detect", **manifest, "payloads": entries}
        try:
            text = strict_json.canonical(data)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: the manifest cannot be written as JSON ({error})") from error
        Manifest.from_json(strict_json.loads(text, f"{path}: manifest"), f"{path}: manifest")
        if len(text) > MAX_MANIFEST_BYTES:
            raise InputError(
                f"{path}: the manifest is too large (found {len(text)} bytes, expected at most {MAX_MANIFEST_BYTES})"
            )
        head = _HEADER.pack(MAGIC, FORMAT_VERSION, len(text), bytes(key.verify_key))
        with replacing(path) as temporary:
            try:
                with open(temporary, "wb") as stream:
                    stream.write(head + key.sign(head + text).signature + text)
                    for source in payloads.values():
                        for chunk in _chunks(source):
                            stream.write(chunk)
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({reason(error)})") from error
            # Read back before the rename: this detects a payload that changed in the meantime, or a bad disk.
            bundle = cls.open(temporary, trusted=[key.verify_key])
        bundle.path = path
        return bundle

    @classmethod
    def open(
        cls,
        path: Union[str, Path],
        trusted: Optional[Iterable[VerifyKey]] = None,
        allow_untrusted: bool = False,
    ) -> Bundle:
        """Verify the whole file and return the bundle.

        Args:
            path: The file.
            trusted: The keys to accept, by default `keys.trusted()`.
            allow_untrusted: Accept an unknown key and leave `.trusted` False. The signature itself must still be valid,
                and a revoked key is refused in any case.

        Raises:
            InputError: The file cannot be read, is not a bundle, has an unknown format or manifest, or has a model that
                is not completely inside its file.
            SignatureError: The signature, a hash or the size is wrong, or the key is revoked or not trusted.
        """
        path = Path(path)
        check_file(path)
        try:
            with open(path, "rb") as stream:
                return cls._read(path, stream, trusted, allow_untrusted)
        except OSError as error:
            if not path.exists():
                raise InputError(no_such_file(path)) from error
            raise InputError(f"{path}: the bundle cannot be read ({reason(error)})") from error

    @classmethod
    def _read(
        cls, path: Path, stream: BinaryIO, trusted: Optional[Iterable[VerifyKey]], allow_untrusted: bool
    ) -> Bundle:
        whole = hashlib.sha256()
        envelope = _take_envelope(stream, str(path))
        manifest, key, is_trusted = read_manifest(envelope, str(path), trusted, allow_untrusted)
        size, expected = os.fstat(stream.fileno()).st_size, len(envelope) + manifest.size_bytes
        if size != expected:
            problem = "cut off" if size < expected else "followed by extra data"
            raise SignatureError(
                f"{path}: the bundle is {problem} (found {size} bytes, expected {expected}); copy the bundle again"
            )
        whole.update(envelope)
        for entry in manifest.payloads:
            _verify(path, entry, _take(stream, entry.size_bytes), whole.update)
        bundle = cls(path, manifest, len(envelope), key, is_trusted, whole.hexdigest())
        bundle._check_models()
        return bundle

    def _check_models(self) -> None:
        """Raise InputError for a model that loads data from outside its file, which the signature would not cover."""
        names = {model["payload"] for model in self.manifest.models.values() if model["payload"] is not None}
        for name in sorted(names):
            size = self.payloads[name].size_bytes
            if size > MAX_MODEL_BYTES:
                raise InputError(
                    f"{self.path}: {name}: too large (found {size} bytes, expected at most {MAX_MODEL_BYTES})"
                )
            onnx_file.refuse_outside(self.read(name), f"{self.path}: {name}")

    def read(self, name: str) -> bytes:
        """Read one payload and verify its hash again, as the file may have changed since it was opened.

        Raises:
            InputError: The payload does not exist, or the file cannot be read.
            SignatureError: The payload has changed.
        """
        if name not in self.payloads:
            raise InputError(f"{self.path}: no such payload: {name!r} (found {', '.join(self.payloads)})")
        entry = self.payloads[name]
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.envelope_bytes + entry.offset_bytes)
                data = stream.read(entry.size_bytes)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({reason(error)})") from error
        _verify(self.path, entry, [data])
        return data

    def extract(self, name: str, path: Union[str, Path]) -> None:
        """Write one payload to a new file; its content is streamed and hashed on the way.

        Args:
            name: Name of the payload.
            path: The file to create.

        Raises:
            InputError: The path already exists, even as a dangling link, or cannot be written.
            SignatureError: The payload has changed; no file is left.
        """
        path, entry = Path(path), self.payloads[name]
        try:
            # O_EXCL follows no link and overwrites nothing.
            descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise InputError(f"{path}: cannot be created ({reason(error)})") from error
        try:
            with os.fdopen(descriptor, "wb") as out, open(self.path, "rb") as stream:
                stream.seek(self.envelope_bytes + entry.offset_bytes)
                _verify(self.path, entry, _copied(_take(stream, entry.size_bytes), out))
                out.flush()
                os.fsync(out.fileno())
        except BaseException as error:
            path.unlink()
            if isinstance(error, OSError):
                raise InputError(f"{path}: cannot be written ({reason(error)})") from error
            raise


def read_manifest(
    envelope: bytes, what: str, trusted: Optional[Iterable[VerifyKey]] = None, allow_untrusted: bool = False
) -> Tuple[Manifest, VerifyKey, bool]:
    """Verify the envelope of a bundle, without its payloads.

    Bundle signatures are checked only here. The manifest is parsed only after its signature is verified.

    Args:
        envelope: The first bytes of a bundle, exactly up to its payloads.
        what: Start of the error messages.
        trusted: See `Bundle.open`.
        allow_untrusted: See `Bundle.open`.

    Returns:
        (manifest, the key that signed it, whether that key is trusted).

    Raises:
        InputError: See `Bundle.open`.
        SignatureError: See `Bundle.open`.
    """
    accepted = list(keys.trusted().values() if trusted is None else trusted)
    key, head, signature, text = _split(envelope, what)
    _refuse_revoked(key, what)
    is_trusted = any(bytes(key) == bytes(other) for other in accepted)
    if not is_trusted and not allow_untrusted:
        keys.trusted_files()  # raises if a file is damaged, as it may be the file of this key
        raise SignatureError(
            f"{what}: signing key not trusted on this machine (found {keys.fingerprint(key)}, trusted: "
            f"{_listed(accepted)}); if you trust the host that signed the bundle, run edgeprune keys export host.pub "
            "there, copy the file here, and run edgeprune keys trust host.pub"
        )
    try:
        key.verify(head + text, signature)
    except (CryptoError, ValueError) as error:
        raise SignatureError(
            f"{what}: invalid signature of {keys.fingerprint(key)}: the bundle was changed or damaged; "
            "copy the bundle again from the host that built it"
        ) from error
    manifest = Manifest.from_json(strict_json.loads(text, f"{what}: manifest"), f"{what}: manifest")
    if manifest.size_bytes > MAX_PAYLOAD_BYTES:
        raise InputError(
            f"{what}: payloads too large (found {manifest.size_bytes} bytes, expected at most {MAX_PAYLOAD_BYTES})"
        )
    return manifest, key, is_trusted


def _refuse_revoked(key: VerifyKey, what: str) -> None:
    path = keys.revoked().get(keys.fingerprint(key))
    if path is not None:
        raise SignatureError(
            f"{what}: signed by {keys.fingerprint(key)}, a key that is revoked here ({path}); sign the bundle "
            "with another key (edgeprune keys make, on the host)"
        )


def _take_envelope(stream: BinaryIO, what: str) -> bytes:
    """Header, signature and manifest, all of them unverified."""
    begin = stream.read(_HEADER.size + _SIGNATURE_BYTES)
    return begin + stream.read(_manifest_bytes(begin, what))


def _split(envelope: bytes, what: str) -> Tuple[VerifyKey, bytes, bytes, bytes]:
    """(key, header, signature, manifest text) of an envelope, all of them unverified."""
    length, begin = _manifest_bytes(envelope, what), _HEADER.size + _SIGNATURE_BYTES
    if len(envelope) < begin + length:
        raise SignatureError(f"{what}: the bundle is cut off; copy the bundle again")
    if len(envelope) > begin + length:
        raise SignatureError(f"{what}: the manifest is followed by extra data; copy the bundle again")
    head = envelope[: _HEADER.size]
    _, _, _, public = _HEADER.unpack(head)
    return VerifyKey(public), head, envelope[_HEADER.size : begin], envelope[begin:]


def _manifest_bytes(begin: bytes, what: str) -> int:
    """The length of the manifest according to the first bytes of a bundle."""
    if begin[: len(MAGIC)] != MAGIC:
        raise InputError(f"{what}: not an edgeprune bundle (expected an .epb file from `edgeprune build`)")
    if len(begin) < _HEADER.size + _SIGNATURE_BYTES:
        raise SignatureError(f"{what}: the bundle is cut off; copy the bundle again")
    _, version, length, _ = _HEADER.unpack(begin[: _HEADER.size])
    if version != FORMAT_VERSION:
        raise InputError(
            f"{what}: unknown bundle format (found {version}, expected {FORMAT_VERSION}); update edgeprune-device"
        )
    if length > MAX_MANIFEST_BYTES:
        raise SignatureError(
            f"{what}: invalid manifest length (found {length}, expected at most {MAX_MANIFEST_BYTES} bytes); copy the "
            "bundle again"
        )
    return int(length)


def _verify(
    path: Path, entry: Payload, chunks: Iterable[bytes], also: Optional[Callable[[bytes], None]] = None
) -> None:
    """Check the chunks of a payload against its hash; `also` receives each chunk."""
    size, digest = _digest(chunks, also)
    if size != entry.size_bytes or digest != entry.sha256:
        raise SignatureError(
            f"{path}: {entry.name}: does not match its signed SHA-256 (changed or damaged); copy the bundle again"
        )


def _digest(chunks: Iterable[bytes], also: Optional[Callable[[bytes], None]] = None) -> Tuple[int, str]:
    """Size and SHA-256 of the chunks; `also` receives each chunk."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        digest.update(chunk)
        if also is not None:
            also(chunk)
    return size, digest.hexdigest()


def _chunks(source: Union[bytes, str, Path]) -> Iterable[bytes]:
    if isinstance(source, (bytes, bytearray)):
        yield bytes(source)
        return
    try:
        with open(source, "rb") as stream:
            yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({reason(error)})") from error


def _take(stream: BinaryIO, size: int) -> Iterable[bytes]:
    while size > 0:
        chunk = stream.read(min(size, _CHUNK_BYTES))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def _copied(chunks: Iterable[bytes], out: BinaryIO) -> Iterable[bytes]:
    for chunk in chunks:
        out.write(chunk)
        yield chunk


def _listed(accepted: List[VerifyKey]) -> str:
    return ", ".join(keys.fingerprint(key) for key in accepted) or "none"
