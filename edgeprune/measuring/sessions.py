"""Networks and ONNX files as sessions that the evaluator runs.

A session has `infer`, `kind`, the format of its outputs: RAW, BEST or END2END of `edgeprune_device.output`, and
`layout`, that of its input (`edgeprune_device.layouts`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch
from edgeprune_device.errors import InputError
from edgeprune_device.layouts import FLOAT32_NCHW
from edgeprune_device.size import Size
from torch import nn

from edgeprune.model import head
from edgeprune.model.device import exact

CPU = torch.device("cpu")
#: Images that a GPU runs at once.
GPU_BATCH = 16


class Session(Protocol):
    """A model as the evaluator runs it.

    Attributes:
        kind: The format of the outputs.
        layout: The layout of the input.
        description: The runtime, as text.
        batch: The number of images that it runs at once.
    """

    kind: str
    layout: str
    description: str
    batch: int

    def infer(self, x: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        """Run the model on `x`, in its layout; return its outputs."""

    def in_worker(self) -> Session:
        """Return an equal session of one thread, in a process that was forked after this session was made."""


class TorchSession:
    """A network as the evaluator runs it: a fused float32 copy that returns its detections tensor.

    Args:
        model: The network; it is not changed.
        imgsz: The only input size of the session, px. An end-to-end head returns at most as many detections as this
            size has anchors.
        device: The device that it runs on.

    Attributes:
        kind: The format of the output.
        layout: The layout of the input, FLOAT32_NCHW.
        description: The runtime, as text.
        batch: The number of images that it runs at once: one on the CPU, several on a GPU.
    """

    layout = FLOAT32_NCHW

    def __init__(self, model: nn.Module, imgsz: int | Sequence[int], device: torch.device = CPU) -> None:
        from edgeprune.model.prepare import prepare

        size = Size.of(imgsz)
        self._device, self.batch = device, 1 if device.type == "cpu" else GPU_BATCH
        place = "CPU" if device.type == "cpu" else f"{torch.cuda.get_device_name(device)}"
        self.description = f"PyTorch {torch.__version__.split('+')[0]}, {place}, float32"
        # Channels last: oneDNN's convolutions take a seventh less time, as no layer reorders its input.
        self._model = prepare(model, size).to(device).to(memory_format=torch.channels_last)
        self._size = size
        self.kind = head.output_of_network(self._model)

    def infer(self, x: npt.NDArray[np.float32]) -> list[npt.NDArray[Any]]:
        """Run the network.

        Args:
            x: (n, 3, H, W) float32, RGB in 0..1.

        Returns:
            The detections tensor, in a list.

        Raises:
            InputError: The input has another size.
        """
        if x.shape[2:] != self._size:
            found, expected = f"{x.shape[2]} x {x.shape[3]}", f"{self._size.height} x {self._size.width}"
            raise InputError(
                f"network input: wrong size (found {found}, expected {expected}); open a session for {found}, or "
                "resize the input"
            )
        with torch.inference_mode(), exact():
            output = self._model(torch.from_numpy(x).to(self._device).contiguous(memory_format=torch.channels_last))
        return [(output[0] if isinstance(output, (list, tuple)) else output).cpu().numpy()]

    def in_worker(self) -> TorchSession:
        """Return the session itself: the network was forked with the process, and torch's threads are set for all."""
        return self


class OnnxSession:
    """An ONNX file that ONNX Runtime runs on this CPU.

    Args:
        model: The file.
        kind: The format of its outputs, if the file does not state it.
        layout: The layout of its input, if the file does not state it.

    Attributes:
        kind: The format of the outputs.
        layout: The layout of the input.
        description: The runtime, as text.
        batch: 1, the number of images that the file takes.
    """

    batch = 1

    def __init__(self, model: onnx.ModelProto | bytes, kind: str | None = None, layout: str | None = None) -> None:
        from edgeprune_device import runtimes

        proto, data = (onnx.load_from_string(model), model) if isinstance(model, bytes) else (model, None)
        self.kind, self.layout = head.output_of_file(proto, kind), head.layout_of_file(proto, layout)
        self._data = data or proto.SerializeToString()
        self._session = runtimes.open(self._data, "ort")
        self.description = self._session.description

    def infer(self, x: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        """Run the file on `x`, in its layout; return its outputs."""
        return self._session.infer(x)

    def in_worker(self) -> OnnxSession:
        """Return a session of one thread; the threads of this one were not forked with the process."""
        from edgeprune_device import runtimes

        worker = copy.copy(self)
        worker._session = runtimes.open(self._data, "ort", runtimes.RuntimeSettings(threads=1))
        return worker


class ReferenceSession:
    """An ONNX file computed as written, without the shortcuts that ONNX Runtime takes on a CPU.

    TensorRT's results are closer to these: FP16 values are rounded to FP16, and Q/DQ pairs are not fused.

    Args:
        model: The file.

    Attributes:
        kind: The format of the outputs.
        layout: The layout of the input.
        description: The runtime, as text.
        batch: 1, the number of images that the file takes.
    """

    batch = 1

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnxruntime

        from edgeprune.quantize import rounded

        self.kind, self.layout = head.output_of_file(model), head.layout_of_file(model)
        self._rounded = rounded(model)
        self._open(torch.get_num_threads())
        self.description = f"onnxruntime {onnxruntime.__version__} CPU, as written (FP16 rounded, Q/DQ not fused)"

    def infer(self, x: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """Run the file on `x`, in its layout; return its outputs."""
        outputs: list[npt.NDArray[Any]] = self._session.run(None, {self._input: x})
        return outputs

    def in_worker(self) -> ReferenceSession:
        """Return a session of one thread; the threads of this one were not forked with the process."""
        worker = copy.copy(self)
        worker._open(1)
        return worker

    def _open(self, threads: int) -> None:
        from edgeprune.quantize import reference_session

        self._session = reference_session(self._rounded, threads=threads)
        self._input = self._session.get_inputs()[0].name
