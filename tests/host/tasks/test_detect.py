"""detect: labels of upright boxes; oriented ones are refused."""

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess

from edgeprune.data import dataset
from edgeprune.tasks import DETECT


def test_targets_are_the_labels_of_the_letterboxed_image():
    _, box = preprocess.letterbox(np.zeros((480, 640, 3), np.uint8), 320)
    truth = DETECT.truth(np.array([[1, 0.5, 0.5, 0.25, 0.5]]), (480, 640))
    assert truth.tolist() == [[1, 240, 120, 400, 360]]
    np.testing.assert_allclose(DETECT.targets(truth, box), [[1, 0.5, 0.5, 0.25, 0.375]])


def test_labels_of_oriented_boxes_are_refused(data):
    for label in (data.parent / "labels").rglob("*.txt"):
        label.write_text("0 0.1 0.2 0.5 0.2 0.5 0.6 0.1 0.6\n1 0.2 0.2 0.6 0.2 0.6 0.6 0.2 0.6\n")
    with pytest.raises(InputError, match=r"\.txt: every label of the data set has 9 values, as for oriented boxes"):
        dataset.load(data)
    label.write_text("0 0.5 0.5 0.1 0.1\n")  # one upright box: the others are polygons
    assert dataset.load(data).task is DETECT
