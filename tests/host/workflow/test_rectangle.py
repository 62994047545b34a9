"""rectangle: a build with a rectangular input, and the figures of a rectangle that a square build states."""

import json

import numpy as np
import onnx
import pytest
from edgeprune_device import cli
from edgeprune_device.trust.bundle import Bundle
from ultralytics import YOLO

import edgeprune as ep
from edgeprune.console.progress import Reporter
from edgeprune.model import checkpoint
from edgeprune.workflow import build

from ..builds import QUICK, fitted_inputs, request
from ..small import dataset

SIZE = (64, 96)


def test_every_file_and_figure_of_a_build_has_the_rectangle(inputs, tmp_path, capsys):
    folder = fitted_inputs(inputs, tmp_path, SIZE)
    built = ep.build(
        ratio=0.2, weights=folder / "best.pt", data=folder / "data/data.yaml", imgsz="auto:96", out=tmp_path / "out",
        quiet=True, **QUICK,
    )  # fmt: skip
    entries = built.record["models"]
    assert built.record["inputs"]["options"]["imgsz"] == [64, 96]
    assert {tuple(entry["imgsz"]) for entry in entries.values()} == {SIZE}
    assert entries["original"]["map50_95"] > 0.5  # its labels are its own detections at this size
    bundle = Bundle.open(built.bundle)
    assert bundle.manifest.imgsz == SIZE
    for precision, entry in bundle.manifest.models.items():
        model = onnx.load_from_string(bundle.read(entry["payload"]))
        shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
        assert (precision, shape) == (precision, [1, *SIZE, 3])
        stock = onnx.load(tmp_path / "out" / f"model.{precision}.onnx").graph.input[0].type.tensor_type.shape.dim
        assert (precision, [d.dim_value for d in stock]) == (precision, [1, 3, *SIZE])
    assert checkpoint.load(tmp_path / "out/tuned.pt").imgsz == SIZE
    assert entries["original"]["macs"] == pytest.approx(_macs(folder, 96) * 64 / 96, rel=1e-3)
    assert {tuple(row.imgsz) for row in built.comparison.items} == {SIZE}
    page = (tmp_path / "out/report.html").read_text()
    assert "64 x 96" in page and "--imgsz 64,96" in page

    stock = YOLO(tmp_path / "out/tuned.pt")
    stock.predict(folder / "data/images/val/000.png", device="cpu", verbose=False)
    assert tuple(stock.predictor.imgsz) == SIZE
    assert len(stock.val(data=folder / "data/data.yaml", device="cpu", workers=0, plots=False, verbose=False).maps) == 3

    capsys.readouterr()
    words = [
        "bench",
        str(built.bundle),
        "--runtime",
        "ort",
        "--seconds",
        "1",
        "--warmup",
        "1",
        "--idle",
        "1",
        "--no-spool",
    ]
    words += ["--report", str(tmp_path / "bench.json")]
    assert cli.main(words) in (0, 1), capsys.readouterr().err
    report = json.loads((tmp_path / "bench.json").read_text())
    assert list(report["settings"]["imgsz"]) == list(SIZE)


def _macs(folder, size):
    return ep.prune(folder / "best.pt", ratio=0.2, imgsz=size, quiet=True).before.macs


@pytest.mark.parametrize(
    ("images", "asked", "says"), [((64, 96), 96, True), ((96, 96), 96, False), ((64, 96), SIZE, False)]
)
def test_square_build_states_what_a_rectangle_saves(inputs, tmp_path, monkeypatch, capsys, images, asked, says):
    from edgeprune.workflow import stages

    monkeypatch.setattr(stages, "pipeline", lambda options: [("baseline", stages.baseline)])
    dataset(tmp_path / "data", train=16, size=images)
    asked = request(inputs, imgsz=asked, data=tmp_path / "data/data.yaml")
    (stage,) = build.run_build(asked, tmp_path / "out", Reporter())["stages"]
    printed = " ".join(capsys.readouterr().err.split())
    assert ("rectangle" in stage) == says == ("imgsz=auto:96" in printed)
    if says:
        figures = stage["rectangle"]
        assert figures["imgsz"] == [64, 96] and figures["latency_ms"] > 0 and np.isfinite(figures["speedup"])
        assert "takes 67% of the MACs" in printed
