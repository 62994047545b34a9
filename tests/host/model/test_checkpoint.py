"""checkpoint: opened without running code, and written for stock Ultralytics."""

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from edgeprune_device.errors import InputError

from edgeprune.model import checkpoint
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace

from ..plans import random_plan
from ..small import save
from ..stock import STOCK


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_a_checkpoint_survives_a_round_trip(small, weights, tmp_path):
    loaded = checkpoint.load(weights)
    assert loaded.names == ["thing0", "thing1", "thing2"] and loaded.imgsz == (96, 96)
    checkpoint.save(tmp_path / "again.pt", loaded.model, like=loaded)
    again = checkpoint.load(tmp_path / "again.pt")
    for (name, a), b in zip(small.state_dict().items(), again.model.state_dict().values()):
        torch.testing.assert_close(a.half().float() if a.is_floating_point() else a, b, msg=name)


def test_no_path_of_this_machine_is_written(weights, tmp_path):
    loaded = checkpoint.load(weights)
    loaded.model.yaml["yaml_file"] = "/home/me/secret/custom.yaml"
    loaded.extra["train_args"].update(distill_model="/home/me/teacher.pt", tracker="/home/me/t.yaml", mosaic=0.5)
    checkpoint.save(tmp_path / "again.pt", loaded.model, like=loaded)
    assert checkpoint.load(tmp_path / "again.pt").extra["train_args"]["mosaic"] == 0.5
    with zipfile.ZipFile(tmp_path / "again.pt") as archive:
        content = b"".join(archive.read(n) for n in archive.namelist() if n.endswith(".pkl"))
    assert b"/somewhere" not in content and b"/home/me" not in content and str(tmp_path).encode() not in content
    assert b"edgeprune" not in content


@pytest.mark.parametrize("safe", ["0", "1"])
def test_stock_ultralytics_opens_a_pruned_model_without_edgeprune(small, weights, data, tmp_path, safe):
    channels = trace(small)
    pruned = surgery.apply(random_plan(channels), small, channels)
    path = tmp_path / "pruned.pt"
    checkpoint.save(path, pruned, like=checkpoint.load(weights))
    picture = next((data.parent / "images" / "val").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(path), str(picture), str(data), str(tmp_path)],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "ULTRALYTICS_SAFE_LOAD": safe},
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("STOCK")]
    assert lines, done.stderr[-2000:]
    parameters = sum(p.numel() for p in pruned.parameters())
    assert lines[0].split()[1:4] == [str(parameters), "1", "True"]
    assert Path(tmp_path / "pruned.onnx").is_file()


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    marker = tmp_path / "ran"
    torch.save({"model": Evil(marker)}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="not loaded"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not marker.exists()
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(InputError):
        checkpoint.load(tmp_path / "bare.pt")
    assert not marker.exists()


def test_damaged_files_are_refused(weights, tmp_path):
    whole = weights.read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2], "head": whole[:16384], "empty": b"", "text": b"hello",
        "noise": os.urandom(9999),
    }.items():  # fmt: skip
        path = tmp_path / f"{name}.pt"
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.pt: (damaged|contains classes)"):
            checkpoint.load(path)


def test_a_file_without_a_model_is_refused(tmp_path):
    torch.save({"model": {"weight": torch.zeros(3)}}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="no Ultralytics model inside"):
        checkpoint.load(tmp_path / "state.pt")
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load(tmp_path / "missing.pt")
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a \.pt"):
        checkpoint.load(tmp_path / "a.onnx")


def test_other_tasks_are_opened_only_on_request(tmp_path):
    from ultralytics.nn.tasks import SegmentationModel

    model = SegmentationModel("yolov8n-seg.yaml", nc=2, verbose=False)
    save(model, tmp_path / "seg.pt")
    with pytest.raises(
        InputError,
        match=r"unsupported task \(found segment, expected detect or obb\); `edgeprune prune` without --data",
    ):
        checkpoint.load(tmp_path / "seg.pt")
    loaded = checkpoint.load(tmp_path / "seg.pt", checkpoint.TASKS)
    assert loaded.task == loaded.model.task == "segment"


