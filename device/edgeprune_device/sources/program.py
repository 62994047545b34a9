"""Runs a program that writes frames into a pipe, ends it with this process, and keeps its last message for errors.

The module does not depend on frames, and starts no shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, BinaryIO, Deque, Iterable, Iterator, Optional, Sequence

__all__ = ["OUTPUT_FD", "Program", "last_words"]

# Where the program writes its frames. It is not standard output, because NVIDIA's camera element prints there.
OUTPUT_FD = 3
_PIPE_BYTES = 1 << 20  # the default maximum for a user; 64 KiB would cause 16 times as many wake-ups
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; the module fcntl has it since Python 3.10
_END_S = 2.0

# Asks the kernel to send SIGKILL (9) when the parent ends in any way (1, PR_SET_PDEATHSIG), then becomes the program.
# The pipe alone would not end a program that has nothing to write. preexec_fn is not used, because it may hang in a
# process with threads. The parent is the thread that started the program.
_START = (
    "import ctypes, os, sys; parent, pipe, *command = sys.argv[1:]; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    f"os.getppid() == int(parent) or sys.exit(); os.dup2(int(pipe), {OUTPUT_FD}); os.execvp(command[0], command)"
)


class Program:
    """Runs a command, also repeatedly. `close` may be called from any thread, and is final.

    Args:
        fatal: Beginning of a line after which the program is expected to end; if it hangs then, it is killed.
    """

    def __init__(self, fatal: Optional[str] = None) -> None:
        self._fatal = fatal
        self._lock = threading.Lock()
        self._closed = False
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._listener: Optional[threading.Thread] = None
        self._last_lines: Deque[str] = deque(maxlen=40)

    @contextmanager
    def run(self, command: Sequence[str], stdin: Optional[Path] = None) -> Iterator[BufferedReader]:
        """Run a command, and yield the stream that it writes to file descriptor OUTPUT_FD.

        The command is killed at the end of the block. It must be started in the thread that reads, because it ends with
        that thread.

        Args:
            command: The command.
            stdin: File for its standard input; None: empty.
        """
        self._last_lines.clear()
        with open(str(stdin or os.devnull), "rb") as given:
            read, write = os.pipe()
            with os.fdopen(read, "rb") as stream:
                try:
                    _widen(read)
                    self._start(command, given, write)
                finally:
                    os.close(write)
                try:
                    yield stream
                finally:
                    self._kill()

    def code(self) -> Optional[int]:
        """The exit code of a command that has closed its pipe; None: the command still runs."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_END_S) if self._process is not None else None
        return None

    def words(self) -> str:
        """The last message of the program, in one line."""
        if self._listener is not None and self._process is not None and self._process.poll() is not None:
            self._listener.join(_END_S)
        return last_words(list(self._last_lines))

    def close(self) -> None:
        """Kill the running program; no other can be started afterwards."""
        with self._lock:
            self._closed = True
        self._kill()

    def _start(self, command: Sequence[str], stdin: BinaryIO, write: int) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("closed")
            self._process = subprocess.Popen(
                # -I and -S keep the current folder and site-packages out of the way; the start takes 10 ms.
                [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), str(write), *command],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,  # this process handles Ctrl-C: the camera must not end before the report
            )
        self._listener = threading.Thread(target=self._listen, args=(self._process, self._process.stdout), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen[bytes], messages: IO[bytes]) -> None:
        with messages:
            for line in iter(lambda: messages.readline(1000), b""):
                self._last_lines.append(line.decode("utf-8", "replace"))
                if self._fatal and self._last_lines[-1].startswith(self._fatal):
                    timer = threading.Timer(_END_S, _kill, [process])
                    timer.daemon = True
                    timer.start()

    def _kill(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # before Python 3.10, if another thread has just seen its end
        process.kill()


def last_words(lines: Iterable[str]) -> str:
    """The line that best explains why a program ended: GStreamer prints the cause first, then its consequences."""
    messages = [" ".join(line.split())[:200] for line in lines if line.strip()]
    errors = [line for line in messages if line.startswith("ERROR: from") or "erroneous pipeline" in line]
    return (errors or messages[-1:] or ["no message"])[0]


def _widen(descriptor: int) -> None:
    import fcntl

    with suppress(OSError):  # not permitted: only slower
        fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)
