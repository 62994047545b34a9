"""Tests of one contract with three backends, without a GPU. All work on the fake libcudart of fakes/cudart.c: the
ctypes backend calls it directly, the other two use fakes of their packages. Tests that use an installed real library
(libcudart, cuda-bindings, pycuda) say so."""

import gc
import re
import sys
import weakref
from contextlib import suppress

import numpy as np
import pytest
from edgeprune_device import cuda
from edgeprune_device.cuda import Device
from edgeprune_device.cuda import ctypes as backend
from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from fakes import cuda_bindings, pycuda_driver

BACKENDS = ("cuda-python", "cuda-python 12.2", "pycuda", "ctypes")


@pytest.fixture(params=BACKENDS)
def name(request, fake_cudart, monkeypatch):
    """The name of a backend, whose library is a fake."""
    if request.param == "cuda-python":
        cuda_bindings.install(monkeypatch, fake_cudart.library)
    if request.param == "cuda-python 12.2":
        cuda_bindings.install(monkeypatch, fake_cudart.library, "cuda.cudart")
    if request.param == "pycuda":
        pycuda_driver.install(monkeypatch, fake_cudart.library)
    return request.param.split()[0]


@pytest.fixture
def gpu(name, fake_cudart):
    """The opened GPU. After `close`, everything that the test created must be freed."""
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


# ---- backends and devices ----


def test_names_are_in_the_order_of_auto():
    assert cuda.names() == ["cuda-python", "pycuda", "ctypes"]
    with pytest.raises(
        RuntimeUnavailable, match=r"cuda: unknown backend \(found 'opencl', expected auto, cuda-python, pycuda"
    ):
        cuda.open("opencl")


def test_auto_selects_the_best_backend_that_opens(fake_cudart, monkeypatch):
    not_installed(monkeypatch, "cuda", "pycuda")
    with cuda.open() as gpu:
        assert gpu.name == "ctypes"
    pycuda_driver.install(monkeypatch, fake_cudart.library)
    with cuda.open() as gpu:
        assert gpu.name == "pycuda"
    cuda_bindings.install(monkeypatch, fake_cudart.library)
    with cuda.open() as gpu:
        assert gpu.name == "cuda-python"


def test_error_without_a_gpu_gives_the_reason_of_each_backend(fake_cudart, monkeypatch):
    not_installed(monkeypatch, "cuda")
    pycuda_driver.install(monkeypatch, fake_cudart.library)
    fake_cudart.devices(0)
    with pytest.raises(RuntimeUnavailable) as caught:
        cuda.open()
    reason = str(caught.value)
    assert reason.startswith("no usable GPU on this machine (cuda-python: cannot be imported (")
    assert "pip install cuda-python; pycuda: no CUDA-capable device is detected (check" in reason
    assert "ctypes: libcudart 12.6, driver 12.4: no CUDA-capable device is detected (check" in reason
    assert "\n" not in reason and all(cuda.available().values())


def test_available_creates_no_context(name, fake_cudart):
    fake_cudart.fail("cudaSetDevice", 46)
    assert cuda.available()[name] is None


def test_device_and_its_memory_are_reported(gpu, name, fake_cudart):
    assert gpu.name == name
    assert gpu.device() == Device(name="Fake Orin", sm="8.7", integrated=True, multiprocessors=16)
    assert gpu.memory() == (1 << 30, 1 << 30)
    gpu.alloc(1 << 20)
    assert gpu.memory() == ((1 << 30) - (1 << 20), 1 << 30)


def test_description_contains_the_versions(gpu, name):
    assert gpu.description == {
        "cuda-python": "cuda-python on CUDA 12.6, driver 12.4",
        "pycuda": "pycuda 2026.1 on CUDA 12.6, driver 12.4",
        "ctypes": "ctypes on libcudart 12.6, driver 12.4",
    }[name]  # fmt: skip


# ---- memory ----


def test_memory_survives_a_round_trip(gpu):
    stream, pointer = gpu.stream(), gpu.alloc(24)
    there, back = gpu.pinned((2, 3), np.float32), np.zeros((2, 3), np.float32)
    there[:] = numbers().reshape(2, 3)
    gpu.to_device(pointer, there, stream)
    gpu.to_host(back, pointer, stream)
    gpu.synchronize(stream)
    assert (back == there).all() and back.any()


def test_part_of_the_memory_can_be_copied(gpu):
    stream, pointer = gpu.stream(), gpu.alloc(24)
    gpu.to_device(pointer, numbers(), stream)
    part = np.zeros(2, np.float32)
    gpu.to_host(part, pointer + 8, stream)
    gpu.synchronize(stream)
    assert part.tolist() == [2, 3]


