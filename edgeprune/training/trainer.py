"""Ultralytics' detection trainer, made to train the module that it is given.

It has a file of its own, because importing it imports Ultralytics' training. tracking.py decides which trackers follow
the training: only those that the user has on.

On several GPUs Ultralytics starts a process for each, and sends it this class by its name, Ultralytics' arguments, and
the path of the weights. All other settings of the training therefore lie in a file in the run's folder (`Recipe`), and
nothing is set from outside on a trainer that trains.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeprune_device import interpreter
from edgeprune_device.errors import EdgepruneError
from edgeprune_device.files import write_atomic
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

#: Steps until the learning rate reaches its full value. AdamW knows no gradient's size at first, and moves every weight
#: by the whole rate: a COCO model pruned to 74 % of its MACs and tuned for 16 steps at 320 px went from mAP 0.150 to
#: 0.093 with Ultralytics' warm-up of a tenth of an epoch, and to 0.171 with this one.
WARMUP = 100


@dataclass(frozen=True)
class Recipe:
    """The settings of the training beyond Ultralytics' arguments.

    Attributes:
        teacher: The path of a checkpoint to learn from, or None.
        sparsity: The amount that a prunable batch-norm scale loses per step at the peak of the learning rate; 0 for
            none.
        qat: The qat.Scheme to round by while training, as JSON, or None.
    """

    teacher: str | None = None
    sparsity: float = 0.0
    qat: dict | None = None

    def write(self, folder: Path) -> None:
        """Write the recipe into the run's folder."""
        write_atomic(folder / "recipe.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Recipe:
        """Read the recipe of the run's folder."""
        return cls(**json.loads((folder / "recipe.json").read_text()))


class KeepArchitecture(DetectionTrainer):
    """A trainer that trains the pruned module itself, and never a new one built from its YAML."""

    parameters_expected = 0
    optimizer_steps = 0  # of this process

    def __init__(self, *args, **kwargs) -> None:
        with _hands_off():
            super().__init__(*args, **kwargs)
        use_all_cores()

    @property
    def folder(self) -> Path:
        """The folder with the run's state."""
        return self.save_dir.parent

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe in the run's folder."""
        return Recipe.read(self.folder)

    def train(self):
        """Train, without the side effects that `_hands_off` lists."""
        with _hands_off():
            super().train()

    def _do_train(self):
        with contextlib.ExitStack() as self._while_training:
            super()._do_train()

    def _model_train(self):
        super()._model_train()
        if self.recipe.qat:
            qat.freeze_statistics(self.model)

    def get_model(self, cfg=None, weights=None, verbose=True):
        """Return `weights` themselves, where Ultralytics builds a model from the YAML.

        Args:
            cfg: Ultralytics' argument, not used.
            weights: The pruned module.
            verbose: Ultralytics' argument, not used.

        Raises:
            EdgepruneError: No weights are given.
        """
        if weights is None:
            raise EdgepruneError("the trainer was given no weights: refusing to train a model built from YAML")
        self.parameters_expected = sum(p.numel() for p in weights.parameters())
        return weights

    def check_architecture(self) -> None:
        """Check that training has not changed the number of parameters.

        Raises:
            EdgepruneError: It has.
        """
        found = sum(p.numel() for p in self.model.parameters())
        if found != self.parameters_expected:
            raise EdgepruneError(
                f"training changed the architecture: {self.parameters_expected:,} parameters became {found:,}"
            )

    def _setup_train(self):
        super()._setup_train()
        model = unwrap_model(self.model)
        if self.recipe.teacher:
            teacher = checkpoint.load(self.recipe.teacher).model.to(self.device)
            loss = getattr(model, "criterion", None) or model.init_criterion()
            model.criterion = distill.Distilled(loss, teacher, self.args)
        if self.recipe.sparsity:
            scales = sparsity.prunable_scales(model)
            rates = next(g for g in self.optimizer.param_groups if g["param_group"] == "bn")

            def shrink(*_):
                sparsity.shrink(scales, self.recipe.sparsity * rates["lr"] / rates["initial_lr"])

            self.optimizer.register_step_post_hook(shrink)  # before the EMA looks
        if self.recipe.qat:
            self._while_training.enter_context(qat.rounded(model, qat.Scheme.from_json(self.recipe.qat)))

    def _get_warmup_iterations(self, num_batches):
        return max(super()._get_warmup_iterations(num_batches), WARMUP)

    def optimizer_step(self):
        """Step the optimiser, after a check of the architecture."""
        self.check_architecture()
        super().optimizer_step()
        self.optimizer_steps += 1

    def validate(self):
        """Compute the figure for early stopping: the evaluator's mAP50-95 on the data set's val split.

        That split holds training images here that are not trained on (finetune.hold_back). Without early stopping there
        is no figure: the result is measured when the training is done.

        Returns:
            (Ultralytics' metrics, the figure or None).
        """
        if not self.args.patience or RANK not in (-1, 0):
            return self.metrics, None
        held = dataset.load(self.args.data)
        size = self.args.imgsz
        accuracy, _ = evaluate(TorchSession(self.ema.ema, size), held, held.val, size)
        fitness = float(accuracy.map50_95)
        if self.best_fitness is None or self.best_fitness < fitness:
            self.best_fitness = fitness
        return self.metrics, fitness

    def final_eval(self):
        """Do nothing: last.pt keeps its optimiser state, so that an interrupted `build` can go on."""

    def save_model(self):
        """Save as Ultralytics does, but whole: a kill during the write leaves the former file.

        best.pt is written for an epoch that is better, not for one that is equally good.
        """
        self._count_steps()
        last, best = self.last, self.best
        self.last, self.best = last.with_name(".last.pt"), best.with_name(".best.pt")
        try:
            saved = super().save_model()
            if self.stopper.best_epoch == self.epoch + 1:
                _settle(self.best, best)
            self.best.unlink(missing_ok=True)
            _settle(self.last, last)
        finally:
            self.last, self.best = last, best
        return saved

    def _count_steps(self) -> None:
        """Record, for the number of epochs done, the images per step and the steps since the first epoch.

        The record is written before last.pt is, so that it covers every last.pt.
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
def _hands_off():
    """Within the block, Ultralytics has no side effects outside the run's folder.

    By itself it re-encodes some JPEGs in place, leaves caches in the label folders, fetches a font, installs packages,
    looks for modules in the current folder, runs code in checkpoints, sends usage figures, logs, and draws a progress
    bar of its own.
    """
    from ultralytics.data import dataset, utils
    from ultralytics.engine import trainer
    from ultralytics.utils import LOGGER, callbacks, checks, patches

    ours = (
        (utils, "_replace_image", lambda *_, **__: None),
        (utils, "check_font", lambda *_, **__: None),
        (callbacks, "add_integration_callbacks", _attach_trackers),
        (dataset, "save_dataset_cache_file", lambda prefix, path, cache, version: cache.update(version=version)),
        (trainer, "TQDM", lambda iterable, *_, **__: _Plain(iterable)),
        (trainer, "generate_ddp_command", _launch),
        # For a program that imported Ultralytics before edgeprune.
        (checks, "AUTOINSTALL", False),
        (patches, "_pil_plugins_registered", True),  # else an unknown kind of image makes it ask for a package
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


def _launch(instance) -> tuple[list[str], str]:
    """Ultralytics' command for several GPUs, `python -m …`, without the current folder in Python's path."""
    (_, _, launcher, *arguments), file = generate_ddp_command(instance)
    return interpreter.module(launcher, *arguments), file


def _attach_trackers(instance) -> None:
    if isinstance(instance, KeepArchitecture):
        r = instance.recipe
        tracking.attach(instance, instance.folder, teacher=r.teacher, sparsity=r.sparsity, qat=bool(r.qat))


class _Plain:
    def __init__(self, iterable) -> None:
        self._iterable = iterable

    def __iter__(self):
        return iter(self._iterable)

    def set_description(self, *_args) -> None:
        """Nothing to draw on."""
