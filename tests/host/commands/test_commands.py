"""The command line: results go to standard output; a user's mistake is one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from edgeprune_device import cli
from edgeprune_device.errors import InputError

import edgeprune as ep
from edgeprune.model import checkpoint
from edgeprune.model.count import count
from edgeprune.pruning.plan import PrunePlan

from ..small import dataset, network, save, short


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save(short(), folder / "best.pt")
    dataset(folder / "data", train=12, val=4)
    return folder


@pytest.fixture
def here(inputs, tmp_path, monkeypatch):
    """A working folder that holds only best.pt and data/."""
    (tmp_path / "best.pt").write_bytes((inputs / "best.pt").read_bytes())
    (tmp_path / "data").symlink_to(inputs / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *words):
    code = cli.main([str(w) for w in words])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_command_has_help():
    done = subprocess.run([sys.executable, "-m", "edgeprune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in ("build", "analyze", "prune", "finetune", "export", "compare", "targets", "bench", "info"):
        assert f"\n  {command} " in done.stdout
        reply = subprocess.run([sys.executable, "-m", "edgeprune", command, "--help"], capture_output=True, text=True)
        assert reply.returncode == 0 and "usage: edgeprune " + command in reply.stdout


def test_help_imports_neither_torch_nor_ultralytics():
    code = (
        "import sys\nfrom edgeprune_device import cli\ncli.main(['--help'])\n"
        "print([m for m in ('torch', 'ultralytics', 'onnx', 'onnxruntime') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "--ratio", "0.2", "--data", "data"),
        ("finetune", "--data", "data", "--epochs", "1"),
        ("analyze", "--data", "data"),
        ("export", "--precision", "fp32"),
        ("build", "--ratio", "0.2", "--target", "cpu", "--data", "nowhere"),
        ("compare", "--rounds", "1"),
    ],
)  # fmt: skip
def test_every_command_warns_about_training_with_rect_images(here, capsys, words):
    torch.save({"model": short(), "train_args": {"imgsz": 96, "rect": True}}, here / "rect.pt")
    command, *others = words
    weights = ("rect.pt",) if command == "compare" else ("--weights", "rect.pt")
    _, out, err = call(capsys, command, *weights, *others)
    assert f"{out}{err}".count("rect.pt: trained with rect=True, on images of varying shape; the input is 96") == 1


@pytest.mark.parametrize("command", ["prune", "finetune", "analyze", "export", "build"])
def test_a_folder_or_a_url_as_weights_is_refused(here, capsys, command):
    (here / "train/weights").mkdir(parents=True)
    (here / "best.pt").rename(here / "train/weights/best.pt")
    words = {"prune": ("--ratio", "0.2"), "build": ("--ratio", "0.2", "--target", "cpu")}.get(command, ())
    more = (*words, "--data", "data")
    code, _, err = call(capsys, command, "--weights", "train", *more)
    assert code == 2 and "train: a folder, not a file; give train/weights/best.pt" in err
    code, _, err = call(capsys, command, "--weights", "https://example.org/best.pt", *more)
    assert (
        code == 2
        and "'https://example.org/best.pt', expected a path); URLs are not accepted; download the file first" in err
    )


def test_a_hint_with_a_path_can_be_pasted(here, capsys):
    (here / "my run").mkdir()
    (here / "my run/build.json").write_text('{"stages": []}')
    with pytest.raises(InputError, match="edgeprune build --resume --out 'my run'"):
        ep.Build.open("my run")


def test_prune_finetune_export_and_compare_run_in_sequence(here, capsys):
    code, out, err = call(capsys, "prune", "--weights", "best.pt", "--ratio", "0.2", "--data", "data/data.yaml")
    assert code == 0, err
    assert "chosen by" in out and Path("best-pruned.pt").is_file() and Path("best-pruned.json").is_file()
    models = (checkpoint.load(f).model for f in ("best.pt", "best-pruned.pt"))
    before, after = (sum(p.numel() for p in m.parameters()) for m in models)
    assert f"{before:,}" in out and f"{after:,}" in out and after < 0.85 * before

    words = ["--weights", "best-pruned.pt", "--data", "data/data.yaml", "--epochs", "1", "--out", "tuned.pt"]
    code, out, err = call(capsys, "finetune", *words)
    assert code == 0, err
    assert "3 steps of 4 images" in out and f"{after:,} parameters" in out
    assert not [p for p in here.iterdir() if p.name.startswith(".")]

    code, out, err = call(
        capsys, "export", "--weights", "tuned.pt", "--data", "data/data.yaml", "--max-drop", "1", "--out", "onnx"
    )
    assert code == 0, err
    assert {p.name for p in Path("onnx").iterdir()} == {
        "model.fp32.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-fp16.onnx", "model.fp32.device.onnx",
        "model.fp16.device.onnx", "model.int8.device.onnx", "model.int8-fp16.device.onnx",
    }  # fmt: skip

    items = ["best.pt", "best-pruned.pt", "tuned.pt", "onnx/model.fp32.onnx", "onnx/model.int8.onnx"]
    code, out, err = call(capsys, "compare", *items, "--data", "data/data.yaml", "--rounds", "5", "--json", "c.json")
    assert code == 0, err
    rows = json.loads(Path("c.json").read_text())["items"]
    assert [r["name"] for r in rows] == [Path(i).name for i in items]
    assert rows[2]["map50_95"] == pytest.approx(rows[3]["map50_95"], abs=1e-3)  # .pt and .onnx share the evaluator
    assert rows[1]["parameters"] == rows[2]["parameters"] == after
    assert rows[3]["parameters"] is None and all(r["latency_ms"]["p50"] > 0 for r in rows)
    assert len([line for line in out.splitlines() if line.startswith(("best", "tuned", "model."))]) == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--json", "best.pt"], "--json: invalid value (found 'best.pt', expected a file that ends in .json)"),
        (["--html", "best.pt"], "--html: invalid value (found 'best.pt', expected a file that ends in .html"),
        (["--html", "none/a.html"], "the folder none does not exist"),
        (["--pictures", "-1"], "--pictures: invalid value (found '-1'"),
    ],
)
def test_compare_refuses_invalid_options_before_measuring(here, capsys, words, says):
    before = Path("best.pt").read_bytes()
    code, out, err = call(capsys, "compare", "best.pt", *words)
    assert (code, out) == (2, "") and says in err and len(err.splitlines()) == 1
    assert Path("best.pt").read_bytes() == before


def test_compare_shows_a_report_beside_measured_models(here, capsys, built_report):
    code, out, err = call(capsys, "compare", "best.pt", built_report, "--rounds", "3")
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.startswith("report.json:fp32 *"))
    assert row and "from another run" in out


@pytest.fixture
def built_report(here, capsys):
    """A real report: `bench` of a bundle with an exported model."""
    from edgeprune.data.dataset import load
    from edgeprune.workflow import pack

    assert call(capsys, "export", "--weights", "best.pt", "--precision", "fp32", "--out", "onnx")[0] == 0
    data = load("data/data.yaml")
    file = Path("onnx/model.fp32.onnx")
    described = {"pictures": len(data.val), "boxes": int(data.boxes(data.val).sum())}
    pack.pack(
        Path("small.epb"),
        pack.Contents(
            name="small",
            target="cpu",
            task="detect",
            names=data.names,
            imgsz=96,
            models={"fp32": {"map50": 0.0, "map50_95": 0.0, "small_map50_95": None, "pictures": len(data.val)}},
            files={"fp32": file},
            engines={},
            plans={},
            evaluation=pack.evaluation_set(data, data.val),
            described=described,
            lineage={},
        ),
    )
    words = ["small.epb", "--seconds", "0.5", "--warmup", "0.5", "--threads", "1", "--report", "report.json"]
    assert call(capsys, "bench", *words)[0] == 0
    return Path("report.json")


def test_prune_without_images_prints_the_criterion(here, capsys):
    code, out, err = call(capsys, "prune", "--weights", "best.pt", "--ratio", "0.1", "--out", "p.pt")
    assert code == 0 and "no --data" in err and "bn_scale" in out


def test_portable_prune_writes_a_yaml_with_the_pruned_widths(tmp_path, capsys, monkeypatch):
    """The checkpoint's YAML builds the pruned network, and the plan contains the same YAML."""
    monkeypatch.chdir(tmp_path)
    save(network("yolov8n.yaml"), "best.pt")
    words = ["--weights", "best.pt", "--macs", "0.8", "--portable", "--criterion", "l1", "--out", "p.pt"]
    code, _, err = call(capsys, "prune", *words)
    assert code == 0, err
    model = checkpoint.load("p.pt").model
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in type(model)(model.yaml, verbose=False).state_dict().items()} == shapes
    whole = checkpoint.load("best.pt").model.state_dict()
    assert any(v.shape != shapes[k] for k, v in whole.items())
    plan = PrunePlan.load("p.json")
    assert plan.yaml == model.yaml and plan.budget == "macs 0.8"


