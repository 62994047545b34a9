"""NVIDIA's Python module, and the features of its installed release.

Releases are distinguished by the members of their enums and never by version, so an unknown release is treated
according to its features.

    strong typing   the ONNX file sets the precision                 8.5, 8.6 do not have it; 11, RTX have only it
    flags           FP16 and INT8 are permissions for the builder    11, RTX do not have them
"""

from __future__ import annotations

import importlib
from typing import Any, List, Optional, Tuple

from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.option import named
from edgeprune_device.printable import printable

__all__ = ["flags_of", "has_flags", "has_typing", "load", "log_of", "order", "reason", "title"]

_INSTALL = {
    "tensorrt": "on a Jetson, sudo apt install python3-libnvinfer; a virtual environment needs --system-site-packages",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
#: Flags of a weakly typed build for layers that must stay FP32: fail if that is impossible, or only prefer it.
OBEY, PREFER = "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"
_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def load(name: str = "tensorrt") -> Any:
    """Import NVIDIA's module.

    Args:
        name: "tensorrt" or "tensorrt_rtx".

    Raises:
        RuntimeUnavailable: The module is not installed or does not load; the message is one line.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) in (name, None) and "shared object" not in str(error):
            raise RuntimeUnavailable(f"{_NAMES[name]} is not installed ({error}); {_INSTALL[name]}") from error
        raise RuntimeUnavailable(f"{_NAMES[name]} cannot be loaded ({_line(error)})") from error
    except Exception as error:  # another CUDA, another numpy: a broken installation raises any error
        raise RuntimeUnavailable(f"{_NAMES[name]} cannot be loaded ({_line(error)})") from error


def reason(name: str = "tensorrt") -> Optional[str]:
    """The reason why the module does not load; None if it loads."""
    try:
        load(name)
    except RuntimeUnavailable as error:
        return str(error)
    return None


def title(trt: Any) -> str:
    """Name and version, e.g. "TensorRT 10.3.0"."""
    return f"{_NAMES[trt.__name__.split('.')[0]]} {trt.__version__}"


def has_typing(trt: Any) -> bool:
    """Whether the file can set the precisions of a network."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def has_flags(trt: Any) -> bool:
    """Whether flags can allow the builder FP16 and INT8."""
    return hasattr(trt.BuilderFlag, "FP16")


def order(trt: Any) -> Tuple[str, ...]:
    """The precisions that this release supports, fastest first."""
    if not has_typing(trt):  # int8-fp16 needs strong typing
        return ("int8", "fp16", "fp32")
    if not has_flags(trt):  # the other layers of model.int8.onnx then stay FP32
        return ("int8-fp16", "fp16", "int8", "fp32")
    return ("int8-fp16", "int8", "fp16", "fp32")


def flags_of(trt: Any, precision: str, fp32_nodes: Tuple[str, ...] = (), compute: Optional[str] = None) -> List[str]:
    """The flags with which this release builds a precision; part of the cache's key.

    TF32 (FP32 products rounded to 10 bits, TensorRT's default) is always off. FP32 in a file is intended: for the
    reference of the other files, or for the detector's tail, where 10 bits are a quarter of a pixel.

    The flag OBEY is used first for layers that must stay FP32, because they overflow in FP16. If the builder then finds
    no engine, `build` tries again with PREFER and adds a warning; the cache's key keeps OBEY.

    Args:
        trt: NVIDIA's module.
        precision: The precision.
        fp32_nodes: Nodes that must stay FP32.
        compute: Architecture for which to build without a GPU, or None.

    Raises:
        InputError: This release cannot build the precision.
    """
    if precision == "int8-fp16" and not has_typing(trt):
        raise InputError(
            f"{title(trt)}: no strongly typed networks, which the int8-fp16 model needs (expected TensorRT 10, "
            f"JetPack 6.1 or later); use {named('precision', 'int8')}"
        )
    if has_typing(trt) and not (precision == "int8" and has_flags(trt)):
        flags = ["STRONGLY_TYPED"]
    else:
        flags = {"fp32": [], "fp16": ["FP16"], "int8": ["FP16", "INT8"]}[precision]
        if "FP16" in flags and (fp32_nodes or precision == "fp16"):
            flags = [*flags, OBEY]
    return [*flags, "NO_TF32", *([compute] if compute else [])]


def log_of(trt: Any) -> Any:
    """A logger for TensorRT that stores the messages in the lists `.errors` and `.warnings`."""

    class Log(trt.ILogger):  # type: ignore[misc]  # TensorRT has no types
        """TensorRT's log, stored instead of printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: List[str] = []
            self.warnings: List[str] = []

        def log(self, severity: Any, msg: str) -> None:
            """Store one message; called by the native library."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(_line(msg))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(_line(msg))

    return Log()


def _line(text: Any) -> str:
    line = " ".join(str(text).split())[:600]
    return printable(line)
