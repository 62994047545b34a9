"""Finds the data.yaml of a data set in one of these forms; one file per form:

- a data.yaml, or a folder that contains one
- COCO's JSON, or a folder that contains it
- a .zip or .tar archive of such a folder
- the name of one of Ultralytics' own data sets, such as `coco8`, whose images are already on this disk

An archive and COCO's JSON are converted to an ordinary data set in the cache, named by the hash of the content. The
conversion happens once, completely or not at all, and the images are links to the user's. Nothing is downloaded: a
URL, and a list of images on Ultralytics' platform (.ndjson), are refused with the command that downloads them.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

from edgeprune_device import option
from edgeprune_device.errors import InputError

__all__ = ["find"]


def find(path: Path) -> Path:
    """Find the data.yaml of a data set.

    Args:
        path: A data.yaml, a folder with one, COCO's JSON or a folder with it, a .zip or .tar of these, or the name of
            one of Ultralytics' own data sets (`coco8.yaml`, `coco8`).

    Raises:
        InputError: The path is none of these, or the data set would need a download.
    """
    from edgeprune.data.formats import archive, coco, folder, named

    # pathlib turns two slashes into one, and resolve() prepends the working folder.
    if re.search(r"(^|/)[a-z0-9+]+:/", str(path)) and not path.exists():
        raise InputError(
            f"{option.named('data', path)}: a URL, and edgeprune downloads nothing; download the data set first, and "
            "give the file or its folder"
        )
    if path.is_dir():
        return folder.find(path)
    if not path.exists():
        return named.find(path)
    if path.suffix.lower() == ".ndjson":
        raise InputError(
            f"{path}: a list of images on Ultralytics' platform, and edgeprune downloads nothing; download them with "
            f'`python -c "import asyncio; from ultralytics.data.converter import convert_ndjson_to_yolo as c; '
            f"print(asyncio.run(c('{path}')))\"`, and give the data.yaml that it prints"
        )
    if path.suffix.lower() == ".json":
        return coco.find(path)
    # by suffix, because a .pt and a bundle are zip files, too
    if path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2"):
        if zipfile.is_zipfile(path) or tarfile.is_tarfile(path):
            return archive.find(path)
        raise InputError(f"{path}: not an archive, or damaged; give a .zip or .tar")
    return path
