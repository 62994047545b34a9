"""Fine-tune a pruned model with Ultralytics' own trainer, without losing the pruning.

`Model.train()` rebuilds the network from its YAML and copies what still fits, which silently undoes the pruning. The
trainer (trainer.py) returns the pruned module itself, in training, interruption and resumption, and checks at every
step that the number of parameters has not changed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.files import sha256, write_atomic

from edgeprune import checkpoint
from edgeprune.dataset import Dataset
from edgeprune.threads import use_all_cores


@dataclass(frozen=True)
class Settings:
    """epochs: passes over the training pictures; batch: pictures a step; lr: peak learning rate (AdamW, cosine to 1 %);
    device: cpu or the number of a GPU; workers: data loading processes."""

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

    if "," in device:
        raise InputError(f"--device {device}: training on several GPUs is not supported yet; give one")
    try:
        select_device(device, verbose=False)
        use_all_cores()
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

    folder: where the run keeps its state. An interrupted run of the same weights, data and settings that lies there
    goes on from its last whole epoch, however often it was interrupted; any other is thrown away. observe: called with
    the trainer after every batch (tests read it).

    Returns: epochs, batch (pictures per step of the optimiser), steps of the optimiser over all epochs.

    Raises:
        InputError: the device does not exist, or memory runs out even with a batch of 1.
    """
    check_device(settings.device)
    start = checkpoint.load(weights)
    run = _Run(folder, _identity(weights, dataset, settings))
    batch = settings.batch
    while run.epochs_done < settings.epochs:
        try:
            _train(start, dataset, settings, batch, run, on_step, observe)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            if batch == 1:
                raise InputError("out of memory with a batch of 1; lower --imgsz or use a machine with more") from error
            batch //= 2
        gc.collect()
    tuned = checkpoint.load(run.last).model
    _check_widths(start.model, tuned)
    tuned.names = start.model.names
    checkpoint.save(out, tuned, like=start)
    return {"epochs": settings.epochs, **run.counted()}


def _identity(weights: Path, dataset: Dataset, settings: Settings) -> dict:
    """What a run's result depends on; where and with how much memory it runs is not part of it."""
    asked = {k: v for k, v in asdict(settings).items() if k not in ("device", "workers", "batch")}
    return {"weights_sha256": sha256(weights), "data_sha256": dataset.sha256, **asked}


class _Run:
    """The state of one fine-tuning on disk: whose it is, its last checkpoint, and the steps behind each epoch."""

    def __init__(self, folder: Path, identity: dict) -> None:
        self.folder = folder.resolve()
        self.last = self.folder / "train" / "weights" / "last.pt"
        self._steps = self.folder / "steps.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "run.json"
        if self._read(mark) != identity:
            shutil.rmtree(self.folder / "train", ignore_errors=True)
            self._steps.unlink(missing_ok=True)
            write_atomic(mark, json.dumps(identity))

    @staticmethod
    def _read(path: Path) -> dict:
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError):
            return {}

    @property
    def epochs_done(self) -> int:
        """Whole epochs in last.pt."""
        try:
            return checkpoint.load(self.last).extra.get("epoch", -1) + 1
        except InputError:
            return 0

    def counted(self) -> dict:
        """{"batch": pictures per step, "steps": since the first epoch} of what last.pt holds."""
        return self._read(self._steps).get(str(self.epochs_done), {"batch": None, "steps": 0})

    def count(self, epochs: int, batch: int, steps: int) -> None:
        """Written before last.pt is, so that it knows every last.pt there may be."""
        counts = {**self._read(self._steps), str(epochs): {"batch": batch, "steps": steps}}
        write_atomic(self._steps, json.dumps(counts))


#: What the user's own training had to say of pictures and losses: left and right that may not be swapped, gains.
_INHERITED = (
    "hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr",
    "mosaic", "mixup", "cutmix", "copy_paste", "box", "cls", "dfl", "single_cls",
)  # fmt: skip


def _train(start: checkpoint.Checkpoint, dataset, settings, batch, run, on_step, observe) -> None:
    from ultralytics.utils import LOGGER

    from edgeprune.trainer import KeepArchitecture

    theirs = start.extra.get("train_args") or {}
    overrides = {
        **{k: theirs[k] for k in _INHERITED if k in theirs},
        **settings.overrides(), "batch": batch, "nbs": batch, "model": str(start.path.resolve()),
        "data": str(_write_data(dataset, run.folder)), "project": str(run.folder), "name": "train", "exist_ok": True,
    }  # fmt: skip
    before = run.counted()["steps"]
    if run.epochs_done:
        overrides["resume"] = str(run.last)
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        with checkpoint.safe_load(), _hands_off():
            trainer = KeepArchitecture(overrides=overrides)
            use_all_cores()

            def save(t):
                run.count(t.epoch + 1, t.batch_size * t.accumulate, before + t.optimizer_steps)

            trainer.before_save = save
            _attach(trainer, on_step, observe)
            trainer.train()
    finally:
        LOGGER.setLevel(level)
    trainer.check_architecture()


def _write_data(dataset: Dataset, folder: Path) -> Path:
    """The data set as we read it, by absolute paths: Ultralytics looks for relative ones in places of its own."""
    for split in ("train", "val"):
        write_atomic(folder / f"{split}.txt", "".join(f"{p}\n" for p in getattr(dataset, split)))
    names = dict(enumerate(dataset.names))
    content = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": names}
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


@contextlib.contextmanager
def _hands_off():
    """Ultralytics re-encodes JPEGs that it finds wanting in place, leaves caches in the label folders, and draws its
    own progress bar. The pictures are the user's, and our progress line tells the time that is left."""
    from ultralytics.data import dataset, utils
    from ultralytics.engine import trainer

    ours = (
        (utils, "_replace_image", lambda *_, **__: None),
        (dataset, "save_dataset_cache_file", lambda prefix, path, cache, version: cache.update(version=version)),
        (trainer, "TQDM", lambda iterable, *_, **__: _Plain(iterable)),
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in ours]
    try:
        for module, name, replacement in ours:
            setattr(module, name, replacement)
        yield
    finally:
        for module, name, original in before:
            setattr(module, name, original)


class _Plain:
    def __init__(self, iterable) -> None:
        self._iterable = iterable

    def __iter__(self):
        return iter(self._iterable)

    def set_description(self, *_args) -> None:
        """Nothing to draw on."""
