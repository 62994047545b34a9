"""finetune: the defaults are really applied, an interruption loses one epoch at most, and patience keeps the best."""

import os
import signal

import pytest
import torch
from edgeprune_device import cli
from edgeprune_device.errors import InputError

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings

from .. import forked
from ..small import dataset as pictures
from .shapes import shapes

RUN = """
import sys
from pathlib import Path
from edgeprune.data import dataset
from edgeprune.training import finetune
weights, data, out, work, log, teacher = map(Path, sys.argv[1:])
with open(log, "a") as file:
    def note(p):
        print(p.epoch, p.step, file=file, flush=True)
    settings = finetune.TrainingSettings(epochs=6, batch=4, imgsz=96)
    print(finetune.finetune_network(weights, dataset.load(data), out, settings, work, teacher=teacher, on_step=note))
"""


def test_killed_twice_and_resumed(pruned, data, tmp_path, own_signals):
    """By kill -9 in epoch 3 and by Ctrl-C in epoch 5: each time it goes on from the last whole epoch, still taught."""
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
    assert "'steps': 12" in done.stdout  # of all three runs together
    table = (work / "train" / "results.csv").read_text().split()
    taught = table[0].split(",").index("train/distill_loss")
    assert table[-1].startswith("6,") and all(float(row.split(",")[taught]) > 0 for row in table[1:])
    assert shapes(out) == shapes(pruned)


def run(weights, data, tmp_path, epochs=2):
    settings = TrainingSettings(epochs=epochs, batch=4, imgsz=96)
    seen = []
    result = finetune.finetune_network(
        weights, dataset.load(data), tmp_path / "tuned.pt", settings, tmp_path / "work", observe=seen.append
    )
    return result, len(seen)


def test_a_finished_training_is_not_done_again(pruned, data, tmp_path):
    """Killed after the last epoch, before the result had its place."""
    result, batches = run(pruned, data, tmp_path)
    assert batches == 4
    (tmp_path / "tuned.pt").unlink()
    assert run(pruned, data, tmp_path) == (result, 0)
    assert (tmp_path / "tuned.pt").exists()


def test_a_run_of_other_weights_data_or_settings_is_not_resumed(pruned, data, tmp_path):
    run(pruned, data, tmp_path)
    assert run(pruned, data, tmp_path, epochs=3)[1] == 6
    label = next((data.parent / "labels/train").iterdir())
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    assert run(pruned, data, tmp_path, epochs=3)[1] == 6
    other = checkpoint.load(pruned)
    other.model.model[0].conv.weight.data.mul_(2)
    checkpoint.save(pruned, other.model, like=other)
    assert run(pruned, data, tmp_path, epochs=3)[1] == 6


def test_the_users_files_are_left_as_they_are(pruned, data, tmp_path):
    """Ultralytics re-encodes a JPEG with bytes behind its end marker (cameras write such) and leaves label caches."""
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


def test_what_the_users_training_said_of_pictures_is_kept(pruned, data, tmp_path):
    import torch as t

    content = t.load(pruned, weights_only=False)
    content["train_args"].update(fliplr=0.0, cls=1.5, lr0=0.5)
    t.save(content, pruned)
    seen = []
    finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=1, batch=8, imgsz=96),
        tmp_path / "work",
        observe=lambda trainer: seen.append((trainer.args.fliplr, trainer.args.cls, trainer.args.lr0)),
    )  # fmt: skip
    assert set(seen) == {(0.0, 1.5, 1e-4)}


def test_batch_is_lowered_when_memory_runs_out(pruned, data, tmp_path, monkeypatch):
    from edgeprune.training.trainer import KeepArchitecture

    preprocess = KeepArchitecture.preprocess_batch

    def small_memory(self, batch):
        if len(batch["img"]) > 2:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return preprocess(self, batch)

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", small_memory)
    result = finetune.finetune_network(
        pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=1, batch=8, imgsz=96),
        tmp_path / "work",
    )
    assert result == {"epochs": 1, "batch": 2, "steps": 4}


def test_memory_that_does_not_even_hold_one_picture(pruned, data, tmp_path, monkeypatch):
    from edgeprune.training.trainer import KeepArchitecture

    def none(self, batch):
        raise MemoryError

    monkeypatch.setattr(KeepArchitecture, "preprocess_batch", none)
    with pytest.raises(InputError, match="batch of 1"):
        finetune.finetune_network(
            pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(epochs=1, batch=2, imgsz=96),
        tmp_path / "work",
        )


def test_a_device_that_is_not_there():
    with pytest.raises(InputError, match="--device 0,1: not on this machine"):
        finetune.check_device("0,1")
    with pytest.raises(InputError, match="not on this machine"):
        finetune.check_device("7")
    finetune.check_device("cpu")


def test_several_gpus_share_a_batch():
    assert TrainingSettings(batch=4, device="0,1").gpus == 2
    with pytest.raises(InputError, match="multiple of the 3 GPUs"):
        TrainingSettings(batch=4, device="0,1,2")


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many", train=34)


