"""shape: every training batch has exactly the requested height and width, and its labels lie on its objects."""

import numpy as np
import pytest
import torch
from edgeprune_device.size import Size

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings

from .. import small

#: Colours of the classes of `small.dataset`.
COLOURS = torch.eye(3) * 200 + 40


def _batches(pruned, data, folder, settings):
    """(images, labels) of each step, (n, 3, H, W) in [0, 1] and (m, 6) [image, class, cx, cy, w, h]."""
    batches = []

    def keep(p):
        batch = p.trainer.batch_seen
        rows = torch.cat([batch["batch_idx"][:, None], batch["cls"], batch["bboxes"]], 1)
        batches.append((batch["img"].clone(), rows))

    finetune.finetune_network(pruned, dataset.load(data), folder / "tuned.pt", settings, folder / "work", on_step=keep)
    return batches


@pytest.fixture(autouse=True)
def seen(monkeypatch):
    """The trainer keeps its last batch."""
    from edgeprune.training.trainer import KeepArchitecture

    stock = KeepArchitecture.preprocess_batch

    def preprocess_batch(self, batch):
        self.batch_seen = stock(self, batch)
        return self.batch_seen

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", preprocess_batch)


@pytest.mark.parametrize(
    ("images", "size"),
    [((96, 160), (96, 160)), ((160, 96), (160, 96)), ((128, 160), (96, 160)), ((160, 160), (64, 128))],
)
def test_batches_have_the_size_with_and_without_mosaic(pruned, tmp_path, images, size):
    data = small.dataset(tmp_path / "shaped", size=images)
    settings = TrainingSettings(epochs=3, batch=4, lr=1e-3, imgsz=size)
    batches = _batches(pruned, data, tmp_path, settings)  # mosaic ends before the last epoch
    assert len(batches) == 6 and {tuple(x.shape) for x, _ in batches} == {(4, 3, *size)}
    assert sum(len(rows) for _, rows in batches) > 12
    right = [_colour_of_class(x, row) for x, rows in batches for row in rows]
    assert np.mean(right) > 0.9  # the others are covered by a later rectangle, or cut off
    saved = checkpoint.load(tmp_path / "tuned.pt")
    assert saved.imgsz == saved.input_size(None) == Size.of(size)


def _colour_of_class(images, row):
    """Whether the strongest channel at the box's centre is that of its class."""
    n, c, cx, cy, w, h = row.tolist()
    _, height, width = images[int(n)].shape
    y, x = cy * height, cx * width
    dy, dx = max(h * height / 4, 1), max(w * width / 4, 1)
    part = images[int(n)][:, int(y - dy) : int(y + dy) + 1, int(x - dx) : int(x + dx) + 1]
    return int(part.mean((1, 2)).argmax()) == int(c)


def test_square_training_of_weights_for_a_rectangle_states_the_square(pruned, data, tmp_path):
    source = checkpoint.load(pruned)
    source.extra["train_args"]["imgsz"] = [64, 96]
    checkpoint.save(tmp_path / "wide.pt", source.model, like=source)
    _batches(tmp_path / "wide.pt", data, tmp_path, TrainingSettings(epochs=1, batch=4, imgsz=96))
    assert checkpoint.load(tmp_path / "tuned.pt").imgsz == (96, 96)


def test_square_is_left_to_ultralytics(pruned, data, tmp_path):
    batches = _batches(pruned, data, tmp_path, TrainingSettings(epochs=1, batch=4, imgsz=96))
    assert {tuple(x.shape) for x, _ in batches} == {(4, 3, 96, 96)}
    assert checkpoint.load(tmp_path / "tuned.pt").imgsz == checkpoint.load(pruned).imgsz
