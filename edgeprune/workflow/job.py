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
from edgeprune.model import head as heads
from edgeprune.pruning import prune
from edgeprune.pruning.budget import Budget
from edgeprune.training import qat
from edgeprune.training.finetune import TrainingSettings

PRECISIONS = ("fp32", "fp16", "int8")
#: Told by a stage as it goes on: the fraction of its work that is done, and a line of text.
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class BuildOptions:
    """What was asked for. weights and data as resolved paths; everything that a stage's result depends on is here."""

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
    qat: int = 0  # epochs; 0: without
    on: str | None = None  # a device, as ssh has it, that builds the engines and measures them
    pictures: int = compare.GALLERY  # in the page's gallery
    allow_poor_baseline: bool = False

    def settings(self, epochs: int) -> TrainingSettings:
        return TrainingSettings(
            epochs, self.batch, self.lr, self.imgsz, self.device, self.workers, self.seed, patience=self.patience
        )

    def qat_settings(self) -> TrainingSettings:
        return replace(self.settings(self.qat), lr=self.lr * qat.RATE, patience=0, qat=True)

    def to_json(self) -> dict:
        texts = {"weights": str(self.weights), "data": str(self.data), "budget": str(self.budget)}
        return {**asdict(self), **texts, "precision": list(self.precision)}


class Job:
    """One build: its options, its folder, its record (`build.json`), and what several stages read."""

    def __init__(self, options: BuildOptions, out: Path, reporter: Reporter) -> None:
        self.options, self.out, self.reporter = options, out, reporter
        self.work = out / "work"
        self.record: dict = {}
        self.lost: dict = {}  # figures of models that a gate has refused
        self.chosen: prune.Cut | None = None  # by the plan stage: spares the next one the work in the same process
        self._measured: tuple | None = None

    # -- inputs, read once -----------------------------------------------------------------------------------------
    @functools.cached_property
    def target(self) -> Target:
        return Target.load(self.options.target)

    @functools.cached_property
    def original(self) -> checkpoint.Checkpoint:
        return checkpoint.load(self.options.weights)

    @property
    def start(self) -> checkpoint.Checkpoint:
        """What the last cut begins with: the original, or the outcome of the step before it."""
        if self.options.steps == 1:
            return self.original
        return checkpoint.load(self.out / f"step{self.options.steps - 1}.pt")

    @functools.cached_property
    def data(self) -> dataset.Dataset:
        data = dataset.load(self.options.data)
        dataset.check_names(data, self.original.names)
        return data

    @functools.cached_property
    def shared(self) -> int:
        """Validation pictures that are training pictures too."""
        return self.data.overlap()

    @functools.cached_property
    def splits(self) -> dict[str, list[Path]]:
        """Training pictures to `solve` with and to `select` by; neither touches the validation pictures."""
        return dict(zip(("solve", "select"), samples.split(self.data.train, self.options.imgsz)))

    @functools.cached_property
    def features(self):
        return samples.read(self.data, self.splits["solve"], self.options.imgsz)

    def measured(self, progress: Progress) -> tuple:
        """`measured_budget`, once a process."""
        if self._measured is None:
            self._measured = prune.measured_budget(
                self.options.budget, self.original.model, self.imgsz, self.target.channel_multiple, progress
            )
        return self._measured

    # -- where things lie ------------------------------------------------------------------------------------------
    @property
    def imgsz(self) -> int:
        return self.options.imgsz

    def model_path(self, model: str) -> Path:
        if model == "original":
            return self.options.weights
        return self.out / (f"{model}.pt" if model in ("pruned", "tuned", "qat") else f"model.{model}.onnx")

    @property
    def trained(self) -> Path:
        """The network that is exported."""
        return self.model_path("qat" if self.options.qat else "tuned")

    @property
    def bundle_path(self) -> Path:
        return self.out / f"{self.options.name}.epb"

    def finish(self, model):
        """An ONNX model as it is delivered."""
        return nms.add(model) if self.options.nms else model

    # -- figures ---------------------------------------------------------------------------------------------------
    def evaluate(self, session, progress: Progress, model: str):
        """(Accuracy, Matches) on all validation pictures; what `model` finds in each is kept for the page."""
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
        """What `evaluate` has kept: per picture (n, 6) [x1, y1, x2, y2, score, class] px; None where it did not run."""
        try:
            with np.load(self._found(model)) as kept:
                return np.split(kept["rows"], kept["ends"][:-1])
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _found(self, model: str) -> Path:
        return self.work / "shown" / f"{model}.npz"

    def enter(self, model: str, path: Path, accuracy=None, cost=None, timing: Timing | None = None, **more) -> None:
        """Note a model's figures; what was not measured stays null."""
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
        """What the validation pictures said of a model; {} before it was asked."""
        if accuracy is None:
            return {}
        shown = self.shown(model)
        return {
            **row.accuracy_of(accuracy),
            "objects_found": shown and sum(map(len, shown)),
            "head": heads.of_network(self.original.model),
        }

    def write(self) -> None:
        write_atomic(self.out / "build.json", json.dumps(self.record, indent=1) + "\n")


_FIGURES = (
    "path", "imgsz", "parameters", "macs", "channels", "size_bytes", "map50", "map50_95", "small_map50_95", "per_class",
    "pictures", "objects_found", "head", "latency_ms", "stages_ms", "fps_inference_only", "fps_end_to_end",
)  # fmt: skip
