"""The files of a release that other programs read: its model, its labels, its manifest, its engine.

    releases/ID/SHA256SUMS     the SHA-256 of each of them, as `sha256sum -c` reads it

The bundle's signature determines all of them except the engine, so they are also compared with the bundle. The service
reads only the bundle.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Dict, Mapping, Optional

from edgeprune_device import files, strict_json
from edgeprune_device.errors import EdgepruneError, InputError, reason
from edgeprune_device.releases import BUNDLE, Release, Releases
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.trust.manifest import Manifest

__all__ = ["LABELS", "MANIFEST", "MODEL", "NAMES", "PLAN", "SUMS", "listed", "problem", "sums", "texts"]

MODEL, PLAN, LABELS, MANIFEST, SUMS = "model.onnx", "model.plan", "labels.txt", "manifest.json", "SHA256SUMS"
#: The files that are written for other programs; the last one lists the others.
NAMES = (MODEL, PLAN, LABELS, MANIFEST, SUMS)
_LINE = re.compile(rb"([0-9a-f]{64})  ([A-Za-z.]{1,40})")
_MAX_BYTES = 1 << 12


def texts(manifest: Manifest) -> Dict[str, bytes]:
    """{name: content} of the files that a manifest determines."""
    return {
        LABELS: "".join(f"{name}\n" for name in manifest.classes).encode("utf-8"),
        MANIFEST: strict_json.pretty(manifest.to_json()).encode("ascii"),
    }


def sums(bundle: Bundle, others: Mapping[str, str]) -> bytes:
    """The content of SHA256SUMS.

    Args:
        bundle: The bundle.
        others: {name: SHA-256} of the model and the engine, if the release has them.
    """
    digests = {BUNDLE: bundle.sha256, **_digests(bundle.manifest), **others}
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode("ascii")


def listed(content: bytes) -> Dict[str, str]:
    """{name: SHA-256} of the content of SHA256SUMS; lines of another form, or of other files, are left out."""
    matches = (_LINE.fullmatch(line) for line in content[:_MAX_BYTES].splitlines())
    listed_hashes = {match[2].decode("ascii"): match[1].decode("ascii") for match in matches if match}
    return {name: digest for name, digest in listed_hashes.items() if name in (BUNDLE, *NAMES)}


def problem(releases: Releases, release: Release, bundle: Optional[Bundle] = None) -> Optional[str]:
    """The damage of a release, in one line; None if all its files are unchanged since the installation.

    Args:
        releases: The releases.
        release: The release.
        bundle: Its bundle, if already opened; None: the bundle is opened and verified first.
    """
    folder = releases.folder(release)
    try:
        bundle = bundle or releases.open(release)
        listed_hashes = listed(_content(folder / SUMS))
        models = {bundle.payloads[entry["payload"]].sha256 for entry in bundle.manifest.models.values()
                  if entry["payload"] is not None}  # fmt: skip
        wanted = {**listed_hashes, BUNDLE: bundle.sha256, **_digests(bundle.manifest)}
        if release.precision is not None:
            wanted.setdefault(MODEL, "")
        if wanted != listed_hashes or (MODEL in listed_hashes and listed_hashes[MODEL] not in models):
            return f"{folder / SUMS}: does not match the bundle"
        for name in NAMES[:-1]:
            path = folder / name
            if name not in wanted:
                if os.path.lexists(str(path)):
                    return f"{path}: not listed in {SUMS}"
            elif not _is_file(path) or files.sha256(path) != wanted[name]:
                return f"{path}: changed or damaged"
    except OSError as error:
        return f"{error.filename}: cannot be read ({reason(error)})"
    except EdgepruneError as error:
        return str(error)
    return None


def _digests(manifest: Manifest) -> Dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in texts(manifest).items()}


def _is_file(path: Path) -> bool:
    """Whether a path is a regular file. A link is not accepted, because its file may belong to another user."""
    return stat.S_ISREG(os.lstat(str(path)).st_mode)


def _content(path: Path) -> bytes:
    if not _is_file(path):
        raise InputError(f"{path}: not a regular file")
    with open(path, "rb") as stream:
        content = stream.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path}: too large (found more than {_MAX_BYTES} bytes)")
    return content
