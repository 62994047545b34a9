import contextlib
import io
import time

import numpy as np
import pytest
from edgeprune_device.errors import InputError
from edgeprune_device.vision.accuracy import Accuracy, match


def scene(rng, pictures, classes, boxes, dets, ties=False):
    """Random truth, and detections: jittered copies, duplicates, wrong classes and false positives."""
    detections, truths = [], []
    for _ in range(pictures):
        n, m = rng.integers(0, dets + 1), rng.integers(0, boxes + 1)
        corner, size = rng.uniform(0, 400, (m, 2)), rng.uniform(4, 80, (m, 2))
        truth = np.column_stack([rng.integers(0, classes, m), corner, corner + size])
        if m:
            pick = rng.integers(0, m, n)
            box = truth[pick, 1:] + rng.normal(0, 2, (n, 4))
            box[:, 2:] = np.maximum(box[:, 2:], box[:, :2] + 1)
            label = np.where(rng.random(n) < 0.8, truth[pick, 0], rng.integers(0, classes, n))
        else:
            corner = rng.uniform(0, 400, (n, 2))
            box, label = np.column_stack([corner, corner + 20]), rng.integers(0, classes, n)
        score = rng.random(n)
        detections.append(np.column_stack([box, np.round(score, 1) if ties else score, label]))
        truths.append(truth)
    return detections, truths


