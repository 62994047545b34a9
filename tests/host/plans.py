"""Random plans, and the outputs of a network."""

import numpy as np
import torch

from edgeprune.pruning.plan import PrunePlan


def random_plan(channels, *, share=0.4, seed=0):
    """Every prunable group loses about `share` of its channels at random; tied groups lose equal shares."""
    rng = np.random.default_rng(seed)
    keep = np.ones(channels.atoms, dtype=bool)
    tied = {g: tie[0] for tie in channels.ties for g in tie}
    counts = {}
    for i, group in enumerate(channels.groups):
        if not group.frozen:
            steps = steps_of(channels, i)
            if steps == 1:  # the last head of an attention block
                continue
            most = max(1, int(steps * share))
            gone = counts.setdefault(tied.get(i, i), int(rng.integers(1, most + 1)))
            keep[rng.choice(group.atoms, gone * len(group.atoms) // steps, replace=False)] = False
    return PrunePlan.of(channels, keep, budget=f"ratio {share:g}", criterion="random")


def steps_of(channels, group):
    """The number of equal shares in which a group and those tied to it can be kept."""
    together = next((tie for tie in channels.ties if group in tie), (group,))
    return int(np.gcd.reduce([len(channels.groups[g].atoms) for g in together]))


def outputs(model, picture):
    with torch.no_grad():
        result = model(picture)
    return result[0] if isinstance(result, tuple) else result
