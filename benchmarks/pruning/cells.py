"""The work folder: what was made and measured once, and is not made again.

A cell is one method at one budget, a folder `ours-0.6/`: a checkpoint, `<state>.json`, the figures of it, and
`<state>.npy`, the same score on 1,000 resamples of the validation pictures (every cell draws the same ones, so that
differences are paired). A JSON is written last: what has one is whole.
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
from edgeprune_device.accuracy import Accuracy, Matches
from edgeprune_device.errors import InputError
from edgeprune_device.files import sha256, write_atomic
from torch import nn

from benchmarks.pruning import opens
from benchmarks.pruning.methods import METHODS
from edgeprune import checkpoint, finetuning, measure, samples
from edgeprune.checkpoint import Checkpoint
from edgeprune.count import count
from edgeprune.dataset import Dataset
from edgeprune.features import Samples

#: A class has to have as many validation boxes to be judged by.
MIN_BOXES = 30
#: Labelled training pictures for batch-norm recalibration and for the Taylor importance.
PICTURES = 64
RESAMPLES = 1000


@dataclass(frozen=True)
class Job:
    """source, data: what is pruned and measured on; settings: the fine-tuning of all; multiple: of kept counts."""

    source: Checkpoint
    data: Dataset
    settings: finetuning.Settings
    multiple: int
    work: Path

    @cached_property
    def labelled(self) -> Samples:
        chosen = samples.pick(self.data.train, PICTURES)
        return samples.read(self.data, chosen, self.settings.imgsz)

    @cached_property
    def solve(self) -> Samples:
        """What `edgeprune build` would give to the criterion and to the compensation."""
        return samples.read(self.data, samples.split(self.data.train, self.settings.imgsz)[0], self.settings.imgsz)

    @cached_property
    def judged(self) -> tuple[int, ...]:
        """Indices of the classes that are judged by; all of them where the data set is that small."""
        boxes = self.data.boxes(self.data.val)
        return tuple(np.flatnonzero(boxes >= MIN_BOXES).tolist()) or tuple(np.flatnonzero(boxes).tolist())

    def score(self, accuracy: Accuracy) -> float:
        """mAP50-95 over the classes that are judged by."""
        return float(np.mean([accuracy.per_class[i].map50_95 or 0.0 for i in self.judged]))

    def identity(self) -> dict:
        settings = {k: getattr(self.settings, k) for k in ("epochs", "batch", "lr", "imgsz")}
        weights = sha256(self.source.path)
        return {"weights_sha256": weights, "data_sha256": self.data.sha256, "multiple": self.multiple, **settings}

    def open(self) -> None:
        """Raises InputError where the work folder holds cells of another job."""
        mark = self.work / "job.json"
        if mark.exists() and json.loads(mark.read_text()) != self.identity():
            raise InputError(f"{self.work} holds figures of other weights, data or settings; give another --work")
        self.work.mkdir(parents=True, exist_ok=True)
        write_atomic(mark, json.dumps(self.identity(), indent=1) + "\n")


def untrained(job: Job, method: str, macs: float, say: Callable[[str], None]) -> None:
    """Make and measure the states of a cell before any training, and see whether others can open it."""
    folder = job.work / name(method, macs)
    if (folder / "cell.json").exists():
        return
    say("pruning")
    start = time.perf_counter()
    states, said = METHODS[method](job, macs)
    seconds = time.perf_counter() - start
    folder.mkdir(exist_ok=True)
    for state, model in states.items():
        checkpoint.save(folder / f"{state}.pt", model, like=job.source)
        say(f"measuring {state}")
        _measure(job, folder, state)
    *_, last = states
    cut = folder / f"{next(iter(states))}.pt"
    side = job.settings.imgsz
    cell = {
        "method": method, "macs_asked": macs, "states": list(states), "starts_from": last, "seconds": seconds, **said,
        **count(checkpoint.load(cut).model, (side, side)).to_json(), "size_bytes": cut.stat().st_size,
        "opens": opens.check(cut, side), "commit": commit(),
    }  # fmt: skip
    write_atomic(folder / "cell.json", json.dumps(cell, indent=1) + "\n")


def tuned(job: Job, method: str, macs: float, seed: int, say: Callable[[str], None]) -> None:
    """Fine-tune a cell and measure it; every method through the same function with the same settings."""
    folder = job.work / name(method, macs)
    state = f"tuned-{seed}"
    if (folder / f"{state}.json").exists():
        return
    begin = folder / f"{json.loads((folder / 'cell.json').read_text())['starts_from']}.pt"
    training = folder / f"training-{seed}"
    settings = finetuning.Settings(**{**asdict(job.settings), "seed": seed})

    def show(p: finetuning.Progress) -> None:
        if p.step == p.steps:
            say(f"seed {seed}: epoch {p.epoch}/{p.epochs}, loss {p.loss:.3f}")

    start = time.perf_counter()
    done = finetuning.finetune(begin, job.data, folder / f"{state}.pt", settings, training, on_step=show)
    say(f"seed {seed}: measuring")
    _measure(job, folder, state, seed=seed, seconds=time.perf_counter() - start, **done, commit=commit())
    shutil.rmtree(training)  # its last.pt holds the optimiser


def _measure(job: Job, folder: Path, state: str, **said) -> None:
    model = checkpoint.load(folder / f"{state}.pt").model
    size = job.settings.imgsz
    accuracy, matches = measure.evaluate(measure.TorchSession(model, size), job.data, job.data.val, size)
    buffer = io.BytesIO()
    np.save(buffer, draws(matches, job.score))
    write_atomic(folder / f"{state}.npy", buffer.getvalue())
    figures = {"map50_95": job.score(accuracy), "all_classes": accuracy.to_json(), **said}
    write_atomic(folder / f"{state}.json", json.dumps(figures, indent=1) + "\n")


def draws(matches: Matches, score: Callable[[Accuracy], float]) -> np.ndarray:
    """(RESAMPLES,) the score on pictures drawn with replacement, the draws of `measure.bootstrap`."""
    rng = np.random.default_rng(0)
    size = matches.pictures
    return np.array([score(matches.accuracy(rng.integers(size, size=size))) for _ in range(RESAMPLES)])


def name(method: str, macs: float) -> str:
    return method if method == "control" else f"{method}-{macs:g}"


def model_of(folder: Path) -> nn.Module:
    """The network of a cell as it was cut: what latency is measured of."""
    return checkpoint.load(folder / f"{json.loads((folder / 'cell.json').read_text())['states'][0]}.pt").model


def commit() -> str:
    def git(*words) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + (
        "+changes" if git("--no-optional-locks", "status", "--porcelain", "-uno") else ""
    )
