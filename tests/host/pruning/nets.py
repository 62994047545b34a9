"""Hand-made networks with known channels."""

from torch import nn


class Net(nn.Module):
    """A module with named children and a function as its forward."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, x):
        return self._run(self, x)


def conv(i, o, k=1, groups=1):
    return nn.Conv2d(i, o, k, padding=k // 2, groups=groups)


def group_of(channels, layer):
    return next(g for g in channels.groups if layer in g.producers)


def free(group):
    """Whether a group is a hidden width: one convolution makes it, and no other group is tied to it."""
    return not group.frozen and sum(not p.endswith("bn") for p in group.producers) == 1
