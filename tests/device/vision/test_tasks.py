"""tasks: the table agrees with the manifest's schema, and its entries with each other."""

import numpy as np
import pytest
from edgeprune_device import schema
from edgeprune_device.errors import InputError
from edgeprune_device.output import BEST, END2END, RAW, shape_of
from edgeprune_device.trust.manifest import Manifest
from edgeprune_device.vision import tasks
from edgeprune_device.vision.postprocess import narrowed


def test_the_manifest_accepts_the_tasks_of_the_table():
    assert schema.load("manifest")["properties"]["task"]["enum"] == list(tasks.TASKS)
    with pytest.raises(InputError, match=r"task: unknown .found 'depth', expected detect or obb"):
        tasks.get("depth")


def test_shapes_of_inputs_and_outputs(manifest):
    def shapes(**other):
        read = Manifest.from_json(
            {"schema_version": 1, **manifest, "payloads": [], "models": {}, "evaluation": None, **other}
        )
        return tasks.get(read.task).shapes(read)

    assert shapes() == ((1, 3, 64, 64), [(1, 6, 84)])
    assert shapes(imgsz=[640, 640], classes=["x"] * 80)[1] == [(1, 84, 8400)]
    variant = shapes(output="best", layout="uint8-nhwc", imgsz=[384, 640])
    assert variant == ((1, 384, 640, 3), [(1, 6, 300), (1, 300), (1, 6, 5040)])
    assert shapes(output="end2end")[1] == [(1, 84, 6)]  # all anchors of 64 px, as in the file
    # The application's limits on detections do not change the model's shapes.
    few = {"conf": 0.25, "iou": 0.7, "max_det": 100}
    assert shapes(output="end2end", imgsz=[640, 640], nms=few)[1] == [(1, 300, 6)]


@pytest.mark.parametrize("kind", [RAW, END2END])
@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_task_reads_its_own_outputs(name, kind):
    """Every task turns an output of its shape into rows of its width, and each row into a line of JSON."""
    task = tasks.get(name)
    classes = 3
    out = np.zeros(shape_of(kind, classes, 400, task.extra), np.float32)
    values, score = (out[0, :4, 7], out[0, 4:5, 7]) if kind == RAW else (out[0, 7, :4], out[0, 7, 4:5])
    values[:], score[:] = (20, 30, 40, 60), 0.5
    rows = task.detections([out], kind, classes=classes, conf=0.25)
    assert rows.shape == (1, len(task.columns) + 2) and rows[0, -2:].tolist() == [0.5, 0]
    assert len(task.fields(rows, (100, 100))) == 1
    box = rows[:, : len(task.columns)].astype(float)
    assert task.iou(box, box)[0, 0] > 0.999 and task.paired_iou(box, box)[0] > 0.999
    empty = task.detections([np.zeros_like(out)], kind, classes=classes, conf=0.25)
    assert empty.shape == (0, len(task.columns) + 2) and task.fields(empty, (100, 100)) == []


class OnlyIfRead(list):
    """The outputs of a device variant whose last one must not be read."""

    def __getitem__(self, index):
        assert index != 2, "the raw output was read"
        return super().__getitem__(index)


def best_of(raw, classes, k):
    """The outputs of a device variant with this raw output; equal scores in reverse order, as a GPU may sort them."""
    order = np.argsort(raw[0, 4 : 4 + classes].max(axis=0)[::-1], kind="stable")[::-1][:k]
    anchors = raw.shape[2] - 1 - order
    return [raw[:, :, anchors], anchors[None].astype(np.int32), raw]


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("levels", [1000, 7], ids=["distinct", "tied"])
def test_best_anchors_give_the_detections_of_the_raw_output(name, levels):
    task, classes, k, rng = tasks.get(name), 3, 50, np.random.default_rng(levels)
    raw = rng.uniform(10, 90, (1, 4 + classes + task.extra, 400)).astype(np.float32)
    raw[0, 4 : 4 + classes] = rng.integers(levels, size=(classes, 400)) / levels
    outputs = best_of(raw, classes, k)
    last = float(outputs[0][0, 4 : 4 + classes].max(axis=0)[-1])
    above = float(np.nextafter(np.float32(last), np.float32(1)))
    for conf in (last, above, 0.99, 1.0):  # the lowest of the best is not above these
        for multi_label in (False, True):
            how = {"classes": classes, "conf": conf, "multi_label": multi_label}
            few = task.detections(OnlyIfRead(outputs), BEST, **how)
            assert np.array_equal(few, task.detections([raw], RAW, **how))
    below = float(np.nextafter(np.float32(last), np.float32(0)))
    for conf in (below, 0.001):
        with pytest.raises(AssertionError, match="the raw output was read"):
            task.detections(OnlyIfRead(outputs), BEST, classes=classes, conf=conf)
        how = {"classes": classes, "conf": conf, "multi_label": True}
        assert np.array_equal(task.detections(outputs, BEST, **how), task.detections([raw], RAW, **how))


def test_nan_among_the_best_anchors_counts_as_incomplete():
    best = np.full((7, 5), 0.1, np.float32)
    assert narrowed(best, np.arange(5), 3, 0.2).shape == (7, 0)
    best[5, 2] = np.nan
    assert narrowed(best, np.arange(5), 3, 0.2) is None
