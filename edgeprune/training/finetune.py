"""Fine-tuning of a pruned model with Ultralytics' own trainer, without losing the pruning.

`Model.train()` rebuilds the network from its YAML and copies the weights that still fit, which silently undoes the
pruning. The trainer (trainer.py) returns the pruned module itself, in training, interruption and resumption, and checks
at every step that the number of parameters has not changed.

Early stopping must use images that the training does not see, and other images than the validation images, which judge
the result: a result selected on them would look better than it is. So `patience` holds back a tenth of the training
images. Their mAP by the evaluator decides, not their loss: a detector's loss rises with its confidence while its mAP
still grows.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.files import sha256, write_atomic

from edgeprune.data import samples
from edgeprune.data.dataset import Dataset
from edgeprune.model import checkpoint
from edgeprune.model.threads import use_all_cores
from edgeprune.training import distill, qat, tracking


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training.

    Attributes:
        epochs: Passes over the training images.
        batch: Images a step.
        lr: The learning rate (AdamW, warm-up, cosine to 1 %).
        imgsz: The side of the square image, px.
        device: `cpu`, the number of a GPU, or those of several: `0,1`.
        workers: Data loading processes.
        seed: Of the random numbers.
        patience: Epochs without a better figure on held-back training images after which the training stops; 0: never.
        sparsity: See pruning/sparsity.py; 0: off.
        qat: Round as the INT8 file will, see qat.py.

    Raises:
        InputError: A value is outside its range, or two settings exclude each other.
    """

    epochs: int = 10
    batch: int = 4
    lr: float = 1e-4
    imgsz: int = 640
    device: str = "cpu"
    workers: int = 0
    seed: int = 0
    patience: int = 0
    sparsity: float = 0.0
    qat: bool = False

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("workers", 0), ("patience", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if not 0 < self.lr < 1:
            raise InputError(f"lr {self.lr:g} is outside (0, 1); 1e-4 is the default")
        if self.imgsz < 32 or self.imgsz % 32:
            raise InputError(f"imgsz {self.imgsz} must be a multiple of 32")
        if self.qat and (self.patience or self.sparsity):
            raise InputError("training with --qat is short, and comes last: it takes neither --patience nor --sparsity")
        if not 0 <= self.sparsity <= self.lr:
            raise InputError(f"sparsity {self.sparsity:g} is outside [0, {self.lr:g}], up to the learning rate (--lr)")
        if self.batch % self.gpus:
            raise InputError(f"batch {self.batch} must be a multiple of the {self.gpus} GPUs of --device {self.device}")

    @property
    def gpus(self) -> int:
        """The number of processes that share a batch; 1 on the CPU."""
        return len(self.device.split(","))

    def overrides(self) -> dict:
        """Ultralytics' arguments. These replace defaults that would spoil a gentle fine-tuning:

        optimizer: `auto` ignores lr0. warmup_bias_lr: 0.1 by default, a thousand times a low learning rate. nbs: 64 by
        default, which at batch 4 makes one step of sixteen batches. close_mosaic: a drone sees no mosaic images; the
        last third of the epochs goes without them. amp: its check downloads a model.
        """
        return {
            "epochs": self.epochs, "batch": self.batch, "nbs": self.batch, "imgsz": self.imgsz,
            "device": self.device, "workers": self.workers, "seed": self.seed,
            "optimizer": "AdamW", "lr0": self.lr, "lrf": 0.01, "cos_lr": True, "momentum": 0.9,
            "warmup_epochs": min(1.0, self.epochs / 10), "warmup_bias_lr": 0.0, "warmup_momentum": 0.9,
            "close_mosaic": max(1, math.ceil(self.epochs / 3)), "patience": self.patience, "amp": False,
            "val": self.patience > 0, "plots": False, "save": True, "deterministic": True, "verbose": False,
        }  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """The progress of a training.

    Attributes:
        epoch: The current epoch, from 1.
        epochs: The number of epochs.
        step: The current step of the epoch.
        steps: The number of steps of an epoch.
        loss: The mean loss so far in this epoch.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


def check_device(device: str) -> None:
    """Check that the device exists, before an hour of work and not after it.

    Raises:
        InputError: It does not exist, or a package for several GPUs is missing.
    """
    from ultralytics.utils.torch_utils import select_device

    try:
        select_device(device, verbose=False)
        use_all_cores()
    except (ValueError, RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device}: not on this machine ({str(error).strip().splitlines()[0]})") from error
    if "," in device and importlib.util.find_spec("cloudpickle") is None:  # else Ultralytics would install it
        raise InputError(f"--device {device}: several GPUs need a package more: pip install cloudpickle")


def finetune_network(
    weights: Path,
    dataset: Dataset,
    out: Path,
    settings: TrainingSettings,
    folder: Path,
    *,
    teacher: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
    observe: Callable | None = None,
    tracked: bool = True,
) -> dict:
    """Train `weights` and write the result to `out` as a stock checkpoint.

    The result is the EMA of the last epoch, or with patience that of the best. With `settings.qat` the scheme is that
    of the INT8 file of these weights, calibrated on training images, and `out` carries it.

    Args:
        weights: The checkpoint to train.
        dataset: The data set.
        out: The checkpoint to write.
        settings: The settings of the training.
        folder: Holds the state of the run. An interrupted run of the same weights, data, teacher and settings in this
            folder goes on from its last whole epoch, however often it was interrupted; any other run is deleted.
        teacher: A checkpoint to learn from beside the labels (distill.py).
        on_step: Called with the progress after every batch. Not on several GPUs, where the training runs in other
            processes.
        observe: Called with the trainer after every batch, for tests. Not on several GPUs.
        tracked: Whether the user's trackers follow the training (tracking.py), whose logs lie beside `out`; False for a
            temporary `out`.

    Returns:
        `epochs` done, `batch` (images per step of the optimiser) and `steps` of the optimiser over all epochs; with
            patience also `best_epoch`.

    Raises:
        InputError: The device does not exist, the teacher does not fit, there are too few images to hold some back, or
            memory runs out even with a batch of 1.
    """
    check_device(settings.device)
    start = checkpoint.load(weights)
    if teacher is not None:
        distill.check(start.model, checkpoint.load(teacher).model)
    data = hold_back(dataset) if settings.patience else dataset
    run = _TrainingRun(folder, _identity(weights, dataset, settings, teacher))
    if tracked:
        tracking.prepare(run.folder, weights=weights, data=dataset.path, out=out)
    scheme = run.scheme(start.model, dataset, settings.imgsz) if settings.qat else None
    batch = settings.batch
    while not run.finished(settings):
        try:
            _train(start, data, replace(settings, batch=batch), run, teacher, on_step, observe, scheme)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if batch == 1:
                raise InputError("out of memory with a batch of 1; lower --imgsz or use a machine with more") from error
            batch //= 2
        except subprocess.CalledProcessError as error:
            raise EdgepruneError(
                f"training on --device {settings.device} failed; why stands above, and --device 0 needs no processes"
            ) from error
        gc.collect()
    chosen = checkpoint.load(run.best if settings.patience else run.last)
    _check_widths(start.model, chosen.model)
    chosen.model.names = start.model.names
    checkpoint.save(out, chosen.model, like=start, extra=qat.carried(scheme) if scheme else None)
    best = {"best_epoch": chosen.extra["epoch"] + 1} if settings.patience else {}
    return {**run.counted(), **best}


def hold_back(dataset: Dataset) -> Dataset:
    """Split off the images for early stopping.

    A tenth of the labelled training images (8 to 64), evenly spread, becomes the validation split and is not trained
    on.

    Returns:
        The data set to train with.

    Raises:
        InputError: There are fewer than 32 labelled training images.
    """
    labelled = [p for p in dataset.train if len(dataset.labels(p))]
    if len(labelled) < 32:
        raise InputError(
            f"--patience holds a tenth of the training pictures back and needs 32 labelled ones, not {len(labelled)}"
        )
    held = samples.pick(labelled, min(max(len(labelled) // 10, 8), 64))
    trained = set(dataset.train) - set(held)
    return replace(dataset, train=tuple(p for p in dataset.train if p in trained), val=tuple(held))


def _identity(weights: Path, dataset: Dataset, settings: TrainingSettings, teacher: Path | None) -> dict:
    """The inputs that a run's result depends on. The device and the memory are not part of it."""
    asked = {k: v for k, v in asdict(settings).items() if k not in ("device", "workers", "batch")}
    teacher = None if teacher is None else sha256(teacher)
    return {"weights_sha256": sha256(weights), "data_sha256": dataset.sha256, "teacher_sha256": teacher, **asked}


class _TrainingRun:
    """The state of one fine-tuning on disk: its identity, its checkpoints, and the steps of each epoch."""

    def __init__(self, folder: Path, identity: dict) -> None:
        self.folder = folder.resolve()
        self.last, self.best = (self.folder / "train" / "weights" / f"{name}.pt" for name in ("last", "best"))
        self._steps = self.folder / "steps.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "run.json"
        if self._read(mark) != identity:
            shutil.rmtree(self.folder / "train", ignore_errors=True)
            for file in (self._steps, self.folder / "scheme.json", self.folder / "tracking.json"):
                file.unlink(missing_ok=True)
            write_atomic(mark, json.dumps(identity))

    def scheme(self, model: torch.nn.Module, dataset: Dataset, imgsz: int) -> qat.Scheme:
        """The scheme of the run. It is made once, so that a run that goes on rounds as before."""
        path = self.folder / "scheme.json"
        if not path.exists():
            write_atomic(path, json.dumps(qat.plan(model, imgsz, qat.calibration(dataset, imgsz)).to_json()))
        return qat.Scheme.from_json(self._read(path))

    @staticmethod
    def _read(path: Path) -> dict:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return {}

    def _state(self) -> dict:
        try:
            return checkpoint.load(self.last).extra
        except InputError:
            return {}

    @property
    def epochs_done(self) -> int:
        """Whole epochs in last.pt."""
        return self._state().get("epoch", -1) + 1

    def finished(self, settings: TrainingSettings) -> bool:
        """Whether every epoch is done, or patience has run out."""
        state = self._state()
        done = state.get("epoch", -1) + 1
        waited = done - state.get("stopper", {}).get("best_epoch", done)
        return done >= settings.epochs or 0 < settings.patience <= waited

    def counted(self) -> dict:
        """{"epochs": whole epochs, "batch": images per step, "steps": since the first epoch} of last.pt."""
        done = self.epochs_done
        return {"epochs": done, **self._read(self._steps).get(str(done), {"batch": None, "steps": 0})}


#: Arguments of the user's own training that stay: its augmentation (left and right may not be swappable) and gains.
_INHERITED = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr",
    "mosaic", "mixup", "cutmix", "copy_paste", "box", "cls", "dfl", "single_cls",
)  # fmt: skip


