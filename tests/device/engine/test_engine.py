"""The engine builder with the fake of every recorded release: it uses what the release has, and nothing else.

The fakes are made from the real bindings' surface (fakes/record_tensorrt.py). They prove the calls; that NVIDIA's
builder takes the files is proven with TensorRT for RTX in tests/host/exporting/test_tensorrt.py.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from edgeprune_device.engine import Engine, Request, library, memory, onnx_file, process, refusal
from edgeprune_device.engine.build import build
from edgeprune_device.errors import DeviceError, GateError, InputError, RuntimeUnavailable
from fakes import fake_tensorrt as fake
from fakes import models

ALL = (*fake.RELEASES, fake.RTX)
OLD = ("8.5.2", "8.6.1")  # no strong typing
FLAGLESS = ("11.4.0.106", fake.RTX)  # strong typing alone
BOTH = tuple(release for release in ALL if release not in OLD + FLAGLESS)


def plan_of(engine):
    """What the fake builder was told."""
    header, _, model = engine.plan[len(fake.MAGIC) :].partition(b"\n")
    return json.loads(header), model


@pytest.mark.parametrize("release", ALL)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-fp16"])
def test_each_release_builds_each_precision_in_its_own_way(release, precision):
    if release in OLD and precision == "int8-fp16":
        pytest.skip("needs strong typing: see the next test")
    trt, onnx = fake.module(release), models.detector(precision)
    engine, timing = build(trt, onnx, precision, fp32_nodes=(models.TAIL,), pools={"WORKSPACE": 1, "TACTIC_DRAM": 2})
    told, model = plan_of(engine)
    typed = release in FLAGLESS or (release in BOTH and precision != "int8")
    assert model == onnx and told["typed"] == typed
    assert ("STRONGLY_TYPED" in engine.flags) == typed and "NO_TF32" in engine.flags
    allowed = set() if typed else {"fp32": set(), "fp16": {"FP16"}, "int8": {"FP16", "INT8"}}[precision]
    if allowed:
        allowed = allowed | {"OBEY_PRECISION_CONSTRAINTS"}
    assert set(told["flags"]) == allowed  # so TF32, on by default, is off
    # The fp16 file's own FP32 layers stay FP32 where the types are only advice.
    kept = {"fp16": [models.POOL, models.TAIL], "int8": [models.TAIL]}.get(precision, [])
    assert told["fp32"] == ([] if typed else kept) and engine.fp32_layers == len(told["fp32"])
    pools = {"WORKSPACE": 1} if release == "8.5.2" else {"WORKSPACE": 1, "TACTIC_DRAM": 2}
    assert told["pools"] == pools and told["timed"] == "fresh" and timing.startswith(fake.TIMING)
    assert engine.builder == library.title(trt) and engine.builder.endswith(trt.__version__)
    assert any("stays FP32" in text for text in engine.warnings) == (precision == "int8" and release in FLAGLESS)
    assert Engine.from_json(json.loads(json.dumps(engine.to_json()))) == engine


@pytest.mark.parametrize("release", OLD)
def test_tensorrt_8_says_which_file_to_take_instead(release):
    with pytest.raises(InputError, match=r"has no strongly typed networks.*JetPack 6.1.*--precision int8"):
        build(fake.module(release), models.detector("int8-fp16"), "int8-fp16")


def test_the_order_of_precisions_follows_from_features():
    assert library.order(fake.module("8.6.1")) == ("int8", "fp16", "fp32")
    assert library.order(fake.module("10.3.0")) == ("int8-fp16", "int8", "fp16", "fp32")
    assert library.order(fake.module("11.4.0.106")) == ("int8-fp16", "fp16", "int8", "fp32")


def test_the_fakes_refuse_what_a_release_has_not():
    with pytest.raises(AttributeError):
        _ = fake.module("11.4.0.106").BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = fake.module("11.4.0.106").NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    with pytest.raises(AttributeError):
        _ = fake.module("8.6.1").NetworkDefinitionCreationFlag.STRONGLY_TYPED
    with pytest.raises(AttributeError):
        _ = fake.module("8.5.2").MemoryPoolType.TACTIC_DRAM
    assert not hasattr(fake.module("8.6.1"), "IProgressMonitor")
    for release, gone in (("10.3.0", "max_batch_size"), ("11.4.0.106", "platform_has_fast_fp16")):
        trt = fake.module(release)
        builder = trt.Builder(library.log_of(trt))
        with pytest.raises(AttributeError):
            getattr(builder, gone)
        with pytest.raises(AttributeError):
            setattr(builder, gone, 1)
        with pytest.raises(AttributeError):
            builder.create_builder_config().max_workspace_size = 1 << 30
    old = fake.module("8.6.1")
    with pytest.raises(NotImplementedError):  # the real one has it, but nobody here may use it
        _ = old.Builder(library.log_of(old)).max_batch_size
    oldest = fake.module("8.5.2")
    assert not hasattr(oldest.Runtime(library.log_of(oldest)), "engine_host_code_allowed")


@pytest.mark.parametrize("release", ["10.3.0", "11.4.0.106"])
def test_the_fakes_refuse_precisions_on_a_typed_network(release):
    trt = fake.module(release)
    log = library.log_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(network, log).parse(models.detector("fp16"))
    config = builder.create_builder_config()
    if release == "10.3.0":
        config.set_flag(trt.BuilderFlag.FP16)
        assert builder.build_serialized_network(network, config) is None
        config.clear_flag(trt.BuilderFlag.FP16)
        network.get_layer(0).precision = trt.DataType.FLOAT
    else:
        with pytest.raises(AttributeError):
            network.get_layer(0).precision = trt.DataType.FLOAT
        return
    assert builder.build_serialized_network(network, config) is None
    assert "strongly typed" in log.errors[0] and "strongly typed" in log.errors[1]


def test_the_fakes_want_explicit_batch_and_int8_for_quantized_files():
    trt = fake.module("8.6.1")
    log = library.log_of(trt)
    builder = trt.Builder(log)
    parser = trt.OnnxParser(builder.create_network(0), log)
    assert not parser.parse(models.detector()) and "explicit batch" in parser.get_error(0).desc()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    assert trt.OnnxParser(network, log).parse(models.detector("int8"))
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert "INT8" in log.errors[-1]


def test_a_node_that_must_stay_fp32_and_is_not_there_is_a_warning():
    engine, _ = build(fake.module("8.6.1"), models.detector("int8"), "int8", fp32_nodes=("/gone/Conv", models.TAIL))
    assert any("1 nodes that must stay FP32 are not in the network, e.g. /gone/Conv" in w for w in engine.warnings)
    assert engine.fp32_layers == 1


def test_an_fp16_build_whose_file_tells_no_types_says_so():
    told = "nothing tells which layers must stay FP32"
    engine, _ = build(fake.module("8.6.1"), models.detector("fp32"), "fp16")
    assert engine.fp32_layers == 0 and any(told in warning for warning in engine.warnings)
    engine, _ = build(fake.module("8.6.1"), models.detector("fp32"), "fp16", fp32_nodes=(models.TAIL,))
    assert engine.fp32_layers == 1 and not any(told in warning for warning in engine.warnings)


@pytest.mark.parametrize("release", [release for release in ALL if release not in FLAGLESS])
def test_where_no_engine_obeys_one_that_prefers_is_built_and_said(release, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "disobey")
    engine, _ = build(fake.module(release), models.detector("int8"), "int8", fp32_nodes=(models.TAIL,))
    told, _ = plan_of(engine)
    assert set(told["flags"]) == {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"} and told["fp32"] == [models.TAIL]
    assert engine.flags == ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS", "NO_TF32") and engine.fp32_layers == 1
    assert "no engine that holds all 1 layers in FP32 (" in engine.warnings[0]
    assert "Could not find any implementation" in engine.warnings[0] and "edgeprune bench" in engine.warnings[0]
    assert Engine.from_json(json.loads(json.dumps(engine.to_json()))) == engine


def test_what_fails_for_another_reason_fails(monkeypatch, tmp_path):
    trt, asked = fake.module("8.6.1"), []
    real = trt.Builder.build_serialized_network
    monkeypatch.setattr(
        trt.Builder, "build_serialized_network", lambda *given: asked.append(given[2]._names()) or real(*given)
    )
    for how, tries in (("refuse", 2), ("memory", 1)):  # more memory is not there at the second time either
        monkeypatch.setenv("FAKE_TENSORRT_BUILD", how)
        asked.clear()
        with pytest.raises(GateError, match=r"TensorRT 8\.6\.1 cannot build it"):
            build(trt, models.detector("int8"), "int8", fp32_nodes=(models.TAIL,))
        assert len(asked) == tries
    asked.clear()
    with pytest.raises(GateError):
        build(trt, models.detector("int8"), "int8")  # nothing was constrained
    assert len(asked) == 1


def test_a_layer_that_tensorrt_renamed_is_found_by_its_nodes_name():
    nodes = [models.node("Mul", ["images", "g"], "a", "/m/Mul"), models.node("Mul", ["a", "g"], "output0", "/m/Mul")]
    onnx = models.model(nodes, [models.raw("g", models.np.ones((1, 1, 1, 1), "float32"))], 17)
    engine, _ = build(fake.module("8.6.1"), onnx, "int8", fp32_nodes=("/m/Mul",))
    assert plan_of(engine)[0]["fp32"] == ["/m/Mul", "/m/Mul_1"]
    # PyTorch numbers its nodes in the same way: /m/Mul_1 is then a node of its own.
    nodes[1] = models.node("Mul", ["a", "g"], "output0", "/m/Mul_1")
    onnx = models.model(nodes, [models.raw("g", models.np.ones((1, 1, 1, 1), "float32"))], 17)
    for asked in ("/m/Mul", "/m/Mul_1"):
        engine, _ = build(fake.module("8.6.1"), onnx, "int8", fp32_nodes=(asked,))
        assert plan_of(engine)[0]["fp32"] == [asked] and not any("not in the network" in w for w in engine.warnings)


def test_a_timing_cache_is_used_when_it_fits_and_left_out_when_not():
    trt, onnx = fake.module("10.3.0"), models.detector()
    engine, timing = build(trt, onnx, "fp32")
    assert plan_of(engine)[0]["timed"] == "fresh"
    assert plan_of(build(trt, onnx, "fp32", timing_cache=timing)[0])[0]["timed"] == "cached"
    for other in (b"garbage", fake.TIMING + b"8.6.1"):  # damaged; another release's
        assert plan_of(build(trt, onnx, "fp32", timing_cache=other)[0])[0]["timed"] == "fresh"


@pytest.mark.parametrize("release", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_progress_is_one_share_of_the_whole_where_the_release_tells_it(release):
    seen = []
    build(fake.module(release), models.detector(), "fp32", progress=lambda share, what: seen.append((share, what)))
    shares = [share for share, _ in seen]
    if release == "8.6.1":
        assert seen == []
    else:
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
        assert (0.25, "Timing tactics") in seen


def refused(release, onnx, precision="fp32"):
    with pytest.raises(GateError) as caught:
        build(fake.module(release), onnx, precision, name="model.onnx")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("release", ALL)
def test_a_refusal_names_the_node_the_layer_and_what_to_do(release):
    nodes = [
        models.node("Mul", ["images", "g"], "m", "/model.0/Mul"),
        models.node("NonMaxSuppression", ["m"], "output0", "/model.22/nms/nms.0/NonMaxSuppression"),
    ]
    onnx = models.model(nodes, [models.raw("g", models.np.ones(1, "float32"))], 17)
    message = refused(release, onnx)
    # TensorRT 8 tells only the node's number: the name is read from the file.
    assert message.startswith(
        f"model.onnx: {library.title(fake.module(release))} refuses it: NonMaxSuppression /model.22"
    )
    assert "(layer model.22.nms.0): No importer registered for op" in message
    assert message.endswith("this TensorRT has no such operator: export the model without it, or use a newer JetPack")


def test_a_refusal_of_types_opset_and_damage_says_what_to_do():
    new = models.detector("int8", opset=19)
    assert "opset 19 is newer than TensorRT 8 reads (17): use JetPack 6.1 or later" in refused("8.6.1", new, "int8")
    wrong = models.model([models.node("Mul", ["images", "u"], "output0", "/model.3/Mul")], [uint8("u")], 17)
    message = refused("10.3.0", wrong, "fp16")
    assert "Mul /model.3/Mul (layer model.3): unsupported input type of UINT8" in message
    assert "or another file of the bundle (--precision fp32)" in message
    for damaged in (b"", b"not onnx", models.detector()[:200]):
        message = refused("10.3.0", damaged)
        assert "Failed to parse ONNX model. Is it whole?; the file is damaged or no ONNX" in message


def uint8(name):
    return models.message((1, 1), (2, 2), (8, name), (9, b"\x01"))


def test_what_the_builder_says_becomes_advice():
    advice = refusal.of_builder(["Error Code 1: Cuda Runtime (out of memory)"], "fp16")
    assert "close what else runs" in advice and "--workspace 256" in advice
    advice = refusal.of_builder(["Could not find any implementation for node X."], "int8")
    assert "--workspace 2048" in advice and "--precision fp16" in advice
    assert refusal.of_builder([], "fp32") == "the builder gave no reason"


@pytest.mark.parametrize(
    "free_mb, integrated, workspace_mb, tactics_mb",
    [
        (300, True, 128, 256),  # hardly anything is free: the least that a detector builds with
        (2400, True, 816, 1632),  # a 4 GB board with its desktop
        (6000, True, 2048, 5232),  # 8 GB
        (13500, True, 2048, 12732),  # 16 GB
        (60000, True, 2048, 59232),  # 64 GB
        (2000, False, 1000, 2000),  # a card with 4 GB, half of them taken
        (23000, False, 2048, 23000),
    ],
)
def test_scratch_memory_follows_from_what_is_free(free_mb, integrated, workspace_mb, tactics_mb):
    found = memory.pools(free_mb << 20, integrated)
    assert found == {"WORKSPACE": workspace_mb << 20, "TACTIC_DRAM": tactics_mb << 20}
    assert integrated is False or free_mb < 1000 or found["TACTIC_DRAM"] < free_mb << 20


def test_available_memory_is_read_from_meminfo():
    assert memory.available_bytes("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n") == 2 << 20
    assert memory.available_bytes("MemTotal: 9 kB\n") is None
    assert memory.read_available() is None or memory.read_available() > 0


def test_a_request_that_makes_no_sense_is_refused():
    for change in ({"precision": "fp8"}, {"library": "tensorflow"}, {"workspace_bytes": 10**6 - 1}):
        with pytest.raises(InputError):
            Request(b"", **{"precision": "fp32", **change})
    assert Request(b"", "fp32", workspace_bytes=10**6).workspace_bytes == 10**6  # --workspace 1
    assert Request(b"", "fp16").name == "the fp16 model"


def test_a_library_that_is_missing_or_broken_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "TensorRT is not installed" in library.reason() and "--system-site-packages" in library.reason()
    monkeypatch.delitem(sys.modules, "tensorrt")
    for code, words in (
        ("raise ImportError('libnvinfer.so.8: cannot open shared object file')", "libnvinfer.so.8"),
        ("import numpy; numpy.nothing_of_this_name", "nothing_of_this_name"),
        ("import module_that_is_not_there", "module_that_is_not_there"),
    ):
        (tmp_path / "tensorrt.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(RuntimeUnavailable, match="does not load here: .*" + words):
            library.load()
        sys.modules.pop("tensorrt", None)


# ---- in a process of its own ----


def test_the_process_builds_with_the_memory_that_is_free(fake_tensorrt, builds, monkeypatch):
    fake_tensorrt("10.3.0")
    seen = []
    request = Request(models.detector("fp16"), "fp16", cuda="ctypes")
    engine = process.build(request, progress=lambda share, what: seen.append(what))
    assert engine.size_bytes == len(engine.plan) and engine.onnx_sha256 == request.onnx_sha256
    assert "Building engine" in seen
    (told,) = builds()
    # The fake GPU is integrated, as a Jetson's: what counts is this machine's own available memory.
    assert told["pools"]["WORKSPACE"] == engine.workspace_bytes >= 128 << 20
    engine = process.build(Request(models.detector(), "fp32", cuda="ctypes", workspace_bytes=300 << 20))
    assert builds()[1]["pools"]["WORKSPACE"] == engine.workspace_bytes == 300 << 20


def test_errors_of_the_process_are_the_callers(fake_tensorrt, tmp_path, monkeypatch):
    fake_tensorrt("10.3.0")
    with pytest.raises(GateError, match=r"the fp32 model: TensorRT 10\.3\.0 refuses it"):
        process.build(Request(b"nonsense", "fp32", cuda="ctypes"))
    with pytest.raises(InputError, match="no such ONNX file"):
        process.build(Request(tmp_path / "none.onnx", "fp32", cuda="ctypes"))
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "memory")
    with pytest.raises(GateError, match=r"out of memory.*--workspace 256"):
        process.build(Request(models.detector(), "fp32", cuda="ctypes"))


@pytest.mark.parametrize(
    "how, words",
    [
        ("segv", r"the engine builder crashed \(SIGSEGV\)"),
        ("kill", r"the engine builder was killed \(SIGKILL\), most likely because memory ran out: .*--workspace 256"),
        ("exit", "the engine builder ended with code 3: libfoo.so: cannot open shared object file"),
        ("hang", "no engine after 2 s"),
    ],
)
def test_a_death_of_the_builder_is_one_line(fake_tensorrt, monkeypatch, how, words):
    fake_tensorrt("8.6.1")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", how)
    with pytest.raises(DeviceError, match="^the fp32 model: " + words):
        process.build(Request(models.detector(), "fp32", cuda="ctypes"), timeout_s=2 if how == "hang" else 60)


def test_a_crash_at_the_end_of_the_builders_process_does_not_cost_the_engine(fake_tensorrt, monkeypatch):
    fake_tensorrt("10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "late")
    assert process.build(Request(models.detector(), "fp32", cuda="ctypes")).size_bytes > 0


def test_an_error_of_the_gpu_in_the_builder_is_the_callers(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    failing = tmp_path / "failing"
    failing.mkdir()
    (failing / "tensorrt.py").write_text(
        f"import ctypes, os, sys\nsys.path.append({str(fake.HERE)!r})\nimport fake_tensorrt\n"
        "ctypes.CDLL(os.environ['EDGEPRUNE_LIBCUDART']).fake_fail(b'cudaMemGetInfo', 999)\n"
        "sys.modules[__name__] = fake_tensorrt.module('10.3.0')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(failing))
    with pytest.raises(DeviceError, match=r"^cudaMemGetInfo failed: cudaErrorUnknown, unknown error$"):
        process.build(Request(models.detector(), "fp32", cuda="ctypes"))


def test_what_lies_in_the_current_folder_is_not_imported(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    for name in ("numpy", "tensorrt", "json", "edgeprune_device"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('the current folder has its own {name}')")
    monkeypatch.chdir(tmp_path)
    assert process.build(Request(models.detector(), "fp32", cuda="ctypes")).size_bytes > 0


CALLER = """
from edgeprune_device.engine import Request, process
import pathlib, subprocess, sys
start = subprocess.Popen
def tell(*given, **more):
    worker = start(*given, **more)
    print(worker.pid, flush=True)
    return worker
