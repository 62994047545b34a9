"""Sends the missing pieces of a bundle to a drone over several connections at once, until each has arrived.

The first connection is alone. Each piece that arrives adds two connections, up to `CONNECTIONS`, while pieces are left
to send. A radio's packet loss slows down each TCP connection separately, whatever its congestion control, so many
connections lose little. A slow link, where a piece takes long, gets few connections, so a cut loses little. Only the
first connection retries, and only it may ask for a password; the others come and go.

The module knows nothing of the use of the pieces; `bootstrap/receive.py` is the other end.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.installation import assembly
from edgeprune_device.progress import Line
from edgeprune_device.trust.bundle import Bundle

from edgeprune.drones import bootstrap
from edgeprune.drones.ssh import Link, LinkError, SshSession, shown

__all__ = ["CONNECTIONS", "BundlePiece", "held", "lacking", "pieces", "send"]

CONNECTIONS = 16
_SHARE_BYTES = 1 << 18  # below this size another connection is not worth its login
_UNDER_WAY = 2  # pieces per connection, so that it never waits for an answer
#: A connection is late if it has not answered for this many seconds, and for this many times the usual time of a
#: piece. An idle connection then sends its piece as well, because TCP waits longer after each loss of the same packet.
_LATE_S, _LATE = 2, 3
_BLOCK_BYTES = 1 << 16
_SCRIPT = 'exec "$1" -I -c "$2" "$3" $4'


class BundlePiece(NamedTuple):
    """A range of the bundle's file.

    Attributes:
        name: Its name on the drone.
        offset_bytes: Its beginning in the file.
        size_bytes: Its length.
        sha256: Its hash, hexadecimal.
    """

    name: str
    offset_bytes: int
    size_bytes: int
    sha256: str


def pieces(bundle: Bundle, held: Iterable[str]) -> list[BundlePiece]:
    """The envelope, and every piece of the payloads whose SHA-256 is not among `held`."""
    ranges = [(assembly.ENVELOPE, 0, bundle.envelope_bytes)]
    for payload in assembly.missing(bundle.manifest, held):
        begin = bundle.envelope_bytes + payload.offset_bytes
        ranges += [(p.name, begin + p.offset_bytes, p.size_bytes) for p in assembly.pieces(payload)]
    bundle_pieces = []
    with open(bundle.path, "rb") as source:
        for name, at, size in ranges:
            source.seek(at)
            bundle_pieces.append(BundlePiece(name, at, size, hashlib.sha256(source.read(size)).hexdigest()))
    return bundle_pieces


def held(link: Link, python: str, folder: str) -> dict[str, str]:
    """Name -> SHA-256 of the pieces in a folder on the drone.

    Args:
        link: The link to the drone.
        python: The Python to run there.
        folder: The folder there.
    """
    answer = link.run(_SCRIPT, python, bootstrap.source("receive"), folder, "held", timeout_s=600)
    return dict(re.findall(r"^(\S+) ([0-9a-f]{64})$", answer.decode("ascii", "replace"), re.M))


def lacking(pieces: Sequence[BundlePiece], held: dict[str, str]) -> list[BundlePiece]:
    """The pieces that are missing or damaged there."""
    return [piece for piece in pieces if held.get(piece.name) != piece.sha256]


def send(
    link: Link, path: Path, pieces: Sequence[BundlePiece], python: str, folder: str, *, connections: int = CONNECTIONS
) -> None:
    """Send pieces of a file into a folder on the drone. After an interruption, the drone keeps the pieces that arrived.

    Args:
        link: The link to the drone.
        path: The bundle's file.
        pieces: The pieces to send.
        python: The Python to run there.
        folder: The folder there.
        connections: The largest number of connections.

    Raises:
        LinkError: The link failed for good.
        RemoteError: Space or permission is missing on the drone.
    """
    if not pieces:
        return
    with Line() as line:
        total = sum(piece.size_bytes for piece in pieces)

        def show(arrived_bytes: int, count: int) -> None:
            over = f" over {count} connections" if count > 1 else ""
            line(f"{link.name}: {arrived_bytes / total:.0%} of {total / 1e6:.1f} MB{over}")

        most = min(connections, 1 + total // _SHARE_BYTES)
        with _Crew(link, path, _Work(pieces), (python, bootstrap.source("receive"), folder), most, show) as crew:
            crew.run()


class _Work:
    """The pieces to send, under way and arrived; all connections share this object."""

    def __init__(self, pieces: Sequence[BundlePiece]) -> None:
        self._waiting = deque(pieces)
        # Piece under way -> the time when it was sent, or became the next to be answered.
        self._since: dict[BundlePiece, float] = {}
        self._usual_s = 0.0
        self._left = set(pieces)
        self._changed = threading.Condition()
        self._over = False
        self.arrived_bytes = 0

    @property
    def done(self) -> bool:
        return not self._left

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def take(self, wait: bool) -> BundlePiece | None:
        """The next piece to send, or None.

        Args:
            wait: Wait until a piece is given back, or is late on another connection.
        """
        with self._changed:
            while True:
                if self.done or self._over:
                    return None
                now = time.monotonic()
                if self._waiting:
                    piece = self._waiting.popleft()
                elif not wait:
                    return None
                else:
                    late = self._late(now)
                    if late is None:
                        self._changed.wait(1)
                        continue
                    piece = late
                self._since[piece] = now
                return piece

    def _late(self, now: float) -> BundlePiece | None:
        """The piece that has been under way the longest, if it is late."""
        oldest = min(self._since, key=self._since.__getitem__, default=None)
        limit_s = max(_LATE_S, _LATE * self._usual_s)
        return oldest if oldest is not None and now - self._since[oldest] >= limit_s else None

    def arrived(self, piece: BundlePiece, behind: Iterable[BundlePiece] = ()) -> None:
        """Note that a piece has arrived.

        Args:
            piece: The piece.
            behind: The pieces that the same connection has sent after it.
        """
        with self._changed:
            now = time.monotonic()
            since = self._since.pop(piece, None)
            if since is not None:
                self._usual_s += 0.2 * (now - since - self._usual_s)
            self._since.update((other, now) for other in behind if other in self._since)
            if piece in self._left:
                self._left.remove(piece)
                self.arrived_bytes += piece.size_bytes
            if self.done:
                self._changed.notify_all()

    def give_back(self, pieces: Iterable[BundlePiece]) -> None:
        """Return pieces that may not have arrived."""
        with self._changed:
            for piece in pieces:
                if self._since.pop(piece, None) is not None:
                    self._waiting.append(piece)
            self._changed.notify_all()

    def end(self) -> None:
        """Send nothing more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()


