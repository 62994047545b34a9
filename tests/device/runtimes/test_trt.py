"""Tests of the TensorRT runtime with the fake of every recorded release and the fake libcudart: outputs equal to those
of runtime ort, the order of the calls, and no leftovers."""

import json
import sys

import numpy as np
import pytest
from edgeprune_device import cuda, runtimes, schema
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.engine import Request, library
from edgeprune_device.engine.build import build
from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.runtimes import RuntimeSettings, trt
from edgeprune_device.vision.detect import TASK
from fakes import fake_tensorrt as fake
from fakes import models

pytest.importorskip("onnxruntime")

ALL = (*fake.RELEASES, fake.RTX)
CASES = [(r, p) for r in ALL for p in ("fp32", "fp16", "int8", "int8-fp16") if r[0] != "8" or p != "int8-fp16"]


def pictures(count=3):
    return np.random.default_rng(0).random((count, 1, 3, models.SIZE, models.SIZE), dtype=np.float32)


@pytest.fixture
def session(fake_tensorrt):
    """session(release, precision or ONNX bytes, **options) -> an open TrtSession on a plan built in this process."""
    opened = []

    def make(release="10.3.0", model="fp32", graph=False):
        module = fake_tensorrt(release)
        precision, onnx = (model, models.detector(model)) if isinstance(model, str) else ("fp32", model)
        engine, _ = build(module, Request(onnx, precision))
        opened.append(
            trt.TrtSession(module, cuda.open("ctypes"), engine.plan, runtime="trt", graph=graph, warnings=("a",))
        )
        return opened[-1]

    yield make
    for each in opened:
        each.close()


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("release, precision", CASES)
def test_outputs_equal_those_of_onnx_runtime(session, fake_cudart, release, precision, graph):
    fake_cudart.defer()  # streams run only when they are synchronized
    running = session(release, precision, graph)
    with runtimes.open(models.detector(precision), "ort") as reference:
        for x in pictures():
            (out,) = running.infer(x)
            (expected,) = reference.infer(x)
            assert out.dtype == np.float32 and out.shape == (1, 6, 84)
            assert np.abs(out - expected).max() <= 1e-5
    assert running.input_shape == (1, 3, models.SIZE, models.SIZE) and running.warnings == ("a",)
    note = ", CUDA graph" if graph else ""
    title = library.title(fake.module(release))
    assert running.description == f"{title}, Fake Orin (SM 8.7){note}, ctypes"


@pytest.mark.parametrize("release", ["8.5.2", "10.3.0", "11.4.0.106", fake.RTX])
def test_engine_is_built_once_and_runs(fake_tensorrt, builds, tmp_path, release):
    fake_tensorrt(release)
    runtime = "rtx" if release == fake.RTX else "trt"
    assert runtimes.available()[runtime] is None
    settings = RuntimeSettings(precision="fp16", cuda="ctypes")
    (x,) = pictures(1)
    with runtimes.open(models.detector("fp16"), "ort") as reference:
        (expected,) = reference.infer(x)
    path = tmp_path / "m.onnx"
    path.write_bytes(models.detector("fp16"))
    for model in (str(path), path, models.detector("fp16")):
        with runtimes.open(model, runtime, settings) as running:
            assert running.name == runtime
            assert np.abs(running.infer(x)[0] - expected).max() <= 1e-5
            built = [text for text in running.warnings if "includes building the engine" in text]
            assert len(built) == (1 if isinstance(model, str) else 0)  # only the first of the three
    assert len(builds()) == 1


def test_settings_reach_the_builder(fake_tensorrt, builds, tmp_path):
    fake_tensorrt("8.6.1")
    (tmp_path / "m.onnx").write_bytes(models.detector("int8"))
    seen = []
    settings = RuntimeSettings(
        precision="int8",
        fp32_nodes=(models.TAIL,),
        cuda="ctypes",
        graph=True,
        workspace_bytes=200 << 20,
        progress=lambda share, what: seen.append(what),
    )
    with runtimes.open(tmp_path / "m.onnx", "trt", settings) as running:
        assert "CUDA graph" in running.description
    (built,) = builds()
    assert built["fp32"] == [models.TAIL] and built["pools"]["WORKSPACE"] == 200 << 20


