"""Fine-tuning in the user's own experiment trackers: MLflow, TensorBoard, Weights & Biases.

Ultralytics' own callbacks report to a tracker if the user has enabled it: the package is installed, and `yolo settings`
enables it. No other callbacks of Ultralytics are used: not its platform, Comet or ClearML, nor the usage figures that
it sends by default.

    begin        name, arguments
    each epoch   losses, learning rates; with --patience the mAP on the held-out images
    report()     the evaluator's figures, and the files, in the same run

A tracker must never affect the training. It gets a read-only view of the trainer, and runs in a thread with a time
limit. A server that does not answer, a missing login or a full disk causes one warning, but does not stop the training.
The identifiers of its run are stored in the training's folder (`tracking.json`): a resumed training continues its
former run, and the processes of several GPUs write to the run of the first one.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from edgeprune_device.files import write_atomic

if TYPE_CHECKING:
    from ultralytics.engine.trainer import BaseTrainer

__all__ = ["Record", "attach", "figures", "prepare", "report", "switched_on"]

#: The project (W&B) or experiment (MLflow) of runs, if the user's environment sets none.
PROJECT = "edgeprune"
#: Seconds that a training waits for a tracker's answer, for its start (MLflow's first start creates a database with
#: fifty migrations), and a finished job for its uploads. Then it continues without the tracker.
PATIENCE_S, START_S, UPLOAD_S = 30.0, 120.0, 300.0
#: Defaults for the trackers: no usage figures, no waits beyond the limits above, no log. The user's values stay.
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
        name: The name of the run, such as `demo/tuned`.
        logs: The folder for the trackers' files on this machine.
        model: The weights that the user gave.
        data: The data set that the user gave.
        arguments: The displayed hyperparameters; None before the first start.
        runs: Tracker -> the identifiers of its run.
    """

    name: str
    logs: str
    model: str
    data: str
    arguments: dict[str, Any] | None = None
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the record into the training's folder."""
        write_atomic(folder / "tracking.json", json.dumps(asdict(self), default=str))

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """Read the record of the training's folder; None if no tracker follows the training."""
        try:
            return cls(**json.loads((folder / "tracking.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None


def switched_on() -> tuple[str, ...]:
    """The trackers that are installed and enabled in Ultralytics' settings, by their names there."""
    from ultralytics.utils import SETTINGS

    return tuple(name for name in TRACKERS if SETTINGS.get(name) is True and importlib.util.find_spec(name))


def prepare(folder: Path, *, weights: Path, data: Path, out: Path) -> None:
    """Name a training for the trackers, unless it has a name, and print the trackers that it reports to.

    The notice is needed because Ultralytics enables MLflow by default, and the environment may name a server.

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
        print(
            f"reporting to {TRACKERS[name].TITLE}{at} (turn off with yolo settings {name}=False)",
            file=sys.stderr,
            flush=True,
        )
    out = out.resolve()
    base = out.parent / "logs" / out.stem
    logs = next(p for p in (base, *(base.with_name(f"{out.stem}-{i}") for i in range(2, 1000))) if not p.exists())
    Record(f"{out.parent.name}/{out.stem}".lstrip("/"), str(logs), str(weights), str(data)).write(folder)


def attach(trainer: BaseTrainer, folder: Path, **arguments: object) -> None:
    """Attach the enabled trackers to this training.

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
            trainer.add_callback(event, functools.partial(tracker.handle, event))


def report(folder: Path, entries: Mapping[str, Mapping[str, Any]], files: Iterable[Path] = ()) -> list[str]:
    """Add figures and files to the runs of a training.

    Args:
        folder: The training's folder.
        entries: Model -> its figures, such as build.json's "models"; every number in it is reported (`figures`).
        files: Files to upload.

    Returns:
        The place of each run, one line each.
    """
    record = Record.read(folder)
    if record is None:
        return []
    _set_environment()
    flat, paths = figures(entries), [Path(f) for f in files]
    known = [name for name in switched_on() if record.runs.get(name)]
    trackers = [TRACKERS[name](name, record, folder, None) for name in known]
    lines = [tracker.aside(functools.partial(tracker.add, flat, paths), UPLOAD_S) for tracker in trackers]
    return [line for line in lines if line]


def figures(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The numbers of nested figures, flat. Null figures (not measured) are left out.

    Example: {"tuned": {"map50_95": 0.25, "latency_ms": {"p50": 11.0}}} -> {"edgeprune/tuned/map50_95": 0.25,
    "edgeprune/tuned/latency_ms.p50": 11.0}.
    """
    flat = {}
    for model, entry in entries.items():
        for key, value in entry.items():
            inner = {f".{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {"": value}
            for suffix, number in inner.items():
                if isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number):
                    flat[f"edgeprune/{model}/{key}{suffix}"] = float(number)
    return flat


class _View:
    """The trainer as seen by a tracker's callbacks. Attributes that they set stay here, and only real figures are
    shown.

    Ultralytics' metrics are zeros if it does not validate; its checkpoints are intermediate, with the optimiser's
    state; its folder is deleted after the training.
    """

    def __init__(self, trainer: BaseTrainer, record: Record) -> None:
        from ultralytics.utils import IterableSimpleNamespace

        self._trainer = trainer
        self.callbacks: defaultdict[str, list[Callable[[_View], object]]] = defaultdict(list)
        self.save_dir = Path(record.logs)
        self.best = self.save_dir / "none"
        self.args: Any = IterableSimpleNamespace(**(record.arguments or {}))
        self.plots: dict[str, Any] = {}
        self.validator = SimpleNamespace(plots={})
        self._mlflow_active = self._mlflow_started_run = False  # Ultralytics' MLflow callbacks keep their state here

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    @property
    def metrics(self) -> dict[str, float]:
        fitness = self._trainer.fitness
        return {} if fitness is None else {"held_back/mAP50-95": float(fitness)}

    def add_callback(self, event: str, callback: Callable[[_View], object]) -> None:
        self.callbacks[event].append(callback)


_R = TypeVar("_R")


class _Tracker:
    """One tracker in one training.

    Args:
        name: Its name in Ultralytics' settings.
        record: The description of the training.
        folder: The training's folder.
        trainer: The trainer; None after the training.

    Attributes:
        TITLE: Its displayed name.
        MODULE: The module of Ultralytics' callbacks.
        EVENTS: The events that it receives; the first one starts its run.
        known: The identifiers of the run from an earlier start of this training, or None.
        lost: Whether the tracker has failed and is no longer used.
    """

    TITLE = MODULE = ""
    EVENTS: tuple[str, ...] = ()

    def __init__(self, name: str, record: Record, folder: Path, trainer: BaseTrainer | None) -> None:
        self.name, self.record, self.folder, self.trainer = name, record, folder, trainer
        self.known = record.runs.get(name)
        self.lost = False
        self._view: _View | None = None
        self._thread = _Thread()

    @property
    def view(self) -> _View:
        """The trainer as seen by the callbacks, from the first event on."""
        if self._view is None:
            raise RuntimeError(f"{self.name}: the run has not begun")
        return self._view

    @functools.cached_property
    def module(self) -> Any:
        """The module of Ultralytics' callbacks."""
        return importlib.import_module(f"ultralytics.utils.callbacks.{self.MODULE}")

    def handle(self, event: str, _trainer: BaseTrainer) -> None:
        if not self.lost:
            self.aside(functools.partial(self._hear, event), START_S if self._view is None else PATIENCE_S)

    def _hear(self, event: str) -> None:
        if self._view is None:
            if event != self.EVENTS[0] or self.trainer is None:
                return  # the training ended before its start
            self._view = _View(self.trainer, self.record)
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
        """Run Ultralytics' callback for this event, and the callbacks that it has added."""
        callback = self.module.callbacks.get(event)
        for call in ([callback] if callback else []) + self.view.callbacks[event]:
            call(self.view)

    def run(self) -> dict[str, Any]:
        """The identifiers of this run."""
        return {}

    def add(self, numbers: dict[str, float], files: list[Path]) -> str:
        """Add figures and files to the finished run; return its place."""
        raise NotImplementedError

    def aside(self, call: Callable[[], _R], patience_s: float) -> _R | None:
        """The result of `call` in the tracker's thread; None, with one warning, if it fails or takes too long."""
        with _warnings_of_ultralytics() as messages:
            future = self._thread.run(call)
            result: _R | None = None
            try:
                result = future.result(patience_s)
                problem = messages[0][:300] if messages else None
            except Exception as error:  # a tracker, its client or its server can raise anything
                text = " ".join(str(error).split())[:300]
                problem = f"{type(error).__name__}{': ' if text else ''}{text}"
                problem = problem if future.done() else f"no answer within {patience_s:g} s"
        if problem:
            self.lost = True
            off = f"(turn off with yolo settings {self.name}=False)"
            print(f"warning: {self.TITLE} is no longer used: {problem} {off}", file=sys.stderr, flush=True)
        return result


class MLflow(_Tracker):
    """The tracker `mlflow`, which has one active run per thread and does not allow changed parameters of a run."""

    TITLE, MODULE = "MLflow", "mlflow"
    EVENTS = ("on_pretrain_routine_end", "on_train_epoch_end", "on_fit_epoch_end", "on_train_end", "teardown")

    def __init__(self, name: str, record: Record, folder: Path, trainer: BaseTrainer | None) -> None:
        super().__init__(name, record, folder, trainer)
        there = sys.modules.get("mlflow")
        theirs = there.active_run() if there is not None and self.trainer is not None else None
        self.theirs = theirs and theirs.info.run_id  # the user's run in this thread, which is joined and left open

    def begin(self) -> None:
        """Join the user's active run, continue the run of this training, or start a new one."""
        import mlflow

        if self.theirs:
            mlflow.start_run(run_id=self.theirs)
        elif self.known:
            with contextlib.suppress(Exception):  # if the run was deleted, a new one starts
                mlflow.start_run(run_id=self.known["run_id"])
        super().begin()
        self.view._mlflow_started_run = not self.theirs  # then Ultralytics closes it

    def on(self, event: str) -> None:
        """Handle an event, without the upload of intermediate checkpoints at the end."""
        if event == "on_train_end":
            self.view._mlflow_active = False  # else it would upload the intermediate checkpoints
        super().on(event)

    def run(self) -> dict[str, Any]:
        """The run's id and the server's address."""
        import mlflow

        active = mlflow.active_run()
        if active is None:
            return self.known or {}
        return {"run_id": active.info.run_id, "uri": mlflow.get_tracking_uri()}

    def add(self, numbers: dict[str, float], files: list[Path]) -> str:
        """Add figures and files to the finished run; return its place."""
        import time

        from mlflow import MlflowClient
        from mlflow.entities import Metric

        known = self.known or {}
        client, run = MlflowClient(known["uri"]), known["run_id"]
        now = int(time.time() * 1000)
        client.log_batch(run, [Metric(key, value, now, 0) for key, value in numbers.items()])
        for file in files:
            client.log_artifact(run, str(file))
        return f"MLflow: run {self.record.name} ({run}) in {known['uri']}"


class TensorBoard(_Tracker):
    """Event files in the run's logs, without the network's graph, which Ultralytics would trace on the live model."""

    TITLE, MODULE = "TensorBoard", "tensorboard"
    EVENTS = ("on_pretrain_routine_start", "on_train_epoch_end", "on_fit_epoch_end", "teardown")

    def begin(self) -> None:
        """Begin the run, and write the arguments into a new one."""
        super().begin()
        if self.module.WRITER and not self.known:
            table = "".join(f"| {key} | {value} |\n" for key, value in (self.record.arguments or {}).items())
            self.module.WRITER.add_text("arguments", f"| argument | value |\n| --- | --- |\n{table}")

    def run(self) -> dict[str, Any]:
        """The folder of the logs."""
        return {"logs": self.record.logs}

    def add(self, numbers: dict[str, float], files: list[Path]) -> str:
        """Add the figures to the logs; return their place."""
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(self.record.logs) as writer:
            for key, value in numbers.items():
                writer.add_scalar(key, value)
        return f"TensorBoard: tensorboard --logdir {self.record.logs}"


class Wandb(_Tracker):
    """The tracker Weights & Biases."""

    TITLE, MODULE = "Weights & Biases", "wb"
    EVENTS = ("on_pretrain_routine_end", "on_train_epoch_end", "on_fit_epoch_end", "on_train_end", "teardown")

    def begin(self) -> None:
        """Begin the run, or continue the run of this training."""
        _check_login()
        self.view.save_dir.mkdir(parents=True, exist_ok=True)  # else W&B writes to the temporary folder
        self.view.args.resume = self.known is not None  # then Ultralytics looks for the id among the files there
        super().begin()

    def on(self, event: str) -> None:
        """Handle an event; each epoch has edgeprune's metrics."""
        if event == "on_fit_epoch_end":
            # Ultralytics' callback also logs FLOPs and the speed of a validation that did not run.
            self.module.wb.run.log({**self.view.metrics, "epoch": self.view.epoch + 1}, commit=True)
        else:
            super().on(event)

    def run(self) -> dict[str, Any]:
        """The run's id, project and entity."""
        run = self.module.wb.run
        return {"id": run.id, "project": run.project, "entity": run.entity or None}

    def add(self, numbers: dict[str, float], files: list[Path]) -> str:
        """Add figures and files to the finished run; return its place."""
        import wandb

        _check_login()
        with wandb.init(**(self.known or {}), dir=self.record.logs, resume="allow", name=self.record.name) as run:
            run.summary.update(numbers)
            artifact = wandb.Artifact(f"run_{run.id}_model", type="model")
            for file in files:
                artifact.add_file(str(file))
            if files:
                run.log_artifact(artifact)
            where = run.url or f"offline; wandb sync {Path(self.record.logs) / 'wandb'}/offline-run-*"
        return f"Weights & Biases: {where}"


#: The trackers by their names in Ultralytics' settings, which are those of their packages.
TRACKERS: dict[str, type[_Tracker]] = {"mlflow": MLflow, "tensorboard": TensorBoard, "wandb": Wandb}


def _check_login() -> None:
    """Fail without a login, because W&B would ask for a key on a terminal, and wait."""
    import wandb

    if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
        raise RuntimeError("not logged in; run `wandb login`, or set WANDB_MODE=offline")


def _set_environment() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class _Thread:
    """Makes calls in sequence in a daemon thread, which does not delay the end of the program."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def run(self, call: Callable[[], _R]) -> Future[_R]:
        future: Future[_R] = Future()
        self._calls.put((call, future))
        return future

    def _work(self) -> None:
        while True:
            call, future = self._calls.get()
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)
            except BaseException as error:  # such as a client that calls sys.exit
                future.set_exception(RuntimeError(type(error).__name__))


@contextlib.contextmanager
def _warnings_of_ultralytics() -> Iterator[list[str]]:
    """Collect the warnings that Ultralytics' callbacks log for a tracker's failure; nothing is printed."""
    from ultralytics.utils import LOGGER, remove_colorstr

    messages: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            message: str = remove_colorstr(record.getMessage())  # type: ignore[no-untyped-call]  # Ultralytics has no types here
            text = " ".join(message.split())
            messages.append(text.split(": ", 1)[-1])  # without its name
        return False

    level = LOGGER.level
    LOGGER.addFilter(collect)
    LOGGER.setLevel(logging.WARNING)
    try:
        yield messages
    finally:
        LOGGER.setLevel(level)
        LOGGER.removeFilter(collect)
