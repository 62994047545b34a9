"""surgery: the oracle for every family, and the attributes that must follow the tensors."""

import copy

import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.model.count import count
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace

from ..plans import outputs, random_plan
from ..small import network

FAMILIES = ("yolov8n", "yolov5nu", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n")


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_surgery_equals_masking(family):
    model = network(f"{family}.yaml").double()
    channels = trace(model)
    plan = random_plan(channels)
    picture = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    cut = outputs(surgery.apply(plan, model, channels), picture)
    masked = outputs(surgery.masked(plan, model, channels), picture)
    whole = outputs(model, picture)
    assert difference(cut, masked) <= 1e-9
    assert difference(cut, whole) > 1e-4


def test_the_oracle_detects_a_wrong_cut():
    model = network(width=0.125).double()
    channels = trace(model)
    plan = random_plan(channels)
    pruned = surgery.apply(plan, model, channels)
    layer = pruned.get_submodule("model.4.cv1.conv")
    layer.weight.data = layer.weight.data.flip(1)  # the right shape, the wrong channels
    picture = torch.rand(1, 3, 96, 96, dtype=torch.float64)
    assert difference(outputs(pruned, picture), outputs(surgery.masked(plan, model, channels), picture)) > 1e-6


def test_tensors_shrink_and_classes_stay_stock():
    model = network()
    channels = trace(model)
    plan = random_plan(channels)
    pruned = surgery.apply(plan, model, channels)
    before, after = count(model, (96, 96)), count(pruned, (96, 96))
    assert after.parameters < 0.8 * before.parameters and after.macs < 0.8 * before.macs
    assert after.parameters == sum(v.numel() for v in pruned.parameters())
    assert [type(m) for m in model.modules()] == [type(m) for m in pruned.modules()]
    for module in pruned.modules():
        if isinstance(module, torch.nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean) == len(module.weight)


@pytest.mark.parametrize("family", ("yolov8n", "yolo11n"))
def test_width_attributes_follow_the_tensors(family):
    """C2f.forward_split reads self.c, which C2f.forward does not."""
    model = network(f"{family}.yaml")
    channels = trace(model)
    pruned = surgery.apply(random_plan(channels), model, channels)
    split = copy.deepcopy(pruned)
    blocks = [m for m in split.modules() if hasattr(m, "forward_split")]
    assert blocks
    for block in blocks:
        block.forward = block.forward_split
    picture = torch.rand(1, 3, 96, 96)
    torch.testing.assert_close(outputs(split, picture), outputs(pruned, picture))


def test_the_original_is_unchanged(small):
    before = {k: v.clone() for k, v in small.state_dict().items()}
    channels = trace(small)
    surgery.apply(random_plan(channels), small, channels)
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_a_plan_for_another_model_is_refused(small):
    other = network(width=0.25)
    channels = trace(other)
    with pytest.raises(InputError, match="made for another model"):
        surgery.apply(random_plan(channels), small, trace(small))
