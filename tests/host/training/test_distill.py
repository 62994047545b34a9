"""distill: the student learns the teacher's outputs for every head; the teacher is not saved."""

import copy
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace
from edgeprune.training import distill, finetune
from edgeprune.training.finetune import TrainingSettings

from .. import oriented
from ..plans import random_plan
from ..small import network, save, short
from ..stock import STOCK

GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
FAMILIES = ("yolov8n.yaml", "yolo11n.yaml", "yolov10n.yaml", "yolo26n.yaml")


def labels_say_nothing(preds, batch):
    return torch.zeros(3), {}


def part(student, teacher, batch):
    loss, items = distill.Distilled(labels_say_nothing, teacher, GAINS)(student.train()(batch["img"]), batch)
    assert loss.sum().item() == pytest.approx(items["distill_loss"].item() * len(batch["img"]))
    return loss.sum()


def frozen(model):
    """In training mode, for outputs as in training, but with frozen batch-norm statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True, module=module: module
            module.training = False
    return model


@pytest.mark.parametrize("config", FAMILIES)
def test_the_loss_is_zero_for_equal_outputs_and_falls_otherwise(config):
    """The heads have DFL, plain distances (26), and both branches of end-to-end heads."""
    teacher = network(config)
    student = frozen(copy.deepcopy(teacher))
    batch = {"img": torch.rand(2, 3, 96, 96)}
    assert abs(part(student, teacher, batch).item()) < 1e-4
    head = student.model[-1]
    last = [t[-1] for t in (*head.cv2, *head.cv3, *getattr(head, "one2one_cv2", ()), *getattr(head, "one2one_cv3", ()))]
    torch.manual_seed(0)
    for conv in last:
        conv.weight.data += 0.3 * conv.weight.data.std() * torch.randn_like(conv.weight)
    parameters = [conv.weight for conv in last]
    losses = []
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(12):
        loss = part(student, teacher, batch)
        optimizer.zero_grad()
        loss.backward()
        # every tower gets a gradient
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0 and losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in teacher.parameters())


def test_the_parts_equal_independent_formulas():
    torch.manual_seed(0)
    a, b = torch.randn(2, 4 * 16, 5), torch.randn(2, 4 * 16, 5)
    split = [torch.distributions.Categorical(logits=x.view(2, 4, 16, 5).permute(0, 1, 3, 2)) for x in (a, b)]
    expected = torch.distributions.kl_divergence(split[1], split[0]).mean(1)
    torch.testing.assert_close(distill.bins(a, b), expected)

    a, b = torch.tensor([2.0, 4.0, 2.0, 4.0]).view(1, 4, 1), torch.tensor([4.0, 4.0, 4.0, 4.0]).view(1, 4, 1)
    assert distill.distances(a, b).item() == pytest.approx(1 / 4)  # half the width: on average one stride of four

    p, q = torch.rand(7), torch.rand(7)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(distill._divergence(q.logit(), p.logit(), p), expected, rtol=1e-4, atol=1e-5)


def test_the_schedule_of_end_to_end_losses_advances():
    calls = []
    inner = SimpleNamespace(update=lambda: calls.append(1))
    distill.Distilled(inner, None, GAINS).update()
    distill.Distilled(labels_say_nothing, None, GAINS).update()  # a loss without a schedule
    assert calls == [1]


@pytest.fixture
def pruned(tmp_path):
    model = short()
    channels = trace(model)
    teacher = save(model, tmp_path / "best.pt")
    path = tmp_path / "pruned.pt"
    checkpoint.save(path, surgery.apply(random_plan(channels), model, channels), like=checkpoint.load(teacher))
    return path, teacher


def train(weights, data, tmp_path, teacher, epochs=1, name="tuned"):
    seen = []
    finetune.finetune_network(
        weights, dataset.load(data), tmp_path / f"{name}.pt", TrainingSettings(epochs=epochs, batch=4, imgsz=96),
        tmp_path / "work", teacher=teacher,
        on_step=lambda p: seen.append((p.trainer.epoch, dict(p.trainer.loss_items))),
    )  # fmt: skip
    return seen


@pytest.mark.slow  # similar tests run always
def test_the_checkpoint_contains_no_teacher(pruned, data, tmp_path):
    weights, teacher = pruned
    before = teacher.read_bytes()
    alone = train(weights, data, tmp_path, None, name="alone")
    taught = train(weights, data, tmp_path, teacher)
    assert all("distill_loss" not in items for _, items in alone)
    assert all(float(items["distill_loss"]) > 0 for _, items in taught)
    a, b = (checkpoint.load(tmp_path / f"{n}.pt").model.state_dict() for n in ("alone", "tuned"))
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    assert any(not torch.equal(a[k], b[k]) for k in a)  # the teacher had an effect
    assert (tmp_path / "tuned.pt").stat().st_size == (tmp_path / "alone.pt").stat().st_size
    # after an interruption it holds the EMA and the optimiser's two moments
    last = tmp_path / "work/train/weights/last.pt"
    assert last.stat().st_size < 7 * weights.stat().st_size
    assert teacher.read_bytes() == before
    picture = next((data.parent / "images" / "val").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(tmp_path / "tuned.pt"), str(picture), str(data), str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
    )  # fmt: skip
    assert "STOCK" in done.stdout, done.stderr[-2000:]


def test_a_run_with_another_teacher_is_not_resumed(pruned, data, tmp_path):
    weights, teacher = pruned
    assert len(train(weights, data, tmp_path, teacher)) == 2
    assert train(weights, data, tmp_path, teacher) == []
    other = checkpoint.load(teacher)
    other.model.model[0].conv.weight.data.mul_(2)
    checkpoint.save(teacher, other.model, like=other)
    assert len(train(weights, data, tmp_path, teacher)) == 2
    assert len(train(weights, data, tmp_path, None)) == 2


def test_a_mismatching_teacher_is_refused(data, tmp_path):
    weights = save(network(width=0.125), tmp_path / "best.pt")
    classes = save(short(nc=2), tmp_path / "classes.pt")
    with pytest.raises(InputError, match=r"does not match the model \(classes"):
        train(weights, data, tmp_path, classes)
    end_to_end = save(network("yolov10n.yaml"), tmp_path / "v10.pt")
    with pytest.raises(InputError, match="one-to-one"):
        train(weights, data, tmp_path, end_to_end)
    plain = save(network("yolo26n.yaml"), tmp_path / "v26.pt")
    with pytest.raises(InputError, match="box bins"):
        train(weights, data, tmp_path, plain)
    with pytest.raises(InputError, match="no such file"):
        train(weights, data, tmp_path, tmp_path / "none.pt")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("family", oriented.FAMILIES)
def test_an_oriented_teacher_also_teaches_the_angle(family):
    """Equal networks have no loss; different angles alone have one, but not half a turn, which is the same box."""
    teacher, batch = oriented.network(family), {"img": torch.rand(2, 3, 96, 96)}
    learn = distill.Distilled(labels_say_nothing, teacher, GAINS)

    def loss(turn):
        with torch.no_grad():
            preds = teacher(batch["img"])
        for branch in distill._branches(preds).values():
            branch["angle"] = branch["angle"] + turn
        return float(learn(preds, batch)[0][-1])

    assert loss(0.0) == pytest.approx(0, abs=1e-4) and loss(0.3) > 0.01
    assert loss(math.pi) == pytest.approx(0, abs=1e-4)
