"""gallery: the images in which a model loses most."""

from pathlib import Path

import numpy as np
import pytest
from edgeprune_device.errors import InputError

from edgeprune.comparison import gallery
from edgeprune.comparison.comparison import Comparison

from .. import page_comparisons as made


def boxes(*rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def detections(*rows):
    """[class, x1, y1, x2, y2, score] rows in the format of an evaluation."""
    return np.array([[*box, score, c] for c, *box, score in rows], dtype=np.float32).reshape(-1, 6)


def listed(*rows):
    """The same rows in the format of a gallery."""
    return [[c, score, *box] for c, *box, score in rows]


A, B = (0, 10, 10, 50, 50), (1, 100, 100, 140, 160)


def test_each_detection_finds_one_object_of_its_class_most_confident_first():
    truth = [list(A), list(A), list(B)]
    assert gallery.match(truth, listed((*A, 0.8), (*A, 0.9), (*A, 0.7))) == [1, 0, None]
    other = (0, *B[1:], 0.9)  # at the right place, with the wrong class
    assert gallery.objects_found(truth, listed((*A, 0.9), (*A, 0.8), other)) == {0, 1}
    assert gallery.objects_found(truth, listed((1, 102, 101, 141, 158, 0.3))) == {2}
    assert gallery.objects_found(truth, listed((0, 40, 40, 90, 90, 0.9))) == set()  # IoU 0.03
    assert gallery.objects_found(truth, []) == gallery.objects_found([], listed((*A, 0.9))) == set()
    assert gallery.match([], listed((*A, 0.9))) == [None] and gallery.match(truth, []) == []


def test_match_equals_a_plain_loop_over_the_detections():
    """Compared with a plain loop over the detections in the order of confidence."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        corners = rng.uniform(0, 60, (8, 2))
        truth = [[int(c), *at, *(at + 30)] for c, at in zip(rng.integers(0, 2, 8), corners)]
        shown = [[int(c), float(s), *at, *(at + 30)] for c, s, at in
                 zip(rng.integers(0, 2, 12), rng.uniform(size=12), rng.uniform(0, 60, (12, 2)))]  # fmt: skip
        free, expected = set(range(8)), [None] * 12
        for i in sorted(range(12), key=lambda i: -shown[i][1]):
            near = {t: overlap(truth[t][1:], shown[i][2:]) for t in free if truth[t][0] == shown[i][0]}
            best = max(near, key=near.get, default=None)
            if best is not None and near[best] >= 0.5:
                free.remove(best)
                expected[i] = best
        assert gallery.match(truth, shown) == expected


def overlap(a, b):
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def test_gallery_shows_the_worst_losses_first():
    pictures = [Path(f"/p/{i}.jpg") for i in range(4)]
    truths = [boxes(A), boxes(A, B), boxes(B), boxes()]
    shown = {
        "original": [detections((*A, 0.9)), detections((*A, 0.9), (*B, 0.9)), detections(), detections()],
        "pruned": [detections((*A, 0.9)), detections((*A, 0.9)), detections(), detections((*A, 0.5))],
        "int8": [detections((*A, 0.8)), detections(), detections((*B, 0.4)), detections()],
    }
    chosen = gallery.choose(pictures, truths, [(200, 300)] * 4, shown, 3, conf=0.25)
    assert (chosen["first"], chosen["last"], chosen["conf"], chosen["iou"]) == ("original", "int8", 0.25, 0.5)
    assert [p["name"] for p in chosen["pictures"]] == ["1.jpg", "0.jpg", "3.jpg"]
    worst = chosen["pictures"][0]
    assert worst["lost"] == 2 and worst["lost_truth"] == [0, 1] and worst["gained"] == 0
    assert (worst["width"], worst["height"]) == (300, 200)
    assert worst["truth"] == [list(A), list(B)]
    assert worst["found"]["pruned"] == [[0, 0.9, 10.0, 10.0, 50.0, 50.0]] and worst["found"]["int8"] == []
    gained = gallery.choose(pictures, truths, [(200, 300)] * 4, shown, 4, conf=0.25)["pictures"][-1]
    assert gained["name"] == "2.jpg" and gained["gained_truth"] == [0]


def test_comparison_outlines_and_matches_the_boxes_of_its_gallery(tmp_path):
    shown = Comparison.from_json(made.compare(tmp_path, items=2, pictures=1))
    found = {"a": listed((0, 11, 10, 50, 50, 0.9))}
    picture = {**shown.gallery["pictures"][0], "truth": [[0, 10, 10, 50, 50]], "found": found}
    assert shown.found(picture, "a") == [0]
    assert shown.outline(picture["truth"][0]).tolist() == [[10, 10], [50, 10], [50, 50], [10, 50]]
    with pytest.raises(InputError, match="comparison: no gallery"):
        Comparison.from_json(made.bare()).outline([0, 1, 2, 3, 4])
