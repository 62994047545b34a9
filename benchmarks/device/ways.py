"""The implementations of pre- and post-processing: ours and Ultralytics'."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import torch
import torchvision  # noqa: F401  imported, it serves Ultralytics its quick NMS; without it their NMS is Python
from edgeprune_device.output import RAW
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.detect import detections
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import nms, ops

CONF, IOU, MAX_DET = 0.25, 0.7, 300


class Ours:
    """edgeprune_device.vision.preprocess as in `bench`; it takes RGB, the format of our decoders."""

    def __init__(self, size: int, opencv: bool):
        self.name = "ours" if opencv else "ours without OpenCV"
        self._opencv, self._pre, self._box = opencv, preprocess.Preprocessor(size), None

    def use(self) -> None:
        """Enable or disable OpenCV before a measurement."""
        os.environ["EDGEPRUNE_OPENCV"] = "1" if self._opencv else "0"
        preprocess._opencv.cache_clear()
        assert preprocess.uses_opencv() == self._opencv

    def pre(self, rgb: np.ndarray, bgr: np.ndarray) -> np.ndarray:
        x, self._box = self._pre(rgb)
        return x

    def post(self, output: np.ndarray) -> np.ndarray:
        classes = output.shape[1] - 4
        return self._box.undo(detections([output], RAW, classes=classes, conf=CONF, iou=IOU, max_det=MAX_DET))


class Ultralytics:
    """Ultralytics' implementation, in inference mode as usual.

    It consists of the predictor's `preprocess` (LetterBox without `auto`, as for an ONNX file; BGR, the format of its
    loaders), `non_max_suppression` with torchvision's NMS, and `scale_boxes`.
    """

    name = "Ultralytics"

    def __init__(self, size: int):
        self._predictor = DetectionPredictor(overrides={"imgsz": size, "device": "cpu", "verbose": False})
        self._predictor.imgsz, self._predictor.device = [size, size], torch.device("cpu")
        # The attributes that preprocess reads from a model, with AutoBackend's values for ONNX.
        self._predictor.model = SimpleNamespace(fp16=False, format="onnx", dynamic=False, stride=32)
        self._size, self._shape = (size, size), None

    def use(self) -> None:
        """Do nothing; there is no choice."""

    @torch.inference_mode()
    def pre(self, rgb: np.ndarray, bgr: np.ndarray) -> np.ndarray:
        self._shape = bgr.shape
        return self._predictor.preprocess([bgr]).numpy()

    @torch.inference_mode()
    def post(self, output: np.ndarray) -> np.ndarray:
        boxes = nms.non_max_suppression(torch.from_numpy(output), CONF, IOU, max_det=MAX_DET)[0]
        boxes[:, :4] = ops.scale_boxes(self._size, boxes[:, :4], self._shape)
        return boxes.numpy()
