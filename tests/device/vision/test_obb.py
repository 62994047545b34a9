"""obb: rows, rotated NMS and probabilistic IoU, beside Ultralytics in the same run where it is installed."""

import importlib
import json

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.vision import obb, preprocess
from edgeprune_device.vision.accuracy import match
from edgeprune_device.vision.obb import TASK

SIDE, CLASSES = 640, 4
needs_ultralytics = pytest.mark.skipif(importlib.util.find_spec("ultralytics") is None, reason="needs Ultralytics")


def boxes(count, seed=0, largest=200.0):
    """(count, 5) random boxes; every second one is near the one before it, as a detector's boxes are."""
    random = np.random.default_rng(seed)
    table = np.stack(
        [
            *random.uniform(0, SIDE, (2, count)),
            *random.uniform(3, largest, (2, count)),
            random.uniform(-np.pi / 4, 3 * np.pi / 4, count),
        ],
        axis=1,
    )
    near = table[1::2]
    near[:] = table[::2][: len(near)] + random.normal(0, 1, near.shape) * [2, 2, 2, 2, 0.05]
    near[:, 2:4] = near[:, 2:4].clip(2)
    return table


def raw(count, seed=0, anchors=2100):
    """A raw output in which `count` anchors score above 0.25."""
    random = np.random.default_rng(seed)
    out = np.zeros((1, 4 + CLASSES + 1, anchors), np.float32)
    table = boxes(anchors, seed).T
    out[0, :4], out[0, -1] = table[:4], table[4]
    out[0, 4:-1] = random.uniform(0, 0.2, (CLASSES, anchors))
    chosen = np.arange(count)
    # Pairs are of one class, and scores differ: equal ones have no order.
    out[0, 4 + (chosen // 2) % CLASSES, chosen] = random.permutation(np.linspace(0.26, 0.99, count))
    return out


def theirs(out, conf=0.25, multi_label=False):
    torch = pytest.importorskip("torch")
    from ultralytics.utils.nms import non_max_suppression

    found = non_max_suppression(
        torch.from_numpy(out.copy()), conf, 0.7, nc=CLASSES, rotated=True, multi_label=multi_label, max_det=300
    )
    return found[0].numpy()[:, [0, 1, 2, 3, 6, 4, 5]]


@needs_ultralytics
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_probabilistic_iou_is_ultralytics(dtype):
    torch = pytest.importorskip("torch")
    from ultralytics.utils.metrics import batch_probiou

    a, b = boxes(300).astype(dtype), boxes(400, seed=1).astype(dtype)
    b[:100] = a[:100] + np.asarray(np.random.default_rng(2).normal(0, 0.5, (100, 5)) * [1, 1, 1, 1, 0.05], dtype)
    ours, reference = TASK.iou(a, b), batch_probiou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert ours.max() > 0.9 and (ours > 0.1).sum() > 100
    # The evaluator computes in float64. In float32, as in NMS, both sides round; near 1 the square root magnifies it.
    limit = 1e-5 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(ours, reference, atol=limit, rtol=0)
    np.testing.assert_allclose(TASK.paired_iou(a, b[: len(a)]), np.diagonal(ours), atol=1e-6)


@needs_ultralytics
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("count", [0, 1, 10, 300])
def test_detections_are_ultralytics(count, multi_label):
    out = raw(count, seed=count)
    conf = 0.19 if multi_label else 0.25
    if multi_label:
        out = out[..., :400]
    ours = TASK.detections([out], RAW, classes=CLASSES, conf=conf, multi_label=multi_label)
    expected = theirs(out, conf, multi_label)
    assert ours.shape == expected.shape and ours.dtype == np.float32
    assert (len(ours) < count) == (count >= 10) or multi_label  # some are suppressed
    np.testing.assert_allclose(TASK.corners(ours[:, :5]), TASK.corners(expected[:, :5]), atol=0.5)
    np.testing.assert_allclose(ours[:, 5], expected[:, 5], atol=1e-3)
    np.testing.assert_array_equal(ours[:, 6], expected[:, 6])


def test_a_suppressed_box_suppresses_others():
    """A covers B, and B covers C, but A does not cover C: greedy NMS would keep C, fast NMS does not."""
    out = np.zeros((1, 6, 3), np.float32)
    out[0, :4] = np.array([[50, 50, 40, 20], [53, 50, 40, 20], [56, 50, 40, 20]]).T
    out[0, 4] = 0.9, 0.8, 0.7
    chain = TASK.iou(*[out[0, [0, 1, 2, 3, 5]].T.astype(float)] * 2)
    threshold = (chain[0, 1] + chain[0, 2]) / 2
    assert chain[0, 2] < threshold < chain[1, 2]
    assert len(TASK.detections([out], RAW, classes=1, conf=0.25, iou=threshold)) == 1
    assert len(TASK.detections([out[..., [0, 2]]], RAW, classes=1, conf=0.25, iou=threshold)) == 2


def test_the_search_for_neighbours_loses_no_pair():
    """Every threshold, thin boxes and huge ones give what the whole matrix gives."""
    for seed in range(20):
        table = boxes(120, seed, largest=[20, 600][seed % 2])
        if seed % 5 == 0:
            table[::7, 2] = 0.01
        threshold = [0.0, 0.05, 0.3, 0.7, 0.95, 1.0][seed % 6]
        columns = table.T.astype(np.float32)
        whole = TASK.iou(columns.T, columns.T)
        expected = np.flatnonzero(~(np.triu(whole, 1) > np.float32(threshold)).any(axis=0))
        with np.errstate(all="ignore"):  # as in `detections`
            kept = obb._kept(columns, threshold)
        assert kept.tolist() == expected.tolist()


def test_classes_do_not_suppress_each_other_unless_agnostic():
    out = np.zeros((1, 7, 2), np.float32)
    out[0, :4] = np.array([[50, 50, 40, 20]] * 2).T
    out[0, 4, 0], out[0, 5, 1] = 0.9, 0.8
    assert len(TASK.detections([out], RAW, classes=2, conf=0.25)) == 2
    assert len(TASK.detections([out], RAW, classes=2, conf=0.25, agnostic=True)) == 1
    out[0, 4:6, 0] = 0.9, 0.6
    assert TASK.detections([out], RAW, classes=2, conf=0.25, multi_label=True)[:, 6].tolist() == [0, 1]


def test_rows_of_an_end_to_end_model_are_only_filtered():
    out = np.zeros((1, 3, 7), np.float32)
    out[0] = [[50, 50, 40, 20, 0.9, 1, 0.5], [50, 50, 40, 20, 0.8, 1, 0.5], [9, 9, 4, 2, 0.2, 0, 0.1]]
    rows = TASK.detections([out], END2END, classes=2, conf=0.25)
    np.testing.assert_allclose(rows, [[50, 50, 40, 20, 0.5, 0.9, 1], [50, 50, 40, 20, 0.5, 0.8, 1]])


def test_outputs_of_detection_are_refused():
    for shape, kind in (((1, 4 + CLASSES, 100), RAW), ((1, 100, 6), END2END)):
        with pytest.raises(InputError, match="wrong output shape for the kind"):
            TASK.detections([np.zeros(shape, np.float32)], kind, classes=CLASSES, conf=0.25)


def test_a_broken_model_gives_no_error():
    out = raw(40, anchors=100)
    for value in (np.nan, np.inf, -np.inf, 1e38):
        for row in (0, 2, 8):
            broken = out.copy()
            broken[0, row, ::3] = value
            assert TASK.detections([broken], RAW, classes=CLASSES, conf=0.25).shape[1] == 7


@needs_ultralytics
@pytest.mark.parametrize("shape", [(480, 640), (1000, 333), (333, 1001), (640, 640)])
def test_boxes_return_to_the_image_as_in_ultralytics(shape):
    torch = pytest.importorskip("torch")
    from ultralytics.utils import ops

    _, box = preprocess.letterbox(np.zeros((*shape, 3), np.uint8), SIDE)
    rows = np.concatenate([boxes(50), np.full((50, 2), 0.5)], axis=1).astype(np.float32)
    expected = torch.from_numpy(rows.copy())
    ops.scale_boxes((SIDE, SIDE), expected[:, :4], shape, xywh=True)
    back = TASK.undo(rows, box)
    np.testing.assert_allclose(back, expected.numpy(), atol=1e-3)
    from ultralytics.utils.ops import xywhr2xyxyxyxy

    np.testing.assert_allclose(TASK.corners(back[:, :5]).reshape(-1, 4, 2), xywhr2xyxyxyxy(back[:, :5]), atol=1e-3)


def test_json_has_corners_and_an_upright_box_inside_the_image():
    from edgeprune_device import schema
    from edgeprune_device.service.detections import Lines

    rows = np.array([[5.0, 40, 40, 20, np.pi / 4, 0.9, 1], [50, 50, np.nan, 20, 0, 0.8, 0]], np.float32)
    line = Lines("0" * 16, ["person", "car"], TASK)(0, "a.jpg", 0, (100, 200, 3), (0, 1, 2, 3, 4), rows)
    data = schema.check("detections", json.loads(line), "line")
    (only,) = data["detections"]
    assert only["name"] == "car" and only["angle"] == pytest.approx(np.pi / 4, abs=1e-4)
    assert only["box"] == pytest.approx([0, 40 - 30 / 2**0.5, 5 + 30 / 2**0.5, 40 + 30 / 2**0.5], abs=0.06)
    np.testing.assert_allclose(np.ravel(only["corners"]), TASK.corners(rows[:1, :5].astype(float))[0], atol=0.06)


def test_accuracy_counts_rotated_overlap_and_rotated_area():
    """The same centre and sides turned by a right angle is a miss; an oriented box is small by w x h."""
    truth = np.array([[0, 50, 50, 60, 12, 0.3], [0, 200, 200, 100, 9, 0.8], [0, 300, 300, 90, 80, 0]])
    good = np.concatenate([truth[:, 1:], np.full((3, 1), 0.9), np.zeros((3, 1))], axis=1)
    figures = match([good], [truth], 1, TASK).accuracy()
    assert figures.map50_95 == 1 and figures.small_map50_95 == 1
    assert (figures.boxes, figures.small_boxes) == (3, 2)  # their upright hulls are larger than 32² px
    turned = good.copy()
    turned[:2, 4] += np.pi / 2
    turned[2, 5] = 0.95  # the hit comes first: precision 1 up to a recall of a third, which 34 of 101 points are
    assert match([turned], [truth], 1, TASK).accuracy().map50 == pytest.approx(34 / 101)
    with pytest.raises(InputError, match=r"wrong shape .found \(3, 7\), expected \(n, 6\)"):
        match([good], [truth[:, :5]], 1)


@needs_ultralytics
def test_average_precision_is_coco_on_ultralytics_overlaps():
    """The evaluator's matching on `batch_probiou` itself gives the same figure."""
    torch = pytest.importorskip("torch")
    from ultralytics.utils.metrics import batch_probiou

    class Reference(obb.OrientedBoxes):
        def iou(self, a, b):
            return batch_probiou(torch.from_numpy(a), torch.from_numpy(b)).numpy()

    random = np.random.default_rng(3)
    truths, found = [], []
    for seed in range(8):
        truth = boxes(30, seed)
        near = truth + random.normal(0, 1, truth.shape) * [3, 3, 4, 4, 0.08]
        near[:, 2:4] = near[:, 2:4].clip(1)
        labels = random.integers(0, CLASSES, 30)
        truths.append(np.concatenate([labels[:, None], truth], axis=1))
        found.append(np.concatenate([near, random.random((30, 1)), labels[:, None]], axis=1))
    ours, reference = (match(found, truths, CLASSES, task).accuracy() for task in (TASK, Reference()))
    assert 0.2 < ours.map50_95 < 0.95
    assert (ours.map50_95, ours.small_map50_95) == pytest.approx((reference.map50_95, reference.small_map50_95))
    for one, other in zip(ours.per_class, reference.per_class):
        assert (one.boxes, one.small_boxes) == (other.boxes, other.small_boxes)
        assert one.map50_95 == pytest.approx(other.map50_95)