def test_stream_works_in_order_and_not_before_it_is_synchronized(gpu, fake_cudart):
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
def test_pinned_array_has_zeros_and_its_shape(gpu, fake_cudart, shape, dtype):
    array = gpu.pinned(shape, dtype)
    assert array.shape == np.zeros(shape).shape and array.dtype == dtype and not array.any()
    assert array.flags.c_contiguous and array.flags.writeable
    assert fake_cudart.live() == {"pinned": 1}


def test_pinned_array_exists_as_long_as_a_view_of_it(gpu, fake_cudart):
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


def test_unpin_frees_immediately_and_only_once(gpu, fake_cudart):
    array = gpu.pinned(4, np.float32)
    gpu.unpin(array)
    assert fake_cudart.live() == {}
    with pytest.raises(InputError, match="unknown pinned array"):
        gpu.unpin(array)
    with pytest.raises(InputError, match="unknown pinned array"):
        gpu.unpin(np.zeros(4))


@pytest.mark.parametrize("size", [0, -1])
def test_allocation_of_no_bytes_is_refused(gpu, size):
    with pytest.raises(InputError, match="at least 1 byte"):
        gpu.alloc(size)
    with pytest.raises(InputError, match="at least 1 byte"):
        gpu.pinned((0, 3), np.float32)


def test_only_contiguous_arrays_are_copied(gpu):
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


