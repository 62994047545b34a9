"""timing: clocks are found by the names of their files."""

from edgeprune.pruning import timing
from edgeprune.pruning.timing.ort import Ort


def test_every_file_is_a_clock():
    assert timing.clocks() == ["ort"] and timing.DEFAULT in timing.clocks()
    assert timing.load("ort") == Ort()
    for name in timing.clocks():
        assert callable(timing.load(name))
