"""inspection: damage as the decoders and the training see it, in parallel, remembered until the file changes."""

import io
import os

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from fakes import large
from PIL import Image

from edgeprune import workers
from edgeprune.data import inspection, memory


def encoded(kind, size=(64, 48), **more):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, kind, **more)
    return stream.getvalue()


@pytest.fixture
def jpeg(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("JPEG"))
    return tmp_path / "a.jpg"


def turned(path):
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)


def test_the_shape_is_that_of_the_upright_image(jpeg):
    assert inspection.upright_shape(jpeg) == (48, 64)
    turned(jpeg)
    assert inspection.upright_shape(jpeg) == (64, 48)
    look = inspection.inspect([jpeg])[jpeg]
    assert (look.height, look.width) == (64, 48) and look.problem is None and not look.large


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b"junk")])
def test_error_names_a_missing_or_damaged_image(jpeg, spoil):
    spoil(jpeg)
    with pytest.raises(InputError, match=r"a\.jpg: .*image"):
        inspection.upright_shape(jpeg)
    assert inspection.inspect([jpeg])[jpeg].problem


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_intact_images_have_no_problem(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(kind))
    look = inspection.inspect([path])[path]
    assert (look.height, look.width, look.problem, len(look.digest)) == (48, 64, None, 64)


@pytest.mark.parametrize(("kind", "lost"), [("JPEG", 2), ("JPEG", 500), ("PNG", 2), ("WEBP", 100), ("BMP", 100)])
def test_an_image_that_one_of_the_decoders_cannot_decode_is_unusable(tmp_path, kind, lost):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(encoded(kind)[:-lost])
    assert inspection.inspect([path])[path].problem


def test_a_jpeg_that_decodes_at_reduced_size_decodes_at_full_size(tmp_path):
    data, random = encoded("JPEG", (160, 120)), np.random.default_rng(0)
    for i in range(150):
        spoiled = bytearray(data[: random.integers(len(data))] if i % 2 else data)
        for at in random.integers(len(spoiled), size=5) if len(spoiled) else ():
            spoiled[at] = random.integers(256)
        path = tmp_path / f"{i}.jpg"
        path.write_bytes(spoiled)
        try:
            preprocess.decode(path)
        except InputError:
            assert inspection.inspect([path])[path].problem
        else:
            assert not inspection.inspect([path])[path].problem


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.jpg", b"", "the file is empty"),
        ("a.jpg", encoded("GIF"), "format GIF, which Ultralytics does not train on"),
        ("a.png", encoded("PNG", (64, 9)), "too small for training (found 64x9 px, expected at least 10 px per side)"),
    ],
)
def test_images_that_ultralytics_excludes_are_unusable(tmp_path, name, data, problem):
    (tmp_path / name).write_bytes(data)
    assert inspection.inspect([tmp_path / name])[tmp_path / name].problem == problem


def test_an_image_that_is_too_large_is_not_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(large.png(9000, 8000))
    assert inspection.inspect([tmp_path / "a.png"])[tmp_path / "a.png"].large


def test_an_inspection_is_cached_until_the_file_changes(jpeg, monkeypatch):
    monkeypatch.setattr(memory, "_SETTLED_S", 0)
    link = jpeg.with_name("link.jpg")
    link.symlink_to(jpeg)
    look, calls = inspection._look, []
    monkeypatch.setattr(inspection, "_look", lambda path: calls.append(path) or look(path))
    first = inspection.inspect([jpeg, link])
    assert first[jpeg] == first[link] and len(calls) == 1  # links to one file are one image
    assert inspection.inspect([jpeg, link]) == first and len(calls) == 1
    before = os.stat(jpeg)
    jpeg.write_bytes(b"123456789" + jpeg.read_bytes()[9:])
    os.utime(jpeg, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert inspection.inspect([jpeg])[jpeg].problem and len(calls) == 2
    jpeg.write_bytes(encoded("JPEG"))
    jpeg.chmod(0)
    if not os.access(jpeg, os.R_OK):  # not as root
        assert "cannot be read" in inspection.inspect([jpeg])[jpeg].problem
    jpeg.chmod(0o644)
    assert not inspection.inspect([jpeg])[jpeg].problem


@pytest.fixture
def many(tmp_path, monkeypatch):
    monkeypatch.setattr(inspection, "_SHARE", 4)
    monkeypatch.setattr(workers, "_affordable", lambda: 2)
    paths = []
    for i in range(40):
        paths.append(tmp_path / f"{i:02d} \udcff\n.jpg")
        paths[-1].write_bytes(encoded("JPEG", quality=50 + i)[: -2 if i == 7 else None])
    return paths


def test_processes_return_the_same_results(many, monkeypatch):
    shown = []
    looks = inspection.inspect(many, lambda fraction, text: shown.append((fraction, text)))
    assert [p for p in many if looks[p].problem] == [many[7]]
    assert shown[-1] == (1.0, "checking images: 40/40")
    monkeypatch.setattr(workers, "_affordable", lambda: 1)
    assert inspection.inspect(many) == looks


def test_an_interrupted_inspection_keeps_its_results_so_far(many, monkeypatch):
    monkeypatch.setattr(memory, "_SETTLED_S", 0)

    def stop(fraction, text):
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspection.inspect(many, stop)
    shown = []
    inspection.inspect(many, lambda fraction, text: shown.append(text))
    assert len(shown) <= 5
