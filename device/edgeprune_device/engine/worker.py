"""The process that builds an engine. `process` starts it and defines the messages."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Callable, Dict

from edgeprune_device import cuda, errors
from edgeprune_device.engine import Request, library, memory
from edgeprune_device.engine.build import build
from edgeprune_device.errors import EdgepruneError
from edgeprune_device.files import write_atomic
from edgeprune_device.option import as_flags
from edgeprune_device.trust import keys

__all__ = ["main"]

# Prefix of the signed bytes, so that no other signed data, for example a bundle, is accepted as a timing cache.
_TIMING = b"edgeprune timing cache 1\n"


def main() -> None:
    """Read one request, build the engine, write the answer, and end the process."""
    # Native libraries print to descriptor 1, so it becomes standard error, and the lines of JSON get another one.
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def say(value: Dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    try:
        with ExitStack() as stack:
            if order["names_flags"]:
                stack.enter_context(as_flags())
            say({"engine": _build(order, say)})
    except EdgepruneError as error:
        # A class that the caller knows, because some modules derive their own errors.
        kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in errors.__all__)
        say({"error": {"kind": kind, "message": str(error)}})
    # The answer is written. Native libraries can crash during the interpreter's shutdown, which is skipped.
    os._exit(0)


def _end_with_the_caller() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _build(order: Dict[str, Any], say: Callable[[Dict[str, Any]], None]) -> Dict[str, Any]:
    request = Request(
        Path(order["onnx"]).read_bytes(),
        order["precision"],
        fp32_nodes=tuple(order["fp32_nodes"]),
        workspace_bytes=order["workspace_bytes"],
        compute=order["compute"],
        library=order["library"],
        cuda=order["cuda"],
        name=order["name"],
    )
    timing = Path(order["timing_cache"]) if order["timing_cache"] else None
    engine, timed = build(
        library.load(request.library),
        request,
        pools=_pools(request),
        timing_cache=_read_timing(timing) if timing else b"",
        progress=_Slowly(say),
    )
    Path(order["plan"]).write_bytes(engine.plan)
    if timing and timed:
        with suppress(EdgepruneError):  # the cache only saves time
            write_atomic(timing, bytes(keys.load_or_create().sign(_TIMING + timed)), mode=0o600)
    return engine.to_json()


def _pools(request: Request) -> Dict[str, int]:
    if request.compute:
        pools = dict(memory.AHEAD_OF_TIME)
    else:
        gpu = cuda.open(request.cuda)
        try:
            integrated, free = gpu.device().integrated, gpu.memory()[0]
        finally:
            gpu.close()
        pools = memory.pools((memory.read_available() if integrated else None) or free, integrated)
    return {**pools, **({"WORKSPACE": request.workspace_bytes} if request.workspace_bytes else {})}


def _read_timing(path: Path) -> bytes:
    """Read the timing cache. Native code parses it, so only content signed by this machine's own key is returned."""
    try:
        signed = bytes(keys.load_or_create().verify_key.verify(path.read_bytes()))
    except Exception:  # missing, cut off or changed: the tactics are measured again
        return b""
    return signed[len(_TIMING) :] if signed.startswith(_TIMING) else b""


class _Slowly:
    """A `Progress` that forwards at most five messages per second."""

    def __init__(self, say: Callable[[Dict[str, Any]], None]) -> None:
        self._say, self._next = say, 0.0

    def __call__(self, fraction: float, text: str) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            self._say({"progress": [round(fraction, 4), text]})
