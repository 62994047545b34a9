"""finetune: the architecture stays, the defaults are really applied, an interruption loses one epoch at most."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from edgeprune_device.errors import EdgepruneError, InputError

from edgeprune import checkpoint, dataset, finetune, surgery
from edgeprune.channels import trace
from edgeprune.finetune import Settings

from .conftest import network, save
from .test_surgery import random_plan


@pytest.fixture
def pruned(tmp_path):
    model = network(width=0.125)
    channels = trace(model)
    source = checkpoint.load(save(model, tmp_path / "best.pt"))
    path = tmp_path / "pruned.pt"
    checkpoint.save(path, surgery.apply(random_plan(channels), model, channels), like=source)
    return path


def shapes(path):
    return {k: tuple(v.shape) for k, v in checkpoint.load(path).model.state_dict().items()}


def test_architecture_learning_rates_and_steps(pruned, data, tmp_path):
    seen = []

    def observe(trainer):
        groups = {g["param_group"]: g["lr"] for g in trainer.optimizer.param_groups}
        seen.append((type(trainer.optimizer).__name__, trainer.accumulate, groups))

    settings = Settings(epochs=4, batch=4, lr=1e-3, imgsz=96)
    result = finetune.finetune(
        pruned, dataset.load(data), tmp_path / "tuned.pt", settings, tmp_path / "work", observe=observe
    )
    # 8 pictures, batch 4: two steps an epoch, each a step of the optimiser (Ultralytics' nbs=64 would make one of 16).
    assert result == {"epochs": 4, "batch": 4, "steps": 8}
    assert len(seen) == 8
    assert {name for name, _, _ in seen} == {"AdamW"}  # `auto` would take another, and its own learning rate
    assert {accumulate for _, accumulate, _ in seen} == {1}
    rates = [groups for _, _, groups in seen]
    assert max(max(g.values()) for g in rates) <= 1e-3 + 1e-12  # no bias warm-up at 0.1
    assert rates[2]["weight"] == pytest.approx(1e-3 * 0.855, rel=0.02)  # cosine: epoch 1 of 4
    assert rates[-1]["weight"] < 0.2e-3
    assert shapes(tmp_path / "tuned.pt") == shapes(pruned)
    before, after = (checkpoint.load(p).model.state_dict() for p in (pruned, tmp_path / "tuned.pt"))
    assert any(not torch.equal(before[k], after[k]) for k in before if "conv.weight" in k)


def test_a_change_of_architecture_is_noticed_at_the_next_step(pruned, data, tmp_path):
    def sabotage(trainer):
        trainer.model.model[0].conv.bias = torch.nn.Parameter(torch.zeros(trainer.model.model[0].conv.out_channels))

    with pytest.raises(EdgepruneError, match="changed the architecture"):
        finetune.finetune(
            pruned, dataset.load(data), tmp_path / "tuned.pt", Settings(epochs=2, batch=4, imgsz=96),
            tmp_path / "work", observe=sabotage,
        )  # fmt: skip
    assert not (tmp_path / "tuned.pt").exists()


RUN = """
import sys
from pathlib import Path
from edgeprune import dataset, finetune
weights, data, out, work, log = map(Path, sys.argv[1:])
with open(log, "a") as file:
    def note(p):
        print(p.epoch, p.step, file=file, flush=True)
    settings = finetune.Settings(epochs=6, batch=4, imgsz=96)
    print(finetune.finetune(weights, dataset.load(data), out, settings, work, on_step=note))
"""


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed(pruned, data, tmp_path, kill):
    out, work, log = tmp_path / "tuned.pt", tmp_path / "work", tmp_path / "log"
    command = [sys.executable, "-c", RUN, *map(str, (pruned, data, out, work, log))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (log.exists() and "3 1" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, kill)
    assert process.wait() != 0
    assert not out.exists()
    reached = max(int(line.split()[0]) for line in log.read_text().splitlines())
    assert 3 <= reached < 6, "killed too late to prove anything"
    log.unlink()
    assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).returncode == 0
    epochs = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert epochs[0] >= reached and epochs[-1] == 6  # from the last whole epoch, not from the first
    assert shapes(out) == shapes(pruned)


def test_a_finished_or_foreign_last_is_not_resumed(pruned, data, tmp_path):
    settings = Settings(epochs=2, batch=4, imgsz=96)
    finetune.finetune(pruned, dataset.load(data), tmp_path / "a.pt", settings, tmp_path / "work")
    result = finetune.finetune(
        pruned, dataset.load(data), tmp_path / "b.pt", Settings(epochs=3, batch=4, imgsz=96), tmp_path / "work"
    )
    assert result["steps"] == 6


def test_batch_is_lowered_when_memory_runs_out(pruned, data, tmp_path, monkeypatch):
    from edgeprune.trainer import KeepArchitecture

    preprocess = KeepArchitecture.preprocess_batch

    def small_memory(self, batch):
        if len(batch["img"]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return preprocess(self, batch)

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", small_memory)
    result = finetune.finetune(
        pruned, dataset.load(data), tmp_path / "tuned.pt", Settings(epochs=1, batch=8, imgsz=96), tmp_path / "work"
    )
    assert result == {"epochs": 1, "batch": 2, "steps": 4}


def test_memory_that_does_not_even_hold_one_picture(pruned, data, tmp_path, monkeypatch):
    from edgeprune.trainer import KeepArchitecture

    def none(self, batch):
        raise MemoryError

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", none)
    with pytest.raises(InputError, match="batch of 1"):
        finetune.finetune(
            pruned, dataset.load(data), tmp_path / "tuned.pt", Settings(epochs=1, batch=2, imgsz=96), tmp_path / "work"
        )


def test_what_distributed_workers_get_restores_the_pruned_model(pruned, data, tmp_path):
    """Ultralytics starts its workers from a file that names the trainer's class and its arguments; the model travels
    as the path of the weights. Real several-GPU training is not verified."""
    import importlib

    from edgeprune.trainer import KeepArchitecture

    module = importlib.import_module(KeepArchitecture.__module__)
    assert getattr(module, KeepArchitecture.__name__) is KeepArchitecture
    settings = Settings(epochs=1, batch=4, imgsz=96)
    trainer = KeepArchitecture(
        overrides={**settings.overrides(), "model": str(pruned), "data": str(data), "project": str(tmp_path / "w")}
    )
    trainer.setup_model()
    assert {k: tuple(v.shape) for k, v in trainer.model.state_dict().items()} == shapes(pruned)
    with pytest.raises(EdgepruneError, match="no weights"):
        trainer.get_model(cfg="yolov8n.yaml", weights=None)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch": 0}, {"workers": -1}, {"lr": 0}, {"lr": 5}, {"imgsz": 100}])
def test_settings_out_of_range(bad):
    with pytest.raises(InputError):
        Settings(**bad)
