"""attention: heads lose equal widths, the arithmetic of a block stays, and a query is worth what its products are."""

import numpy as np
import pytest
import torch

from edgeprune.model import checkpoint
from edgeprune.pruning import budget, prune, surgery
from edgeprune.pruning.channels import trace
from edgeprune.pruning.criteria import energy
from edgeprune.pruning.features import Moments
from edgeprune.pruning.plan import PrunePlan

from ... import networks
from ..plans import random_plan
from ..small import network

#: Trained families with attention blocks: PSA, C2PSA, A2C2f with one head, C2PSA and C3k2.
FAMILIES = ("yolov10", "yolo11", "yolo12", "yolo26")


def blocks(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ in ("Attention", "AAttn")}


def groups_of(channels, layer):
    return [g for g in channels.groups if layer in g.producers]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_an_attention_block_are_free_and_surgery_is_exact(family):
    model = checkpoint.load(networks.path(family)).model
    channels = trace(model)
    assert blocks(model)
    for name in blocks(model):
        for layer in ("qkv", "pe", "proj"):
            assert not any(g.frozen for g in groups_of(channels, f"{name}.{layer}.conv"))
    plan = random_plan(channels)
    cut = surgery.apply(plan, model, channels)
    assert prune.oracle(model, cut, plan, channels) < prune.ORACLE
    for before, after in zip(blocks(model).values(), blocks(cut).values()):
        assert after.num_heads == before.num_heads
        if type(after).__name__ == "Attention":
            assert after.head_dim < before.head_dim and after.key_dim < before.key_dim
            assert after.qkv.conv.out_channels == after.num_heads * (2 * after.key_dim + after.head_dim)
    with torch.no_grad():
        assert all(torch.isfinite(v).all() for v in prune._tensors(cut(torch.rand(1, 3, 96, 160))))


def test_all_heads_keep_equally_many_of_their_own_channels():
    """YOLO11n has two heads of 64 values and 32 keys, which keep the share of the block's input."""
    model = network("yolo11n.yaml")
    channels = trace(model)
    (keys,) = channels.keys
    assert keys.queries.shape == keys.keys.shape == (2, 32) and keys.values.shape == (2, 64)
    scores = np.random.default_rng(0).random(channels.atoms)
    scores[channels.out[keys.source]] *= 1e-3
    keep = budget.choose(channels, scores, budget.Budget("macs", 0.5), multiple=8)
    made = keep[channels.out[keys.source]]
    queries, values = made[keys.queries], keep[channels.inp[keys.reader]][keys.values]
    assert np.array_equal(queries, made[keys.keys]) and not np.array_equal(queries[0], queries[1])
    assert len(set(queries.sum(1))) == len(set(values.sum(1))) == 1
    width = keep[channels.inp[keys.source]].sum()
    assert width == values.sum() < 128 and width % 8 == 0
    plan = PrunePlan.of(channels, keep, budget="", criterion="")
    cut = surgery.apply(plan, model, channels)
    assert prune.oracle(model, cut, plan, channels) < prune.ORACLE
    (block,) = blocks(cut).values()
    assert (block.key_dim, block.head_dim) == (queries.sum(1)[0], values.sum(1)[0])


def test_a_head_of_area_attention_is_removed_whole():
    """YOLO12n has blocks of two heads of 32 channels, whose queries, keys and values go together."""
    model = network("yolo12n.yaml")
    channels = trace(model)
    assert channels.keys == () and len(channels.attending) == len(blocks(model)) == 8
    keep = np.ones(channels.atoms, dtype=bool)
    name = next(iter(blocks(model)))
    (group,) = groups_of(channels, f"{name}.qkv.conv")
    assert not group.frozen and len(group.atoms) == 2
    keep[group.atoms[0]] = False
    plan = PrunePlan.of(channels, keep, budget="", criterion="")
    cut = surgery.apply(plan, model, channels)
    assert prune.oracle(model, cut, plan, channels) < prune.ORACLE
    before, after = blocks(model)[name], blocks(cut)[name]
    assert (after.num_heads, after.head_dim, after.all_head_dim) == (1, 32, 32)
    assert torch.equal(after.qkv.conv.weight, before.qkv.conv.weight[96:])
    assert torch.equal(after.proj.conv.weight, before.proj.conv.weight[:, 32:])


def test_a_block_that_is_not_ultralytics_own_stays(monkeypatch):
    model = network("yolo11n.yaml", width=0.125)
    (block,) = blocks(model).values()
    monkeypatch.setattr(type(block), "__module__", "mine")
    channels = trace(model)
    assert channels.keys == () and all(g.frozen for g in groups_of(channels, "model.10.m.0.attn.qkv.conv"))


@pytest.fixture
def keyed():
    """(network, its block, its keys, (positions, outputs) of its qkv, moments of the qkv's input)."""
    model = checkpoint.load(networks.path("yolo26")).model
    keys = next(k for k in trace(model).keys if k.source.startswith("model.10."))
    block = model.get_submodule(keys.source.removesuffix(".qkv.conv"))
    seen = {}
    hooks = [block.qkv.conv.register_forward_pre_hook(lambda m, x: seen.update(x=x[0])),
             block.qkv.register_forward_hook(lambda m, x, y: seen.update(y=y))]  # fmt: skip
    with torch.no_grad():
        model(torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    for hook in hooks:
        hook.remove()
    x, y = (seen[name].transpose(0, 1).flatten(1).T for name in ("x", "y"))
    return model, block, keys, y, Moments.of(x)


def test_the_variance_of_a_product_is_that_of_the_blocks_own_queries_and_keys(keyed):
    _, block, keys, y, moments = keyed
    products = energy._products(keys, block.qkv.conv, block.qkv.bn, moments)
    assert products.shape == keys.queries.shape
    for head in range(len(products)):
        q, k = (y[:, part[head]].double() for part in (keys.queries, keys.keys))
        direct = q.square().mean(0) * k.var(0, correction=0)
        assert products[head] == pytest.approx(direct.numpy(), rel=1e-3)


def test_a_query_that_is_always_zero_costs_nothing_and_goes_first(keyed, tmp_path):
    from edgeprune.data import dataset, samples

    model, block, keys, _, _ = keyed
    block.qkv.bn.weight.data[keys.queries[0][3]] = block.qkv.bn.bias.data[keys.queries[0][3]] = 0
    data = dataset.load(networks.scenes(tmp_path / "data"))
    channels = trace(model)
    scores = energy.score(model, channels, samples.read(data, data.train[:4], networks.SIZE))
    costs = scores[channels.out[keys.source][keys.queries[0]]]
    assert np.isfinite(costs).all() and costs[3] == 0 and np.delete(costs, 3).min() > 0
    assert np.array_equal(costs, scores[channels.out[keys.source][keys.keys[0]]])
