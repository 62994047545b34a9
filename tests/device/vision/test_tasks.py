"""tasks: the table agrees with the manifest's schema, and its entries with each other."""

import numpy as np
import pytest
from edgeprune_device import schema
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW, shape_of
from edgeprune_device.trust.manifest import Manifest
from edgeprune_device.vision import tasks


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
