"""A whole build for oriented boxes, with both families of heads: the record, the bundle, the page, and Ultralytics."""

import json
import subprocess
import sys

import numpy as np
import pytest
from edgeprune_device import schema
from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.errors import InputError
from edgeprune_device.service.detections import Lines
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.obb import TASK

import edgeprune as ep
from edgeprune.measuring.sessions import OnnxSession, TorchSession
from edgeprune.model import checkpoint

from .. import oriented

FAMILY = pytest.mark.parametrize("family", oriented.FAMILIES)


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """build(family): the finished Build of a family, made once."""
    made = {}

    def build(family):
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            weights, data = oriented.inputs(folder, family)
            made[family] = ep.build(
                weights=weights, data=data, ratio=0.2, target="jetson-orin", epochs=1, max_drop=1.0, task="obb",
                out=folder / "out", name="small", quiet=True,
            )  # fmt: skip
        return made[family]

    return build


@FAMILY
def test_the_job_prunes_trains_exports_and_packs(builds, family):
    build = builds(family)
    models, stages = build.record["models"], {stage["name"]: stage for stage in build.record["stages"]}
    assert list(models) == ["original", "pruned", "tuned", "fp32", "fp16", "int8", "int8-fp16"]
    assert models["tuned"]["macs"] < models["original"]["macs"] and models["original"]["map50_95"] > 0.1
    assert stages["prune"]["oracle_relative_error"] <= 1e-9 and stages["finetune"]["steps"] == 4
    assert stages["export"]["parity"]["compared"] > 8
    manifest = Bundle.open(build.bundle).manifest
    assert (manifest.task, manifest.output) == ("obb", "end2end" if family in oriented.END2END else "raw")
    assert "--task obb" in build.comparison.reproduce[0]


@FAMILY
def test_the_device_measures_the_hosts_accuracy(builds, family):
    """The bundle's own images, through `edgeprune bench --check`."""
    bundle = Bundle.open(builds(family).bundle)
    options = BenchmarkOptions(runtime="ort", precision="fp32", seconds=0.2, warmup_seconds=0.1, check=True)
    report = run.run_benchmark(bundle, options)
    assert report.accuracy.map50_95 == pytest.approx(report.host_accuracy["map50_95"], abs=1e-9)
    assert report.parity["anchors"] > 20 and report.parity["unmatched"] == 0 and report.parity["box_px"] < 0.01


@FAMILY
def test_the_bundle_is_installed_and_runs(builds, family, tmp_path):
    """`install` measures it against the host's figure; `run` then writes a line for each of its images."""
    build = builds(family)
    for words in (["install", str(build.bundle)], ["run", "--output", str(tmp_path / "lines")]):
        more = ["--root", str(tmp_path / "root"), "--runtime", "ort", "--precision", "fp32"]
        subprocess.run([sys.executable, "-m", "edgeprune", *words, *more], check=True, timeout=120)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    found = [each for line in lines for each in schema.check("detections", line, "line")["detections"]]
    assert len(lines) == 4 and found and all(len(each["corners"]) == 4 for each in found)


@FAMILY
def test_a_notebook_shows_the_figures(builds, family):
    build = builds(family)
    assert f"{build.record['models']['int8']['map50_95']:.3f}" in build._repr_html_()


