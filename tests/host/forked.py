"""Runs Python code in a separate process like `python -c`, without the five seconds to load PyTorch.

A server, started with the first process, has loaded the other libraries and forks for each process, which can be killed
like any other. Tests that need a fresh interpreter start one.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from pathlib import Path

_LOADED = [
    "numpy", "onnx", "onnxruntime", "onnxsim", "PIL.Image", "torch", "torch._dynamo", "ultralytics",
    "ultralytics.data", "ultralytics.engine.trainer", "ultralytics.models.yolo", "ultralytics.nn.tasks",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_LOADED)

_BEGIN = """
import os, sys
sys.argv[1:] = argv
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
for number, path in enumerate(streams, 1):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
exec(compile(text, "<test>", "exec"), {"__name__": "__main__"})
"""


class Process:
    """A running `python -c text *argv`; `out` and `err` are the files of its output."""

    def __init__(self, text: str, *argv, folder: Path) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        self.out.write_text("")
        self.err.write_text("")
        given = {
            "text": text, "argv": [str(word) for word in argv], "folder": os.getcwd(),
            "environment": dict(os.environ), "streams": [str(self.out), str(self.err)],
        }  # fmt: skip
        self._process = _context.Process(target=exec, args=(_BEGIN, given))
        self._process.start()
        self.pid = self._process.pid

    def until(self, condition, seconds: float = 120.0) -> None:
        """Wait until the condition holds; raise AssertionError with the output if the process or the time ends
        first.
        """
        end = time.monotonic() + seconds
        while not condition():
            alive = self._process.is_alive() and time.monotonic() < end
            assert alive or condition(), f"the condition never held\n{self.err.read_text()[-3000:]}"
            time.sleep(0.02)

    def kill(self, number: int) -> int:
        """Send the signal, wait for the end, and return the exit code."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self, seconds: float = 240.0) -> int:
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise AssertionError(f"still running after {seconds:g} s\n{self.err.read_text()[-3000:]}")
        return code


def run(text: str, *argv, folder: Path) -> subprocess.CompletedProcess:
    process = Process(text, *argv, folder=folder)
    code = process.wait()
    return subprocess.CompletedProcess(text, code, process.out.read_text(), process.err.read_text())
