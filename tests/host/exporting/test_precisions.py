"""precisions: layers that lose too much leave INT8, and it is said which, why, and by whose verdict."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from edgeprune_device.errors import GateError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.target import Target
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
    """Stands for mAP where there are no labels: 1 less the output divergence with FP32 on its own pictures."""

    def __init__(self, fp32, seed):
        self.pictures = pictures(4, seed)
        self.expected = [q.reference_session(fp32).run(None, {"images": p})[0] for p in self.pictures]
        self.asked = 0

    def __call__(self, session):
        self.asked += 1
        found = [session.infer(p)[0] for p in self.pictures]
        pairs = [q.output_divergence(a, b, session.kind) for a, b in zip(self.expected, found)]
        differs, total = np.sum(pairs, axis=0)
        return 1 - differs / total


def settled(model, max_drop, target="jetson-orin"):
    given = pictures()
    int8 = precisions.Int8(model, q.calibrate(model, given), given, Target.load(target), lambda what: None)
    int8.settle(("max",), Closeness(model, 7), max_drop)
    return int8


def test_a_shift_of_a_bias_holds_whichever_other_layers_are_quantized(fp32):
    ranges = q.calibrate(fp32, pictures())
    whole, part = q.to_int8(fp32, ranges), q.to_int8(fp32, ranges, exclude=["model.11"])
    shifts = q.bias_shifts(fp32, whole, pictures(2))
    alone = q.bias_shifts(fp32, part, pictures(2))
    assert set(alone) < set(shifts)
    assert all(np.allclose(shifts[name], alone[name], atol=1e-6) for name in alone)
    (picture,) = pictures(1, 9)
    expected = q.reference_session(q.correct_bias(fp32, part, pictures(2))).run(None, {"images": picture})[0]
    found = q.reference_session(q.shifted(part, shifts)).run(None, {"images": picture})[0]
    assert np.allclose(expected, found, atol=1e-3)


# --- layer fallback


def test_the_guilty_layer_falls_back_and_the_rest_stays_int8(fp32):
    model = outlier(fp32)
    untouched = settled(model, max_drop=float("inf"))
    int8 = settled(model, max_drop=0.6)
    said = int8.to_json()
    assert untouched.fallbacks == 0 and untouched.to_json()["rescued"] == []
    assert [s["layer"] for s in said["rescued"]][:1] == [READER]
    assert said["rescued_by_selection"] == int8.fallbacks >= 1 and said["rescued_by_validation"] == 0
    drops = [s["drop_map50_95"] for s in said["selection"]]
    assert drops[0] > 1 and drops[-1] <= 0.6 and len(drops) == 1 + [0, 1, 2, 3, 4, 6].index(int8.fallbacks)
    assert said["share_of_macs"] >= 0.9
    for name, file in int8.files.items():
        q.check(file)
        graph = Graph(file)
        node = next(n for n in graph.nodes if n.op_type == "Conv" and layer_of(n) == READER)
        assert node.input[1] not in graph.producer, name  # a float weight
    assert set(int8.files) == {"int8", "int8-fp16"}


def test_where_nothing_is_enough_the_best_rung_is_kept_and_validation_climbs_to_the_end(fp32):
    int8 = settled(outlier(fp32), max_drop=1e-6)
    said = int8.to_json()
    drops = [s["drop_map50_95"] for s in said["selection"]]
    assert len(drops) > 4 and min(drops) > 1e-6
    assert int8.fallbacks == said["selection"][int(np.argmin(drops))]["rescued"]
    before = int8.fallbacks
    while int8.climb():
        assert int8.fallbacks > before
        before = int8.fallbacks
    said = int8.to_json()
    assert said["rescued_by_selection"] + said["rescued_by_validation"] == int8.fallbacks == before
    assert said["share_of_macs"] >= 0.9


@pytest.mark.parametrize(
    ("saturates", "bits", "top"), [(True, 7, 63), pytest.param(False, 8, 127, marks=pytest.mark.slow)]
)
def test_for_a_cpu_layers_fall_back_too_and_weights_do_not_saturate(fp32, monkeypatch, saturates, bits, top):
    monkeypatch.setattr(Environment, "saturates", saturates)
    int8 = settled(outlier(fp32), max_drop=0.0, target="cpu")
    assert int8.fallbacks >= 1 and int8.to_json()["weight_bits"] == bits
    (file,) = int8.files.values()
    q.check(file, activations="unsigned")
    weights = [numpy_helper.to_array(t) for t in file.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(w.astype(int)).max() for w in weights if w.ndim == 4) == top


def test_after_qat_layers_are_judged_as_they_are_written_without_correction(fp32, monkeypatch):
    model, given = outlier(fp32), pictures()
    ranges = q.calibrate(model, given)
    fixed = ranges.fixed(ranges.thresholds("max"))
    int8 = precisions.Int8(model, fixed, given, Target.load("jetson-orin"), lambda what: None)
    monkeypatch.delattr(q, "bias_shifts")
    monkeypatch.delattr(q, "correct_bias")
    int8.settle(("qat",), Closeness(model, 7), 0.6)
    said = int8.to_json()
    assert said["method"] == "qat" and said["rescued"][0]["layer"] == READER


# --- make


@pytest.fixture
def judged(tmp_path):
    """A network whose own detections are the labels of its pictures."""
    from ..builds import fitted_inputs

    folder = fitted_inputs(None, tmp_path)
    data = dataset.load(folder / "data" / "data.yaml")
    return data


class Shifted:
    """A session whose boxes are all off by some pixels: INT8 that no fallback helps."""

    def __init__(self, session):
        self.session, self.kind = session, session.kind

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
    made = precisions.make(fp32, pictures(), target, wanted, max_drop, lambda session: 0.5, judge, **more)
    return made, asked


def test_every_file_is_judged_once_where_none_loses(judged):
    made, asked = make(judged, max_drop=1.0)
    assert asked == ["fp32", "fp16", "int8", "int8-fp16"] == list(made.judged)
    assert list(made.files) == asked[1:] == list(made.drops)
    assert made.said["int8"]["rescued"] == []
    tail = made.said["fp16"]["fp32_nodes"]
    assert made.said["int8"]["fp32_nodes"] == tail and any("dfl" in name for name in tail)
    names = {n.name for n in made.files["int8"].graph.node}
    assert set(tail) <= names and not any("model.0" in name for name in tail)


def test_a_target_of_the_users_own_may_take_int8_fp16_alone(judged):
    own = replace(Target.load("jetson-orin"), name="mine", precisions=("fp32", "int8-fp16"))
    made, asked = make(judged, max_drop=1.0, target=own)
    assert asked == ["fp32", "int8-fp16"] and list(made.files) == ["int8-fp16"]
    assert made.said["int8"]["share_of_macs"] > 0.9


def test_validation_asks_for_more_and_the_gate_tells_the_figures_and_the_interval(judged):
    figures = r"int8 loses 0\.\d+ .*95 %: .* on 4 pictures.*layers had already fallen back.*--qat"
    with pytest.raises(GateError, match=figures):
        make(judged, max_drop=0.02, bad=("int8", "int8-fp16"))


def test_where_fp16_itself_loses_too_much_no_layer_falls_back_for_nothing(judged):
    with pytest.raises(GateError, match=r"fp16 loses .*int8 loses .*") as told:
        make(judged, max_drop=0.02, bad=("fp16", "int8", "int8-fp16"))
    assert "fallen back" not in str(told.value)


def test_for_a_cpu_the_gate_does_not_advise_what_build_refuses(judged):
    with pytest.raises(GateError, match=r"more validation pictures decide$"):
        make(judged, max_drop=0.02, bad=("int8",), target="cpu")


def test_nms_inside_the_file_is_named_as_what_must_stay_fp32(judged):
    """Where FP16 is a flag for the whole network, the areas of its boxes would overflow."""
    made, _ = make(judged, max_drop=1.0, finish=nms.add)
    for name in ("fp16", "int8"):
        nodes = {node.name for node in made.files[name].graph.node}
        added = {node for node in nodes if node.startswith("/nms/")}
        assert len(added) > 50 and added <= set(made.said[name]["fp32_nodes"]) <= nodes


def test_what_must_stay_fp32_is_named_where_it_would_overflow(fp32):
    model = outlier(fp32)
    weights = {t.name: t for t in model.graph.initializer}
    for name, factor in (("model.1.conv.weight", 1e4), (f"{READER}.weight", 1e-4)):
        weights[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[name]) * np.float32(factor), name))
    named = q.fp32_nodes(model, q.calibrate(model, pictures(2)))
    assert "/model.1/conv/Conv" in named and "/model.4/cv1/conv/Conv" not in named
