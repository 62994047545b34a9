"""How much a network bears: relations that hold whatever its weights are, then the command on a detector that is right
by construction (its labels are its own detections)."""

import copy
import json

import numpy as np
import pytest
import torch
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.postprocess import detections

from edgeprune.analysis import analyze, budgets, chart, findings, sensitivity, table
from edgeprune.analysis.findings import Advice, Rung
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model.count import Cost
from edgeprune.model.head import has_one_to_one
from edgeprune.pruning import budget
from edgeprune.pruning.channels import trace
from edgeprune.pruning.features import moments

from ..small import dataset, network, save


def pictures(count=8, size=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, size // 8, size // 8, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def hidden(channels):
    """The atoms between the two convolutions of a bottleneck."""
    group = next(g for g in channels.groups if g.producers[:1] == ("model.4.m.0.cv1.conv",))
    assert group.consumers == ("model.4.m.0.cv2.conv",) and not group.frozen
    return group.atoms


def moved(model, channels, gone, *, repaired=True):
    """Divergence when the atoms `gone` go."""
    keep = np.ones(channels.atoms, dtype=bool)
    keep[gone] = False
    seen = moments(model, pictures(), sensitivity._solvable(model, channels)) if repaired else {}
    trial = sensitivity.alone(model, channels, keep, seen)
    judges = pictures(4, seed=1)
    return sensitivity.divergence(sensitivity.predictions(model, judges), sensitivity.predictions(trial, judges))


# -- each group ------------------------------------------------------------------------------------------------------
def test_nothing_cut_moves_nothing_and_more_moves_more(small):
    channels = trace(small)
    atoms = hidden(channels)
    found = [moved(small, channels, atoms[:count]) for count in (0, 2, 6, len(atoms))]
    assert found[0] == 0
    assert 0 < found[1] < found[2] < found[3]


def test_a_channel_that_nobody_reads_costs_nothing(small):
    channels = trace(small)
    atoms = hidden(channels)
    useful = moved(small, channels, atoms[:2])
    with torch.no_grad():
        small.get_submodule("model.4.m.0.cv2.conv").weight[:, :2] = 0
    assert moved(small, channels, atoms[:2]) < 1e-6 * useful


def test_what_another_channel_can_stand_in_for_costs_next_to_nothing(small):
    """Only because the readers are re-solved: silenced alone, the twin is missed."""
    channels = trace(small)
    atoms = hidden(channels)
    made, norm = (small.get_submodule(f"model.4.m.0.cv1.{part}") for part in ("conv", "bn"))
    with torch.no_grad():
        for tensor in (made.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[1] = tensor[0]
    assert moved(small, channels, atoms[1:2]) < 0.02 * moved(small, channels, atoms[1:2], repaired=False)


def test_the_means_of_the_outputs_are_kept(small):
    channels = trace(small)
    keep = np.ones(channels.atoms, dtype=bool)
    keep[hidden(channels)] = False  # all: the weights can do nothing, the batch norm behind can
    seen = moments(small, pictures(), sensitivity._solvable(small, channels))
    trial = sensitivity.alone(small, channels, keep, seen)
    conv, norm = (trial.get_submodule(f"model.4.m.0.cv2.{part}") for part in ("conv", "bn"))
    assert not conv.weight.any()
    before, weight = small.get_submodule("model.4.m.0.cv2.bn"), small.get_submodule("model.4.m.0.cv2.conv").weight
    mean = weight.detach().flatten(1).double() @ seen["model.4.m.0.cv2.conv"].mean
    np.testing.assert_allclose(before.running_mean - norm.running_mean, mean, rtol=1e-4, atol=1e-6)


def test_the_model_is_left_as_it_was(small):
    before = copy.deepcopy(small.state_dict())
    channels = trace(small)
    moved(small, channels, hidden(channels))
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize("config", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml"])
def test_every_head(config):
    """With bins, end to end, end to end without bins: the branch that predicts counts, the other does not."""
    model = network(config, width=0.125)
    head = model.model[-1]
    judges = pictures(2)
    before = sensitivity.predictions(model, judges)
    assert before["scores"].shape[:2] == (2, 3) and before["boxes"].shape[:2] == (2, 4 * head.reg_max)
    assert sensitivity.divergence(before, sensitivity.predictions(model, judges)) == 0
    if has_one_to_one(model):
        idle = copy.deepcopy(model)
        idle.model[-1].cv3[0][-1].bias.data += 1
        assert sensitivity.divergence(before, sensitivity.predictions(idle, judges)) == 0
    for tower in ("cv2", "cv3"):
        changed = copy.deepcopy(model)
        tower = getattr(changed.model[-1], f"one2one_{tower}" if has_one_to_one(model) else tower)
        tower[0][-1].weight.data *= 0.5
        assert sensitivity.divergence(before, sensitivity.predictions(changed, judges)) > 0


def test_every_unit_is_reported_once_in_the_order_of_the_network(small):
    channels = trace(small)
    scores = np.random.default_rng(0).random(channels.atoms)
    units = budget.units(channels, scores, 8)
    found = sensitivity.sensitivity(small, channels, scores, units, pictures(), pictures(2, seed=1))
    assert sorted(g.width for g in found) == sorted(int(u.options[0].sum()) for u in units)
    order = list(channels.out)
    firsts = [order.index(g.layers[0]) for g in found]
    assert firsts == sorted(firsts)
    halves = next(g for g in found if g.layers[0] == "model.2.cv1.conv")  # of the chunk: one decision
    assert halves.width == small.get_submodule("model.2.cv1.conv").out_channels
    for group in found:
        assert 0 < group.macs < 1
        narrow = group.left == group.width
        assert (group.divergence is None) == narrow and (narrow or group.divergence > 0)
    assert any(g.divergence is None for g in found) and any(g.divergence for g in found)


# -- the recommendation ----------------------------------------------------------------------------------------------
def rung(value, kept, spread=0.02):
    interval = None if kept is None else (kept - spread, kept + spread)
    return Rung(f"macs {value}", value, 1, 1, 1, 1, 0.0, kept, kept, kept, interval)


def test_the_largest_cut_in_an_unbroken_row():
    rungs = [rung(v, k) for v, k in ((0.9, 0.99), (0.8, 0.91), (0.7, 0.85), (0.6, 0.92), (0.5, 0.45), (0.4, 0.55))]
    advice = Advice.of(rungs)
    assert (advice.recommended, advice.sure, advice.collapse) == (rungs[1], rungs[0], rungs[4])


def test_no_recommendation_where_nothing_holds_or_nothing_is_known():
    assert Advice.of([rung(0.9, 0.6), rung(0.8, 0.55)]) == Advice(None, None, None)
    assert Advice.of([rung(0.9, None)]) == Advice(None, None, None)


def climbed(kind, kept):
    """The ladder of a network that keeps `kept` of each value; a value that is not named cannot be reached."""
    ladder = object.__new__(budgets.BudgetLadder)

    def cut(asked):
        if asked.value not in kept:
            raise InputError("less than can be reached")
        return rung(asked.value, kept[asked.value])

    ladder._rung = cut
    rungs, unreached = ladder.climb(kind, lambda fraction, what: None)
    return [r.value for r in rungs], unreached


def test_half_a_step_is_added_where_the_recommendation_ends():
    kept = {0.9: 0.99, 0.8: 0.95, 0.75: 0.92, 0.7: 0.8, 0.6: 0.6, 0.5: 0.4}
    assert climbed("macs", kept) == (
        [0.9, 0.8, 0.75, 0.7, 0.6, 0.5], ["macs 0.4: less than can be reached"]
    )  # fmt: skip
    assert climbed("ratio", {0.1: 0.8, 0.05: 0.9, 0.2: 0.6})[0] == [0.05, 0.1, 0.2]
    assert climbed("macs", {v: 1.0 for v in budgets.LADDERS["macs"]})[0] == list(budgets.LADDERS["macs"])
    with pytest.raises(InputError):
        climbed("macs", {})


# -- the whole, by the command -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """best.pt, and a data set whose labels are what best.pt finds; its val pictures are no pictures at all."""
    folder = tmp_path_factory.mktemp("inputs")
    model = network(width=0.125)
    save(model, folder / "best.pt", imgsz=64)
    data = dataset(folder / "data", train=24, val=2, size=64)
    session = TorchSession(model.half().float(), 64)
    found = {}
    for picture in (folder / "data/images/train").iterdir():
        x, _ = preprocess.letterbox(preprocess.decode(picture), 64)
        found[picture.stem] = detections(session.infer(x), session.kind, classes=3, conf=0.001, multi_label=True)
    # One threshold for all pictures: no other detection outranks a label.
    least = np.sort(np.concatenate(list(found.values()))[:, 4])[-150]
    for stem, boxes in found.items():
        lines = []
        for x1, y1, x2, y2, _, c in np.clip(boxes[boxes[:, 4] >= least], 0, [64, 64, 64, 64, 1, 2]):
            lines.append(f"{int(c)} {(x1 + x2) / 128} {(y1 + y2) / 128} {(x2 - x1) / 64} {(y2 - y1) / 64}")
        (folder / "data/labels/train" / f"{stem}.txt").write_text("\n".join(lines))
    for picture in (folder / "data/images/val").iterdir():
        picture.write_text("not a picture")
    return folder / "best.pt", data


def call(capsys, inputs, *words):
    code = cli.main(["analyze", "--weights", str(inputs[0]), "--data", str(inputs[1]), "--target", "cpu", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(budgets.LADDERS, "macs", (0.9, 0.6, 0.4))
    code, out, err = call(
        capsys, inputs, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"), "--quiet"
    )
    assert code == 0, err
    assert err == ""
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["schema_version"] == 1 and found["seconds"] > 0
    assert found["uncut"]["map50_95"] > 0.5  # its own detections, in half precision
    rungs = found["rungs"]
    assert [r["budget"] for r in rungs][:1] == ["macs 0.9"] and len(rungs) >= 3
    for r in rungs:
        assert r["macs"] / found["uncut"]["macs"] == pytest.approx(r["value"], abs=0.03)
        assert r["kept"] == pytest.approx(r["map50_95"] / found["uncut"]["map50_95"])
        low, high = r["interval"]
        assert 0 <= low <= high and low - 0.05 <= r["kept"] <= high + 0.05
    losses = [r["predicted_loss"] for r in rungs]
    assert losses == sorted(losses) and losses[-1] > losses[0] >= 0
    assert f"recommended: --{found['advice']['recommended']} keeps" in out
    assert len(found["groups"]) > 20 and "the most sensitive first" in out
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_mistakes_are_one_line(inputs, tmp_path, capsys):
    for words, said in (
        (("--criterion", "auto"), "one criterion at a time"),
        (("--criterion", "energie"), "did you mean energy"),
        (("--kind", "latency"), "invalid choice"),
        (("--plot", str(tmp_path / "a.jpg")), ".png"),
        (("--json", str(tmp_path / "none" / "a.json")), "does not exist"),
        (("--imgsz", "100"), "multiple of 32"),
    ):
        code, out, err = call(capsys, inputs, *words)
        assert code == 2 and said in err and err.count("\n") == 1 and not out, (words, err)
    assert not list(tmp_path.iterdir())


# -- the plot --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kept", [0.95, 0.3, None])
def test_the_plot_and_the_table_of_any_outcome(kept):
    from edgeprune_device.vision.accuracy import Accuracy

    groups = tuple(findings.GroupSensitivity((f"model.{i}.conv",), 16, 8, 0.1, 0.1 * i) for i in range(30))
    rungs = (rung(0.9, kept), rung(0.8, kept))
    accuracy = Accuracy(0.6, 0.0 if kept is None else 1.0, None, 8, 20, 0, ())
    if kept is None:
        rungs = tuple(Rung(r.budget, r.value, 1, 1, 1, 1, 0.0, 0.0, 0.0, None, None) for r in rungs)
    found = analyze.Analysis(
        "best.pt", "macs", "energy", 8, 96, Cost(2, 2, 2), accuracy, rungs, (), groups, Advice.of(list(rungs))
    )
    assert chart.png(found).startswith(b"\x89PNG")
    said = table.table(found)
    assert {0.95: "recommended: --macs 0.8", 0.3: "recommended: no cut", None: "nothing to recommend"}[kept] in said
    assert "10 between" in said and "model.29.conv" in said and "model.0.conv" in said and "model.15.conv" not in said
