"""Every form that Ultralytics takes as `data=`, as a data.yaml on this disk: one file here for each form.

Forms that have to be converted (an archive, COCO's JSON) become an ordinary data set in the cache, named by the hash of
the content. It is made once, whole or not at all, and its images are links to the user's. Nothing is ever fetched.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

from edgeprune_device.errors import InputError

__all__ = ["find"]


def find(path: Path) -> Path:
    """Find the data.yaml of a data set.

    Args:
        path: A data.yaml, a folder with one, COCO's JSON or a folder with it, a .zip or .tar of these, or the name of
            one of Ultralytics' own data sets (`coco8.yaml`, `coco8`).

    Raises:
        InputError: It is none of these, or would have to be fetched from a network.
    """
    from edgeprune.data.formats import archive, coco, folder, named

    # pathlib makes one slash of two, and resolving puts the working folder in front.
    if re.search(r"(^|/)[a-z0-9+]+:/", str(path)) and not path.exists():
        raise InputError(f"--data {path}: edgeprune fetches nothing; fetch it first, and give the file or its folder")
    if path.is_dir():
        return folder.find(path)
    if not path.exists():
        return named.find(path)
    if path.suffix.lower() == ".ndjson":
        raise InputError(
            f"{path}: its pictures are on Ultralytics' platform, and edgeprune fetches nothing; fetch them by "
            f'`python -c "import asyncio; from ultralytics.data.converter import convert_ndjson_to_yolo as c; '
            f"print(asyncio.run(c('{path}')))\"`, and give the data.yaml that it names"
        )
    if path.suffix.lower() == ".json":
        return coco.find(path)
    if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2"):  # a .pt and a bundle are zip files, too
        if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
            return archive.find(path)
        raise InputError(f"{path}: not an archive that can be opened; damaged?")
    return path
