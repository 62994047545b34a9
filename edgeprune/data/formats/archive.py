"""A .zip or .tar of a folder with a data set; it is unpacked into the cache."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from edgeprune_device.errors import InputError
from edgeprune_device.files import check_room, sha256

from edgeprune.data.formats import cache, folder

__all__ = ["find"]


def find(path: Path) -> Path:
    """The data.yaml in the archive, unpacked.

    Raises:
        InputError: The archive is damaged or holds no data set, or the disk is full.
    """
    return folder.find(cache.made(path.stem, sha256(path), lambda place: _unpack(path, place)))


def _unpack(path: Path, place: Path) -> None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_room(place, sum(entry.file_size for entry in archive.infolist()))
                archive.extractall(place)  # removes .. and leading slashes
        else:
            with tarfile.open(path) as archive:
                check_room(place, sum(entry.size for entry in archive))
                archive.extractall(place, filter="data")  # refuses members outside of the folder
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: cannot be unpacked ({' '.join(str(error).split())})") from error
