"""portable: stock Ultralytics rebuilds a portable plan from the checkpoint's YAML, with equal shapes and all
weights.
"""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from edgeprune_device.errors import GateError, InputError

from edgeprune.model import checkpoint
from edgeprune.pruning import budget, criteria, portable, surgery
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import trace
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.prune import ORACLE, oracle

from ..small import dataset, network, save

#: Criterion and budget for each family; every kind of both occurs.
FAMILIES = {
    "yolov5n": ("l1", Budget("ratio", 0.2)),
    "yolov8n": ("l1", Budget("macs", 0.7)),
    "yolov9t": ("bn_scale", Budget("macs", 0.7)),
    "yolov10n": ("bn_scale", Budget("ratio", 0.2)),
    "yolo11n": ("bn_scale", Budget("macs", 0.7)),
    "yolo12n": ("l1", Budget("macs", 0.7)),
    "yolo26n": ("l1", Budget("ratio", 0.2)),
}
TRAINED = ("yolov8n", "yolo26n")


def shrunk(model, criterion, asked, channels=None):
    """(pruned model with its YAML, plan, channels, the parsed YAML)."""
    channels = channels or trace(model)
    layout = portable.read(model, channels, 8)
    scores = criteria.load(criterion)(model, channels, None)
    keep = budget.solve(channels, scores, layout.units(channels, scores), asked)
    plan = PrunePlan.of(channels, keep, budget=str(asked), criterion=criterion)
    cut = surgery.apply(plan, model, channels)
    portable.stamp(cut, layout.describe(channels, keep))
    return cut, plan, channels, layout


#: A user's process with stock Ultralytics and without edgeprune.
STOCK = """
import json, logging, sys, traceback
sys.modules["edgeprune"] = sys.modules["edgeprune_device"] = None
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

messages = []
class Keep(logging.Handler):
    def emit(self, record):
        messages.append(record.getMessage())
LOGGER.addHandler(Keep())
data, trained, *paths = sys.argv[1:]
reports = {}
for path in paths:
    try:
        yolo = YOLO(path)
        shapes = lambda m: {k: list(v.shape) for k, v in m.state_dict().items()}
        was, before = shapes(yolo.model), sum(p.numel() for p in yolo.model.parameters())
        rebuilt = shapes(DetectionModel(yolo.model.yaml, verbose=False))
        report = reports[path] = {"parameters": before, "same": rebuilt == was}
        if any(name in path for name in trained.split(",")):
            messages.clear()
            LOGGER.setLevel(logging.INFO)
            yolo.train(data=data, epochs=1, imgsz=64, batch=4, workers=0, device="cpu", plots=False, val=False,
                       project=path + ".d")
            report["transferred"] = [line for line in messages if line.startswith("Transferred")]
            report["trained"] = sum(p.numel() for p in YOLO(yolo.trainer.last).model.parameters())
    except Exception:
        reports[path] = {"error": traceback.format_exc()[-1500:]}
print("STOCK" + json.dumps(reports))
"""


def check(names, folder):
    """Cut each of the families, and let stock Ultralytics rebuild and train them."""
    data, expected = dataset(folder / "data"), {}
    for name in names:
        criterion, asked = FAMILIES[name]
        model = network(f"{name}.yaml")
        cut, plan, channels, _ = shrunk(model, criterion, asked)
        path = folder / f"{name}-pruned.pt"
        checkpoint.save(path, cut, like=checkpoint.Checkpoint(path, model, {"train_args": {"task": "detect"}}))
        full, left = (sum(p.numel() for p in m.parameters()) for m in (model, cut))
        expected[name] = {"error": oracle(model, cut, plan, channels), "left": left, "share": left / full}
    paths = [str(folder / f"{n}-pruned.pt") for n in names]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(data), ",".join(TRAINED), *paths],
        capture_output=True, text=True, cwd=folder, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": "1"},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("STOCK")]
    assert lines, done.stderr[-2000:]
    reports = json.loads(lines[0][len("STOCK") :])
    for name, path in zip(names, paths):
        report = reports[path]
        assert "error" not in report, report["error"]
        assert report["same"] and report["parameters"] == expected[name]["left"], name
        assert expected[name]["error"] <= ORACLE and expected[name]["share"] < 0.95, name
        if name in TRAINED:
            assert report["trained"] == report["parameters"], name
            items = [line.split()[1].split("/") for line in report["transferred"]]
            assert items and all(a == b for a, b in items), report["transferred"]


