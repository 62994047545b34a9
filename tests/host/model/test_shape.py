"""shape: the rectangle in which the images of a data set fit."""

import pytest

from edgeprune.model.shape import rectangle


@pytest.mark.parametrize(
    ("shapes", "longer", "size"),
    [
        ([(1080, 1920)] * 20, 640, (384, 640)),  # 360 px, raised to a multiple of 32
        ([(512, 640)] * 20, 512, (416, 512)),
        ([(1920, 1080)] * 20, 640, (640, 384)),
        ([(1080, 1920), (720, 1280), (2160, 3840)], 640, (384, 640)),
        ([(1078, 1920), (1080, 1920)], 640, (384, 640)),  # not exactly one ratio, but one rectangle
        ([(640, 640)] * 3, 320, (320, 320)),
        ([(1080, 1920)] * 19 + [(100, 100)], 640, (384, 640)),
        ([(1080, 1920)] * 18 + [(100, 100)], 640, None),
        ([(1, 10_000)], 640, (32, 640)),
        ([], 640, None),
    ],
)
def test_rectangle_holds_the_images_if_they_share_a_shape(shapes, longer, size):
    assert rectangle(shapes, longer, 32) == size