@FAMILY
@pytest.mark.parametrize("name", ["tuned.pt", "model.fp32.onnx"])
def test_ultralytics_finds_the_same_boxes(builds, family, name):
    """Stock `predict` on the tuned checkpoint and on the ONNX file."""
    from ultralytics import YOLO

    path = builds(family).out / name
    model = YOLO(str(path), task="obb")
    pt = path.suffix == ".pt"
    session = TorchSession(checkpoint.load(path).model, oriented.SIZE) if pt else OnnxSession(path.read_bytes())
    more = {"nms": False} if family in oriented.END2END else {}
    boxes = 0
    for picture in sorted((builds(family).out.parent / "data/images/val").iterdir()):
        image = preprocess.decode(picture)
        x, box = preprocess.letterbox(image, oriented.SIZE)
        rows = TASK.detections(session.infer(x), session.kind, classes=oriented.CLASSES, conf=0.25)
        ours = TASK.undo(rows, box)
        settings = {"imgsz": oriented.SIZE, "rect": False, "conf": 0.25, "device": "cpu", "verbose": False}
        theirs = model.predict(str(picture), **settings, **more)[0].obb.data.numpy()
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(TASK.corners(ours[:, :5]), TASK.corners(theirs[:, :5]), atol=0.5)
        np.testing.assert_allclose(ours[:, 5], theirs[:, 5], atol=1e-3)
        np.testing.assert_array_equal(ours[:, 6], theirs[:, 6])
        boxes += len(ours)
        lines = Lines("0" * 16, ["a", "b", "c"], TASK)
        line = json.loads(lines(0, picture.name, 0, image.shape, (0, 1, 2, 3, 4), ours))
        assert len(schema.check("detections", line, "line")["detections"]) == len(ours)
    assert boxes > 8


@FAMILY
def test_the_page_draws_rotated_boxes(builds, family):
    shown = builds(family).comparison
    assert shown.gallery["task"] == "obb" and len(shown.gallery["pictures"][0]["truth"][0]) == 6
    drawn = shown.html()
    labelled = sum(len(entry["truth"]) for entry in shown.gallery["pictures"])
    assert drawn.count('Z"><title>') >= labelled > 0


@FAMILY
def test_a_notebook_can_draw_and_match_the_boxes(builds, family):
    shown = builds(family).comparison
    picture = next(entry for entry in shown.gallery["pictures"] if entry["found"]["tuned"])
    matched = shown.found(picture, "tuned")
    assert len(matched) == len(picture["found"]["tuned"]) and set(matched) <= {None, *range(len(picture["truth"]))}
    cx, cy, w, h, angle = picture["truth"][0][1:]
    corners = shown.outline(picture["truth"][0])
    np.testing.assert_allclose(corners.mean(0), [cx, cy])
    np.testing.assert_allclose(corners[0] - corners[3], [w * np.cos(angle), w * np.sin(angle)], atol=1e-9)
    np.testing.assert_allclose(np.hypot(*(corners[0] - corners[1])), h)


@FAMILY
def test_compare_reads_every_form(builds, family):
    build = builds(family)
    data = build.out.parent / "data/data.yaml"
    result = ep.compare(build.out / "tuned.pt", build.bundle, data=data, rounds=2, quiet=True, pictures=1)
    rows = {row.name: row for row in result.items}
    assert rows["tuned.pt"].map50_95 == pytest.approx(build.record["models"]["tuned"]["map50_95"])
    assert rows["small:fp32"].map50_95 == pytest.approx(build.record["models"]["fp32"]["map50_95"])


def test_a_task_that_contradicts_the_weights_is_refused(tmp_path):
    weights, data = oriented.inputs(tmp_path, "yolov8")
    given = {"weights": weights, "data": data, "ratio": 0.2, "target": "cpu", "out": tmp_path / "out", "quiet": True}
    with pytest.raises(InputError, match=r"task=detect: contradicts .*best\.pt, whose task is obb"):
        ep.build(**given, task="detect")
    with pytest.raises(InputError, match=r"task: not supported .found 'semantic'"):
        ep.build(**given, task="semantic")
    with pytest.raises(InputError, match="nms: not available for oriented boxes"):
        ep.build(**given, nms=True)  # before the baseline, which would refuse these weights otherwise
    with pytest.raises(InputError, match="not available for oriented boxes"):
        ep.export(weights, nms=True, precision=("fp32",), out=tmp_path / "onnx", quiet=True)
    assert not (tmp_path / "out").exists() and not (tmp_path / "onnx").exists()
