"""Parses an ONNX file and builds it ahead of time with TensorRT for RTX, on a machine without a GPU.

For an RTX card the plan is delivered. For a Jetson the build proves that the library's ONNX parser accepts the file
and that its types are valid under strong typing. Fusion and speed can only be measured on the device.

The builder of the device package (`edgeprune_device.engine`) runs in a separate process, so that a crash inside a
native library does not lose an hour of training. This module imports neither torch nor onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune_device.engine import Request, library, process
from edgeprune_device.errors import DeviceError, InputError

__all__ = ["EngineBuild", "available", "build", "computes"]

LIBRARY = "tensorrt_rtx"
# The FP32, FP16 and INT8 files of YOLOv8n take 7 s together on 2 busy cores; a build that takes longer than this is
# stopped.
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class EngineBuild:
    """The result of one build: a plan, or the reason why there is none.

    Example: `EngineBuild("TensorRT for RTX 1.7.1.116", "SM86", 0.12, 0.61, 7340032, b"…", None)`.

    Attributes:
        builder: The library and its version; None if it is not installed.
        compute: The GPU architecture, such as SM86.
        parse_seconds: Time of the parser; None without a plan.
        build_seconds: Time of the builder; None without a plan.
        size_bytes: The size of the plan.
        plan: The raw plan, without any prefix.
        reason: Why there is no plan; None if there is one.
        warnings: The builder's warnings.
    """

    builder: str | None
    compute: str
    parse_seconds: float | None
    build_seconds: float | None
    size_bytes: int | None
    plan: bytes | None
    reason: str | None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields except the plan."""
        return {
            "builder": self.builder,
            "compute": self.compute,
            "parse_seconds": self.parse_seconds,
            "build_seconds": self.build_seconds,
            "size_bytes": self.size_bytes,
            "reason": self.reason,
            "warnings": list(self.warnings),
        }


def available() -> str | None:
    """None if TensorRT for RTX is installed; otherwise the reason why it cannot be used, in one line."""
    return library.reason(LIBRARY)


def computes() -> tuple[str, ...]:
    """The GPU architectures that plans can be built for, such as SM86; empty without TensorRT for RTX."""
    if available() is not None:
        return ()
    return tuple(name for name in library.load(LIBRARY).ComputeCapability.__members__ if name.startswith("SM"))


def build(
    onnx_path: Path | str, compute: str = "SM86", *, precision: str = "fp32", timeout_s: float = TIMEOUT_S
) -> EngineBuild:
    """Parse and build one ONNX file for one GPU architecture, in a separate process.

    Args:
        onnx_path: The file.
        compute: The GPU architecture.
        precision: The precision of the file. TensorRT for RTX reads the types from the file, so only the advice in an
            error depends on it.
        timeout_s: The time after which the build is stopped, s.

    Returns:
        The build. Its `plan` is None if the file cannot be built here: TensorRT for RTX is missing or does not know
            the architecture, the builder ran out of time, or the native library crashed.

    Raises:
        InputError: The file is missing.
        GateError: The library's parser or builder refuses the file; the message names the operator and the layer.
    """
    onnx_path = Path(onnx_path)
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path}: no such ONNX file; check the path")
    missing = available()
    if missing:
        return EngineBuild(None, compute, None, None, None, None, missing)
    builder = library.title(library.load(LIBRARY))
    if compute not in computes():
        reason = f"TensorRT for RTX: cannot build for {compute} (supported: {', '.join(computes())})"
        return EngineBuild(builder, compute, None, None, None, None, reason)
    request = Request(onnx_path, precision, compute=compute, library=LIBRARY)
    try:
        engine = process.build(request, timeout_s=timeout_s)
    except DeviceError as error:
        return EngineBuild(builder, compute, None, None, None, None, str(error))
    return EngineBuild(
        engine.builder,
        compute,
        engine.parse_seconds,
        engine.build_seconds,
        engine.size_bytes,
        engine.plan,
        None,
        engine.warnings,
    )
