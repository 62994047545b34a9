"""Fixture: a pruned network, as written by `prune`."""

import pytest

from edgeprune.model import checkpoint
from edgeprune.pruning import surgery
from edgeprune.pruning.channels import trace

from ..plans import random_plan
from ..small import save, short


@pytest.fixture
def pruned(tmp_path):
    model = short()
    channels = trace(model)
    source = checkpoint.load(save(model, tmp_path / "best.pt"))
    path = tmp_path / "pruned.pt"
    checkpoint.save(path, surgery.apply(random_plan(channels), model, channels), like=source)
    return path
