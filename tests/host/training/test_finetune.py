"""finetune: the defaults are applied, an interruption loses at most one epoch, and patience keeps the best epoch."""

import os
import signal

import pytest
import torch
from edgeprune_device import cli
from edgeprune_device.errors import InputError

from edgeprune import workers
from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.model.device import Device
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings

from .. import forked
from ..small import dataset as pictures
from .shapes import shapes

RUN = """
import sys
from pathlib import Path
from edgeprune import workers
from edgeprune.data import dataset
from edgeprune.training import finetune
weights, data, out, work, log, teacher = map(Path, sys.argv[1:])
with open(log, "a") as file:
    def note(p):
        print(p.epoch, p.step, file=file, flush=True)
    settings = finetune.TrainingSettings(epochs=6, batch=4, imgsz=96)
    print(finetune.finetune_network(weights, dataset.load(data), out, settings, work, teacher=teacher, on_step=note))
"""


def test_a_training_killed_twice_resumes(pruned, data, tmp_path, own_signals):
    """After kill -9 in epoch 3 and Ctrl-C in epoch 5 it continues from the last complete epoch, with the teacher."""
    out, work, log = tmp_path / "tuned.pt", tmp_path / "work", tmp_path / "log"
    words = (pruned, data, out, work, log, tmp_path / "best.pt")
    reached = 0
    for epoch, kill in ((3, signal.SIGKILL), (5, signal.SIGINT)):
        process = forked.Process(RUN, *words, folder=tmp_path)
        process.until(lambda: log.exists() and f"{epoch} 1" in log.read_text())  # noqa: B023
        assert process.kill(kill) != 0
        assert not out.exists()
        epochs = [int(line.split()[0]) for line in log.read_text().splitlines()]
        assert epochs[0] >= reached and epoch <= epochs[-1] < 6, "resumed from the start, or killed too late"
        reached = epochs[-1]
        log.unlink()
    done = forked.run(RUN, *words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    epochs = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert epochs[0] >= reached and epochs[-1] == 6
    assert "'steps': 12" in done.stdout  # in all three runs together
    table = (work / "train" / "results.csv").read_text().split()
    taught = table[0].split(",").index("train/distill_loss")
    assert table[-1].startswith("6,") and all(float(row.split(",")[taught]) > 0 for row in table[1:])
    assert shapes(out) == shapes(pruned)


def run(weights, data, tmp_path, epochs=2):
    settings = TrainingSettings(epochs=epochs, batch=4, imgsz=96)
    seen = []
    result = finetune.finetune_network(
        weights, dataset.load(data), tmp_path / "tuned.pt", settings, tmp_path / "work", on_step=seen.append
    )
    return result, len(seen)


def test_a_finished_training_is_not_repeated(pruned, data, tmp_path):
    """It was killed after the last epoch, before the result was renamed."""
    result, batches = run(pruned, data, tmp_path)
    assert batches == 4
    (tmp_path / "tuned.pt").unlink()
    assert run(pruned, data, tmp_path) == (result, 0)
    assert (tmp_path / "tuned.pt").exists()


def test_a_run_with_other_weights_data_or_settings_is_not_resumed(pruned, data, tmp_path):
    run(pruned, data, tmp_path)
    assert run(pruned, data, tmp_path, epochs=3)[1] == 6
    label = next((data.parent / "labels/train").iterdir())
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    assert run(pruned, data, tmp_path, epochs=3)[1] == 6
    other = checkpoint.load(pruned)
    other.model.model[0].conv.weight.data.mul_(2)
    checkpoint.save(pruned, other.model, like=other)
    assert run(pruned, data, tmp_path, epochs=3)[1] == 6


def test_the_users_files_are_unchanged(pruned, data, tmp_path):
    """Ultralytics re-encodes a JPEG with bytes after its end marker (some cameras write them) and leaves label
    caches.
    """
    from PIL import Image

    folder = data.parent / "images" / "train"
    for picture in list(folder.iterdir())[:2]:
        Image.open(picture).save(picture.with_suffix(".jpg"), quality=95)
        picture.unlink()
        with open(picture.with_suffix(".jpg"), "ab") as file:
            file.write(b"\0\0")
    before = {p: p.read_bytes() for p in data.parent.rglob("*") if p.is_file()}
    run(pruned, data, tmp_path, epochs=1)
    assert {p: p.read_bytes() for p in data.parent.rglob("*") if p.is_file()} == before


def test_the_users_augmentation_is_kept(pruned, data, tmp_path):
    import torch as t

    content = t.load(pruned, weights_only=False)
    content["train_args"].update(fliplr=0.0, cls=1.5, lr0=0.5)
    t.save(content, pruned)
    seen = []
    finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=1, batch=8, imgsz=96),
        tmp_path / "work",
        on_step=lambda p: seen.append((p.trainer.args.fliplr, p.trainer.args.cls, p.trainer.args.lr0)),
    )  # fmt: skip
    assert set(seen) == {(0.0, 1.5, 1e-4)}


