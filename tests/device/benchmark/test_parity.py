"""Tests of parity: figures calculated by hand, and outputs that cannot be compared."""

import numpy as np
import pytest
from edgeprune_device import runtimes
from edgeprune_device.benchmark import parity
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.runtimes import Session, ort
from edgeprune_device.vision import detect
from fakes import models

pytest.importorskip("onnxruntime")
CLASSES = 2
X = np.random.default_rng(0).random((2, 1, 3, models.SIZE, models.SIZE), dtype=np.float32)


class Shifted(Session):
    """ONNX Runtime on the CPU with changed outputs."""

    name = "shifted"

    def __init__(self, model, change):
        self._real, self._change = ort.OrtSession(model, as_written=True), change

    def infer(self, x):
        (out,) = self._real.infer(x)
        return [self._change(out.copy())]


def measured(change, model, kind=RAW):
    return parity.measure(Shifted(model, change), model, X, CLASSES, kind)


def same(out):
    return out


def test_equal_outputs_have_no_difference(tiny_onnx):
    checked = measured(same, tiny_onnx)
    assert checked.box_px == checked.score == 0
    assert checked.pictures == 2 and checked.anchors == 4  # two boxes per image; the other 82 anchors are background
    assert checked.reference.endswith("CPUExecutionProvider, default threads, yielding")


def test_differences_are_the_largest_of_a_side_and_of_a_score(tiny_onnx):
    def change(out):
        out[0, 0, 0] += 0.5  # the centre
        out[0, 2, 0] += 1  # the width: the right side moves by 0.5 + 0.5
        out[0, 5, 1] -= 0.25
        out[0, 1, 50] += 99  # background in both
        out[0, 4, 50] += parity.CONF / 2
        return out

    comparison = measured(change, tiny_onnx)
    assert comparison.box_px == pytest.approx(1, abs=1e-4) and comparison.score == pytest.approx(0.25, abs=1e-4)
    assert comparison.anchors == 4


def test_anchor_above_the_threshold_in_one_runtime_counts(tiny_onnx):
    def change(out):
        out[0, 4, 50] = 0.75
        return out

    comparison = measured(change, tiny_onnx)
    assert comparison.score == pytest.approx(0.75) and comparison.box_px == 0 and comparison.anchors == 6


def test_without_detections_nothing_is_compared(tiny_onnx):
    dark = np.zeros_like(X)  # the tiny model's scores are the image's brightness
    comparison = parity.measure(Shifted(tiny_onnx, same), tiny_onnx, dark, CLASSES, RAW)
    assert (comparison.pictures, comparison.anchors, comparison.box_px, comparison.score) == (2, 0, None, None)


def rows(*boxes, count=8):
    """An end-to-end output: (x1, y1, score, class) of boxes of 10 px, best first, then empty rows."""
    box_rows = [[x, y, x + 10, y + 10, score, kind] for x, y, score, kind in boxes]
    return np.array([*box_rows, *[[0] * 6] * (count - len(box_rows))], np.float64)


def test_rows_of_an_end_to_end_model_are_paired_by_class_and_overlap():
    there = rows((0, 0, 0.9, 0), (50, 50, 0.8, 1), (20, 20, 0.5, 0))
    here = rows((50, 50, 0.81, 1), (0.5, 0, 0.8, 0), (20, 20, 0.5, 0))  # two of them are swapped
    seen, alone, (box_px, score) = parity._rows(detect.TASK, here, there)
    assert (seen, alone) == (3, 0) and box_px.max() == pytest.approx(0.5) and score.max() == pytest.approx(0.1)
    # A box of another class or too far away is unmatched, in both runtimes.
    seen, alone, (box_px, score) = parity._rows(detect.TASK, rows((0, 0, 0.9, 1), (20, 20, 0.5, 0)), there)
    assert (seen, alone) == (3, 3) and box_px.max() == score.max() == 0
    assert parity._rows(detect.TASK, rows((9, 9, 0.9, 0)), rows((0, 0, 0.9, 0)))[1] == 2
    nothing = parity._rows(detect.TASK, rows(), rows())
    assert nothing[:2] == (0, 0) and parity._largest(nothing[2][0]) is None


def test_end_to_end_model_is_compared_by_rows():
    table = rows((0, 0, 1.8, 0), (50, 50, 1.6, 1)).astype(np.float32)[None]
    nodes = [
        models.node("ReduceMean", ["images"], "mean", "/r", ("keepdims", 0)),
        models.node("Mul", ["mean", "table"], "output0", "/o"),
    ]
    model = models.model(nodes, [models.raw("table", table)], 17, outputs=(("output0", (1, 8, 6)),))

    def change(out):
        out[0, 0, 2] += 0.25
        return out[:, [1, 0, 2, 3, 4, 5, 6, 7]]

    comparison = measured(change, model, END2END)
    assert (comparison.pictures, comparison.anchors, comparison.unmatched) == (2, 4, 0)
    assert comparison.box_px == pytest.approx(0.25, abs=1e-4) and comparison.score == 0


def test_end_of_a_full_list_does_not_count():
    many = [(12 * i, 0, 0.9 - 0.1 * i, 0) for i in range(5)]
    there, here = rows(*many[:4], count=4), rows(*many[:3], (90, 0, 0.605, 0), count=4)  # the fourth differs
    assert parity._rows(detect.TASK, here, there)[:2] == (3, 0)
    there, here = rows(*many[:4]), rows(*many[:3])
    assert parity._rows(detect.TASK, here, there)[:2] == (4, 1)


def test_reference_computes_int8_as_written(tiny_onnx, monkeypatch):
    session, opened = Shifted(tiny_onnx, same), []
    real = ort.OrtSession
    with monkeypatch.context() as patched:
        patched.setattr(ort, "OrtSession", lambda *given, **more: opened.append(more) or real(*given, **more))
        parity.measure(session, tiny_onnx, X, CLASSES, RAW)
    assert opened == [{"as_written": True}]
    with ort.OrtSession(models.detector("int8"), as_written=True) as session:
        options = session._session.get_session_options()
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    with runtimes.open(models.detector("int8"), "ort") as session:  # the session under test is not changed
        options = session._session.get_session_options()
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.disable_quant_qdq")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-fp16"])
def test_every_precision_can_be_compared(precision):
    comparison = measured(same, models.detector(precision))
    assert comparison.box_px == comparison.score == 0 and comparison.anchors


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda out: out * np.inf, "NaN or infinite outputs"),
        (lambda out: np.zeros((1, 300, 7), np.float32), r"shifted: .* for the kind raw \(found \(1, 300, 7\)"),
        (lambda out: out[:, :, 1:], "wrong output shape"),
    ],
)
def test_outputs_that_cannot_be_compared_are_refused(tiny_onnx, change, words):
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=words):
        measured(change, tiny_onnx)


def test_comparison_without_onnxruntime_is_refused(tiny_onnx, monkeypatch):
    session = Shifted(tiny_onnx, same)
    monkeypatch.setattr(ort, "available", lambda: "onnxruntime is not installed")
    with pytest.raises(InputError, match="not installed"):
        parity.measure(session, tiny_onnx, X, CLASSES, RAW)
