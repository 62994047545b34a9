"""The command `analyze`, on a detector that is correct by construction: its labels are its own detections."""

import json

import numpy as np
import pytest
from edgeprune_device import cli
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.detect import detections
from PIL import Image

from edgeprune.analysis import budgets
from edgeprune.measuring.sessions import TorchSession

from ..small import dataset, network, save


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """best.pt, and a data set labelled with the detections of best.pt; its val images are not valid images."""
    folder = tmp_path_factory.mktemp("inputs")
    model = network(width=0.125)
    save(model, folder / "best.pt", imgsz=64)
    data = dataset(folder / "data", train=24, val=2, size=64)
    session = TorchSession(model.half().float(), 64)
    detected = {}
    for picture in (folder / "data/images/train").iterdir():
        x, _ = preprocess.letterbox(preprocess.decode(picture), 64)
        detected[picture.stem] = detections(session.infer(x), session.kind, classes=3, conf=0.001, multi_label=True)
    # One threshold for all images, so that no unlabelled detection has a higher score than a label.
    least = np.sort(np.concatenate(list(detected.values()))[:, 4])[-150]
    for stem, boxes in detected.items():
        lines = []
        for x1, y1, x2, y2, _, c in np.clip(boxes[boxes[:, 4] >= least], 0, [64, 64, 64, 64, 1, 2]):
            lines.append(f"{int(c)} {(x1 + x2) / 128} {(y1 + y2) / 128} {(x2 - x1) / 64} {(y2 - y1) / 64}")
        (folder / "data/labels/train" / f"{stem}.txt").write_text("\n".join(lines))
    for picture in (folder / "data/images/val").iterdir():
        Image.new("RGB", (64, 64)).save(picture)  # nothing to detect: only training images are used
    return folder / "best.pt", data


def call(capsys, inputs, *words):
    code = cli.main(["analyze", "--weights", str(inputs[0]), "--data", str(inputs[1]), "--target", "cpu", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_analyze_writes_the_record_the_plot_and_the_recommendation(inputs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(budgets.BUDGETS, "macs", (0.9, 0.6, 0.4))
    code, out, err = call(
        capsys, inputs, "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png"), "--quiet"
    )
    assert code == 0, err
    assert err == ""
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["schema_version"] == 1 and record["seconds"] > 0
    assert record["uncut"]["map50_95"] > 0.5  # below 1 because best.pt is stored in half precision
    points = record["rungs"]
    assert [r["budget"] for r in points][:1] == ["macs 0.9"] and len(points) >= 3
    for r in points:
        assert r["macs"] / record["uncut"]["macs"] == pytest.approx(r["value"], abs=0.03)
        assert r["kept"] == pytest.approx(r["map50_95"] / record["uncut"]["map50_95"])
        low, high = r["interval"]
        assert 0 <= low <= high and low - 0.05 <= r["kept"] <= high + 0.05
    losses = [r["predicted_loss"] for r in points]
    assert losses == sorted(losses) and losses[-1] > losses[0] >= 0
    assert f"recommended: --{record['advice']['recommended']} keeps" in out
    assert len(record["groups"]) > 20 and "the most sensitive first" in out
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.png"]


def test_invalid_options_are_reported_in_one_line(inputs, tmp_path, capsys):
    for words, message in (
        (("--criterion", "auto"), "not available in analyze; name one criterion"),
        (("--criterion", "energie"), "did you mean energy"),
        (("--kind", "latency"), "expected one of macs, params, ratio"),
        (("--plot", str(tmp_path / "a.jpg")), ".png"),
        (("--json", str(tmp_path / "none" / "a.json")), "does not exist"),
        (("--imgsz", "64,31"), "expected N, HEIGHT,WIDTH or auto:N, from 32"),
    ):
        code, out, err = call(capsys, inputs, *words)
        assert code == 2 and message in err and err.count("\n") == 1 and not out, (words, err)
    assert not list(tmp_path.iterdir())
