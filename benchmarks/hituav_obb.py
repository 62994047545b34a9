"""Trains the oriented detector that the results named `hituav-obb` are about, with stock Ultralytics.

    python -m benchmarks.hituav_obb --weights yolov8n-hituav-best.pt --data hit-uav-mini-obb/data.yaml --out obb.pt

The network is YOLOv8n-obb. It begins with the layers that it shares with a detector of upright boxes on the same
images.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from edgeprune.model.threads import use_all_cores


def main() -> None:
    """Train, and write the last checkpoint to --out."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--epochs", type=int, default=25)
    p.add_argument("--imgsz", type=int, default=320)
    args = p.parse_args()
    use_all_cores()
    from ultralytics import YOLO

    with tempfile.TemporaryDirectory() as folder:
        # AdamW with this rate is what `optimizer=auto` selects for a set of this size.
        YOLO("yolov8n-obb.yaml").load(args.weights).train(
            data=str(args.data.resolve()), epochs=args.epochs, imgsz=args.imgsz, batch=8, device="cpu", workers=0,
            optimizer="AdamW", lr0=1e-3, warmup_epochs=1, close_mosaic=5, seed=0, plots=False, val=False,
            project=folder, name="obb",
        )  # fmt: skip
        shutil.copy(Path(folder) / "obb" / "weights" / "last.pt", args.out)


if __name__ == "__main__":
    main()
