"""A folder: the data.yaml in it, or COCO's annotations."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.errors import InputError

__all__ = ["find"]


def find(folder: Path) -> Path:
    """Find the data.yaml in a folder, as Ultralytics looks for it: *.yaml at the top, else anywhere below.

    Of several files the one with the folder's name is taken.

    Raises:
        InputError: There are several YAML files and none has the folder's name, or there is nothing of a data set.
    """
    for pattern in ("*.yaml", "*.yml"):
        found = sorted(folder.glob(pattern)) or sorted(folder.rglob(pattern))
        if len(found) > 1:
            named = [f for f in found if f.stem == folder.resolve().name]
            if len(named) != 1:
                these = ", ".join(str(f.relative_to(folder)) for f in found[:4])
                raise InputError(f"{folder}: holds {len(found)} YAML files ({these}, …); give the right one itself")
            found = named
        if found:
            return found[0]
    from edgeprune.data.formats import coco

    return coco.find(folder)