def test_stock_ultralytics_rebuilds_and_trains_a_portable_model(tmp_path):
    check(["yolov8n"], tmp_path)


@pytest.mark.slow
def test_stock_ultralytics_rebuilds_every_family(tmp_path):
    check([n for n in FAMILIES if n != "yolov8n"], tmp_path)


def test_only_a_portable_model_can_be_cut_again(small, tmp_path):
    once, plan, channels, layout = shrunk(small, "l1", Budget("macs", 0.8))
    twice, again, *_ = shrunk(once, "l1", Budget("macs", 0.8))
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())
    whole = surgery.apply(plan.then(again), small, channels)
    both = plan.then(again).mask(channels)
    portable.stamp(whole, layout.describe(channels, both))  # two rounds, described from the original
    assert whole.yaml == twice.yaml

    scores = criteria.load("random")(small, channels, None)
    keep = budget.choose(channels, scores, Budget("macs", 0.8), multiple=1)
    with pytest.raises(InputError, match="make the plan again with portable=True"):
        layout.describe(channels, keep)
    free = surgery.apply(PrunePlan.of(channels, keep, budget="", criterion=""), small, channels)
    with pytest.raises(InputError, match="does not describe its network"):
        portable.read(free, trace(free), 8)


def test_a_yaml_that_builds_another_network_is_refused(small):
    cut, plan, channels, layout = shrunk(small, "l1", Budget("macs", 0.8))
    keep = plan.mask(channels)
    with pytest.raises(GateError, match="would not rebuild"):
        portable.stamp(copy.deepcopy(small), layout.describe(channels, keep))  # other shapes
    other = copy.deepcopy(cut)
    other.model[2].m[0].add = False  # the same shapes, another function
    with pytest.raises(GateError, match="the outputs differ"):
        portable.stamp(other, layout.describe(channels, keep))


def test_scales_become_explicit():
    """Values that parse_model derives from the scale: C3k2's c3k (m, l, x), A2C2f's residual (l, x), max_channels."""
    from ultralytics.nn.tasks import yaml_model_load

    for name in ("yolo11m", "yolo12l", "yolov8x", "yolov8n-seg", "yolov9c"):
        config = yaml_model_load(f"{name}.yaml")
        explicit, knobs = portable._explicit(config)
        assert "scales" not in explicit and len(knobs) > 10
        whole = portable._built(config), portable._built(explicit)
        assert portable._difference(*(m.state_dict() for m in whole)) is None


@pytest.mark.parametrize("of", [8, 24, 64, 136, 200, 1000])
def test_hidden_widths_written_as_a_fraction_are_exact(of):
    assert all(int(of * portable._share(width, of)) == width for width in range(1, 2 * of + 1))


def test_widths_around_shortcuts_and_attention_change_together():
    """YOLO26: rows 8, 9 and 10 (shortcut around SPPF, then attention with equal input and output) have one width."""
    model = network("yolo26n.yaml")
    channels = trace(model)
    layout = portable.read(model, channels, 8)
    together = [{layout.knobs[k].row for k in dial.knobs} for dial in layout.dials if len(dial.knobs) > 1]
    assert {8, 9, 10} in together
    moved = [g for dial in layout.dials for g in dial.groups]
    assert len(moved) == len(set(moved)) and not any(channels.groups[g].frozen for g in moved)
    for dial in layout.dials:
        assert (np.diff(dial.options.sum(1)) < 0).all()


def test_reading_the_yaml_changes_neither_model_nor_random_state(small, tmp_path):
    path = save(small, tmp_path / "best.pt")
    before, yaml = copy.deepcopy(small.state_dict()), copy.deepcopy(small.yaml)
    state = torch.random.get_rng_state()
    shrunk(small, "l1", Budget("macs", 0.8))
    assert torch.equal(state, torch.random.get_rng_state()) and small.yaml == yaml
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())
    assert checkpoint.load(path).model.yaml["backbone"] == yaml["backbone"]
