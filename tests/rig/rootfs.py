"""A real arm64 root file system like that of a flight computer: Debian's packages, unpacked once and kept.

bookworm has Python 3.11 and glibc 2.36; bullseye has Python 3.9 and glibc 2.31, similar to JetPack 5. None of it runs
during the build: packages are unpacked, and the few effects of their scripts are done by hand.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import urllib.request
from contextlib import contextmanager
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
#: suite -> its Python
PYTHON = {"bookworm": "3.11", "bullseye": "3.9"}
#: The packages of a small Ubuntu or Debian on a board: a shell, its tools, Python without headers or compiler, SSH.
PACKAGES = (
    "base-files,base-passwd,bash,ca-certificates,coreutils,dash,findutils,grep,gzip,hostname,libc-bin,libstdc++6,mawk,"
    "mount,netbase,openssh-server,openssh-sftp-server,procps,python3,python3-venv,rsync,sed,tar,util-linux"
)
SYSTEMD = ",systemd,systemd-sysv,udev,kmod"
#: Part of the name of the folder: change it when `build` changes.
VERSION = 1


class MirrorSilent(Exception):
    """The Debian mirror does not answer, and no earlier result exists."""


def cache() -> Path:
    """$EDGEPRUNE_RIG_CACHE, or ~/.cache/edgeprune-rig."""
    return Path(os.environ.get("EDGEPRUNE_RIG_CACHE") or Path.home() / ".cache" / "edgeprune-rig").absolute()


def get(suite: str = "bookworm", systemd: bool = False) -> Path:
    """The folder, created if necessary. It is read-only afterwards: a drone writes to its own layer.

    systemd: include systemd, for a complete machine.
    """
    folder = cache() / f"{suite}{'-systemd' if systemd else ''}-arm64-v{VERSION}"
    with locked(folder.name):
        if not folder.is_dir():
            work = folder.with_name(f".{folder.name}.work")
            shutil.rmtree(work, ignore_errors=True)
            build(work, suite, systemd)
            work.rename(folder)
    return folder


@contextmanager
def locked(name: str):
    """Let only one process at a time create this entry of the cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(folder: Path, suite: str, packages: str) -> None:
    """Unpack these arm64 packages and their dependencies as files.

    Raises:
        MirrorSilent: The mirror does not answer..
        RuntimeError: mmdebstrap failed; the message contains its output.
    """
    try:
        urllib.request.urlopen(f"{MIRROR}/dists/{suite}/InRelease", timeout=20).close()
    except OSError as error:
        raise MirrorSilent(f"the Debian mirror {MIRROR} does not answer ({error})") from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    merged_usr = "/usr/share/mmdebstrap/hooks/merged-usr"
    done = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=extract", "--arch=arm64", f"--hook-dir={merged_usr}",
         f"--include={packages}", suite, str(folder), MIRROR],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"mmdebstrap {suite}: {done.stderr.strip()[-2000:]}")


def build(folder: Path, suite: str, systemd: bool) -> None:
    """Unpack the packages, and configure the system."""
    unpack(folder, suite, PACKAGES + (SYSTEMD if systemd else ""))
    if systemd:
        _systemd(folder)
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "home"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "root").chmod(0o700)
    if not (folder / "bin/sh").exists():
        (folder / "bin/sh").symlink_to("dash")
    if not (folder / "usr/bin/awk").exists():
        (folder / "usr/bin/awk").symlink_to("mawk")
    _users(folder)
    _ssh(folder)
    (folder / "etc/hostname").write_text("drone\n")
    (folder / "etc/hosts").write_text("127.0.0.1 localhost drone\n")
    (folder / "etc/resolv.conf").unlink(missing_ok=True)
    (folder / "etc/resolv.conf").write_text("")  # no internet on the drone
    _byte_compile(folder, PYTHON[suite])


def _users(folder: Path) -> None:
    """Create the users of base-passwd and openssh-server; root has no password, only a key."""
    masters = folder / "usr/share/base-passwd"
    users = (masters / "passwd.master").read_text().replace(":*:", ":x:")
    users += "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "etc/passwd").write_text(users)
    (folder / "etc/group").write_text((masters / "group.master").read_text().replace(":*:", ":x:"))
    shadow = folder / "etc/shadow"
    shadow.write_text("".join(f"{line.split(':')[0]}:*:19000:0:99999:7:::\n" for line in users.splitlines()))
    shadow.chmod(0o640)


def _ssh(folder: Path) -> None:
    etc = folder / "etc/ssh"
    for old in etc.glob("ssh_host_*"):
        old.unlink()
    key = etc / "ssh_host_ed25519_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "drone", "-f", str(key)], check=True)
    (etc / "sshd_config").write_text(
        "HostKey /etc/ssh/ssh_host_ed25519_key\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        "UsePAM no\nUseDNS no\nSubsystem sftp /usr/lib/openssh/sftp-server\n"
        # A session does not inherit its server's environment, but its programs are also emulated.
        "SetEnv QEMU_CPU=cortex-a76\n"
    )


def _systemd(folder: Path) -> None:
    """No questions at the first start, and no other program on the serial line."""
    (folder / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for unit in ("systemd-firstboot.service", "serial-getty@ttyAMA0.service"):
        (folder / "etc/systemd/system" / unit).symlink_to("/dev/null")


def _byte_compile(folder: Path, version: str) -> None:
    """Compile to bytecode, as python3's scripts do on installation. Bytecode is independent of the CPU; without a
    Python of that version here, the drone compiles at run time, which takes longer."""
    candidates = [Path(f"/usr/bin/python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for python in (p for p in candidates if p.exists()):
        subprocess.run(
            [str(python), "-I", "-m", "compileall", "-q", "-s", str(folder), "-x", r"/(test|tests|lib2to3)/",
             str(folder / f"usr/lib/python{version}")],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return
