"""size: squares, rectangles, and the option's values."""

import json

import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.option import Option
from edgeprune_device.size import InputSize, Size, largest_of

OPTION = Option("imgsz", InputSize(), "size")


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (640, (640, 640)), ("640", (640, 640)), ((384, 640), (384, 640)), ([384, 640], (384, 640)),
        ("384,640", (384, 640)), (" 384 , 640 ", (384, 640)), (Size(384, 640), (384, 640)), ("auto:640", "auto:640"),
    ],
)  # fmt: skip
def test_option_takes_a_side_a_pair_or_the_shape_of_the_images(given, size):
    assert OPTION.check(given) == size
    assert OPTION.check(OPTION.check(given)) == size


@pytest.mark.parametrize(
    "given",
    [16, 9000, (640,), (1, 2, 3), "640x384", "384,640,3", "auto", "auto:", "auto:16", "auto:384,640", "", ",", 640.5,
     True, (384, 640.5), "nan", (640, 10**30)],
)  # fmt: skip
def test_other_values_are_one_clear_line(given):
    with pytest.raises(InputError, match="expected N, HEIGHT,WIDTH or auto:N, from 32 to 8192 px"):
        OPTION.check(given)


def test_text_and_json_of_a_size_are_values_of_the_option():
    for size, text, data in ((Size(640, 640), "640", 640), (Size(384, 640), "384,640", [384, 640])):
        assert str(size) == text and json.loads(json.dumps(size.to_json())) == data
        assert OPTION.check(text) == OPTION.check(data) == Size.of(data) == size
        assert size.is_square == (text == "640") and size.area == size[0] * size[1]


def test_sides_are_raised_to_the_stride():
    assert Size(360, 640).rounded(32) == (384, 640) and Size(33, 1).rounded(32) == (64, 32)
    assert largest_of("auto:640") == 640 and largest_of("640") is None and largest_of((384, 640)) is None
