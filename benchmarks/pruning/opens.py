"""Checks in a fresh process whether a checkpoint opens without edgeprune."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from edgeprune_device.size import Size

_CODE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {root!r})
import numpy
from ultralytics import YOLO
YOLO(sys.argv[1]).predict(numpy.zeros((*{imgsz}, 3), "uint8"), imgsz={imgsz}, device="cpu", verbose=False)
"""
_ROOT = str(Path(__file__).parents[2])


def check(path: Path, imgsz: Size) -> dict:
    """Load and predict with stock `YOLO(path)`.

    Returns {"stock", "safe", "with_class"}: the error in one line, or null if it works. safe: with
    ULTRALYTICS_SAFE_LOAD=1. with_class: with an importable two-branch class, as users of the other tool arrange it.
    """
    ours = ("edgeprune", "edgeprune_device")
    errors = {
        "stock": _try(path, imgsz, (*ours, "benchmarks")),
        "safe": _try(path, imgsz, (*ours, "benchmarks"), ULTRALYTICS_SAFE_LOAD="1"),
    }
    return {**errors, "with_class": errors["stock"] and _try(path, imgsz, ours)}


def _try(path: Path, imgsz: Size, absent: tuple[str, ...], **variables: str) -> str | None:
    # Ultralytics would install any package of the missing module's name from the registry.
    quiet = {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
    code = _CODE.format(absent=absent, root=_ROOT, imgsz=list(imgsz))
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(path.resolve())],
        capture_output=True, text=True, env={**os.environ, **quiet, **variables},
    )  # fmt: skip
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    # The path of the file belongs to this machine, so only its name is kept.
    return lines[-1].replace(str(path.resolve()), path.name)[:200] if lines else f"exit code {done.returncode}"