def pixels(brightness):
    return np.full((1, models.SIZE, models.SIZE, 3), brightness, np.uint8)


@pytest.fixture
def copies(monkeypatch):
    """The sizes of the copies to the host so far, bytes."""
    sizes, real = [], type(cuda.open("ctypes")).to_host

    def counted(self, array, pointer, stream):
        sizes.append(array.nbytes)
        real(self, array, pointer, stream)

    monkeypatch.setattr(type(cuda.open("ctypes")), "to_host", counted)
    return sizes


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("release", ALL)
def test_raw_output_of_a_device_variant_is_copied_when_it_is_read(session, fake_cudart, copies, release, graph):
    fake_cudart.defer()
    running = session(release, models.variant(), graph)
    assert running.input_shape == (1, models.SIZE, models.SIZE, 3) and running.input_type == np.uint8
    few = 4 * 6 * models.BEST + 4 * models.BEST
    with runtimes.open(models.variant(), "ort") as reference:
        for brightness in (255, 90, 1):
            outputs, expected = running.infer(pixels(brightness)), reference.infer(pixels(brightness))
            assert len(outputs) == 3 and outputs[1].dtype == np.int32
            for i in (0, 1):
                assert np.array_equal(outputs[i], expected[i])
            assert sum(copies) == few
            before = running.device_ms["d2h"]
            assert np.array_equal(outputs[2], expected[2]) and outputs[-1] is outputs[2]
            assert copies[-1] == 4 * 6 * models.MANY and len(copies) == 3 and running.device_ms["d2h"] > before
            copies.clear()


def test_raw_output_is_gone_after_the_next_inference(session):
    running = session(model=models.variant())
    kept, dropped = running.infer(pixels(255)), running.infer(pixels(9))
    assert [array.shape for array in dropped] == [(1, 6, 300), (1, 300), (1, 6, 400)]
    with pytest.raises(InputError, match="the raw output of an earlier inference is gone"):
        kept[2]
    assert kept[0].shape == (1, 6, 300)
    running.close()
    assert np.array_equal(dropped[2][0, 0], np.arange(400) % 20 * 3)  # it was read before


@pytest.mark.parametrize("brightness, read", [(255, True), (90, False), (0, False)])
def test_detections_read_the_raw_output_only_if_it_is_needed(session, copies, brightness, read):
    running = session(model=models.variant())
    how = {"classes": 2, "conf": 0.1}
    with runtimes.open(models.variant(), "ort") as reference:
        expected = reference.infer(pixels(brightness))[2:]
    rows = TASK.detections(running.infer(pixels(brightness)), "best", **how)
    assert np.array_equal(rows, TASK.detections(expected, "raw", **how))
    assert (4 * 6 * models.MANY in copies) == read and bool(len(rows)) == bool(brightness)


def test_pixels_and_floats_are_not_mixed_up(session):
    with pytest.raises(InputError, match=r"input: wrong type \(found float32, expected uint8\)"):
        session(model=models.variant()).infer(pixels(0).astype(np.float32))
    with pytest.raises(InputError, match=r"input: wrong type \(found uint8, expected float32\)"):
        session().infer(np.zeros((1, 3, models.SIZE, models.SIZE), np.uint8))


@pytest.mark.parametrize("mode", ["single", "offline"])
@pytest.mark.parametrize("runtime", ["trt", "ort", "null"])
def test_bench_runs_a_bundle_of_device_variants(variant_bundle, fake_tensorrt, runtime, mode):
    """In mode offline, NMS runs in another thread, in which no raw output may be read."""
    fake_tensorrt("10.3.0")
    options = BenchmarkOptions(
        runtime=runtime, cuda="ctypes", mode=mode, seconds=0.05, warmup_seconds=0.05, check=mode == "single"
    )
    report = run.run_benchmark(variant_bundle, options)
    assert report.precision == "fp32" and report.stages["infer"]["samples"] >= 1
    if runtime != "null":
        assert report.accuracy.pictures == 3
    if report.parity:
        assert report.parity["box_px"] == 0 and report.parity["anchors"] > models.BEST


