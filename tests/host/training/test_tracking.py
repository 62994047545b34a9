"""tracking: the user's trackers receive measured figures, and never change the result of a training."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.training import finetune, tracking
from edgeprune.training.finetune import TrainingSettings


def tune(weights, data, out, on_step=None, **settings):
    chosen = TrainingSettings(**{"epochs": 2, "batch": 4, "lr": 1e-3, "imgsz": 96, **settings})
    work = out.with_name(".work")
    finetune.finetune_network(weights, dataset.load(data), out, chosen, work, on_step=on_step)
    return checkpoint.load(out).model.state_dict(), work


def same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one)


class Fake(tracking._Tracker):
    """A fake tracker with functions of the test as callbacks."""

    TITLE, MODULE, EVENTS = "Fake", "fake", ("on_pretrain_routine_end", "on_train_epoch_end", "on_fit_epoch_end")

    def run(self):
        return {"id": "7"}

    def add(self, numbers, files):
        self.heard.append((numbers, files))
        return "Fake: there"


@pytest.fixture
def fake(monkeypatch):
    """(received events, callbacks by event) of the fake, the only enabled tracker."""
    import types

    heard = []
    module = types.ModuleType("ultralytics.utils.callbacks.fake")
    module.callbacks = {event: lambda view: heard.append(view) for event in Fake.EVENTS}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tracking, "TRACKERS", {"fake": Fake})
    monkeypatch.setattr(tracking, "switched_on", lambda: ("fake",))
    monkeypatch.setattr(Fake, "heard", heard, raising=False)
    return heard, module.callbacks


def test_a_tracker_is_on_if_installed_and_enabled_in_ultralytics(monkeypatch):
    from ultralytics import utils

    monkeypatch.setattr(utils, "SETTINGS", {"mlflow": True, "tensorboard": False, "wandb": True, "comet": True})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "wandb" or None)
    assert tracking.switched_on() == ("mlflow",)


def test_no_other_service_receives_the_training(weights, data, tmp_path, monkeypatch):
    """Ultralytics sends usage figures for every trainer, and adds its platform, Comet and ClearML to those named
    Trainer.
    """
    from ultralytics.utils import events

    sent, seen = [], []
    monkeypatch.setattr(events, "events", lambda *given: sent.append(given))
    monkeypatch.setattr(tracking, "switched_on", lambda: ())
    _, work = tune(weights, data, tmp_path / "t.pt", epochs=1, on_step=lambda p: seen.append(p.trainer.callbacks))
    modules = {c.__module__ for callbacks in seen[0].values() for c in callbacks}
    assert modules == {"ultralytics.utils.callbacks.base", "edgeprune.training.finetune"}
    assert not sent and not (work / "tracking.json").exists() and not (tmp_path / "logs").exists()


def test_figures_contain_only_measured_values():
    measured = {
        "tuned": {"map50_95": 0.25, "latency_ms": {"p50": 11, "runtime": "x"}, "path": "tuned.pt", "end2end": True},
        "int8": {"map50_95": None, "size_bytes": 5, "map50": float("nan")},
    }
    assert tracking.figures(measured) == {
        "edgeprune/tuned/map50_95": 0.25, "edgeprune/tuned/latency_ms.p50": 11.0, "edgeprune/int8/size_bytes": 5.0,
    }  # fmt: skip


def test_a_tracker_sees_the_arguments_and_no_false_metrics(weights, data, tmp_path, fake):
    heard, callbacks = fake
    shown = []
    callbacks["on_fit_epoch_end"] = lambda view: shown.append((view.epoch, view.metrics))
    (tmp_path / "runs").mkdir()
    _, work = tune(weights, data, tmp_path / "runs/t.pt")
    assert shown == [(0, {}), (1, {})]  # Ultralytics' metrics are zeros here, because nothing was validated
    args = heard[0].args
    assert (args.name, args.project, args.resume) == ("runs/t", "edgeprune", False)
    assert (args.model, args.data, args.lr0, args.sparsity) == (str(weights), str(data), 1e-3, 0.0)
    assert set(heard[1].label_loss_items(heard[1].tloss)) >= {"train/box_loss", "train/cls_loss"}
    assert tracking.report(work, {"tuned": {"map50_95": 0.5}}, [tmp_path / "runs/t.pt"]) == ["Fake: there"]
    assert heard[-1] == ({"edgeprune/tuned/map50_95": 0.5}, [tmp_path / "runs/t.pt"])


def test_with_patience_a_tracker_sees_the_map_on_held_back_images(weights, tmp_path, fake):
    from ..small import dataset as make

    shown = []
    fake[1]["on_fit_epoch_end"] = lambda view: shown.append(view.metrics)
    tune(weights, make(tmp_path / "many", train=34), tmp_path / "t.pt", patience=2, batch=16, epochs=1)
    assert list(shown[0]) == ["held_back/mAP50-95"] and 0 <= shown[0]["held_back/mAP50-95"] <= 1


def broken(view):
    raise SystemExit("a client that gives up")


def stuck(view):
    threading.Event().wait(60)


def talking(view):
    from ultralytics.utils import LOGGER

    LOGGER.warning("Fake: Failed to initialize: no space left on device")


@pytest.mark.parametrize(
    ("event", "callback", "reason"),
    [
        ("on_pretrain_routine_end", broken, "SystemExit"),
        ("on_train_epoch_end", stuck, "no answer within 0.3 s"),
        ("on_fit_epoch_end", talking, "no space left on device"),
    ],
)
def test_a_failing_tracker_causes_one_warning(
    weights, data, tmp_path, fake, capfd, monkeypatch, event, callback, reason
):
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.3)
    fake[1][event] = callback
    state, _ = tune(weights, data, tmp_path / "t.pt")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1 and "Fake is no longer used" in lines[0] and reason in lines[0], lines
    assert lines[0].endswith("(turn off with yolo settings fake=False)")
    monkeypatch.setattr(tracking, "switched_on", lambda: ())
    assert same(state, tune(weights, data, tmp_path / "u.pt")[0])


def test_another_training_in_the_same_folder_has_its_own_run(weights, data, tmp_path, fake):
    _, work = tune(weights, data, tmp_path / "t.pt", batch=8)
    (tmp_path / "logs/t").mkdir(parents=True)
    assert json.loads((work / "tracking.json").read_text())["runs"] == {"fake": {"id": "7"}}
    tune(weights, data, tmp_path / "t.pt", epochs=1)
    record = tracking.Record.read(work)
    assert record.logs == str(tmp_path / "logs/t-2") and record.arguments["epochs"] == 1


RUN = """
import os, sys
from pathlib import Path
from ultralytics.utils import SETTINGS
tracker, weights, data, die = sys.argv[1:]
SETTINGS.update({name: name == tracker for name in ("mlflow", "tensorboard", "wandb")})
from edgeprune.data import dataset
from edgeprune.training import finetune, tracking
steps = 0
def step(p):
    global steps
    steps += 1
    if die == str(steps):
        os._exit(9)
