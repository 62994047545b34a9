"""precisions: layers that lose too much leave INT8; the record names them, their errors and the images that decided."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.target import Target
from edgeprune_device.vision.accuracy import Accuracy, ClassAccuracy, match
from onnx import numpy_helper

from edgeprune import quantize as q
from edgeprune.data import dataset
from edgeprune.exporting import nms, precisions
from edgeprune.exporting.to_onnx import to_onnx
from edgeprune.measuring import accuracy
from edgeprune.quantize.graph import Graph, layer_of

from ..outlier import READER, SIZE, outlier, pictures
from ..small import short


@pytest.fixture(scope="module")
def fp32():
    return to_onnx(short(), (SIZE, SIZE))


class Closeness:
    """Replaces mAP without labels: 1 minus the output divergence from FP32 on its own images."""

    def __init__(self, fp32, seed):
        self.pictures = pictures(4, seed)
        self.expected = [q.reference_session(fp32).run(None, {"images": p})[0] for p in self.pictures]
        self.asked = 0

    def __call__(self, session):
        self.asked += 1
        outputs = [session.infer(p)[0] for p in self.pictures]
        pairs = [q.output_divergence(a, b, session.kind) for a, b in zip(self.expected, outputs)]
        differs, total = np.sum(pairs, axis=0)
        return 1 - differs / total


def settled(model, max_drop, target="jetson-orin"):
    given = pictures()
    int8 = precisions.Int8(model, q.calibrate(model, given), given, Target.load(target), lambda what: None)
    int8.settle(("max",), Closeness(model, 7), max_drop)
    return int8


def test_bias_shift_does_not_depend_on_the_other_quantized_layers(fp32):
    ranges = q.calibrate(fp32, pictures())
    whole, part = q.to_int8(fp32, ranges), q.to_int8(fp32, ranges, exclude=["model.11"])
    shifts = q.bias_shifts(fp32, whole, pictures(2))
    alone = q.bias_shifts(fp32, part, pictures(2))
    assert set(alone) < set(shifts)
    assert all(np.allclose(shifts[name], alone[name], atol=1e-6) for name in alone)
    (picture,) = pictures(1, 9)
    expected = q.reference_session(q.correct_bias(fp32, part, pictures(2))).run(None, {"images": picture})[0]
    actual = q.reference_session(q.shifted(part, shifts)).run(None, {"images": picture})[0]
    assert np.allclose(expected, actual, atol=1e-3)


# --- layer fallback


def test_most_sensitive_layer_falls_back_and_the_rest_stays_int8(fp32):
    model = outlier(fp32)
    untouched = settled(model, max_drop=float("inf"))
    int8 = settled(model, max_drop=0.6)
    record = int8.to_json()
    assert untouched.fallbacks == 0 and untouched.to_json()["rescued"] == []
    assert [s["layer"] for s in record["rescued"]][:1] == [READER]
    assert record["rescued_by_selection"] == int8.fallbacks >= 1 and record["rescued_by_validation"] == 0
    drops = [s["drop_map50_95"] for s in record["selection"]]
    assert drops[0] > 1 and drops[-1] <= 0.6 and len(drops) == 1 + [0, 1, 2, 3, 4, 6].index(int8.fallbacks)
    assert record["share_of_macs"] >= 0.9
    for name, file in int8.files.items():
        q.check(file)
        graph = Graph(file)
        node = next(n for n in graph.nodes if n.op_type == "Conv" and layer_of(n) == READER)
        assert node.input[1] not in graph.producer, name  # a float weight
    assert set(int8.files) == {"int8", "int8-fp16"}


def test_settle_keeps_the_best_rung_outside_the_limit_and_climb_reaches_the_last(fp32):
    int8 = settled(outlier(fp32), max_drop=1e-6)
    record = int8.to_json()
    drops = [s["drop_map50_95"] for s in record["selection"]]
    assert len(drops) > 4 and min(drops) > 1e-6
    assert int8.fallbacks == record["selection"][int(np.argmin(drops))]["rescued"]
    before = int8.fallbacks
    while int8.climb():
        assert int8.fallbacks > before
        before = int8.fallbacks
    record = int8.to_json()
    assert record["rescued_by_selection"] + record["rescued_by_validation"] == int8.fallbacks == before
    assert record["share_of_macs"] >= 0.9


@pytest.mark.parametrize(
    ("saturates", "bits", "top"), [(True, 7, 63), pytest.param(False, 8, 127, marks=pytest.mark.slow)]
)
def test_layers_fall_back_for_a_cpu_and_weights_do_not_saturate(fp32, monkeypatch, saturates, bits, top):
    monkeypatch.setattr(Environment, "saturates", saturates)
    int8 = settled(outlier(fp32), max_drop=0.0, target="cpu")
    assert int8.fallbacks >= 1 and int8.to_json()["weight_bits"] == bits
    (file,) = int8.files.values()
    q.check(file, activations="unsigned")
    weights = [numpy_helper.to_array(t) for t in file.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(w.astype(int)).max() for w in weights if w.ndim == 4) == top


def test_layer_fallback_after_qat_uses_no_bias_correction(fp32, monkeypatch):
    model, given = outlier(fp32), pictures()
    ranges = q.calibrate(model, given)
    fixed = ranges.fixed(ranges.thresholds("max"))
    int8 = precisions.Int8(model, fixed, given, Target.load("jetson-orin"), lambda what: None)
    monkeypatch.delattr(q, "bias_shifts")
    monkeypatch.delattr(q, "correct_bias")
    int8.settle(("qat",), Closeness(model, 7), 0.6)
    record = int8.to_json()
    assert record["method"] == "qat" and record["rescued"][0]["layer"] == READER


# --- make


@pytest.fixture
def judged(tmp_path):
    """A network whose own detections are the labels of its images."""
    from ..builds import fitted_inputs

    folder = fitted_inputs(None, tmp_path)
    data = dataset.load(folder / "data" / "data.yaml")
    return data


class Shifted:
    """A session whose boxes are all shifted by 40 px, so that no layer fallback helps."""

    batch = 1

    def __init__(self, session):
        self.session, self.kind, self.layout = session, session.kind, session.layout

    def infer(self, x):
        (out,) = self.session.infer(x)
        out = out.copy()
        out[0, :2] += 40
        return [out]


def make(data, max_drop, bad=(), target="jetson-orin", **more):
    fp32 = to_onnx(short(), (SIZE, SIZE))
    asked = []

    def judge(name, session):
        asked.append(name)
        return accuracy.evaluate(Shifted(session) if name in bad else session, data, data.val, SIZE)

    wanted = ("fp32", "fp16", "int8")
    target = Target.load(target) if isinstance(target, str) else target
    request = precisions.PrecisionRequest(target, wanted, max_drop)
    made = precisions.make(fp32, pictures(), request, lambda session: 0.5, judge, **more)
    return made, asked


def test_each_file_is_judged_once_if_none_loses(judged):
    made, asked = make(judged, max_drop=1.0)
    assert asked == ["fp32", "fp16", "int8", "int8-fp16"] == list(made.judged)
    assert list(made.files) == asked[1:] == list(made.drops)
    assert made.details["int8"]["rescued"] == []
    tail = made.details["fp16"]["fp32_nodes"]
    assert made.details["int8"]["fp32_nodes"] == tail and any("dfl" in name for name in tail)
    names = {n.name for n in made.files["int8"].graph.node}
    assert set(tail) <= names and not any("model.0" in name for name in tail)


def test_custom_target_may_support_int8_fp16_alone(judged):
    own = replace(Target.load("jetson-orin"), name="mine", precisions=("fp32", "int8-fp16"))
    made, asked = make(judged, max_drop=1.0, target=own)
    assert asked == ["fp32", "int8-fp16"] and list(made.files) == ["int8-fp16"]
    assert made.details["int8"]["share_of_macs"] > 0.9


def test_failed_gate_reports_figures_interval_and_fallbacks(judged):
    figures = r"int8 loses 0\.\d+ .*95 %: .* on 4 images.*layers had already fallen back.*INT8 with qat$"
    with pytest.raises(GateError, match=figures):
        make(judged, max_drop=0.02, bad=("int8", "int8-fp16"))


def test_no_layer_falls_back_if_fp16_itself_loses_too_much(judged):
    with pytest.raises(GateError, match=r"fp16 loses .*int8 loses .*") as raised:
        make(judged, max_drop=0.02, bad=("fp16", "int8", "int8-fp16"))
    assert "fallen back" not in str(raised.value)


@pytest.mark.parametrize("limit", [float("nan"), -0.1, 2])
def test_limit_outside_its_range_is_refused(limit):
    with pytest.raises(InputError, match="max_drop: invalid value"):
        precisions.PrecisionRequest(Target.load("cpu"), ("int8",), limit)


def figures(*map50_95, boxes=100):
    """The figures of one file, from the mAP of each class."""
    known = [value for value in map50_95 if value is not None]
    per_class = tuple(
        ClassAccuracy(i, name, boxes, value, value, 0, None) for i, (name, value) in enumerate(zip("abc", map50_95))
    )
    mean = sum(known) / len(known) if known else None
    matches = match([np.zeros((0, 6))], [np.zeros((0, 5))], 1)
    return precisions.Judged(Accuracy(mean, mean, None, 1, 100, 0, per_class), matches, "nothing")


@pytest.mark.filterwarnings("ignore:All-NaN")
@pytest.mark.parametrize(("after", "limit"), [((None, None), 1.0), ((0.5, 0.5), float("nan")), ((0.5, 0.4), 0.01)])
def test_gate_fails_if_the_drop_or_the_limit_is_nan(after, limit):
    with pytest.raises(GateError, match="int8 loses"):
        precisions.gate({"fp32": figures(0.5, 0.5), "int8": figures(*after)}, limit, 0, trainable=False)
    assert precisions.gate({"fp32": figures(0.5, 0.5), "int8": figures(0.5, 0.49)}, 0.01, 0, trainable=False)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_gate_names_the_same_worst_class_as_the_page():
    before, after = figures(0.9, 0.5, 0.5), figures(0.3, 0.4, 0.45)
    few = [replace(entry, boxes=10) if entry.name == "a" else entry for entry in before.accuracy.per_class]
    before = before._replace(accuracy=replace(before.accuracy, per_class=tuple(few)))
    with pytest.raises(GateError, match=r"worst class b -0\.1000"):
        precisions.gate({"fp32": before, "int8": after}, 0.01, 0, trainable=False)


def test_gate_does_not_advise_qat_for_a_cpu(judged):
    with pytest.raises(GateError, match=r"use more validation images$"):
        make(judged, max_drop=0.02, bad=("int8",), target="cpu")


def test_nms_nodes_are_listed_as_fp32_nodes(judged):
    """If FP16 is a flag for the whole network, the areas of the boxes would overflow."""
    made, _ = make(judged, max_drop=1.0, finish=nms.add)
    for name in ("fp16", "int8"):
        nodes = {node.name for node in made.files[name].graph.node}
        added = {node for node in nodes if node.startswith("/nms/")}
        assert len(added) > 50 and added <= set(made.details[name]["fp32_nodes"]) <= nodes


def test_overflowing_nodes_are_listed_as_fp32_nodes(fp32):
    model = outlier(fp32)
    weights = {t.name: t for t in model.graph.initializer}
    for name, factor in (("model.1.conv.weight", 1e4), (f"{READER}.weight", 1e-4)):
        weights[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[name]) * np.float32(factor), name))
    named = q.fp32_nodes(model, q.calibrate(model, pictures(2)))
    assert "/model.1/conv/Conv" in named and "/model.4/cv1/conv/Conv" not in named
