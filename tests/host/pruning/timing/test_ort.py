"""ort: times from ONNX Runtime on this CPU."""

import numpy as np
import pytest

from edgeprune.pruning import latency
from edgeprune.pruning.timing.ort import Ort


def test_a_large_network_takes_longer_than_a_small_one(nano):
    """There are more files than sessions open at once."""
    model, channels = nano
    sizes = np.array([len(g.atoms) for g in channels.groups], dtype=float)
    small = [n if g.frozen else np.ceil(n / 4) for g, n in zip(channels.groups, sizes)]
    large, small = (latency.onnx(model, channels, counts, 192) for counts in (sizes, np.array(small)))
    files = {f"{i}": large if i in (0, 14) else small for i in range(15)}
    ms = Ort(rounds=6)(files)
    assert ms.keys() == files.keys()
    assert ms["14"] == pytest.approx(ms["0"], rel=0.2)
    assert all(0 < ms[f"{i}"] < 0.8 * ms["0"] for i in range(1, 14))
    assert "onnxruntime" in Ort().description
