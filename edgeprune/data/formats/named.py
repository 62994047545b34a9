"""A data set by its name in Ultralytics: `coco8.yaml`, or `coco8`."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.errors import InputError

__all__ = ["find"]


def find(path: Path) -> Path:
    """Ultralytics' own data.yaml of this name; its images are in the user's `datasets_dir` (`yolo settings`).

    Raises:
        InputError: No file or data set has that name.
    """
    from ultralytics.utils import ROOT

    folder = ROOT / "cfg" / "datasets"
    if path.absolute().parent == Path.cwd():
        for suffix in ("", ".yaml", ".yml"):
            if (folder / f"{path.name}{suffix}").is_file():
                return folder / f"{path.name}{suffix}"
        raise InputError(f"{path.name}: no such file here, and no Ultralytics data set of that name in {folder}")
    raise InputError(f"{path}: no such file; check the path")
