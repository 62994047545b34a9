"""One build: its options, its folder, its record, and the inputs that several stages read."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from edgeprune_device.files import write_atomic
from edgeprune_device.progress import Progress
from edgeprune_device.size import Size
from edgeprune_device.target import Target
from edgeprune_device.vision.accuracy import Accuracy, Matches
from torch import nn

from edgeprune.comparison import row
from edgeprune.console.progress import Reporter
from edgeprune.data import dataset, samples
from edgeprune.exporting import nms
from edgeprune.exporting.precisions import PrecisionRequest
from edgeprune.measuring.accuracy import evaluate, interval
from edgeprune.measuring.sessions import Session, TorchSession
from edgeprune.measuring.timing import Timing
from edgeprune.model import checkpoint
from edgeprune.model.count import Cost
from edgeprune.model.device import Device, choose
from edgeprune.model.head import of_network, select
from edgeprune.options import BudgetOptions, BuildOptions, budget, declared
from edgeprune.pruning import prune
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.latency import Latency
from edgeprune.training import qat
from edgeprune.training.finetune import TrainingSettings

#: The result of `prune.measured_budget`.
MeasuredBudget: TypeAlias = tuple[Budget, Latency | None, dict[str, Any]]


@dataclass(frozen=True)
class BuildRequest:
    """One build to run: its options, and the inputs that they resolve to.

    Attributes:
        options: every option of the build, checked (`options.complete`).
        weights: resolved path of the checkpoint.
        data: resolved path of the data set.
        imgsz: side of a square input, or (height, width), px.
        name: name of the build and its bundle.
    """

    options: BuildOptions
    weights: Path
    data: Path
    imgsz: Size
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "imgsz", Size.of(self.imgsz))

    @functools.cached_property
    def budget(self) -> Budget:
        """The limit that the plan must meet."""
        return Budget.asked(**budget(self.options))

    def settings(self, epochs: int) -> TrainingSettings:
        """The training settings for this number of epochs."""
        o = self.options
        return TrainingSettings(
            epochs, o["batch"], o["lr"], self.imgsz, o["device"], o["workers"], o["seed"], patience=o["patience"]
        )

    def qat_settings(self) -> TrainingSettings:
        """The settings of quantization-aware training (QAT): a fraction of the learning rate, and no early stopping."""
        settings = self.settings(self.options["qat"])
        return replace(settings, lr=settings.lr * qat.LR_SHARE, patience=0, qat=True)

    def to_json(self) -> dict[str, Any]:
        """The options that `build.json` records: those that a stage depends on, with the budget as one entry."""
        values = dict(self.options)
        recorded = {name: values[name] for name, option in declared(BuildOptions).items() if option.stage}
        for name in declared(BudgetOptions):
            del recorded[name]
        return {
            **recorded,
            "weights": str(self.weights),
            "data": str(self.data),
            "imgsz": self.imgsz.to_json(),
            "name": self.name,
            "budget": str(self.budget),
            "precision": list(self.options["precision"]),
        }


class Job:
    """One build in progress: options, folder, record, and cached inputs.

    Attributes:
        request: the build to run.
        options: its options.
        out: its folder.
        work: the folder inside `out` for intermediate files, which is deleted at the end.
        reporter: receives progress, messages and warnings.
        record: the content of `build.json`.
        lost: figures of the models that a gate refused, by name.
        chosen: the pruned network of the plan stage, which the prune stage reuses in the same process.
    """

    def __init__(self, request: BuildRequest, out: Path, reporter: Reporter) -> None:
        self.request, self.options, self.out, self.reporter = request, request.options, out, reporter
        self.work = out / "work"
        self.record: dict[str, Any] = {}
        self.lost: dict[str, dict[str, Any]] = {}  # figures of models that a gate refused
        self.chosen: prune.Cut | None = None  # by the plan stage, reused by the prune stage
        self._measured: MeasuredBudget | None = None
        self._intervals: dict[str, tuple[float, float] | None] = {}  # of each model's mAP50-95, on chosen images

    # -- inputs, read once -----------------------------------------------------------------------------------------
    @functools.cached_property
    def target(self) -> Target:
        """The target that the build is for."""
        return Target.load(self.options["target"])

    @functools.cached_property
    def original(self) -> checkpoint.Checkpoint:
        """The checkpoint that the build starts from, with the head that is exported and measured."""
        original = checkpoint.load(self.request.weights)
        select(original.model, self.options["head"])
        return original

    @property
    def start(self) -> checkpoint.Checkpoint:
        """The checkpoint that the last pruning step starts from: the original, or the result of the step before."""
        if self.options["steps"] == 1:
            return self.original
        return checkpoint.load(self.out / f"step{self.options['steps'] - 1}.pt")

    @functools.cached_property
    def data(self) -> dataset.Dataset:
        """The data set, checked against the class names of the original."""
        checked = dataset.load(
            self.request.data, task=self.original.task, strict=self.options["strict"], reporter=self.reporter
        )
        data = samples.fewer(checked, self.options["val_images"])
        dataset.check_names(data, self.original.names)
        return data

    @functools.cached_property
    def shared(self) -> int:
        """Number of validation images that are training images, too."""
        return self.data.overlap()

    @functools.cached_property
    def splits(self) -> dict[str, list[Path]]:
        """Training images to `solve` with and to `select` by, taken from the training list only."""
        return dict(zip(("solve", "select"), samples.split(self.data.train, self.request.imgsz)))

    @functools.cached_property
    def features(self) -> samples.Samples:
        """The images and labels of the `solve` split, as the network takes them."""
        return samples.read(self.data, self.splits["solve"], self.request.imgsz)

    @functools.cached_property
    def device(self) -> Device:
        """The device of importance statistics, evaluation and training."""
        return choose(self.options["device"])

    @property
    def placed(self) -> samples.Samples:
        """`features` on the device: criteria and compensation compute where their images are."""
        return self.features.to(self.device.torch)

    def session(self, model: nn.Module) -> TorchSession:
        """A network as the evaluator runs it."""
        return TorchSession(model, self.imgsz, self.device.torch)

    def measured(self, progress: Progress) -> MeasuredBudget:
        """Return the result of `measured_budget`, which runs once per process."""
        if self._measured is None:
            self._measured = prune.measured_budget(
                self.request.budget, self.original.model, self.imgsz, self.target.channel_multiple, progress
            )
        return self._measured

    # -- files -----------------------------------------------------------------------------------------------------
    @property
    def imgsz(self) -> Size:
        """Network input, px."""
        return self.request.imgsz

    def model_path(self, model: str) -> Path:
        """The file of a model of the build, by its name in the record."""
        if model == "original":
            return self.request.weights
        return self.out / (f"{model}.pt" if model in ("pruned", "tuned", "qat") else f"model.{model}.onnx")

    def delivered_path(self, precision: str) -> Path:
        """The file of a precision that is timed, judged and packed: its device variant, if the build made one."""
        variant: str | None = self.record["models"][precision].get("variant")
        return self.out / variant if variant else self.model_path(precision)

    def variant_path(self, precision: str) -> Path:
        """The device variant of a precision."""
        return self.model_path(precision).with_suffix(".device.onnx")

    @property
    def trained(self) -> Path:
        """The file of the network that is exported."""
        return self.model_path("qat" if self.options["qat"] else "tuned")

    @property
    def bundle_path(self) -> Path:
        """The file of the bundle."""
        return self.out / f"{self.request.name}.epb"

    def finish(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return an ONNX model as it is delivered: with NMS inside if the options ask for it."""
        return nms.add(model) if self.options["nms"] else model

    def delivered(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The form of a finished file that the bundle carries, see `PrecisionRequest.delivered`."""
        return self.precisions.delivered(model)

    @property
    def precisions(self) -> PrecisionRequest:
        """The requested precisions."""
        o = self.options
        return PrecisionRequest(self.target, o["precision"], o["max_drop"], o["input"])

    # -- figures ---------------------------------------------------------------------------------------------------
    def evaluate(self, session: Session, progress: Progress, model: str) -> tuple[Accuracy, Matches]:
        """Evaluate a model on all validation images, and keep its detections for the page.

        Args:
            session: the model to run.
            progress: receives the fraction done and a line of text.
            model: name of the model in the record.

        Returns:
            (Accuracy, Matches).
        """
        total = len(self.data.val)
        shown: list[npt.NDArray[Any]] = []
        accuracy, matches = evaluate(
            session, self.data, self.data.val, self.imgsz,
            lambda n: progress(n / total, f"{model}: {n}/{total} images"), shown, self.reporter.warn,
        )  # fmt: skip
        if self.data.val_total:
            self._intervals[model] = interval(matches)
        self._detections_file(model).parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        np.savez(stream, rows=np.concatenate(shown), ends=np.cumsum([len(rows) for rows in shown]))
        write_atomic(self._detections_file(model), stream.getvalue())
        return accuracy, matches

    def shown(self, model: str) -> list[npt.NDArray[Any]] | None:
        """Return the detections that `evaluate` kept for a model.

        Returns:
            For each validation image (n, 6) float [x1, y1, x2, y2, score, class], px; None if `evaluate` did not run.
        """
        try:
            with np.load(self._detections_file(model)) as kept:
                return np.split(kept["rows"], kept["ends"][:-1])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _detections_file(self, model: str) -> Path:
        return self.work / "shown" / f"{model}.npz"

    def enter(
        self,
        model: str,
        path: Path,
        accuracy: Accuracy | None = None,
        cost: Cost | None = None,
        timing: Timing | None = None,
        **more: Any,
    ) -> None:
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
        entry["imgsz"] = self.imgsz.to_json()
        entry.update(self.figures(model, accuracy))
        if cost is not None:
            entry.update(cost.to_json())
        if timing is not None:
            entry.update(timing.to_json())
        entry.update(more)

    def figures(self, model: str, accuracy: Accuracy | None) -> dict[str, Any]:
        """The accuracy figures of a model as fields of its entry; empty without an accuracy."""
        if accuracy is None:
            return {}
        shown = self.shown(model)
        return {
            **row.accuracy_of(accuracy, self._intervals.get(model)),
            "objects_found": shown and sum(map(len, shown)),
            "head": of_network(self.original.model),
        }

    def write(self) -> None:
        """Write the record to `build.json`."""
        write_atomic(self.out / "build.json", json.dumps(self.record, indent=1) + "\n")


_FIGURES = (
    "path", "imgsz", "parameters", "macs", "channels", "size_bytes", "map50", "map50_95", "map50_95_interval",
    "small_map50_95", "per_class",
    "pictures", "objects_found", "head", "latency_ms", "stages_ms", "fps_inference_only", "fps_end_to_end",
)  # fmt: skip
