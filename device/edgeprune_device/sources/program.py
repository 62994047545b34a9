"""A program that writes frames into a pipe: started, read, ended with this process, with its last message for errors.

The module does not depend on frames, and starts no shell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Deque, Iterable, Iterator, Optional, Sequence

__all__ = ["OUTPUT_FD", "Program", "last_words"]

# Where the program writes its frames. Not its standard output: NVIDIA's camera element prints messages there.
OUTPUT_FD = 3
_PIPE_BYTES = 1 << 20  # the most that a user may ask for by default; 64 KiB would cost 16 times the wake-ups
_F_SETPIPE_SZ = 1031  # linux/fcntl.h; the module fcntl names it from Python 3.10 on
_END_S = 2.0

# Becomes the program, after asking the kernel to kill it (9) when we are gone (1, PR_SET_PDEATHSIG), however we went:
# its pipe alone would not tell a program that has nothing to write. Not preexec_fn, which may hang in a process with
# threads. "We" is the thread that started it.
_START = (
    "import ctypes, os, sys; parent, pipe, *command = sys.argv[1:]; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    f"os.getppid() == int(parent) or sys.exit(); os.dup2(int(pipe), {OUTPUT_FD}); os.execvp(command[0], command)"
)


class Program:
    """Runs a command, also several times in a row. `close` may be called from any thread, and is final.

    Args:
        fatal: Begin of a line that means that the program has given up; if it then hangs, it is killed.
    """

    def __init__(self, fatal: Optional[str] = None) -> None:
        self._fatal = fatal
        self._lock = threading.Lock()
        self._closed = False
        self._process: Optional[subprocess.Popen] = None
        self._listener: Optional[threading.Thread] = None
        self._said: Deque[str] = deque(maxlen=40)

    @contextmanager
    def run(self, command: Sequence[str], stdin: Optional[Path] = None) -> Iterator[BinaryIO]:
        """Run a command; gives the stream that the command writes to file descriptor OUTPUT_FD.

        The command is killed at the end of the block. It must be started in the thread that reads, because it ends with
        that thread.

        Args:
            command: The command.
            stdin: File for its standard input; None: empty.
        """
        self._said.clear()
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
        """The exit code of a command that has closed its pipe; None: it still runs, and is then killed."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(_END_S)
        return None

    def words(self) -> str:
        """The last message of the program, in one line."""
        if self._listener is not None and self._process is not None and self._process.poll() is not None:
            self._listener.join(_END_S)
        return last_words(list(self._said))

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
                # -I and -S: neither the current folder nor site-packages can get in between, and it starts in 10 ms.
                [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), str(write), *command],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(write,),
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,  # Ctrl-C is ours to handle: the camera must not go away before the report
            )
        self._listener = threading.Thread(target=self._listen, args=(self._process,), daemon=True)
        self._listener.start()

    def _listen(self, process: subprocess.Popen) -> None:
        with process.stdout as stream:
            for line in iter(lambda: stream.readline(1000), b""):
                self._said.append(line.decode("utf-8", "replace"))
                if self._fatal and self._said[-1].startswith(self._fatal):
                    timer = threading.Timer(_END_S, _kill, [process])
                    timer.daemon = True
                    timer.start()

    def _kill(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process.wait()


def _kill(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # before Python 3.10, where another thread has just seen it end
        process.kill()


def last_words(lines: Iterable[str]) -> str:
    """The line that explains best why a program ended: GStreamer prints the cause first, and then its consequences."""
    said = [" ".join(line.split())[:200] for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("ERROR: from") or "erroneous pipeline" in line]
    return (errors or said[-1:] or ["it said nothing"])[0]


def _widen(descriptor: int) -> None:
    import fcntl

    with suppress(OSError):  # not allowed: it is only slower
        fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)
