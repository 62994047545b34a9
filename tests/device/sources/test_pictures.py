import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import sources
from edgeprune_device.errors import InputError
from edgeprune_device.sources import pictures
from fakes import large
from PIL import Image

from .clips import COLOURS, colour_index, save, solid


def test_images_of_a_folder_are_sorted_by_name_and_repeated(tmp_path):
    for i, name in enumerate(("b.png", "a.jpg", "c.JPEG")):
        save(tmp_path / name, solid(COLOURS[i]))
    (tmp_path / "labels.txt").write_text("0 0 0 1 1")
    (tmp_path / "._a.jpg").write_bytes(b"what macOS leaves")
    with sources.open(str(tmp_path)) as source:
        assert source.description == f"images in {tmp_path} (3 files, JPEG and PNG, in memory)"
        frames = list(islice(source.frames(), 4))
        assert [Path(frame.name).name for frame in frames] == ["a.jpg", "b.png", "c.JPEG", "a.jpg"]
        assert [colour_index(source.decode(frame)) for frame in frames] == [1, 0, 2, 1]


def test_images_are_read_beforehand(tmp_path):
    save(tmp_path / "a.png")
    source = sources.open(str(tmp_path))
    (tmp_path / "a.png").unlink()
    assert source.decode(next(source.frames())).shape == (48, 80, 3) and source.warnings == ()


def test_images_that_exceed_memory_are_read_one_by_one_with_a_warning(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_MEMORY_BYTES", 10)
    source = sources.open(str(tmp_path))
    assert "read frame by frame" in source.description and "disk" in source.warnings[0]
    frame = next(source.frames())
    assert source.decode(frame).shape == (48, 80, 3)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png"):
        source.decode(frame)


def test_glob_and_single_file(tmp_path):
    (tmp_path / "deep").mkdir()
    save(tmp_path / "deep" / "a.png")
    save(tmp_path / "b [1].png")
    assert next(sources.open(f"{tmp_path}/**/a.png").frames()).name == str(tmp_path / "deep" / "a.png")
    assert "1 file, PNG" in sources.open(f"{tmp_path}/b [1].png").description  # this is the file, not a pattern
    with pytest.raises(InputError, match="no such file, folder or matching file name"):
        sources.open(f"{tmp_path}/*.jpg")


def test_folder_without_images_is_refused_with_a_remedy(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no image in this folder"):
        sources.open(str(tmp_path))


def test_error_of_a_broken_image_names_it(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"b\.png: not an image"):
        sources.open(str(tmp_path))
    whole = save(tmp_path / "b.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])  # its header is intact
    source = sources.open(str(tmp_path))
    frames = list(islice(source.frames(), 2))
    assert source.decode(frames[0]).shape == (48, 80, 3)
    with pytest.raises(InputError, match=r"b\.png"):
        source.decode(frames[1])


def test_rotated_and_16_bit_images_are_decoded_as_in_training(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    save(tmp_path / "a.jpg", exif=exif.tobytes())
    Image.fromarray(np.full((48, 80), 0x4321, np.uint16)).save(str(tmp_path / "b.png"))
    source = sources.open(str(tmp_path))
    turned, deep = (source.decode(frame) for frame in islice(source.frames(), 2))
    assert turned.shape == (80, 48, 3)
    assert deep.shape == (48, 80, 3) and (deep == 0x43).all()


def test_large_image_is_refused_when_its_source_is_opened(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(large.jpeg(9000, 8000))
    with pytest.raises(InputError, match=r"b\.jpg: the image is too large to decode"):
        sources.open(str(tmp_path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipe_among_the_images_is_refused_without_waiting(tmp_path):
    save(tmp_path / "a.png")
    os.mkfifo(str(tmp_path / "b.png"))
    with pytest.raises(InputError, match=r"b\.png: not a regular file \(found a pipe, expected a file\)"):
        sources.open(str(tmp_path))
