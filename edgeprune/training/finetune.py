"""Fine-tuning of a pruned model with Ultralytics' trainer, without undoing the pruning.

`Model.train()` rebuilds the network from its YAML and copies the weights that still fit, which silently undoes the
pruning. Our trainer (trainer.py) trains the pruned module itself, also after an interruption, and checks at every step
that the number of parameters has not changed.

Early stopping needs images that are neither trained on nor validation images, because a result selected on the
validation images would look better than it is. So `patience` holds out a tenth of the training images. The evaluator's
mAP on them decides, not their loss: a detector's loss rises with its confidence while its mAP still grows.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
import yaml
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.files import sha256, write_atomic
from edgeprune_device.option import named
from edgeprune_device.size import Size

from edgeprune import options
from edgeprune.data import samples
from edgeprune.data.dataset import Dataset
from edgeprune.model import checkpoint
from edgeprune.model.device import Device, choose
from edgeprune.training import distill, qat, tracking
from edgeprune.workers import wanted

if TYPE_CHECKING:
    from edgeprune.training.trainer import KeepArchitecture


#: Images a step: on the CPU, and the least for each GPU; the most for each GPU.
LEAST, MOST = 4, 32
#: Steps of an epoch that a batch on a GPU leaves.
STEPS = 100
#: The size of the input if none is given, px; Ultralytics' own.
DEFAULT_SIZE = Size(640, 640)
#: Begins PyTorch's message when the kernel has killed a data loading process, or shared memory ran out.
_WORKER_DIED = "DataLoader worker"


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training, with the ranges of the options (edgeprune/options.py).

    Attributes:
        epochs: Passes over the training images.
        batch: Images per step; None: see `placed`.
        lr: The learning rate (AdamW, warm-up, cosine to 1 %).
        imgsz: The side of a square input, or (height, width), px.
        device: `auto`, `cpu`, the number of a GPU, or several numbers: `0,1`.
        workers: Data loading processes; None: see `placed`.
        seed: The seed of the random numbers.
        patience: The training stops after this many epochs without a better figure on held-out images; 0: never.
        sparsity: See pruning/sparsity.py; 0: off.
        qat: Round as the INT8 file will, see qat.py.

    Raises:
        InputError: A value is outside its range, or two settings exclude each other.
    """

    epochs: int = 10
    batch: int | None = None
    lr: float = 1e-4
    imgsz: Size = DEFAULT_SIZE
    device: str = "auto"
    workers: int | None = None
    seed: int = 0
    patience: int = 0
    sparsity: float = 0.0
    qat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "imgsz", Size.of(self.imgsz))
        declared = options.declared(options.FinetuneOptions)
        for setting in fields(self):
            if setting.name != "qat":  # the option is a number of epochs
                declared[setting.name].check(getattr(self, setting.name))
        if any(side % 32 for side in self.imgsz):
            raise InputError(f"{named('imgsz', self.imgsz)}: must be a multiple of 32")
        if self.qat and (self.patience or self.sparsity):
            raise InputError(
                f"{named('qat')}: cannot be combined with {named('patience')} or {named('sparsity')}, because this "
                "training is short and comes last; leave them out"
            )
        if self.sparsity > self.lr:
            raise InputError(
                f"{named('sparsity', f'{self.sparsity:g}')}: larger than the learning rate, "
                f"{named('lr', f'{self.lr:g}')}; lower {named('sparsity')} or raise {named('lr')}"
            )
        if self.batch is not None and self.batch % self.gpus:
            raise InputError(
                f"{named('batch', self.batch)}: not a multiple of {self.gpus}, the number of GPUs in "
                f"{named('device', self.device)}"
            )

    @property
    def gpus(self) -> int:
        """The number of processes that share a batch; 1 on the CPU."""
        return len(self.device.split(","))

    def placed(self, device: Device, images: int) -> TrainingSettings:
        """These settings for a device, with defaults for the batch and the data loading processes.

        On GPUs the batch per GPU is the largest power of two that leaves an epoch STEPS optimiser steps, from LEAST to
        MOST images. A larger batch would use the GPU better, but a small data set would get only a few steps.

        Args:
            device: The device.
            images: The number of training images.
        """
        here = replace(self, device=device.text)
        on_gpu = device.text != "cpu"
        fits = 1 << max(images // (STEPS * here.gpus), 1).bit_length() - 1
        batch = here.gpus * min(max(fits, LEAST), MOST) if on_gpu else LEAST
        workers = min(max(wanted() // here.gpus - 1, 0), 8) if on_gpu else 0
        return replace(
            here,
            batch=self.batch if self.batch is not None else batch,
            workers=self.workers if self.workers is not None else workers,
        )

    def overrides(self) -> dict[str, Any]:
        """Ultralytics' arguments. These replace defaults that do not suit fine-tuning:

        optimizer: `auto` ignores lr0. warmup_bias_lr: the default of 0.1 is a thousand times our learning rate. nbs:
        the default of 64 makes one step of sixteen batches at batch 4. close_mosaic: a drone sees no mosaic images, so
        the last third of the epochs uses none. amp: mixed precision, on GPUs only.
        """
        assert self.batch is not None and self.workers is not None  # `placed` has set them
        return {
            "epochs": self.epochs, "batch": self.batch, "nbs": self.batch, "imgsz": max(self.imgsz),
            "device": self.device, "workers": self.workers, "seed": self.seed,
            "optimizer": "AdamW", "lr0": self.lr, "lrf": 0.01, "cos_lr": True, "momentum": 0.9,
            "warmup_epochs": min(1.0, self.epochs / 10), "warmup_bias_lr": 0.0, "warmup_momentum": 0.9,
            "close_mosaic": max(1, math.ceil(self.epochs / 3)), "patience": self.patience,
            "amp": self.device != "cpu",
            "val": self.patience > 0, "plots": False, "save": True, "deterministic": True, "verbose": False,
        }  # fmt: skip


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training.

    Attributes:
        epoch: The current epoch, from 1.
        epochs: The number of epochs.
        step: The current step of the epoch.
        steps: The number of steps of an epoch.
        loss: The mean loss so far in this epoch.
        trainer: Ultralytics' trainer, for tests.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    trainer: KeepArchitecture = field(repr=False, compare=False)


OnStep = Callable[[TrainingProgress], None]


class Counts(TypedDict, total=False):
    """The amount of a training.

    Attributes:
        epochs: Complete epochs.
        batch: Images per step of the optimiser; None if no epoch is complete.
        steps: Steps of the optimiser over all epochs.
        best_epoch: The epoch that was kept, from 1; only with patience.
    """

    epochs: int
    batch: int | None
    steps: int
    best_epoch: int


def finetune_network(
    weights: Path,
    dataset: Dataset,
    out: Path,
    settings: TrainingSettings,
    folder: Path,
    *,
    teacher: Path | None = None,
    on_step: OnStep | None = None,
    tracked: bool = True,
    warn: Callable[[str], None] = lambda line: None,
) -> Counts:
    """Train `weights` and write the result to `out` as a stock checkpoint.

    The result is the EMA of the last epoch, or with patience of the best epoch. With `settings.qat` the scheme comes
    from the INT8 file of these weights, calibrated on training images, and `out` contains it.

    Args:
        weights: The checkpoint to train.
        dataset: The data set.
        out: The checkpoint to write.
        settings: The settings of the training.
        folder: Holds the state of the run. An interrupted run of the same weights, data, teacher and settings in this
            folder continues from its last complete epoch; any other run is deleted.
        teacher: A checkpoint to learn from in addition to the labels (distill.py).
        on_step: Called with the progress after every batch; not with several GPUs, where the training runs in other
            processes.
        tracked: Whether the user's trackers follow the training (tracking.py), with logs beside `out`; False for a
            temporary `out`.
        warn: Receives one line if a data loading process died and the training continues without such processes.

    Raises:
        InputError: The device does not exist, the teacher does not match, there are too few images to hold some back,
            or memory runs out even with a batch of 1.
    """
    settings = settings.placed(choose(settings.device), len(dataset.train))
    start = checkpoint.load(weights)
    if teacher is not None:
        distill.check(start.model, checkpoint.load(teacher).model)
    data = hold_back(dataset) if settings.patience else dataset
    run = _TrainingRun(folder, _identity(weights, dataset, settings, teacher))
    if not start.stock:  # Ultralytics' trainer opens the file itself
        start.path = run.folder / weights.name
        checkpoint.save(start.path, start.model, like=start)
    if tracked:
        tracking.prepare(run.folder, weights=weights, data=dataset.path, out=out)
    scheme = run.scheme(start.model, dataset, settings.imgsz) if settings.qat else None
    job = _Job(start, data, run, teacher, scheme, on_step)
    while not run.finished(settings):
        try:
            _train(job, settings)
        except (MemoryError, RuntimeError) as error:
            if settings.workers and _WORKER_DIED in str(error):
                cause = str(error).splitlines()[0]
                warn(f"a data loading process died ({cause:.120}); the training continues with {named('workers', 0)}")
                settings = replace(settings, workers=0)
                continue
            if not _out_of_memory(error):
                raise
            if settings.batch == settings.gpus:
                raise InputError(
                    f"out of memory with a batch of 1; lower {named('imgsz')}, or use a machine with more memory"
                ) from error
            settings = replace(settings, batch=(settings.batch or 2) // 2)
        except subprocess.CalledProcessError as error:
            raise EdgepruneError(
                f"{named('device', settings.device)}: training failed, see the messages above; {named('device', 0)} "
                "trains in a single process"
            ) from error
        gc.collect()
    chosen = checkpoint.load(run.best if settings.patience else run.last)
    _check_widths(start.model, chosen.model)
    chosen.model.names = start.model.names
    was = start.imgsz or settings.imgsz
    if settings.imgsz != was and not (settings.imgsz.is_square and was.is_square):
        # The size at which Ultralytics opens the result. A square keeps the size of the original training.
        arguments = {**(start.extra.get("train_args") or {}), "imgsz": settings.imgsz.to_json()}
        start = replace(start, extra={**start.extra, "train_args": arguments})
    checkpoint.save(out, chosen.model, like=start, extra=qat.carried(scheme) if scheme else None)
    counts = run.counted()
    if settings.patience:
        counts["best_epoch"] = chosen.extra["epoch"] + 1
    return counts


def hold_back(dataset: Dataset) -> Dataset:
    """Split off the images for early stopping.

    A tenth of the labelled training images (8 to 64), evenly spread, becomes the validation split and is excluded
    from training.

    Returns:
        The data set to train with.

    Raises:
        InputError: There are fewer than 32 labelled training images.
    """
    labelled = [p for p in dataset.train if len(dataset.labels(p))]
    if len(labelled) < 32:
        raise InputError(
            f"{named('patience')}: too few labelled training images to hold out a tenth (found {len(labelled)}, "
            "expected at least 32)"
        )
    held = samples.pick(labelled, min(max(len(labelled) // 10, 8), 64))
    trained = set(dataset.train) - set(held)
    return replace(dataset, train=tuple(p for p in dataset.train if p in trained), val=tuple(held))


def _identity(weights: Path, dataset: Dataset, settings: TrainingSettings, teacher: Path | None) -> dict[str, Any]:
    """The inputs that a run's result depends on, without those of device and memory."""
    asked = {k: v for k, v in asdict(settings).items() if k not in ("device", "workers", "batch")}
    return {
        "weights_sha256": sha256(weights),
        "data_sha256": dataset.sha256,
        "teacher_sha256": None if teacher is None else sha256(teacher),
        **asked,
        "imgsz": settings.imgsz.to_json(),
    }


class _TrainingRun:
    """The state of one fine-tuning on disk: its identity, its checkpoints, and the steps of each epoch."""

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
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

    def scheme(self, model: torch.nn.Module, dataset: Dataset, imgsz: Size) -> qat.Scheme:
        """The scheme of the run, made once, so that a resumed run rounds in the same way."""
        path = self.folder / "scheme.json"
        if not path.exists():
            write_atomic(path, json.dumps(qat.plan(model, imgsz, qat.calibration(dataset, imgsz)).to_json()))
        return qat.Scheme.from_json(self._read(path))

    @staticmethod
    def _read(path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return content

    def _state(self) -> dict[str, Any]:
        try:
            return checkpoint.load(self.last).extra
        except InputError:
            return {}

    @property
    def epochs_done(self) -> int:
        """Complete epochs in last.pt."""
        return int(self._state().get("epoch", -1)) + 1

    def finished(self, settings: TrainingSettings) -> bool:
        """Whether every epoch is done, or patience has run out."""
        state = self._state()
        done = int(state.get("epoch", -1)) + 1
        waited = done - int(state.get("stopper", {}).get("best_epoch", done))
        return done >= settings.epochs or 0 < settings.patience <= waited

    def counted(self) -> Counts:
        """The amount of training in last.pt."""
        done = self.epochs_done
        counts = self._read(self._steps).get(str(done), {"batch": None, "steps": 0})
        return {"epochs": done, "batch": counts["batch"], "steps": counts["steps"]}


@dataclass(frozen=True)
class _Job:
    """The inputs of a training that stay the same when it restarts with a smaller batch.

    Attributes:
        start: The checkpoint to train.
        dataset: The data set.
        run: The state on disk.
        teacher: A checkpoint to learn from, or None.
        scheme: The scheme to round by, or None.
        on_step: Called after every batch, or None.
    """

    start: checkpoint.Checkpoint
    dataset: Dataset
    run: _TrainingRun
    teacher: Path | None
    scheme: qat.Scheme | None
    on_step: OnStep | None


#: Arguments that stay as in the user's own training: augmentation (flips may not be allowed) and gains.
_INHERITED = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr",
    "mosaic", "mixup", "cutmix", "copy_paste", "box", "cls", "dfl", "angle", "single_cls",
)  # fmt: skip


def _train(job: _Job, settings: TrainingSettings) -> None:
    from edgeprune.training.trainer import KeepArchitecture, Recipe

    run, theirs = job.run, job.start.extra.get("train_args") or {}
    overrides = {
        **{k: theirs[k] for k in _INHERITED if isinstance(theirs.get(k), (bool, int, float))},
        **settings.overrides(), "model": str(job.start.path.resolve()),
        "data": str(_write_data(job.dataset, run.folder)), "save_dir": str(run.folder / "train"),
        "task": job.start.task,
    }  # fmt: skip
    if run.epochs_done:
        overrides["resume"] = str(run.last)
    teacher = None if job.teacher is None else str(job.teacher.resolve())
    scheme = None if job.scheme is None else job.scheme.to_json()
    Recipe(teacher, settings.sparsity, scheme, settings.imgsz).write(run.folder)
    trainer = KeepArchitecture(overrides=overrides)
    if job.on_step is not None and not trainer.ddp:
        _attach(trainer, job.on_step)
    trainer.train()
    if not trainer.ddp:
        trainer.check_architecture()


def _write_data(dataset: Dataset, folder: Path) -> Path:
    """Write the data set with absolute paths, because Ultralytics resolves relative ones in its own way."""
    for split in ("train", "val"):
        write_atomic(folder / f"{split}.txt", "".join(f"{p}\n" for p in getattr(dataset, split)))
    names = dict(enumerate(dataset.names))
    content: dict[str, Any] = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": names}
    if dataset.keypoints:
        content["kpt_shape"] = list(dataset.keypoints)
    write_atomic(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return folder / "data.yaml"


def _attach(trainer: KeepArchitecture, on_step: OnStep) -> None:
    step, loss = 0, 0.0

    def epoch_start(_trainer: KeepArchitecture) -> None:
        nonlocal step, loss
        step, loss = 0, 0.0

    def batch_end(t: KeepArchitecture) -> None:
        nonlocal step, loss
        step += 1
        loss += (float(t.loss.detach()) / t.batch_size - loss) / step
        on_step(TrainingProgress(t.epoch + 1, t.epochs, step, len(t.train_loader), loss, t))

    trainer.add_callback("on_train_epoch_start", epoch_start)
    trainer.add_callback("on_train_batch_end", batch_end)


def _check_widths(before: torch.nn.Module, after: torch.nn.Module) -> None:
    ours = {k: tuple(v.shape) for k, v in before.state_dict().items()}
    theirs = {k: tuple(v.shape) for k, v in after.state_dict().items()}
    if ours != theirs:
        changed = next(k for k in ours if ours[k] != theirs.get(k))
        raise EdgepruneError(
            f"training changed the shape of {changed} (found {theirs.get(changed)}, expected {ours[changed]})"
        )


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