def pycocotools(detections, truths, classes):
    """(map50, map50_95, small, per class map50_95, per class small); None where pycocotools gives -1."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    truth = coco.COCO()
    boxes = [(p, row) for p, rows in enumerate(truths) for row in rows]
    truth.dataset = {
        "info": {},
        "images": [{"id": p} for p in range(len(truths))],
        "categories": [{"id": c} for c in range(classes)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": p,
                "category_id": int(c),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for i, (p, (c, x1, y1, x2, y2)) in enumerate(boxes)
        ],
    }
    results = [
        {"image_id": p, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(s)}
        for p, rows in enumerate(detections)
        for x1, y1, x2, y2, s, c in np.asarray(rows, dtype=float)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.maxDets = [1, 10, 300]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 2]  # (threshold, recall, class, area)

    def mean(values):
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    return (
        mean(precision[0, :, :, 0]),
        mean(precision[..., 0]),
        mean(precision[..., 1]),
        [mean(precision[:, :, c, 0]) for c in range(classes)],
        [mean(precision[:, :, c, 1]) for c in range(classes)],
    )


def assert_equal(accuracy, expected):
    ours = (
        accuracy.map50,
        accuracy.map50_95,
        accuracy.small_map50_95,
        *(entry.map50_95 for entry in accuracy.per_class),
        *(entry.small_map50_95 for entry in accuracy.per_class),
    )
    for a, b in zip(ours, (*expected[:3], *expected[3], *expected[4])):
        assert (a is None) == (b is None) and (a is None or abs(a - b) < 1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_equal_to_pycocotools(seed):
    rng = np.random.default_rng(seed)
    pictures, boxes, dets = rng.integers(1, 12), rng.integers(1, 14), rng.integers(3, 60)
    detections, truths = scene(rng, pictures, 5, boxes, dets, ties=seed % 2 == 1)
    detections[0] = np.array([[0, 0, 10, 10, 0.5, 0]])  # loadRes refuses an empty list
    assert_equal(match(detections, truths, 5).accuracy(), pycocotools(detections, truths, 5))


def test_equal_to_pycocotools_beyond_300_detections_per_class():
    rng = np.random.default_rng(99)
    detections, truths = scene(rng, 2, 1, 30, 10)
    while min(map(len, detections)) < 400:
        more, _ = scene(rng, 2, 1, 30, 900)
        detections = [np.concatenate(pair) for pair in zip(detections, more)]
    assert_equal(match(detections, truths, 1).accuracy(), pycocotools(detections, truths, 1))


def test_equal_to_pycocotools_at_exact_overlaps():
    # IoU of exactly 0.5 and 0.75, two equal IoUs, a box at the limit of "small": cases in which < and <= differ.
    truths = [np.array([[0, 0, 0, 20, 10], [0, 0, 20, 20, 30], [0, 0, 40, 32, 72], [0, 100, 0, 133, 32]], float)]
    detections = [
        np.array(
            [
                [0, 0, 10, 10, 0.9, 0],
                [0, 20, 15, 30, 0.9, 0],
                [0, 10, 20, 20, 0.9, 0],
                [0, 40, 32, 72, 0.5, 0],
                [100, 0, 133, 32, 0.5, 0],
            ],
            float,
        )
    ]
    assert_equal(match(detections, truths, 1).accuracy(), pycocotools(detections, truths, 1))


def test_float32_detections_are_accepted():
    rng = np.random.default_rng(5)
    detections, truths = scene(rng, 8, 3, 10, 60)
    detections = [rows.astype(np.float32) for rows in detections]
    assert_equal(match(detections, truths, 3).accuracy(), pycocotools(detections, truths, 3))


def test_perfect_and_wrong_detections():
    truth = [np.array([[0, 0, 0, 10, 10], [1, 20, 20, 90, 90]], float)]
    perfect = [np.array([[0, 0, 10, 10, 0.9, 0], [20, 20, 90, 90, 0.8, 1]], float)]
    best = match(perfect, truth, ["person", "car", "boat"]).accuracy()
    assert (best.map50, best.map50_95, best.small_map50_95) == pytest.approx((1, 1, 1))
    assert (best.pictures, best.boxes, best.small_boxes) == (1, 2, 1)
    assert [entry.name for entry in best.per_class] == ["person", "car", "boat"]
    assert best.per_class[2].map50 is None and best.per_class[1].small_map50_95 is None
    worst = match([np.zeros((0, 6))], truth, 3).accuracy()
    assert (worst.map50, worst.map50_95, worst.small_map50_95) == (0, 0, 0)


def test_accuracy_without_truth_is_none_and_not_zero():
    accuracy = match([np.array([[0, 0, 10, 10, 0.9, 0]])], [np.zeros((0, 5))], 2).accuracy()
    assert (accuracy.map50, accuracy.map50_95, accuracy.small_map50_95, accuracy.boxes) == (None, None, None, 0)
    assert match([], [], 1).accuracy().map50_95 is None


def test_accuracy_without_small_boxes_is_none():
    truth, detections = [np.array([[0, 0, 0, 50, 50]], float)], [np.array([[0, 0, 50, 50, 0.9, 0]])]
    assert match(detections, truth, 1).accuracy().small_map50_95 is None


def test_resample_equals_repeated_images():
    rng = np.random.default_rng(3)
    detections, truths = scene(rng, 12, 4, 10, 50)
    matches = match(detections, truths, 4)
    for _ in range(10):
        pick = rng.integers(0, 12, 12)
        again = match([detections[i] for i in pick], [truths[i] for i in pick], 4).accuracy()
        ours = matches.accuracy(pick)
        assert ours.map50_95 == pytest.approx(again.map50_95, abs=1e-9)
        assert ours.small_map50_95 == pytest.approx(again.small_map50_95, abs=1e-9)
        assert (ours.boxes, ours.small_boxes, ours.pictures) == (again.boxes, again.small_boxes, 12)
    assert matches.accuracy(np.arange(12)) == matches.accuracy()


def test_a_thousand_resamples_take_seconds():
    rng = np.random.default_rng(4)
    detections, truths = scene(rng, 80, 4, 18, 100)
    matches = match(detections, truths, 4)
    began = time.process_time()
    values = [matches.accuracy(rng.integers(0, 80, 80)).map50_95 for _ in range(100)]
    assert time.process_time() - began < 2  # 0.3 s on the author's machine; a thousand take a few seconds
    assert len(set(values)) > 90


@pytest.mark.parametrize(
    "detections, truth, word",
    [
        ([], [np.zeros((0, 5))], "0 with detections, 1 with truth"),
        ([np.zeros((1, 5))], [np.zeros((0, 5))], r"expected \(n, 6\)"),
        ([np.zeros((0, 6))], [np.array([[2, 0, 0, 1, 1]])], "class out of range .expected 0 to 1"),
        ([np.zeros((0, 6))], [np.array([[-1, 0, 0, 1, 1]])], "class out of range"),
        ([np.zeros((0, 6))], [np.array([[0.5, 0, 0, 1, 1]])], "class out of range"),
        ([np.zeros((0, 6))], [np.array([[0, 0, np.nan, 1, 1]])], r"ground truth: value not finite \(NaN or infinity\)"),
        ([np.array([[0, 0, 1, 1, 0.5, 7]])], [np.zeros((0, 5))], "class out of range"),
    ],
)
def test_invalid_input_is_refused(detections, truth, word):
    with pytest.raises(InputError, match=word):
        match(detections, truth, 2)


def test_json_round_trip():
    rng = np.random.default_rng(6)
    accuracy = match(*scene(rng, 4, 3, 6, 20), 3).accuracy()
    assert Accuracy.from_json(accuracy.to_json()) == accuracy
