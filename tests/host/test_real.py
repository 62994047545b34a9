"""Selection and compensation on a real drone detector and real images."""

from edgeprune.data import dataset, samples
from edgeprune.measuring import accuracy
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.count import count
from edgeprune.pruning import prune
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import trace

SIZE = 320


def test_a_fifth_of_the_channels_can_be_removed_before_training(shared):
    """YOLOv8n on HIT-UAV: the usual criteria leave 0.000 mAP here (FACTS, section 2)."""
    source = checkpoint.load(shared / "weights" / "yolov8n-hituav-best.pt")
    data = dataset.load(shared / "hit-uav-mini" / "data.yaml")
    pictures = samples.pick(data.val, 16)
    solve = samples.read(data, samples.pick(data.train, 4), SIZE)

    def score(model):
        return accuracy.evaluate(TorchSession(model, SIZE), data, pictures, SIZE)[0].map50_95

    channels = trace(source.model)
    ask = prune.PruneRequest(Budget("ratio", 0.2), 8)
    plans = {c: prune.draft(source.model, channels, c, ask, solve) for c in ("energy", "bn_scale")}
    chosen = prune.cut(source.model, channels, plans["energy"], solve)
    slimmed = prune.cut(source.model, channels, plans["bn_scale"], solve)
    before, after = count(source.model, (SIZE, SIZE)), count(chosen.model, (SIZE, SIZE))
    assert after.parameters <= 0.75 * before.parameters and after.macs <= 0.78 * before.macs
    uncut = score(source.model)
    assert score(chosen.model) >= 0.9 * uncut
    assert score(chosen.model) > score(slimmed.model)
