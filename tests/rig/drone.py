"""An emulated drone: an arm64 root file system under qemu-user, with its own processes, disk, network, /proc and /sys
and an SSH server; and the ground station that reaches it.

Limits: the CPU is emulated, so no latency measured on it means anything. It has no systemd and no GPU, and the kernel
is this machine's. Its disk is a real ext4 of its own size, so that it can become full. `kill` ends its processes, but
this machine's page cache keeps the data that they wrote, so it is not a power cut.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from .link import DRONE, Link, die_with_parent

#: The /proc/cpuinfo of an Orin. ONNX Runtime reads the CPU's features from it; this machine's are those of x86-64.
CPUINFO = "".join(
    f"processor\t: {i}\nBogoMIPS\t: 62.50\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    for i in range(2)
)
_DISK_BYTES = 1500 << 20
#: The first process of the drone. Its mounts are invisible to other processes and end with it.
_BOOT = """
set -e
cd "$1"
mount --make-rprivate /
mkdir -p disk root
mount -o loop,noatime disk.img disk
mkdir -p disk/upper disk/work
mount -t overlay -o lowerdir="$2",upperdir=disk/upper,workdir=disk/work overlay root
cd root
mount -t proc proc proc
mount --bind ../cpuinfo proc/cpuinfo
mount --rbind ../sys sys
mount -t tmpfs -o mode=755,size=1m tmpfs dev
for node in null zero full random urandom tty; do : >dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777,size=64m tmpfs dev/shm
mount -t tmpfs -o mode=755,size=16m tmpfs run
mkdir run/sshd
hostname drone
exec chroot . /usr/sbin/sshd -D -e
"""


class Drone:
    """One board, switched off until `start`.

    folder: contains its disk and its /sys. A second Drone with the same folder is the same board.
    """

    def __init__(self, folder: Path, base: Path, link: Link, public_key: str) -> None:
        self.folder, self.base, self.link = folder, base, link
        self._init: subprocess.Popen | None = None
        self._sshd = 0
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpuinfo").write_text(CPUINFO)
        self.sys = folder / "sys"
        self.board(None)
        disk = folder / "disk.img"
        if not disk.exists():
            with open(disk, "wb") as file:
                file.truncate(_DISK_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(disk)], check=True)
        self._public_key = public_key

    def board(self, tree: Path | None) -> None:
        """The content of /sys from the next start on: a copy of `tree`, a FAKE board; None: no sensors. The files of
        `drone.sys` may be written while the drone runs, which changes its readings."""
        shutil.rmtree(self.sys, ignore_errors=True)
        if tree is None:
            self.sys.mkdir()
        else:
            shutil.copytree(tree, self.sys, symlinks=True)
        cpu = self.sys / "devices/system/cpu"
        cpu.mkdir(parents=True, exist_ok=True)
        for name in ("possible", "present", "online"):
            (cpu / name).write_text("0-1\n")

    def start(self) -> None:
        """Boot, and wait until SSH answers."""
        if self.on:
            raise RuntimeError("the drone is on")
        log = open(self.folder / "console", "wb")  # noqa: SIM115  open until the drone ends
        with log:
            self._init = subprocess.Popen(
                self.link.drone.enter(
                    "unshare", "--mount", "--pid", "--fork", "--uts", "--ipc", "--kill-child",
                    "sh", "-c", _BOOT, "boot", str(self.folder), str(self.base),
                ),
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "QEMU_CPU": "cortex-a76", "HOME": "/root"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while "Server listening" not in self._console():
            if self._init.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the drone did not boot: {self._console()[-2000:]}")
            time.sleep(0.05)
        self._sshd = self._child()
        folder = self.root / "root/.ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "authorized_keys").write_text(self._public_key)

    @property
    def on(self) -> bool:
        return self._init is not None and self._init.poll() is None

    @property
    def root(self) -> Path:
        """Its file system, as a path on this machine while it is on."""
        return Path(f"/proc/{self._sshd}/root")

    def exec(self, command: str, *, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess:
        """Run a shell command on the drone as root, not over the link."""
        done = subprocess.run(
            ["nsenter", f"--target={self._sshd}", "--mount", "--uts", "--ipc", "--net", "--pid", "--root",
             f"--wd={self.root}/root", "/bin/sh", "-c", command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "QEMU_CPU": "cortex-a76"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"on the drone: {command}\nexit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def kill(self) -> None:
        """kill -9 of all its processes, as when its power fails. The link falls silent first, so that no last packet
        reaches the ground."""
        if self._init is None:
            return
        self.link.cut()
        with suppress(ProcessLookupError):
            if self._sshd:
                os.kill(self._sshd, 9)  # the end of a name space's first process ends all others
            else:
                self._init.kill()
        self._init.wait()
        self._init, self._sshd = None, 0
        self.link.heal()

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Fill the disk except for `leave_bytes`."""
        filler = self.root / "var/filler"
        with open(filler, "ab") as file:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, self._free_bytes() - leave_bytes)
            if not leave_bytes:
                with suppress(OSError):  # the last blocks, which the file system reserves for its tables
                    while True:
                        os.write(file.fileno(), b"\0" * 4096)

    def empty_disk(self) -> None:
        (self.root / "var/filler").unlink(missing_ok=True)

    def opened(self, name: str) -> bool:
        """Whether a process on the drone has a file open that has, or had, this name."""
        space = os.readlink(f"/proc/{self._sshd}/ns/pid")
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(process / "ns/pid") != space:
                    continue
                if any(name in os.readlink(link) for link in (process / "fd").iterdir()):
                    return True
        return False

    def _free_bytes(self) -> int:
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize

    def _console(self) -> str:
        return (self.folder / "console").read_text(errors="replace") if self.on or self._init else ""

    def _child(self) -> int:
        """The process ID, outside, of the first process inside."""
        listed = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        return int(listed[0])