def test_output_is_valid_until_the_call_after_the_next(session):
    running = session()
    a, b, c = (x for x in pictures())
    (first,) = running.infer(a)
    kept = first.copy()
    (second,) = running.infer(b)
    assert np.array_equal(first, kept) and not np.array_equal(first, second)
    running.infer(c)
    assert not np.array_equal(first, kept)  # as documented, the buffer is reused


def test_inputs_of_other_types_are_converted(session):
    running = session()
    (x,) = pictures(1)
    expected = running.infer(x)[0].copy()
    assert np.allclose(running.infer(x.astype(np.float64))[0], expected, atol=1e-5)
    assert np.allclose(running.infer(np.asfortranarray(x))[0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 3, 64), (2, 3, 64, 64)])
def test_input_of_another_shape_is_refused(session, shape):
    with pytest.raises(InputError, match="input: wrong shape"):
        session().infer(np.zeros(shape, np.float32))


@pytest.mark.parametrize("graph", [False, True])
def test_clock_of_the_gpu_times_three_parts(session, graph):
    running = session(graph=graph)
    assert running.device_ms is None
    running.infer(pictures(1)[0])
    times = running.device_ms
    assert list(times) == ["h2d", "gpu", "d2h"] and all(ms >= 0 for ms in times.values())
    assert times["gpu"] > 0
    running.close()
    assert running.device_ms is None


def test_graph_is_launched_instead_of_the_context(session, monkeypatch):
    running = session(graph=True)
    monkeypatch.setattr(running, "_execute", lambda: pytest.fail("executed"))
    running.infer(pictures(1)[0])


def test_session_runs_without_a_graph_if_none_can_be_made(session, fake_cudart, monkeypatch):
    fake_cudart.fail("cudaStreamBeginCapture", 900)
    running = session(graph=True)
    assert "no CUDA graph (" in running.description and "cudaErrorStreamCaptureUnsupported" in running.description
    assert running.infer(pictures(1)[0])[0].shape == (1, 6, 84)
    fake_cudart.fail("", 0)
    from edgeprune_device.cuda import ctypes

    backend = type(ctypes.open())
    monkeypatch.setattr(backend, "graphs", False)
    running = session(graph=True)
    assert ", no CUDA graph (not supported by the backend ctypes)" in running.description
    assert running.infer(pictures(1)[0])[0].shape == (1, 6, 84)


def test_close_frees_all_memory(session, fake_cudart):
    before = fake_cudart.live()
    running = session(graph=True)
    running.infer(pictures(1)[0])
    assert fake_cudart.live() != before
    running.close()
    running.close()
    assert fake_cudart.live() == before
    with pytest.raises(InputError, match="closed"):
        running.infer(pictures(1)[0])


@pytest.mark.parametrize(
    "call", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaEventCreate", "cudaMemcpyAsync"]
)
def test_error_of_the_driver_is_one_line_and_leaves_no_memory(session, fake_cudart, call):
    before = fake_cudart.live()
    fake_cudart.fail(call, 2)
    with pytest.raises(DeviceError, match="cudaErrorMemoryAllocation") as caught:
        session().infer(pictures(1)[0])
    assert "\n" not in str(caught.value)
    fake_cudart.fail("", 0)
    if call == "cudaMemcpyAsync":  # the session was opened, so its owner closes it
        return
    del caught  # the traceback references the session and its page-locked arrays
    assert fake_cudart.live() == before


def test_plan_of_another_release_does_not_load(session, fake_tensorrt, fake_cudart):
    plan = build(fake.module("8.6.1"), Request(models.detector(), "fp32"))[0].plan
    module = fake_tensorrt("10.3.0")
    for content in (plan, b"nonsense"):
        with pytest.raises(
            DeviceError, match=r"TensorRT 10\.3\.0 cannot load the engine \(.*not compatible.*--rebuild"
        ):
            trt.TrtSession(module, cuda.open("ctypes"), content, runtime="trt", graph=False)
    assert fake_cudart.live() == {}


def test_host_code_in_an_engine_is_forbidden(session):
    running = session("10.3.0")
    assert running._runtime.engine_host_code_allowed is False
    assert not hasattr(session("8.5.2")._runtime, "engine_host_code_allowed")


