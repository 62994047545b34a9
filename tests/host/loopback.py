"""A "drone" that is this machine: a real sshd on the loopback, with a separate home, behind a link that can be cut.

It is not another machine or architecture, and has no radio; tests/rig has those.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
SSH = shutil.which("ssh")


class Proxy:
    """A TCP relay to `port`. Each connection carries the next of `budgets` bytes in one direction (the last budget
    stays;
    None: no limit), then breaks. `silent`: nothing passes any more, without an error. `slow`: about 500 kB per second
    and connection."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.budgets: list[int | None] = [None]
        self.silent = self.slow = False
        self.connections = 0
        self._open: set[socket.socket] = set()
        self.carried = 0  # bytes to the host
        self.sent = 0  # bytes to the drone
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def hang_up(self) -> None:
        """Break every connection."""
        for end in list(self._open):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def connections_open(self) -> int:
        return len(self._open)

    def _serve(self) -> None:
        while True:
            try:
                ground, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            budget = self.budgets.pop(0) if len(self.budgets) > 1 else self.budgets[0]
            try:
                drone = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                ground.close()
                continue
            both = ground, drone
            threading.Thread(target=self._relay, args=(drone, ground, budget, both), daemon=True).start()
            threading.Thread(target=self._relay, args=(ground, drone, budget, both), daemon=True).start()

    def _relay(self, source, target, budget, both) -> None:
        left = budget
        self._open.add(source)
        with suppress(OSError):
            while data := source.recv(1 << 14):
                while self.silent:
                    time.sleep(0.05)
                if self.slow:
                    time.sleep(len(data) / 500_000)
                if left is not None:
                    data = data[:left]
                    left -= len(data)
                target.sendall(data)
                if target is both[0]:
                    self.carried += len(data)
                else:
                    self.sent += len(data)
                if left == 0:
                    time.sleep(0.5)  # let the bytes under way arrive, so that tests can count them
                    break
        self._open.discard(source)
        for end in both:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Drone:
    """An sshd with its host key, an accepted user key, and an ssh configuration that names it "drone"."""

    def __init__(self, folder: Path, path: str) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir(parents=True)
        (folder / "ssh").mkdir()
        for name in ("host", "user", "stranger"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / "ssh" / name)],
                check=True,
            )
        shutil.copy(folder / "ssh/user.pub", folder / "ssh/authorized")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (folder / "ssh/sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\n"
            f"HostKey {folder}/ssh/host\nAuthorizedKeysFile {folder}/ssh/authorized\n"
            "PidFile none\nUsePAM no\nPermitRootLogin yes\nStrictModes no\nPasswordAuthentication no\n"
            f"KbdInteractiveAuthentication no\nMaxStartups 100\nSetEnv HOME={self.home} PATH={path}\n"
        )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        self._log = open(folder / "ssh/log", "wb")  # noqa: SIM115  the server's, until it ends
        self._sshd = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(folder / "ssh/sshd_config")], stderr=self._log, stdin=subprocess.DEVNULL
        )
        self.proxy = Proxy(port)
        self.known(folder / "ssh/host.pub")
        self.config = folder / "ssh/config"
        self.configure()
        deadline = time.monotonic() + 10
        while b"listening" not in (folder / "ssh/log").read_bytes():
            assert time.monotonic() < deadline and self._sshd.poll() is None, (folder / "ssh/log").read_text()
            time.sleep(0.02)

    def configure(self, **options: str) -> None:
        """Write the user's ssh configuration."""
        settings = {
            "HostName": "127.0.0.1", "Port": str(self.proxy.port), "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "ssh/user"), "IdentitiesOnly": "yes", "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.folder / "ssh/known"), "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes", "BatchMode": "yes", **options,
        }  # fmt: skip
        self.config.write_text("Host drone\n" + "".join(f"  {key} {value}\n" for key, value in settings.items()))

    def known(self, public: Path | None) -> None:
        """Set the host key in the user's known hosts; None: none."""
        entry = "" if public is None else f"[127.0.0.1]:{self.proxy.port} {public.read_text()}"
        (self.folder / "ssh/known").write_text(entry)

    def ssh(self, command: str) -> subprocess.CompletedProcess:
        """Run a command in the drone's home, like a user."""
        command = f"cd {self.home} && {command}"
        return subprocess.run([SSH, "-F", str(self.config), "drone", command], capture_output=True, text=True)

    def close(self) -> None:
        self.proxy.close()
        self._sshd.terminate()
        self._sshd.wait()
        self._log.close()
