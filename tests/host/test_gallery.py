"""Which pictures tell most of what a model lost."""

from pathlib import Path

import numpy as np

from edgeprune import gallery


def boxes(*rows):
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def found(*rows):
    """[class, x1, y1, x2, y2, score] as detections."""
    return np.array([[*box, score, c] for c, *box, score in rows], dtype=np.float32).reshape(-1, 6)


A, B = (0, 10, 10, 50, 50), (1, 100, 100, 140, 160)


def test_each_detection_finds_one_object_of_its_class_the_surest_first():
    truth = boxes(A, A, B)
    assert gallery.found(truth, found((*A, 0.9))).tolist() == [True, False, False]
    other = (0, *B[1:], 0.9)  # the place is right, the class is not
    assert gallery.found(truth, found((*A, 0.9), (*A, 0.8), other)).tolist() == [True, True, False]
    assert gallery.found(truth, found((1, 102, 101, 141, 158, 0.3))).tolist() == [False, False, True]
    assert gallery.found(truth, found((0, 40, 40, 90, 90, 0.9))).tolist() == [False, False, False]  # IoU 0.03
    assert gallery.found(truth, found()).tolist() == [False] * 3
    assert gallery.found(boxes(), found((*A, 0.9))).tolist() == []


def test_the_worst_losses_come_first_and_stay_comparable():
    pictures = [Path(f"/p/{i}.jpg") for i in range(4)]
    truths = [boxes(A), boxes(A, B), boxes(B), boxes()]
    shown = {
        "original": [found((*A, 0.9)), found((*A, 0.9), (*B, 0.9)), found(), found()],
        "pruned": [found((*A, 0.9)), found((*A, 0.9)), found(), found((*A, 0.5))],
        "int8": [found((*A, 0.8)), found(), found((*B, 0.4)), found()],
    }
    told = gallery.choose(pictures, truths, [(200, 300)] * 4, shown, 3, conf=0.25)
    assert (told["first"], told["last"], told["conf"], told["iou"]) == ("original", "int8", 0.25, 0.5)
    assert [p["name"] for p in told["pictures"]] == ["1.jpg", "0.jpg", "3.jpg"]
    worst = told["pictures"][0]
    assert worst["lost"] == 2 and worst["lost_truth"] == [0, 1] and worst["gained"] == 0
    assert (worst["width"], worst["height"]) == (300, 200)
    assert worst["truth"] == [list(A), list(B)]
    assert worst["found"]["pruned"] == [[0, 0.9, 10.0, 10.0, 50.0, 50.0]] and worst["found"]["int8"] == []
    gained = gallery.choose(pictures, truths, [(200, 300)] * 4, shown, 4, conf=0.25)["pictures"][-1]
    assert gained["name"] == "2.jpg" and gained["gained_truth"] == [0]
