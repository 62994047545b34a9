"""The drone of the pages: a real sshd on the loopback, in a mount namespace with separate /etc, /opt, /home, /run and
/media, and a user pilot. Its Python has numpy, Pillow, PyNaCl and ONNX Runtime, like the packages of JetPack.

It is not another machine, and has no arm64, GPU or systemd. Its commands are shortened (stand_in).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
STAND_IN = Path(__file__).with_name("stand_in")
#: Packages of this environment that a drone does not have.
_NOT_THERE = ("edgeprune", "_editable", "torch", "ultralytics", "onnxsim", "tensorrt", "nvidia", "distutils", "pip")

_START = """
set -e
mount --make-rprivate /
mount -t tmpfs own {folder}/own
for name in etc opt home run media; do
  mkdir -p {folder}/own/$name {folder}/own/$name.work
  mount -t overlay own -o lowerdir=/$name,upperdir={folder}/own/$name,workdir={folder}/own/$name.work /$name
done
mount --bind {folder}/site {packages}
mkdir -p /run/sshd /home/pilot /media/stick
echo 'pilot:x:0:0:Pilot:/home/pilot:/bin/bash' >>/etc/passwd
echo 'pilot:*:19000:0:99999:7:::' >>/etc/shadow
exec {sshd} -D -e -f {folder}/sshd_config
"""


def missing() -> str | None:
    """The reason why such a drone cannot run here, or None."""
    if not (SSHD and shutil.which("ssh")):
        return "ssh or sshd is missing"
    if os.geteuid() != 0:
        return "needs root: a mount namespace for the drone"
    tried = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w && "
             "mount -t overlay t -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w /etc"]  # fmt: skip
    done = subprocess.run(tried, capture_output=True, text=True)
    return f"no overlay in a mount namespace here ({done.stderr.strip()})" if done.returncode else None


class Drone:
    """`config`: an ssh configuration that names it drone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "own").mkdir()
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (folder / "bin").mkdir()
        base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info[1]}"
        (folder / "bin/python3").symlink_to(base)
        path = f"{folder}/bin:/usr/bin:/bin"
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
            "PidFile none\nUsePAM no\nPermitRootLogin yes\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
            f"SetEnv PATH={path} OMP_NUM_THREADS=1\n"
        )
        (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        self.config = folder / "config"
        self.config.write_text(
            f"Host drone drone-2 jetson\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n"
            f" IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {folder}/known\n"
            " GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n BatchMode yes\n"
        )
        self._log = open(folder / "log", "wb")  # noqa: SIM115  the server's, until it ends
        asked = [base, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        packages = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        _packages(folder / "site")
        start = _START.format(folder=folder, sshd=SSHD, packages=packages)
        self._sshd = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", start],
            stdin=subprocess.DEVNULL, stderr=self._log, stdout=self._log,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while b"listening" not in (folder / "log").read_bytes():
            assert time.monotonic() < deadline and self._sshd.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)

    def put(self, local: Path, remote: str) -> None:
        """Copy a file or a folder to the drone."""
        flags = ["-C", str(local.parent), "-c", local.name]
        packed = subprocess.run(["tar", *flags], check=True, capture_output=True).stdout
        self.run(f"mkdir -p {remote} && tar -C {remote} -x", packed)

    def run(self, command: str, given: bytes = b"") -> None:
        done = subprocess.run(["ssh", "-F", str(self.config), "pilot@drone", command], input=given, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()

    def close(self) -> None:
        self._sshd.kill()  # unshare ignores SIGTERM; SIGKILL also ends its child
        self._sshd.wait()
        self._log.close()


def _packages(folder: Path) -> None:
    """Make the packages of the drone's Python, in place of this machine's."""
    folder.mkdir()
    (folder / "sitecustomize.py").symlink_to(STAND_IN / "sitecustomize.py")
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith(_NOT_THERE):
            (folder / entry.name).symlink_to(entry)
