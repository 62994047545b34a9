"""samples: which pictures are used for what, and how the network takes them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from edgeprune_device.vision import preprocess

from edgeprune.data import dataset, samples

PICTURES = [Path(f"{i:03d}.jpg") for i in range(100)]


@pytest.mark.parametrize(("imgsz", "count"), [(320, 64), (640, 32), (960, 14), (1920, 8)])
def test_more_pixels_are_fewer_pictures(imgsz, count):
    assert samples.affordable(imgsz) == count


def test_pictures_are_picked_from_end_to_end():
    assert samples.pick(PICTURES, 4) == [PICTURES[i] for i in (0, 33, 66, 99)]
    assert samples.pick(PICTURES, 100) == samples.pick(PICTURES, 500) == PICTURES


def test_what_solves_does_not_select():
    solve, select = samples.split(PICTURES, 640)
    assert (len(solve), len(select)) == (32, 64) and not set(solve) & set(select)
    solve, select = samples.split(PICTURES[:12], 640)
    assert (len(solve), len(select)) == (9, 3) and not set(solve) & set(select)
    assert samples.split(PICTURES[:7], 640) == (PICTURES[:7], PICTURES[:7])  # too few to share out


def test_pictures_and_labels_are_letterboxed(data):
    found = dataset.load(data)
    read = samples.read(found, found.val, 128)
    assert read.pictures.shape == (4, 3, 128, 128) and read.pictures.dtype == torch.float32
    expected, _ = preprocess.letterbox(preprocess.decode(found.val[1]), 128)
    np.testing.assert_array_equal(read.pictures[1], expected[0])
    for picture, labels in zip(found.val, read.labels):
        np.testing.assert_allclose(labels, found.labels(picture), atol=1e-6)  # square: the same shares


def test_a_batch_names_the_picture_of_each_box(data):
    found = dataset.load(data)
    read = samples.read(found, found.val, 96)
    batch = read.batch(1, 3)
    counts = [len(read.labels[i]) for i in (1, 2)]
    assert batch["img"].shape == (2, 3, 96, 96)
    assert batch["batch_idx"].tolist() == [0.0] * counts[0] + [1.0] * counts[1]
    rows = torch.cat([batch["cls"], batch["bboxes"]], 1)
    np.testing.assert_allclose(rows, np.concatenate(read.labels[1:3]), atol=1e-6)
