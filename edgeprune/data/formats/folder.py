"""A folder: the data.yaml in it, or COCO's annotations."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.errors import InputError

__all__ = ["find"]


def find(folder: Path) -> Path:
    """Find the data.yaml of a folder as Ultralytics does: *.yaml at the top, else anywhere below.

    If there are several files, the one with the folder's name is used. Without one, convert COCO annotations and return
    the data.yaml of the converted data set.

    Raises:
        InputError: The folder has several YAML files and none with its name, or it holds no data set.
    """
    for pattern in ("*.yaml", "*.yml"):
        files = sorted(folder.glob(pattern)) or sorted(folder.rglob(pattern))
        if len(files) > 1:
            named = [f for f in files if f.stem == folder.resolve().name]
            if len(named) != 1:
                these = ", ".join(str(f.relative_to(folder)) for f in files[:4])
                raise InputError(f"{folder}: {len(files)} YAML files ({these}, …); give one of them")
            files = named
        if files:
            return files[0]
    from edgeprune.data.formats import coco

    return coco.find(folder)
