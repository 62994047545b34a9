"""Tests of the engine builder with the fake of every recorded release. It uses only features that the release has.

The fakes are made from the API of the real bindings (fakes/record_tensorrt.py) and check the calls. A test with
TensorRT for RTX (tests/host/exporting/test_tensorrt.py) proves that NVIDIA's builder accepts the files.
"""

import json

import pytest
from edgeprune_device.engine import Engine, Request, library
from edgeprune_device.engine.build import build
from edgeprune_device.errors import GateError, InputError
from fakes import fake_tensorrt as fake
from fakes import hostile, models

ALL = (*fake.RELEASES, fake.RTX)
OLD = ("8.5.2", "8.6.1")  # no strong typing
FLAGLESS = ("11.4.0.106", fake.RTX)  # only strong typing
BOTH = tuple(release for release in ALL if release not in OLD + FLAGLESS)


def plan_of(engine):
    """The settings that the fake builder received."""
    header, _, model = engine.plan[len(fake.MAGIC) :].partition(b"\n")
    return json.loads(header), model


@pytest.mark.parametrize("release", ALL)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int8-fp16"])
def test_each_release_builds_each_precision_with_its_features(release, precision):
    if release in OLD and precision == "int8-fp16":
        pytest.skip("needs strong typing: see the next test")
    trt, onnx = fake.module(release), models.detector(precision)
    engine, timing = build(
        trt, Request(onnx, precision, fp32_nodes=(models.TAIL,)), pools={"WORKSPACE": 1, "TACTIC_DRAM": 2}
    )
    header, model = plan_of(engine)
    typed = release in FLAGLESS or (release in BOTH and precision != "int8")
    assert model == onnx and header["typed"] == typed
    assert ("STRONGLY_TYPED" in engine.flags) == typed and "NO_TF32" in engine.flags
    allowed = set() if typed else {"fp32": set(), "fp16": {"FP16"}, "int8": {"FP16", "INT8"}}[precision]
    if allowed:
        allowed = allowed | {"OBEY_PRECISION_CONSTRAINTS"}
    assert set(header["flags"]) == allowed  # so TF32, the default, is off
    # The FP32 layers of the fp16 file stay FP32 if the types are only hints.
    kept = {"fp16": [models.POOL, models.TAIL], "int8": [models.TAIL]}.get(precision, [])
    assert header["fp32"] == ([] if typed else kept) and engine.fp32_layers == len(header["fp32"])
    pools = {"WORKSPACE": 1} if release == "8.5.2" else {"WORKSPACE": 1, "TACTIC_DRAM": 2}
    assert header["pools"] == pools and header["timed"] == "fresh" and timing.startswith(fake.TIMING)
    assert engine.builder == library.title(trt) and engine.builder.endswith(trt.__version__)
    assert any("stay FP32" in text for text in engine.warnings) == (precision == "int8" and release in FLAGLESS)
    assert Engine.from_json(json.loads(json.dumps(engine.to_json()))) == engine


@pytest.mark.parametrize("release", OLD)
def test_error_of_tensorrt_8_names_the_file_to_use_instead(release):
    with pytest.raises(InputError, match=r": no strongly typed networks.*JetPack 6.1.*precision=int8"):
        build(fake.module(release), Request(models.detector("int8-fp16"), "int8-fp16"))


def test_fakes_refuse_features_that_a_release_lacks():
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
    with pytest.raises(NotImplementedError):  # the real module has it, but this package must not use it
        _ = old.Builder(library.log_of(old)).max_batch_size
    oldest = fake.module("8.5.2")
    assert not hasattr(oldest.Runtime(library.log_of(oldest)), "engine_host_code_allowed")


@pytest.mark.parametrize("release", ["10.3.0", "11.4.0.106"])
def test_fakes_refuse_precisions_on_a_typed_network(release):
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


def test_fakes_require_explicit_batch_and_int8_for_quantized_files():
    trt = fake.module("8.6.1")
    log = library.log_of(trt)
    builder = trt.Builder(log)
    parser = trt.OnnxParser(builder.create_network(0), log)
    assert not parser.parse(models.detector()) and "explicit batch" in parser.get_error(0).desc()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    assert trt.OnnxParser(network, log).parse(models.detector("int8"))
    assert builder.build_serialized_network(network, builder.create_builder_config()) is None
    assert "INT8" in log.errors[-1]


def test_missing_node_that_must_stay_fp32_gives_a_warning():
    engine, _ = build(
        fake.module("8.6.1"), Request(models.detector("int8"), "int8", fp32_nodes=("/gone/Conv", models.TAIL))
    )
    assert any(
        "1 nodes that must stay FP32 are missing from the network, e.g. /gone/Conv" in w for w in engine.warnings
    )
    assert engine.fp32_layers == 1


