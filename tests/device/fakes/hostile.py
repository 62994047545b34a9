"""Malicious bundles and evaluation sets, correctly signed, that the holder of a trusted key could make."""

import hashlib
import io
import json
import stat
import struct
import warnings
import zipfile
import zlib

from edgeprune_device import strict_json
from edgeprune_device.trust.bundle import FORMAT_VERSION, MAGIC
from nacl.signing import SigningKey

#: The key that signs these files; a test trusts it.
KEY = SigningKey(b"k" * 32)
MINIMAL = {
    "name": "m",
    "created": "2026-11-22T23:40:00Z",
    "edgeprune_version": "0.1.0",
    "target": "cpu",
    "classes": ["x"],
    "imgsz": [64, 64],
    "letterbox": {"pad": 114, "stride": 32},
    "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300},
    "output": "raw",
    "models": {},
    "engines": {},
    "evaluation": None,
    "lineage": {},
}


def seal(path, text, payload=b""):
    """A correctly signed file with arbitrary manifest bytes."""
    head = struct.pack("<8sII32s", MAGIC, FORMAT_VERSION, len(text), bytes(KEY.verify_key))
    path.write_bytes(head + KEY.sign(head + text).signature + text + payload)
    return path


def entry(name="a", data=b"x", **change):
    """An entry of the payload table, correct except for `change`."""
    made = {"name": name, "offset_bytes": 0, "size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return {**made, **change}


def manifest(entries, **change):
    """Manifest bytes with this payload table."""
    return strict_json.canonical({"schema_version": 1, "task": "detect", **MINIMAL, "payloads": entries, **change})


def _named(name):
    return manifest([entry(name)])


def _raw(field, text):
    """A manifest with this JSON text as a field, which no JSON library would write."""
    return manifest([entry()], **{field: "@@"}).replace(b'"@@"', text)


#: {what: (manifest bytes, payload bytes)}: none of these may be opened or written.
MANIFESTS = {
    **{
        f"a payload's name is {name[:20]!r}": (_named(name), b"x")
        for name in (
            "..", ".", "", "../evil", "../../../../tmp/evil", "/evil", "/tmp/evil", "a/b", "a\\b", "..\\evil", "C:evil",
            "a\0b", "\0", "a\n", "a\r\n", ".hidden", "-rf", " a", "a ", "a b", "~", "$HOME", "ä", "\u202eexe", "a:b",
            "x" * 101, "x" * 300, "x" * 5000, "x/" * 3000,
        )
    },
    **{
        f"the bundle's name is {name!r}": (manifest([entry()], name=name), b"x")
        for name in ("..", "../evil", "/evil", "a/b", "a\0b", "", "x" * 101)
    },
    "a name twice": (manifest([entry(), entry(offset_bytes=1)]), b"xx"),
    "a name twice but for case": (manifest([entry("Model"), entry("mODEL", offset_bytes=1)]), b"xx"),
    "too many": (manifest([entry(f"a{i}", offset_bytes=i) for i in range(65)]), b"x" * 65),
    "far too many": (manifest([entry("a", b"")] * 5000), b""),
    "overlapping": (manifest([entry("a", b"xx"), entry("b", offset_bytes=1)]), b"xx"),
    "one over the other": (manifest([entry(), entry("b")]), b"x"),
    "a gap": (manifest([entry(), entry("b", offset_bytes=2)]), b"x.x"),
    "in another order": (manifest([entry("b", offset_bytes=1), entry()]), b"xx"),
    "begins before the payloads": (manifest([entry(offset_bytes=-48)]), b"x"),
    "larger than the file": (manifest([entry(size_bytes=1 << 33)]), b"x"),
    "smaller than the file": (manifest([entry()]), b"x" * 1000),
    "larger than the limit": (manifest([entry(size_bytes=(1 << 33) + 1)]), b"x"),
    "larger than the limit together": (
        manifest([entry(size_bytes=1 << 33), entry("b", offset_bytes=1 << 33)]), b"x",
    ),
    "a size beyond 64 bits": (manifest([entry(size_bytes=1 << 64)]), b"x"),
    "a size below 0": (manifest([entry(size_bytes=-1)]), b""),
    "a size that is no number": (manifest([entry(size_bytes="1")]), b"x"),
    "a size that is no whole number": (manifest([entry(size_bytes=1.0)]), b"x"),
    "a size that is true": (manifest([entry(size_bytes=True)]), b"x"),
    "another hash": (manifest([entry(sha256="0" * 64)]), b"x"),
    "no hash": (manifest([entry(sha256=None)]), b"x"),
    "more than a payload table says": (manifest([entry(link="/etc/passwd")]), b"x"),
    "a model that is not there": (manifest([entry()], models={"fp32": {"payload": "b"}}), b"x"),
    "a model outside": (manifest([entry()], models={"fp32": {"payload": "../a"}}), b"x"),
    "an engine outside": (manifest([entry()], engines={"fp16": {"payload": "/etc/passwd"}}), b"x"),
    "images outside": (manifest([entry()], evaluation={"payload": "../a"}), b"x"),
    "a counter below 0": (manifest([entry()], counter=-1), b"x"),
    "a counter without end": (manifest([entry()], counter=1 << 53), b"x"),
    "deep": (_raw("lineage", b'{"a":' * 100 + b"1" + b"}" * 100), b"x"),
    "deeper": (_raw("lineage", b'{"a":' * 100_000 + b"1" + b"}" * 100_000), b"x"),
    "deep lists": (b"[" * 500_000, b""),
    "a number of a million digits": (_raw("lineage", b'{"a":' + b"9" * 1_000_000 + b"}"), b"x"),
    "a number too large for a float": (_raw("lineage", b'{"a":1e999}'), b"x"),
    "a long number as a size": (manifest([entry(size_bytes="@@")]).replace(b'"@@"', b"9" * 400), b"x"),
    "NaN": (_raw("nms", b'{"conf":NaN,"iou":0.7,"max_det":300}'), b"x"),
    "Infinity": (_raw("lineage", b'{"a":-Infinity}'), b"x"),
    "a field twice": (_raw("lineage", b'{},"payloads":[]'), b"x"),
    "half a character": (_raw("lineage", b'{"a":"\\ud800"}'), b"x"),
    "not UTF-8": (_raw("lineage", b'{"a":"\xff"}'), b"x"),
    "a byte order mark": (b"\xef\xbb\xbf" + manifest([entry()]), b"x"),
    "not JSON": (b"\x80\x04\x95", b""),
    "nothing": (b"", b""),
    "a list": (b"[]", b""),
    "of another schema": (manifest([entry()], schema_version=2), b"x"),
    "terminal escapes in a class": (manifest([entry()], classes=["\x1b[2J"]), b"x"),
    "a million classes": (manifest([entry()], classes=["x"] * 200_000), b"x"),
    "an image of terabytes": (manifest([entry()], imgsz=[1 << 20, 1 << 20]), b"x"),
}  # fmt: skip


def _zip(*entries, truth=None, packed=zipfile.ZIP_STORED):
    """Zip bytes with these (name, bytes) and a truth.json that lists one image, p.png."""
    stream = io.BytesIO()
    text = json.dumps({"schema_version": 1, "pictures": [{"name": "p.png", "boxes": []}]})
    with zipfile.ZipFile(stream, "w", packed) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a duplicate name
        for name, data in (*entries, ("truth.json", truth or text)):
            archive.writestr(name, data)
    return stream.getvalue()


def _link(name, target):
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target


def _overlapping(count, size):
    """`count` images, each of which extends to the end of the file: reading them gives `count` times its size."""
    names = [f"{i:06d}" for i in range(count)]
    truth = json.dumps({"schema_version": 1, "pictures": [{"name": name, "boxes": []} for name in names]}).encode()
    files = [("truth.json", truth, 0)]
    body = b"\0" * size
    for name in names:
        files.append((f"pictures/{name}", body, len(body)))
        body = _local(f"pictures/{name}", body) + body
    whole = _local("truth.json", truth) + truth + body
    table = b""
    for name, data, behind in files:
        at = len(whole) - behind - 30 - len(name) if behind else 0
        sizes = struct.pack("<3L", zlib.crc32(data), len(data), len(data))
        table += struct.pack("<4s6H", b"PK\1\2", 20, 20, 0, 0, 0, 33) + sizes
        table += struct.pack("<5H2L", len(name), 0, 0, 0, 0, 0, at) + name.encode()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(files), len(files), len(table), len(whole), 0)
    return whole + table + end


