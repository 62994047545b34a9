"""Every family, size and task of Ultralytics' YAMLs: the oracle, and the result in stock Ultralytics.

The default run uses the smallest size of each; the others are `slow`.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.model import checkpoint
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace
from edgeprune.pruning.plan import PrunePlan

from ..plans import steps_of
from ..small import settle

SIZES = {
    "yolov5": "nsmlx",
    "yolov8": "nsmlx",
    "yolov9": "tsmce",
    "yolov10": "nsmblx",
    "yolo11": "nsmlx",
    "yolo12": "nsmlx",
    "yolo26": "nsmlx",
}
TASKS = {"segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
#: The share of channels that may stay frozen at the smallest size: those of the outputs.
FROZEN = {
    "yolov5": 0.02,
    "yolov8": 0.02,
    "yolov9": 0.02,
    "yolov10": 0.025,
    "yolo11": 0.02,
    "yolo12": 0.02,
    "yolo26": 0.005,
}


def _models():
    for family, sizes in SIZES.items():
        yield from ((f"{family}{size}.yaml", i > 0) for i, size in enumerate(sizes))
        if family in ("yolov8", "yolo11", "yolo12", "yolo26"):
            for suffix in TASKS.values():
                yield from ((f"{family}{size}{suffix}.yaml", i > 0) for i, size in enumerate(sizes))
    yield from (("yolov9c-seg.yaml", True), ("yolov9e-seg.yaml", True))


MODELS = [pytest.param(name, marks=[pytest.mark.slow] if slow else []) for name, slow in _models()]


def network(config, kind=None, nc=3):
    """Random weights, and random batch norms with the statistics of their own features. kind: the class, if it is not
    the class of the YAML's task."""
    from ultralytics.nn import tasks

    kinds = {
        "detect": tasks.DetectionModel, "segment": tasks.SegmentationModel, "pose": tasks.PoseModel,
        "obb": tasks.OBBModel, "classify": tasks.ClassificationModel,
    }  # fmt: skip
    torch.manual_seed(0)
    cfg = tasks.yaml_model_load(config)
    task = tasks.guess_model_task(cfg)
    model = (getattr(tasks, kind) if kind else kinds[task])(cfg, nc=nc, verbose=False)
    settle(model, 2, 64)
    model.task, model.names, model.args = task, {i: f"thing{i}" for i in range(nc)}, {"imgsz": 64, "task": task}
    return model.eval()


