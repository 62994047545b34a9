"""A real arm64 root file system, as a flight computer's: Debian's own packages, unpacked here, made once and kept.

bookworm has Python 3.11 and glibc 2.36; bullseye Python 3.9 and glibc 2.31, which is JetPack 5's age. Nothing of it
runs while it is made: packages are unpacked, and the few things that their scripts would have done are done by hand.
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
#: What a small Ubuntu or Debian on a board has: a shell, its tools, Python without headers or compiler, SSH.
PACKAGES = (
    "base-files,base-passwd,bash,ca-certificates,coreutils,dash,findutils,grep,gzip,hostname,libc-bin,libstdc++6,mawk,"
    "mount,netbase,openssh-server,openssh-sftp-server,procps,python3,python3-venv,rsync,sed,tar,util-linux"
)
SYSTEMD = ",systemd,systemd-sysv,udev,kmod"
#: Part of the name of the folder: change it when `build` changes.
VERSION = 1


class MirrorSilent(Exception):
    """The Debian mirror does not answer, and nothing was kept from before."""


def cache() -> Path:
    """$EDGEPRUNE_RIG_CACHE, or ~/.cache/edgeprune-rig."""
    return Path(os.environ.get("EDGEPRUNE_RIG_CACHE") or Path.home() / ".cache" / "edgeprune-rig").absolute()


def get(suite: str = "bookworm", systemd: bool = False) -> Path:
    """The folder, made if need be. It is only read from then on: a drone writes to a layer of its own.

    systemd: one that boots with it, for a whole machine.
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
    """Only one process at a time makes this thing of the cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack(folder: Path, suite: str, packages: str) -> None:
    """These arm64 packages and what they depend on, as files.

    Raises:
        MirrorSilent: the mirror does not answer.
        RuntimeError: mmdebstrap failed; its words are in it.
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
    """Unpack, and set up."""
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
    (folder / "etc/resolv.conf").write_text("")  # no internet up there
    _byte_compile(folder, PYTHON[suite])


def _users(folder: Path) -> None:
    """As base-passwd's and openssh-server's scripts leave it; root has no password, only a key."""
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
        # A session does not inherit its server's environment, and its programs are emulated, too.
        "SetEnv QEMU_CPU=cortex-a76\n"
    )


def _systemd(folder: Path) -> None:
    """No questions at the first start, and nobody else on the serial line."""
    (folder / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    for unit in ("systemd-firstboot.service", "serial-getty@ttyAMA0.service"):
        (folder / "etc/systemd/system" / unit).symlink_to("/dev/null")


def _byte_compile(folder: Path, version: str) -> None:
    """What python3's scripts do on installation. Bytecode knows no processor; without a Python of that version here the
    drone compiles as it goes, and everything takes longer."""
    found = [Path(f"/usr/bin/python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    for python in (p for p in found if p.exists()):
        subprocess.run(
            [str(python), "-I", "-m", "compileall", "-q", "-s", str(folder), "-x", r"/(test|tests|lib2to3)/",
             str(folder / f"usr/lib/python{version}")],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return