def patient(weights, data, tmp_path, monkeypatch, figures, **more):
    """Fine-tune with the evaluator answering `figures` in turn; returns the result and what was asked and seen."""
    from edgeprune.training import trainer

    asked, averages, trained = [], [], set()
    answers = iter(figures)

    def evaluate(session, data, pictures, imgsz, progress=None):
        asked.append(set(pictures))
        return type("Accuracy", (), {"map50_95": next(answers)}), None

    def observe(trainer):
        trained.update(trainer.train_loader.dataset.im_files)
        averages[trainer.epoch :] = [{k: v.clone() for k, v in trainer.ema.ema.state_dict().items()}]

    monkeypatch.setattr(trainer, "evaluate", evaluate)
    settings = TrainingSettings(**{"epochs": 6, "batch": 16, "imgsz": 96, "lr": 1e-3, "patience": 2, **more})
    out = tmp_path / "tuned.pt"
    result = finetune.finetune_network(weights, dataset.load(data), out, settings, tmp_path / "work", observe=observe)
    return result, asked, averages, {os.path.abspath(p) for p in trained}


def test_patience_stops_and_keeps_the_best_epoch(pruned, many, tmp_path, monkeypatch):
    result, asked, averages, trained = patient(pruned, many, tmp_path, monkeypatch, [0.1, 0.3, 0.2, 0.3, 0.9, 0.9])
    assert result == {"epochs": 4, "best_epoch": 2, "batch": 16, "steps": 8}
    saved = checkpoint.load(tmp_path / "tuned.pt").model.state_dict()
    close = [all(torch.equal(saved[k], a[k].half().float()) for k in a if "weight" in k) for a in averages]
    assert close == [False, True, False, False]
    # Chosen on training pictures that it was not trained on, and never on the validation pictures that judge.
    held = {str(p) for p in set.union(*asked)}
    data = dataset.load(many)
    assert len(held) == 8 and held <= {str(p) for p in data.train}
    assert trained == {str(p) for p in data.train} - held
    # Finished is finished.
    assert patient(pruned, many, tmp_path, monkeypatch, [])[0] == result


def test_patience_goes_on_after_an_interruption(pruned, many, tmp_path, monkeypatch):
    with pytest.raises(StopIteration):  # the evaluator breaks in epoch 3
        patient(pruned, many, tmp_path, monkeypatch, [0.3, 0.1])
    result, asked, *_ = patient(pruned, many, tmp_path, monkeypatch, [0.2])
    assert (result["epochs"], result["best_epoch"], len(asked)) == (3, 1, 1)


def test_patience_that_does_not_run_out(pruned, many, tmp_path, monkeypatch):
    result, asked, *_ = patient(pruned, many, tmp_path, monkeypatch, [0.1, 0.2], epochs=2)
    assert (result["epochs"], result["best_epoch"], len(asked)) == (2, 2, 2)


def test_too_few_pictures_to_hold_some_back(pruned, data, tmp_path):
    with pytest.raises(InputError, match="needs 32 labelled ones, not 8"):
        finetune.finetune_network(
            pruned, dataset.load(data), tmp_path / "tuned.pt", TrainingSettings(patience=1, imgsz=96), tmp_path / "work"
        )


def test_command(pruned, many, tmp_path, capsys):
    words = ["finetune", "--quiet", "--weights", pruned, "--data", many, "--epochs", "2", "--batch", "16"]
    words += ["--lr", "1e-3"]
    more = ["--distill", tmp_path / "best.pt", "--patience", "2", "--sparsity", "1e-3", "--out", tmp_path / "tuned.pt"]
    assert cli.main([str(w) for w in (*words, *more)]) == 0
    said = capsys.readouterr().out
    assert said.count("prunable scales below 0.01 of the layer's largest") == 2
    assert "2 epochs (the best was epoch " in said and "4 steps of 16 pictures" in said
    assert shapes(tmp_path / "tuned.pt") == shapes(pruned)
    for bad, says in (
        (["--distill", tmp_path / "none.pt"], "no such file"),
        (["--patience", "-1"], "patience"),
        (["--sparsity", "0.1"], "sparsity 0.1"),
        (["--device", "0,1"], "not on this machine"),
        (["--device", "0,1,2"], "multiple of the 3 GPUs"),
    ):
        assert cli.main([str(w) for w in (*words, *bad)]) == 2
        error = capsys.readouterr().err.strip()
        assert says in error and "\n" not in error, error


@pytest.mark.parametrize(
    "bad", [{"epochs": 0}, {"batch": 0}, {"workers": -1}, {"lr": 0}, {"lr": 5}, {"imgsz": 100}, {"patience": -1}]
)
def test_settings_out_of_range(bad):
    with pytest.raises(InputError):
        TrainingSettings(**bad)
