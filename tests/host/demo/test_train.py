"""train: the learning rate by time and by steps."""

from types import SimpleNamespace

import pytest

from edgeprune.demo.train import LR0, LR_END, WARMUP_STEPS, Pace


class FakeTrainer:
    """The part of Ultralytics' trainer that Pace uses, with 4 epochs of 100 steps."""

    def __init__(self):
        self.epochs, self.train_loader, self.epoch, self.stop, self.saves = 4, range(100), 0, False, 0
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.1}, {"lr": 0.1}])
        self.tloss = {"box_loss": 1.0}

    def save_model(self):
        self.saves += 1


def paced(tmp_path, budget_s, clock, steps) -> tuple[FakeTrainer, list[float]]:
    """Run at most `steps` steps of one second each; return the trainer and the learning rates."""
    trainer, pace, rates = FakeTrainer(), Pace(tmp_path, budget_s), []
    pace.started = pace.saved = clock[0]
    for _ in range(steps):
        pace.before_batch(trainer)
        rates.append(trainer.optimizer.param_groups[1]["lr"])
        clock[0] += 1
        pace.after_batch(trainer)
        if trainer.stop:
            break
    pace.save(trainer)
    return trainer, rates


def test_learning_rate_follows_the_clock_across_an_interruption(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("edgeprune.demo.train.time.monotonic", lambda: clock[0])
    first, rates = paced(tmp_path, 300, clock, 200)
    assert rates[0] == pytest.approx(LR0 / WARMUP_STEPS, rel=0.01)
    assert max(rates) < LR0 and rates[-1] < rates[160]
    assert not first.stop and first.saves == 1
    clock[0] += 5000  # no training during this time
    second, rest = paced(tmp_path, 300, clock, 500)
    assert second.stop and len(rest) == 101
    assert rest[0] == pytest.approx(rates[-1], rel=0.05)
    assert rest[-1] == pytest.approx(LR0 * LR_END, rel=0.05)


def test_learning_rate_follows_the_steps_without_a_budget(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("edgeprune.demo.train.time.monotonic", lambda: clock[0])
    trainer, rates = paced(tmp_path, None, clock, 400)
    assert not trainer.stop and rates[-1] == pytest.approx(LR0 * LR_END, rel=0.05)
    assert trainer.saves == 2  # once after four minutes, once at the end
