"""architecture: code in a checkpoint's YAML, which stock Ultralytics would run, is refused and never written."""

import ast
import contextlib
import copy
import zipfile
from pathlib import Path

import pytest
import torch
import ultralytics
from edgeprune_device import cli
from edgeprune_device.errors import InputError
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, yaml_model_load

import edgeprune as ep
from edgeprune.model import architecture, checkpoint

from ..small import dataset, network, save

ROW = [-1, 1, "Conv", [64, 3, 2]]


def evil(marker):
    """Code that Ultralytics' eval() would run."""
    return f"[nn.SiLU(), __import__('pathlib').Path({str(marker)!r}).touch()][0]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with evil.pt, good.pt and data/, made once."""
    folder = tmp_path_factory.mktemp("architecture")
    model = network(width=0.125)
    save(model, folder / "good.pt")
    model.yaml["activation"] = evil(folder / "ran")
    save(model, folder / "evil.pt")
    dataset(folder / "data")
    return folder


def test_the_fixture_is_dangerous_in_stock_ultralytics(tmp_path):
    cfg = {**yaml_model_load("yolov8n.yaml"), "activation": evil(tmp_path / "ran")}
    DetectionModel(cfg, nc=3, verbose=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "nn.SiLU()", "torch.nn.ReLU()", "nn.LeakyReLU(0.1)", "nn.LeakyReLU(negative_slope=0.1, inplace=True)",
        "nn.GELU('tanh')", "nn.Hardswish()", "nn.Identity()", "nn.Threshold(0.1, -2)",
    ],
)  # fmt: skip
def test_an_activation_of_torch_equals_ultralytics(text):
    theirs = eval(text, {"torch": torch, "nn": torch.nn})
    assert repr(architecture.activation(text)) == repr(theirs)


@pytest.mark.parametrize(
    "text",
    [
        "nn.SiLU", "SiLU()", "nn.SiLU()()", "nn.Conv2d(3, 3, 1)", "nn.modules.activation.SiLU()", "os.nn.SiLU()",
        "nn.SiLU(*[1])", "nn.LeakyReLU(**{})", "nn.LeakyReLU(nn.SiLU())", "nn.LeakyReLU(9**9**9)",
        "nn.__import__('os')", "nn.MultiheadAttention(9, 1)", "nn.Module()", "nn.Tensor(3)", "nn.GLU(1) or exit()",
        "nn.SiLU(\n", "", "nn.SiLU();x", "(" * 90, "nn.SiLU(" + " " * 200 + ")", 5, ["nn.SiLU()"], None,
        "nn.SiLU(inplace=__import__('os').system('true'))",
    ],
)  # fmt: skip
def test_anything_else_is_refused_as_activation(text):
    with pytest.raises(ValueError, match="activation"):
        architecture.activation(text)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        # a function that Ultralytics can call
        ([-1, 1, "check_requirements", ["x"]], "found layer 'check_requirements'"),
        # downloads the YAML
        ([-1, 1, "DetectionModel", ["https://example.org/a.yaml"]], "found layer 'DetectionModel'"),
        ([-1, 1, "TorchVision", [512, "resnet18"]], "found layer 'TorchVision'"),  # downloads weights
        ([-1, 1, "attempt_download_asset", ["x"]], "found layer"),
        ([-1, 1, "nn.factory_kwargs", [{}]], "found layer"),
        ([-1, 1, "nn.functional", []], "found layer"),
        ([-1, 1, "torchvision.ops.nms", []], "found layer"),
        ([-1, 1, "torch", []], "found layer"),
        ([-1, 1, "no_such_name", []], "found layer"),
        ([-1, 1, "Conv", ["x" * 101]], "argument .* is longer"),
        ([-1, 1, ["Conv"], []], r"found \[-1, 1, \['Conv'\], \[\]\], expected a row"),
        ([-1, 1, "Conv"], r"found \[-1, 1, 'Conv'\], expected a row"),
        ("Conv", "found 'Conv', expected a row"),
    ],
)
def test_a_row_without_a_layer_is_refused(row, reason):
    architecture.check("a.pt", {"backbone": [ROW], "head": [[-1, 1, "nn.Upsample", [None, 2, "nearest"]]]})
    with pytest.raises(InputError, match=rf"a\.pt: unsafe YAML \({reason}.*the checkpoint was not loaded"):
        architecture.check("a.pt", {"backbone": [ROW, row], "head": []})


def test_only_text_and_numbers_are_accepted():
    ring: list = []
    ring.append(ring)
    for yaml in (None, "yolov8n.yaml", {"nc": Path("x")}, {"x": torch.nn.SiLU()}, {"backbone": ring}, {"backbone": 5}):
        with pytest.raises(InputError, match="unsafe YAML"):
            architecture.check("a.pt", yaml)


