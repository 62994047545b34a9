"""trainer: Ultralytics' training with the requested learning rates and a fixed architecture."""

import pytest
import torch
from edgeprune_device.errors import EdgepruneError

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings

from .shapes import shapes


def test_the_architecture_learning_rates_and_steps_are_correct(pruned, data, tmp_path, monkeypatch):
    from edgeprune.training import trainer

    monkeypatch.setattr(trainer, "WARMUP", 0)
    seen = []

    def observe(p):
        trainer = p.trainer
        groups = {g["param_group"]: g["lr"] for g in trainer.optimizer.param_groups}
        seen.append((type(trainer.optimizer).__name__, trainer.accumulate, groups))

    settings = TrainingSettings(epochs=4, batch=4, lr=1e-3, imgsz=96)
    result = finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", settings, tmp_path / "work", on_step=observe
    )
    # 8 images in batches of 4: two optimiser steps per epoch (Ultralytics' nbs=64 would make one of 16 batches).
    assert result == {"epochs": 4, "batch": 4, "steps": 8}
    assert len(seen) == 8
    assert {name for name, _, _ in seen} == {"AdamW"}  # `auto` would choose another optimiser and learning rate
    assert {accumulate for _, accumulate, _ in seen} == {1}
    rates = [groups for _, _, groups in seen]
    assert max(max(g.values()) for g in rates) <= 1e-3 + 1e-12  # no bias warm-up at 0.1
    assert rates[2]["weight"] == pytest.approx(1e-3 * 0.855, rel=0.02)  # cosine: epoch 1 of 4
    assert rates[-1]["weight"] < 0.2e-3
    assert shapes(tmp_path / "tuned.pt") == shapes(pruned)
    before, after = (checkpoint.load(p).model.state_dict() for p in (pruned, tmp_path / "tuned.pt"))
    assert any(not torch.equal(before[k], after[k]) for k in before if "conv.weight" in k)


def test_the_learning_rate_rises_over_a_hundred_steps(pruned, data, tmp_path):
    """This holds for short epochs, too: AdamW's first steps are as large as the rate, whatever the gradient."""
    rates = []
    finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=1, batch=2, lr=1e-3, imgsz=96),
        tmp_path / "work", on_step=lambda p: rates.append({g["lr"] for g in p.trainer.optimizer.param_groups}),
    )  # fmt: skip
    assert [r.pop() for r in rates] == pytest.approx([0, 1e-5, 2e-5, 3e-5])
    assert not any(rates)  # one rate for all


def test_a_changed_architecture_is_detected_at_the_next_step(pruned, data, tmp_path):
    def sabotage(p):
        first = p.trainer.model.model[0].conv
        first.bias = torch.nn.Parameter(torch.zeros(first.out_channels))

    with pytest.raises(EdgepruneError, match="changed the architecture"):
        finetune.finetune_network(
            pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=2, batch=4, imgsz=96),
            tmp_path / "work", on_step=sabotage,
        )  # fmt: skip
    assert not (tmp_path / "tuned.pt").exists()


def test_the_saved_average_follows_a_short_run(pruned, data, tmp_path):
    seen = {}

    def observe(p):
        raw = p.trainer.model.state_dict()
        average = p.trainer.ema.ema.state_dict()
        seen.update(raw={k: v.clone() for k, v in raw.items()}, average={k: v.clone() for k, v in average.items()})

    finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=2, batch=4, lr=1e-2, imgsz=96),
        tmp_path / "work", on_step=observe,
    )  # fmt: skip
    start, saved = (checkpoint.load(p).model.state_dict() for p in (pruned, tmp_path / "tuned.pt"))
    weights = [k for k in start if k.endswith("conv.weight")]

    def far(a, b):
        return sum(float((a[k] - b[k]).abs().sum()) for k in weights)

    assert all(torch.equal(saved[k], seen["average"][k].half().float()) for k in weights)
    assert any(not torch.equal(saved[k], seen["raw"][k].half().float()) for k in weights)
    assert far(saved, seen["raw"]) < 0.1 * far(saved, start)  # no longer near the start


def test_the_trainer_refuses_to_build_from_yaml():
    from edgeprune.training.trainer import KeepArchitecture

    with pytest.raises(EdgepruneError, match="no weights"):
        KeepArchitecture.get_model(object(), cfg="yolov8n.yaml", weights=None)