def test_fp16_file_without_types_gives_a_warning():
    text = "the layers that must stay FP32 are unknown"
    engine, _ = build(fake.module("8.6.1"), Request(models.detector("fp32"), "fp16"))
    assert engine.fp32_layers == 0 and any(text in warning for warning in engine.warnings)
    engine, _ = build(fake.module("8.6.1"), Request(models.detector("fp32"), "fp16", fp32_nodes=(models.TAIL,)))
    assert engine.fp32_layers == 1 and not any(text in warning for warning in engine.warnings)


@pytest.mark.parametrize("release", [release for release in ALL if release not in FLAGLESS])
def test_fp32_is_preferred_with_a_warning_if_it_cannot_be_obeyed(release, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "disobey")
    engine, _ = build(fake.module(release), Request(models.detector("int8"), "int8", fp32_nodes=(models.TAIL,)))
    header, _ = plan_of(engine)
    assert set(header["flags"]) == {"FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS"} and header["fp32"] == [models.TAIL]
    assert engine.flags == ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS", "NO_TF32") and engine.fp32_layers == 1
    assert "no engine with all 1 layers in FP32 (" in engine.warnings[0]
    assert "Could not find any implementation" in engine.warnings[0] and "edgeprune bench" in engine.warnings[0]
    assert Engine.from_json(json.loads(json.dumps(engine.to_json()))) == engine


def test_build_that_fails_for_another_reason_is_an_error(monkeypatch, tmp_path):
    trt, asked = fake.module("8.6.1"), []
    real = trt.Builder.build_serialized_network
    monkeypatch.setattr(
        trt.Builder, "build_serialized_network", lambda *given: asked.append(given[2]._names()) or real(*given)
    )
    for how, tries in (("refuse", 2), ("memory", 1)):  # a second attempt would not have more memory
        monkeypatch.setenv("FAKE_TENSORRT_BUILD", how)
        asked.clear()
        with pytest.raises(GateError, match=r"TensorRT 8\.6\.1 cannot build an engine from this file"):
            build(trt, Request(models.detector("int8"), "int8", fp32_nodes=(models.TAIL,)))
        assert len(asked) == tries
    asked.clear()
    with pytest.raises(GateError):
        build(trt, Request(models.detector("int8"), "int8"))  # nothing was constrained
    assert len(asked) == 1


def test_renamed_layer_is_found_by_the_name_of_its_node():
    nodes = [models.node("Mul", ["images", "g"], "a", "/m/Mul"), models.node("Mul", ["a", "g"], "output0", "/m/Mul")]
    onnx = models.model(nodes, [models.raw("g", models.np.ones((1, 1, 1, 1), "float32"))], 17)
    engine, _ = build(fake.module("8.6.1"), Request(onnx, "int8", fp32_nodes=("/m/Mul",)))
    assert plan_of(engine)[0]["fp32"] == ["/m/Mul", "/m/Mul_1"]
    # PyTorch numbers nodes in the same way, so /m/Mul_1 can be a separate node.
    nodes[1] = models.node("Mul", ["a", "g"], "output0", "/m/Mul_1")
    onnx = models.model(nodes, [models.raw("g", models.np.ones((1, 1, 1, 1), "float32"))], 17)
    for asked in ("/m/Mul", "/m/Mul_1"):
        engine, _ = build(fake.module("8.6.1"), Request(onnx, "int8", fp32_nodes=(asked,)))
        assert plan_of(engine)[0]["fp32"] == [asked] and not any(
            "missing from the network" in w for w in engine.warnings
        )


def test_timing_cache_is_used_only_if_it_fits():
    trt, onnx = fake.module("10.3.0"), models.detector()
    engine, timing = build(trt, Request(onnx, "fp32"))
    assert plan_of(engine)[0]["timed"] == "fresh"
    assert plan_of(build(trt, Request(onnx, "fp32"), timing_cache=timing)[0])[0]["timed"] == "cached"
    for other in (b"garbage", fake.TIMING + b"8.6.1"):  # damaged; from another release
        assert plan_of(build(trt, Request(onnx, "fp32"), timing_cache=other)[0])[0]["timed"] == "fresh"


@pytest.mark.parametrize("release", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_progress_is_a_fraction_of_the_whole_if_the_release_reports_it(release):
    seen = []
    build(
        fake.module(release),
        Request(models.detector(), "fp32"),
        progress=lambda share, what: seen.append((share, what)),
    )
    shares = [share for share, _ in seen]
    if release == "8.6.1":
        assert seen == []
    else:
        assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
        assert (0.25, "Timing tactics") in seen


@pytest.mark.parametrize("model", [hostile.reads_a_file(), hostile.brings_an_engine()])
def test_model_that_loads_other_files_does_not_reach_the_parser(model, monkeypatch):
    trt = fake.module("10.3.0")
    monkeypatch.setattr(trt, "OnnxParser", lambda *_: pytest.fail("the parser was called"))
    with pytest.raises(
        InputError, match=r"^m.onnx: the (tensor bias|node /engine) .*; export the model as one ONNX file"
    ):
        build(trt, Request(model, "fp32", name="m.onnx"))
