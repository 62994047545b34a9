"""The supervisor's view of the worker: start it, read its messages, watch it, end it.

The module does not depend on releases.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import IO, Any, Dict, List, Mapping, Optional, Sequence, cast

from edgeprune_device import interpreter
from edgeprune_device.machine import cpu_load
from edgeprune_device.service import pace
from edgeprune_device.service.protocol import (
    DEADLINE,
    DECODING,
    FRAMES,
    LAST,
    LOADING,
    LOST,
    SOURCE,
    Order,
    Pulse,
    SentOrder,
)
from edgeprune_device.service.worker import COMMAND, LOAD_S

__all__ = ["Child"]

_BUSY = 0.01  # share of one core; a loading worker that uses less has hung
_LONGEST_LOAD_S = 6 * 3600.0  # building an engine may take hours


class Child:
    """A worker process; it is started when the object is made.

    Args:
        order: The order, see `protocol`.
        inherited: Descriptors that the worker keeps.

    Attributes:
        messages: The descriptor to poll; `hear` reads it.
        frames: Frames that the worker has completed; also valid after it has ended.
        last_ns: When the last frame was completed, time.monotonic_ns.
        lost: Lines that could not be written.
        pace: Times of its stages, see `pace`; None before the first frame.
        at_source: Whether the worker is opening its source, or waiting for a prepared frame.
        decoding: Whether the worker is decoding a frame.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, order: Order, inherited: Sequence[int]):
        self._pulse = Pulse()
        self.messages, writes = os.pipe()
        os.set_blocking(self.messages, False)
        self._rest = b""
        begun = time.monotonic_ns()
        # Until its first message, the worker loads the interpreter and its libraries.
        self._pulse.cells[DEADLINE], self._pulse.cells[LOADING] = begun + int(LOAD_S * 1e9), 1
        self._load_ends_ns = begun + int(_LONGEST_LOAD_S * 1e9)
        self._granted_ns, self._spent_s = 0, 0.0
        try:
            self._process = subprocess.Popen(
                interpreter.command(COMMAND, mortal=True),
                stdin=subprocess.PIPE,
                pass_fds=(writes, self._pulse.descriptor, *inherited),
                start_new_session=True,  # only the supervisor receives Ctrl-C
            )
        except OSError:
            os.close(self.messages)
            self._pulse.close()
            raise
        finally:
            os.close(writes)
        self._stdin = cast(IO[bytes], self._process.stdin)
        sent: SentOrder = {**order, "messages": writes, "pulse": self._pulse.descriptor}
        self._write(sent)
        self.frames = self.last_ns = self.lost = 0
        self.pace: Optional[pace.PaceStatus] = None
        self.at_source = self.decoding = False

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def code(self) -> Optional[int]:
        """The worker's exit code, negative for a signal; None while the worker runs."""
        return self._process.poll()

    def go(self) -> None:
        """Let the worker load the model."""
        self._write({})

    def look(self) -> None:
        """Update `frames`, `last_ns`, `lost`, `pace`, `at_source` and `decoding`."""
        cells = self._pulse.cells
        self.at_source, self.decoding = bool(cells[SOURCE]), bool(cells[DECODING])
        self.frames, self.last_ns, self.lost = cells[FRAMES], cells[LAST], cells[LOST]
        self.pace = pace.read(cells)

    def hear(self) -> List[Dict[str, Any]]:
        """The worker's messages since the last call."""
        data = self._rest
        with suppress(BlockingIOError):
            while True:
                part = os.read(self.messages, 1 << 16)
                if not part:
                    break
                data += part
        *lines, self._rest = data.split(b"\n")
        return [json.loads(line.decode("ascii")) for line in lines]

    def hangs(self) -> bool:
        """Whether the worker has been silent for longer than it announced.

        A worker that is loading and uses the CPU does not count as hung, because building an engine takes minutes.
        """
        now, cells = time.monotonic_ns(), self._pulse.cells
        if now <= max(cells[DEADLINE], self._granted_ns):
            return False
        if not cells[LOADING] or now > self._load_ends_ns:
            return True
        used = cpu_load.read()  # CPU time of this process, which is negligible, and of its descendants
        if used is None or used.own - self._spent_s < _BUSY * LOAD_S:
            return True
        self._spent_s, self._granted_ns = used.own, now + int(LOAD_S * 1e9)
        return False

    def terminate(self) -> None:
        """Send SIGTERM."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """Send SIGKILL."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Free the pipe and the memory; call it when the worker has ended."""
        self.look()
        with suppress(BrokenPipeError):
            self._stdin.close()
        os.close(self.messages)
        self._pulse.close()

    def death(self) -> str:
        """Describe how the worker ended, for a worker that gave no reason."""
        code = self.code
        if code == -signal.SIGKILL:
            return "the worker was killed (SIGKILL), perhaps because memory ran out"
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"the worker crashed ({signal.Signals(-code).name})"
        return f"the worker ended with code {code}"

    def _write(self, what: Mapping[str, object]) -> None:
        with suppress(BrokenPipeError):  # the worker has already ended; its exit code gives the reason
            self._stdin.write(json.dumps(what).encode("ascii") + b"\n")
            self._stdin.flush()
