"""Training on several GPUs, tested without any: the data that Ultralytics sends to its processes makes them train the
pruned network with all settings, in one process and in two cooperating ones (gloo instead of NCCL)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

from edgeprune.data import dataset
from edgeprune.model import checkpoint
from edgeprune.model.device import choose
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace
from edgeprune.training import finetune
from edgeprune.training.finetune import TrainingSettings

from ..plans import random_plan
from ..small import dataset as pictures
from ..small import save, short

pytest.importorskip("cloudpickle")

#: One of two processes on a CPU. Ultralytics requires a CUDA device for each; everything else is unchanged.
ON_CPU = """
import os, runpy, sys
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.engine.trainer import BaseTrainer

class OnCpu(DistributedDataParallel):
    def __init__(self, module, device_ids=None, **more):
        super().__init__(module, **more)

torch.nn.parallel.DistributedDataParallel = OnCpu
init = BaseTrainer.__init__

def two(self, *args, **more):
    init(self, *args, **more)
    self.world_size = 2

BaseTrainer.__init__ = two
BaseTrainer._setup_ddp = lambda self: distributed.init_process_group("gloo")
runpy.run_path(sys.argv[1], run_name="__main__")
if distributed.is_initialized():
    distributed.barrier()
    distributed.destroy_process_group()
"""


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """A pruned network whose training is about to be sent to other processes: (weights, run folder, script)."""
    from edgeprune.training.trainer import KeepArchitecture

    model = short()
    channels = trace(model)
    teacher = save(model, tmp_path / "best.pt")
    weights = tmp_path / "pruned.pt"
    checkpoint.save(weights, surgery.apply(random_plan(channels), model, channels), like=checkpoint.load(teacher))
    data = dataset.load(pictures(tmp_path / "many", train=34))
    files = []

    def send(self):  # the steps of KeepArchitecture.train() for several GPUs, up to the launch
        files.append((self, generate_ddp_file(self)))

    settings = TrainingSettings(epochs=2, batch=8, lr=1e-2, imgsz=96, patience=2, sparsity=1e-2).placed(
        choose("cpu"), 34
    )
    run = finetune._TrainingRun(tmp_path / "work", finetune._identity(weights, data, settings, teacher))
    monkeypatch.setattr(KeepArchitecture, "train", send)
    monkeypatch.setattr(KeepArchitecture, "check_architecture", lambda self: None)
    job = finetune._Job(checkpoint.load(weights), finetune.hold_back(data), run, teacher, scheme=None, on_step=None)
    finetune._train(job, settings)
    ((trainer, script),) = files
    yield weights, run, script
    ddp_cleanup(trainer, script)


def check(weights, run, batch, steps):
    table = (run.folder / "train" / "results.csv").read_text().split()
    assert "train/distill_loss" in table[0] and len(table) == 3
    assert json.loads((run.folder / "steps.json").read_text())["2"] == {"batch": batch, "steps": steps}
    assert run.finished(TrainingSettings(epochs=2)) and run.best.is_file()
    before, after = (checkpoint.load(p).model.state_dict() for p in (weights, run.last))
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    scales = [k for k in before if "bn.weight" in k]
    assert sum(float(before[k].sum() - after[k].sum()) for k in scales) > 0  # sparsity was applied, too
    assert len(scales) > 10


@pytest.mark.slow  # similar tests run always
def test_a_fresh_process_trains_the_pruned_network_from_the_sent_data(sent):
    weights, run, script = sent
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    check(weights, run, batch=8, steps=8)  # 26 images, 8 per step, 2 epochs


def test_two_processes_train_the_network_together(sent, tmp_path):
    weights, run, script = sent
    wrapper = tmp_path / "on_cpu.py"
    wrapper.write_text(ON_CPU)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", wrapper, script],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    check(weights, run, batch=8, steps=8)  # 13 images each, 4 per step
    assert Path(run.best).is_file()
