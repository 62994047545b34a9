"""Trains the built-in weights of a task from scratch on synthetic scenes, with Ultralytics' trainer.

    python -m edgeprune.demo.train --out runs/demo --minutes 70      on a busy machine: learning rate by the clock
    python -m edgeprune.demo.train --out runs/demo --epochs 60       learning rate by the step
    python -m edgeprune.demo.train --out runs/demo-obb --task obb --minutes 25     oriented boxes
    python -m edgeprune.demo.train --out runs/demo --finish          only strip, measure and write the card

An interrupted training continues from last.pt when it is started again with the same --out.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeprune_device.size import Size
from edgeprune_device.vision.accuracy import Accuracy

from edgeprune.demo import NETWORKS, card, dataset
from edgeprune.model.threads import use_all_cores
from edgeprune.tasks import DETECT

if TYPE_CHECKING:
    import torch

LR0, LR_END, WARMUP_STEPS, BATCH = 1.5e-3, 0.01, 150, 8
#: {task: the architecture of its network}.
ARCHITECTURES = {"detect": "yolov8n.yaml", "obb": str(Path(__file__).with_name("yolov8n-obb-scenes.yaml"))}
#: {task: the model card beside the weights}.
CARDS = {"detect": "MODEL_CARD.md", "obb": "MODEL_CARD-obb.md"}
VAL = 400  # unseen scenes for the card's figures
DONE = "trained"  # an empty file in --out that marks the end of the training
SETTINGS: dict[str, Any] = {
    "imgsz": dataset.SIZE,
    "batch": BATCH,
    "nbs": BATCH,
    "optimizer": "AdamW",
    "lr0": LR0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "warmup_epochs": 0.0,
    "warmup_bias_lr": 0.0,
    "amp": False,
    "workers": 0,
    "cache": "ram",
    "device": "cpu",
    "pretrained": False,
    "plots": False,
    "val": False,
    "deterministic": False,
    "seed": 0,
    # The scenes are dense aerial views: flips are realistic, and mosaics would only halve the size of small objects.
    "mosaic": 0.0,
    "close_mosaic": 0,
    "fliplr": 0.5,
    "flipud": 0.3,
    "scale": 0.25,
    "translate": 0.08,
    "hsv_h": 0.01,
    "hsv_s": 0.4,
    "hsv_v": 0.3,
    "erasing": 0.0,
}


def _keep_memory() -> None:
    """Keep glibc from returning large tensors to the kernel at every step, which costs a fifth of the time on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


class Trainer(Protocol):
    """The part of Ultralytics' trainer that `Pace` uses.

    Attributes:
        epochs: The number of epochs.
        epoch: The current epoch, from 0.
        stop: Whether the training ends after this batch.
        train_loader: The batches of an epoch.
        optimizer: The optimizer.
        tloss: The mean losses so far, by name.
    """

    epochs: int
    epoch: int
    stop: bool
    train_loader: Sized
    optimizer: torch.optim.Optimizer
    tloss: Mapping[str, Any]

    def save_model(self) -> None:
        """Write last.pt."""


class Pace:
    """Callbacks of the trainer: the learning rate, the end, and a checkpoint every few minutes.

    The rate is a cosine of the progress. Progress is the fraction of completed steps or, with a budget, the fraction of
    time spent, whichever is larger. On a shared machine, the training therefore ends on time with the rate fully
    annealed.

    Args:
        folder: Holds the state of the training.
        budget_s: The time budget, seconds; None for none.
        save_every_s: The time between checkpoints, seconds.
    """

    def __init__(self, folder: Path, budget_s: float | None, save_every_s: float = 240.0) -> None:
        self.file, self.budget_s, self.save_every_s = folder / "pace.json", budget_s, save_every_s
        past = json.loads(self.file.read_text()) if self.file.is_file() else {"seconds": 0.0, "steps": 0}
        self.before_s, self.steps = past["seconds"], past["steps"]
        self.started = self.saved = 0.0

    def start(self, trainer: Trainer) -> None:
        """Use all cores, and keep freed memory."""
        _keep_memory()
        use_all_cores()
        self.started = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, over all runs."""
        return self.before_s + time.monotonic() - self.started

    def before_batch(self, trainer: Trainer) -> None:
        """Set the learning rate of this step."""
        progress = self.steps / (trainer.epochs * len(trainer.train_loader))
        if self.budget_s:
            progress = max(progress, self.seconds / self.budget_s)
        rate = LR0 * (LR_END + (1 - LR_END) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
        rate *= min(1.0, (self.steps + 1) / WARMUP_STEPS)
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate

    def after_batch(self, trainer: Trainer) -> None:
        """Count, log, save, and stop when the budget is spent."""
        self.steps += 1
        now = time.monotonic()
        if self.steps % 20 == 0:
            losses = " ".join(f"{k} {float(v):.3f}" for k, v in trainer.tloss.items())
            rate = trainer.optimizer.param_groups[0]["lr"]
            print(
                f"step {self.steps} epoch {trainer.epoch + 1} {self.seconds / 60:.1f} min lr {rate:.2e} {losses}",
                flush=True,
            )
        if now - self.saved > self.save_every_s:
            self.saved = now
            self.save(trainer)
        if self.budget_s and self.seconds > self.budget_s:
            trainer.stop = True

    def save(self, trainer: Trainer) -> None:
        """Save last.pt and the progress."""
        trainer.save_model()
        self.file.write_text(json.dumps({"seconds": self.seconds, "steps": self.steps, "batch": BATCH}))


def train(out: Path, data: Path, epochs: int, minutes: float | None, task: str) -> None:
    """Train to the end, or continue an interrupted training; run/weights/last.pt is the result.

    Args:
        out: The folder of the training.
        data: The data.yaml.
        epochs: The maximum number of passes over the scenes.
        minutes: The time budget; None for none.
        task: A key of ARCHITECTURES.
    """
    from ultralytics.models import YOLO

    last = out / "run" / "weights" / "last.pt"
    resume = last.is_file() and (out / "pace.json").is_file()
    model = YOLO(last if resume else ARCHITECTURES[task])
    pace = Pace(out, minutes * 60 if minutes else None)
    model.add_callback("on_train_start", pace.start)
    model.add_callback("on_train_batch_start", pace.before_batch)
    model.add_callback("on_train_batch_end", pace.after_batch)
    model.add_callback("on_fit_epoch_end", pace.save)
    if resume:
        model.train(resume=True)
    else:
        model.train(data=str(data), epochs=epochs, project=str(out), name="run", exist_ok=True, patience=0, **SETTINGS)


def score(weights: Path, data: Path, task: str = "detect") -> Accuracy:
    """Accuracy on the validation images of `data`, from this project's evaluator."""
    from edgeprune.data.dataset import load
    from edgeprune.measuring.accuracy import evaluate
    from edgeprune.measuring.sessions import TorchSession
    from edgeprune.model import checkpoint

    pictures, size = load(data, task=task), Size.of(dataset.SIZE)
    session = TorchSession(checkpoint.load(weights).model, size)
    return evaluate(session, pictures, pictures.val, size)[0]


