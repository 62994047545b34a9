"""Parse and build an ONNX file ahead of time with TensorRT for RTX, on a machine that needs no GPU.

For an RTX card the plan ships. For a Jetson it proves that NVIDIA's parser takes the file and that its types hold under
strong typing; not how layers fuse, and not that it is fast: that only the device can say (FACTS.md §1).

The builder is the device package's own (`edgeprune_device.engine`), in a process of its own: a crash inside a native
library must not take an hour of training with it. This module imports neither torch nor onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune_device.engine import Request, library, process
from edgeprune_device.errors import DeviceError, InputError

__all__ = ["EngineBuild", "available", "build", "computes"]

LIBRARY = "tensorrt_rtx"
# The FP32, FP16 and INT8 files of YOLOv8n take 7 s together on 2 busy cores; a build that hangs is ended after this.
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class EngineBuild:
    """What was built, by what, for what; or why nothing was.

    Example: `EngineBuild("TensorRT for RTX 1.7.1.116", "SM86", 0.12, 0.61, 7340032, b"…", None)`.
    plan: the raw plan, without any prefix. reason: None, or why there is no plan.
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
        """All but the plan itself."""
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
    """None where TensorRT for RTX is installed; else why it is not there, in one line."""
    return library.reason(LIBRARY)


def computes() -> tuple[str, ...]:
    """The GPU architectures that can be built for without having them: SM75, SM80, SM86 …; empty where none can."""
    if available() is not None:
        return ()
    return tuple(name for name in library.load(LIBRARY).ComputeCapability.__members__ if name.startswith("SM"))


def build(
    onnx_path: Path | str, compute: str = "SM86", *, precision: str = "fp32", timeout_s: float = TIMEOUT_S
) -> EngineBuild:
    """Parse and build one ONNX file for one GPU architecture, in a process of its own.

    `precision`: which of the bundle's files it is; TensorRT for RTX takes the types from the file itself, so only what
    a refusal advises depends on it.
    Returns an EngineBuild whose `plan` is None, with the reason, where it cannot be built here: TensorRT for RTX
    missing, the architecture unknown to it, the builder out of time, or a crash of the native library.
    Raises InputError where the file is missing, GateError where NVIDIA's parser or builder refuses it; the message
    names the operator and the layer.
    """
    onnx_path = Path(onnx_path)
    if not onnx_path.is_file():
        raise InputError(f"{onnx_path}: no such ONNX file")
    missing = available()
    if missing:
        return EngineBuild(None, compute, None, None, None, None, missing)
    builder = library.title(library.load(LIBRARY))
    if compute not in computes():
        reason = f"TensorRT for RTX cannot build for {compute}; it knows {', '.join(computes())}"
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
