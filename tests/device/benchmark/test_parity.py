"""Parity: the figures by hand, and what cannot be compared."""

import numpy as np
import pytest
from edgeprune_device import runtimes
from edgeprune_device.benchmark import parity
from edgeprune_device.errors import InputError
from edgeprune_device.output import END2END, RAW
from edgeprune_device.runtimes import Session, ort
from fakes import models

pytest.importorskip("onnxruntime")
CLASSES = 2
X = np.random.default_rng(0).random((2, 1, 3, models.SIZE, models.SIZE), dtype=np.float32)


class Shifted(Session):
    """ONNX Runtime on the CPU, its outputs changed."""

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


def test_the_same_outputs_have_no_difference(tiny_onnx):
    found = measured(same, tiny_onnx)
    assert found.box_px == found.score == 0
    assert found.pictures == 2 and found.anchors == 4  # two boxes a picture; the other 82 anchors are background
    assert found.reference.endswith("CPUExecutionProvider, default threads, yielding")


def test_differences_are_the_largest_side_and_the_largest_score(tiny_onnx):
    def change(out):
        out[0, 0, 0] += 0.5  # the centre
        out[0, 2, 0] += 1  # the width: the right side moves by 0.5 + 0.5
        out[0, 5, 1] -= 0.25
        out[0, 1, 50] += 99  # nobody sees it
        out[0, 4, 50] += parity.CONF / 2
        return out

    found = measured(change, tiny_onnx)
    assert found.box_px == pytest.approx(1, abs=1e-4) and found.score == pytest.approx(0.25, abs=1e-4)
    assert found.anchors == 4


def test_an_anchor_that_only_one_of_them_sees_counts(tiny_onnx):
    def change(out):
        out[0, 4, 50] = 0.75
        return out

    found = measured(change, tiny_onnx)
    assert found.score == pytest.approx(0.75) and found.box_px == 0 and found.anchors == 6


def test_where_nothing_is_seen_nothing_was_compared(tiny_onnx):
    dark = np.zeros_like(X)  # the tiny model's scores are the picture's brightness
    found = parity.measure(Shifted(tiny_onnx, same), tiny_onnx, dark, CLASSES, RAW)
    assert (found.pictures, found.anchors, found.box_px, found.score) == (2, 0, None, None)


def rows(*boxes, count=8):
    """An end-to-end output: (x1, y1, score, class) of boxes of 10 px, best first, then rows of nothing."""
    found = [[x, y, x + 10, y + 10, score, kind] for x, y, score, kind in boxes]
    return np.array([*found, *[[0] * 6] * (count - len(found))], np.float64)


def test_rows_of_an_end_to_end_model_are_paired_by_class_and_place():
    there = rows((0, 0, 0.9, 0), (50, 50, 0.8, 1), (20, 20, 0.5, 0))
    here = rows((50, 50, 0.81, 1), (0.5, 0, 0.8, 0), (20, 20, 0.5, 0))  # two of them changed places
    seen, alone, (box_px, score) = parity._rows(here, there)
    assert (seen, alone) == (3, 0) and box_px.max() == pytest.approx(0.5) and score.max() == pytest.approx(0.1)
    # Another class is another box, on both sides; so is one too far away.
    seen, alone, (box_px, score) = parity._rows(rows((0, 0, 0.9, 1), (20, 20, 0.5, 0)), there)
    assert (seen, alone) == (3, 3) and box_px.max() == score.max() == 0
    assert parity._rows(rows((9, 9, 0.9, 0)), rows((0, 0, 0.9, 0)))[1] == 2
    assert parity._rows(rows(), rows())[:2] == (0, 0) and parity._largest(parity._rows(rows(), rows())[2][0]) is None


def test_an_end_to_end_model_is_checked_by_rows():
    table = rows((0, 0, 1.8, 0), (50, 50, 1.6, 1)).astype(np.float32)[None]
    nodes = [
        models.node("ReduceMean", ["images"], "mean", "/r", ("keepdims", 0)),
        models.node("Mul", ["mean", "table"], "output0", "/o"),
    ]
    model = models.model(nodes, [models.raw("table", table)], 17, outputs=(("output0", (1, 8, 6)),))

    def change(out):
        out[0, 0, 2] += 0.25
        return out[:, [1, 0, 2, 3, 4, 5, 6, 7]]

    found = measured(change, model, END2END)
    assert (found.pictures, found.anchors, found.unmatched) == (2, 4, 0)
    assert found.box_px == pytest.approx(0.25, abs=1e-4) and found.score == 0


def test_where_the_list_is_full_its_end_does_not_count():
    many = [(12 * i, 0, 0.9 - 0.1 * i, 0) for i in range(5)]
    there, here = rows(*many[:4], count=4), rows(*many[:3], (90, 0, 0.605, 0), count=4)  # the fourth is another one
    assert parity._rows(here, there)[:2] == (3, 0)
    there, here = rows(*many[:4]), rows(*many[:3])
    assert parity._rows(here, there)[:2] == (4, 1)


def test_the_reference_computes_int8_as_written(tiny_onnx, monkeypatch):
    session, opened = Shifted(tiny_onnx, same), []
    real = ort.OrtSession
    with monkeypatch.context() as patched:
        patched.setattr(ort, "OrtSession", lambda *given, **more: opened.append(more) or real(*given, **more))
        parity.measure(session, tiny_onnx, X, CLASSES, RAW)
    assert opened == [{"as_written": True}]
    with ort.OrtSession(models.detector("int8"), as_written=True) as session:
        options = session._session.get_session_options()
        assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
    with runtimes.open(models.detector("int8"), "ort") as session:  # what runs is not changed
        options = session._session.get_session_options()
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.disable_quant_qdq")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-fp16"])
def test_every_file_of_a_bundle_can_be_checked(precision):
    found = measured(same, models.detector(precision))
    assert found.box_px == found.score == 0 and found.anchors


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda out: out * np.inf, "no numbers"),
        (lambda out: np.zeros((1, 300, 7), np.float32), r"shifted: .* shape \(1, 300, 7\), but it is stated to be raw"),
        (lambda out: out[:, :, 1:], "have the shapes"),
    ],
)
def test_what_cannot_be_compared_is_said(tiny_onnx, change, words):
    with np.errstate(invalid="ignore"), pytest.raises(InputError, match=words):
        measured(change, tiny_onnx)


def test_without_onnxruntime_there_is_nothing_to_compare_with(tiny_onnx, monkeypatch):
    session = Shifted(tiny_onnx, same)
    monkeypatch.setattr(ort, "available", lambda: "onnxruntime is not installed")
    with pytest.raises(InputError, match="not installed"):
        parity.measure(session, tiny_onnx, X, CLASSES, RAW)
