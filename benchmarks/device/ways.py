"""The ways from a frame to the network's input, and from its output to boxes: ours and Ultralytics'."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import torch
import torchvision  # noqa: F401  imported, it serves Ultralytics its quick NMS; without it their NMS is Python
from edgeprune_device import vision
from edgeprune_device.output import RAW
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import nms, ops

CONF, IOU, MAX_DET = 0.25, 0.7, 300


class Ours:
    """edgeprune_device.vision as `bench` runs it; takes RGB, which is what our decoders give."""

    def __init__(self, size: int, opencv: bool):
        self.name = "ours" if opencv else "ours without OpenCV"
        self._opencv, self._pre, self._box = opencv, vision.Preprocessor(size), None

    def use(self) -> None:
        """Before a measurement: with OpenCV or without."""
        os.environ["EDGEPRUNE_OPENCV"] = "1" if self._opencv else "0"
        vision._opencv.cache_clear()
        assert vision.uses_opencv() == self._opencv

    def pre(self, rgb: np.ndarray, bgr: np.ndarray) -> np.ndarray:
        x, self._box = self._pre(rgb)
        return x

    def post(self, output: np.ndarray) -> np.ndarray:
        classes = output.shape[1] - 4
        return self._box.undo(vision.detections([output], RAW, classes=classes, conf=CONF, iou=IOU, max_det=MAX_DET))


class Ultralytics:
    """Its predictor's own `preprocess` (LetterBox without `auto`, as for an ONNX file; takes BGR, which is what its
    loaders give), `non_max_suppression` with torchvision's NMS, and `scale_boxes`; in inference mode, as it runs."""

    name = "Ultralytics"

    def __init__(self, size: int):
        self._predictor = DetectionPredictor(overrides={"imgsz": size, "device": "cpu", "verbose": False})
        self._predictor.imgsz, self._predictor.device = [size, size], torch.device("cpu")
        # What preprocess asks of a model, answered as AutoBackend does for ONNX.
        self._predictor.model = SimpleNamespace(fp16=False, format="onnx", dynamic=False, stride=32)
        self._size, self._shape = (size, size), None

    def use(self) -> None:
        """Nothing to choose."""

    @torch.inference_mode()
    def pre(self, rgb: np.ndarray, bgr: np.ndarray) -> np.ndarray:
        self._shape = bgr.shape
        return self._predictor.preprocess([bgr]).numpy()

    @torch.inference_mode()
    def post(self, output: np.ndarray) -> np.ndarray:
        found = nms.non_max_suppression(torch.from_numpy(output), CONF, IOU, max_det=MAX_DET)[0]
        found[:, :4] = ops.scale_boxes(self._size, found[:, :4], self._shape)
        return found.numpy()
