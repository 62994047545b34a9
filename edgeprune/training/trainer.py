"""Ultralytics' detection trainer, changed to train the given module.

It is in a separate file, because importing it imports Ultralytics' training. tracking.py attaches the trackers that the
user has enabled, and no others.

With several GPUs Ultralytics starts a process for each, and sends it the name of this class, Ultralytics' arguments and
the path of the weights. All other settings are therefore in a file in the run's folder (`Recipe`), and no attribute of
a trainer is set from outside.
"""

# Most of Ultralytics' methods have no types.
# mypy: allow-untyped-calls

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from edgeprune_device import interpreter
from edgeprune_device.errors import EdgepruneError
from edgeprune_device.files import write_atomic
from edgeprune_device.size import Size
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import RANK
from ultralytics.utils.dist import generate_ddp_command
from ultralytics.utils.torch_utils import unwrap_model

from edgeprune.data import dataset
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.threads import use_all_cores
from edgeprune.pruning import sparsity
from edgeprune.training import distill, qat, tracking
from edgeprune.training.shape import ShapedDataset

#: Steps until the learning rate reaches its full value. AdamW has no gradient statistics at first and moves every
#: weight by the full rate: a COCO model pruned to 74 % of its MACs and tuned for 16 steps at 320 px went from mAP 0.150
#: to 0.093 with Ultralytics' warm-up of a tenth of an epoch, and to 0.171 with this one.
WARMUP = 100


