"""Build an engine in a separate process.

A crash inside a native library, or the out-of-memory killer, then does not end the caller, and the memory that building
takes is freed completely.

The caller writes the request as one line of JSON to the worker's standard input. The worker answers with lines of JSON:
`{"progress": [share, text]}`, and at last `{"engine": {…}}` or `{"error": {"kind", "message"}}`. The plan is a file.
The worker ends when its standard input does, so that none outlives a killed caller.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Optional

from edgeprune_device import errors, interpreter
from edgeprune_device.engine import Engine, Request
from edgeprune_device.engine.build import Progress
from edgeprune_device.errors import DeviceError, InputError

__all__ = ["build"]

# Meant to be far above any build of a detector on a Jetson, which was not measured: a longer build has hung.
TIMEOUT_S = 6 * 3600.0
_WORKER = "from edgeprune_device.engine.worker import main; main()"


def build(
    request: Request,
    *,
    timing_cache: Optional[Path] = None,
    progress: Optional[Progress] = None,
    timeout_s: float = TIMEOUT_S,
) -> Engine:
    """Build an engine in a separate process.

    Args:
        request: The engine to build.
        timing_cache: File of the timing cache, read and written.
        progress: Called with (share done in [0, 1], text).
        timeout_s: Longest time of a build, s.

    Returns:
        The engine, with its plan.

    Raises:
        InputError: The request cannot be met here.
        GateError: NVIDIA's parser or builder refuses the file.
        DeviceError: The builder crashed, was killed, or took longer than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-engine-") as folder:
        onnx, plan = request.onnx, Path(folder) / "plan"
        if isinstance(onnx, bytes):
            onnx = Path(folder) / "model.onnx"
            onnx.write_bytes(request.onnx)
        elif not onnx.is_file():
            raise InputError(f"{onnx}: no such ONNX file")
        order = {
            "onnx": str(onnx),
            "precision": request.precision,
            "fp32_nodes": list(request.fp32_nodes),
            "workspace_bytes": request.workspace_bytes,
            "compute": request.compute,
            "library": request.library,
            "cuda": request.cuda,
            "name": request.name,
            "plan": str(plan),
            "timing_cache": str(timing_cache) if timing_cache else None,
        }
        said = _run(order, request.name, progress, timeout_s)
        if "error" in said:
            raise getattr(errors, said["error"]["kind"])(said["error"]["message"])
        return replace(Engine.from_json(said["engine"], "engine builder"), plan=plan.read_bytes())


def _run(order: Dict[str, Any], name: str, progress: Optional[Progress], timeout_s: float) -> Dict[str, Any]:
    """The worker's last answer."""
    command = interpreter.command(_WORKER)
    late = threading.Event()
    with tempfile.TemporaryFile() as complaints:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)

        def end() -> None:
            late.set()
            worker.kill()

        timer = threading.Timer(timeout_s, end)
        timer.start()
        last: Dict[str, Any] = {}
        try:
            try:
                worker.stdin.write(json.dumps(order).encode("utf-8") + b"\n")
                worker.stdin.flush()
            except BrokenPipeError:
                pass  # it has ended already; its exit code tells why
            for line in worker.stdout:
                last = _heard(line) or last
                if "progress" in last and progress is not None:
                    progress(*last["progress"])
            code = worker.wait()
        finally:  # also on Ctrl-C: the build must not continue after the command
            timer.cancel()
            worker.kill()
            worker.wait()
            worker.stdout.close()
            with suppress(BrokenPipeError):
                worker.stdin.close()
        complaints.seek(0)
        complaint = complaints.read().decode("utf-8", "replace").strip()
    if late.is_set():
        raise DeviceError(f"{name}: no engine after {timeout_s:.0f} s")
    if code == 0 and ("engine" in last or "error" in last):
        return last
    raise DeviceError(f"{name}: {_death(code, complaint)}")


def _heard(line: bytes) -> Optional[Dict[str, Any]]:
    try:
        said = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


def _death(code: int, complaint: str) -> str:
    """Why a worker that brought no engine has ended."""
    if code == -signal.SIGKILL:
        return (
            "the engine builder was killed (SIGKILL), most likely because memory ran out: close other programs, give "
            "less scratch memory (--workspace 256), or add swap"
        )
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the engine builder crashed ({name})"
    last = " ".join(complaint.splitlines()[-1].split()) if complaint else "no message"
    return f"the engine builder ended with code {code}: {last}"
