"""archive: the network in a file, however it was saved; other files are described."""

import copy

import pytest
import torch
from edgeprune_device.errors import InputError
from ultralytics.models import YOLO
from ultralytics.nn.distill_model import DistillationModel
from ultralytics.utils import IterableSimpleNamespace

import edgeprune as ep
from edgeprune.model import archive, checkpoint

from ..small import dataset


class Foreign:
    """A class that stock Ultralytics does not have."""


@pytest.fixture
def yolo(weights):
    return YOLO(str(weights))


def same(one, two):
    pairs = zip(one.state_dict().items(), two.state_dict().values(), strict=True)
    return all(torch.equal(a.half(), b.half()) for (_, a), b in pairs)


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrap", [lambda yolo: yolo, lambda yolo: {"model": yolo}, lambda yolo: yolo.model])
def test_the_network_in_an_object_saved_with_torch_save(yolo, weights, tmp_path, wrap):
    loaded = checkpoint.load(saved(tmp_path / "object.pt", wrap(yolo)))
    assert same(loaded.model, checkpoint.load(weights).model) and loaded.imgsz == (96, 96) and not loaded.stock
    checkpoint.save(tmp_path / "again.pt", loaded.model, like=loaded)
    with checkpoint.safe_load():
        assert same(YOLO(str(tmp_path / "again.pt")).model, loaded.model)


def test_no_code_of_a_saved_object_is_run(yolo, tmp_path):
    before = torch.serialization.get_safe_globals()
    loaded = checkpoint.load(saved(tmp_path / "object.pt", yolo))
    stand_ins = set(torch.serialization.get_safe_globals()) - set(before)
    assert not [name for name in map(str, stand_ins) if "YOLO" in name or "callbacks" in name]
    assert type(loaded.model).__module__ == "ultralytics.nn.tasks"
    yolo.mine = Foreign()
    says = r"saved with torch.save; contains classes .*test_archive.Foreign.*not loaded; `model.save\("
    with pytest.raises(InputError, match=says):
        checkpoint.load(saved(tmp_path / "foreign.pt", yolo))


def test_a_whole_object_is_trained_like_its_checkpoint(tmp_path, yolo):
    """Ultralytics' trainer opens the file itself and does not accept such an object."""
    data = dataset(tmp_path / "data", train=4, val=2)
    tuned = ep.finetune(saved(tmp_path / "object.pt", yolo), data, imgsz=96, epochs=1, quiet=True)
    assert tuned.steps == 1 and tuned.checkpoint.names == ["thing0", "thing1", "thing2"]


def test_the_student_of_an_interrupted_distillation_is_opened(small, tmp_path):
    student = copy.deepcopy(small)
    student.args = IterableSimpleNamespace(imgsz=96, dis=1.0)
    both = DistillationModel(copy.deepcopy(small), student)
    both.student_model.args = {}
    path = saved(tmp_path / "last.pt", {"model": None, "ema": both, "train_args": {"imgsz": 96}, "epoch": 3})
    loaded = checkpoint.load(path)
    assert same(loaded.model, small) and loaded.imgsz == (96, 96) and loaded.extra["epoch"] == 3 and not loaded.stock
    assert not [m for m in loaded.model.modules() if m._forward_hooks]


FUSED = "batch norms are folded into the convolutions, .* not pruned or trained"


@pytest.mark.parametrize("form", ["file", "object", "memory"])
def test_a_fused_network_is_exported_and_compared_but_neither_pruned_nor_trained(yolo, tmp_path, form):
    data = dataset(tmp_path / "data", train=4, val=2)
    yolo.fuse()
    if form == "file":
        yolo.save(tmp_path / "fused.pt")
    model = {"file": tmp_path / "fused.pt", "object": saved(tmp_path / "object.pt", yolo), "memory": yolo}[form]
    for verb in (
        lambda: ep.prune(model, ratio=0.2, quiet=True),
        lambda: ep.finetune(model, data, epochs=1, quiet=True),
        lambda: ep.analyze(model, data, quiet=True),
    ):
        with pytest.raises(InputError, match=FUSED):
            verb()
    out = tmp_path / "onnx"
    assert ep.export(model, imgsz=96, precision="fp32", out=out, quiet=True).files["fp32"].is_file()
    assert len(ep.compare(model, imgsz=96, rounds=1, quiet=True).items) == 1


def test_a_fused_network_is_not_built(yolo, tmp_path):
    yolo.fuse()
    yolo.save(tmp_path / "fused.pt")
    data = dataset(tmp_path / "data", train=4, val=2)
    with pytest.raises(InputError, match=FUSED):
        ep.build(target="cpu", ratio=0.2, weights=tmp_path / "fused.pt", data=data, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda net: net.state_dict(), r"only weights \(a state_dict\); load them .*load_state_dict.*good.pt"),
        (lambda net: {"epoch": 1, "state_dict": net.state_dict()}, r"only weights \(a state_dict\)"),
        (lambda net: net.model, r"found a Sequential, the layers without their YAML\); `model.save\(\"good.pt\"\)`"),
        (lambda net: {"epoch": 1, "ema": torch.zeros(3)}, r"found a dictionary of epoch, ema\); give the best.pt"),
        (lambda net: {}, "found a dictionary of nothing"),
        (lambda net: [1, 2], r"found a list\); give the best.pt"),
    ],
)
def test_a_file_without_a_network_is_described(small, tmp_path, content, says):
    with pytest.raises(InputError, match=f"no Ultralytics model inside.*{says}"):
        archive.read(saved(tmp_path / "other.pt", content(small)))


def test_foreign_classes_are_named_in_the_message(tmp_path):
    with pytest.raises(InputError, match=r"classes that are not Ultralytics' own \(.*test_archive.Foreign\)"):
        archive.read(saved(tmp_path / "foreign.pt", {"model": Foreign()}))


def test_a_folder_or_a_url_is_refused_with_advice(tmp_path):
    with pytest.raises(InputError, match=r"train: a folder, not a file$"):
        (tmp_path / "train/weights").mkdir(parents=True)
        archive.read(tmp_path / "train")
    for name in ("last.pt", "best.pt"):
        (tmp_path / "train/weights" / name).touch()
        with pytest.raises(InputError, match=f"train: a folder, not a file; give .*/train/weights/{name}$"):
            ep.prune(tmp_path / "train", ratio=0.2, quiet=True)
    for verb in (lambda at: ep.prune(at, ratio=0.2), lambda at: ep.compare(at), lambda at: ep.export(at)):
        with pytest.raises(InputError, match=r"^https://example.org/a/best.pt: a URL; download the file first"):
            verb("https://example.org/a/best.pt")
