"""The installed releases, and the facts that a host needs before an installation: as JSON and as a table."""

from __future__ import annotations

import os
from typing import Any, Dict

from edgeprune_device import version
from edgeprune_device.errors import InputError
from edgeprune_device.installation import assembly, restart, root
from edgeprune_device.printable import printable
from edgeprune_device.releases import Releases
from edgeprune_device.trust import keys

__all__ = ["describe", "table"]


def describe(releases: Releases) -> Dict[str, Any]:
    """Describe this device.

    An example of the result (shortened):

        {"schema_version": 1, "root": "/opt/edgeprune", "agent": "0.1.0", "problem": null, "free_bytes": 51200000000,
         "counter": 1764000000, "current": "9f86d081884c7d65", "releases": [{…, "identity"}], "held": [SHA-256 …],
         "trusted": ["SHA256:…"], "revoked": [], "systemd": true, "root_user": true, "service": "edgeprune run, …"}

    Args:
        releases: The releases.

    Returns:
        A JSON object. "problem" is the reason why no bundle can be installed here, in one line, else None. "held" lists
            the payloads of intact releases, which need not be sent. "root_user" is True for root, and for sudo without
            a password.
    """
    problem, counter, current, service = root.problem(releases.root), None, None, None
    try:
        counter = releases.counter
        now = releases.current()
        current = None if now is None else now.identity
    except InputError as error:
        problem = problem or str(error) if counter is None else problem
    try:
        service = restart.find(releases).description
    except InputError as error:
        problem = problem or str(error)
    there = releases.root
    while not there.exists():
        there = there.parent
    found = os.statvfs(str(there))
    return {
        "schema_version": 1,
        "root": str(releases.root),
        "agent": version(),
        "problem": problem,
        "free_bytes": found.f_bavail * found.f_frsize,
        "counter": counter,
        "current": current,
        "releases": [{**release.to_json(), "identity": release.identity} for release in releases.all()],
        "held": assembly.held(releases),
        "trusted": sorted(keys.trusted()),
        "revoked": sorted(keys.revoked()),
        "systemd": restart.systemd_runs(),
        "root_user": restart.privileged() is not None,
        "service": service,
    }


def table(described: Dict[str, Any]) -> str:
    """Format the result of `describe` as a table for people."""
    rows = [("", "release", "name", "state", "counter", "installed", "precision", "mAP50-95", "on the host", "")]
    for release in described["releases"]:
        accuracy = release["accuracy"] or {}
        figures = [accuracy.get(name) for name in ("map50_95", "host_map50_95")]
        doubts = [] if release["trusted"] else ["key NOT trusted"]
        doubts += ["older than what was in use"] if release["older"] else []
        doubts += [release["reason"]] if release["reason"] else []
        rows.append(
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
    lines = []
    if len(rows) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    else:
        lines.append(f"{described['root']}: no releases")
    if described["current"] is None and len(rows) > 1:
        lines.append("none is in use")
    if described["counter"]:
        lines.append(f"counter {described['counter']}: nothing older is installed without --allow-older")
    lines.append(f"service: {described['service'] or 'not known'}; free {described['free_bytes'] / 1e9:.1f} GB")
    if described["problem"]:
        lines.append(f"nothing can be installed: {described['problem']}")
    return "\n".join(lines) + "\n"
