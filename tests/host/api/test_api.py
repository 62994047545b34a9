"""The Python API: the public names, the results, and verbs that take results of other verbs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from edgeprune_device.errors import InputError

import edgeprune as ep
from edgeprune.model import checkpoint

from ... import networks
from ..small import dataset, save, short

PUBLIC = {
    "Accuracy", "Analysis", "Build", "Bundle", "Comparison", "Cost", "EdgepruneError", "Exported", "Finetuned",
    "GateError", "InputError", "PrunePlan", "Pruned", "Target", "__version__", "analyze", "build", "compare",
    "embedded_demo", "export", "finetune", "prune",
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return save(short(), folder / "best.pt"), dataset(folder / "data", train=16, val=4)


@pytest.fixture(scope="module")
def pruned(inputs):
    weights, data = inputs
    return ep.prune(weights, ratio=0.2, data=data, imgsz=96, quiet=True)


def test_the_public_names_are_pinned_and_exist():
    assert set(ep.__all__) == PUBLIC == set(dir(ep)) and len(ep.__all__) == len(PUBLIC)
    for name in ep.__all__:
        assert getattr(ep, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prone'"):
        _ = ep.prone


def test_type_checkers_see_the_names_that_exist():
    """The imports under TYPE_CHECKING and the table of lazy imports list the same names from the same modules."""
    tree = ast.parse(Path(ep.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {(n.module, a.name) for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == {(module, name) for module, names in ep._MODULES.items() for name in names}
    assert {name for _, name in seen} | {"__version__"} == PUBLIC


def test_the_import_loads_no_torch():
    code = "import sys, edgeprune\nprint([m for m in ('torch', 'ultralytics', 'onnx', 'cv2') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_submodule_has_the_name_of_a_public_function():
    """An imported submodule of the same name would replace the function in the package."""
    code = (
        "import importlib, pkgutil, edgeprune as ep\n"
        "names = {m.name for m in pkgutil.iter_modules(ep.__path__)}\n"
        "assert not names & set(ep.__all__), names & set(ep.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


TYPED = """
import edgeprune as ep

