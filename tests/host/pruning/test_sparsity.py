"""sparsity: prunable scales shrink by the requested amount, others do not, and the saved model shows it."""

import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.pruning import sparsity
from edgeprune.pruning.prune import trace_channels
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings

from ..small import network, save


def test_shrink_is_a_soft_threshold():
    scale = torch.nn.Parameter(torch.tensor([0.5, -0.5, 0.001, -0.001, 0.0, 0.3]))
    mask = torch.tensor([True, True, True, True, True, False])
    sparsity.shrink([(scale, mask)], 0.01)
    torch.testing.assert_close(scale.data, torch.tensor([0.49, -0.49, 0.0, 0.0, 0.0, 0.3]))


def test_scales_of_frozen_channels_are_excluded():
    model = network("yolo26n.yaml")  # the norms of its second head stay
    channels = trace_channels(model, 64)
    frozen = {int(a) for group in channels.groups if group.frozen for a in group.atoms}
    modules = dict(model.named_modules())
    masks = {id(scale): mask for scale, mask in sparsity.prunable_scales(model)}
    kept = 0
    for name, atoms in channels.out.items():
        if isinstance(modules[name], torch.nn.BatchNorm2d):
            expected = torch.tensor([a not in frozen for a in atoms.tolist()])
            mask = masks.get(id(modules[name].weight))
            kept += int((~expected).sum())
            assert torch.equal(mask, expected) if mask is not None else not expected.any()
    assert kept > 0 and masks, "this model should have both kinds"
    size = sparsity.count_small(model)
    assert size == (0, sum(int(m.sum()) for m in masks.values()))
    scale, mask = sparsity.prunable_scales(model)[0]
    scale.data[mask.nonzero()[0]] = 1e-3 * scale.data.abs().max()
    assert sparsity.count_small(model) == (1, size[1])


def train(data, tmp_path, weights, amount):
    seen = []

    def observe(p):
        trainer = p.trainer
        decay = {g["param_group"]: g["weight_decay"] for g in trainer.optimizer.param_groups}
        rate = next(g["lr"] for g in trainer.optimizer.param_groups if g["param_group"] == "bn")
        seen.append((rate, decay["bn"], decay["weight"]))

    out = tmp_path / f"{amount}.pt"
    settings = TrainingSettings(epochs=4, batch=4, lr=1e-2, imgsz=96, sparsity=amount)
    finetune.finetune_network(weights, dataset.load(data), out, settings, tmp_path / "work", on_step=observe)
    return checkpoint.load(out).model, seen


def test_scales_shrink_with_the_schedule_also_in_the_saved_average(data, tmp_path, monkeypatch):
    from edgeprune.training import trainer

    monkeypatch.setattr(trainer, "WARMUP", 0)
    model = network("yolo26n.yaml", width=0.25)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.02, 0.4)  # some are close to zero
    weights = save(model, tmp_path / "best.pt")
    plain, _ = train(data, tmp_path, weights, 0)
    sparse, seen = train(data, tmp_path, weights, 1e-2)
    assert all(decay == 0 and other > 0 for _, decay, other in seen)  # the shrinking does not come from weight decay
    total = sum(rate for rate, *_ in seen) / 1e-2 * 1e-2  # lambda times the sum of the schedule
    differences, stayed = [], []
    modules = dict(sparse.named_modules()), dict(plain.named_modules())
    masks = {id(scale): mask for scale, mask in sparsity.prunable_scales(sparse)}
    for name, module in modules[0].items():
        if isinstance(module, torch.nn.BatchNorm2d):
            mask = masks.get(id(module.weight), torch.zeros(len(module.weight), dtype=torch.bool))
            gap = modules[1][name].weight.detach().abs() - module.weight.detach().abs()
            differences.append(gap[mask])
            stayed.append(gap[~mask])
    mean = float(torch.cat(differences).mean())
    # Scales near zero cannot shrink by the full amount, and the loss has an effect.
    assert 0.4 * total < mean <= 1.05 * total
    assert abs(float(torch.cat(stayed).mean())) < 0.1 * mean
    assert sparsity.count_small(sparse)[0] > sparsity.count_small(plain)[0]


@pytest.mark.parametrize("amount", [-1e-4, 2e-4, float("nan")])
def test_an_amount_out_of_range_is_refused(amount):
    with pytest.raises(InputError, match="sparsity"):
        TrainingSettings(lr=1e-4, sparsity=amount)
    TrainingSettings(lr=1e-4, sparsity=1e-4)