settings = finetune.TrainingSettings(epochs=2, batch=4, lr=1e-3, imgsz=96)
out = Path("t.pt")
finetune.finetune_network(Path(weights), dataset.load(data), out, settings, Path("work"), on_step=step)
print(tracking.report(Path("work"), {"tuned": {"map50_95": 0.25}}, [out]))
"""


def followed(tracker, weights, data, folder, **environment):
    """Run a training with a real tracker, kill it in its second epoch and resume it; return the last line of output."""
    pytest.importorskip(tracker, reason=f"{tracker} is not installed")
    folder.mkdir()
    env = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}  # else Ultralytics disables its trackers
    env.update(YOLO_CONFIG_DIR=str(folder), OMP_NUM_THREADS="1", **environment)
    command = [sys.executable, "-c", RUN, tracker, weights, data]
    for die, code in (("3", 9), ("0", 0)):
        done = subprocess.run([*command, die], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == code and "warning: " not in done.stderr, done.stderr[-2000:]
    return done.stdout


def test_tensorboard_has_one_run_after_a_resumption(weights, data, tmp_path, monkeypatch):
    output = followed("tensorboard", weights, data, tmp_path / "home")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "home/logs/t"
    assert str(logs) in output
    events = EventAccumulator(str(logs))
    events.Reload()
    assert events.Tags()["tensors"] == ["arguments/text_summary"]  # written once
    for tag in ("train/box_loss", "train/cls_loss", "train/dfl_loss", "lr/pg0"):
        assert [e.step for e in events.Scalars(tag)] == [1, 2]
    assert [e.value for e in events.Scalars("edgeprune/tuned/map50_95")] == [0.25]
    assert not any(tag.startswith("metrics/") for tag in events.Tags()["scalars"])


def test_mlflow_has_one_run_after_a_resumption(weights, data, tmp_path):
    folder = tmp_path / "home"
    followed("mlflow", weights, data, folder, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/mlflow.db")
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("edgeprune")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("home/t", "FINISHED")
    assert run.data.params["lr0"] == "0.001" and run.data.params["data"] == str(data)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/box_loss")] == [0, 1]
    assert run.data.metrics["edgeprune/tuned/map50_95"] == 0.25
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["t.pt"]


def test_wandb_has_one_run_after_a_resumption(weights, data, tmp_path):
    output = followed("wandb", weights, data, tmp_path / "home", WANDB_MODE="offline")
    runs = sorted((tmp_path / "home/logs/t/wandb").glob("offline-run-*/run-*.wandb"))
    assert len({p.name for p in runs}) == 1 and len(runs) == 3  # killed, resumed, figures: one id
    assert "wandb sync" in output and Path(runs[0]).stat().st_size > 0
