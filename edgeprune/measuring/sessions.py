"""Networks and ONNX files as the evaluator runs them: `infer`, and `kind`, the meaning of the output."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.model import head


class TorchSession:
    """A network as the evaluator takes it: a fused float32 copy on the CPU, returning its detections tensor.

    imgsz: the one size it runs at, px: a head that sorts its own detections keeps as many as that size has. kind: what
    the output means, as of every session here, see edgeprune_device.output.
    """

    description = f"PyTorch {torch.__version__.split('+')[0]}, CPU, float32"

    def __init__(self, model: nn.Module, imgsz: int) -> None:
        from edgeprune.model.prepare import prepare

        self._model, self._size = prepare(model, (imgsz, imgsz)), (imgsz, imgsz)
        self.kind = head.output_of_network(self._model)

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        if x.shape[2:] != self._size:
            raise InputError(f"the network was made ready for {self._size} px, not {x.shape[2:]}")
        with torch.inference_mode():
            output = self._model(torch.from_numpy(np.ascontiguousarray(x)))
        return [(output[0] if isinstance(output, (list, tuple)) else output).numpy()]


class OnnxSession:
    """An ONNX file as ONNX Runtime runs it on this CPU. kind: what its output means, where not the file says it."""

    def __init__(self, model: onnx.ModelProto | bytes, kind: str | None = None) -> None:
        from edgeprune_device import runtimes

        proto, data = (onnx.load_from_string(model), model) if isinstance(model, bytes) else (model, None)
        self.kind = head.output_of_file(proto, kind)
        self._session = runtimes.open(data or proto.SerializeToString(), "ort")
        self.description = self._session.description

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        return self._session.infer(x)


class ReferenceSession:
    """An ONNX file computed as written, without the shortcuts ONNX Runtime takes on a CPU: what TensorRT will compute
    is nearer to this (FP16 values really rounded, Q/DQ kept apart)."""

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        from edgeprune.quantize import reference_session, rounded

        self.kind = head.output_of_file(model)
        self._session = reference_session(rounded(model), threads=torch.get_num_threads())
        self._input = self._session.get_inputs()[0].name
        self.description = f"onnxruntime {onnxruntime.__version__} CPU, as written (FP16 rounded, Q/DQ not fused)"

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        return self._session.run(None, {self._input: x})
