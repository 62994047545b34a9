"""Image files of a few hundred bytes that state a large size; most of them decode to that size."""

import io
import struct
import zlib

from PIL import Image


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def jpeg(width, height):
    data = _small("JPEG")
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(width, height):
    data = _small("GIF", "P")
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp(width, height):
    data = _small("BMP")
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def tiff(width, height):
    data = _small("TIFF")
    (table,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, table)
    for at in range(table + 2, table + 2 + 12 * count, 12):
        tag = struct.unpack_from("<H", data, at)[0]
        if tag in (256, 257, 278):  # width, height, rows per strip
            struct.pack_into("<HII", data, at + 2, 4, 1, width if tag == 256 else height)
    return bytes(data)


def webp(width, height):
    """An animation of one small frame on a large canvas; a side has at most 16,383 px."""
    body = bytes(_small("WEBP", "RGBA", lossless=True)[12:])
    canvas = bytes([0x12, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    side = (15).to_bytes(3, "little")
    frame = bytes(6) + side + side + (100).to_bytes(3, "little") + b"\0" + body
    parts = _part(b"VP8X", canvas) + _part(b"ANIM", bytes(6)) + _part(b"ANMF", frame)
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def ppm(width, height):
    return b"P6 %d %d 255\n" % (width, height) + bytes(30)


FORMATS = {"jpg": jpeg, "png": png, "gif": gif, "bmp": bmp, "tif": tiff, "webp": webp, "ppm": ppm}


def _small(kind, mode="RGB", **options):
    stream = io.BytesIO()
    Image.new(mode, (16, 16)).save(stream, kind, **options)
    return bytearray(stream.getvalue())


def _part(name, data):
    return name + struct.pack("<I", len(data)) + data