def test_error_of_asynchronous_work_is_raised(gpu, fake_cudart):
    stream = gpu.stream()
    with pytest.raises(ZeroDivisionError):
        fake_cudart.record(stream, lambda: 1 // 0)
    fake_cudart.defer()
    fake_cudart.record(stream, lambda: 1 // 0)
    gpu.synchronize(stream)
    with pytest.raises(ZeroDivisionError):
        fake_cudart.check()


# ---- events and graphs ----


def test_events_measure_the_time_between_them(gpu, fake_cudart):
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    gpu.record(start, stream)
    fake_cudart.record(stream, lambda: __import__("time").sleep(0.02))
    gpu.record(end, stream)
    gpu.synchronize(stream)
    assert 15 < gpu.elapsed_ms(start, end) < 2000
    assert gpu.elapsed_ms(end, start) < 0


def test_error_of_unrecorded_events_gives_the_remedy(gpu, fake_cudart):
    fake_cudart.defer()
    stream, start, end = gpu.stream(), gpu.event(), gpu.event()
    gpu.record(start, stream)
    gpu.record(end, stream)
    with pytest.raises(DeviceError, match=r"device not ready \(synchronize the stream first\)"):
        gpu.elapsed_ms(start, end)
    gpu.synchronize(stream)
    assert gpu.elapsed_ms(start, end) >= 0


def test_graph_repeats_the_captured_work(graphs, fake_cudart):
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


def test_failing_block_ends_its_capture(graphs, fake_cudart):
    gpu, stream = graphs, graphs.stream()
    with pytest.raises(ZeroDivisionError), gpu.capture(stream):
        1 // 0  # noqa: B018
    gpu.synchronize(stream)  # permitted again
    assert fake_cudart.live() == {"streams": 1}


@pytest.mark.parametrize("spoil", [lambda gpu, stream: gpu.alloc(4), lambda gpu, stream: gpu.synchronize(stream)])
def test_error_of_an_invalidated_capture_gives_the_cause(graphs, fake_cudart, spoil):
    gpu, stream = graphs, graphs.stream()
    with pytest.raises(DeviceError, match="operation not permitted when stream is capturing"), gpu.capture(stream):
        spoil(gpu, stream)
    previous = pytest.raises(DeviceError, match="due to a previous error during capture")
    with previous, gpu.capture(stream), suppress(DeviceError):
        spoil(gpu, stream)
    assert fake_cudart.live() == {"streams": 1} and fake_cudart.last_error() == 0


def test_graph_with_freed_memory_is_not_launched(graphs):
    gpu, stream = graphs, graphs.stream()
    pointer, source = gpu.alloc(24), gpu.pinned(6, np.float32)
    with gpu.capture(stream) as captured:
        gpu.to_device(pointer, source, stream)
    gpu.free(pointer)
    with pytest.raises(DeviceError, match=r"illegal memory access was encountered \(.*restart the program\)"):
        gpu.launch(captured.graph, stream)


# ---- errors ----


def test_out_of_memory_is_one_line_with_a_remedy(gpu, name, fake_cudart):
    fake_cudart.limit(1 << 20)
    for allocate in (gpu.alloc, lambda size: gpu.pinned(size, np.uint8)):
        with pytest.raises(DeviceError, match=r"out of memory \(free memory, or use a smaller model") as caught:
            allocate(1 << 21)
        assert "\n" not in str(caught.value) and caught.value.code == 2
    assert fake_cudart.live() == {}
    gpu.free(gpu.alloc(1 << 20))


def test_error_names_the_call_and_the_cuda_error(gpu, name, fake_cudart):
    fake_cudart.fail("cudaMalloc", 2)
    with pytest.raises(DeviceError) as caught:
        gpu.alloc(4)
    called = {"pycuda": "cuMemAlloc failed: pycuda's MemoryError"}.get(
        name, "cudaMalloc failed: cudaErrorMemoryAllocation"
    )
    assert str(caught.value).startswith(called + ", out of memory (")
    fake_cudart.fail("", 0)


def test_error_is_cleared_for_tensorrt(name, fake_cudart):
    if name == "pycuda":
        pytest.skip("the driver API stores no error")
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
    """(function of the runtime API, a callable that makes `gpu` call it), for each one that can fail."""
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
def test_every_failing_call_gives_a_one_line_error(gpu, fake_cudart, code):
    for function, call in call_each(gpu):
        fake_cudart.fail(function, code)
        with pytest.raises(DeviceError) as caught:
            call()
        fake_cudart.fail("", 0)
        assert re.match(r"cu\w+ failed: .+, .+", str(caught.value)) and "\n" not in str(caught.value), function
        assert caught.value.code in (code, 0) and caught.value.exit_code == 2


def test_missing_driver_and_old_driver_are_distinguished(name, fake_cudart):
    if name != "pycuda":  # pycuda cannot be imported without a driver
        fake_cudart.driver(0)
        with pytest.raises(RuntimeUnavailable, match=r"12\.6: no NVIDIA driver found; install"):
            cuda.open(name)
        fake_cudart.driver(12040)
    fake_cudart.fail("cudaGetDeviceCount", 35)
    with pytest.raises(RuntimeUnavailable, match=r"driver version is insufficient .*update the NVIDIA driver"):
        cuda.open(name)
    for function in ("cudaGetDeviceCount", "cudaDriverGetVersion")[: 1 if name == "pycuda" else 2]:
        fake_cudart.fail(function, 34)
        with pytest.raises(RuntimeUnavailable, match="stub library"):
            cuda.open(name)


def test_failing_gpu_is_not_reported_as_missing(name, fake_cudart):
    fake_cudart.fail("cudaGetDeviceCount", 999)
    with pytest.raises(DeviceError, match="unknown error"):
        cuda.open(name)
    assert "unknown error" in cuda.available()[name]
    fake_cudart.fail("cudaSetDevice", 46)
    with pytest.raises(DeviceError, match="another process uses the GPU exclusively"):
        cuda.open(name)


def test_missing_package_error_names_the_package_to_install(monkeypatch):
    not_installed(monkeypatch, "cuda", "pycuda")
    with pytest.raises(RuntimeUnavailable, match="pip install cuda-python"):
        cuda.open("cuda-python")
    with pytest.raises(RuntimeUnavailable, match="pip install pycuda"):
        cuda.open("pycuda")
    monkeypatch.delenv("EDGEPRUNE_LIBCUDART", raising=False)
    monkeypatch.setattr(backend, "candidates", lambda: ["libcudart.so.none"])
    with pytest.raises(RuntimeUnavailable, match=r"libcudart: not found; .* EDGEPRUNE_LIBCUDART"):
        cuda.open("ctypes")


# ---- the end ----


def test_close_frees_forgotten_objects_and_may_be_called_twice(name, fake_cudart):
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


def test_closed_gpu_is_released(name, fake_cudart):
    gpu = cuda.open(name)
    gpu.close()
    left = weakref.ref(gpu)
    del gpu
    gc.collect()
    assert left() is None


def test_destroyed_handle_is_refused_before_it_reaches_the_driver(gpu):
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
        with pytest.raises(InputError, match=f"{gpu.name}: unknown {kind} .* already destroyed"):
            call()


def test_close_continues_after_errors_of_the_driver(name, fake_cudart):
    gpu = cuda.open(name)
    gpu.alloc(4), gpu.stream()
    fake_cudart.fail("cudaFree", 700)
    gpu.close()
    assert fake_cudart.live() == {"memory": 1}
