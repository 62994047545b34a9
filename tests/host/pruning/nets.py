"""Networks by hand, whose channels are known."""

from torch import nn


class Net(nn.Module):
    """Children by name, and a forward given as a function."""

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
    """A hidden width: one convolution makes it, and nothing else is tied to it."""
    return not group.frozen and sum(not p.endswith("bn") for p in group.producers) == 1
