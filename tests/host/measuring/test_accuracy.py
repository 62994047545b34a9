"""Measuring names the picture that is gone or damaged, whichever step meets it first."""

import pytest
from edgeprune_device.errors import InputError
from PIL import Image

from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring import accuracy, timing

from ..small import short


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


def test_the_shape_is_that_of_the_upright_picture(picture):
    assert accuracy.upright_shape(picture) == (20, 40)
    with Image.open(picture) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(picture, exif=exif)
    assert accuracy.upright_shape(picture) == (40, 20)


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(b"junk")])
def test_a_picture_that_is_gone_or_damaged_is_named(picture, spoil):
    spoil(picture)
    with pytest.raises(InputError, match=r"a\.jpg: .*picture"):
        accuracy.upright_shape(picture)
    model = to_onnx(short(), (64, 64)).SerializeToString()
    with pytest.raises(InputError, match=r"a\.jpg: .*picture"):
        timing.time_models({"a": model}, 64, [picture], classes=3, rounds=1, warmup=0)