pruned = ep.prune("best.pt", ratio=0.2)
reveal_type(pruned)
reveal_type(pruned.after.macs)
reveal_type(ep.finetune(pruned, "data.yaml").after.map50_95)
reveal_type(ep.export(pruned, "data.yaml").files)
reveal_type(ep.compare("best.pt", pruned, ("int8", "model.int8.onnx")).save_html("report.html"))
reveal_type(ep.analyze(pruned, "data.yaml").advice.recommended)
reveal_type(ep.build(target="jetson-orin", ratio=0.2).bundle)
ep.prune("best.pt", ratoi=0.2)
ep.build(ratio=0.2)
"""


def test_a_users_type_checker_infers_the_types(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "mine.py").write_text(TYPED)
    # Other libraries' types are skipped: checking torch's takes a minute.
    others = "[mypy-torch.*,ultralytics.*,onnx.*,numpy.*,matplotlib.*,PIL.*,nacl.*,yaml.*]\nfollow_imports = skip\n"
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = silent\nignore_missing_imports = true\n" + others)
    done = subprocess.run([sys.executable, "-m", "mypy", "mine.py"], cwd=tmp_path, capture_output=True, text=True)
    lines = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if line.startswith("mine.py")]
    revealed = [line.split('"')[1].replace("builtins.", "") for line in lines if "Revealed" in line]
    assert revealed == [
        "edgeprune.api.prune.Pruned",
        "int",
        "float | None",
        "dict[str, pathlib.Path]",
        "pathlib.Path",
        "edgeprune.analysis.findings.BudgetPoint | None",
        "pathlib.Path",
    ], done.stdout
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 2 and "ratoi" in errors[0] and "target" in errors[1], done.stdout


def test_verbs_accept_results_of_other_verbs(inputs, pruned, tmp_path):
    weights, data = inputs
    tuned = ep.finetune(pruned, data, epochs=1, imgsz=96, distill=weights, quiet=True)
    assert tuned.parameters == pruned.after.parameters < pruned.before.parameters
    assert (tuned.epochs, tuned.steps, tuned.batch) == (1, 4, 4)
    files = ep.export(tuned, data, imgsz=96, max_drop=1, out=tmp_path / "onnx", quiet=True)
    assert set(files.files) == {"fp32", "fp16", "int8", "int8-fp16"} == set(files.accuracy)
    assert all(path.is_file() for path in files.files.values())
    comparison = ep.compare(
        ("original", weights), ("pruned", pruned), ("tuned", tuned), files, data=data, imgsz=96, rounds=3, quiet=True
    )
    names = ["original", "pruned", "tuned", "model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx",
             "model.int8-fp16.onnx"]  # fmt: skip
    assert [row.name for row in comparison.items] == names
    rows = {row.name: row for row in comparison.items}
    assert rows["tuned"].map50_95 == pytest.approx(tuned.after.map50_95) and rows["tuned"].macs == pruned.after.macs
    assert rows["tuned"].layers == rows["model.fp32.onnx"].layers == rows["model.int8-fp16.onnx"].layers
    assert {name: after for name, (_, after) in pruned.layers.items()} == dict(rows["pruned"].layers)
    assert rows["model.int8.onnx"].caveat and not rows["model.fp32.onnx"].caveat
    for row in comparison.items:
        assert set(row.stages_ms) == {"decode", "pre", "infer", "post"} and len(row.latency_ms["samples"]) == 3
        assert row.fps_end_to_end < row.fps_inference_only
    assert [row.path for row in comparison.items[1:3]] == ["(in memory)"] * 2  # not the file that they were loaded from
    assert comparison.reproduce == ()  # it is in memory only, so no command line can measure it again
    assert len(comparison.gallery["pictures"]) == 4 and list(comparison.gallery["pictures"][0]["found"]) == names

    page = comparison.save_html(tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "model.int8-fp16.onnx" in page
    again = ep.Comparison.from_json(json.loads(comparison.save_json(tmp_path / "c.json").read_bytes()))
    assert str(again) == str(comparison) and again.html() == comparison.html()
    with pytest.raises(InputError, match="not a comparison"):
        ep.Comparison.from_json({"schema_version": 1})
    with pytest.raises(InputError, match="damaged"):
        ep.Comparison.from_json({**comparison.to_json(), "items": [{"size": 1}]})
    untimed = {**comparison.to_json(), "items": [{**vars(row), "latency_ms": None} for row in comparison.items]}
    text = str(ep.Comparison.from_json(untimed))  # as in a build that failed before the timing
    assert "mAP: 4 images" in text and "ms, x, FPS" not in text


def test_accuracy_on_chosen_images_states_their_number_and_an_interval(tmp_path):
    data = networks.scenes(tmp_path, train=1, val=12)
    weights = networks.path("yolov8")
    comparison = ep.compare(weights, data=data, val_images=6, rounds=1, quiet=True)
    low, high = comparison.items[0].map50_95_interval
    assert low <= comparison.items[0].map50_95 <= high and comparison.items[0].pictures == 6
    assert "mAP: 6 of 12 images, evenly spread" in str(comparison)
    assert f"95 % interval of mAP50-95 {low:.3f} to {high:.3f}" in str(comparison)
    assert "6 of 12, evenly spread" in comparison.html() and "--val-images 6" in comparison.reproduce[0]
    assert str(ep.Comparison.from_json(json.loads(json.dumps(comparison.to_json())))) == str(comparison)
    everything = ep.compare(weights, data=data, val_images=50, rounds=1, quiet=True)
    assert everything.items[0].map50_95_interval is None and "mAP: 12 images" in str(everything)


@pytest.mark.parametrize("what", ["pruned", "finetuned", "exported", "compared", "analyzed"])
def test_results_print_and_display_in_a_notebook(inputs, pruned, what):
    weights, data = inputs
    given = {"imgsz": 96, "quiet": True}
    made = {
        "pruned": lambda: pruned,
        "finetuned": lambda: ep.finetune(weights, data, epochs=1, **given),
        "exported": lambda: ep.export(weights, data, precision=("fp32",), **given),
        "compared": lambda: ep.compare(weights, data=data, rounds=2, **given),
        "analyzed": lambda: ep.analyze(weights, data, kind="ratio", **given),
    }[what]()
    shown, text = made._repr_html_(), str(made)
    assert shown.lstrip().startswith("<") and len(text.splitlines()) >= 1 and "None" not in text + shown


def test_a_network_in_memory_is_accepted_and_not_changed(inputs):
    from ultralytics import YOLO

    weights, _ = inputs
    yolo = YOLO(str(weights))
    before = {k: v.clone() for k, v in yolo.model.state_dict().items()}

    class Mine(YOLO):
        pass

    for model in (yolo, Mine(str(weights)), yolo.model, checkpoint.load(weights)):
        result = ep.prune(model, macs=0.8, imgsz=96, quiet=True)
        assert result.after.macs <= 0.801 * result.before.macs and result.accuracy is None
    after = yolo.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_network_of_a_result_works_in_stock_ultralytics(pruned, tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    yolo = pruned.yolo
    assert sum(p.numel() for p in yolo.model.parameters()) == pruned.after.parameters
    yolo.predict(picture, imgsz=96, verbose=False)
    assert ep.prune(yolo, ratio=0.1, imgsz=96, quiet=True).after.parameters < pruned.after.parameters
    yolo.fuse()
    with pytest.raises(InputError, match="fused"):
        ep.prune(yolo, ratio=0.1, quiet=True)
    path = pruned.save(tmp_path / "pruned.pt")
    assert checkpoint.load(path).model.state_dict().keys() == pruned.model.state_dict().keys()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w, d: ep.prune(w), r"give exactly one of ratio, .*\(found 0\)"),
        (lambda w, d: ep.prune(w, ratio=0.2, macs=0.5), r"give exactly one of ratio, .*\(found 2\)"),
        (lambda w, d: ep.prune(w, ratio=1.5), r"^ratio: .*found '1.5', expected a number in"),
        (lambda w, d: ep.prune("gone.pt", ratio=0.2), "gone.pt: no such file"),
        (lambda w, d: ep.prune(42, ratio=0.2), "found int, expected a .pt file"),
        (lambda w, d: ep.prune(torch.nn.Conv2d(3, 8, 3), ratio=0.2), "found Conv2d, expected a YOLO"),
        (lambda w, d: ep.compare(), "at least one"),
        (lambda w, d: ep.compare(w, pictures=-1), "^pictures: "),
        (lambda w, d: ep.compare((w, w, w)), "found 3 values"),
        (lambda w, d: ep.export(w, precision="fp32,int9"), "found 'fp32,int9'.*did you mean int8"),
        (lambda w, d: ep.embedded_demo(0, 4), "found 0 for training and 4"),
        (lambda w, d: ep.analyze(w, d, kind="channels"), "macs, params, ratio"),
        (lambda w, d: ep.export(w), "give data"),
        (lambda w, d: ep.finetune(w, d, out="tuned.onnx"), "ends in .pt"),
        (lambda w, d: ep.finetune(w, d, qat=-1), "^qat: "),
        (lambda w, d: ep.build(target="jetson-orin", ratio=0.2, weights=w), "data=data.yaml: missing"),
        (lambda w, d: ep.Build.open("nowhere"), "nowhere: no build in this folder"),
    ],
)
def test_invalid_use_raises_one_clear_error(inputs, call, says):
    with pytest.raises(ep.InputError, match=says):
        call(*inputs)
