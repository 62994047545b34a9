"""A terminal for tests: a program on a real pty, and a screen that understands the sequences that edgeprune writes.

An unknown escape sequence fails the test, because an old terminal would show it as garbage.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass, field

_ESCAPE = re.compile(r"\x1b\[(\d+(?:;\d+)*)?(.)")


@dataclass
class Screen:
    """Rows of text in `columns` columns; text wraps at the last one, as on every terminal."""

    columns: int
    rows: list = field(default_factory=lambda: [""])
    at: int = 0

    def feed(self, text: str) -> None:
        while text:
            if text[0] == "\x1b":
                match = _ESCAPE.match(text)
                assert match and match[2] in "mK", f"no old terminal knows {text[:12]!r}"
                if match[2] == "K":
                    self.rows[-1] = self.rows[-1][: self.at]
                text = text[match.end() :]
                continue
            c, text = text[0], text[1:]
            if c == "\r":
                self.at = 0
            elif c == "\n":
                self.rows.append("")
                self.at = 0
            else:
                assert c.isprintable(), f"{c!r} on a terminal"
                if self.at == self.columns:
                    self.rows.append("")
                    self.at = 0
                self.rows[-1] = f"{self.rows[-1]:<{self.at}}"[: self.at] + c + self.rows[-1][self.at + 1 :]
                self.at += 1

    def lines(self) -> list:
        return [row.rstrip() for row in self.rows if row.strip()]


class Session:
    """A Python program whose standard streams are a terminal; `env` is added to a minimal environment."""

    def __init__(self, code: str, *arguments: str, columns: int = 100, **env: str) -> None:
        self.raw, self._screens = b"", [(0, columns)]
        names = ("PATH", "HOME", "PYTHONPATH", "EDGEPRUNE_HOME", "EDGEPRUNE_SPOOL", "XDG_CACHE_HOME", "VIRTUAL_ENV")
        bare = {k: os.environ[k] for k in names if k in os.environ}
        bare.update({"TERM": "xterm-256color", "LANG": "C.UTF-8", **env})
        self._fd, program = pty.openpty()
        fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        # Not by pty.fork(): a fork of a process that has run OpenVINO ends by SIGSEGV before it executes anything.
        command = ["setsid", "--ctty", sys.executable, "-c", code, *arguments]
        self._process = subprocess.Popen(command, stdin=program, stdout=program, stderr=program, env=bare)
        self._pid = self._process.pid
        os.close(program)

    def until(self, text: str, timeout_s: float = 60) -> "Session":
        """Read until the program has written the text."""
        end = time.monotonic() + timeout_s
        while text.encode() not in self.raw:
            assert time.monotonic() < end and self._read(), f"{text!r} never came: {self.raw.decode()!r}"
        return self

    def resize(self, columns: int) -> None:
        while self._read(0):
            pass
        self._screens.append((len(self.raw), columns))
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def end(self, timeout_s: float = 60) -> int:
        """Read until the program ends; return its exit status, or minus the signal."""
        end = time.monotonic() + timeout_s
        while self._read():
            if time.monotonic() > end:
                os.kill(self._pid, signal.SIGKILL)
        os.close(self._fd)
        return self._process.wait()

    def screen(self) -> list:
        """The final lines; lines from before a resize are unchanged."""
        shown = []
        for (begin, columns), (end, _) in zip(self._screens, [*self._screens[1:], (len(self.raw), 0)]):
            screen = Screen(columns)
            screen.feed(self.raw[begin:end].decode())
            shown += screen.lines()
        return shown

    def frames(self) -> list:
        """Every state of the last line, without colours."""
        text = re.sub(r"\x1b\[[\d;]*[mK]", "", self.raw.decode())
        return [part for part in re.split(r"\r\n|\r|\n", text) if part.strip()]

    def _read(self, wait_s: float = 0.2) -> bool:
        """Read what is available; return False if nothing arrives (wait_s 0) or the program has ended."""
        if not select.select([self._fd], [], [], wait_s)[0]:
            return wait_s > 0
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.raw += data
        return bool(data)
