"""Small real networks and data sets."""

from pathlib import Path

import numpy as np
import torch
from edgeprune_device.size import Size
from PIL import Image


def settle(model, pictures, size, least=0.1):
    """Random batch norms with the statistics of their own features. No variance is below `least` of its layer's mean,
    because a nearly constant channel would amplify rounding a thousandfold."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.uniform_(-0.5, 0.5)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(pictures, 3, size, size))
    for norm in norms:
        norm.momentum = 0.03
        norm.running_var.clamp_(min=least * float(norm.running_var.mean()))


#: Half of YOLOv8's layers of each type, for tests that work with any network.
SHORT = {
    "scale": "n", "scales": {"n": [0.33, 0.125, 256]},
    "backbone": [
        [-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]], [-1, 3, "C2f", [128, True]],
        [-1, 1, "Conv", [256, 3, 2]], [-1, 3, "C2f", [256, True]], [-1, 1, "Conv", [256, 3, 2]],
        [-1, 1, "Conv", [512, 3, 2]], [-1, 1, "SPPF", [512, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 5], 1, "Concat", [1]], [-1, 3, "C2f", [256]],
        [[10, 7], 1, "Detect", ["nc"]],
    ],
}  # fmt: skip


def short(**more):
    """A network with two levels, of 16 and 32 px, and boxes of a few cells; larger ones would cover the whole image."""
    model = network({**SHORT, "nc": 3}, **more)
    for tower in model.model[-1].cv2:
        tower[-1].bias.data.view(4, -1)[:, :2] += 4.0
    return model


def network(config="yolov8n.yaml", *, seed=0, width=None, nc=3):
    """A detector with random weights and batch-norm statistics like those of its own features.

    config: the name of an Ultralytics YAML, or its content. width: the width multiple, for a smaller network than
    Ultralytics' smallest (0.125: a quarter of a million parameters).
    """
    from ultralytics.nn.tasks import DetectionModel, yaml_model_load

    torch.manual_seed(seed)
    cfg = yaml_model_load(config) if isinstance(config, str) else dict(config)
    if width is not None:
        cfg["scales"] = {cfg["scale"]: [0.33, width, 256]}
    model = DetectionModel(cfg, nc=nc, verbose=False)
    settle(model, 4, 96)
    for tower in (*(model.model[-1].cv3 or ()), *(getattr(model.model[-1], "one2one_cv3", None) or ())):
        tower[-1].weight.data.normal_(0, 0.5)
        tower[-1].bias.data.fill_(-3.0)  # scores that differ between positions, some above 0.25
    model.names = {i: f"thing{i}" for i in range(nc)}
    model.args = {"imgsz": 96, "task": "detect"}
    return model.eval()


def save(model, path, imgsz=96):
    """Write the model in the format of `yolo train`."""
    import copy

    torch.save(
        {
            "epoch": -1, "model": copy.deepcopy(model).half(), "ema": None, "optimizer": None,
            "train_args": {
                "imgsz": imgsz, "task": "detect", "data": "/somewhere/data.yaml", "project": "/home/me/runs"
            },
            "date": "2026-01-01T00:00:00", "version": "8.4.0",
        },
        path,
    )  # fmt: skip
    return path


def dataset(folder, *, train=8, val=4, size=96, classes=3, seed=0):
    """Images of one or more coloured rectangles, with their labels. size: the side, or (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = Size.of(size)
    for split, count in (("train", train), ("val", val)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
            lines = []
            for _ in range(int(rng.integers(1, 4))):
                c = int(rng.integers(classes))
                w, h = rng.integers(16, 40, 2)
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                picture[y : y + h, x : x + w] = np.eye(3, dtype=np.uint8)[c] * 200 + 40
                lines.append(
                    f"{c} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}"
                )
            Image.fromarray(picture).save(folder / "images" / split / f"{i:03d}.png")
            (folder / "labels" / split / f"{i:03d}.txt").write_text("\n".join(lines) + "\n")
    names = "".join(f"  {i}: thing{i}\n" for i in range(classes))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    return folder / "data.yaml"


def label_by(session, folder, size, classes=3):
    """Label every image of `folder` with the best detections of `session`, so that its network has an accuracy.

    size: the side of the images and of the input, or (height, width).
    """
    from edgeprune_device.vision import preprocess
    from edgeprune_device.vision.detect import detections

    height, width = Size.of(size)
    for picture in (folder / "images").rglob("*.png"):
        x, _ = preprocess.letterbox(preprocess.decode(picture), size)
        detected = detections(session.infer(x), session.kind, classes=classes, conf=0.01, max_det=5)
        detected[:, :4] = detected[:, :4].clip(0, (width, height, width, height))
        detected = detected[(detected[:, 2] - detected[:, 0] > 4) & (detected[:, 3] - detected[:, 1] > 4)]
        rows = [
            f"{int(c)} {(a + b) / 2 / width:.6f} {(t + d) / 2 / height:.6f} {(b - a) / width:.6f} "
            f"{(d - t) / height:.6f}"
            for a, t, b, d, _, c in detected
        ]
        label = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt")
        label.write_text("\n".join(rows) + "\n")
