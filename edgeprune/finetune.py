"""Fine-tune a pruned model with Ultralytics' own trainer, without losing the pruning.

`Model.train()` rebuilds the network from its YAML and copies what still fits, which silently undoes the pruning. The
trainer (trainer.py) returns the pruned module itself, in training, interruption and resumption, and checks at every
step that the number of parameters has not changed.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.files import write_atomic

from edgeprune import checkpoint
from edgeprune.dataset import Dataset


@dataclass(frozen=True)
class Settings:
    """epochs: passes over the training pictures; batch: pictures a step; lr: peak learning rate (AdamW, cosine to 1 %);
    device: as Ultralytics takes it (cpu, 0, 0,1); workers: data loading processes."""

    epochs: int = 10
    batch: int = 4
    lr: float = 1e-4
    imgsz: int = 640
    device: str = "cpu"
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.workers < 0:
            raise InputError("epochs and batch must be at least 1, workers at least 0")
        if not 0 < self.lr < 1:
            raise InputError(f"lr {self.lr:g} is outside (0, 1); 1e-4 is the default")
        if self.imgsz < 32 or self.imgsz % 32:
            raise InputError(f"imgsz {self.imgsz} must be a multiple of 32")

    def overrides(self) -> dict:
        """Ultralytics' arguments, with the defaults that would spoil a gentle fine-tuning replaced:

        optimizer: `auto` ignores lr0. warmup_bias_lr: 0.1 by default, a thousand times a low learning rate.
        nbs: 64 by default, which at batch 4 makes one step of sixteen batches. close_mosaic: mosaic pictures are not
        what the drone sees; the last third of the epochs goes without them. amp: its check downloads a model.
        """
        return {
            "epochs": self.epochs, "batch": self.batch, "nbs": self.batch, "imgsz": self.imgsz,
            "device": self.device, "workers": self.workers, "seed": self.seed,
            "optimizer": "AdamW", "lr0": self.lr, "lrf": 0.01, "cos_lr": True, "momentum": 0.9,
            "warmup_epochs": min(1.0, self.epochs / 10), "warmup_bias_lr": 0.0, "warmup_momentum": 0.9,
            "close_mosaic": max(1, math.ceil(self.epochs / 3)), "patience": 0, "amp": False,
            "val": False, "plots": False, "save": True, "deterministic": True, "verbose": False,
        }  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """Where the training stands: epoch (from 1) of epochs, step of steps in it, mean loss so far in this epoch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


def check_device(device: str) -> None:
    """Raises InputError where the device does not exist: before an hour of work, not after it."""
    from ultralytics.utils.torch_utils import select_device

    try:
        select_device(device, verbose=False)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: not on this machine ({str(error).strip().splitlines()[0]})") from error


def finetune(
    weights: Path,
    dataset: Dataset,
    out: Path,
    settings: Settings,
    folder: Path,
    *,
    on_step: Callable[[Progress], None] | None = None,
    observe: Callable | None = None,
) -> dict:
    """Train `weights` and write the result (EMA of the last epoch) to `out` as a stock checkpoint.

    folder: where the trainer keeps its last.pt; if one of an interrupted run of the same settings lies there, training
    goes on from its last epoch. observe: called with the trainer after every optimiser step (tests read it).

    Returns: epochs, steps, batch (after lowering), seconds are the caller's to measure.

    Raises:
        InputError: the device does not exist, or memory runs out even with a batch of 1.
    """
    check_device(settings.device)
    start = checkpoint.load(weights)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "train" / "weights" / "last.pt"
    batch = settings.batch
    while True:
        try:
            trainer = _run(weights, dataset, settings, batch, folder, last, on_step, observe)
            break
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise _as_input_error(error) from error
            if batch == 1:
                raise InputError("out of memory with a batch of 1; lower --imgsz or use a machine with more") from error
        gc.collect()
        batch //= 2
    tuned = trainer.ema.ema
    _check_widths(start.model, tuned)
    tuned.names = start.model.names
    checkpoint.save(out, tuned, like=start)
    return {"epochs": settings.epochs, "batch": trainer.batch_size, "steps": trainer.optimizer_steps}


def _run(weights, dataset, settings, batch, folder, last, on_step, observe):
    from ultralytics.utils import LOGGER

    from edgeprune.trainer import KeepArchitecture

    overrides = {
        **settings.overrides(), "batch": batch, "nbs": batch, "model": str(weights.resolve()),
        "data": str(_write_data(dataset, folder)), "project": str(folder.resolve()), "name": "train", "exist_ok": True,
    }  # fmt: skip
    resuming = last.is_file() and _unfinished(last, overrides)
    if resuming:
        overrides["resume"] = str(last.resolve())
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        with checkpoint.safe_load(), _no_bar():
            trainer = KeepArchitecture(overrides=overrides)
            _attach(trainer, on_step, observe)
            trainer.train()
    finally:
        LOGGER.setLevel(level)
    trainer.check_architecture()
    return trainer


def _write_data(dataset: Dataset, folder: Path) -> Path:
    """The data set as we read it, by absolute paths: Ultralytics looks for relative ones in places of its own."""
    for split in ("train", "val"):
        write_atomic(folder / f"{split}.txt", "".join(f"{p}\n" for p in getattr(dataset, split)))
    names = dict(enumerate(dataset.names))
    content = {"path": str(folder.resolve()), "train": "train.txt", "val": "val.txt", "names": names}
    path = folder.resolve() / "data.yaml"
    write_atomic(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return path


def _attach(trainer, on_step, observe) -> None:
    place = {"step": 0, "loss": 0.0}

    def batch_end(t):
        place["step"] += 1
        place["loss"] += (float(t.loss.detach()) / t.batch_size - place["loss"]) / place["step"]
        if observe:
            observe(t)
        if on_step:
            on_step(Progress(t.epoch + 1, t.epochs, place["step"], len(t.train_loader), place["loss"]))

    trainer.add_callback("on_train_epoch_start", lambda t: place.update(step=0, loss=0.0))
    trainer.add_callback("on_train_batch_end", batch_end)


def _unfinished(last: Path, overrides: dict) -> bool:
    """A last.pt to go on from: of the same run settings, with epochs left."""
    try:
        saved = checkpoint.load(last).extra
    except InputError:
        return False
    arguments = saved.get("train_args") or {}
    same = all(arguments.get(k) == overrides[k] for k in ("epochs", "imgsz", "lr0", "seed", "data", "model"))
    return same and 0 <= saved.get("epoch", -1) < overrides["epochs"] - 1


def _check_widths(before: torch.nn.Module, after: torch.nn.Module) -> None:
    ours = {k: tuple(v.shape) for k, v in before.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in after.state_dict().items()}
    if ours != theirs:
        changed = next(k for k in ours if ours[k] != theirs.get(k))
        raise EdgepruneError(f"training changed the shape of {changed}: {ours[changed]} became {theirs.get(changed)}")


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _as_input_error(error: BaseException) -> EdgepruneError:
    return InputError(f"training failed: {' '.join(str(error).split())[:300]}")


@contextlib.contextmanager
def _no_bar():
    """Ultralytics draws its own progress bar; ours says the same, with the time that is left."""
    from ultralytics.engine import trainer as module

    before = module.TQDM
    module.TQDM = lambda iterable, *_, **__: _Plain(iterable)
    try:
        yield
    finally:
        module.TQDM = before


class _Plain:
    def __init__(self, iterable) -> None:
        self._iterable = iterable

    def __iter__(self):
        return iter(self._iterable)

    def set_description(self, *_args) -> None:
        """Nothing to draw on."""
