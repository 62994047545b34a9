"""A tar archive of a stranger, listed: `tarfile` with limits.

`tarfile` follows a header wherever it leads. A negative size sends it back for ever, a map of a sparse file or a text
of digits takes hours, and a time can be "nan". A header that no builder of images writes is refused.
"""

from __future__ import annotations

import math
import re
import tarfile
from typing import IO, BinaryIO, cast

from edgeprune_device.errors import InputError
from edgeprune_device.printable import printable

__all__ = ["content", "members", "opened"]

#: The errors of `tarfile` on damaged archives.
_ERRORS = (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError)
#: Entries of one archive. NVIDIA's largest images have some 200,000.
_MOST_ENTRIES = 500_000
#: Bytes of an extended header: a name, a link and attributes. Linux allows 64 KiB of attributes.
_MOST_EXTENDED_BYTES = 128 << 10
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_DIGITS = re.compile(rb"[0-9]{100}")


class _Header(tarfile.TarInfo):
    """An entry whose headers were checked."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """The entry of a header, unless its size or kind is one that is not read here."""
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0:
            raise tarfile.ReadError("a negative size")
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        if info.type in _EXTENDED and info.size > _MOST_EXTENDED_BYTES:
            raise tarfile.ReadError(f"a header of {info.size} bytes")
        return info

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        """The next entry; its extended header is read here first."""
        stream = cast(IO[bytes], tarfile.fileobj)
        at = stream.tell()
        _check_extended(stream, tarfile)
        stream.seek(at)
        return super().fromtarfile(tarfile)


def _check_extended(stream: IO[bytes], archive: tarfile.TarFile) -> None:
    try:
        info = _Header.frombuf(stream.read(tarfile.BLOCKSIZE), archive.encoding or "utf-8", archive.errors or "strict")
    except tarfile.HeaderError:
        return  # the end, or damaged: tarfile finds it, too
    if info.type not in _PAX:
        return
    text = stream.read(info.size)
    if _DIGITS.search(text):
        raise tarfile.ReadError("an extended header with a number of 100 digits or more")
    while text:
        length, space, _ = text.partition(b" ")
        end = int(length) if space and length.isdigit() else 0
        key, equals, value = text[len(length) + 1 : end - 1].partition(b"=")
        if not len(length) + 1 < end <= len(text) or text[end - 1 : end] != b"\n" or not equals:
            raise tarfile.ReadError("a damaged extended header")
        _check_value(key, value)
        text = text[end:]


def _check_value(key: bytes, value: bytes) -> None:
    if key.startswith(b"GNU.sparse."):
        raise tarfile.ReadError("a sparse file")
    if key in (b"size", b"uid", b"gid") and not (value.isdigit() and len(value) < 20):
        raise tarfile.ReadError(f"a {key.decode()} that is not a number")
    if key in (b"mtime", b"atime", b"ctime") and not (len(value) < 100 and math.isfinite(float(value))):
        raise tarfile.ReadError(f"a {key.decode()} that is not a time")


def opened(what: str, stream: BinaryIO | None = None) -> tarfile.TarFile:
    """An archive without compression, open for `members`.

    Args:
        what: The path of the archive, which is opened if `stream` is None; begins the message of an error.
        stream: The open archive.

    Raises:
        InputError: The file is not a tar archive, its first header is damaged, or no image builder writes its form.
        OSError: The file cannot be read.
    """
    try:
        return tarfile.open(None if stream else what, "r:", stream, tarinfo=_Header)
    except _ERRORS as error:
        raise _refusal(what, 1, error) from error


def members(archive: tarfile.TarFile, what: str) -> list[tarfile.TarInfo]:
    """All entries of an archive.

    Args:
        archive: As `opened` returned it.
        what: Begins the message of an error.

    Raises:
        InputError: A header is damaged, or no builder of images writes it, or there are too many.
    """
    listed: list[tarfile.TarInfo] = []
    try:
        while (info := archive.next()) is not None:
            if info.size < 0 or (listed and info.offset <= listed[-1].offset):
                raise tarfile.ReadError("a negative size")
            info.pax_headers = {}
            listed.append(info)
            if len(listed) > _MOST_ENTRIES:
                raise tarfile.ReadError(f"more than {_MOST_ENTRIES} entries")
    except _ERRORS as error:
        raise _refusal(what, len(listed) + 1, error) from error
    return listed


def _refusal(what: str, entry: int, error: Exception) -> InputError:
    reason = printable(" ".join(str(error).split())[:100]) or type(error).__name__
    return InputError(f"{what}: entry {entry} of the archive cannot be read ({reason})")


def content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> BinaryIO:
    """The content of a file in an archive.

    Raises:
        KeyError: The entry is no file.
    """
    stream = archive.extractfile(info)
    if stream is None:
        raise KeyError(info.name)
    return cast(BinaryIO, stream)
