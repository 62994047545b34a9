"""A bundle, `NAME.epb`: one signed file with everything that a drone needs to run a model and to judge it.

All numbers are little-endian.

    offset  bytes
    0       8       magic  89 45 50 42 0D 0A 1A 0A  (as PNG's: a transfer in text mode shows at once)
    8       4       format version, 1
    12      4       length M of the manifest, at most 1 MiB
    16      32      Ed25519 public key of the signer
    48      64      Ed25519 signature over bytes 0..47 followed by the manifest
    112     M       manifest: canonical JSON (`schema/manifest.json`)
    112+M   …       payloads, back to back in the manifest's order; nothing after them

The manifest holds offset, size and SHA-256 of each payload, so the signature covers every byte of the file. The bytes
before the payloads are the *envelope*. It can be verified alone, and after it each payload by its hash.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Iterable, List, Mapping, Optional, Tuple, Union

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from edgeprune_device import strict_json
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.files import replacing
from edgeprune_device.hint import no_such_file
from edgeprune_device.trust import keys
from edgeprune_device.trust.manifest import Manifest, Payload

__all__ = ["Bundle", "read_manifest"]

MAGIC = b"\x89EPB\r\n\x1a\n"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 8 << 30  # all of them together
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
        trusted: Whether that key is among the trusted ones.
        payloads: {name: payload}.
        envelope_bytes: Size of the part before the payloads; their offsets count from there.
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
        cls, path: Union[str, Path], manifest: dict, payloads: Mapping[str, Union[bytes, Path]], key: SigningKey
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
            raise InputError(f"{path}: the manifest is not JSON ({error})") from error
        Manifest.from_json(strict_json.loads(text, f"{path}: manifest"), f"{path}: manifest")
        if len(text) > MAX_MANIFEST_BYTES:
            raise InputError(f"{path}: the manifest has {len(text)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
        head = _HEADER.pack(MAGIC, FORMAT_VERSION, len(text), bytes(key.verify_key))
        with replacing(path) as temporary:
            try:
                with open(temporary, "wb") as stream:
                    stream.write(head + key.sign(head + text).signature + text)
                    for source in payloads.values():
                        for chunk in _chunks(source):
                            stream.write(chunk)
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({str(error.strerror or error).lower()})") from error
            # Read back before it takes its name: a payload that changed meanwhile, or a bad disk, shows here.
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
            InputError: The file cannot be read, is not a bundle, or has a format or manifest that this version does not
                know.
            SignatureError: The signature, a hash or the size is wrong, or the key is revoked or not trusted.
        """
        path = Path(path)
        try:
            with open(path, "rb") as stream:
                return cls._read(path, stream, trusted, allow_untrusted)
        except OSError as error:
            if not path.exists():
                raise InputError(no_such_file(path)) from error
            raise InputError(f"{path}: the bundle cannot be read ({str(error.strerror or error).lower()})") from error

    @classmethod
    def _read(
        cls, path: Path, stream: BinaryIO, trusted: Optional[Iterable[VerifyKey]], allow_untrusted: bool
    ) -> Bundle:
        whole = hashlib.sha256()
        envelope = _take_envelope(stream, str(path))
        manifest, key, is_trusted = read_manifest(envelope, str(path), trusted, allow_untrusted)
        size, expected = os.fstat(stream.fileno()).st_size, len(envelope) + manifest.size_bytes
        if size != expected:
            problem = "cut off" if size < expected else "followed by something that is not part of it"
            raise SignatureError(f"{path}: the bundle is {problem} ({size} bytes instead of {expected}); copy it again")
        whole.update(envelope)
        for entry in manifest.payloads:
            _verify(path, entry, _take(stream, entry.size_bytes), whole)
        return cls(path, manifest, len(envelope), key, is_trusted, whole.hexdigest())

    def read(self, name: str) -> bytes:
        """Read one payload and hash it again, as the file may have changed since it was opened.

        Raises:
            InputError: There is no such payload, or the file cannot be read.
            SignatureError: The payload has changed.
        """
        if name not in self.payloads:
            raise InputError(f"{self.path}: has no payload {name!r}; it has {', '.join(self.payloads)}")
        entry = self.payloads[name]
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.envelope_bytes + entry.offset_bytes)
                data = stream.read(entry.size_bytes)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({str(error.strerror or error).lower()})") from error
        _verify(self.path, entry, [data])
        return data

    def extract(self, name: str, path: Union[str, Path]) -> None:
        """Write one payload to a new file; its content is streamed and hashed on the way.

        Args:
            name: Name of the payload.
            path: The file to make.

        Raises:
            InputError: The path exists already (a link counts, wherever it leads), or cannot be written.
            SignatureError: The payload has changed; no file is left.
        """
        path, entry = Path(path), self.payloads[name]
        try:
            # O_EXCL follows no link and overwrites nothing.
            descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except OSError as error:
            raise InputError(f"{path}: cannot be made ({str(error.strerror).lower()})") from error
        try:
            with os.fdopen(descriptor, "wb") as out, open(self.path, "rb") as stream:
                stream.seek(self.envelope_bytes + entry.offset_bytes)
                _verify(self.path, entry, _copied(_take(stream, entry.size_bytes), out))
                out.flush()
                os.fsync(out.fileno())
        except BaseException as error:
            path.unlink()
            if isinstance(error, OSError):
                raise InputError(f"{path}: cannot be written ({str(error.strerror or error).lower()})") from error
            raise


