"""One contract, three backends. No GPU is here: all of them work on the fake libcudart of fakes/cudart.c, the ctypes
backend by real calls into it, the other two through fakes of their packages. What is real where it is installed
(libcudart, cuda-bindings, pycuda) is met in the tests that say so."""

import ctypes
import gc
import importlib
import inspect
import os
import re
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import cuda
from edgeprune_device.cuda import Device, _failure, ctypes_cudart
from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from fakes import cuda_bindings, pycuda_driver
from fakes.cudart import compile_cudart

BACKENDS = ("cuda-python", "cuda-python 12.2", "pycuda", "ctypes")
HEADERS = sorted(Path("/usr/local").glob("cuda*/include/cuda_runtime_api.h"))


@pytest.fixture(params=BACKENDS)
def name(request, fake_cudart, monkeypatch):
    """A backend's name; its library is a fake."""
    if request.param == "cuda-python":
        cuda_bindings.install(monkeypatch, fake_cudart.library)
    if request.param == "cuda-python 12.2":
        cuda_bindings.install(monkeypatch, fake_cudart.library, "cuda.cudart")
    if request.param == "pycuda":
        pycuda_driver.install(monkeypatch, fake_cudart.library)
    return request.param.split()[0]


@pytest.fixture
def gpu(name, fake_cudart):
    """The GPU, opened; whatever a test makes is gone after `close`."""
    with cuda.open(name) as gpu:
        yield gpu
    fake_cudart.forget()
    gc.collect()
    assert fake_cudart.live() == {}


@pytest.fixture
def graphs(gpu):
    if not gpu.graphs:
        pytest.skip(f"{gpu.name} has no graphs")
    return gpu


def not_installed(monkeypatch, *packages):
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


def numbers(count=6):
    return np.arange(count, dtype=np.float32)


# ---- what is there ----


def test_names_and_the_order_of_auto():
    assert cuda.names() == ["cuda-python", "pycuda", "ctypes"]
    with pytest.raises(RuntimeUnavailable, match="unknown CUDA backend 'opencl'; known: auto, cuda-python, pycuda, ct"):
        cuda.open("opencl")


def test_auto_takes_the_best_that_opens(fake_cudart, monkeypatch):
    not_installed(monkeypatch, "cuda", "pycuda")
    with cuda.open() as gpu:
        assert gpu.name == "ctypes"
    pycuda_driver.install(monkeypatch, fake_cudart.library)
    with cuda.open() as gpu:
        assert gpu.name == "pycuda"
    cuda_bindings.install(monkeypatch, fake_cudart.library)
    with cuda.open() as gpu:
        assert gpu.name == "cuda-python"


def test_without_a_gpu_auto_says_why_for_each_backend(fake_cudart, monkeypatch):
    not_installed(monkeypatch, "cuda")
    pycuda_driver.install(monkeypatch, fake_cudart.library)
    fake_cudart.devices(0)
    with pytest.raises(RuntimeUnavailable) as caught:
        cuda.open()
    reason = str(caught.value)
    assert reason.startswith("no GPU that can be used on this machine (cuda-python: cuda-python cannot be imported (")
    assert "pip install cuda-python; pycuda: pycuda: no CUDA-capable device is detected (check" in reason
    assert "ctypes: libcudart 12.6, driver 12.4: no CUDA-capable device is detected (check" in reason
    assert "\n" not in reason and all(cuda.available().values())


def test_what_is_available_needs_no_context(name, fake_cudart):
    fake_cudart.fail("cudaSetDevice", 46)
    assert cuda.available()[name] is None


def test_the_device_and_its_memory(gpu, name, fake_cudart):
    assert gpu.name == name
    assert gpu.device() == Device(name="Fake Orin", sm="8.7", integrated=True, multiprocessors=16)
    assert gpu.memory() == (1 << 30, 1 << 30)
    gpu.alloc(1 << 20)
    assert gpu.memory() == ((1 << 30) - (1 << 20), 1 << 30)


