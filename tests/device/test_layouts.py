"""layouts: shapes and noise of both layouts, and their names in the manifest's schema."""

import numpy as np
import pytest
from edgeprune_device import layouts, schema
from edgeprune_device.layouts import FLOAT32_NCHW, UINT8_NHWC


@pytest.mark.parametrize(
    "layout, shape, kind", [(FLOAT32_NCHW, (1, 3, 64, 96), np.float32), (UINT8_NHWC, (1, 64, 96, 3), np.uint8)]
)
def test_noise_has_the_shape_and_type_of_the_layout(layout, shape, kind):
    x = layouts.noise(layout, (64, 96))
    assert layouts.shape_of(layout, (64, 96)) == x.shape == shape and x.dtype == kind
    assert np.array_equal(x, layouts.noise(layout, (64, 96))) and len(np.unique(x)) == 256
    assert x.max() == (1 if kind == np.float32 else 255)


def test_the_manifest_accepts_both_layouts():
    assert schema.load("manifest")["properties"]["layout"]["enum"] == [FLOAT32_NCHW, UINT8_NHWC]