def read_manifest(
    envelope: bytes, what: str, trusted: Optional[Iterable[VerifyKey]] = None, allow_untrusted: bool = False
) -> Tuple[Manifest, VerifyKey, bool]:
    """Verify the envelope of a bundle, without its payloads.

    This is the one place where a signature is checked. The manifest is not parsed before the signature is verified.

    Args:
        envelope: Exactly the first bytes of a bundle, up to its payloads.
        what: Begins the messages.
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
        keys.trusted_files()  # raises where a file is damaged, which may be the one of this key
        raise SignatureError(
            f"{what}: signed by {keys.fingerprint(key)}, a key that is not trusted here; if you know whose it is, "
            f"fetch its host.pub and say edgeprune keys trust host.pub (trusted now: {_listed(accepted)})"
        )
    try:
        key.verify(head + text, signature)
    except (CryptoError, ValueError) as error:
        raise SignatureError(
            f"{what}: the signature of {keys.fingerprint(key)} does not hold: the bundle was changed or damaged; "
            "copy it again from where it was built"
        ) from error
    manifest = Manifest.from_json(strict_json.loads(text, f"{what}: manifest"), f"{what}: manifest")
    if manifest.size_bytes > MAX_PAYLOAD_BYTES:
        raise InputError(f"{what}: its payloads have {manifest.size_bytes} bytes; at most {MAX_PAYLOAD_BYTES} may be")
    return manifest, key, is_trusted


def _refuse_revoked(key: VerifyKey, what: str) -> None:
    path = keys.revoked().get(keys.fingerprint(key))
    if path is not None:
        raise SignatureError(
            f"{what}: signed by {keys.fingerprint(key)}, a key that was revoked here ({path}); build it again with "
            "another key (edgeprune keys make, on the host)"
        )


def _take_envelope(stream: BinaryIO, what: str) -> bytes:
    """Header, signature and manifest, all of them unverified."""
    begin = stream.read(_HEADER.size + _SIGNATURE_BYTES)
    return begin + stream.read(_manifest_bytes(begin, what))


def _split(envelope: bytes, what: str) -> Tuple[VerifyKey, bytes, bytes, bytes]:
    """(key, header, signature, manifest text) of an envelope, all of them unverified."""
    length, begin = _manifest_bytes(envelope, what), _HEADER.size + _SIGNATURE_BYTES
    if len(envelope) < begin + length:
        raise SignatureError(f"{what}: the bundle is cut off; copy it again")
    if len(envelope) > begin + length:
        raise SignatureError(f"{what}: the manifest is followed by something that is not part of it; copy it again")
    head = envelope[: _HEADER.size]
    _, _, _, public = _HEADER.unpack(head)
    return VerifyKey(public), head, envelope[_HEADER.size : begin], envelope[begin:]


def _manifest_bytes(begin: bytes, what: str) -> int:
    """The length of the manifest, as the first bytes of a bundle claim it."""
    if begin[: len(MAGIC)] != MAGIC:
        raise InputError(f"{what}: not an edgeprune bundle (an .epb file that `edgeprune build` wrote)")
    if len(begin) < _HEADER.size + _SIGNATURE_BYTES:
        raise SignatureError(f"{what}: the bundle is cut off; copy it again")
    _, version, length, _ = _HEADER.unpack(begin[: _HEADER.size])
    if version != FORMAT_VERSION:
        raise InputError(
            f"{what}: bundle format {version} is not known here (known: {FORMAT_VERSION}); update edgeprune-device"
        )
    if length > MAX_MANIFEST_BYTES:
        raise SignatureError(f"{what}: the manifest claims {length} bytes: the bundle is damaged; copy it again")
    return length


def _verify(path: Path, entry: Payload, chunks: Iterable[bytes], also=None) -> None:
    size, digest = _digest(chunks, also)
    if size != entry.size_bytes or digest != entry.sha256:
        raise SignatureError(
            f"{path}: {entry.name} does not match its signed SHA-256: it was changed or damaged; copy the bundle again"
        )


def _digest(chunks: Iterable[bytes], also=None) -> Tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        size += len(chunk)
        digest.update(chunk)
        if also is not None:
            also.update(chunk)
    return size, digest.hexdigest()


def _chunks(source: Union[bytes, str, Path]) -> Iterable[bytes]:
    if isinstance(source, (bytes, bytearray)):
        yield bytes(source)
        return
    try:
        with open(source, "rb") as stream:
            yield from iter(lambda: stream.read(_CHUNK_BYTES), b"")
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({str(error.strerror or error).lower()})") from error


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
