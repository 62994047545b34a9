"""The embedded default: a small detector, and the scenes seen from a drone that it was trained and is measured on.

`WEIGHTS` is a stock Ultralytics checkpoint (YOLOv8n, 320 px, FP16, about 6 MB; see MODEL_CARD.md beside it).
`write_dataset(folder, train, val)` makes its data set; `render(seed)` one scene. Importing this needs numpy and
OpenCV only, no torch.
"""

from pathlib import Path

from edgeprune.demo.dataset import write as write_dataset
from edgeprune.demo.scenes import NAMES, render

__all__ = ["NAMES", "WEIGHTS", "render", "write_dataset"]

WEIGHTS = Path(__file__).with_name("yolov8n-scenes.pt")
