"""tar: an archive of a stranger is listed, or refused in one line and in no time."""

import io
import tarfile

import pytest
from edgeprune_device.errors import InputError

from edgeprune.drones.deploy import tar

from .... import fuzz


def packed(*entries, format=tarfile.PAX_FORMAT):
    """An archive of (name, fields of the entry, pax headers)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for name, fields, headers in entries:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, headers
            for key, value in fields.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(b"abc") if info.isreg() else None)
    return stream.getvalue()


def listed(data):
    return tar.members(tar.opened("a.tar", io.BytesIO(data)), "a.tar")


def renumbered(data, at, field):
    """The archive with another field in its first header, whose checksum fits."""
    header = bytearray(data[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


GOOD = packed(("etc/a", {}, {}), ("ü" * 90, {"mtime": 1.5}, {}), ("b" * 200, {"type": tarfile.SYMTYPE, "size": 0}, {}))


def test_archives_of_real_builders_are_listed():
    assert [info.name for info in listed(GOOD)] == ["etc/a", "ü" * 90, "b" * 200]
    names = ["x" * 300, "y" * 120]
    assert [i.name for i in listed(packed(*((n, {}, {}) for n in names), format=tarfile.GNU_FORMAT))] == names
    attributes = packed(("a", {}, {"SCHILY.xattr.security.capability": "x" * 5000}))
    assert [info.pax_headers for info in listed(attributes)] == [{}]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (packed(("a", {}, {"mtime": "nan"})), "a mtime that is not a time"),
        (packed(("a", {}, {"mtime": "inf"})), "a mtime that is not a time"),
        (packed(("a", {}, {}), ("b", {}, {"size": "-1024"})), "a size that is not a number"),
        (packed(("a", {}, {"GNU.sparse.map": "0,1," * 2000, "GNU.sparse.size": "9"})), "a sparse file"),
        (packed(("a", {}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})), "a sparse file"),
        (packed(("a", {}, {"comment": "1" * 50_000})), "a number of 100 digits or more"),
        (packed(("a", {}, {"comment": "x" * 200_000})), "a header of 200016 bytes"),
        (renumbered(packed(("a", {}, {})), 124, b"\xff" * 10 + b"\xfc\0"), "a negative size"),
        (renumbered(packed(("a", {}, {})), 156, b"S"), "a sparse file"),
    ],
)
def test_headers_that_no_builder_writes_are_refused(data, says):
    with pytest.raises(InputError, match=rf"^a.tar: entry \d of the archive cannot be read \(.*{says}\)$"):
        listed(data)


def test_headers_that_follow_one_another_for_ever_are_refused():
    one = packed(("a", {}, {"comment": "x"}))[:1024]
    with pytest.raises(InputError, match=r"^a.tar: .* cannot be read \(.*recursion"):
        listed(one * 3000 + GOOD)


def test_more_entries_than_an_image_has_are_refused(monkeypatch):
    monkeypatch.setattr(tar, "_MOST_ENTRIES", 2)
    with pytest.raises(InputError, match="more than 2 entries"):
        listed(GOOD)


@fuzz.counts(300, 50_000)
def test_any_archive_is_listed_or_refused_in_one_line(count):
    def attempt(mutant):
        for info in listed(mutant):
            assert info.size >= 0 and int(info.mtime) is not None

    others = [packed(("a", {}, {"size": "7", "comment": "x"})), packed(("z" * 300, {}, {}), format=tarfile.GNU_FORMAT)]
    result = fuzz.run(attempt, fuzz.of_bytes(GOOD, count, others=others))
    assert result["accepted"] and result["refused"]
