"""The output of the service's lines: `open(text, listener, beat) -> Sink`.

    "-"           standard output; waits for its reader, as any program in a pipe does
    FILE          appended to, line by line; opened again where it was moved away (logrotate)
    unix:PATH     a socket for several clients, which read whole lines from the moment they connect

A file on a full disk, and a client that does not read, lose whole lines, never parts of them, and do not delay the
service. The module does not read the content of a line.
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

from edgeprune_device.errors import InputError

__all__ = ["FileSink", "Sink", "SocketSink", "StreamSink", "check", "listening", "open"]

SOCKET = "unix:"
_MOST_CLIENTS = 16
_SEND_BUFFER_BYTES = 1 << 20  # some hundred frames: a client may be late, and not for long
_LONGEST_PATH_BYTES = 107  # of a Unix socket
_PIECE_BYTES = 4096  # PIPE_BUF: a pipe that poll() calls writable takes so much without waiting
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
    """Check whether an output can work; it makes no file.

    Args:
        text: "-", a file, or unix:PATH.

    Raises:
        InputError: The output can never be written.
    """
    if not text:
        raise InputError("--output is empty; give -, a file, or unix:PATH")
    if text == "-":
        return
    if text.startswith(SOCKET):
        path = text[len(SOCKET) :]
        if not path or len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
            raise InputError(f"{text}: a socket's path has 1 to {_LONGEST_PATH_BYTES} bytes")
    else:
        path = text
        if os.path.isdir(path):
            raise InputError(f"{path}: is a folder; give a file, or unix:PATH for a socket")
        with suppress(OSError):
            mode = os.stat(path).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                raise InputError(f"{path}: is a pipe or a socket, where a file is meant; unix:PATH makes a socket")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise InputError(f"{path}: the folder {folder} does not exist; make it first")


@contextmanager
def listening(text: str) -> Iterator[socket.socket]:
    """The listening socket of unix:PATH, to which clients can connect as long as the block lasts.

    A socket that a killed predecessor left is replaced.

    Args:
        text: unix:PATH.

    Raises:
        InputError: Another program listens there, the path is no socket, or it cannot be made.
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
            os.chmod(path, 0o660)  # a client needs the right to write there: this user and its group
            mine = os.stat(path)
            listener.listen(_MOST_CLIENTS)
        except OSError as error:
            raise InputError(f"{path}: cannot listen there ({str(error.strerror or error).lower()})") from error
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(os.stat(path), mine):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise InputError(f"{path}: is there already and is no socket; give another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(1.0)
        try:
            knocking.connect(path)
        except ConnectionRefusedError:  # the file is there without a listener
            os.unlink(path)
            return
        except OSError:
            pass
    raise InputError(f"{path}: another program listens there")


def open(text: str, listener: int, beat: Callable[[], None], stdout: int = 1) -> Sink:
    """Open the output.

    Args:
        text: "-", a file, or unix:PATH.
        listener: Descriptor of the socket that `listening` made.
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
    """A file by its path, or one that is open already.

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
                raise InputError(f"{path}: cannot be written ({str(error.strerror or error).lower()})") from error

    def write(self, line: bytes) -> int:
        """Write a line; 1 where the disk does not take it, else 0."""
        try:
            if self._path is not None and (self._descriptor < 0 or time.monotonic() >= self._look_at):
                self._look()
            written = os.write(self._descriptor, line)
            if written == len(line):
                self.problem = None
                return 0
            # The disk is full in the middle of a line. The part is removed, so that readers find whole lines only.
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            os.lseek(self._descriptor, -written, os.SEEK_CUR)  # for one that was not opened to append
            self.problem = "no space left on device"
        except OSError as error:
            self.problem = str(error.strerror or error).lower()
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
        # A last line that a power cut left incomplete must not become the begin of the next one.
        if stat.S_ISREG(now.st_mode) and now.st_size and os.pread(self._descriptor, 1, now.st_size - 1) != b"\n":
            with suppress(OSError):
                os.write(self._descriptor, b"\n")

    def _look(self) -> None:
        """Open the path again where it no longer names this file."""
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
    """The clients of a listening socket. Each gets every line from its connection on, or loses whole lines.

    Args:
        listener: The listening socket.
    """

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self._clients: List[_Client] = []
        # In a thread, which sleeps until a client connects: a check at each frame would cost time at each frame.
        threading.Thread(target=self._accept, name="edgeprune-clients", daemon=True).start()

    def write(self, line: bytes) -> int:
        """Write a line to every client, and return the number of clients that did not get it."""
        if not self._clients:
            return 0
        lost, gone = 0, []
        for client in self._clients:
            try:
                lost += not client.send(line)
            except OSError:
                gone.append(client)
        for client in gone:
            self._clients.remove(client)
            client.close()
        self.problem = "a client of the socket reads too slowly" if lost else None
        return lost

    def close(self) -> None:
        """Close the clients. The listening socket stays open, as it belongs to the supervisor."""
        for client in self._clients:
            client.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                time.sleep(1.0)  # too many open files; the present clients continue
                continue
            if len(self._clients) < _MOST_CLIENTS:
                self._clients.append(_Client(connection))
            else:
                connection.close()


class _Client:
    def __init__(self, connection: socket.socket):
        self._connection, self._rest = connection, b""
        connection.setblocking(False)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    def send(self, line: bytes) -> bool:
        """Send a line. False: the buffer is full, and the line is lost to this client. OSError: the client has gone."""
        try:
            if self._rest:  # of a line that was begun
                self._rest = self._rest[self._connection.send(self._rest) :]
                if self._rest:
                    return False
            self._rest = line[self._connection.send(line) :]
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._connection.close()
