"""OpenVINO on the CPU.

FP32 operations of the file are computed in FP32. By default, the plug-in would round them to BF16 or FP16 on CPUs that
support these types, and the accuracy would depend on the CPU.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.runtimes import AN_IMAGE, Model, RuntimeSettings, Session, converted, is_image

AUTOMATIC = 40  # below "ort", with which the host checks the files
ON_CPU = True
# The import of this part sends an event to Google Analytics and writes a folder ~/intel; no setting prevents this.
_SENDS = "openvino.tools.ovc"


def available() -> Optional[str]:
    """None if openvino is installed; otherwise the reason."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed; pip install openvino"
    return None


def open(model: Model, settings: RuntimeSettings) -> Session:
    """Open a session on the CPU.

    Raises:
        RuntimeUnavailable: openvino does not load, or is too old.
        InputError: OpenVINO does not accept the file.
    """
    return OpenvinoSession(model, settings.threads)


class OpenvinoSession(Session):
    """An OpenVINO inference request behind the common interface.

    Args:
        model: Bytes or path of the model.
        threads: Threads inside an operator; None: the library's own choice.

    Raises:
        RuntimeUnavailable: openvino does not load, or is too old.
        InputError: OpenVINO does not accept the file, or the model's input is not one image.
    """

    name = "openvino"

    def __init__(self, model: Model, threads: Optional[int] = None):
        openvino = _library()
        what = "the model" if isinstance(model, bytes) else str(model)
        try:
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
            core = openvino.Core()
            network = core.read_model(content)
            compiled = core.compile_model(network, "CPU", _properties(threads))
            self._request: Any = compiled.create_infer_request()
        except Exception as error:  # its exceptions are RuntimeErrors, those of its bindings are not
            raise InputError(f"{what}: cannot be loaded by openvino ({_one_line(error)})") from error
        inputs = [
            (i.get_any_name(), np.dtype(i.get_element_type().to_dtype()), _shape(i.get_partial_shape()))
            for i in network.inputs
        ]
        if len(inputs) != 1 or not is_image(inputs[0][2], inputs[0][1]):
            described = ", ".join(f"{name} {kind} {shape}" for name, kind, shape in inputs)
            raise InputError(f"{what}: wrong inputs (found {described}, expected {AN_IMAGE})")
        self._tensor = openvino.Tensor
        _, self.input_type, self.input_shape = inputs[0]
        count = "default threads" if not threads else f"{threads} thread{'s' if threads > 1 else ''}"
        self.description = f"openvino {openvino.__version__.split('-')[0]}, CPU, {count}"

    def infer(self, x: np.ndarray) -> List[np.ndarray]:
        """Run the model; inputs are converted to the model's type, outputs as in `Session.infer`.

        Raises:
            InputError: The session is closed, `x` has another shape or type, or OpenVINO fails.
        """
        if self._request is None:
            raise InputError("session: already closed; open the model again")
        self._check(x)
        try:
            given = np.ascontiguousarray(x, dtype=self.input_type)
            self._request.set_input_tensor(self._tensor(given, shared_memory=True))
            self._request.infer()
            # Copies, because the next call overwrites the tensors. A copy takes 0.1 ms at (1, 84, 8400).
            return [np.array(converted(tensor.data)) for tensor in self._request.output_tensors]
        except Exception as error:
            raise InputError(f"openvino failed while running the model ({_one_line(error)})") from error

    def close(self) -> None:
        """Close the session and free its memory."""
        self._request = None


def _shape(shape: Any) -> Tuple[Optional[int], ...]:
    """A partial shape of OpenVINO: None for a dimension that is not fixed."""
    return tuple(d.get_length() if d.is_static else None for d in shape)


def _properties(threads: Optional[int]) -> Dict[str, Any]:
    # One frame at a time. The kernel may move the threads, because other programs run beside a detector.
    properties: Dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    if threads:
        properties["INFERENCE_NUM_THREADS"] = threads
    return properties


def _library() -> Any:
    """The module openvino, imported without the part that sends."""
    empty = ModuleType(_SENDS)  # openvino imports names from it, but does not need them
    placed = sys.modules.setdefault(_SENDS, empty)
    try:
        import openvino
    except Exception as error:  # a broken installation can raise any exception
        raise RuntimeUnavailable(f"openvino cannot be loaded ({_one_line(error)})") from error
    finally:
        if placed is empty:
            del sys.modules[_SENDS]
    if not hasattr(openvino, "Core"):
        raise RuntimeUnavailable(
            f"openvino is too old (found {openvino.__version__}, expected 2023.1 or later); pip install --upgrade "
            "openvino"
        )
    return openvino


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