def plan_for(channels, seed=0):
    """Every prunable group loses up to half at random, in multiples of 8 if its width is one; tied groups lose
    equally.
    """
    rng = np.random.default_rng(seed)
    keep = np.ones(channels.atoms, dtype=bool)
    tied = {g: tie[0] for tie in channels.ties for g in tie}
    counts = {}
    for i, group in enumerate(channels.groups):
        steps = steps_of(channels, i)
        step = 8 if steps % 8 == 0 else 1
        options = range(step, steps // 2 + 1, step)
        if not group.frozen and options:
            gone = counts.setdefault(tied.get(i, i), int(rng.choice(options)))
            keep[rng.choice(group.atoms, gone * len(group.atoms) // steps, replace=False)] = False
    return PrunePlan.of(channels, keep, budget="ratio 0.3", criterion="random")


def pruned(model):
    channels = trace(model)
    plan = plan_for(channels)
    return surgery.apply(plan, model, channels), plan, channels


def outputs(model, picture):
    """Every tensor that the model returns, in float64."""

    def flat(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from flat(part)

    with torch.no_grad():
        return list(flat(model.double().eval()(picture)))


def differences(ours, theirs):
    """The relative difference of each output; features, which have become narrower, do not count."""
    assert len(ours) == len(theirs)
    return torch.stack([(a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs) if a.shape == b.shape])


@pytest.mark.parametrize("config", MODELS)
def test_surgery_equals_masking(config):
    model = network(config)
    cut, plan, channels = pruned(model)
    picture = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    masked, ours = outputs(surgery.masked(plan, model, channels), picture), outputs(cut, picture)
    assert differences(ours, masked).max() <= 1e-9
    assert (differences(ours, outputs(model, picture)) > 1e-4).all()
    assert plan.removed > 0.2 * channels.prunable


@pytest.mark.parametrize(
    ("config", "kind"),
    [("yolov8n-rtdetr.yaml", "RTDETRDetectionModel"), ("yolov8n-worldv2.yaml", "WorldModel")],
)
def test_unsupported_models_are_refused_by_name_although_tracing_handles_them(config, kind, tmp_path):
    model = network(config, kind)
    cut, plan, channels = pruned(model)
    path = tmp_path / "other.pt"
    checkpoint.save(path, cut, like=checkpoint.Checkpoint(path, model, {}))
    with pytest.raises(InputError, match=f"unsupported model .found {kind}, expected a YOLO model for detect, segment"):
        checkpoint.load(path, checkpoint.TASKS)
    picture = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    masked, ours = outputs(surgery.masked(plan, model, channels), picture), outputs(cut, picture)
    assert differences(ours, masked).max() <= 1e-9


@pytest.mark.parametrize("family", SIZES)
def test_the_share_of_frozen_channels_is_limited(family):
    channels = trace(network(f"{family}{SIZES[family][0]}.yaml"))
    assert 1 - channels.prunable / channels.atoms <= FROZEN[family]


@pytest.mark.parametrize("config", ["yolo26n-seg.yaml", "yolo26n-pose.yaml"])
def test_layers_that_only_run_in_training_are_also_cut(config):
    model = network(config)
    cut, plan, channels = pruned(model)
    outputs_of = [m.train()(torch.rand(1, 3, 64, 64)) for m in (model, cut)]
    assert outputs_of[1].keys() == outputs_of[0].keys()
    only_train = [name for name in channels.out if "semseg" in name or "sigma" in name]
    assert only_train and any(len(plan.keep[n]) < plan.widths[n] or n in channels.inp for n in only_train)
    for name in only_train:
        if name in channels.inp and "bn" not in name:
            assert cut.get_submodule(name).in_channels < model.get_submodule(name).in_channels


@pytest.mark.slow
def test_large_models_are_cut_in_seconds():
    """Plan and surgery of YOLOv8x take at most 20 s, and no longer per parameter than for YOLOv8n."""
    seconds, parameters = {}, {}
    for size in "nx":
        model = network(f"yolov8{size}.yaml")
        parameters[size] = sum(p.numel() for p in model.parameters())
        pruned(model)
        start = time.perf_counter()
        pruned(model)
        seconds[size] = time.perf_counter() - start
    assert seconds["x"] <= 20
    assert seconds["x"] / seconds["n"] <= parameters["x"] / parameters["n"]


#: A user's process with stock Ultralytics and without edgeprune.
STOCK = """
import json, sys, traceback
sys.modules["edgeprune"] = sys.modules["edgeprune_device"] = None
import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG

def step(model, task):
    torch.manual_seed(0)
    box = torch.tensor([[0.5, 0.5, 0.5, 0.4], [0.3, 0.4, 0.3, 0.5]])
    batch = {"img": torch.rand(2, 3, 64, 64), "cls": torch.tensor([[0.0], [1.0]]), "bboxes": box,
             "batch_idx": torch.tensor([0.0, 1.0])}
    if task == "classify":
        batch["cls"] = torch.tensor([0, 1])
    if task == "obb":
        batch["bboxes"] = torch.cat([box, torch.tensor([[0.3], [0.6]])], 1)
    if task == "segment":
        batch["masks"] = (torch.rand(2, 16, 16) > 0.5).float()
        batch["sem_masks"] = torch.randint(0, 3, (2, 16, 16))
    if task == "pose":
        batch["keypoints"] = torch.cat([torch.rand(2, 17, 2), torch.full((2, 17, 1), 2.0)], 2)
    model.args = get_cfg(DEFAULT_CFG, {"task": task})
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-4)
    before = {k: v.detach().clone() for k, v in model.named_parameters()}
    loss = model(batch)[0].sum()
    loss.backward()
    optimizer.step()
    moved = sum(not torch.equal(v, before[k]) for k, v in model.named_parameters())
    return bool(torch.isfinite(loss)) and moved > 0.5 * len(before)

reports = {}
for path in sys.argv[2:]:
    try:
        yolo = YOLO(path)
        reports[path] = {
            "parameters": sum(p.numel() for p in yolo.model.parameters()),
            "predicted": len(yolo.predict(sys.argv[1], imgsz=64, verbose=False, save=False)),
            "onnx": yolo.export(format="onnx", imgsz=64, simplify=False, verbose=False),
            "trained": step(YOLO(path).model, yolo.task),
        }
    except Exception:
        reports[path] = {"error": traceback.format_exc()[-1500:]}
print("STOCK" + json.dumps(reports))
"""
#: YOLO11's tasks have YOLOv8's heads on the layers of YOLO11's detector.
STOCK_MODELS = [f"{family}{sizes[0]}" for family, sizes in SIZES.items()] + [
    f"{family}{suffix}" for family in ("yolov8n", "yolo26n") for suffix in TASKS.values()
]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """The results of stock Ultralytics for each pruned checkpoint, in one process without edgeprune; and their
    sizes.
    """
    from PIL import Image

    folder = tmp_path_factory.mktemp("stock")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "a.png")
    expected = {}
    for name in STOCK_MODELS:
        model = network(f"{name}.yaml")
        cut, _, _ = pruned(model)
        path = folder / f"{name}-pruned.pt"
        checkpoint.save(path, cut, like=checkpoint.Checkpoint(path, model, {"train_args": dict(model.args)}))
        assert checkpoint.load(path, checkpoint.TASKS).task == model.task
        expected[name] = sum(p.numel() for p in cut.parameters())
        assert expected[name] < 0.9 * sum(p.numel() for p in model.parameters())
    paths = [str(folder / f"{name}-pruned.pt") for name in STOCK_MODELS]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder / "a.png"), *paths],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("STOCK")]
    assert lines, done.stderr[-2000:]
    return folder, expected, json.loads(lines[0][len("STOCK") :])


@pytest.mark.parametrize("name", STOCK_MODELS)
def test_stock_ultralytics_runs_exports_and_trains_the_pruned_model(stock, name):
    folder, expected, reports = stock
    report = reports[str(folder / f"{name}-pruned.pt")]
    assert "error" not in report, report["error"]
    assert report["parameters"] == expected[name]
    assert report["predicted"] == 1 and report["trained"]
    assert os.path.getsize(report["onnx"]) > 10_000
