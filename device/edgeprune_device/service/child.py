"""The worker as its supervisor sees it: a process that is started, heard, watched and ended.

Knows nothing of releases.
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

_BUSY = 0.01  # of one processor: what loads and uses less does not work, it hangs
_LONGEST_LOAD_S = 6 * 3600.0  # as long as an engine may be built


class Child:
    """Started when it is made. `inherited`: descriptors that it keeps.

    - `messages`: the descriptor to poll; `hear` takes what it said
    - `frames`, `last_ns`, `lost`: what it did so far, also when it has ended
    """

    def __init__(self, order: Dict[str, Any], inherited: Sequence[int]):
        self._pulse = Pulse()
        self.messages, writes = os.pipe()
        os.set_blocking(self.messages, False)
        self._rest = b""
        begun = time.monotonic_ns()
        # Until it says more itself: the interpreter and its libraries load.
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
        """It may load the model now."""
        self._write({})

    def look(self) -> None:
        """Renew what it did."""
        cells = self._pulse.cells
        self.frames, self.last_ns, self.lost = cells[FRAMES], cells[LAST], cells[LOST]

    def hear(self) -> List[Dict[str, Any]]:
        """What it said since."""
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
        """Whether it is silent for longer than it said. While it loads, who uses the processor is at work: an engine is
        built for minutes."""
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
        """Tell it to end."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """When it has ended."""
        self.look()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self.messages)
        self._pulse.close()

    def death(self) -> str:
        """How it ended, in a few words, where it did not say."""
        code = self.code
        if code == -signal.SIGKILL:
            return "the worker was killed (SIGKILL), perhaps because memory ran out"
        if code < 0:
            with suppress(ValueError):
                return f"the worker crashed ({signal.Signals(-code).name})"
        return f"the worker ended with code {code}"

    def _write(self, what: Dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # it is dead already; its exit code says why
            self._process.stdin.write(json.dumps(what).encode("ascii") + b"\n")
            self._process.stdin.flush()
