"""Build an engine in a separate process.

A crash inside a native library, or the out-of-memory killer, then does not end the caller, and the memory of the build
is freed completely.

The caller writes the request as one line of JSON to the worker's standard input. The worker answers with lines of JSON:
`{"progress": [fraction, text]}`, and finally `{"engine": {…}}` or `{"error": {"kind", "message"}}`. The plan is a file.
The worker ends with its standard input, so that it does not outlive a killed caller.
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
from typing import IO, Any, Dict, Optional, cast

from edgeprune_device import errors, interpreter
from edgeprune_device.engine import Engine, Request
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.option import named, names_flags
from edgeprune_device.progress import Progress, silent

__all__ = ["build"]

# Far longer than any expected build of a detector on a Jetson (not measured); a longer build has hung.
TIMEOUT_S = 6 * 3600.0
_WORKER = "from edgeprune_device.engine.worker import main; main()"


def build(
    request: Request,
    *,
    timing_cache: Optional[Path] = None,
    progress: Progress = silent,
    timeout_s: float = TIMEOUT_S,
) -> Engine:
    """Build an engine in a separate process.

    Args:
        request: The engine to build.
        timing_cache: File of the timing cache, read and written.
        progress: Receives the progress, at most five times a second.
        timeout_s: Time limit of a build, s.

    Returns:
        The engine, with its plan.

    Raises:
        InputError: The request cannot be met here.
        GateError: TensorRT's parser or builder does not accept the file.
        DeviceError: The builder crashed, was killed, or took longer than `timeout_s`.
    """
    with tempfile.TemporaryDirectory(prefix="edgeprune-engine-") as folder:
        plan = Path(folder) / "plan"
        if isinstance(request.onnx, bytes):
            onnx = Path(folder) / "model.onnx"
            onnx.write_bytes(request.onnx)
        else:
            onnx = request.onnx
            if not onnx.is_file():
                raise InputError(f"{onnx}: no such ONNX file; check the path")
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
            "names_flags": names_flags(),
        }
        answer = _run(order, request.name, progress, timeout_s)
        if "error" in answer:
            raise getattr(errors, answer["error"]["kind"])(answer["error"]["message"])
        return replace(Engine.from_json(answer["engine"], "engine builder"), plan=plan.read_bytes())


def _run(order: Dict[str, Any], name: str, progress: Progress, timeout_s: float) -> Dict[str, Any]:
    """Run the worker, and return its last answer."""
    command = interpreter.command(_WORKER)
    late = threading.Event()
    with tempfile.TemporaryFile() as complaints:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints)

        def end() -> None:
            late.set()
            worker.kill()

        stdin, stdout = cast(IO[bytes], worker.stdin), cast(IO[bytes], worker.stdout)
        timer = threading.Timer(timeout_s, end)
        timer.start()
        last: Dict[str, Any] = {}
        try:
            try:
                stdin.write(json.dumps(order).encode("utf-8") + b"\n")
                stdin.flush()
            except BrokenPipeError:
                pass  # the worker has already ended; its exit code gives the reason
            for line in stdout:
                last = _heard(line) or last
                if "progress" in last:
                    progress(*last["progress"])
            code = worker.wait()
        finally:  # also on Ctrl-C: the build must not continue after the command
            timer.cancel()
            worker.kill()
            worker.wait()
            stdout.close()
            with suppress(BrokenPipeError):
                stdin.close()
        complaints.seek(0)
        complaint = complaints.read().decode("utf-8", "replace").strip()
    if late.is_set():
        raise DeviceError(
            f"{name}: the engine was not built within {timeout_s:.0f} s; close other programs and try again"
        )
    if code == 0 and ("engine" in last or "error" in last):
        return last
    raise DeviceError(f"{name}: {_death(code, complaint)}")


def _heard(line: bytes) -> Optional[Dict[str, Any]]:
    try:
        message = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _death(code: int, complaint: str) -> str:
    """The reason why a worker ended without an engine."""
    if code == -signal.SIGKILL:
        return (
            "the engine builder was killed (SIGKILL), probably because memory ran out; close other programs, give "
            f"less scratch memory ({named('workspace', 256)}), or add swap"
        )
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"the engine builder crashed ({name})"
    last = " ".join(complaint.splitlines()[-1].split()) if complaint else "no message"
    return f"the engine builder failed (exit code {code}): {last}"