def _train(start: checkpoint.Checkpoint, dataset, settings, run, teacher, on_step, observe, scheme=None) -> None:
    from edgeprune.training.trainer import KeepArchitecture, Recipe

    theirs = start.extra.get("train_args") or {}
    overrides = {
        **{k: theirs[k] for k in _INHERITED if isinstance(theirs.get(k), (bool, int, float))},
        **settings.overrides(), "model": str(start.path.resolve()),
        "data": str(_write_data(dataset, run.folder)), "save_dir": str(run.folder / "train"),
    }  # fmt: skip
    if run.epochs_done:
        overrides["resume"] = str(run.last)
    teacher = None if teacher is None else str(teacher.resolve())
    Recipe(teacher, settings.sparsity, scheme and scheme.to_json()).write(run.folder)
    trainer = KeepArchitecture(overrides=overrides)
    if not trainer.ddp:
        _attach(trainer, on_step, observe)
    trainer.train()
    if not trainer.ddp:
        trainer.check_architecture()


def _write_data(dataset: Dataset, folder: Path) -> Path:
    """Write the data set with absolute paths: Ultralytics looks for relative ones in places of its own."""
    for split in ("train", "val"):
        write_atomic(folder / f"{split}.txt", "".join(f"{p}\n" for p in getattr(dataset, split)))
    names = dict(enumerate(dataset.names))
    content = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": names}
    if dataset.keypoints:
        content["kpt_shape"] = list(dataset.keypoints)
    write_atomic(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder / "data.yaml"


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


def _check_widths(before: torch.nn.Module, after: torch.nn.Module) -> None:
    ours = {k: tuple(v.shape) for k, v in before.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in after.state_dict().items()}
    if ours != theirs:
        changed = next(k for k in ours if ours[k] != theirs.get(k))
        raise EdgepruneError(f"training changed the shape of {changed}: {ours[changed]} became {theirs.get(changed)}")


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
