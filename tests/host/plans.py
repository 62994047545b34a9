"""Random plans, and the outputs of a network."""

import numpy as np
import torch

from edgeprune.pruning.plan import PrunePlan


def random_plan(channels, *, share=0.4, seed=0):
    """Every prunable group loses about `share`, whichever channels; tied groups lose equally many."""
    rng = np.random.default_rng(seed)
    keep = np.ones(channels.atoms, dtype=bool)
    tied = {g: tie[0] for tie in channels.ties for g in tie}
    counts = {}
    for i, group in enumerate(channels.groups):
        if not group.frozen:
            most = max(1, int(len(group.atoms) * share))
            gone = counts.setdefault(tied.get(i, i), int(rng.integers(1, most + 1)))
            keep[rng.choice(group.atoms, gone, replace=False)] = False
    return PrunePlan.of(channels, keep, budget=f"ratio {share:g}", criterion="random")



def outputs(model, picture):
    with torch.no_grad():
        result = model(picture)
    return result[0] if isinstance(result, tuple) else result
