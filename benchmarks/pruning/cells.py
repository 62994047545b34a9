"""The work folder: finished results are kept and not computed again.

A cell is one method at one budget, in a folder such as `ours-0.6/`: a checkpoint, its figures in `<state>.json`, and
its score on 1,000 resamples of the validation images in `<state>.npy` (every cell uses the same resamples, so that
differences are paired). The JSON file is written last, so a cell with one is complete.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256, write_atomic
from edgeprune_device.vision.accuracy import Accuracy, Matches
from torch import nn

from benchmarks.pruning import opens
from benchmarks.pruning.methods import METHODS
from edgeprune.data import samples
from edgeprune.data.dataset import Dataset
from edgeprune.data.samples import Samples
from edgeprune.measuring.accuracy import evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.count import count
from edgeprune.training import finetune

#: Minimum number of validation boxes of a class that counts.
MIN_BOXES = 30
#: Labelled training images for batch-norm recalibration and for the Taylor importance.
PICTURES = 64
RESAMPLES = 1000


@dataclass(frozen=True)
class Job:
    """source, data: the network and its data set; settings: the common fine-tuning; multiple: of kept counts."""

    source: Checkpoint
    data: Dataset
    settings: finetune.TrainingSettings
    multiple: int
    work: Path

    @cached_property
    def labelled(self) -> Samples:
        chosen = samples.pick(self.data.train, PICTURES)
        return samples.read(self.data, chosen, self.settings.imgsz)

    @cached_property
    def solve(self) -> Samples:
        """The samples that `edgeprune build` would use for the criterion and the compensation."""
        return samples.read(self.data, samples.split(self.data.train, self.settings.imgsz)[0], self.settings.imgsz)

    @cached_property
    def judged(self) -> tuple[int, ...]:
        """Indices of the classes that count; all classes if the data set is too small."""
        boxes = self.data.boxes(self.data.val)
        return tuple(np.flatnonzero(boxes >= MIN_BOXES).tolist()) or tuple(np.flatnonzero(boxes).tolist())

    def score(self, accuracy: Accuracy) -> float:
        """mAP50-95 over the classes that count."""
        return float(np.mean([accuracy.per_class[i].map50_95 or 0.0 for i in self.judged]))

    def identity(self) -> dict:
        settings = {k: getattr(self.settings, k) for k in ("epochs", "batch", "lr")}
        settings["imgsz"] = self.settings.imgsz.to_json()
        weights = sha256(self.source.path)
        return {"weights_sha256": weights, "data_sha256": self.data.sha256, "multiple": self.multiple, **settings}

    def open(self) -> None:
        """Open the work folder; raise InputError if it holds cells of another job."""
        mark = self.work / "job.json"
        if mark.exists() and json.loads(mark.read_text()) != self.identity():
            raise InputError(f"{self.work} contains figures for other weights, data or settings; give another --work")
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, json.dumps(self.identity(), indent=1) + "\n")


def untrained(job: Job, method: str, macs: float, say: Callable[[str], None]) -> None:
    """Make and measure the states of a cell before any training, and check whether stock Ultralytics opens it."""
    folder = job.work / name(method, macs)
    if (folder / "cell.json").exists():
        return
    say("pruning")
    start = time.perf_counter()
    states, details = METHODS[method](job, macs)
    seconds = time.perf_counter() - start
    folder.mkdir(exist_ok=True)
    for state, model in states.items():
        checkpoint.save(folder / f"{state}.pt", model, like=job.source)
        say(f"measuring {state}")
        _measure(job, folder, state)
    *_, last = states
    cut = folder / f"{next(iter(states))}.pt"
    size = job.settings.imgsz
    cell = {
        "method": method, "macs_asked": macs, "states": list(states), "starts_from": last, "seconds": seconds,
        **details, **count(checkpoint.load(cut).model, tuple(size)).to_json(), "size_bytes": cut.stat().st_size,
        "opens": opens.check(cut, size), "commit": commit(),
    }  # fmt: skip
    write_atomic(folder / "cell.json", json.dumps(cell, indent=1) + "\n")


def tuned(job: Job, method: str, macs: float, seed: int, say: Callable[[str], None]) -> None:
    """Fine-tune a cell and measure it, with the same function and settings for every method."""
    folder = job.work / name(method, macs)
    state = f"tuned-{seed}"
    if (folder / f"{state}.json").exists():
        return
    begin = folder / f"{json.loads((folder / 'cell.json').read_text())['starts_from']}.pt"
    training = folder / f"training-{seed}"
    settings = finetune.TrainingSettings(**{**asdict(job.settings), "seed": seed})

    def show(p: finetune.TrainingProgress) -> None:
        if p.step == p.steps:
            say(f"seed {seed}: epoch {p.epoch}/{p.epochs}, loss {p.loss:.3f}")

    start = time.perf_counter()
    done = finetune.finetune_network(begin, job.data, folder / f"{state}.pt", settings, training, on_step=show)
    say(f"seed {seed}: measuring")
    _measure(job, folder, state, seed=seed, seconds=time.perf_counter() - start, **done, commit=commit())
    shutil.rmtree(training)  # its last.pt holds the optimiser


def _measure(job: Job, folder: Path, state: str, **details) -> None:
    model = checkpoint.load(folder / f"{state}.pt").model
    size = job.settings.imgsz
    accuracy, matches = evaluate(TorchSession(model, size), job.data, job.data.val, size)
    buffer = io.BytesIO()
    np.save(buffer, draws(matches, job.score))
    write_atomic(folder / f"{state}.npy", buffer.getvalue())
    figures = {"map50_95": job.score(accuracy), "all_classes": accuracy.to_json(), **details}
    write_atomic(folder / f"{state}.json", json.dumps(figures, indent=1) + "\n")


def draws(matches: Matches, score: Callable[[Accuracy], float]) -> np.ndarray:
    """(RESAMPLES,) the score on images drawn with replacement, the draws of `measure.bootstrap`."""
    rng = np.random.default_rng(0)
    size = matches.pictures
    return np.array([score(matches.accuracy(rng.integers(size, size=size))) for _ in range(RESAMPLES)])


def name(method: str, macs: float) -> str:
    return method if method == "control" else f"{method}-{macs:g}"


def model_of(folder: Path) -> nn.Module:
    """The cut network of a cell, whose latency is measured."""
    return checkpoint.load(folder / f"{json.loads((folder / 'cell.json').read_text())['states'][0]}.pt").model


def commit() -> str:
    def git(*words) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+changes" if git("--no-optional-locks", "status", "--porcelain", "-uno") else ""
    )
