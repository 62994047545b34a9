"""The process that builds an engine. `process` starts it and describes the messages between the two."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, Optional

from edgeprune_device import cuda, errors
from edgeprune_device.engine import library, memory
from edgeprune_device.engine.build import build
from edgeprune_device.errors import EdgepruneError
from edgeprune_device.files import write_atomic
from edgeprune_device.trust import keys

__all__ = ["main"]

# Prefix of the signed bytes, so that no other signed data, for example a bundle, passes for a timing cache.
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
        say({"engine": _build(order, say)})
    except EdgepruneError as error:
        # The class that the caller knows: some modules derive their own errors from these.
        kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in errors.__all__)
        say({"error": {"kind": kind, "message": str(error)}})
    # The answer is written. Native libraries can still crash when the interpreter shuts them down.
    os._exit(0)


def _end_with_the_caller() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)


def _build(order: Dict[str, Any], say) -> Dict[str, Any]:
    onnx = Path(order["onnx"]).read_bytes()
    timing = Path(order["timing_cache"]) if order["timing_cache"] else None
    engine, timed = build(
        library.load(order["library"]),
        onnx,
        order["precision"],
        name=order["name"],
        fp32_nodes=tuple(order["fp32_nodes"]),
        pools=_pools(order),
        compute=order["compute"],
        timing_cache=_read_timing(timing) if timing else b"",
        progress=_Slowly(say),
    )
    Path(order["plan"]).write_bytes(engine.plan)
    if timing and timed:
        with suppress(EdgepruneError):  # it only saves time
            write_atomic(timing, bytes(keys.load_or_create().sign(_TIMING + timed)), mode=0o600)
    return engine.to_json()


def _pools(order: Dict[str, Any]) -> Dict[str, int]:
    if order["compute"]:
        found = dict(memory.AHEAD_OF_TIME)
    else:
        gpu = cuda.open(order["cuda"])
        try:
            integrated, free = gpu.device().integrated, gpu.memory()[0]
        finally:
            gpu.close()
        found = memory.pools((memory.read_available() if integrated else None) or free, integrated)
    return {**found, **({"WORKSPACE": order["workspace_bytes"]} if order["workspace_bytes"] else {})}


def _read_timing(path: Path) -> bytes:
    """Read the timing cache. Native code parses it, so only content signed by this machine's own key is returned."""
    try:
        signed = bytes(keys.load_or_create().verify_key.verify(path.read_bytes()))
    except Exception:  # missing, cut off or changed: the tactics are measured again
        return b""
    return signed[len(_TIMING) :] if signed.startswith(_TIMING) else b""


class _Slowly:
    """Report progress at most five times a second."""

    def __init__(self, say):
        self._say, self._next = say, 0.0

    def __call__(self, share: float, text: Optional[str]) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            self._say({"progress": [round(share, 4), text]})