def stock_score(weights: Path, data: Path, folder: Path) -> tuple[float, float]:
    """mAP50 and mAP50-95 from `yolo val`, a different evaluator that users of Ultralytics know.

    Args:
        weights: The checkpoint.
        data: The data.yaml.
        folder: Holds Ultralytics' output.
    """
    from ultralytics.models import YOLO

    settings = {"imgsz": dataset.SIZE, "batch": 8, "rect": False, "workers": 0, "plots": False, "device": "cpu"}
    place = {"project": str(folder), "name": "val", "exist_ok": True}
    metrics = YOLO(weights).val(data=str(data), verbose=False, **settings, **place)
    box = metrics.box
    return float(box.map50), float(box.map)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m edgeprune.demo.train", description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, required=True, help="folder for the scenes, the run and the result")
    p.add_argument("--scenes", type=int, default=2400, help="number of training scenes (default %(default)s)")
    p.add_argument(
        "--epochs", type=int, default=60, help="maximum number of passes over the scenes (default %(default)s)"
    )
    p.add_argument("--minutes", type=float, help="time budget, minutes; the learning rate then follows the clock")
    p.add_argument("--processes", type=int, default=os.cpu_count(), help="number of processes that draw the scenes")
    p.add_argument(
        "--without-stock", action="store_true",
        help="do not measure with Ultralytics, whose rotated NMS exceeds its own time limit on a busy CPU",
    )  # fmt: skip
    p.add_argument("--finish", action="store_true", help="do not train; only strip, measure and write the card")
    p.add_argument("--task", choices=ARCHITECTURES, default="detect", help="task of the network (default %(default)s)")
    p.add_argument("--weights", type=Path, help="file for the checkpoint (default: in the package)")
    return p


def finish(last: Path, out: Path, args: argparse.Namespace) -> Accuracy:
    """Strip the EMA weights, measure them on the unseen scenes, and write the card.

    Args:
        last: The checkpoint of the training.
        out: The folder of the training.
        args: The options of the command line.

    Returns:
        The accuracy.
    """
    from edgeprune.model import checkpoint

    trained = checkpoint.load(last)
    checkpoint.save(args.weights, trained.model, trained)
    # One unused training scene, because a data.yaml needs at least one.
    data = dataset.write(out / "unseen", 1, VAL, task=args.task, processes=args.processes)
    accuracy = score(args.weights, data, args.task)
    pace = json.loads((out / "pace.json").read_text())
    budget = f"--minutes {args.minutes:g}" if args.minutes else f"--epochs {args.epochs}"
    chosen = "" if args.task == DETECT.name else f"-{args.task} --task {args.task}"
    training = card.Training(
        command=f"python -m edgeprune.demo.train --out runs/demo{chosen} --scenes {args.scenes} {budget}",
        scenes=args.scenes,
        steps=pace["steps"],
        seconds=pace["seconds"],
        schedule="time" if args.minutes else "steps",
        warmup=WARMUP_STEPS,
        settings=SETTINGS,
        task=args.task,
    )
    stock = None if args.without_stock else stock_score(args.weights, data, out)
    text = card.text(args.weights, training, accuracy, stock)
    args.weights.with_name(CARDS[args.task]).write_text(text)
    return accuracy


def main(argv: list[str] | None = None) -> None:
    """Draw the scenes, train, write the checkpoint, measure it and write the card."""
    args = parser().parse_args(argv)
    args.weights = args.weights or NETWORKS[args.task]
    out = args.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    last = out / "run" / "weights" / "last.pt"
    if not args.finish and not (out / DONE).exists():
        data = dataset.write(
            out / "scenes",
            args.scenes,
            100,
            task=args.task,
            first_train_seed=dataset.WEIGHTS_SEED,
            first_val_seed=dataset.CHECK_SEED,
            processes=args.processes,
        )
        train(out, data, args.epochs, args.minutes, args.task)
        (out / DONE).touch()
    accuracy = finish(last, out, args)
    print(f"{args.weights}: mAP50 {accuracy.map50:.3f}, mAP50-95 {accuracy.map50_95:.3f} on {VAL} unseen scenes")


if __name__ == "__main__":
    main()