class Ground:
    """The ground station: this machine's Python and edgeprune, with its own home and no network except the link."""

    def __init__(self, folder: Path, base: Path, link: Link) -> None:
        self.folder, self.link = folder, link
        self.home = folder / "home"
        ssh, tools = folder / "ssh", folder / "bin"
        for made in (self.home, ssh, tools):
            made.mkdir(parents=True)
        key = ssh / "id_ed25519"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ground", "-f", str(key)], check=True)
        self.public_key = key.with_suffix(".pub").read_text()
        host_key = (base / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
        (ssh / "known_hosts").write_text(f"{DRONE} {host_key}")
        (ssh / "config").write_text(
            f"Host drone\n  HostName {DRONE}\n  IdentityFile {key}\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {ssh}/known_hosts\n  StrictHostKeyChecking yes\n  BatchMode yes\n"
        )
        # ssh takes the user's home from passwd, not from HOME, so a wrapper passes this configuration as if it were in
        # ~/.ssh.
        self._tool(tools / "ssh", ["/usr/bin/ssh", "-F", str(ssh / "config")])
        self.env = {
            "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(self.home), "LANG": "C.UTF-8", "YOLO_VERBOSE": "False",
        }  # fmt: skip

    @staticmethod
    def _tool(path: Path, argv: list[str]) -> None:
        path.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        path.chmod(0o755)

    def start(self, *argv: str, **env: str) -> subprocess.Popen:
        """Start a program on the ground, with text pipes."""
        return subprocess.Popen(
            self.link.ground.enter(*argv), env={**self.env, **env}, cwd=self.folder, preexec_fn=die_with_parent,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *argv: str, timeout: float = 180, **env: str) -> subprocess.CompletedProcess:
        """Run a program to its end."""
        process = self.start(*argv, **env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{shlex.join(argv)}: not finished in {timeout:g} s\n{out}{err}") from None
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    @staticmethod
    def edgeprune_argv(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "edgeprune", *arguments]

    def edgeprune(self, *arguments: str, timeout: float = 180, **env: str) -> subprocess.CompletedProcess:
        return self.run(*self.edgeprune_argv(*arguments), timeout=timeout, **env)

    def ssh(self, command: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """Run a shell command on the drone, over the link."""
        return self.run("ssh", "root@drone", command, timeout=timeout)
