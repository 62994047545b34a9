"""table: a comparison as text, with notes on its figures."""

from edgeprune.comparison.row import Row
from edgeprune.comparison.table import as_text

LATENCY = {"p50": 10.0, "speedup": 1.0, "runtime": "onnxruntime 1.32.0 CPU"}


def classes(car):
    return [
        {"name": "car", "boxes": 500, "map50": 0.9, "map50_95": car},
        {"name": "bus", "boxes": 500, "map50": 0.9, "map50_95": 0.5},
    ]


def cells(text):
    return [line.split() for line in text.split("\n\n")[0].splitlines()]


def test_figures_are_scaled_and_missing_ones_are_a_dash():
    rows = [
        Row(
            "a.pt", "/w/a.pt", size_bytes=12_500_000, parameters=3_010_000, macs=1_010_000_000, channels=7504,
            map50_95=0.2471, map50=0.4, objects_found=17,
        ),
        Row("b.onnx", "/w/b.onnx", latency_ms=LATENCY, fps_inference_only=100.0),
    ]  # fmt: skip
    _, first, second = cells(as_text(rows, None))
    assert first == ["a.pt", "3.01", "1.01", "7504", "12.50", "-", "-", "-", "0.247", "0.400", "17"]
    assert second == ["b.onnx", "-", "-", "-", "-", "10.00", "1.00", "100.0", "-", "-", "-"]


def test_notes_below_the_table_qualify_the_figures():
    rows = [
        Row("a", "a.pt", latency_ms=LATENCY, map50_95=0.5, per_class=classes(0.6), head="one-to-one"),
        Row("b", "b.onnx", map50_95=0.4, per_class=classes(0.3), caveat="it is made for a GPU"),
        Row("c", "c.onnx", caveat="it is made for a GPU"),
    ]
    text = as_text(rows, {"pictures": 128}).split("\n\n", 1)[1]
    assert "onnxruntime 1.32.0 CPU, measured alternately" in text
    assert text.count("it is made for a GPU") == 1 and "note on b, c: it is made for a GPU." in text
    assert "mAP: 128 images" in text and "mAP of a: measured with the one-to-one head" in text
    assert "b: worst class car, mAP50-95 0.600 -> 0.300." in text and "c: worst" not in text


def test_recorded_row_is_marked_and_has_no_notes_on_this_run():
    row = Row(
        "r.json:fp32 *", "r.json", latency_ms=LATENCY, recorded=True, measured_with="recorded by bench on a Jetson",
        pictures=20, map50_95=0.4,
    )  # fmt: skip
    text = as_text([row], {"pictures": 128})
    assert (
        "*: r.json: recorded by bench on a Jetson, onnxruntime 1.32.0 CPU; mAP on 20 images; from another run." in text
    )
    assert "alternately" not in text and "128" not in text
