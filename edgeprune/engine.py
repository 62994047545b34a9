"""Parse and build an ONNX file ahead of time with TensorRT for RTX, on a machine that needs no GPU.

For an RTX card the plan ships. For a Jetson it proves that NVIDIA's parser takes the file and that its types hold under
strong typing; not how layers fuse, and not that it is fast: that only the device can say (FACTS.md §1).

The build runs in a process of its own (`python -m edgeprune.engine ONNX COMPUTE OUT`), because a crash inside a native
library must not take an hour of training with it. It costs about half a second; this module
imports neither torch nor onnx.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprune_device.errors import GateError, InputError

from edgeprune.layers import layer_of_node

__all__ = ["EngineBuild", "available", "build", "computes"]

# The FP32, FP16 and INT8 files of YOLOv8n take 7 s together on 2 busy cores; a build that hangs is ended after this.
TIMEOUT_S = 600.0
# Most of what a strongly typed detector of this size asks for is below 100 MB; a drone has 4 GB in all.
WORKSPACE_BYTES = 1 << 30


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
    try:
        import tensorrt_rtx  # noqa: F401
    except ImportError as error:
        if not (sys.platform == "linux" or sys.platform == "win32"):
            return f"TensorRT for RTX has no build for {sys.platform}"
        return f"TensorRT for RTX is not installed ({error}): pip install tensorrt-rtx-cu13"
    except OSError as error:
        return f"TensorRT for RTX does not load here: {_line(str(error))}"
    return None


def computes() -> tuple[str, ...]:
    """The GPU architectures that can be built for without having them: SM75, SM80, SM86 …; empty where none can."""
    if available() is not None:
        return ()
    import tensorrt_rtx as trt

    return tuple(name for name in trt.ComputeCapability.__members__ if name.startswith("SM"))


def build(onnx_path: Path | str, compute: str = "SM86", *, timeout_s: float = TIMEOUT_S) -> EngineBuild:
    """Parse and build one ONNX file for one GPU architecture, in a process of its own.

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
    with tempfile.TemporaryDirectory(prefix="edgeprune-engine-") as folder:
        plan = Path(folder) / "model.plan"
        command = [sys.executable, "-m", "edgeprune.engine", str(onnx_path), compute, str(plan)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return EngineBuild(_builder(), compute, None, None, None, None, f"no engine after {timeout_s:.0f} s")
        return _outcome(done.returncode, done.stdout, done.stderr, compute, plan, onnx_path.name)


def _outcome(code: int, out: str, err: str, compute: str, plan: Path, file: str) -> EngineBuild:
    """What the building process said, from its exit code and its last line of JSON."""
    try:
        said = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return EngineBuild(_builder(), compute, None, None, None, None, _death(code, err))
    if said.get("refused"):
        raise GateError(f"{file}: {said['builder']} refuses it: {said['refused']}")
    content = plan.read_bytes() if said["reason"] is None else None
    return EngineBuild(
        said["builder"],
        compute,
        said["parse_seconds"],
        said["build_seconds"],
        len(content) if content is not None else None,
        content,
        said["reason"],
        tuple(said["warnings"]),
    )


def _death(code: int, err: str) -> str:
    """Why a process that said nothing has ended."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the builder crashed ({name})"
    return f"the builder ended with code {code}: {_line(err.strip().splitlines()[-1] if err.strip() else 'no message')}"


def _builder() -> str:
    import tensorrt_rtx as trt

    return f"TensorRT for RTX {trt.__version__}"


def _line(text: str) -> str:
    return " ".join(text.split())


def _build_here(onnx_path: str, compute: str, out: str) -> dict[str, Any]:
    """Build in this process; the plan goes to the file `out`, the rest is returned as JSON values."""
    import tensorrt_rtx as trt

    class Notes(trt.ILogger):
        """TensorRT's log, kept instead of printed."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(_line(text))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(_line(text))

    said: dict[str, Any] = {
        "builder": _builder(),
        "parse_seconds": None,
        "build_seconds": None,
        "reason": None,
        "refused": None,
        "warnings": [],
    }
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    if compute not in known:
        said["reason"] = f"TensorRT for RTX cannot build for {compute}; it knows {', '.join(known)}"
        return said
    notes = Notes()
    builder = trt.Builder(notes)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, notes)
    start = time.perf_counter()
    parsed = parser.parse_from_file(onnx_path)
    said["parse_seconds"] = time.perf_counter() - start
    if not parsed:
        said["refused"] = _refusal([parser.get_error(i) for i in range(parser.num_errors)], notes.errors)
        return said
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[compute], 0)
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    said["build_seconds"] = time.perf_counter() - start
    said["warnings"] = list(dict.fromkeys(notes.warnings))
    if plan is None:
        said["refused"] = "; ".join(dict.fromkeys(notes.errors)) or "the builder gave no reason"
        return said
    Path(out).write_bytes(memoryview(plan))
    return said


def _refusal(errors: list[Any], log: list[str]) -> str:
    """The parser's first error: operator, layer, and its own words, in one line."""
    if not errors:
        return log[0] if log else "the parser gave no reason"
    first = errors[0]
    name = first.node_name()
    where = f"{first.node_operator()} {name} (layer {layer_of_node(name)}): " if name else ""
    return where + _line(first.desc())


if __name__ == "__main__":
    print(json.dumps(_build_here(*sys.argv[1:4])))