@pytest.mark.parametrize("task", ["seg", "pose", "obb", "cls"])
def test_prune_without_images_accepts_every_task(task, tmp_path, capsys, monkeypatch):
    from ultralytics import YOLO

    monkeypatch.chdir(tmp_path)
    model = YOLO(f"yolov8n-{task}.yaml").model
    for module in model.modules():  # the scales of an untrained network are equal
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 2, generator=torch.Generator().manual_seed(module.num_features))
    save(model, "best.pt")
    code, _, err = call(capsys, "prune", "--weights", "best.pt", "--macs", "0.8", "--out", "p.pt")
    assert code == 0, err
    sizes = [count(checkpoint.load(f, checkpoint.TASKS).model, (96, 96)).macs for f in ("best.pt", "p.pt")]
    assert 0.78 <= sizes[1] / sizes[0] <= 0.802
    (tmp_path / "data.yaml").write_text("train: .\nval: .\nnames: [a]\n")
    words = ["--target", "cpu", "--weights", "best.pt", "--data", "data.yaml"]
    code, _, err = call(capsys, "build", "--macs", "0.8", *words)
    refused = (
        "no images in" if task == "obb" else "task"
    )  # a build takes oriented boxes, and comes as far as the images
    assert code == 2 and refused in err and err.count("\n") == 1


