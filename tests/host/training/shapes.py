"""The shapes in a checkpoint."""

from edgeprune.model import checkpoint


def shapes(path):
    return {k: tuple(v.shape) for k, v in checkpoint.load(path).model.state_dict().items()}
