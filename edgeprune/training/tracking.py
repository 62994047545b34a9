"""Fine-tuning in the user's own experiment trackers: MLflow, TensorBoard, Weights & Biases.

Ultralytics' own callbacks report to a tracker where the user has it on: the package is installed, and `yolo settings`
enables it. Nothing else that Ultralytics adds to a training is added here: not its platform, Comet, ClearML, nor the
usage figures that it sends by default.

    begin        name, arguments
    each epoch   losses, learning rates; with --patience the mAP on the held-back images
    report()     edgeprune's figures by the evaluator, and the files, in the same run

A tracker must never affect the training. It gets a view of the trainer that it cannot change, and runs in a thread with
a time limit. A server that does not answer, a missing login or a full disk costs one warning, never the training. The
identifiers of its run lie in the training's folder (`tracking.json`): an interrupted training goes on in the run that
it began, and the processes of several GPUs write to the run that the first one reports to.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import json
import logging
import math
import os
import queue
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

from edgeprune_device.files import write_atomic

__all__ = ["Record", "attach", "figures", "prepare", "report", "switched_on"]

#: The project (W&B) or experiment (MLflow) of runs, where the user's environment names none.
PROJECT = "edgeprune"
#: Seconds that a training waits for a tracker's answer, for its start (MLflow's first one makes a data base of fifty
#: migrations), and a finished job for its uploads; after them it goes on alone.
PATIENCE_S, START_S, UPLOAD_S = 30.0, 120.0, 300.0
#: Defaults for the trackers: no usage figures, no waiting beyond the limits above, no log. The user's values stay.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_FINISH_TIMEOUT": "30",
    "WANDB_INIT_TIMEOUT": "25",
    "WANDB_SILENT": "true",
}


@dataclass
class Record:
    """The description of a training for the trackers, on disk.

    Attributes:
        name: Of the run, such as `demo/tuned`.
        logs: The folder for the trackers' files on this machine.
        model: The weights, as the user gave them.
        data: The data set, as the user gave it.
        arguments: The hyperparameters as shown; None before the first start.
        runs: Tracker -> the identifiers of its run.
    """

    name: str
    logs: str
    model: str
    data: str
    arguments: dict | None = None
    runs: dict[str, dict] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the record into the training's folder."""
        write_atomic(folder / "tracking.json", json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Read the record of the training's folder; None where there is none, and no tracker follows the training."""
        try:
            return cls(**json.loads((folder / "tracking.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def switched_on() -> tuple[str, ...]:
    """The trackers that are installed and on in Ultralytics' settings, by their names there."""
    from ultralytics.utils import SETTINGS

    return tuple(name for name in TRACKERS if SETTINGS.get(name) is True and importlib.util.find_spec(name))


def prepare(folder: Path, *, weights: Path, data: Path, out: Path) -> None:
    """Name a training for the trackers, unless it has a name, and print which of them it reports to.

    The notice is needed because Ultralytics has MLflow on by default, and the environment may name a server.

    Args:
        folder: The training's folder.
        weights: The checkpoint to train.
        data: The data set.
        out: The checkpoint that the training writes.
    """
    if not switched_on() or Record.read(folder):
        return
    for name in switched_on():
        server = os.environ.get("MLFLOW_TRACKING_URI") if name == "mlflow" else None
        at = f" at {server}" if server else ""
        print(f"reports to {TRACKERS[name].TITLE}{at} (off: yolo settings {name}=False)", file=sys.stderr, flush=True)
    out = out.resolve()
    base = out.parent / "logs" / out.stem
    logs = next(p for p in (base, *(base.with_name(f"{out.stem}-{i}") for i in range(2, 1000))) if not p.exists())
    Record(f"{out.parent.name}/{out.stem}".lstrip("/"), str(logs), str(weights), str(data)).write(folder)


def attach(trainer, folder: Path, **arguments) -> None:
    """Let the trackers that are on follow this training.

    Args:
        trainer: The trainer.
        folder: The training's folder.
        **arguments: Hyperparameters that are not Ultralytics'.
    """
    record = Record.read(folder)
    if record is None:
        return
    if record.arguments is None:
        given = {k: v for k, v in vars(trainer.args).items() if k not in ("save_dir", "distill_model")}
        shown = {"model": record.model, "data": record.data, "project": PROJECT, "name": record.name, "resume": False}
        record.arguments = {**given, **shown, **arguments}
        record.write(folder)
    _set_environment()
    for name in switched_on():
        tracker = TRACKERS[name](name, record, folder, trainer)
        for event in tracker.EVENTS:
            trainer.add_callback(event, functools.partial(tracker.told, event))


def report(folder: Path, found: Mapping[str, Mapping], files: Iterable[Path] = ()) -> list[str]:
    """Add figures and files to the runs of a training.

    Args:
        folder: The training's folder.
        found: Model -> its figures, such as build.json's "models"; every number in it is reported (`figures`).
        files: Files to upload.

    Returns:
        The place of each run, one line each.
    """
    record = Record.read(folder)
    if record is None:
        return []
    _set_environment()
    flat, files = figures(found), [Path(f) for f in files]
    known = [name for name in switched_on() if record.runs.get(name)]
    trackers = [TRACKERS[name](name, record, folder, None) for name in known]
    lines = [tracker.aside(functools.partial(tracker.add, flat, files), UPLOAD_S) for tracker in trackers]
    return [line for line in lines if line]


def figures(found: Mapping[str, Mapping]) -> dict[str, float]:
    """The numbers of nested figures, flat. Null figures (not measured) are left out.

    Example: {"tuned": {"map50_95": 0.25, "latency_ms": {"p50": 11.0}}} -> {"edgeprune/tuned/map50_95": 0.25,
    "edgeprune/tuned/latency_ms.p50": 11.0}.
    """
    flat = {}
    for model, entry in found.items():
        for key, value in entry.items():
            inner = {f".{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {"": value}
            for suffix, number in inner.items():
                if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
                    flat[f"edgeprune/{model}/{key}{suffix}"] = float(number)
    return flat


class _View:
    """The trainer as a tracker's callbacks see it. Attributes that they set stay here, and only real figures are shown.

    Ultralytics' metrics are zeros where it does not validate; its checkpoints are intermediate ones, with the
    optimiser's state; its folder is deleted when the training is done.
    """

    def __init__(self, trainer, record: Record) -> None:
        from ultralytics.utils import IterableSimpleNamespace

        self._trainer = trainer
        self.callbacks = defaultdict(list)
        self.save_dir = Path(record.logs)
        self.best = self.save_dir / "none"
        self.args = IterableSimpleNamespace(**record.arguments)
        self.plots, self.validator = {}, SimpleNamespace(plots={})

    def __getattr__(self, name: str):
        return getattr(self._trainer, name)

    @property
    def metrics(self) -> dict[str, float]:
        fitness = self._trainer.fitness
        return {} if fitness is None else {"held_back/mAP50-95": float(fitness)}

    def add_callback(self, event: str, callback: Callable) -> None:
        self.callbacks[event].append(callback)


class _Tracker:
    """One tracker in one training.

    Attributes:
        TITLE: Its name for people.
        MODULE: The module of Ultralytics' callbacks.
        EVENTS: The events that it receives; the first one begins its run.
    """

    TITLE = MODULE = ""
    EVENTS: tuple[str, ...] = ()

    def __init__(self, name: str, record: Record, folder: Path, trainer) -> None:
        self.name, self.record, self.folder, self.trainer = name, record, folder, trainer
        self.known = record.runs.get(name)
        self.module = self.view = None
        self.lost = False
        self._thread = _Thread()

    def told(self, event: str, _trainer) -> None:
        if not self.lost:
            self.aside(functools.partial(self._hear, event), START_S if self.view is None else PATIENCE_S)

    def _hear(self, event: str) -> None:
        if self.view is None:
            if event != self.EVENTS[0]:
                return  # the training ended before it began
            self.view = _View(self.trainer, self.record)
            self.module = importlib.import_module(f"ultralytics.utils.callbacks.{self.MODULE}")
            if not self.module.callbacks:
                raise ImportError(f"Ultralytics cannot import {self.name}")
            self.begin()
            self.record.runs[self.name] = self.run()
            self.record.write(self.folder)
        else:
            self.on(event)

    def begin(self) -> None:
        self.ultralytics(self.EVENTS[0])

    def on(self, event: str) -> None:
        self.ultralytics(event)

    def ultralytics(self, event: str) -> None:
        """Run Ultralytics' callback for this event, and the callbacks that it has added since."""
        callback = self.module.callbacks.get(event)
        for call in ([callback] if callback else []) + self.view.callbacks[event]:
            call(self.view)

    def run(self) -> dict:
        """The identifiers of this run."""
        return {}

    def add(self, found: dict[str, float], files: list[Path]) -> str:
        """Add figures and files to the finished run; return its place."""
        raise NotImplementedError

    def aside(self, call: Callable, patience_s: float):
        """The result of `call` in the tracker's thread. If it fails or takes too long: None, and one warning."""
        with _warnings_of_ultralytics() as said:
            future = self._thread.run(call)
            try:
                result = future.result(patience_s)
                problem = said[0][:300] if said else None
            except Exception as error:  # a tracker, its client or its server can raise anything
                text = " ".join(str(error).split())[:300]
                problem = f"{type(error).__name__}{': ' if text else ''}{text}"
                result, problem = None, problem if future.done() else f"no answer within {patience_s:g} s"
        if problem:
            self.lost = True
            off = f"(off: yolo settings {self.name}=False)"
            print(f"warning: {self.TITLE} is left out from here on: {problem} {off}", file=sys.stderr, flush=True)
        return result


class MLflow(_Tracker):
    """The tracker `mlflow`. It keeps its active run for each thread, and the parameters of a run cannot change."""

    TITLE, MODULE = "MLflow", "mlflow"
    EVENTS = ("on_pretrain_routine_end", "on_train_epoch_end", "on_fit_epoch_end", "on_train_end", "teardown")

    def __init__(self, *given) -> None:
        super().__init__(*given)
        there = sys.modules.get("mlflow")
        theirs = there.active_run() if there is not None and self.trainer is not None else None
        self.theirs = theirs and theirs.info.run_id  # the user's run of this thread: joined, and left open

    def begin(self) -> None:
        """Join the user's active run, or go on with the run of this training, or start one."""
        import mlflow

        if self.theirs:
            mlflow.start_run(run_id=self.theirs)
        elif self.known:
            with contextlib.suppress(Exception):  # a run that was deleted since: another one begins
                mlflow.start_run(run_id=self.known["run_id"])
        super().begin()
        self.view._mlflow_started_run = not self.theirs  # so Ultralytics closes it

    def on(self, event: str) -> None:
        """Handle an event, without the upload of intermediate checkpoints at the end."""
        if event == "on_train_end":
            self.view._mlflow_active = False  # it would upload the intermediate checkpoints
        super().on(event)

    def run(self) -> dict:
        """The run's id and the server's address."""
        import mlflow

        active = mlflow.active_run()
        if active is None:
            return self.known or {}
        return {"run_id": active.info.run_id, "uri": mlflow.get_tracking_uri()}

    def add(self, found: dict[str, float], files: list[Path]) -> str:
        """Add figures and files to the finished run; return its place."""
        import time

        from mlflow import MlflowClient
        from mlflow.entities import Metric

        client, run = MlflowClient(self.known["uri"]), self.known["run_id"]
        now = int(time.time() * 1000)
        client.log_batch(run, [Metric(key, value, now, 0) for key, value in found.items()])
        for file in files:
            client.log_artifact(run, str(file))
        return f"MLflow: run {self.record.name} ({run}) in {self.known['uri']}"


class TensorBoard(_Tracker):
    """Event files in the run's logs. The network's graph is left out: Ultralytics traces it on the live model."""

    TITLE, MODULE = "TensorBoard", "tensorboard"
    EVENTS = ("on_pretrain_routine_start", "on_train_epoch_end", "on_fit_epoch_end", "teardown")

    def begin(self) -> None:
        """Begin the run, and show the arguments in a new one."""
        super().begin()
        if self.module.WRITER and not self.known:
            table = "".join(f"| {key} | {value} |\n" for key, value in self.record.arguments.items())
            self.module.WRITER.add_text("arguments", f"| argument | value |\n| --- | --- |\n{table}")

    def run(self) -> dict:
        """The folder of the logs."""
        return {"logs": self.record.logs}

    def add(self, found: dict[str, float], files: list[Path]) -> str:
        """Add the figures to the logs; return their place."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(self.record.logs) as writer:
            for key, value in found.items():
                writer.add_scalar(key, value)
        return f"TensorBoard: tensorboard --logdir {self.record.logs}"


class Wandb(_Tracker):
    """The tracker Weights & Biases."""

    TITLE, MODULE = "Weights & Biases", "wb"
    EVENTS = ("on_pretrain_routine_end", "on_train_epoch_end", "on_fit_epoch_end", "on_train_end", "teardown")

    def begin(self) -> None:
        """Begin the run, or go on with the run of this training."""
        _check_login()
        self.view.save_dir.mkdir(parents=True, exist_ok=True)  # else it writes to the temporary folder
        self.view.args.resume = self.known is not None  # then Ultralytics looks for the id among the files there
        super().begin()

    def on(self, event: str) -> None:
        """Handle an event; each epoch has edgeprune's metrics."""
        if event == "on_fit_epoch_end":
            # Ultralytics' also logs FLOPs and the speed of a validation that is none here.
            self.module.wb.run.log({**self.view.metrics, "epoch": self.view.epoch + 1}, commit=True)
        else:
            super().on(event)

    def run(self) -> dict:
        """The run's id, project and entity."""
        run = self.module.wb.run
        return {"id": run.id, "project": run.project, "entity": run.entity or None}

    def add(self, found: dict[str, float], files: list[Path]) -> str:
        """Add figures and files to the finished run; return its place."""
        import wandb

        _check_login()
        with wandb.init(**self.known, dir=self.record.logs, resume="allow", name=self.record.name) as run:
            run.summary.update(found)
            artifact = wandb.Artifact(f"run_{run.id}_model", type="model")
            for file in files:
                artifact.add_file(str(file))
            if files:
                run.log_artifact(artifact)
            where = run.url or f"offline; wandb sync {Path(self.record.logs) / 'wandb'}/offline-run-*"
        return f"Weights & Biases: {where}"


#: The trackers by their names in Ultralytics' settings, which are those of their packages.
TRACKERS = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": Wandb}


def _check_login() -> None:
    """Fail where there is no login: on a terminal W&B would ask for a key, and wait."""
    import wandb

    if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
        raise RuntimeError("no login here: `wandb login`, or WANDB_MODE=offline")


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _Thread:
    """Makes calls one after another in one thread, which the end of the program does not wait for."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def run(self, call: Callable) -> Future:
        future: Future = Future()
        self._calls.put((call, future))
        return future

    def _work(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:  # a client that tries to end the program
                future.set_exception(RuntimeError(type(error).__name__))


@contextlib.contextmanager
def _warnings_of_ultralytics():
    """The warnings that Ultralytics' callbacks turn a tracker's failure into, as a list; nothing is printed."""
    from ultralytics.utils import LOGGER, remove_colorstr

    said: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            said.append(" ".join(remove_colorstr(record.getMessage()).split()).split(": ", 1)[-1])  # without its name
        return False

    level = LOGGER.level
    LOGGER.addFilter(collect)
    LOGGER.setLevel(logging.WARNING)
    try:
        yield said
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeFilter(collect)