def test_a_build_of_weights_that_detect_nothing_stops_with_one_line(here, capsys):
    words = ["--target", "cpu", "--weights", "best.pt", "--data", "data/data.yaml", "--quiet"]
    code, out, err = call(capsys, "build", "--macs", "0.8", *words)
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    assert "detects almost nothing" in err and "--allow-poor-baseline" in err


def bad(*words, says, make=None):
    return pytest.param(words, says, make, id=" ".join(words)[:60])


BUILD = ("build", "--target", "jetson-orin")
OURS = ("--weights", "best.pt", "--data", "data/data.yaml")


@pytest.mark.parametrize(
    ("words", "says", "make"),
    [
        bad(*BUILD, *OURS, "--ratio", "1.0", says="expected a number in [0, 1)"),
        bad(*BUILD, *OURS, "--ratio", "nan", says="expected a number in [0, 1)"),
        bad(*BUILD, *OURS, "--ratio", "much", says="found 'much', expected a number"),
        bad(*BUILD, *OURS, says="one of the arguments --ratio"),
        bad(*BUILD, *OURS, "--ratio", "0.2", "--imgsz", "640x384", says="expected N, HEIGHT,WIDTH or auto:N"),
        bad(*BUILD, *OURS, "--ratio", "0.97", "--allow-poor-baseline", says="largest ratio for this model"),
        bad(
            *BUILD,
            *OURS,
            "--ratio",
            "0.2",
            "--criterion",
            "magic",
            says="--criterion: unknown criterion (found 'magic'",
        ),
        bad(*BUILD, *OURS, "--ratio", "0.2", "--precision", "fp32,fp8", says="fp8"),
        bad(*BUILD, "--ratio", "0.2", "--weights", "best.pt", says="--data data.yaml: missing"),
        bad(*BUILD, "--ratio", "0.2", "--data", "data/data.yaml", says="--weights best.pt: missing"),
        bad(*BUILD, "--ratio", "0.2", "--weights", "none.pt", "--data", "data/data.yaml", says="none.pt: no such file"),
        bad(*BUILD, "--ratio", "0.2", "--weights", "best.pt", "--data", "no.yaml", says="no.yaml: no such file"),
        bad("build", *OURS, "--ratio", "0.2", "--target", "jetson-oren", says="jetson-orin"),
        bad(*BUILD, *OURS, "--ratio", "0.2", "--device", "7", says="device"),
        bad("prune", "--weights", "cut.pt", "--ratio", "0.2", says="cut.pt: damaged", make="cut.pt"),
        bad(
            "prune",
            "--weights",
            "best.pt",
            "--ratio",
            "0.1",
            "--imgsz",
            "auto:96",
            says="--imgsz auto:96: needs images; give --data data.yaml",
        ),
        bad("prune", "--weights", "best.pt", "--ratio", "0.1", "--out", "plan.json", says="ends in .pt"),
        bad("prune", "--weights", "best.pt", "--ratio", "2", says="expected a number in [0, 1)"),
        bad("prune", "--weights", "best.pt", "--ratio", "0.1", "--criterion", "energy", says="give --data"),
        bad("finetune", *OURS, "--epochs", "0", says="epochs"),
        bad("finetune", *OURS, "--lr", "7", says="--lr: invalid value (found '7'"),
        bad("export", "--weights", "best.pt", says="--data"),
        bad("compare", "gone.onnx", says="gone.onnx: no such file"),
        bad("compare", "data/data.yaml", says="unknown file type (found '.yaml'"),
        bad("compare", "noise.onnx", says="not an ONNX file", make="noise.onnx"),
        bad("compare", "noise.epb", says="noise.epb", make="noise.epb"),
        bad("compare", "best-report.json", says="best-report.json", make="best-report.json"),
        bad("compare", "best.pt", "--rounds", "0", says="at least 1"),
        bad("bild", "--ratio", "0.2", says="build"),
    ],
)
def test_invalid_use_is_one_line_and_exit_code_2(here, capsys, words, says, make):
    if make:
        (here / make).write_bytes((here / "best.pt").read_bytes()[:5000])
    before = sorted(p.name for p in here.iterdir())
    code, out, err = call(capsys, *words)
    lines = [line for line in err.splitlines() if line.startswith("edgeprune")]
    assert code == 2, err
    assert len(lines) == 1 and says in lines[0], err
    assert "Traceback" not in err and out == ""
    left = sorted(p.name for p in here.iterdir())
    assert left == before or not [p for p in here.rglob("*") if p.suffix in (".pt", ".epb") and p.name not in before]


