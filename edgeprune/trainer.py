"""Ultralytics' detection trainer, made to train the module it is given.

In a file of its own, because importing it imports Ultralytics' training. Its name has no "Trainer" in it: Ultralytics
turns on loggers that upload the run (W&B, Comet, its platform) for classes that do.
"""

from __future__ import annotations

import os

from edgeprune_device.errors import EdgepruneError
from ultralytics.models.yolo.detect import DetectionTrainer


class KeepArchitecture(DetectionTrainer):
    """Trains the pruned module itself, and never a new one built from its YAML."""

    parameters_expected = 0
    optimizer_steps = 0  # of this process
    before_save = None  # called with the trainer before a checkpoint is written

    def get_model(self, cfg=None, weights=None, verbose=True):
        if weights is None:
            raise EdgepruneError("the trainer was given no weights: refusing to train a model built from YAML")
        self.parameters_expected = sum(p.numel() for p in weights.parameters())
        return weights

    def check_architecture(self) -> None:
        found = sum(p.numel() for p in self.model.parameters())
        if found != self.parameters_expected:
            raise EdgepruneError(
                f"training changed the architecture: {self.parameters_expected:,} parameters became {found:,}"
            )

    def optimizer_step(self):
        self.check_architecture()
        super().optimizer_step()
        self.optimizer_steps += 1

    def validate(self):
        """No figure from here: the one evaluator measures the result, and Ultralytics' own would give another."""
        return self.metrics, None

    def final_eval(self):
        """As `validate`; and last.pt keeps its optimiser state, so that an interrupted `build` can go on."""

    def save_model(self):
        """As Ultralytics', but a kill in the middle of the write leaves the former file whole."""
        if self.before_save is not None:
            self.before_save(self)
        last, best = self.last, self.best
        self.last, self.best = last.with_name(".last.pt"), best.with_name(".best.pt")
        try:
            saved = super().save_model()
            for beside, place in ((self.last, last), (self.best, best)):
                if beside.exists():
                    with open(beside, "rb") as file:
                        os.fsync(file.fileno())
                    os.replace(beside, place)
        finally:
            self.last, self.best = last, best
        return saved