def test_class_names_with_gaps_and_inputs_of_one_channel_are_refused(small, tmp_path):
    small.names = {0: "a", 2: "b"}
    save(small, tmp_path / "gaps.pt")
    with pytest.raises(InputError, match="class names"):
        checkpoint.load(tmp_path / "gaps.pt")
    small.names = {0: "a"}
    small.get_submodule("model.0").conv = torch.nn.Conv2d(1, 8, 3, 2, 1, bias=False)
    save(small, tmp_path / "grey.pt")
    with pytest.raises(InputError, match="found 1 channels, expected 3"):
        checkpoint.load(tmp_path / "grey.pt")


def test_a_checkpoint_without_training_arguments_is_opened(small, tmp_path):
    torch.save({"model": small.half(), "train_args": None}, tmp_path / "bare.pt")
    loaded = checkpoint.load(tmp_path / "bare.pt")
    assert loaded.imgsz is None and loaded.input_size(None) == (640, 640) and loaded.input_size(96) == (96, 96)
    checkpoint.save(tmp_path / "again.pt", loaded.model, like=loaded)


@pytest.mark.parametrize(
    ("arguments", "size", "says"),
    [
        ({"imgsz": [384, 640]}, (384, 640), None),
        ({"imgsz": 96, "rect": True}, (96, 96), "the input is 96; imgsz=auto:96 takes the shape of the images"),
        ({"imgsz": [96, 96], "rect": False}, (96, 96), None),
        ({"imgsz": [96, 96, 96]}, (640, 640), None),
        ({"imgsz": 100}, (128, 128), "imgsz=100: raised to 128, because the model's stride is 32"),
    ],
)
def test_the_default_size_is_that_of_the_training(small, tmp_path, arguments, size, says):
    torch.save({"model": small.half(), "train_args": arguments}, tmp_path / "a.pt")
    lines = []
    assert checkpoint.load(tmp_path / "a.pt").input_size(None, lines.append) == size
    assert len(lines) == (says is not None) and all(says in line for line in lines)


@pytest.mark.parametrize(
    ("asked", "size", "says"),
    [
        (320, (320, 320), None),
        ((384, 640), (384, 640), None),
        ((360, 640), (384, 640), "imgsz=360,640: raised to 384,640, because the model's stride is 32"),
        ("auto:640", (384, 640), None),
        ("auto:600", (352, 608), None),  # the stride allows 608; 16:9 of it is 342 px high
    ],
)
def test_a_size_is_raised_to_the_stride_and_may_follow_the_images(small, tmp_path, asked, size, says):
    torch.save({"model": small.half(), "train_args": {}}, tmp_path / "a.pt")
    lines, opened = [], checkpoint.load(tmp_path / "a.pt")
    assert opened.input_size(asked, lines.append, shapes=[(1080, 1920)] * 3) == size
    assert lines == ([says] if says else [])


def test_the_shape_of_the_images_needs_images_that_share_one(small, tmp_path):
    torch.save({"model": small.half(), "train_args": {}}, tmp_path / "a.pt")
    lines, opened = [], checkpoint.load(tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"imgsz=auto:640: needs images; give data=data\.yaml"):
        opened.input_size("auto:640")
    assert opened.input_size("auto:640", lines.append, shapes=[(1080, 1920), (512, 640)]) == (640, 640)
    assert lines == ["imgsz=auto:640: the images have no common shape; the input is 640, a square"]


def test_weights_that_are_not_finite_are_refused(small, tmp_path):
    small.get_submodule("model.3.conv").weight.data[0, 0, 0, 0] = float("nan")
    save(small, tmp_path / "nan.pt")
    with pytest.raises(InputError, match="NaN or infinite"):
        checkpoint.load(tmp_path / "nan.pt")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("yolov8n-truncated", "damaged"), ("yolo11n-16k", "damaged"), ("yolov5n-legacy", "old YOLOv5 repository")],
)
def test_real_unusable_weights_are_refused(shared, name, reason):
    with pytest.raises(InputError, match=reason):
        checkpoint.load(shared / "bad-weights" / f"{name}.pt")
