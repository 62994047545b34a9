"""The worker as its supervisor sees it: a process that is started, read, watched and ended.

The module does not depend on releases.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any, Dict, List, Sequence

from edgeprune_device import interpreter
from edgeprune_device.machine import cpu_load
from edgeprune_device.service.protocol import DEADLINE, FRAMES, LAST, LOADING, LOST, Pulse
from edgeprune_device.service.worker import COMMAND, LOAD_S

__all__ = ["Child"]

_BUSY = 0.01  # of one processor: a loading worker that uses less hangs
_LONGEST_LOAD_S = 6 * 3600.0  # as long as an engine may be built


class Child:
    """A worker process; it is started when the object is made.

    Args:
        order: The order, see `protocol`.
        inherited: Descriptors that the worker keeps.

    Attributes:
        messages: The descriptor to poll; `hear` reads it.
        frames: Frames that the worker has completed; valid also when it has ended.
        last_ns: When the last one was completed, time.monotonic_ns.
        lost: Lines that could not be written.

    Raises:
        OSError: The process cannot be started.
    """

    def __init__(self, order: Dict[str, Any], inherited: Sequence[int]):
        self._pulse = Pulse()
        self.messages, writes = os.pipe()
        os.set_blocking(self.messages, False)
        self._rest = b""
        begun = time.monotonic_ns()
        # Until its first message: the interpreter and its libraries load.
        self._pulse.cells[DEADLINE], self._pulse.cells[LOADING] = begun + int(LOAD_S * 1e9), 1
        self._load_ends_ns = begun + int(_LONGEST_LOAD_S * 1e9)
        self._granted_ns, self._spent_s = 0, 0.0
        try:
            self._process = subprocess.Popen(
                interpreter.command(COMMAND, mortal=True),
                stdin=subprocess.PIPE,
                pass_fds=(writes, self._pulse.descriptor, *inherited),
                start_new_session=True,  # Ctrl-C is the supervisor's
            )
        except OSError:
            os.close(self.messages)
            self._pulse.close()
            raise
        finally:
            os.close(writes)
        self._write({**order, "messages": writes, "pulse": self._pulse.descriptor})
        self.frames = self.last_ns = self.lost = 0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> Any:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def go(self) -> None:
        """Let the worker load the model."""
        self._write({})

    def look(self) -> None:
        """Renew `frames`, `last_ns` and `lost`."""
        cells = self._pulse.cells
        self.frames, self.last_ns, self.lost = cells[FRAMES], cells[LAST], cells[LOST]

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

        A worker that loads and uses the processor does not hang: building an engine takes minutes.
        """
        now, cells = time.monotonic_ns(), self._pulse.cells
        if now <= max(cells[DEADLINE], self._granted_ns):
            return False
        if not cells[LOADING] or now > self._load_ends_ns:
            return True
        used = cpu_load.read()  # of this process, which uses next to nothing, and of all below it
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
            self._process.stdin.close()
        os.close(self.messages)
        self._pulse.close()

    def death(self) -> str:
        """How the worker ended, in a few words, for a worker that gave no reason."""
        code = self.code
        if code == -signal.SIGKILL:
            return "the worker was killed (SIGKILL), perhaps because memory ran out"
        if code < 0:
            with suppress(ValueError):
                return f"the worker crashed ({signal.Signals(-code).name})"
        return f"the worker ended with code {code}"

    def _write(self, what: Dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # it has ended already; its exit code tells why
            self._process.stdin.write(json.dumps(what).encode("ascii") + b"\n")
            self._process.stdin.flush()
