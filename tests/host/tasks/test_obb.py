"""obb: labels of oriented boxes, beside Ultralytics in the same run."""

import cv2
import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.obb import TASK as ON_DEVICE

from edgeprune import tasks
from edgeprune.data import dataset, labels, samples
from edgeprune.tasks.obb import TASK

from ... import fuzz

GOOD = "0 0.2 0.2 0.4 0.3 0.35 0.4 0.15 0.3"


@pytest.fixture
def oriented(data):
    """A data set with two oriented boxes in every image."""
    for label in (data.parent / "labels").rglob("*.txt"):
        label.write_text(f"{GOOD}\n1 0.5 0.5 0.9 0.5 0.9 0.6 0.5 0.6\n")
    return data


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "0 0.5 0.5 0.1 0.1",
            r"\.txt:2: wrong number of values \(found 5, expected class and four corners, .* upright",
        ),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2", r"\.txt:2: wrong number of values \(found 7, expected class and four corners"),
        ("0 0.2 0.2 0.4 0.3 0.15 0.3 0.35 0.4", r"\.txt:2: the sides of the box cross each other"),
        ("0 0.2 0.2 0.35 0.4 0.4 0.3 0.15 0.3", r"\.txt:2: the sides of the box cross each other"),
        ("0 0.2 0.2 0.3 0.3 0.4 0.4 0.5 0.5", r"\.txt:2: box without area"),
        ("0 0.2 0.2 0.4 0.3 0.35 1.4 0.15 0.3", r"\.txt:2: coordinates out of range"),
        ("7 0.2 0.2 0.4 0.3 0.35 0.4 0.15 0.3", r"\.txt:2: class out of range \(found 7, expected 0 to 2\)"),
        ("0 0.2 0.2 nan 0.3 0.35 0.4 0.15 0.3", r"\.txt:2: coordinate not finite"),
    ],
)
def test_an_invalid_label_error_names_file_and_line(oriented, line, message):
    label = sorted((oriented.parent / "labels/val").iterdir())[0]
    label.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(InputError, match=message) as error:
        dataset.load(oriented, task="obb")
    assert "\n" not in str(error.value)


def test_labels_of_detection_are_refused(data):
    with pytest.raises(InputError, match=r"\.txt:1: .* five values are an upright box, for a detector"):
        dataset.load(data, task="obb")


def test_a_task_that_is_not_supported_is_refused_by_name(data):
    for name in ("semantic", "depth", "segment"):
        with pytest.raises(InputError, match=rf"task: not supported .found '{name}', expected detect or obb"):
            dataset.load(data, task=name)


def quadrilaterals(count, seed=0):
    """(count, 8) rectangles and nearly rectangular quadrilaterals, px."""
    random = np.random.default_rng(seed)
    boxes = np.stack(
        [*random.uniform(50, 600, (2, count)), *random.uniform(4, 90, (2, count)), random.uniform(-4, 4, count)], axis=1
    )
    boxes[::9, 3] = boxes[::9, 2]  # squares
    boxes[::7, 4] = 0
    corners = ON_DEVICE.corners(boxes)
    corners[::2] += random.normal(0, 1, corners[::2].shape)
    return corners


def test_boxes_of_corners_are_ultralytics():
    from ultralytics.utils.ops import xyxyxyxy2xywhr

    corners = quadrilaterals(500)
    rows = np.concatenate([np.zeros((500, 1)), corners / np.tile((640, 512), 4)], 1)
    truth = TASK.truth(rows, (512, 640))
    expected = xyxyxyxy2xywhr(corners.astype(np.float32))
    np.testing.assert_allclose(ON_DEVICE.corners(truth[:, 1:]), ON_DEVICE.corners(expected), atol=0.02)
    assert (truth[:, 3] >= truth[:, 4]).all() and (truth[:, 5] >= -np.pi / 4).all() and (truth[:, 5] < 2.3562).all()


