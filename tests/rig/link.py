"""Two name spaces and the link between them, a pair of virtual network cards that can be made to fail.

    ground 10.77.0.1  ----  10.77.0.2 drone

Each name space lives as long as a process that holds it, which dies with the test run, even after `kill -9`; the kernel
then frees everything. This machine's own network is not touched, and neither side reaches it. Not every kernel has
netem, so random drops in nftables give the loss, tc's token bucket the rate, and the drone's card goes down for a cut.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time

GROUND, DRONE = "10.77.0.1", "10.77.0.2"
_CARD = "radio"


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel kills this process when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class NetworkSpace:
    """A separate network name space with only a loopback card."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"], preexec_fn=die_with_parent, stdin=subprocess.DEVNULL
        )
        self.pid = self._holder.pid
        mine = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{self.pid}/ns/net") == mine:
            if self._holder.poll() is not None or time.monotonic() > deadline:
                raise OSError("cannot create a network name space")
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs `argv` inside."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *argv]

    def run(self, *argv: str, **options) -> str:
        """Run a command to its end, and return its output."""
        return subprocess.run(self.enter(*argv), check=True, stdout=subprocess.PIPE, text=True, **options).stdout

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Link:
    """The only connection between ground and drone."""

    def __init__(self) -> None:
        self.ground, self.drone = NetworkSpace(), NetworkSpace()
        other = ("peer", "name", _CARD, "netns", str(self.drone.pid))
        self.ground.run("ip", "link", "add", _CARD, "type", "veth", *other)
        for side, address in ((self.ground, GROUND), (self.drone, DRONE)):
            side.run("ip", "address", "add", f"{address}/24", "dev", _CARD)
            side.run("ip", "link", "set", _CARD, "up")

    def cut(self) -> None:
        """Drop all packets silently."""
        self.drone.run("ip", "link", "set", _CARD, "down")

    def heal(self) -> None:
        """End the cut; loss and rate are unchanged."""
        self.drone.run("ip", "link", "set", _CARD, "up")

    def lossy(self, percent: float) -> None:
        """Drop this share of all packets at random in each direction; 0 ends it."""
        for side in (self.ground, self.drone):
            rules = "add table inet loss; delete table inet loss;"
            if percent:
                rules += (
                    "add table inet loss; add chain inet loss input { type filter hook input priority 0; };"
                    f'add rule inet loss input iifname "{_CARD}" numgen random mod 1000 < {round(percent * 10)} drop'
                )
            side.run("nft", "-f", "-", input=rules)

    def rate(self, kbit_per_second: int | None) -> None:
        """Limit the rate in each direction; None ends it."""
        for side in (self.ground, self.drone):
            subprocess.run(side.enter("tc", "qdisc", "del", "dev", _CARD, "root"), capture_output=True)  # if present
            if kbit_per_second:
                side.run(
                    "tc", "qdisc", "add", "dev", _CARD, "root", "tbf",
                    "rate", f"{kbit_per_second}kbit", "burst", "4kb", "latency", "400ms",
                )  # fmt: skip

    def restore(self) -> None:
        """Restore a good link."""
        self.heal()
        self.lossy(0)
        self.rate(None)

    def close(self) -> None:
        self.ground.close()
        self.drone.close()
