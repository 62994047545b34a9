"""The device that an option asks for, with fake GPUs: their number, names and memory."""

import pytest
import torch
from edgeprune_device.errors import InputError
from torch import nn

from edgeprune.model import device


@pytest.fixture
def gpus(monkeypatch):
    """gpus(4, 20, 12): GPUs with so many GiB free, of 24 each."""

    def have(*free):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (free[i] << 30, 24 << 30))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"NVIDIA Fake {i}")
        monkeypatch.setattr("ultralytics.utils.torch_utils.select_device", lambda *_, **__: None)

    return have


def test_auto_is_the_gpu_with_most_free_memory(gpus):
    gpus(4, 20, 12)
    chosen = device.choose("auto")
    assert chosen.text == "1" and chosen.torch == torch.device("cuda:1")
    assert chosen.description == "GPU 1, NVIDIA Fake 1, 20.0 of 24.0 GiB free"


def test_auto_is_the_cpu_if_no_gpu_exists(gpus):
    gpus()
    assert device.choose("auto") == device.Device("cpu", "CPU") == device.choose("cpu")
    assert device.choose("cpu").torch == torch.device("cpu")


def test_several_gpus_train_and_the_first_evaluates(gpus, monkeypatch):
    gpus(4, 20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    chosen = device.choose("1,0")
    assert chosen.torch == torch.device("cuda:1") and chosen.description.count("GPU") == 2


def test_several_gpus_need_cloudpickle(gpus, monkeypatch):
    gpus(4, 20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install cloudpickle"):
        device.choose("0,1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("text", ["0", "7", "0,1", "cuda:0"])
def test_a_missing_device_is_refused(text):
    with pytest.raises(InputError, match=f"device={text}: not available on this machine"):
        device.choose(text)


@pytest.mark.parametrize("text", ["gpu", "mps", "tpu", "intel:cpu", "-1", "cuda", "cuda:0,cpu", "auto,0", "0,", ",0"])
def test_an_invalid_device_is_refused(text):
    """Ultralytics accepts some of these, and then computes on the CPU."""
    with pytest.raises(InputError, match=f"device={text}: invalid device .expected auto, cpu, or GPU numbers"):
        device.choose(text)


def test_tf32_is_off_in_the_block_only():
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    with device.exact():
        assert not cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert cudnn.allow_tf32 == before


def test_a_network_beside_its_images_is_not_copied():
    model = nn.Conv2d(3, 4, 1)
    assert device.beside(model, torch.zeros(1)) is model
