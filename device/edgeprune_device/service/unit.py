"""The service's systemd unit: starts the service at boot and after a failure, and restricts its rights.

These settings are left out, because they would break something:
- PrivateDevices, DevicePolicy, DeviceAllow: the names of a Jetson's GPU devices differ from release to release, and a
  filter that misses one makes the service fail. File permissions decide: the user is in the groups video and render.
- ProtectClock: it allows the clock's device, and systemd then denies all others.
- MemoryDenyWriteExecute: CUDA, ONNX Runtime and libffi generate code at run time.
- PrivateTmp, if a needed file is in /tmp: the camera of a Jetson is reached through /tmp/argus_socket.
"""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import List

from edgeprune_device.errors import InputError
from edgeprune_device.option import named
from edgeprune_device.service.sinks import SOCKET

__all__ = ["NAME", "text"]

#: Name of the unit's file.
NAME = "edgeprune.service"
_RUNTIME = PurePosixPath("/run/edgeprune")  # created by systemd for the user, removed with the service
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,30}\$?")

_TEXT = """\
# Written by edgeprune; the next installation overwrites it.
[Unit]
Description=edgeprune: detections from {shown}
Documentation=https://pypi.org/project/edgeprune-device/
After=local-fs.target nvargus-daemon.service nvpmodel.service
StartLimitIntervalSec=600
StartLimitBurst=20

[Service]
Type=notify
NotifyAccess=main
User={user}
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Environment={home}
# Building an engine can take minutes. After that, the service must report every 30 s that it is alive.
TimeoutStartSec=infinity
WatchdogSec=30
TimeoutStopSec=15
KillMode=mixed
Restart=on-failure
RestartSec=5
# If memory runs out, the kernel ends the worker, and the supervisor starts another.
OOMPolicy=continue
LimitCORE=0

RuntimeDirectory=edgeprune edgeprune/work
# An empty folder: relative paths that a library reads or writes resolve here.
WorkingDirectory=/run/edgeprune/work
ReadWritePaths={writable}
{temporary}
PrivateMounts=yes
ProtectSystem=strict
ProtectHome=read-only
UMask=0022
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictAddressFamilies={families}
LockPersonality=yes
ProtectHostname=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectProc=invisible
RemoveIPC=yes
KeyringMode=private
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
{network}
[Install]
WantedBy=multi-user.target
"""


def text(user: str, executable: str, root: str, source: str, output: str, home: str) -> str:
    """Write the unit.

    Args:
        user: The user that runs the service.
        executable: Absolute path of the edgeprune command.
        root: Absolute path of the releases.
        source: Source of frames; a path is absolute.
        output: Output of the lines; a path is absolute.
        home: Absolute path of the trusted keys (`keys.home`).

    Returns:
        Content of the unit file.

    Raises:
        InputError: A value is not allowed in a systemd unit.
    """
    if not _USER.fullmatch(user):
        raise InputError(
            f"{user!r}: invalid user name (expected at most 31 letters, digits, _ or -, beginning with a letter or _)"
        )
    for what, path in (("the edgeprune command", executable), (named("root"), root), ("the home of the keys", home)):
        if not path.startswith("/"):
            raise InputError(
                f"{path or repr(path)}: relative path of {what} (expected an absolute path, because a systemd unit "
                "has another working folder)"
            )
    for what, word in (
        ("the edgeprune command", executable),
        (named("root"), root),
        (named("source"), source),
        (named("output"), output),
        ("the home of the keys", home),
    ):
        if not word:
            raise InputError(f"{what}: empty; give a value for the systemd unit")
        if not word.isprintable():
            raise InputError(
                f"{what}: non-printable character (found {word!r}); remove the character, because a systemd unit must "
                "not contain it"
            )
    if "/" in source and " ! " not in source and not source.partition(":")[2] and not source.startswith("/"):
        raise InputError(
            f"{source}: relative path (expected an absolute path, because a systemd unit has another working folder)"
        )
    command = [executable, "run", "--root", root, "--source", source, "--output", output]
    network = " ! " in source  # a pipeline may read a network camera; other sources are devices and files
    argus = source.startswith("csi") or "nvargus" in source
    paths = (root, source, output[len(SOCKET) :] if output.startswith(SOCKET) else output)
    shared = argus or any(path.startswith(("/tmp/", "/var/tmp/")) for path in paths)
    return _TEXT.format(
        shown=source.replace("%", "%%"),
        user=user,
        command=" ".join(_quoted(word, command=i > 0) for i, word in enumerate(command)),
        home=_quoted(_environment(home)),
        # "-": only if the folder exists. The key that signs this drone's engines is made on first use.
        writable=" ".join(_quoted(path) for path in [*_writable(root, output, argus), f"-{home}/keys"]),
        temporary="PrivateTmp=no" if shared else "PrivateTmp=yes",
        families="AF_UNIX AF_NETLINK AF_INET AF_INET6" if network else "AF_UNIX AF_NETLINK",
        network="" if network else "IPAddressDeny=any\n",
    )


def _environment(home: str) -> str:
    """The environment variable from which the service derives `home`.

    With EDGEPRUNE_HOME it would ignore /etc/edgeprune, and refuse bundles that the installer accepts.
    """
    folder = PurePosixPath(home)
    return f"XDG_CONFIG_HOME={folder.parent}" if folder.name == "edgeprune" else f"EDGEPRUNE_HOME={home}"


def _writable(root: str, output: str, argus: bool) -> List[str]:
    """The folders that the service may write to."""
    folders = [root]
    path = output[len(SOCKET) :] if output.startswith(SOCKET) else output
    if path != "-":
        if not path.startswith("/"):
            raise InputError(
                f"{output}: invalid {named('output')} for a unit (expected -, an absolute path, or unix: with an "
                "absolute path)"
            )
        folder = PurePosixPath(os.path.normpath(path)).parent
        if _RUNTIME not in (folder, *folder.parents) and PurePosixPath("/dev") not in (folder, *folder.parents):
            folders.append(str(folder))
    return [*dict.fromkeys(folders), *(["/tmp"] if argus else [])]


def _quoted(word: str, command: bool = False) -> str:
    """Quote a word for systemd: `$` is special in a command line, `%` everywhere."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    if command:
        escaped = escaped.replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"';\\]", word) else escaped