process.subprocess.Popen = tell
process.build(Request(pathlib.Path(sys.argv[1]), "fp32", cuda="ctypes"))
"""


def test_a_caller_that_is_killed_leaves_no_builder(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "hang")
    (tmp_path / "m.onnx").write_bytes(models.detector())
    command = [sys.executable, "-c", CALLER, str(tmp_path / "m.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as caller:
        worker = int(caller.stdout.readline())
        os.kill(worker, 0)  # it is there
        caller.kill()
    deadline = time.monotonic() + 30
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(worker)


def running(pid):
    """Whether a process is there and no zombie, which nobody may collect in a container."""
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_interrupt_ends_the_builder_too(fake_tensorrt, monkeypatch, tmp_path):
    fake_tensorrt("10.3.0")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "hang")
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(process.subprocess, "Popen", lambda *a, **k: started.append(start(*a, **k)) or started[-1])

    def interrupt(*_):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(2)
    try:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            process.build(Request(models.detector(), "fp32", cuda="ctypes"))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert time.monotonic() - began < 30 and started[0].poll() == -signal.SIGKILL


def test_what_the_library_prints_does_not_disturb(fake_tensorrt, tmp_path, monkeypatch, capfd):
    fake_tensorrt("10.3.0")
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    (noisy / "tensorrt.py").write_text(
        f"import os, sys\nsys.path.append({str(fake.HERE)!r})\nos.write(1, b'hello from C\\n{{}}\\n')\n"
        "import fake_tensorrt\nsys.modules[__name__] = fake_tensorrt.module('10.3.0')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(noisy))
    assert process.build(Request(models.detector(), "fp32", cuda="ctypes")).size_bytes > 0
    assert capfd.readouterr() == ("", "")


def test_a_damaged_file_has_no_node_and_no_opset():
    onnx = models.detector("int8")
    assert onnx_file.opset(onnx) == 17 and onnx_file.node(onnx, 1) == ("/model.1/conv/Q", "QuantizeLinear")
    assert onnx_file.node(onnx, 9) is None and onnx_file.node(onnx, -1) is None
    for data in (b"", b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x0f", os.urandom(64)):
        assert onnx_file.opset(data) is None or isinstance(onnx_file.opset(data), int)
    assert onnx_file.node(b"\x3a\xff\xff\xff\xff\x0f", 0) is None and onnx_file.opset(b"\xff" * 20) is None
