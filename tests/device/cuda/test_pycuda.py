"""Tests specific to pycuda with its fake, and a comparison of the fake with the real package, if installed."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from edgeprune_device import cuda
from edgeprune_device.errors import InputError
from fakes import pycuda_driver

from .signatures import parameters


def test_graphs_with_pycuda_are_refused(fake_cudart, monkeypatch):
    pycuda_driver.install(monkeypatch, fake_cudart.library)
    with cuda.open("pycuda") as gpu:
        stream = gpu.stream()
        refusal = "pycuda: no support for CUDA graphs; use another cuda, or no graph"
        with pytest.raises(InputError, match=refusal), gpu.capture(stream):
            pass


def test_pycuda_restores_the_context_stack(fake_cudart, monkeypatch):
    driver = pycuda_driver.install(monkeypatch, fake_cudart.library)
    depth = len(driver.contexts)
    with cuda.open("pycuda"), cuda.open("pycuda"):
        assert len(driver.contexts) == depth + 2
    assert len(driver.contexts) == depth


def test_process_that_does_not_close_pycuda_ends_normally(fake_cudart):
    # The real pycuda aborts if a context is still current at the end, and so does the fake.
    code = (
        f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})\n"
        "import os, pytest\n"
        "from fakes import cudart, pycuda_driver\n"
        "library = cudart.FakeCudart(os.environ['EDGEPRUNE_LIBCUDART']).library\n"
        "pycuda_driver.install(pytest.MonkeyPatch(), library)\n"
        "from edgeprune_device import cuda\n"
        "cuda.open('pycuda').close(); gpu = cuda.open('pycuda'); print(gpu.stream() > 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"True\n", b"")


def test_fake_pycuda_matches_the_real_one(fake_cudart):
    real = pytest.importorskip("pycuda.driver")
    fake = pycuda_driver.build(fake_cudart.library)
    for name, thing in fake.items():
        if inspect.isfunction(thing):
            signature = getattr(real, name).__doc__.strip().splitlines()[0]
            named = [p for p in parameters(signature) if not p.startswith("arg")]
            assert list(inspect.signature(thing).parameters)[-len(named) or None :][: len(named)] == named, name
        elif inspect.isclass(thing):
            for member in vars(thing):
                assert member.startswith("_") or hasattr(getattr(real, name), member), (name, member)
    for name in ("MemoryError", "LogicError", "LaunchError", "RuntimeError"):
        assert issubclass(getattr(real, name), real.Error)
    assert not [name for name in dir(real) if re.search("graph(?!ics)|capture", name, re.I)]  # so graphs = False
