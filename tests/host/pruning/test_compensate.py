"""compensate: exact if an exact solution exists, and never worse than no compensation."""

import numpy as np
import torch

from edgeprune import demo
from edgeprune.model import checkpoint
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace
from edgeprune.pruning.compensate import _resolve, compensate
from edgeprune.pruning.plan import PrunePlan

from ..plans import outputs, random_plan


def pictures(count=8, size=96, seed=2):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def error(model, reference, x):
    a, b = outputs(model, x), outputs(reference, x)
    return float((a - b).square().mean() / (b - b.mean()).square().mean())


def test_an_equal_channel_replaces_the_removed_one(small):
    """Channel 6 repeats channel 2; after the removal of 6 the reader's weight for 2 must include that for 6."""
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
    assert solved > 25
    assert error(cut, small, x) < 0.05 * before


def test_an_unpredictable_output_keeps_its_spread():
    """The outputs depend on a removed input: the best estimate varies less than they did, the solution equally."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 4, generator=generator)
    gone = torch.randn(2000, 2, generator=generator)
    y = x @ torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.0, 2.0, 0.0, 1.0]]).T + gone + 3
    conv = torch.nn.Conv2d(4, 2, 1)
    conv.weight.data.zero_()
    with torch.no_grad():
        _resolve(conv, None, x, y, torch.arange(2000) >= 1500)
    now = x @ conv.weight.detach().flatten(1).T + conv.bias.detach()
    torch.testing.assert_close(now.std(0), y.std(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(now.mean(0), y.mean(0), rtol=1e-3, atol=1e-3)
    guess = y - gone
    assert guess.std(0).max() < 0.95 * y.std(0).max()


def features(model, x):
    """The three maps that the head reads."""
    seen = []
    hook = model.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    outputs(model, x)
    hook.remove()
    return seen


def test_compensation_improves_a_random_cut_on_unseen_images():
    """The trained demo network on its scenes: at least half of the error in the head's input is recovered."""
    model = checkpoint.load(demo.WEIGHTS).model
    scenes = torch.stack([torch.from_numpy(demo.render(7_000_000 + i)[0].copy()) for i in range(12)])
    scenes = scenes.permute(0, 3, 1, 2).float() / 255
    channels = trace(model)
    plan = random_plan(channels, share=0.1)
    kept = [plan.keep[n] for n in ("model.15.cv2.conv", "model.18.cv2.conv", "model.21.cv2.conv")]
    cut = surgery.apply(plan, model, channels)

    def lost():
        pairs = zip(features(cut, scenes[8:]), features(model, scenes[8:]), kept)
        return [float((a - b[:, k]).square().mean() / b[:, k].var()) for a, b, k in pairs]

    before = lost()
    compensate(model, cut, channels, plan, scenes[:8])
    after = lost()
    assert all(a < 0.5 * b for a, b in zip(after, before)), (before, after)


def test_the_original_and_the_shapes_are_unchanged(small):
    channels = trace(small)
    plan = random_plan(channels)
    cut = surgery.apply(plan, small, channels)
    shapes = {k: v.shape for k, v in cut.state_dict().items()}
    before = {k: v.clone() for k, v in small.state_dict().items()}
    compensate(small, cut, channels, plan, pictures())
    assert {k: v.shape for k, v in cut.state_dict().items()} == shapes
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert all(torch.isfinite(v).all() for v in cut.state_dict().values())


def test_an_unpruned_model_is_unchanged(small):
    channels = trace(small)
    plan = PrunePlan.of(channels, np.ones(channels.atoms, dtype=bool), budget="ratio 0", criterion="test")
    cut = surgery.apply(plan, small, channels)
    compensate(small, cut, channels, plan, pictures())
    assert error(cut, small, pictures(seed=3)) < 1e-4