def _local(name, data):
    sizes = struct.pack("<3L2H", zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4s5H", b"PK\3\4", 20, 0, 0, 0, 33) + sizes + name.encode()


def _patched(data, old, new):
    assert old in data
    return data.replace(old, new)


_PICTURE = ("pictures/p.png", b"picture")
_HONEST = _zip(_PICTURE)

#: {what: zip bytes}: evaluation sets that no drone may accept.
ZIPS = {
    **{
        f"an entry called {name[:20]!r}": _zip(_PICTURE, (name, b"evil"))
        for name in (
            "../evil", "../../../../tmp/evil", "/evil", "/tmp/evil", "pictures/../../evil", "pictures/sub/p.png",
            "..\\evil", "pictures/", "x" * 5000, "truth.json.bak", "\x1b[2J",
        )
    },
    "an image's name that leads out": _zip(
        ("pictures/../evil", b"p"), truth='{"schema_version": 1, "pictures": [{"name": "../evil", "boxes": []}]}'
    ),
    "a name with NUL": _patched(_HONEST, b"pictures/p.png", b"pictures/p\0png"),
    "a link": _zip(_link("pictures/p.png", "/etc/passwd")),
    "a link beside": _zip(_PICTURE, _link("pictures/q.png", "/")),
    "an image twice": _zip(_PICTURE, ("pictures/p.png", b"another")),
    "a truth twice": _zip(_PICTURE, ("truth.json", b"{}")),
    "a deflated bomb": _zip(("pictures/p.png", b"\0" * (50 << 20)), packed=zipfile.ZIP_DEFLATED),
    "bzip2": _zip(_PICTURE, packed=zipfile.ZIP_BZIP2),
    "encrypted": _patched(
        _patched(_HONEST, b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),
        b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0",
    ),
    "overlapping images": _overlapping(300, 100_000),
    "a deep truth": _zip(_PICTURE, truth="[" * 1_000_000),
    "a truth with a number without end": _zip(_PICTURE, truth='{"schema_version": ' + "1" * 1_000_000 + "}"),
    "a box beyond the numbers": _zip(
        _PICTURE,
        truth='{"schema_version": 1, "pictures": [{"name": "p.png", "boxes": [[0, 0, 0, 1, 1e999]]}]}',
    ),
    "no truth": _HONEST.replace(b"truth.json", b"truth.jsoN"),
    "no image": _zip(),
    "another CRC": _patched(_HONEST, b"p.pngpicture", b"p.pngPicture"),
    "cut off": _HONEST[:-30],
    "not a zip": b"\x80\x04\x95" * 100,
    "nothing": b"",
}  # fmt: skip


def reads_a_file(location="secret", size_bytes=2016):
    """A model whose bias is in another file, below the working folder of the process that runs it."""
    from fakes import models

    where = {"location": location, "offset": "0", "length": str(size_bytes)}
    entries = b"".join(models.field(13, models.message((1, key), (2, value))) for key, value in where.items())
    dims = b"".join(models.field(1, d) for d in (1, 6, models.ANCHORS))
    tensor = dims + models.message((2, models.FLOAT), (8, "bias")) + entries + models.field(14, 1)
    nodes = [models.node("ReduceMean", ["images"], "mean", models.POOL, ("keepdims", 0)),
             models.node("Add", ["mean", "bias"], "output0", models.TAIL)]  # fmt: skip
    return models.model(nodes, [tensor], 17)


def brings_an_engine():
    """A model whose only node is an engine."""
    from fakes import models

    node = models.message((1, "images"), (2, "output0"), (3, "/engine"), (4, "EPContext"), (7, "com.microsoft"))
    return models.model([node], [], 17)
