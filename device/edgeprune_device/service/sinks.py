"""The output of the service's lines: `open(text, listener, beat) -> Sink`.

    "-"           standard output; waits for its reader, as any program in a pipe does
    FILE          appended to, line by line; reopened if it was moved away (logrotate)
    unix:PATH     a socket for several clients, each of which reads whole lines after it connects

A full disk, or a client that does not read, loses whole lines, never parts of them, and does not delay the service. The
module does not parse the lines.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Callable, Iterator, List, Optional

from edgeprune_device.errors import InputError, reason
from edgeprune_device.option import named

__all__ = ["FileSink", "Sink", "SocketSink", "StreamSink", "check", "listening", "open"]

SOCKET = "unix:"
_MOST_CLIENTS = 16
_STUCK_S = 10.0  # a client that takes no line for so long gives up its place where another one asks for it
_REFUSAL = b'{"error": "%d clients are connected already, and no more are served"}\n' % _MOST_CLIENTS
_SEND_BUFFER_BYTES = 1 << 20  # a few hundred frames: a client may lag briefly
_LONGEST_PATH_BYTES = 107  # of a Unix socket
_PIECE_BYTES = 4096  # PIPE_BUF: a pipe that poll() reports as writable accepts this much without blocking
_POLL_MS = 500
_LOOK_S = 2.0


class Sink:
    """An output of whole lines.

    Attributes:
        problem: Why the last line was lost; None: it was not.
    """

    problem: Optional[str] = None

    def write(self, line: bytes) -> int:
        """Write a line.

        Returns:
            Number of lines that were lost: 0 or 1, or with several clients up to their number.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the output."""


def check(text: str) -> None:
    """Check that an output can work, without creating a file.

    Args:
        text: "-", a file, or unix:PATH.

    Raises:
        InputError: The output can never be written.
    """
    if not text:
        raise InputError(f"{named('output')}: empty; give -, a file, or unix:PATH")
    if text == "-":
        return
    if text.startswith(SOCKET):
        path = text[len(SOCKET) :]
        if not path or len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
            raise InputError(f"{text}: socket path too long or empty (expected 1 to {_LONGEST_PATH_BYTES} bytes)")
    else:
        path = text
        if os.path.isdir(path):
            raise InputError(f"{path}: is a folder; give a file, or unix:PATH for a socket")
        with suppress(OSError):
            mode = os.stat(path).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                raise InputError(f"{path}: is a pipe or a socket (expected a file); give unix:PATH for a new socket")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InputError(f"{path}: the folder {folder} does not exist; create the folder first")


@contextmanager
def listening(text: str) -> Iterator[socket.socket]:
    """Listen on unix:PATH; clients can connect while the block lasts.

    A socket file left by a killed service is replaced.

    Args:
        text: unix:PATH.

    Raises:
        InputError: Another program listens there, the path is not a socket, or the socket cannot be created.
    """
    path = text[len(SOCKET) :]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            try:
                listener.bind(path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                _remove_stale(path)
                listener.bind(path)
            os.chmod(path, 0o660)  # clients need write permission: this user and its group
            mine = os.stat(path)
            listener.listen(_MOST_CLIENTS)
        except OSError as error:
            raise InputError(f"{path}: cannot listen on this path ({reason(error)})") from error
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(os.stat(path), mine):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise InputError(f"{path}: already exists and is not a socket; remove the file, or give another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(1.0)
        try:
            knocking.connect(path)
        except ConnectionRefusedError:  # the file exists, but nothing listens on it
            os.unlink(path)
            return
        except OSError:
            pass
    raise InputError(f"{path}: another program listens on this path; stop the program, or give another path")


def open(text: str, listener: Optional[int], beat: Callable[[], None], stdout: int = 1) -> Sink:
    """Open the output.

    Args:
        text: "-", a file, or unix:PATH.
        listener: Descriptor of the socket that `listening` made; None if the output is not a socket.
        beat: Called while the output waits for its reader.
        stdout: Descriptor of the standard output.

    Raises:
        InputError: The file cannot be opened now.
    """
    if text.startswith(SOCKET):
        return SocketSink(socket.socket(fileno=listener))
    if text != "-":
        return FileSink(Path(text))
    return FileSink(None, stdout) if stat.S_ISREG(os.fstat(stdout).st_mode) else StreamSink(stdout, beat)


class StreamSink(Sink):
    """A pipe or a terminal.

    Args:
        descriptor: Descriptor of the stream.
        beat: Called while the output waits for its reader.
    """

    def __init__(self, descriptor: int, beat: Callable[[], None]):
        self._descriptor, self._beat = descriptor, beat
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, line: bytes) -> int:
        """Write a line and wait until all of it is written.

        Returns:
            0.

        Raises:
            BrokenPipeError: The reader has gone.
        """
        left = memoryview(line)
        while left:
            if self._poll.poll(_POLL_MS):
                left = left[os.write(self._descriptor, left[:_PIECE_BYTES]) :]
            else:
                self._beat()
        return 0


class FileSink(Sink):
    """A file, given by its path or as an open descriptor.

    Args:
        path: The file; None: use `descriptor`.
        descriptor: Descriptor of an open file.

    Raises:
        InputError: The file cannot be opened now.
    """

    def __init__(self, path: Optional[Path], descriptor: int = -1):
        self._path, self._descriptor = path, descriptor
        self._look_at = 0.0
        if path is not None:
            try:
                self._open()
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({reason(error)})") from error

    def write(self, line: bytes) -> int:
        """Write a line; return 1 if the disk does not accept it, else 0."""
        try:
            if self._path is not None and (self._descriptor < 0 or time.monotonic() >= self._look_at):
                self._look()
            written = os.write(self._descriptor, line)
            if written == len(line):
                self.problem = None
                return 0
            # The disk became full in the middle of a line. The part is removed, so that readers find only whole lines.
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            os.lseek(self._descriptor, -written, os.SEEK_CUR)  # for a descriptor without O_APPEND
            self.problem = "no space left on device"
        except OSError as error:
            self.problem = reason(error)
        return 1

    def close(self) -> None:
        """Close the file."""
        if self._path is not None and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        self._descriptor = os.open(str(self._path), os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        now = os.fstat(self._descriptor)
        self._look_at = time.monotonic() + _LOOK_S
        # A last line that a power cut left incomplete must not become the beginning of the next one.
        if stat.S_ISREG(now.st_mode) and now.st_size and os.pread(self._descriptor, 1, now.st_size - 1) != b"\n":
            with suppress(OSError):
                os.write(self._descriptor, b"\n")

    def _look(self) -> None:
        """Reopen the path if it no longer names this file."""
        self._look_at = time.monotonic() + _LOOK_S
        try:
            now, mine = os.stat(str(self._path)), os.fstat(self._descriptor) if self._descriptor >= 0 else None
            same = mine is not None and (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)
        except FileNotFoundError:
            same = False
        if not same:
            self.close()
            self._open()


class SocketSink(Sink):
    """The clients of a listening socket. Each receives every line after it connects, or loses whole lines.

    Args:
        listener: The listening socket.
    """

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self._clients: List[_Client] = []
        self._refused = 0  # clients since the last line
        # Accept in a thread that sleeps until a client connects; polling would cost time on every frame.
        threading.Thread(target=self._accept, name="edgeprune-clients", daemon=True).start()

    def write(self, line: bytes) -> int:
        """Write a line to every client, and return the number of clients that did not get it."""
        if not self._clients:
            return 0
        (lost, self._refused), gone = (self._refused, 0), []
        refused = lost > 0
        for client in list(self._clients):
            try:
                lost += not client.send(line)
            except OSError:
                gone.append(client)
        for client in gone:
            self._drop(client)
        self.problem = "a client of the socket reads too slowly and misses lines" if lost else None
        if refused:
            self.problem = (
                f"a client was refused, because {_MOST_CLIENTS} clients, the limit, are connected to the socket"
            )
        return lost

    def close(self) -> None:
        """Close the clients. The listening socket belongs to the supervisor and stays open."""
        for client in self._clients:
            client.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                time.sleep(1.0)  # too many open files; existing clients are still served
                continue
            if len(self._clients) >= _MOST_CLIENTS:
                longest = max(self._clients, key=_Client.stuck_s)
                if longest.stuck_s() > _STUCK_S:
                    self._drop(longest)
            if len(self._clients) < _MOST_CLIENTS:
                self._clients.append(_Client(connection))
                continue
            with connection, suppress(OSError):
                self._refused += 1
                connection.setblocking(False)
                connection.send(_REFUSAL)

    def _drop(self, client: _Client) -> None:
        with suppress(ValueError):  # the other thread was first
            self._clients.remove(client)
        client.close()


class _Client:
    def __init__(self, connection: socket.socket):
        self._connection, self._rest = connection, b""
        self._stuck_since: Optional[float] = None
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def send(self, line: bytes) -> bool:
        """Send a line. False: the buffer is full, and this client loses the line. OSError: the client is gone."""
        try:
            if self._rest:  # the rest of a line that was partly sent
                self._rest = self._rest[self._connection.send(self._rest) :]
                if self._rest:
                    return self._is_stuck()
            self._rest = line[self._connection.send(line) :]
        except BlockingIOError:
            return self._is_stuck()
        self._stuck_since = None
        return True

    def stuck_s(self) -> float:
        """For how long it has taken no line, s."""
        since = self._stuck_since
        return 0.0 if since is None else time.monotonic() - since

    def _is_stuck(self) -> bool:
        if self._stuck_since is None:
            self._stuck_since = time.monotonic()
        return False

    def close(self) -> None:
        self._connection.close()
