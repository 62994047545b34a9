"""ONNX Runtime on the CPU.

Thread spinning keeps the library's default (on): it is what users run. One session uses `threads` threads inside an
operator and runs operators one after another.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import List

import numpy as np

from edgeprune_device.errors import InputError
from edgeprune_device.runtimes import Session

AUTOMATIC = 50
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def available():
    """None when onnxruntime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed: pip install onnxruntime"
    return None


def open(model, settings) -> Session:
    """A session on the CPU; InputError when ONNX Runtime refuses the file."""
    return OrtSession(model, settings.threads)


class OrtSession(Session):
    """An onnxruntime.InferenceSession behind the common interface."""

    name = "ort"

    def __init__(self, model, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only; they come as exceptions
        options.inter_op_num_threads = 1
        if threads:
            options.intra_op_num_threads = threads
        what = "the model" if isinstance(model, bytes) else str(model)
        source = model if isinstance(model, bytes) else str(Path(model))
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exceptions derive from Exception alone, some from RuntimeError
            raise InputError(f"{what}: onnxruntime cannot load it ({_one_line(error)})") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in _TYPES or len(inputs[0].shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise InputError(f"{what}: a detector has one float input (1, 3, h, w); this model has: {found}")
        self._input, self._dtype = inputs[0].name, _TYPES[inputs[0].type]
        self.input_shape = tuple(d if isinstance(d, int) else None for d in inputs[0].shape)
        count = "default threads" if not threads else f"{threads} thread{'s' if threads > 1 else ''}"
        self.description = f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider, {count}"

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Runs the model; types are converted to what it takes, and its outputs to float32."""
        if self._session is None:
            raise InputError("this session is closed")
        if len(x.shape) != 4 or any(d is not None and d != s for d, s in zip(self.input_shape, x.shape)):
            raise InputError(f"the model takes {self.input_shape}, not {tuple(x.shape)}")
        try:
            outputs = self._session.run(None, {self._input: x.astype(self._dtype, copy=False)})
        except Exception as error:
            raise InputError(f"onnxruntime failed while running the model ({_one_line(error)})") from error
        return [output.astype(np.float32, copy=False) for output in outputs]

    def close(self) -> None:
        """Drops the session; its memory is freed with it."""
        self._session = None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
