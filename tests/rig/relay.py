"""A radio between two network name spaces, with rate, delay, jitter, loss and cuts.

    ground 10.78.0.1  ----  10.78.0.2 drone

A separate program holds the two ends, a TUN card in each name space, and forwards the packets. Each waits at the sender
(`rate`, with a queue of `_QUEUE_S`; packets that do not fit are lost), may be lost, and arrives after `delay` plus or
minus `jitter`, in order. It is not a model of any particular radio: losses are independent of each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time

from .link import NetworkSpace, die_with_parent

GROUND, DRONE = "10.78.0.1", "10.78.0.2"
_CARD = "far"
_MTU_BYTES = 1500
_QUEUE_S = 0.25


class Relay:
    """The radio; `set` changes it at any time. congestion: TCP's congestion control at both ends."""

    def __init__(self, ground: NetworkSpace, drone: NetworkSpace, congestion: str = "cubic") -> None:
        self._settings: dict = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.relay", str(ground.pid), str(drone.pid)], text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent,
            cwd=os.path.join(os.path.dirname(__file__), "../.."),
        )  # fmt: skip
        assert self._process.stdout.readline() == "ready\n"
        for side, address in ((ground, GROUND), (drone, DRONE)):
            side.run("ip", "address", "add", f"{address}/24", "dev", _CARD)
            side.run("ip", "link", "set", _CARD, "mtu", str(_MTU_BYTES), "up")
            net = ("10.78.0.0/24", "dev", _CARD, "proto", "kernel", "scope", "link", "src", address)
            side.run("ip", "route", "change", *net, "congctl", congestion)

    def set(self, **settings: float | bool) -> None:
        """rate_kbit (each way), delay_ms (one way), jitter_ms, loss_percent (each way), cut (all packets are dropped
        silently)."""
        self._settings.update(settings)
        self._process.stdin.write(json.dumps(self._settings) + "\n")

    def carried(self) -> tuple[int, int]:
        """Bytes of whole IP packets that it has received so far: (to the drone, to the ground)."""
        self._process.stdin.write("count\n")
        up, down = self._process.stdout.readline().split()
        return int(up), int(down)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _Way:
    """One direction: the packets in transit and their times of arrival."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self.free_at = self.last_at = 0.0
        self.flying: list[tuple[float, int, bytes]] = []
        self.carried = 0

    def take(self, settings: dict, now: float) -> None:
        while True:
            try:
                packet = os.read(self.source, 65536)
            except BlockingIOError:
                return
            self.carried += len(packet)
            rate = settings.get("rate_kbit", 0) * 125
            begin = max(now, self.free_at)
            if settings.get("cut") or (rate and begin - now > _QUEUE_S):
                continue
            self.free_at = begin + (len(packet) / rate if rate else 0)
            if random.random() * 100 < settings.get("loss_percent", 0):
                continue
            jitter = random.uniform(-1, 1) * settings.get("jitter_ms", 0)
            self.last_at = max(self.last_at, self.free_at + max(settings.get("delay_ms", 0) + jitter, 0) / 1000)
            heapq.heappush(self.flying, (self.last_at, self.carried, packet))

    def give(self, settings: dict, now: float) -> None:
        while self.flying and self.flying[0][0] <= now:
            packet = heapq.heappop(self.flying)[2]
            if not settings.get("cut"):
                with contextlib.suppress(OSError):  # the card is down
                    os.write(self.target, packet)


def _card(pid: str) -> int:
    """A TUN card in the name space of `pid`."""
    with open(f"/proc/{pid}/ns/net", "rb") as space:
        if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", _CARD.encode(), 0x1001))  # TUNSETIFF: TUN, no header
    return descriptor


def _main(ground: str, drone: str) -> None:
    up, down = _card(ground), _card(drone)
    ways, settings = [_Way(up, down), _Way(down, up)], {}
    print("ready", flush=True)
    while True:
        due = min((way.flying[0][0] for way in ways if way.flying), default=time.monotonic() + 1)
        ready, _, _ = select.select([0, up, down], [], [], max(due - time.monotonic(), 0))
        if 0 in ready:
            text = os.read(0, 65536)
            if not text:
                return
            for line in text.splitlines():  # each line is written at once
                if line == b"count":
                    print(ways[0].carried, ways[1].carried, flush=True)
                else:
                    settings = json.loads(line)
        now = time.monotonic()
        for way in ways:
            if way.source in ready:
                way.take(settings, now)
            way.give(settings, now)


if __name__ == "__main__":
    _main(*sys.argv[1:])
