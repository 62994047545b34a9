"""compensate: exact where an exact repair exists, and never worse than doing nothing."""

import numpy as np
import torch

from edgeprune import checkpoint, demo, surgery
from edgeprune.channels import trace
from edgeprune.compensate import compensate
from edgeprune.plan import PrunePlan

from .test_surgery import outputs, random_plan


def pictures(count=8, size=96, seed=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def error(model, reference, x):
    a, b = outputs(model, x), outputs(reference, x)
    return float((a - b).square().mean() / (b - b.mean()).square().mean())


def test_a_twin_takes_over(small):
    """Channel 6 repeats channel 2; without 6 the reader is repaired by giving 2 its weights as well."""
    conv, norm = small.get_submodule("model.2.m.0.cv1.conv"), small.get_submodule("model.2.m.0.cv1.bn")
    conv.weight.data[6] = conv.weight.data[2]
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor[6] = tensor[2]
    channels = trace(small)
    keep = np.ones(channels.atoms, dtype=bool)
    keep[channels.out["model.2.m.0.cv1.conv"][6]] = False
    plan = PrunePlan.of(channels, keep, budget="ratio 0", criterion="test")
    cut = surgery.apply(plan, small, channels)
    x = pictures(seed=3)
    before = error(cut, small, x)
    solved = compensate(small, cut, channels, plan, pictures())
    assert solved > 50
    assert error(cut, small, x) < 0.05 * before


def features(model, x):
    """The three maps that the head reads."""
    seen = []
    hook = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    outputs(model, x)
    hook.remove()
    return seen


def test_it_repairs_a_random_cut_on_pictures_it_has_not_seen():
    """The trained demo network and its scenes: what reaches the head comes back at least half way."""
    model = checkpoint.load(demo.WEIGHTS).model
    scenes = torch.stack([torch.from_numpy(demo.render(7_000_000 + i)[0].copy()) for i in range(20)])
    scenes = scenes.permute(0, 3, 1, 2).float() / 255
    channels = trace(model)
    plan = random_plan(channels, share=0.1)
    kept = [plan.keep[n] for n in ("model.15.cv2.conv", "model.18.cv2.conv", "model.21.cv2.conv")]
    cut = surgery.apply(plan, model, channels)

    def lost():
        pairs = zip(features(cut, scenes[16:]), features(model, scenes[16:]), kept)
        return [float((a - b[:, k]).square().mean() / b[:, k].var()) for a, b, k in pairs]

    before = lost()
    compensate(model, cut, channels, plan, scenes[:16])
    after = lost()
    assert all(a < 0.5 * b for a, b in zip(after, before)), (before, after)


def test_the_original_and_the_shapes_are_left_alone(small):
    channels = trace(small)
    plan = random_plan(channels)
    cut = surgery.apply(plan, small, channels)
    shapes = {k: v.shape for k, v in cut.state_dict().items()}
    before = {k: v.clone() for k, v in small.state_dict().items()}
    compensate(small, cut, channels, plan, pictures())
    assert {k: v.shape for k, v in cut.state_dict().items()} == shapes
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert all(torch.isfinite(v).all() for v in cut.state_dict().values())


def test_an_uncut_model_stays_as_it_is(small):
    channels = trace(small)
    plan = PrunePlan.of(channels, np.ones(channels.atoms, dtype=bool), budget="ratio 0", criterion="test")
    cut = surgery.apply(plan, small, channels)
    compensate(small, cut, channels, plan, pictures())
    assert error(cut, small, pictures(seed=3)) < 1e-4
