"""table: a comparison as text, with what its figures are of."""

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


def test_a_figure_has_its_unit_and_what_was_not_measured_is_a_dash():
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


def test_what_the_figures_are_of_stands_below():
    rows = [
        Row("a", "a.pt", latency_ms=LATENCY, map50_95=0.5, per_class=classes(0.6), head="one-to-one"),
        Row("b", "b.onnx", map50_95=0.4, per_class=classes(0.3), caveat="it is made for a GPU"),
        Row("c", "c.onnx", caveat="it is made for a GPU"),
    ]
    said = as_text(rows, {"pictures": 128}).split("\n\n", 1)[1]
    assert "onnxruntime 1.32.0 CPU, in turns" in said
    assert said.count("it is made for a GPU") == 1 and "of b, c: it is made for a GPU." in said
    assert "mAP: 128 pictures" in said and "mAP of a: that of the one-to-one head" in said
    assert "b: worst class car, mAP50-95 0.600 -> 0.300." in said and "c: worst" not in said


def test_what_another_run_recorded_says_so_and_explains_nothing_that_was_not_done():
    row = Row(
        "r.json:fp32 *", "r.json", latency_ms=LATENCY, recorded=True, measured_with="recorded by bench on a Jetson",
        pictures=20, map50_95=0.4,
    )  # fmt: skip
    said = as_text([row], {"pictures": 128})
    assert (
        "*: r.json: recorded by bench on a Jetson, onnxruntime 1.32.0 CPU; mAP on 20 pictures; not of this run." in said
    )
    assert "in turns" not in said and "128" not in said
