"""Trains the networks of this folder from scratch, on drawn scenes, with edgeprune's fine-tuning.

    python -m tests.networks.train                   every family, about three minutes each on one core
    python -m tests.networks.train yolo26 --epochs 40

Run it in the root of the repository. It writes the checkpoints to this folder and prints their rows for README.md.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the sums, and therefore the weights, depend on the number of threads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from edgeprune.data import dataset
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.training import finetune
from tests import networks

#: The smallest widths that can still be pruned, at the depth of the family's smallest size: (depth, width, maximum
#: channels before the width factor). YOLOv9 has no scales: its numbers are halved, down to 32.
SCALES = {
    "yolov5": (0.33, 0.125, 256),
    "yolov8": (0.33, 0.125, 256),
    "yolov9": None,
    "yolov10": (0.33, 0.125, 256),
    "yolo11": (0.50, 0.125, 256),
    "yolo12": (0.50, 0.125, 256),
    "yolo26": (0.50, 0.125, 256),
}
SCENES, BATCH = 400, 16
EPOCHS = (12, 24)  # for one head; for two heads, because the exported one has a small share of the loss at first
REG_MAX = 8  # distance bins, if the YAML sets them: eight reach 56 px at the finest level. YOLOv10 has 16, YOLO26 none
#: Flips that keep the class of a shape, and no mosaic, which would only make the objects small.
TRAINING = {
    "imgsz": networks.SIZE, "task": "detect", "mosaic": 0.0, "fliplr": 0.5, "scale": 0.3, "translate": 0.1,
    "hsv_h": 0.0, "hsv_s": 0.2, "hsv_v": 0.2, "erasing": 0.0,
}  # fmt: skip


def architecture(family: str) -> dict:
    """The YAML of the family's smallest size, reduced further."""
    from ultralytics.nn.tasks import yaml_model_load

    scales = SCALES[family]
    cfg = yaml_model_load(f"{family}{'n' if scales else 't'}.yaml")
    cfg["nc"] = len(networks.NAMES)
    if family not in networks.ONE_TO_ONE:
        cfg["reg_max"] = REG_MAX
    if scales:
        cfg["scales"] = {cfg["scale"]: list(scales)}
    else:
        for _, _, kind, args in cfg["backbone"] + cfg["head"]:
            if kind in ("Conv", "AConv"):
                args[0] = min(args[0] // 2, 32)
            elif kind in ("ELAN1", "RepNCSPELAN4", "SPPELAN"):
                widest = min(args[0] // 2, 32)
                args[:] = {
                    "ELAN1": [widest, widest, 8],
                    "RepNCSPELAN4": [widest, widest, 16, 1],
                    "SPPELAN": [widest, 16],
                }[kind]
    for _, _, kind, args in cfg["backbone"] + cfg["head"]:
        if kind == "A2C2f":  # an attention head has 32 channels, so the inner width cannot be smaller
            args[3:] = [False, 2.0, 1.0]
    return cfg


def network(family: str) -> torch.nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(architecture(family), verbose=False)
    model.names, model.args, model.task = dict(enumerate(networks.NAMES)), dict(TRAINING), "detect"
    return model


def train(family: str, folder: Path, epochs: int) -> None:
    """Train from scratch; the EMA of the last epoch becomes the family's checkpoint."""
    start = folder / f"{family}.pt"
    checkpoint.save(start, network(family), like=checkpoint.Checkpoint(start, None, {"train_args": TRAINING}))
    pictures = dataset.load(networks.scenes(folder / "scenes", 1, networks.TRAINING, train=SCENES))
    settings = finetune.TrainingSettings(epochs=epochs, batch=BATCH, lr=4e-3, imgsz=networks.SIZE, seed=0)

    def show(p: finetune.TrainingProgress) -> None:
        if p.step == p.steps:
            print(f"{family}: epoch {p.epoch} of {p.epochs}, loss {p.loss:.2f}", flush=True)

    out = networks.path(family)
    finetune.finetune_network(start, pictures, out, settings, folder / "run", on_step=show, tracked=False)


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.networks.train", description=__doc__.split("\n")[0])
    p.add_argument("families", nargs="*", default=networks.FAMILIES, help="default: all")
    p.add_argument("--epochs", type=int, help="default: 12, or 24 for networks with two heads")
    args = p.parse_args()
    for family in args.families:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            train(family, Path(folder), args.epochs or EPOCHS[family in networks.ONE_TO_ONE])
            path = networks.path(family)
            model = checkpoint.load(path).model
            unseen = dataset.load(networks.scenes(Path(folder) / "unseen"))
            accuracy = evaluate(TorchSession(model, networks.SIZE), unseen, unseen.val, networks.SIZE)[0]
        parameters = sum(p.numel() for p in model.parameters())
        print(
            f"| {family} | {parameters:,} | {path.stat().st_size:,} | {accuracy.map50:.3f} | {accuracy.map50_95:.3f} | "
            f"{(time.monotonic() - start) / 60:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