def test_every_yaml_of_ultralytics_is_accepted():
    files = list((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml"))
    assert len(files) > 20
    for path in files:
        with pytest.raises(InputError) if "TorchVision" in path.read_text() else contextlib.nullcontext():
            architecture.check(path.name, yaml_model_load(path))


COMMANDS = {
    "prune": "prune --weights evil.pt --ratio 0.2",
    "prune with images": "prune --weights evil.pt --ratio 0.2 --data data/data.yaml",
    "prune --portable": "prune --weights evil.pt --ratio 0.2 --portable --criterion l1",
    "finetune": "finetune --weights evil.pt --data data/data.yaml --epochs 1",
    "finetune, teacher": "finetune --weights good.pt --data data/data.yaml --epochs 1 --distill evil.pt",
    "build": "build --weights evil.pt --data data/data.yaml --ratio 0.2 --target generic",
    "build --portable": "build --weights evil.pt --data data/data.yaml --ratio 0.2 --portable --target jetson-orin",
    "export": "export --weights evil.pt --out onnx",
    "analyze": "analyze --weights evil.pt --data data/data.yaml",
    "compare": "compare evil.pt good.pt",
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_no_command_runs_or_writes_the_code(folder, tmp_path, monkeypatch, capsys, words):
    for name in ("evil.pt", "good.pt", "data"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    code = cli.main(words.replace("generic", "jetson-orin").split())
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and "evil.pt: unsafe YAML (found activation" in lines[-1]
    assert not (folder / "ran").exists()
    assert not [p for p in tmp_path.rglob("*.pt") if not p.is_symlink()]


def test_no_verb_accepts_the_code_from_memory(folder):
    small = network(width=0.125)
    small.yaml["activation"] = evil(folder / "ran")
    yolo = YOLO("yolov8n.yaml")
    yolo.model = copy.deepcopy(small)
    for model in (small, yolo, folder / "evil.pt"):
        for verb in (
            lambda m: ep.prune(m, ratio=0.2),
            lambda m: ep.prune(m, ratio=0.2, portable=True),
            lambda m: ep.finetune(m, folder / "data" / "data.yaml", epochs=1),
            lambda m: ep.compare(m, folder / "good.pt"),
        ):
            with pytest.raises(InputError, match=r"unsafe YAML \(found activation"):
                verb(model)
    assert not (folder / "ran").exists()


def test_a_custom_activation_is_kept_by_portable_pruning_and_a_stock_build(tmp_path):
    text = (Path(ultralytics.__file__).parent / "cfg" / "models" / "v8" / "yolov8.yaml").read_text()
    (tmp_path / "yolov8n-own.yaml").write_text(text + "\nactivation: torch.nn.LeakyReLU(0.1)\n")
    save(network(str(tmp_path / "yolov8n-own.yaml"), width=0.125), tmp_path / "own.pt")
    ep.prune(tmp_path / "own.pt", ratio=0.2, portable=True, criterion="l1").save(tmp_path / "pruned.pt")
    again = checkpoint.load(tmp_path / "pruned.pt").model
    assert again.yaml["activation"] == "torch.nn.LeakyReLU(0.1)"
    stock = DetectionModel(copy.deepcopy(again.yaml), verbose=False)
    assert isinstance(stock.model[0].act, torch.nn.LeakyReLU)
    assert {k: v.shape for k, v in stock.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}


def test_hooks_and_unknown_arguments_are_dropped_on_opening(tmp_path):
    """A hook of an allowed class receives the module and its input, and WorldModel's hook installs a package."""
    from ultralytics.nn.tasks import WorldModel

    model = network(width=0.125)
    model.model[0].register_forward_pre_hook(WorldModel.get_text_pe)
    model.model[1].forward = torch.nn.Conv2d.extra_repr
    model.args = {"imgsz": 96, "task": "detect"}
    content = {
        "model": copy.deepcopy(model).half(), "version": "8.4\nimport os",
        "train_args": {
            "imgsz": [96], "mosaic": 0.5, "augmentations": [{"__class_fullname__": "os.system"}],
            "optimizer": "AdamW(__import__)", "hsv_h": {"a": 1}, "task": "detect; x",
        },
    }  # fmt: skip
    torch.save(content, tmp_path / "hooks.pt")
    opened = checkpoint.load(tmp_path / "hooks.pt")
    assert not opened.model.model[0]._forward_pre_hooks and "forward" not in vars(opened.model.model[1])
    opened.model(torch.zeros(1, 3, 64, 64))
    assert opened.imgsz == (96, 96) and "augmentations" not in opened.extra["train_args"]
    opened.model.model[0].register_forward_pre_hook(print)
    checkpoint.save(tmp_path / "again.pt", opened.model, like=opened)
    with zipfile.ZipFile(tmp_path / "again.pt") as archive:
        pickled = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".pkl"))
    assert not [t for t in (b"get_text_pe", b"extra_repr", b"__class_fullname__", b"import", b"; x") if t in pickled]


def test_checkpoints_are_opened_in_one_place():
    """demo/train.py is not a command: it made the built-in weights."""
    openers = {"torch.load", "YOLO", "torch_safe_load", "load_checkpoint"}
    root = Path(ep.__file__).parent
    modules = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in openers
    }
    assert modules == {"model/archive.py", "model/checkpoint.py", "demo/train.py"}
