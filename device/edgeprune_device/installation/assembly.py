"""Assembles a bundle on the device from the parts that a host sent and from installed releases.

    incoming/BUNDLE_SHA256/envelope                the bundle's first bytes, as far as its manifest
    incoming/BUNDLE_SHA256/PAYLOAD_SHA256.00000    a payload that no release here has, in pieces of `piece_bytes`

Small payloads have small pieces, so that several connections can share one payload, and a broken link costs each
connection only one piece. Every payload is hashed while it is copied into the bundle, whether it comes from pieces or
from a release. The module does not transfer files.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterable, List, Mapping, NamedTuple, Union

from edgeprune_device.errors import EdgepruneError, InputError, SignatureError, reason
from edgeprune_device.files import check_room, opener, replacing
from edgeprune_device.releases import Releases
from edgeprune_device.trust.bundle import MAX_MANIFEST_BYTES, Bundle, read_manifest
from edgeprune_device.trust.manifest import Manifest, Payload

__all__ = ["ENVELOPE", "PayloadPiece", "assemble", "held", "missing", "piece_bytes", "pieces"]

ENVELOPE = "envelope"
_SMALLEST_BYTES, _LARGEST_BYTES = 1 << 16, 1 << 22
_PIECES = 1024  # of a payload between 64 MiB and 4 GiB, at most
_MAX_ENVELOPE_BYTES = 112 + MAX_MANIFEST_BYTES
_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 20


class PayloadPiece(NamedTuple):
    """A part of a payload.

    Attributes:
        name: Name of its file in `incoming`.
        offset_bytes: Offset of its first byte in the payload.
        size_bytes: Size.
    """

    name: str
    offset_bytes: int
    size_bytes: int


class _Place(NamedTuple):
    """The place of a payload in a release's bundle."""

    path: Path
    offset_bytes: int


def piece_bytes(size_bytes: int) -> int:
    """Size of the pieces of a payload of this size: 64 KiB to 4 MiB, a power of two."""
    size = _SMALLEST_BYTES
    while size < _LARGEST_BYTES and size * _PIECES < size_bytes:
        size *= 2
    return size


def pieces(payload: Payload) -> List[PayloadPiece]:
    """All pieces of a payload, in order. The same content has the same pieces in every bundle."""
    step = piece_bytes(payload.size_bytes)
    return [
        PayloadPiece(f"{payload.sha256}.{number:05}", at, min(step, payload.size_bytes - at))
        for number, at in enumerate(range(0, payload.size_bytes, step))
    ]


def held(releases: Releases) -> List[str]:
    """The SHA-256 of every payload of every intact release; verifies each bundle."""
    return sorted(_places(releases))


def missing(manifest: Manifest, held: Iterable[str]) -> List[Payload]:
    """The payloads that must be sent; identical contents are listed once.

    Args:
        manifest: Manifest of the bundle.
        held: SHA-256 of the payloads that the device has.
    """
    known, payloads = set(held), []
    for payload in manifest.payloads:
        if payload.size_bytes and payload.sha256 not in known:
            known.add(payload.sha256)
            payloads.append(payload)
    return payloads


def assemble(
    incoming: Union[str, Path], releases: Releases, target: Union[str, Path], *, allow_untrusted: bool = False
) -> Path:
    """Write a bundle from its parts, completely or not at all.

    The envelope's signature is verified before its manifest is parsed.

    Args:
        incoming: Folder of the parts; its name is the bundle's SHA-256.
        releases: Releases whose payloads are used.
        target: The file to write.
        allow_untrusted: See `Bundle.open`.

    Returns:
        `target`.

    Raises:
        SignatureError: The signature, the key or a hash is wrong; wrong pieces are removed, so that the host sends them
            again.
        InputError: A part has not arrived yet, or the disk is full.
    """
    incoming, target = Path(incoming), Path(target)
    envelope = _read_envelope(incoming / ENVELOPE)
    manifest, _, _ = read_manifest(envelope, str(incoming / ENVELOPE), allow_untrusted=allow_untrusted)
    places = _places(releases)
    for payload in missing(manifest, places):
        _check_arrived(incoming, payload)
    check_room(target.parent, len(envelope) + manifest.size_bytes + _SPARE_BYTES)
    whole = hashlib.sha256(envelope)
    with replacing(target) as temporary:
        try:
            with open(temporary, "wb", opener=opener) as out:
                out.write(envelope)
                for payload in manifest.payloads:
                    _append(out, payload, places, incoming, whole.update)
        except OSError as error:
            raise InputError(f"{target}: cannot be written ({reason(error)})") from error
        if whole.hexdigest() != incoming.name:
            raise SignatureError(
                f"{incoming}: wrong bundle (found SHA-256 {whole.hexdigest()}, expected the folder's name); deploy "
                "the bundle again"
            )
    return target


def _places(releases: Releases) -> Dict[str, _Place]:
    """{SHA-256 of a payload: its place}, from intact releases."""
    places: Dict[str, _Place] = {}
    for release in releases.all():
        with suppress(EdgepruneError):  # the payloads of a damaged release are not reliable
            _add(places, releases.open(release))
    return places


def _add(places: Dict[str, _Place], bundle: Bundle) -> None:
    for payload in bundle.manifest.payloads:
        places.setdefault(payload.sha256, _Place(bundle.path, bundle.envelope_bytes + payload.offset_bytes))


def _read_envelope(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MAX_ENVELOPE_BYTES + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: not transferred yet; deploy the bundle again to continue the transfer") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason(error)})") from error
    if len(data) > _MAX_ENVELOPE_BYTES:
        raise SignatureError(f"{path}: too large for an envelope (expected at most {_MAX_ENVELOPE_BYTES} bytes)")
    return data


def _check_arrived(incoming: Path, payload: Payload) -> None:
    expected = pieces(payload)
    there = 0
    for piece in expected:
        with suppress(OSError):
            there += os.stat(str(incoming / piece.name)).st_size == piece.size_bytes
    if there < len(expected):
        raise InputError(
            f"{incoming}: only {there} of {len(expected)} pieces of {payload.name} have arrived; deploy the bundle "
            "again to continue the transfer"
        )


def _append(
    out: BinaryIO,
    payload: Payload,
    places: Mapping[str, _Place],
    incoming: Path,
    also: Callable[[bytes], None],
) -> None:
    """Copy one payload to `out`, and verify its hash; `also` receives the same bytes."""
    place = places.get(payload.sha256)
    sources = [place] if place else [_Place(incoming / piece.name, 0) for piece in pieces(payload)]
    digest, left = hashlib.sha256(), payload.size_bytes
    for path, offset in sources:
        most = left if place else piece_bytes(payload.size_bytes)
        with open(path, "rb") as stream:
            stream.seek(offset)
            while most and left:
                data = stream.read(min(_BLOCK_BYTES, most, left))
                if not data:
                    break
                most -= len(data)
                left -= len(data)
                digest.update(data)
                also(data)
                out.write(data)
    if left or digest.hexdigest() != payload.sha256:
        if not place:
            for path, _ in sources:
                with suppress(OSError):
                    path.unlink()
        where = place.path if place else incoming
        raise SignatureError(
            f"{where}: {payload.name}: does not match its signed SHA-256; deploy the bundle again to send the file "
            "again"
        )
