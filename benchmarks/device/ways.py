"""The implementations of pre- and post-processing: ours and Ultralytics'."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import torch
import torchvision  # noqa: F401  imported, it serves Ultralytics its quick NMS; without it their NMS is Python
from edgeprune_device.layouts import FLOAT32_NCHW, UINT8_NHWC
from edgeprune_device.output import BEST, MAX_ROWS, RAW
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.detect import detections
from ultralytics.models.yolo.detect import DetectionPredictor
from ultralytics.utils import nms, ops

CONF, IOU, MAX_DET = 0.25, 0.7, 300


#: The names of our implementations: the stock files' input and output, and those of the device variants.
OURS = ("float", "float without OpenCV", "variant", "variant without OpenCV")


class Ours:
    """edgeprune_device.vision as in `bench`; it takes RGB, the format of our decoders.

    name: one of OURS. The graph of a device variant chooses the best anchors, so this choice is not timed; it is made
    once for each output.
    """

    def __init__(self, size: int, name: str):
        self.name, self._opencv = name, not name.endswith("without OpenCV")
        self._variant = name.startswith("variant")
        self._pre = preprocess.Preprocessor(size, UINT8_NHWC if self._variant else FLOAT32_NCHW)
        self._box = None

    def use(self) -> None:
        """Enable or disable OpenCV before a measurement."""
        os.environ["EDGEPRUNE_OPENCV"] = "1" if self._opencv else "0"
        preprocess._opencv.cache_clear()
        assert preprocess.uses_opencv() == self._opencv

    def pre(self, rgb: np.ndarray, bgr: np.ndarray) -> np.ndarray:
        x, self._box = self._pre(rgb)
        return x

    def floats(self, x: np.ndarray) -> np.ndarray:
        """The network's input after the first nodes of a device variant."""
        return x.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255) if self._variant else x

    def prepare(self, output: np.ndarray) -> None:
        """Choose the best anchors of an output, as the graph of a device variant does."""
        self._outputs, self._kind = [output], RAW
        if self._variant:
            anchors = np.argsort(-output[0, 4:].max(axis=0), kind="stable")[:MAX_ROWS]
            best = np.ascontiguousarray(output[:, :, anchors])
            self._outputs, self._kind = [best, anchors[None].astype(np.int32), output], BEST

    def post(self, output: np.ndarray) -> np.ndarray:
        classes = output.shape[1] - 4
        return self._box.undo(
            detections(self._outputs, self._kind, classes=classes, conf=CONF, iou=IOU, max_det=MAX_DET)
        )


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

    def prepare(self, output: np.ndarray) -> None:
        """Do nothing; the output is used as it is."""

    def floats(self, x: np.ndarray) -> np.ndarray:
        """The network's input."""
        return x

    @torch.inference_mode()
    def pre(self, rgb: np.ndarray, bgr: np.ndarray) -> np.ndarray:
        self._shape = bgr.shape
        return self._predictor.preprocess([bgr]).numpy()

    @torch.inference_mode()
    def post(self, output: np.ndarray) -> np.ndarray:
        boxes = nms.non_max_suppression(torch.from_numpy(output), CONF, IOU, max_det=MAX_DET)[0]
        boxes[:, :4] = ops.scale_boxes(self._size, boxes[:, :4], self._shape)
        return boxes.numpy()
