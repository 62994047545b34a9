"""samples: the use of the images, and their form as network input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from edgeprune_device.vision import preprocess

from edgeprune.data import dataset, samples

from ... import networks

PICTURES = [Path(f"{i:03d}.jpg") for i in range(100)]


@pytest.mark.parametrize(("imgsz", "count"), [(320, 64), (640, 32), (960, 14), (1920, 8)])
def test_larger_images_are_fewer(imgsz, count):
    assert samples.affordable(imgsz) == count


def test_images_are_picked_evenly_from_first_to_last():
    assert samples.pick(PICTURES, 4) == [PICTURES[i] for i in (0, 33, 66, 99)]
    assert samples.pick(PICTURES, 100) == samples.pick(PICTURES, 500) == PICTURES


def test_images_for_compensation_are_not_used_for_selection():
    solve, select = samples.split(PICTURES, 640)
    assert (len(solve), len(select)) == (32, 64) and not set(solve) & set(select)
    solve, select = samples.split(PICTURES[:12], 640)
    assert (len(solve), len(select)) == (9, 3) and not set(solve) & set(select)
    assert samples.split(PICTURES[:7], 640) == (PICTURES[:7], PICTURES[:7])  # too few to divide


def test_images_and_labels_are_letterboxed(data):
    loaded = dataset.load(data)
    read = samples.read(loaded, loaded.val, 128)
    assert read.pictures.shape == (4, 3, 128, 128) and read.pictures.dtype == torch.float32
    expected, _ = preprocess.letterbox(preprocess.decode(loaded.val[1]), 128)
    np.testing.assert_array_equal(read.pictures[1], expected[0])
    for picture, labels in zip(loaded.val, read.labels):
        # the image is square, so the normalised labels are equal
        np.testing.assert_allclose(labels, loaded.labels(picture), atol=1e-6)


def test_a_batch_gives_the_image_of_each_box(data):
    loaded = dataset.load(data)
    read = samples.read(loaded, loaded.val, 96)
    batch = read.batch(1, 3)
    counts = [len(read.labels[i]) for i in (1, 2)]
    assert batch["img"].shape == (2, 3, 96, 96)
    assert batch["batch_idx"].tolist() == [0.0] * counts[0] + [1.0] * counts[1]
    rows = torch.cat([batch["cls"], batch["bboxes"]], 1)
    np.testing.assert_allclose(rows, np.concatenate(read.labels[1:3]), atol=1e-6)


def test_fewer_validation_images_are_spread_evenly_and_their_total_is_kept(tmp_path):
    data = dataset.load(networks.scenes(tmp_path, train=1, val=9))
    chosen = samples.fewer(data, 3)
    assert chosen.val == (data.val[0], data.val[4], data.val[8]) and chosen.val_total == 9
    assert chosen.train == data.train
    assert samples.fewer(data, 9) is data and samples.fewer(data, None) is data
