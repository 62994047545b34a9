"""NVIDIA's Python module, and what the release at hand can. By feature, never by version: releases are told apart by
what their enums hold, so that one which is not known here is treated by what it has.

    strong typing   the precision stands in the ONNX file            8.5, 8.6 have not; 11, RTX know nothing else
    flags           FP16 and INT8 are permissions for the builder    11, RTX have not
"""

from __future__ import annotations

import importlib
from typing import Any, List, Optional, Tuple

from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.printable import printable

__all__ = ["flags_of", "has_flags", "has_typing", "load", "log_of", "order", "reason", "title"]

_INSTALL = {
    "tensorrt": "JetPack brings it: sudo apt install python3-libnvinfer; a virtual environment must be made with "
    "--system-site-packages to see it",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
}
#: What a weakly typed build is told of layers that must stay FP32: to fail where it cannot, or to do what it can.
OBEY, PREFER = "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"
_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def load(name: str = "tensorrt") -> Any:
    """The module. RuntimeUnavailable, in one line, where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) in (name, None) and "shared object" not in str(error):
            raise RuntimeUnavailable(f"{_NAMES[name]} is not installed ({error}): {_INSTALL[name]}") from error
        raise RuntimeUnavailable(f"{_NAMES[name]} does not load here: {_line(error)}") from error
    except Exception as error:  # a library of another CUDA, bindings of another numpy: whatever a broken install raises
        raise RuntimeUnavailable(f"{_NAMES[name]} does not load here: {_line(error)}") from error


def reason(name: str = "tensorrt") -> Optional[str]:
    """None where the module loads, else why not."""
    try:
        load(name)
    except RuntimeUnavailable as error:
        return str(error)
    return None


def title(trt: Any) -> str:
    """E.g. "TensorRT 10.3.0"."""
    return f"{_NAMES[trt.__name__.split('.')[0]]} {trt.__version__}"


def has_typing(trt: Any) -> bool:
    """Whether a network can take its precisions from the file."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def has_flags(trt: Any) -> bool:
    """Whether the builder can be allowed FP16 and INT8."""
    return hasattr(trt.BuilderFlag, "FP16")


def order(trt: Any) -> Tuple[str, ...]:
    """The precisions that this release takes, fastest first."""
    if not has_typing(trt):  # int8-fp16 needs it
        return ("int8", "fp16", "fp32")
    if not has_flags(trt):  # what is not INT8 in model.int8.onnx then stays FP32
        return ("int8-fp16", "fp16", "int8", "fp32")
    return ("int8-fp16", "int8", "fp16", "fp32")


def flags_of(trt: Any, precision: str, fp32_nodes: Tuple[str, ...] = (), compute: Optional[str] = None) -> List[str]:
    """How this release builds this precision: part of the cache's key. InputError where it cannot.

    TF32 (FP32 products rounded to 10 bits, on by default in TensorRT) is always off: FP32 in a file is there for its
    precision, as the reference of the other files, or in the detector's tail, where 10 bits are a quarter of a pixel.

    Layers that must stay FP32 are OBEYed first, as they overflow in FP16. Where the builder then finds no engine,
    `build` asks again with PREFER, and says so; the key stays that of what was asked for.
    """
    if precision == "int8-fp16" and not has_typing(trt):
        raise InputError(
            f"{title(trt)} has no strongly typed networks, which the int8-fp16 model needs (TensorRT 10, "
            "JetPack 6.1 or later): use --precision int8"
        )
    if has_typing(trt) and not (precision == "int8" and has_flags(trt)):
        flags = ["STRONGLY_TYPED"]
    else:
        flags = {"fp32": [], "fp16": ["FP16"], "int8": ["FP16", "INT8"]}[precision]
        if "FP16" in flags and (fp32_nodes or precision == "fp16"):
            flags = [*flags, OBEY]
    return [*flags, "NO_TF32", *([compute] if compute else [])]


def log_of(trt: Any) -> Any:
    """A logger for TensorRT that keeps what it is told: `.errors`, `.warnings`, lists of lines."""

    class Log(trt.ILogger):
        """TensorRT's log, kept instead of printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: List[str] = []
            self.warnings: List[str] = []

        def log(self, severity: Any, msg: str) -> None:
            """Called by the native library."""
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(_line(msg))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(_line(msg))

    return Log()


def _line(text: Any) -> str:
    line = " ".join(str(text).split())[:600]
    return printable(line)
