"""layers: the modules of a network that surgery can prune."""

from torch import nn

from edgeprune.pruning.layers import convolutions, layers, norms


def test_layers_by_their_types():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.ConvTranspose2d(4, 4, 2), nn.Conv1d(4, 4, 1),
        nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)),
    )  # fmt: skip
    assert list(layers(model)) == ["0", "1", "3", "4", "5.0", "5.1"]
    assert list(convolutions(model)) == ["0"]
    assert list(norms(model)) == ["1"]
