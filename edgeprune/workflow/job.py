"""One build: its options, its folder, its record, and the inputs that several stages read."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from edgeprune_device.files import write_atomic
from edgeprune_device.target import Target

from edgeprune.comparison import compare, row
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.exporting import nms
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.timing import Timing
from edgeprune.model import checkpoint
from edgeprune.model.head import of_network
from edgeprune.pruning import prune
from edgeprune.pruning.budget import Budget
from edgeprune.training import qat
from edgeprune.training.finetune import TrainingSettings

PRECISIONS = ("fp32", "fp16", "int8")
#: Called by a stage with the fraction of its work that is done, and a line of text.
ProgressCallback = Callable[[float, str], None]


@dataclass(frozen=True)
class BuildOptions:
    """The options of a build: everything that the result of a stage depends on.

    Attributes:
        weights: resolved path of the checkpoint.
        data: resolved path of the data set.
        target: name of the target, or its JSON file.
        budget: the limit that the plan must meet.
        uniform: remove the same share of every group.
        portable: keep only widths that Ultralytics' YAML can express.
        steps: rounds of pruning and fine-tuning.
        criterion: name of the importance criterion.
        imgsz: network input, px.
        epochs: fine-tuning epochs in all.
        batch: images a training step.
        lr: learning rate of fine-tuning.
        distill: fine-tune with the original as the teacher, too.
        patience: epochs without improvement after which training stops; 0: never.
        device: training device.
        workers: data loading processes.
        seed: seed of the training.
        precision: precisions to make, fp32 among them.
        max_drop: limit of the accuracy drop of a precision, absolute mAP50-95.
        nms: put NMS into the ONNX files.
        name: name of the build and its bundle.
        qat: epochs of INT8-aware training; 0: none.
        on: the reference device, as ssh takes it, that builds the engines and measures them.
        pictures: number of images in the page's gallery.
        allow_poor_baseline: build even if the original detects next to nothing.
    """

    weights: Path
    data: Path
    target: str
    budget: Budget
    uniform: bool
    portable: bool
    steps: int
    criterion: str
    imgsz: int
    epochs: int
    batch: int
    lr: float
    distill: bool
    patience: int
    device: str
    workers: int
    seed: int
    precision: tuple[str, ...]
    max_drop: float
    nms: bool
    name: str
    qat: int = 0  # epochs; 0: none
    on: str | None = None  # the reference device, as ssh takes it
    pictures: int = compare.GALLERY  # images in the page's gallery
    allow_poor_baseline: bool = False

    def settings(self, epochs: int) -> TrainingSettings:
        """The settings of a fine-tuning of this number of epochs."""
        return TrainingSettings(
            epochs, self.batch, self.lr, self.imgsz, self.device, self.workers, self.seed, patience=self.patience
        )

    def qat_settings(self) -> TrainingSettings:
        """The settings of the INT8-aware training: a fraction of the learning rate, and no early stopping."""
        return replace(self.settings(self.qat), lr=self.lr * qat.RATE, patience=0, qat=True)

    def to_json(self) -> dict:
        """The options as JSON, as `build.json` records them."""
        texts = {"weights": str(self.weights), "data": str(self.data), "budget": str(self.budget)}
        return {**asdict(self), **texts, "precision": list(self.precision)}


class Job:
    """One build in progress: options, folder, record, and cached inputs.

    Attributes:
        options: the options of the build.
        out: its folder.
        work: the folder inside `out` for intermediate files, which is deleted at the end.
        reporter: receives progress, messages and warnings.
        record: the content of `build.json`.
        lost: figures of the models that a gate refused, by name.
        chosen: the cut of the plan stage, which the prune stage reuses in the same process.
    """

    def __init__(self, options: BuildOptions, out: Path, reporter: Reporter) -> None:
        self.options, self.out, self.reporter = options, out, reporter
        self.work = out / "work"
        self.record: dict = {}
        self.lost: dict = {}  # figures of models that a gate refused
        self.chosen: prune.Cut | None = None  # by the plan stage, reused by the prune stage
        self._measured: tuple | None = None

    # -- inputs, read once -----------------------------------------------------------------------------------------
    @functools.cached_property
    def target(self) -> Target:
        """The target that the build is for."""
        return Target.load(self.options.target)

    @functools.cached_property
    def original(self) -> checkpoint.Checkpoint:
        """The checkpoint that the build starts from."""
        return checkpoint.load(self.options.weights)

    @property
    def start(self) -> checkpoint.Checkpoint:
        """The checkpoint that the last pruning step starts from: the original, or the result of the step before."""
        if self.options.steps == 1:
            return self.original
        return checkpoint.load(self.out / f"step{self.options.steps - 1}.pt")

    @functools.cached_property
    def data(self) -> dataset.Dataset:
        """The data set, checked against the class names of the original."""
        data = dataset.load(self.options.data)
        dataset.check_names(data, self.original.names)
        return data

    @functools.cached_property
    def shared(self) -> int:
        """Number of validation images that are training images, too."""
        return self.data.overlap()

    @functools.cached_property
    def splits(self) -> dict[str, list[Path]]:
        """Training images to `solve` with and to `select` by, taken from the training list only."""
        return dict(zip(("solve", "select"), samples.split(self.data.train, self.options.imgsz)))

    @functools.cached_property
    def features(self):
        """The images and labels of the `solve` split, as the network takes them."""
        return samples.read(self.data, self.splits["solve"], self.options.imgsz)

    def measured(self, progress: ProgressCallback) -> tuple:
        """Return the result of `measured_budget`, which runs once a process."""
        if self._measured is None:
            self._measured = prune.measured_budget(
                self.options.budget, self.original.model, self.imgsz, self.target.channel_multiple, progress
            )
        return self._measured

    # -- files -----------------------------------------------------------------------------------------------------
    @property
    def imgsz(self) -> int:
        """Network input, px."""
        return self.options.imgsz

    def model_path(self, model: str) -> Path:
        """The file of a model of the build, by its name in the record."""
        if model == "original":
            return self.options.weights
        return self.out / (f"{model}.pt" if model in ("pruned", "tuned", "qat") else f"model.{model}.onnx")

    @property
    def trained(self) -> Path:
        """The file of the network that is exported."""
        return self.model_path("qat" if self.options.qat else "tuned")

    @property
    def bundle_path(self) -> Path:
        """The file of the bundle."""
        return self.out / f"{self.options.name}.epb"

    def finish(self, model):
        """Return an ONNX model as it is delivered: with NMS inside if the options ask for it."""
        return nms.add(model) if self.options.nms else model

    # -- figures ---------------------------------------------------------------------------------------------------
    def evaluate(self, session, progress: ProgressCallback, model: str):
        """Evaluate a model on all validation images, and keep its detections for the page.

        Args:
            session: the model to run.
            progress: receives the fraction done and a line of text.
            model: name of the model in the record.

        Returns:
            (Accuracy, Matches).
        """
        total, shown = len(self.data.val), []
        accuracy, matches = evaluate(
            session, self.data, self.data.val, self.imgsz,
            lambda n: progress(n / total, f"{model}: {n}/{total} pictures"), shown,
        )  # fmt: skip
        self._found(model).parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        np.savez(stream, rows=np.concatenate(shown), ends=np.cumsum([len(rows) for rows in shown]))
        write_atomic(self._found(model), stream.getvalue())
        return accuracy, matches

    def shown(self, model: str) -> list[np.ndarray] | None:
        """Return the detections that `evaluate` kept for a model.

        Returns:
            For each validation image (n, 6) float [x1, y1, x2, y2, score, class], px; None if `evaluate` did not run.
        """
        try:
            with np.load(self._found(model)) as kept:
                return np.split(kept["rows"], kept["ends"][:-1])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _found(self, model: str) -> Path:
        return self.work / "shown" / f"{model}.npz"

    def enter(self, model: str, path: Path, accuracy=None, cost=None, timing: Timing | None = None, **more) -> None:
        """Enter a model's figures into the record; a figure that was not measured stays null.

        Args:
            model: name of the model in the record.
            path: its file.
            accuracy: its accuracy on the validation images.
            cost: its parameters, MACs and channels.
            timing: its latency.
            more: further fields of the entry.
        """
        entry = self.record["models"].setdefault(model, dict.fromkeys(_FIGURES))
        entry["path"] = str(path) if model == "original" else path.name
        entry["imgsz"] = self.imgsz
        entry.update(self.figures(model, accuracy))
        if cost is not None:
            entry.update(cost.to_json())
        if timing is not None:
            entry.update(timing.to_json())
        entry.update(more)

    def figures(self, model: str, accuracy) -> dict:
        """The accuracy figures of a model as fields of its entry; empty without an accuracy."""
        if accuracy is None:
            return {}
        shown = self.shown(model)
        return {
            **row.accuracy_of(accuracy),
            "objects_found": shown and sum(map(len, shown)),
            "head": of_network(self.original.model),
        }

    def write(self) -> None:
        """Write the record to `build.json`."""
        write_atomic(self.out / "build.json", json.dumps(self.record, indent=1) + "\n")


_FIGURES = (
    "path", "imgsz", "parameters", "macs", "channels", "size_bytes", "map50", "map50_95", "small_map50_95", "per_class",
    "pictures", "objects_found", "head", "latency_ms", "stages_ms", "fps_inference_only", "fps_end_to_end",
)  # fmt: skip
