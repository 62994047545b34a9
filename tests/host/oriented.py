"""Small networks for oriented boxes, of both families of heads, and images labelled with their own detections."""

from pathlib import Path

import numpy as np
import torch
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.obb import TASK

from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import head

from . import small

SIZE, CLASSES = 96, 3
FAMILIES = ("yolov8", "yolo26")
#: Families whose one-to-one head is exported here.
END2END = ("yolo26",)


def network(family, seed=0):
    """A network of half of YOLOv8's layers with an OBB head; that of yolo26 has a one-to-one head, too."""
    from ultralytics.nn.tasks import OBBModel

    torch.manual_seed(seed)
    kind = {"yolov8": "OBB", "yolo26": "OBB26"}[family]
    extra = {"end2end": True, "reg_max": 1} if family == "yolo26" else {}
    config = {**small.SHORT, **extra, "nc": CLASSES}
    config["head"] = [*small.SHORT["head"][:-1], [[10, 7], 1, kind, ["nc", 1]]]
    model = OBBModel(config, nc=CLASSES, verbose=False)
    small.settle(model, 4, SIZE)
    last = model.model[-1]
    for prefix in ("", "one2one_"):
        for tower in getattr(last, f"{prefix}cv2", None) or ():
            with torch.no_grad():  # boxes of a few cells
                if last.reg_max == 1:
                    tower[-1].weight.normal_(0, 0.1)
                    tower[-1].bias.fill_(0.8)
                else:
                    tower[-1].bias.view(4, -1)[:, :2] += 4.0
        for tower in getattr(last, f"{prefix}cv3", None) or ():
            tower[-1].weight.data.normal_(0, 0.5)
            tower[-1].bias.data.fill_(-3.0)
        for tower in getattr(last, f"{prefix}cv4", None) or ():
            tower[-1].weight.data.normal_(0, 0.5)
    head.select(model, head.ONE_TO_ONE if family in END2END else None)
    model.names = {i: f"thing{i}" for i in range(CLASSES)}
    model.args = {"imgsz": SIZE, "task": "obb"}
    return model.eval()


def inputs(folder, family):
    """(best.pt, data.yaml): a network, and images whose labels are its best detections."""
    model = network(family)
    data = small.dataset(folder / "data", train=16, val=4, seed=1)
    session = TorchSession(model, SIZE)
    for picture in (folder / "data" / "images").rglob("*.png"):
        x, _ = preprocess.letterbox(preprocess.decode(picture), SIZE)
        rows = TASK.detections(session.infer(x), session.kind, classes=CLASSES, conf=0.01, max_det=12)
        corners = TASK.corners(rows[:, :5].astype(np.float64)) / SIZE
        inside = (corners > 0).all(1) & (corners < 1).all(1) & (rows[:, 2:4] > 3).all(1)
        lines = [f"{int(c)} " + " ".join(f"{v:.6f}" for v in box) for c, box in zip(rows[inside, 6], corners[inside])]
        label = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt")
        label.write_text("\n".join(lines) + "\n")
    path = small.save(model, folder / "best.pt")
    return path, data