def test_the_description_names_the_versions(gpu, name):
    assert gpu.description == {
        "cuda-python": "cuda-python on CUDA 12.6, driver 12.4",
        "pycuda": "pycuda 2026.1 on CUDA 12.6, driver 12.4",
        "ctypes": "ctypes on libcudart 12.6, driver 12.4",
    }[name]  # fmt: skip


# ---- memory ----


def test_memory_makes_a_round_trip(gpu):
    stream, pointer = gpu.stream(), gpu.alloc(24)
    there, back = gpu.pinned((2, 3), np.float32), np.zeros((2, 3), np.float32)
    there[:] = numbers().reshape(2, 3)
    gpu.to_device(pointer, there, stream)
    gpu.to_host(back, pointer, stream)
    gpu.synchronize(stream)
    assert (back == there).all() and back.any()


def test_a_part_of_the_memory_can_be_copied(gpu):
    stream, pointer = gpu.stream(), gpu.alloc(24)
    gpu.to_device(pointer, numbers(), stream)
    part = np.zeros(2, np.float32)
    gpu.to_host(part, pointer + 8, stream)
    gpu.synchronize(stream)
    assert part.tolist() == [2, 3]


def test_a_stream_does_its_work_in_order_and_not_before_it_is_synchronized(gpu, fake_cudart):
    fake_cudart.defer()
    stream, other = gpu.stream(), gpu.stream()
    pointer, first, second = gpu.alloc(24), gpu.pinned(6, np.float32), gpu.pinned(6, np.float32)
    source, done = numbers(), []
    gpu.to_device(pointer, source, stream)
    gpu.to_host(first, pointer, stream)
    fake_cudart.record(stream, lambda: done.append(first.sum()))
    gpu.to_device(pointer, source[::-1].copy(), other)
    assert not done and not first.any()
    gpu.synchronize(stream)
    assert done == [15] and (first == source).all() and not second.any()
    gpu.synchronize(other)


@pytest.mark.parametrize("shape, dtype", [(5, np.float16), ((1, 3, 4, 4), np.float32), ((), np.int64)])
def test_a_pinned_array_is_zeros_of_its_shape(gpu, fake_cudart, shape, dtype):
    array = gpu.pinned(shape, dtype)
    assert array.shape == np.zeros(shape).shape and array.dtype == dtype and not array.any()
    assert array.flags.c_contiguous and array.flags.writeable
    assert fake_cudart.live() == {"pinned": 1}


def test_a_pinned_array_lives_as_long_as_a_view_of_it(gpu, fake_cudart):
    array = gpu.pinned((4, 4), np.float32)
    array[1] = 7
    view = array[1]
    del array
    gc.collect()
    assert fake_cudart.live() == {"pinned": 1} and view.tolist() == [7] * 4
    gpu.close()
    assert fake_cudart.live() == {"pinned": 1} and view.tolist() == [7] * 4
    del view
    assert fake_cudart.live() == {}


def test_unpin_frees_at_once_and_only_once(gpu, fake_cudart):
    array = gpu.pinned(4, np.float32)
    gpu.unpin(array)
    assert fake_cudart.live() == {}
    with pytest.raises(InputError, match="no such pinned array"):
        gpu.unpin(array)
    with pytest.raises(InputError, match="no such pinned array"):
        gpu.unpin(np.zeros(4))


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_cannot_be_allocated(gpu, size):
    with pytest.raises(InputError, match="at least one byte"):
        gpu.alloc(size)
    with pytest.raises(InputError, match="at least one byte"):
        gpu.pinned((0, 3), np.float32)


def test_only_arrays_that_can_be_copied_as_they_lie(gpu):
    stream, pointer = gpu.stream(), gpu.alloc(24)
    with pytest.raises(InputError, match="C-contiguous"):
        gpu.to_device(pointer, numbers(12)[::2], stream)
    with pytest.raises(InputError, match="C-contiguous"):
        gpu.to_host(np.zeros((3, 2), np.float32).T, pointer, stream)
    fixed = numbers()
    fixed.flags.writeable = False
    gpu.to_device(pointer, fixed, stream)
    with pytest.raises(InputError, match="read-only"):
        gpu.to_host(fixed, pointer, stream)