def test_model_that_is_not_a_detector_is_refused(session):
    mul = [models.node("Mul", ["images", "g"], "output0", "/Mul")]
    one = [models.raw("g", np.ones(1, np.float32))]
    with pytest.raises(InputError, match=r"model: wrong inputs .found images float32 \(1, 3\)"):
        session(model=models.model(mul, one, 17, size=(1, 3)))
    with pytest.raises(InputError, match="expected a fixed shape"):
        session(model=models.model(mul, one, 17, outputs=(("output0", (0, 6)),)))


def test_error_of_a_failed_execution_gives_the_reason(session):
    running = session()
    running._context._addresses.clear()
    with pytest.raises(DeviceError, match=r"failed while running the model \(enqueueV3: Address is not set"):
        running.infer(pictures(1)[0])


def test_missing_tensorrt_or_gpu_gives_a_reason(fake_tensorrt, fake_cudart, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert trt.available().startswith("TensorRT is not installed")
    fake_tensorrt("10.3.0")
    assert trt.available() is None
    monkeypatch.setattr(trt.cuda, "available", lambda: {"ctypes": "no libcudart", "pycuda": "not installed"})
    monkeypatch.setattr(trt.library, "reason", lambda name: pytest.fail("loaded for nothing"))
    assert trt.available() == "no usable GPU: ctypes: no libcudart; pycuda: not installed"
    with pytest.raises(RuntimeUnavailable, match="runtime trt: no usable GPU"):
        runtimes.open(b"", "trt")


@pytest.mark.parametrize(
    "release, auto, int8",
    [
        ("8.6.1", ("int8", "fp16", "fp32"), ("int8",)),
        ("10.3.0", ("int8-fp16", "int8", "fp16", "fp32"), ("int8-fp16", "int8")),
        ("11.4.0.106", ("int8-fp16", "fp16", "int8", "fp32"), ("int8-fp16", "int8")),
    ],
)
def test_release_decides_which_file_is_best(fake_tensorrt, release, auto, int8):
    fake_tensorrt(release)
    assert runtimes.order("trt") == auto and runtimes.order("trt", "int8") == int8
    assert runtimes.order("trt", "fp16") == ("fp16",)
    assert "int8" not in runtimes.order("trt", "auto", int8_for_cpu=True)
    assert runtimes.order("ort") == ("fp32", "fp16", "int8", "int8-fp16")
    assert runtimes.order("ort", "auto", int8_for_cpu=True)[0] == "int8"


def test_bench_runs_a_bundle_on_tensorrt(gpu_bundle, fake_tensorrt, builds):
    pytest.importorskip("onnxruntime")
    fake_tensorrt("10.3.0")
    report = run.run_benchmark(
        gpu_bundle(),
        BenchmarkOptions(runtime="trt", cuda="ctypes", cuda_graph=True, seconds=0.05, warmup_seconds=0.05, check=True),
    )
    assert report.precision == "int8-fp16" and report.runtime["name"] == "trt"
    assert report.runtime["description"] == "TensorRT 10.3.0, Fake Orin (SM 8.7), CUDA graph, ctypes"
    assert report.accuracy is not None and len(builds()) == 1
    assert any("a fake" in warning for warning in report.warnings)  # a warning of TensorRT
    assert list(report.stages) == ["decode", "pre", "infer", "post", "end_to_end", "h2d", "gpu", "d2h"]
    samples = {name: stage["samples_ns"] for name, stage in report.stages.items()}
    assert {len(values) for values in samples.values()} == {report.stages["infer"]["samples"]}
    for infer, *parts in zip(*(samples[name] for name in ("infer", "h2d", "gpu", "d2h"))):
        assert 0 < sum(parts) <= infer
    assert "h2d, gpu, d2h: parts of infer, from the GPU's clock" in report.table()
    schema.check("report", json.loads(json.dumps(report.to_json())), "report")
    # The fake's context runs the same file with ONNX Runtime, Q/DQ fused.
    assert report.parity["anchors"] > 0 and report.parity["box_px"] < 0.1 and report.parity["score"] < 0.1
