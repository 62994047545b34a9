"""systemd's notification protocol (sd_notify): a datagram to the socket that $NOTIFY_SOCKET names.

Without a listener a message is dropped.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import Optional

__all__ = ["Notify"]


class Notify:
    """The connection to systemd.

    It removes $NOTIFY_SOCKET and $WATCHDOG_USEC from the environment: they are meant for this process, not for its
    children.

    Attributes:
        watchdog_s: Longest interval at which systemd expects WATCHDOG=1, s; None: systemd does not expect it.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        meant = pid in ("", str(os.getpid()))
        self.watchdog_s: Optional[float] = int(microseconds) / 1e6 if microseconds.isdigit() and meant else None
        self._socket: Optional[socket.socket] = None
        # "@": the abstract name space, whose names begin with a zero byte.
        self._address = "\0" + address[1:] if address[:1] == "@" else address
        if self._address[:1] in ("/", "\0"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def send(self, **fields: object) -> None:
        """Send one datagram, e.g. send(READY=1, STATUS="reads the camera")."""
        if self._socket is None:
            return
        text = "\n".join(f"{name}={' '.join(str(value).split())}" for name, value in fields.items())
        with suppress(OSError):  # systemd is busy, or restarts; the next message comes soon
            self._socket.sendto(text.encode("utf-8", "replace"), self._address)