def test_targets_are_those_of_ultralytics_training(tmp_path):
    """The labels of the same letterboxed image, as its data set gives them to its loss."""
    from ultralytics.cfg import get_cfg
    from ultralytics.data.build import build_yolo_dataset

    images, texts = tmp_path / "images/train", tmp_path / "labels/train"
    images.mkdir(parents=True)
    texts.mkdir(parents=True)
    random = np.random.default_rng(0)
    shape = (400, 640)
    cv2.imwrite(str(images / "a.jpg"), random.integers(0, 255, (*shape, 3), dtype=np.uint8))
    corners = quadrilaterals(40, seed=1) * np.tile((1, 0.6), 4)
    corners = corners[(corners[:, 1::2] < 399).all(axis=1) & (corners[:, ::2] < 639).all(axis=1)]
    lines = [
        " ".join(map(str, [i % 3, *values])) for i, values in enumerate((corners / np.tile((640, 400), 4)).tolist())
    ]
    (texts / "a.txt").write_text("\n".join(lines))
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a, b, c]\n")
    data = dataset.load(tmp_path / "data.yaml", task="obb")
    ours = samples.read(data, data.train, 320).batch(0, 1)
    config = get_cfg(overrides={"task": "obb", "imgsz": 320})
    description = {"names": {0: "a", 1: "b", 2: "c"}, "channels": 3, "nc": 3}
    theirs = build_yolo_dataset(config, str(images), 1, description, mode="val", rect=False)[0]
    order, reference = np.lexsort(ours["bboxes"].numpy().T[:2]), np.lexsort(theirs["bboxes"].numpy().T[:2])
    assert len(order) == len(reference) == len(corners)
    np.testing.assert_array_equal(ours["cls"].numpy()[order], theirs["cls"].numpy()[reference])
    scale = [320, 320, 320, 320, 1]
    for one, other in zip(ours["bboxes"].numpy()[order] * scale, theirs["bboxes"].numpy()[reference] * scale):
        distance = np.abs(ON_DEVICE.corners(one[None]) - ON_DEVICE.corners(other[None])).max()
        turned = np.sort(ON_DEVICE.corners(one[None]).reshape(4, 2), 0) - np.sort(
            ON_DEVICE.corners(other[None]).reshape(4, 2), 0
        )
        assert min(distance, np.abs(turned).max()) < 0.5  # a square may be turned by a right angle


def test_real_labels_are_read(tmp_path, shared):
    folder = shared / "hit-uav-mini-obb"
    data = dataset.load(folder / "data.yaml", task="obb")
    assert (len(data.train), len(data.val)) == (280, 80)
    from ultralytics.utils.ops import xyxyxyxy2xywhr

    picture = data.val[0]
    truth = data.truth(picture, data.shape(picture))
    height, width = data.shape(picture)
    corners = data.labels(picture)[:, 1:] * np.tile((width, height), 4)
    expected = xyxyxyxy2xywhr(corners.astype(np.float32))
    np.testing.assert_allclose(ON_DEVICE.iou(truth[:, 1:], expected).diagonal(), 1, atol=2e-3)
    with pytest.raises(
        InputError, match=r"as for oriented boxes .class and four corners., but the network is for upright"
    ):
        dataset.load(folder / "data.yaml")


@fuzz.counts(300, 50_000)
def test_any_label_file_is_read_or_refused_in_one_line(count, tmp_path):
    path = tmp_path / "a.txt"

    def attempt(mutant):
        path.write_bytes(mutant)
        rows = labels.read(path, 3, None, TASK)
        truth = TASK.truth(rows, (480, 640))
        assert rows.shape[1:] == (9,) and np.isfinite(truth).all() and truth.shape == (len(rows), 6)

    result = fuzz.run(
        attempt, fuzz.of_bytes(f"{GOOD}\n".encode(), count, others=[b"1 0.5 0.5 0.9 0.5 0.9 0.6 0.5 0.6\n"])
    )
    assert result["accepted"] and result["refused"]


def test_targets_undo_to_the_truth():
    _, box = preprocess.letterbox(np.zeros((480, 640, 3), np.uint8), 320)
    truth = TASK.truth(np.array([[1.0, *map(float, GOOD.split()[1:])]]), (480, 640))
    target = TASK.targets(truth, box)
    rows = np.concatenate([target[:, 1:] * [320, 320, 320, 320, 1], [[0.5, 1]]], axis=1)
    np.testing.assert_allclose(ON_DEVICE.undo(rows, box)[:, :5], truth[:, 1:], atol=1e-3)


def test_the_host_has_every_task_of_the_device():
    from edgeprune_device.vision import tasks as device

    assert list(tasks.TASKS) == list(device.TASKS)
    assert all(
        task.on_device is device.get(name) and tasks.NETWORKS[task.network] == name
        for name, task in tasks.TASKS.items()
    )