@dataclass(frozen=True)
class Recipe:
    """The settings of the training beyond Ultralytics' arguments.

    Attributes:
        teacher: The path of a checkpoint to learn from, or None.
        sparsity: The decrease of a prunable batch-norm scale per step at the peak of the learning rate; 0: none.
        qat: The qat.Scheme to round by while training, as JSON, or None.
        size: (height, width) of each training image, px; None for a square of Ultralytics' `imgsz`.
    """

    teacher: str | None = None
    sparsity: float = 0.0
    qat: dict[str, Any] | None = None
    size: tuple[int, int] | None = None

    def write(self, folder: Path) -> None:
        """Write the recipe into the run's folder."""
        write_atomic(folder / "recipe.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """Read the recipe of the run's folder."""
        return cls(**json.loads((folder / "recipe.json").read_text()))


class KeepArchitecture(DetectionTrainer):
    """A trainer that trains the pruned module itself, not a new one built from its YAML.

    Attributes:
        parameters_expected: The number of parameters of the pruned module.
        optimizer_steps: The steps of the optimiser in this process.
    """

    parameters_expected = 0
    optimizer_steps = 0
    # Ultralytics first sets these to None or to a path, and to their final types only during a training.
    model: Any
    ema: Any
    optimizer: Any
    loss: Any
    best_fitness: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._while_training = contextlib.ExitStack()
        with _hands_off():
            super().__init__(*args, **kwargs)
        use_all_cores()

    @property
    def folder(self) -> Path:
        """The folder with the run's state."""
        return Path(self.save_dir).parent

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe in the run's folder."""
        return Recipe.read(self.folder)

    @functools.cached_property
    def held(self) -> dataset.Dataset:
        """The data set that this training sees, whose val split was held out; read once, not once an epoch."""
        return dataset.load(self.args.data, task=self.args.task)

    def train(self) -> None:
        """Train, without the side effects that `_hands_off` lists."""
        with _hands_off():
            super().train()

    def _do_train(self) -> None:
        with self._while_training:
            super()._do_train()

    def _model_train(self) -> None:
        super()._model_train()
        if self.recipe.qat:
            qat.freeze_statistics(self.model)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Ultralytics' data set, with the recipe's size in place of a square.

        Args:
            img_path: Ultralytics' argument.
            mode: Ultralytics' argument, "train" or "val".
            batch: Ultralytics' argument.
        """
        images = super().build_dataset(img_path, mode, batch)
        return ShapedDataset.of(images, self.size) if mode == "train" and not self.size.is_square else images

    @property
    def size(self) -> Size:
        """The size of each training image, px."""
        return Size.of(self.recipe.size or self.args.imgsz)

    def get_model(
        self, cfg: str | dict[str, Any] | None = None, weights: nn.Module | None = None, verbose: bool = True
    ) -> nn.Module:
        """Return `weights`, in place of Ultralytics' model from the YAML.

        Args:
            cfg: Ultralytics' argument; not used.
            weights: The pruned module.
            verbose: Ultralytics' argument; not used.

        Raises:
            EdgepruneError: No weights are given.
        """
        if weights is None:
            raise EdgepruneError(
                "trainer: no weights (a model built from YAML cannot be trained); pass the pruned network"
            )
        self.parameters_expected = sum(p.numel() for p in weights.parameters())
        return weights

    def check_architecture(self) -> None:
        """Check that training has not changed the number of parameters.

        Raises:
            EdgepruneError: The number of parameters has changed.
        """
        parameters = sum(p.numel() for p in self.model.parameters())
        if parameters != self.parameters_expected:
            raise EdgepruneError(
                f"training changed the architecture (found {parameters:,} parameters, expected "
                f"{self.parameters_expected:,})"
            )

    def _setup_train(self) -> None:
        super()._setup_train()
        model: Any = unwrap_model(self.model)
        if self.recipe.teacher:
            teacher = checkpoint.load(self.recipe.teacher).model.to(self.device)
            loss = getattr(model, "criterion", None) or model.init_criterion()
            model.criterion = distill.Distilled(loss, teacher, self.args)
        if self.recipe.sparsity:
            scales = sparsity.prunable_scales(model)
            rates = next(g for g in self.optimizer.param_groups if g["param_group"] == "bn")

            def shrink(*_: object) -> None:
                sparsity.shrink(scales, self.recipe.sparsity * rates["lr"] / rates["initial_lr"])

            self.optimizer.register_step_post_hook(shrink)  # before the EMA is updated
        if self.recipe.qat:
            self._while_training.enter_context(qat.rounded(model, qat.Scheme.from_json(self.recipe.qat)))

    def _get_warmup_iterations(self, num_batches: int) -> int:
        return max(int(super()._get_warmup_iterations(num_batches)), WARMUP)

    def optimizer_step(self) -> None:
        """Step the optimiser, after a check of the architecture."""
        self.check_architecture()
        super().optimizer_step()
        self.optimizer_steps += 1

    def validate(self) -> tuple[dict[str, Any] | None, float | None]:
        """Compute the figure for early stopping: the evaluator's mAP50-95 on the data set's val split.

        That split contains the held-out training images (finetune.hold_back). Without early stopping there is no
        figure, because the result is measured after the training.

        Returns:
            (Ultralytics' metrics, the figure or None).
        """
        if not self.args.patience or RANK not in (-1, 0):
            return self.metrics, None
        held, size = self.held, self.size
        accuracy, _ = evaluate(TorchSession(self.ema.ema, size, self.device), held, held.val, size)
        if accuracy.map50_95 is None:  # hold_back takes labelled images
            raise EdgepruneError("held-out training images: no labelled box (expected at least one); label more images")
        fitness = accuracy.map50_95
        if self.best_fitness is None or self.best_fitness < fitness:
            self.best_fitness = fitness
        return self.metrics, fitness

    def final_eval(self) -> None:
        """Do nothing: last.pt keeps its optimiser state, so that an interrupted `build` can continue."""

    def save_model(self) -> bool:
        """Save like Ultralytics, but atomically: a kill during the write leaves the former file.

        best.pt is written only for a better epoch, not for an equally good one.
        """
        self._count_steps()
        last, best = self.last, self.best
        self.last, self.best = last.with_name(".last.pt"), best.with_name(".best.pt")
        try:
            saved = bool(super().save_model())
            if self.stopper.best_epoch == self.epoch + 1:
                _settle(self.best, best)
            self.best.unlink(missing_ok=True)
            _settle(self.last, last)
        finally:
            self.last, self.best = last, best
        return saved

    def _count_steps(self) -> None:
        """Record, for the number of epochs done, the images per step and the steps since the first epoch.

        The record is written before last.pt, so that it covers every last.pt.
        """
        path = self.folder / "steps.json"
        counts = json.loads(path.read_text()) if path.exists() else {}
        before = counts.get(str(self.start_epoch), {"steps": 0})["steps"]
        entry = {"batch": self.batch_size * self.accumulate, "steps": before + self.optimizer_steps}
        write_atomic(path, json.dumps({**counts, str(self.epoch + 1): entry}))


def _settle(beside: Path, place: Path) -> None:
    with open(beside, "rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, place)


@contextlib.contextmanager
def _hands_off() -> Iterator[None]:
    """Within the block, Ultralytics has no side effects outside the run's folder.

    By default it re-encodes some JPEGs in place, leaves caches in the label folders, downloads a font, installs
    packages, looks for modules in the current folder, runs code in checkpoints, sends usage figures, logs, and draws
    its own progress bar.
    """
    from ultralytics.data import dataset, utils
    from ultralytics.engine import trainer
    from ultralytics.utils import LOGGER, callbacks, checks, patches

    ours: tuple[tuple[ModuleType, str, object], ...] = (
        (utils, "_replace_image", lambda *_, **__: None),
        (utils, "check_font", lambda *_, **__: None),
        (callbacks, "add_integration_callbacks", _attach_trackers),
        (dataset, "save_dataset_cache_file", lambda prefix, path, cache, version: cache.update(version=version)),
        (trainer, "TQDM", lambda iterable, *_, **__: _Plain(iterable)),
        (trainer, "generate_ddp_command", _launch),
        (trainer, "check_amp", mixed_precision_works),
        # For a program that imported Ultralytics before edgeprune.
        (checks, "AUTOINSTALL", False),
        (patches, "_pil_plugins_registered", True),  # else an unknown image type makes it request a package
    )
    before = [(module, name, getattr(module, name)) for module, name, _ in ours]
    level = LOGGER.level
    LOGGER.setLevel("ERROR")
    try:
        for module, name, replacement in ours:
            setattr(module, name, replacement)
        with checkpoint.safe_load():
            yield
    finally:
        LOGGER.setLevel(level)
        for module, name, original in before:
            setattr(module, name, original)


def mixed_precision_works(model: nn.Module) -> bool:
    """Whether the outputs of `model` in mixed precision are finite, and near those in FP32, on its GPU.

    Some GPUs compute NaN. Ultralytics' own check downloads another network and runs that.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    images = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)).to(device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            single = model(images)[0].float()
            with torch.autocast("cuda"):
                mixed = model(images)[0].float()
    finally:
        model.train(training)
    return bool(torch.isfinite(mixed).all() and (mixed - single).abs().mean() < 0.1 * single.abs().mean())


def _launch(instance: DetectionTrainer) -> tuple[list[str], str]:
    """Ultralytics' command for several GPUs, `python -m …`, without the current folder on Python's path."""
    (_, _, launcher, *arguments), file = generate_ddp_command(instance)
    return interpreter.module(launcher, *arguments), file


def _attach_trackers(instance: object) -> None:
    if isinstance(instance, KeepArchitecture):
        r = instance.recipe
        tracking.attach(instance, instance.folder, teacher=r.teacher, sparsity=r.sparsity, qat=bool(r.qat))


class _Plain:
    """An iterable in place of Ultralytics' progress bar."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self._iterable)

    def set_description(self, *_args: object) -> None:
        """Do nothing; there is no bar to describe."""