def test_a_criterion_without_its_data_is_refused_before_measuring(here, capsys, monkeypatch):
    from edgeprune.pruning import latency

    monkeypatch.setattr(latency, "fit", lambda *words, **more: pytest.fail("measured first"))
    code, _, err = call(capsys, "prune", "--weights", "best.pt", "--latency-ratio", "0.8", "--criterion", "taylor")
    assert code == 2 and "give --data" in err and err.count("\n") == 1


def mount(folder, options):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.decode().strip()}")


def test_a_read_only_disk_is_reported(here, capsys):
    folder = here / "locked"
    mount(folder, "ro,size=64k")
    try:
        code, _, err = call(capsys, *BUILD, *OURS, "--ratio", "0.2", "--out", folder / "out")
        assert code == 2 and "locked" in err and "read-only" in err and "Traceback" not in err
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_no_file(here, capsys):
    """The disk is a tmpfs of 256 kB."""
    folder = here / "tiny"
    mount(folder, "size=256k")
    try:
        code, _, err = call(capsys, "prune", "--weights", "best.pt", "--ratio", "0.1", "--out", folder / "pruned.pt")
        assert code == 2 and "space" in err and "Traceback" not in err
        assert list(folder.iterdir()) == []
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_build_uses_best_pt_and_data_yaml_of_the_folder(here, monkeypatch):
    from edgeprune.api import build
    from edgeprune.console.progress import Reporter

    (here / "data.yaml").write_text("")
    assert build._inputs({"weights": None, "data": None}, Reporter(quiet=True)) == (
        Path("best.pt"),
        Path("data.yaml"),
        "best",
    )


def test_build_in_an_empty_folder_uses_and_names_the_demo(tmp_path, monkeypatch, capsys):
    from edgeprune import demo
    from edgeprune.api import build
    from edgeprune.console.progress import Reporter

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "write_dataset", lambda folder, *_, **__: folder / "data.yaml")
    weights, _, name = build._inputs({"weights": None, "data": None, "task": None}, Reporter())
    assert weights == demo.WEIGHTS and name == "demo"
    err = capsys.readouterr().err
    assert "built-in demo" in err and "--weights best.pt --data data.yaml" in err
