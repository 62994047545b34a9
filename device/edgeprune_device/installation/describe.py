"""The installed releases, and the facts that a host needs before an installation: as JSON and as a table."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Dict, List, Optional, Sequence, TypedDict

from edgeprune_device import version
from edgeprune_device.errors import InputError
from edgeprune_device.installation import assembly, contents, restart, root
from edgeprune_device.option import named
from edgeprune_device.printable import printable
from edgeprune_device.releases import Releases
from edgeprune_device.table import rows
from edgeprune_device.trust import keys

__all__ = ["Description", "describe", "table"]


class Description(TypedDict):
    """The installed releases, and the facts that a host needs before an installation.

    Attributes:
        schema_version: Version of this object.
        root: Folder of the releases.
        agent: Version of edgeprune-device.
        problem: Why no bundle can be installed here, in one line; None: nothing prevents it.
        free_bytes: Free space on the disk of the releases.
        counters: For each key, the lowest counter of its bundles that is installed; None: not known.
        current: ID of the release in use; None: none is in use.
        releases: The records of all releases, each with its "identity" and its "problem": why it is damaged, or null.
        held: SHA-256 of the payloads of intact releases, which need not be sent.
        trusted: Fingerprints of the trusted keys.
        revoked: Fingerprints of the revoked keys.
        systemd: Whether systemd runs here.
        root_user: Whether this user is root, or sudo asks for no password.
        service: Description of the service; None: not known.
    """

    schema_version: int
    root: str
    agent: str
    problem: Optional[str]
    free_bytes: int
    counters: Optional[Dict[str, int]]
    current: Optional[str]
    releases: List[Dict[str, Any]]
    held: List[str]
    trusted: List[str]
    revoked: List[str]
    systemd: bool
    root_user: bool
    service: Optional[str]


def describe(releases: Releases) -> Description:
    """Describe this device.

    An example of the result (shortened):

        {"schema_version": 2, "root": "/opt/edgeprune", "agent": "0.1.0", "problem": null, "free_bytes": 51200000000,
         "counters": {"SHA256:…": 1764000000}, "current": "9f86d081884c7d65", "releases": [{…, "identity"}],
         "held": [SHA-256 …], "trusted": ["SHA256:…"], "revoked": [], "systemd": true, "root_user": true,
         "service": "edgeprune run, …"}

    Args:
        releases: The releases.

    Returns:
        A JSON object.
    """
    problem, counters, current, service = root.problem(releases.root), None, None, None
    with suppress(InputError):  # an installation replaces it
        now = releases.current()
        current = None if now is None else now.identity
    try:
        counters = releases.counters
        releases.check_switch()
        service = restart.find(releases).description
    except InputError as error:
        problem = problem or str(error)
    there = releases.root
    while not there.exists():
        there = there.parent
    disk = os.statvfs(str(there))
    return {
        "schema_version": 2,
        "root": str(releases.root),
        "agent": version(),
        "problem": problem,
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "counters": counters,
        "current": current,
        "releases": [
            {**release.to_json(), "identity": release.identity, "problem": contents.problem(releases, release)}
            for release in releases.all()
        ],
        "held": assembly.held(releases),
        "trusted": sorted(keys.trusted()),
        "revoked": sorted(keys.revoked()),
        "systemd": restart.systemd_runs(),
        "root_user": restart.privileged() is not None,
        "service": service,
    }


def table(described: Description) -> str:
    """Format the result of `describe` as a table for people."""
    cells: List[Sequence[str]] = [
        ("", "release", "name", "state", "counter", "installed", "precision", "mAP50-95", "on the host", "")
    ]
    for release in described["releases"]:
        accuracy = release["accuracy"] or {}
        figures = [accuracy.get(name) for name in ("map50_95", "host_map50_95")]
        doubts = [] if release["trusted"] else ["key NOT trusted"]
        doubts += ["installed although older than the newest confirmed release of its key"] if release["older"] else []
        doubts += [release["reason"]] if release["reason"] else []
        if release["problem"]:
            doubts += [f"DAMAGED: {release['problem']}; install the bundle again"]
        cells.append(
            (
                "*" if release["identity"] == described["current"] else "",
                release["identity"],
                release["name"],
                release["state"],
                str(release["counter"]),
                release["installed"],
                f"{release['precision'] or '-'} by {release['runtime'] or '-'}",
                *("-" if value is None else f"{value:.4f}" for value in figures),
                printable("; ".join(doubts)),
            )
        )
    lines = rows(cells) if described["releases"] else [f"{described['root']}: no releases"]
    if described["current"] is None and described["releases"]:
        lines.append("no release is in use")
    for mark, counter in sorted((described["counters"] or {}).items()):
        lines.append(f"key {mark}: counter {counter}; bundles with a lower counter need {named('allow_older', True)}")
    lines.append(f"service: {described['service'] or 'not known'}; free {described['free_bytes'] / 1e9:.1f} GB")
    if described["problem"]:
        lines.append(f"no bundle can be installed: {described['problem']}")
    return "\n".join(lines) + "\n"