def test_what_a_recorded_function_raises_is_not_lost(gpu, fake_cudart):
    stream = gpu.stream()
    with pytest.raises(ZeroDivisionError):
        fake_cudart.record(stream, lambda: 1 // 0)
    fake_cudart.defer()
    fake_cudart.record(stream, lambda: 1 // 0)
    gpu.synchronize(stream)
    with pytest.raises(ZeroDivisionError):
        fake_cudart.check()


# ---- events and graphs ----


def test_events_take_the_time_between(gpu, fake_cudart):
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    gpu.record(start, stream)
    fake_cudart.record(stream, lambda: __import__("time").sleep(0.02))
    gpu.record(end, stream)
    gpu.synchronize(stream)
    assert 15 < gpu.elapsed_ms(start, end) < 2000
    assert gpu.elapsed_ms(end, start) < 0


def test_events_that_have_not_happened_say_what_to_do(gpu, fake_cudart):
    fake_cudart.defer()
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    gpu.record(start, stream)
    gpu.record(end, stream)
    with pytest.raises(DeviceError, match=r"device not ready \(synchronize the stream first\)"):
        gpu.elapsed_ms(start, end)
    gpu.synchronize(stream)
    assert gpu.elapsed_ms(start, end) >= 0


def test_a_graph_does_again_what_was_captured(graphs, fake_cudart):
    gpu, stream, done = graphs, graphs.stream(), []
    pointer, source, target = gpu.alloc(24), gpu.pinned(6, np.float32), gpu.pinned(6, np.float32)
    with gpu.capture(stream) as captured:
        gpu.to_device(pointer, source, stream)
        fake_cudart.record(stream, lambda: done.append(source.sum()))
        gpu.to_host(target, pointer, stream)
        assert captured.graph is None
    assert isinstance(captured.graph, int) and not done
    for k in (1, 2, 3):
        source[:] = numbers() * k
        gpu.launch(captured.graph, stream)
        gpu.synchronize(stream)
        assert (target == numbers() * k).all()
    assert done == [15, 30, 45]
    gpu.destroy_graph(captured.graph)
    assert "executables" not in fake_cudart.live() and "graphs" not in fake_cudart.live()


def test_a_block_that_fails_ends_its_capture(graphs, fake_cudart):
    gpu, stream = graphs, graphs.stream()
    with pytest.raises(ZeroDivisionError), gpu.capture(stream):
        1 // 0  # noqa: B018
    gpu.synchronize(stream)  # allowed again
    assert fake_cudart.live() == {"streams": 1}


@pytest.mark.parametrize("spoil", [lambda gpu, stream: gpu.alloc(4), lambda gpu, stream: gpu.synchronize(stream)])
def test_a_spoilt_capture_tells_what_spoilt_it(graphs, fake_cudart, spoil):
    gpu, stream = graphs, graphs.stream()
    with pytest.raises(DeviceError, match="operation not permitted when stream is capturing"), gpu.capture(stream):
        spoil(gpu, stream)
    previous = pytest.raises(DeviceError, match="due to a previous error during capture")
    with previous, gpu.capture(stream), suppress(DeviceError):
        spoil(gpu, stream)
    assert fake_cudart.live() == {"streams": 1} and fake_cudart.last_error() == 0


def test_a_graph_whose_memory_is_gone_is_not_launched(graphs):
    gpu, stream = graphs, graphs.stream()
    pointer, source = gpu.alloc(24), gpu.pinned(6, np.float32)
    with gpu.capture(stream) as captured:
        gpu.to_device(pointer, source, stream)
    gpu.free(pointer)
    with pytest.raises(DeviceError, match=r"illegal memory access was encountered \(.*start it anew\)"):
        gpu.launch(captured.graph, stream)


def test_pycuda_has_no_graphs_and_says_so(fake_cudart, monkeypatch):
    pycuda_driver.install(monkeypatch, fake_cudart.library)
    with cuda.open("pycuda") as gpu:
        stream = gpu.stream()
        with pytest.raises(InputError, match="do not work with pycuda: use another --cuda"), gpu.capture(stream):
            pass


# ---- errors ----


def test_out_of_memory(gpu, name, fake_cudart):
    fake_cudart.limit(1 << 20)
    for allocate in (gpu.alloc, lambda size: gpu.pinned(size, np.uint8)):
        with pytest.raises(DeviceError, match=r"out of memory \(free memory, or take a smaller model") as caught:
            allocate(1 << 21)
        assert "\n" not in str(caught.value) and caught.value.code == 2
    assert fake_cudart.live() == {}
    gpu.free(gpu.alloc(1 << 20))


def test_an_error_says_what_was_called_and_cudas_name_for_it(gpu, name, fake_cudart):
    fake_cudart.fail("cudaMalloc", 2)
    with pytest.raises(DeviceError) as caught:
        gpu.alloc(4)
    called = {"pycuda": "cuMemAlloc failed: pycuda's MemoryError"}.get(
        name, "cudaMalloc failed: cudaErrorMemoryAllocation"
    )
    assert str(caught.value).startswith(called + ", out of memory (")
    fake_cudart.fail("", 0)


def test_an_error_is_not_left_for_tensorrt_to_find(name, fake_cudart):
    if name == "pycuda":
        pytest.skip("the driver API remembers no error")
    with cuda.open(name) as gpu:
        fake_cudart.limit(1)
        with pytest.raises(DeviceError):
            gpu.alloc(4)
        assert fake_cudart.last_error() == 0
        fake_cudart.fail("cuDeviceGetName", 999)
        with pytest.raises(DeviceError):
            gpu.device()
        assert fake_cudart.last_error() == 0


def call_each(gpu):
    """(the runtime API's function, what makes `gpu` call it), for each of them that can fail."""
    stream, pointer, start, end = gpu.stream(), gpu.alloc(24), gpu.event(), gpu.event()
    array = numbers()
    for event in (start, end):
        gpu.record(event, stream)
    yield "cudaDeviceGetAttribute", gpu.device
    yield "cuDeviceGetName", gpu.device
    yield "cudaMemGetInfo", gpu.memory
    yield "cudaMalloc", lambda: gpu.alloc(4)
    yield "cudaHostAlloc", lambda: gpu.pinned(4, np.uint8)
    yield "cudaStreamCreateWithFlags", gpu.stream
    yield "cudaMemcpyAsync", lambda: gpu.to_device(pointer, array, stream)
    yield "cudaMemcpyAsync", lambda: gpu.to_host(array, pointer, stream)
    yield "cudaStreamSynchronize", lambda: gpu.synchronize(stream)
    yield "cudaEventCreate", gpu.event
    yield "cudaEventRecord", lambda: gpu.record(start, stream)
    yield "cudaEventElapsedTime", lambda: gpu.elapsed_ms(start, end)
    if gpu.graphs:
        with gpu.capture(stream) as captured:
            pass

        def capture():
            with gpu.capture(stream):
                pass

        yield "cudaStreamBeginCapture", capture
        yield "cudaGraphInstantiateWithFlags", capture
        yield "cudaGraphLaunch", lambda: gpu.launch(captured.graph, stream)


@pytest.mark.parametrize("code", [1, 700, 999])
def test_every_call_that_fails_is_one_line(gpu, fake_cudart, code):
    for function, call in call_each(gpu):
        fake_cudart.fail(function, code)
        with pytest.raises(DeviceError) as caught:
            call()
        fake_cudart.fail("", 0)
        assert re.match(r"cu\w+ failed: .+, .+", str(caught.value)) and "\n" not in str(caught.value), function
        assert caught.value.code in (code, 0) and caught.value.exit_code == 2


def test_no_driver_and_an_old_driver_are_told_apart(name, fake_cudart):
    if name != "pycuda":  # which cannot even be imported then
        fake_cudart.driver(0)
        with pytest.raises(RuntimeUnavailable, match=r"12\.6 finds no NVIDIA driver$"):
            cuda.open(name)
        fake_cudart.driver(12040)
    fake_cudart.fail("cudaGetDeviceCount", 35)
    with pytest.raises(RuntimeUnavailable, match=r"driver version is insufficient .*update the NVIDIA driver"):
        cuda.open(name)
    for function in ("cudaGetDeviceCount", "cudaDriverGetVersion")[: 1 if name == "pycuda" else 2]:
        fake_cudart.fail(function, 34)
        with pytest.raises(RuntimeUnavailable, match="stub library"):
            cuda.open(name)


def test_a_gpu_that_fails_is_not_an_absent_one(name, fake_cudart):
    fake_cudart.fail("cudaGetDeviceCount", 999)
    with pytest.raises(DeviceError, match="unknown error"):
        cuda.open(name)
    assert "unknown error" in cuda.available()[name]
    fake_cudart.fail("cudaSetDevice", 46)
    with pytest.raises(DeviceError, match="another process holds the GPU for itself"):
        cuda.open(name)


def test_what_is_missing_is_said_with_what_to_install(monkeypatch):
    not_installed(monkeypatch, "cuda", "pycuda")
    with pytest.raises(RuntimeUnavailable, match="pip install cuda-python"):
        cuda.open("cuda-python")
    with pytest.raises(RuntimeUnavailable, match="pip install pycuda"):
        cuda.open("pycuda")
    monkeypatch.delenv("EDGEPRUNE_LIBCUDART", raising=False)
    monkeypatch.setattr(ctypes_cudart, "candidates", lambda: ["libcudart.so.none"])
    with pytest.raises(RuntimeUnavailable, match=r"no libcudart was found: .* EDGEPRUNE_LIBCUDART"):
        cuda.open("ctypes")


def test_cuda_python_of_old_raises_where_there_is_no_driver(fake_cudart, monkeypatch):
    cuda_bindings.install(monkeypatch, fake_cudart.library, "cuda.cudart")

    def none():
        raise RuntimeError("Failed to dlopen libcuda.so.1")  # up to 12.8, by every function

    monkeypatch.setattr(sys.modules["cuda.cudart"], "cudaDriverGetVersion", none)
    with pytest.raises(RuntimeUnavailable, match="finds no NVIDIA driver"):
        cuda.open("cuda-python")


# ---- the end ----


def test_what_is_forgotten_is_freed_by_close_and_closing_twice_does_no_harm(name, fake_cudart):
    gpu = cuda.open(name)
    stream, _, _ = gpu.stream(), gpu.event(), gpu.alloc(4)
    gpu.pinned(4, np.uint8)
    if gpu.graphs:
        with gpu.capture(stream):
            pass
    assert len(fake_cudart.live()) >= 3
    gpu.close()
    gpu.close()
    assert fake_cudart.live() == {}
    for call in (lambda: gpu.alloc(4), gpu.stream, gpu.event, gpu.memory, lambda: gpu.synchronize(stream)):
        with pytest.raises(InputError, match="closed"):
            call()


def test_a_gpu_that_is_closed_is_let_go(name, fake_cudart):
    gpu = cuda.open(name)
    gpu.close()
    left = weakref.ref(gpu)
    del gpu
    gc.collect()
    assert left() is None


def test_a_handle_that_is_gone_is_refused_before_the_driver_sees_it(gpu):
    stream, event, pointer = gpu.stream(), gpu.event(), gpu.alloc(4)
    gpu.destroy_stream(stream)
    gpu.destroy_event(event)
    gpu.free(pointer)
    array = np.zeros(4, np.uint8)
    for kind, call in (
        ("stream", lambda: gpu.destroy_stream(stream)),
        ("stream", lambda: gpu.synchronize(stream)),
        ("stream", lambda: gpu.to_device(pointer, array, stream)),
        ("stream", lambda: gpu.to_host(array, pointer, stream)),
        ("event", lambda: gpu.destroy_event(event)),
        ("event", lambda: gpu.record(event, stream)),
        ("event", lambda: gpu.elapsed_ms(event, event)),
        ("allocation", lambda: gpu.free(pointer)),
    ):
        with pytest.raises(InputError, match=f"no such {kind} of {gpu.name}: .* gone already"):
            call()


def test_close_goes_on_where_the_driver_refuses(name, fake_cudart):
    gpu = cuda.open(name)
    gpu.alloc(4), gpu.stream()
    fake_cudart.fail("cudaFree", 700)
    gpu.close()
    assert fake_cudart.live() == {"memory": 1}


def test_pycuda_leaves_the_context_stack_as_it_was(fake_cudart, monkeypatch):
    driver = pycuda_driver.install(monkeypatch, fake_cudart.library)
    depth = len(driver.contexts)
    with cuda.open("pycuda"), cuda.open("pycuda"):
        assert len(driver.contexts) == depth + 2
    assert len(driver.contexts) == depth


def test_pycuda_ends_well_in_a_process_that_forgot_to_close(fake_cudart):
    # The real pycuda aborts when a context is still current at the end; the fake does so too.
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


# ---- where libcudart is ----


def test_libcudart_is_looked_for_on_a_jetson_and_in_wheels(tmp_path, monkeypatch):
    monkeypatch.delenv("EDGEPRUNE_LIBCUDART", raising=False)
    for path in (
        "usr/local/cuda-12.6/lib64/libcudart.so.12",
        "usr/local/cuda-11.4/targets/aarch64-linux/lib/libcudart.so.11.0",
        "site [packages]/nvidia/cuda_runtime/lib/libcudart.so.12",
        "site [packages]/nvidia/cu13/lib/libcudart.so.13",
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    (tmp_path / "usr/local/cuda").symlink_to("cuda-12.6")
    monkeypatch.setattr(ctypes_cudart, "_FOLDERS", tuple(f"{tmp_path}{folder}" for folder in ctypes_cudart._FOLDERS))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site [packages]")])
    found = ctypes_cudart.candidates()
    assert found[:3] == ["libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
    assert [os.path.relpath(os.path.realpath(path), str(tmp_path)) for path in found[3:]] == [
        "usr/local/cuda-12.6/lib64/libcudart.so.12",
        "usr/local/cuda-11.4/targets/aarch64-linux/lib/libcudart.so.11.0",
        "site [packages]/nvidia/cu13/lib/libcudart.so.13",
        "site [packages]/nvidia/cuda_runtime/lib/libcudart.so.12",
    ]


def test_the_first_libcudart_that_finds_a_gpu_is_taken(fake_cudart, tmp_path, monkeypatch):
    (tmp_path / "libcudart.so.13").write_bytes(b"for another machine")
    monkeypatch.setattr(
        ctypes_cudart,
        "candidates",
        lambda: ["libcudart.so.none", str(tmp_path / "libcudart.so.13"), str(fake_cudart.path)],
    )
    with cuda.open("ctypes") as gpu:
        assert gpu.device().name == "Fake Orin"
    fake_cudart.devices(0)
    with pytest.raises(RuntimeUnavailable, match=r"libcudart\.so\.13: .*(invalid ELF header|file too short)"):
        cuda.open("ctypes")


def test_the_library_that_is_named_must_be_one(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(tmp_path / "none.so"))
    with pytest.raises(RuntimeUnavailable, match=r"none\.so: cannot open shared object file"):
        cuda.open("ctypes")


def test_a_cuda_that_is_too_old_is_told_by_what_it_lacks(tmp_path, monkeypatch, cudart_build):
    options = "-DcudaGraphInstantiateWithFlags=cudaGraphInstantiateOfOld"
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(compile_cudart(tmp_path, options)))
    with pytest.raises(
        RuntimeUnavailable, match=r"has no cudaGraphInstantiateWithFlags: CUDA 11\.4 or newer is needed"
    ):
        cuda.open("ctypes")


# ---- the real thing, where it is installed ----


def real_libcudarts():
    files = [Path(path) for path in ctypes_cudart.candidates() if os.path.isabs(path)]
    return files or [pytest.param(None, marks=pytest.mark.skip(reason="no real libcudart on this machine"))]


@pytest.mark.parametrize("path", real_libcudarts(), ids=str)
def test_the_real_libcudart_has_every_function_and_our_words_for_errors(path):
    library = ctypes.CDLL(str(path))
    for function in (*ctypes_cudart.SIGNATURES, "cudaGetErrorName", "cudaGetErrorString"):
        assert getattr(library, function)
    library.cudaGetErrorString.restype = ctypes.c_char_p
    assert {code: library.cudaGetErrorString(code).decode() for code in _failure.USUAL} == {
        code: words for code, (words, _) in _failure.USUAL.items()
    }


@pytest.mark.parametrize("path", real_libcudarts(), ids=str)
def test_the_real_libcudart_without_a_driver(path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_LIBCUDART", str(path))
    if ctypes_cudart.available() is None:
        pytest.skip("a GPU is here")
    with pytest.raises(RuntimeUnavailable, match=r"^libcudart 1\d\.\d+( finds no NVIDIA driver|, driver .*)"):
        cuda.open("ctypes")


@pytest.mark.skipif(not HEADERS, reason="no CUDA headers on this machine")
def test_the_fake_libcudart_has_nvidias_signatures(tmp_path, cudart_build):
    for header in HEADERS:
        folder = tmp_path / header.parts[3]
        folder.mkdir()
        compile_cudart(folder, "-DREAL_HEADERS", "-Wno-enum-conversion", f"-I{header.parent}")


def parameters(text):
    """What Cython's and Boost's signatures name: "f(size_t count, kind: cudaMemcpyKind)" -> ["count", "kind"]."""
    inside = re.sub(r"[\[\]]", "", text.partition("(")[2].rpartition(")")[0])
    return [
        part.partition(":")[0].partition("=")[0].split()[-1].split(")")[-1]
        for part in inside.split(",")
        if part.strip()
    ]


def real_cuda_python():
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return pytest.skip("cuda-python is not installed")


def test_the_fake_cuda_python_is_like_the_real_one(fake_cudart):
    real = real_cuda_python()
    fake = cuda_bindings.functions(fake_cudart.library)
    assert set(ctypes_cudart.SIGNATURES) < set(fake)
    for name, function in fake.items():
        signature = getattr(real, name).__doc__.splitlines()[0]
        assert parameters(signature) == list(inspect.signature(function).parameters), name
    for enum in cuda_bindings.ENUMS:
        for member in enum:
            assert int(getattr(getattr(real, enum.__name__), member.name)) == member
    assert isinstance(real.cudaDeviceProp().name, bytes) and int(real.cudaStream_t(5)) == 5


def test_the_real_cuda_python_takes_our_arguments(monkeypatch):
    """Without a driver every call fails, but for its arguments it would fail in another way."""
    real = real_cuda_python()
    from edgeprune_device.cuda.cuda_python import CudaPython

    if cuda.available()["cuda-python"] is None:
        pytest.skip("a GPU is here")
    gpu = CudaPython.__new__(CudaPython)
    cuda.Cuda.__init__(gpu)
    gpu._runtime = real
    handles = {ctypes.c_void_p: 5, ctypes.c_int: 1, ctypes.c_size_t: 6, ctypes.c_uint: 0, ctypes.c_ulonglong: 0}
    for function, kinds in ctypes_cudart.SIGNATURES.items():
        arguments = [handles[kind] for kind in kinds if kind in handles]
        if function == "cudaDeviceGetAttribute":
            arguments = [18, 0]
        try:
            code, _ = gpu._try(function, *arguments)
            assert code in (0, 35), function
        except RuntimeError as error:  # up to 12.8
            assert re.search("libcuda|not found", str(error)), function
    with pytest.raises(RuntimeUnavailable, match="no NVIDIA driver"):
        cuda.open("cuda-python")


def test_the_fake_pycuda_is_like_the_real_one(fake_cudart):
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