def test_the_batch_is_halved_if_memory_runs_out(pruned, data, tmp_path, monkeypatch):
    from edgeprune.training.trainer import KeepArchitecture

    preprocess = KeepArchitecture.preprocess_batch

    def small_memory(self, batch):
        if len(batch["img"]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return preprocess(self, batch)

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", small_memory)
    result = finetune.finetune_network(
        pruned,
        dataset.load(data),
        tmp_path / "tuned.pt",
        TrainingSettings(epochs=1, batch=8, imgsz=96),
        tmp_path / "work",
    )
    assert result == {"epochs": 1, "batch": 2, "steps": 4}


def test_too_little_memory_for_one_image_is_reported(pruned, data, tmp_path, monkeypatch):
    from edgeprune.training.trainer import KeepArchitecture

    def none(self, batch):
        raise MemoryError

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", none)
    with pytest.raises(InputError, match="batch of 1"):
        finetune.finetune_network(
            pruned,
            dataset.load(data),
            tmp_path / "tuned.pt",
            TrainingSettings(epochs=1, batch=2, imgsz=96),
            tmp_path / "work",
        )


@pytest.mark.parametrize(
    ("device", "images", "batch"),
    [("cpu", 10_000, 4), ("0", 64, 4), ("0", 900, 8), ("0", 10_000, 32), ("0,1", 10_000, 64), ("0,1", 500, 8)],
)
def test_batch_on_a_gpu_leaves_a_hundred_steps(device, images, batch):
    placed = TrainingSettings().placed(Device(device, ""), images)
    assert placed.batch == batch and placed.device == device
    assert (placed.workers == 0) == (device == "cpu" or workers.wanted() == 1)
    assert placed.overrides()["amp"] == (device != "cpu")
    own = TrainingSettings(batch=6, workers=3).placed(Device(device, ""), images)
    assert (own.batch, own.workers) == (6, 3)


def test_training_continues_without_data_loading_processes_when_one_dies(pruned, data, tmp_path, monkeypatch):
    train, seen, warned = finetune._train, [], []

    def killed(job, settings):
        seen.append(settings.workers)
        if settings.workers:
            raise RuntimeError("DataLoader worker (pid(s) 4242) exited unexpectedly")
        train(job, settings)

    monkeypatch.setattr(finetune, "_train", killed)
    result = finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=1, batch=8, imgsz=96, workers=1),
        tmp_path / "work", warn=warned.append,
    )  # fmt: skip
    assert result["epochs"] == 1 and seen == [1, 0]
    assert len(warned) == 1 and "pid(s) 4242" in warned[0] and "workers=0" in warned[0]


def test_several_gpus_need_a_divisible_batch():
    assert TrainingSettings(batch=4, device="0,1").gpus == 2
    with pytest.raises(InputError, match="multiple of 3, the number of GPUs"):
        TrainingSettings(batch=4, device="0,1,2")


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many", train=34)


