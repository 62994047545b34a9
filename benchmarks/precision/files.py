"""The compared files, ours and the other tools', from the same weights and calibration images."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import yaml
from edgeprune_device.size import Size
from edgeprune_device.target import Target
from ultralytics import YOLO

from edgeprune import quantize as q
from edgeprune.data import samples
from edgeprune.data.dataset import Dataset
from edgeprune.exporting import precisions
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring import accuracy


@dataclass(frozen=True)
class File:
    """path: an ONNX file, or None; open: -> session; runtime: its runtime; timed: whether ONNX Runtime's latency on a
    CPU is meaningful."""

    path: Path | None
    open: object
    runtime: str
    timed: bool = True


@dataclass(frozen=True)
class Made:
    files: dict[str, File]
    record: dict


def versions() -> dict[str, str | None]:
    installed = {}
    for name in ("ultralytics", "openvino", "nncf", "tensorrt-rtx-cu13"):
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def make(source, weights: Path, data: Dataset, size: Size, max_drop: float, work: Path, *, peers: bool) -> Made:
    fp32 = to_onnx(source.model, size)
    solve, select = samples.split(data.train, size)
    pictures = [x[None].numpy() for x in samples.read(data, solve, size).pictures]
    files = {"fp32": _ours(fp32, work / "fp32.onnx", "cpu", "fp32")}
    ranges = q.calibrate(fp32, pictures)
    half = q.to_fp16(fp32, ranges)
    files["ours fp16"] = _ours(half.model, work / "fp16.onnx", "jetson-orin", "fp16", timed=False)
    record = {"kept_fp32": [k.layer for k in half.kept], "calibration_pictures": len(pictures),
            "selection_pictures": len(select)}  # fmt: skip
    for target in ("jetson-orin", "cpu"):
        int8 = precisions.Int8(fp32, ranges, pictures, Target.load(target), lambda what: None)
        int8.settle(tuple(q.METHODS), lambda session: accuracy.score(session, data, select, size), max_drop)
        record[target] = int8.to_json()
        for name, model in int8.files.items():
            label = f"ours {name}" if target != "cpu" else "ours int8 for cpu"
            path = work / f"{target}-{name}.onnx"
            files[label] = _ours(model, path, target, name, timed=name != "int8-fp16")
    if not peers:
        return Made(files, record)
    files["onnxruntime quantize_static"] = _as_it_runs(_quantize_static(work / "fp32.onnx", pictures))
    listing = work / "calibration.txt"
    listing.write_text("".join(f"{p}\n" for p in solve))
    config = work / "calibration.yaml"  # Ultralytics calibrates with the validation split
    config.write_text(yaml.safe_dump({"path": str(work), "train": listing.name, "val": listing.name,
                                      "names": dict(enumerate(data.names))}))  # fmt: skip
    files["ultralytics onnx"] = _as_it_runs(_ultralytics(weights, config, size, work, "onnx"))
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf"):
        model = _ultralytics(weights, config, size, work, "openvino")
        files["ultralytics openvino"] = File(None, lambda: OpenVino(model), "OpenVINO", timed=False)
    return Made(files, record)


def _ours(model: onnx.ModelProto, path: Path, target: str, precision: str, timed: bool = True) -> File:
    onnx.save(model, path)
    runtime = "as written" if target != "cpu" else "ONNX Runtime"
    return File(path, lambda: precisions.session(Target.load(target), precision, onnx.load(path)), runtime, timed)


def _as_it_runs(path: Path) -> File:
    from edgeprune_device import runtimes

    return File(path, lambda: runtimes.open(path, "ort"), "ONNX Runtime")


def _quantize_static(fp32: Path, pictures) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(pictures)

        def get_next(self):
            picture = next(self.left, None)
            return None if picture is None else {"images": picture}

    out = fp32.with_name("quantize_static.onnx")
    with _silent():
        quantize_static(fp32, out, Reader())
    return out


def _ultralytics(weights: Path, config: Path, size: Size, work: Path, form: str) -> Path:
    copy = work / form / "model.pt"
    copy.parent.mkdir()
    copy.write_bytes(weights.read_bytes())
    with _silent():
        made = YOLO(copy).export(format=form, quantize=8, data=str(config), imgsz=list(size), batch=1, device="cpu")
    return Path(made)


class OpenVino:
    """An OpenVINO network as a session for the evaluator."""

    description = "OpenVINO"

    def __init__(self, folder: Path, threads: int = 0):
        import openvino

        path = next(folder.glob("*.xml"))
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"} if threads else {}
        self._model = openvino.Core().compile_model(path, "CPU", config)
        self.folder = folder

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        return [self._model(x)[self._model.output(0)]]


@contextlib.contextmanager
def _silent():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
