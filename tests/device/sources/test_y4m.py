import io

import numpy as np
import pytest
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.sources import y4m
from edgeprune_device.vision import preprocess
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(16, 70), st.integers(16, 40), st.booleans(), st.integers(1, 3), st.integers(0, 255))
def test_padded_and_unpadded_rows_are_read(width, height, padded, count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    data = b"YUV4MPEG2 C444 W%d H%d Ip F30000:1001 A1:1\n" % (width, height)
    for image in images:
        rows = np.full((3, height, -(-width // 4) * 4 if padded else width), 99, np.uint8)
        rows[:, :, :width] = image[:, :, [1, 2, 0]].transpose(2, 0, 1)
        data += b"FRAME\n" + rows.tobytes()
    stream = y4m.Stream(io.BufferedReader(io.BytesIO(data)), "test")
    assert (stream.width, stream.height, round(stream.fps, 2)) == (width, height, 29.97)
    seen = [y4m.rgb(planes) for planes in stream]
    assert len(seen) == count and all((a == b).all() for a, b in zip(seen, images))


def test_planes_become_pixels_without_opencv(monkeypatch):
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: False)
    planes = np.arange(3 * 20 * 30, dtype=np.uint8).reshape(3, 20, 30)[:, :, :29]
    image = y4m.rgb(planes)
    assert image.flags.c_contiguous and (image == planes[[2, 0, 1]].transpose(1, 2, 0)).all()


@given(st.binary(max_size=200), st.booleans())
def test_invalid_y4m_is_refused_and_gives_no_frame(data, with_head):
    head = b"YUV4MPEG2 C444 W16 H16 F30:1\nFRAME\n" if with_head else b""
    try:
        frames = list(y4m.Stream(io.BufferedReader(io.BytesIO(head + data)), "test"))
    except (EOFError, DeviceError):
        return
    assert frames == []  # 16 x 16 px have 768 bytes


@pytest.mark.parametrize(
    "tags", ["C444 W8 H64", "C444 W64 H99999", "C420 W64 H64", "W64 H64", "C444 W64", "C444 W64 Hx", "C444 W64 H64 F3"]
)
def test_error_of_another_colour_format_names_it(tags):
    with pytest.raises(DeviceError, match=r"^cam: "):
        y4m.Stream(io.BufferedReader(io.BytesIO(f"YUV4MPEG2 {tags}\n".encode())), "cam")


def test_too_large_frames_are_refused_from_the_header():
    with pytest.raises(InputError, match=r"^cam: the image is too large to decode \(found 16000x16000 px"):
        y4m.Stream(io.BufferedReader(io.BytesIO(b"YUV4MPEG2 C444 W16000 H16000\n")), "cam")
