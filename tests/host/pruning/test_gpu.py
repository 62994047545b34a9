"""Computations on a GPU, without one: fake `cuda` tensors, for which a mix of devices fails as it does on a GPU.

FakeTensorMode computes shapes and devices, no values. Gradients, `.numpy()`, `.item()` and boolean masks do not run in
it; `python -m benchmarks.gpu` runs those on a real GPU.
"""

import ast
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import edgeprune
from edgeprune.model import checkpoint
from edgeprune.pruning import compensate, features
from edgeprune.pruning.criteria import energy
from edgeprune.pruning.layers import convolutions

from ... import networks


@pytest.fixture(params=["yolov8", "yolo11", "yolo26"])
def network(request):
    """A trained network on the CPU; asked for before `fake`, as no file can be read under FakeTensorMode."""
    model = checkpoint.load(networks.path(request.param)).model.eval()
    model.model[-1].stride = model.model[-1].stride.tolist()  # its values are read, and a fake tensor has none
    return model


@pytest.fixture
def fake():
    """make(tensor or network): a fake copy on `cuda:0`."""
    mode = FakeTensorMode()

    def make(thing):
        if isinstance(thing, torch.Tensor):
            return torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device="cuda:0")
        for module in thing.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = torch.nn.Parameter(make(parameter), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = make(buffer)
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor):
                    setattr(module, name, make(value))
        return thing

    with mode:
        yield make


def test_a_mix_of_devices_fails_here(fake):
    with pytest.raises(RuntimeError, match="device"):
        fake(torch.zeros(3)) + torch.zeros(3)


def test_moments_and_their_inverse_stay_on_the_gpu(network, fake):
    with torch.no_grad():
        model = fake(network)
        convs = convolutions(model)
        names = [name for name, conv in convs.items() if conv.groups == 1]
        devices = {}

        def take(name, seen):
            devices[name] = {seen.gram.device.type, seen.mean.device.type}
            felt = torch.zeros(convs[name].out_channels, dtype=torch.float64)  # `sensitivity` returns it on the CPU
            reader = energy._Consumer(convs[name], None, felt, seen)
            devices[name] |= {reader.weight.device.type, reader.inverse.device.type}
            block = energy._Block(reader.weight, reader.inverse, reader.taps)
            atoms = fake(torch.arange(2))
            devices[name].add(block.cost(atoms).device.type)
            block.remove(atoms)
            devices[name] |= {block.weight.device.type, block.factor.device.type, block.diagonal.device.type}

        features.each_moments(model, fake(torch.zeros(2, 3, 128, 128)), names, take)
    assert len(devices) > 30 and set(map(frozenset, devices.values())) == {frozenset({"cuda"})}


def test_targets_and_products_of_the_compensation_stay_on_the_gpu(network, fake):
    with torch.no_grad():
        model = fake(network)
        layers = {name: conv for name, conv in convolutions(model).items() if conv.groups == 1}
        targets = compensate._observe(model, layers, fake(torch.zeros(2, 3, 128, 128)))
        for target, where in targets.values():
            assert {target.device.type, *(part.device.type for part in where)} == {"cuda"}
            gram, cross = compensate._products(target, target)
            assert compensate._ridged(gram, cross, 0.1, gram.diagonal().mean()).device.type == "cuda"


def test_no_tensor_that_meets_the_network_is_made_without_a_device():
    """Factories without `device=` make CPU tensors. Those named here never meet a tensor of the network."""
    factories = {"zeros", "ones", "eye", "empty", "full", "arange", "tensor", "linspace", "rand", "randn", "from_numpy"}
    allowed = {
        ("data/samples.py", "from_numpy"), ("data/samples.py", "full"),  # moved by Samples.to and .to(device)
        ("pruning/features.py", "zeros"),  # on the CPU alone
        ("pruning/criteria/energy.py", "from_numpy"),  # moved by .to(device)
        ("pruning/channels.py", "empty"),  # never used: the default of a network without parameters
        ("pruning/prune.py", "rand"),  # the oracle runs on the CPU
        ("pruning/portable.py", "linspace"),  # a network built from YAML, on the CPU
        ("pruning/compensate.py", "from_numpy"), ("pruning/surgery.py", "from_numpy"),  # followed by .to(...)
        ("analysis/sensitivity.py", "from_numpy"),  # followed by .to(...)
        ("pruning/sparsity.py", "zeros"), ("pruning/sparsity.py", "from_numpy"),  # moved to each scale's device
        ("model/checkpoint.py", "tensor"),  # a loaded network is on the CPU
        ("measuring/sessions.py", "from_numpy"),  # followed by .to(...)
    }  # fmt: skip
    root = Path(edgeprune.__file__).parent
    bare = set()
    for folder in ("data", "model", "measuring", "pruning", "analysis"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if getattr(node.func.value, "id", "") != "torch" or node.func.attr not in factories:
                    continue
                if not any(keyword.arg == "device" for keyword in node.keywords):
                    bare.add((path.relative_to(root).as_posix(), node.func.attr))
    assert bare == allowed