class _Crew:
    """The connections that share one `_Work`."""

    def __init__(
        self,
        link: Link,
        path: Path,
        work: _Work,
        receiver: tuple[str, str, str],
        connections: int,
        show: Callable[[int, int], None],
    ) -> None:
        self._link, self._path, self._work, self._receiver = link, path, work, receiver
        self._most, self._show = connections, show
        self._lock = threading.Lock()
        self._helpers: dict[threading.Thread, Link] = {}
        self._sessions: set[SshSession] = set()
        self._error: EdgepruneError | None = None

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._most = 0
            helpers = dict(self._helpers)
        self._stop()
        for thread, link in helpers.items():
            link.close()
            thread.join()

    def run(self) -> None:
        """Send until everything has arrived."""
        self._link.patiently(self._first, lambda: self._work.arrived_bytes)

    def _first(self) -> None:
        try:
            if not self._work.done:
                self._serve(self._link)
        except EdgepruneError:
            if not self._work.done and self._error is None:
                raise
        if self._error is not None:
            raise self._error

    def _help(self, link: Link) -> None:
        try:
            with link:
                self._serve(link)
        except LinkError as error:
            if error.lasting:  # for example, a login that needs a password
                self._most = 1
        except EdgepruneError as error:
            self._error = error
            self._stop()
        finally:
            with self._lock:
                del self._helpers[threading.current_thread()]

    def _grow(self) -> None:
        with self._lock:
            for _ in range(2):
                if not self._work.waiting or len(self._helpers) + 1 >= self._most:
                    return
                link = self._link.another()
                thread = threading.Thread(target=self._help, args=(link,), daemon=True)
                self._helpers[thread] = link
                thread.start()

    def _stop(self) -> None:
        """Stop all connections."""
        self._work.end()
        with self._lock:
            for session in self._sessions:
                session.stop()

    def _serve(self, link: Link) -> None:
        """Send pieces over one connection until none is left."""
        sent: deque[BundlePiece] = deque()
        with (
            link.talk(_SCRIPT, *self._receiver) as session,
            session.moving() as moved,
            self._known(session),
            open(self._path, "rb") as source,
        ):
            try:
                while True:
                    while len(sent) < _UNDER_WAY and (piece := self._work.take(wait=not sent)) is not None:
                        sent.append(piece)
                        if not self._write(session, source, piece, moved):
                            break
                    if not sent:
                        session.feed(b"")
                        session.end()
                        return
                    self._answered(link, session, sent[0])
                    moved(sent[0].size_bytes)  # the card there may be slower than the link
                    self._arrived(sent.popleft(), sent)
            finally:
                self._work.give_back(sent)

    @staticmethod
    def _write(session: SshSession, source: BinaryIO, piece: BundlePiece, moved: Callable[[int], None]) -> bool:
        """Write a piece. False: the other end reads no more."""
        source.seek(piece.offset_bytes)
        left, head = piece.size_bytes, f"{piece.name} {piece.size_bytes} {piece.sha256}\n".encode("ascii")
        while True:
            data = source.read(min(left, _BLOCK_BYTES))
            left -= len(data)
            if not session.write(head + data):
                return False
            moved(len(data))
            if not left or not data:
                return True
            head = b""

    @staticmethod
    def _answered(link: Link, session: SshSession, piece: BundlePiece) -> None:
        line = session.stdout.readline(200)
        if not line:
            session.end()
            raise LinkError(f"{link.target}: the link broke")
        if line != f"{piece.name}\n".encode("ascii"):
            raise InputError(
                f"{link.target}: unexpected answer after a piece (found {shown(line.decode('ascii', 'replace'))!r}, "
                f"expected {piece.name})"
            )

    def _arrived(self, piece: BundlePiece, behind: Iterable[BundlePiece]) -> None:
        self._work.arrived(piece, behind)
        self._show(self._work.arrived_bytes, len(self._helpers) + 1)
        if self._work.done:
            self._stop()
        else:
            self._grow()

    @contextlib.contextmanager
    def _known(self, session: SshSession) -> Iterator[None]:
        with self._lock:
            self._sessions.add(session)
        try:
            yield
        finally:
            with self._lock:
                self._sessions.discard(session)