def patient(weights, data, tmp_path, monkeypatch, figures, **more):
    """Fine-tune with an evaluator that returns `figures` in turn; return the result, its calls and the observed
    steps.
    """
    from edgeprune.training import trainer

    asked, averages, trained = [], [], set()
    answers = iter(figures)

    def evaluate(session, data, pictures, imgsz, progress=None):
        asked.append(set(pictures))
        return type("Accuracy", (), {"map50_95": next(answers)}), None

    def observe(p):
        trainer = p.trainer
        trained.update(trainer.train_loader.dataset.im_files)
        averages[trainer.epoch :] = [{k: v.clone() for k, v in trainer.ema.ema.state_dict().items()}]

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    settings = TrainingSettings(**{"epochs": 6, "batch": 16, "imgsz": 96, "lr": 1e-3, "patience": 2, **more})
    out = tmp_path / "tuned.pt"
    result = finetune.finetune_network(weights, dataset.load(data), out, settings, tmp_path / "work", on_step=observe)
    return result, asked, averages, {os.path.abspath(p) for p in trained}


def test_patience_stops_and_keeps_the_best_epoch(pruned, many, tmp_path, monkeypatch):
    result, asked, averages, trained = patient(pruned, many, tmp_path, monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9, 0.9])
    assert result == {"epochs": 4, "best_epoch": 2, "batch": 16, "steps": 8}
    saved = checkpoint.load(tmp_path / "tuned.pt").model.state_dict()
    close = [all(torch.equal(saved[k], a[k].half().float()) for k in a if "weight" in k) for a in averages]
    assert close == [False, True, False, False]
    # The epoch is chosen on held-out training images, never on validation images.
    held = {str(p) for p in set.union(*asked)}
    data = dataset.load(many)
    assert len(held) == 8 and held <= {str(p) for p in data.train}
    assert trained == {str(p) for p in data.train} - held
    # A finished training does not run again.
    assert patient(pruned, many, tmp_path, monkeypatch, [])[0] == result


def test_patience_continues_after_an_interruption(pruned, many, tmp_path, monkeypatch):
    with pytest.raises(StopIteration):  # the evaluator fails in epoch 3
        patient(pruned, many, tmp_path, monkeypatch, [0.3, 0.1])
    result, asked, *_ = patient(pruned, many, tmp_path, monkeypatch, [0.2])
    assert (result["epochs"], result["best_epoch"], len(asked)) == (3, 1, 1)


def test_all_epochs_run_if_patience_does_not_run_out(pruned, many, tmp_path, monkeypatch):
    result, asked, *_ = patient(pruned, many, tmp_path, monkeypatch, [0.1, 0.2], epochs=2)
    assert (result["epochs"], result["best_epoch"], len(asked)) == (2, 2, 2)


def test_too_few_images_to_hold_back_are_refused(pruned, data, tmp_path):
    with pytest.raises(InputError, match=r"found 8, expected at least 32"):
        finetune.finetune_network(
            pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(patience=1, imgsz=96), tmp_path / "work"
        )


def test_the_command_prints_the_result_and_refuses_invalid_options(pruned, many, tmp_path, capsys):
    words = ["finetune", "--quiet", "--weights", pruned, "--data", many, "--epochs", "2", "--batch", "16"]
    words += ["--lr", "1e-3"]
    more = ["--distill", tmp_path / "best.pt", "--patience", "2", "--sparsity", "1e-3", "--out", tmp_path / "tuned.pt"]
    assert cli.main([str(w) for w in (*words, *more)]) == 0
    out = capsys.readouterr().out
    assert out.count("prunable scales below 0.01 of the layer's largest") == 2
    assert "2 epochs (the best was epoch " in out and "4 steps of 16 images" in out
    assert shapes(tmp_path / "tuned.pt") == shapes(pruned)
    for bad, says in (
        (["--distill", tmp_path / "none.pt"], "no such file"),
        (["--patience", "-1"], "patience"),
        (["--sparsity", "0.1"], "sparsity 0.1"),
        (["--device", "0,1"], "not available on this machine"),
        (["--device", "0,1,2"], "multiple of 3, the number of GPUs"),
    ):
        assert cli.main([str(w) for w in (*words, *bad)]) == 2
        error = capsys.readouterr().err.strip()
        assert says in error and "\n" not in error, error


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0}, {"batch": 0}, {"workers": -1}, {"lr": 0}, {"lr": 5}, {"lr": float("nan")}, {"imgsz": 100},
        {"imgsz": 0}, {"patience": -1}, {"device": ""}, {"seed": 0.5}, {"epochs": True},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(InputError, match=f"^{next(iter(bad))}"):
        TrainingSettings(**bad)
