"""Networks and ONNX files as the evaluator runs them: `infer`, and `kind`, the meaning of the output.

`kind` is RAW or END2END of `edgeprune_device.output`.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.model import head


class TorchSession:
    """A network as the evaluator runs it: a fused float32 copy on the CPU that returns its detections tensor.

    Args:
        model: The network; it is not changed.
        imgsz: The one size that the session runs at, px. A head that sorts its own detections keeps as many as that
            size has anchors.

    Attributes:
        kind: The meaning of the output.
        description: The runtime, as text.
    """

    description = f"PyTorch {torch.__version__.split('+')[0]}, CPU, float32"

    def __init__(self, model: nn.Module, imgsz: int) -> None:
        from edgeprune.model.prepare import prepare

        self._model, self._size = prepare(model, (imgsz, imgsz)), (imgsz, imgsz)
        self.kind = head.output_of_network(self._model)

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the network.

        Args:
            x: (n, 3, imgsz, imgsz) float32, RGB in 0..1.

        Returns:
            The detections tensor, in a list.

        Raises:
            InputError: The image has another size.
        """
        if x.shape[2:] != self._size:
            raise InputError(f"the network was made ready for {self._size} px, not {x.shape[2:]}")
        with torch.inference_mode():
            output = self._model(torch.from_numpy(np.ascontiguousarray(x)))
        return [(output[0] if isinstance(output, (list, tuple)) else output).numpy()]


class OnnxSession:
    """An ONNX file as ONNX Runtime runs it on this CPU.

    Args:
        model: The file.
        kind: The meaning of its output, where the file does not state it.

    Attributes:
        kind: The meaning of the output.
        description: The runtime, as text.
    """

    def __init__(self, model: onnx.ModelProto | bytes, kind: str | None = None) -> None:
        from edgeprune_device import runtimes

        proto, data = (onnx.load_from_string(model), model) if isinstance(model, bytes) else (model, None)
        self.kind = head.output_of_file(proto, kind)
        self._session = runtimes.open(data or proto.SerializeToString(), "ort")
        self.description = self._session.description

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the file on `x`, (1, 3, h, w) float32, RGB in 0..1; return its outputs."""
        return self._session.infer(x)


class ReferenceSession:
    """An ONNX file computed as written, without the shortcuts that ONNX Runtime takes on a CPU.

    TensorRT's results are nearer to these: FP16 values are really rounded, and Q/DQ are kept apart.

    Args:
        model: The file.

    Attributes:
        kind: The meaning of the output.
        description: The runtime, as text.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        from edgeprune.quantize import reference_session, rounded

        self.kind = head.output_of_file(model)
        self._session = reference_session(rounded(model), threads=torch.get_num_threads())
        self._input = self._session.get_inputs()[0].name
        self.description = f"onnxruntime {onnxruntime.__version__} CPU, as written (FP16 rounded, Q/DQ not fused)"

    def infer(self, x: np.ndarray) -> list[np.ndarray]:
        """Run the file on `x`, (1, 3, h, w) float32, RGB in 0..1; return its outputs."""
        return self._session.run(None, {self._input: x})
