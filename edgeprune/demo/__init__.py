"""The built-in demo: a small detector, and the synthetic drone scenes on which it is trained and measured.

`WEIGHTS` is a stock Ultralytics checkpoint (YOLOv8n, 320 px, FP16, about 6 MB; see MODEL_CARD.md beside it), and
`NETWORKS` has one for each task that the demo knows: oriented boxes have a YOLOv8n-OBB of half the width (2 MB).
`write_dataset(folder, train, val)` writes its data set; `render(seed)` draws one scene. The import needs only numpy and
OpenCV, no torch.
"""

from pathlib import Path

from edgeprune.demo.dataset import write as write_dataset
from edgeprune.demo.scenes import NAMES, render

__all__ = ["NAMES", "NETWORKS", "WEIGHTS", "render", "write_dataset"]

WEIGHTS = Path(__file__).with_name("yolov8n-scenes.pt")
#: {task: its built-in network}.
NETWORKS = {"detect": WEIGHTS, "obb": WEIGHTS.with_name("yolov8n-obb-scenes.pt")}
