from itertools import islice

import pytest
from edgeprune_device import sources
from edgeprune_device.errors import InputError
from edgeprune_device.vision.evaluation import EvaluationSet


def test_bundle_is_the_default_source(labelled_pictures):
    truth = EvaluationSet.read(EvaluationSet.pack(labelled_pictures))
    with sources.open(bundle_pictures=truth) as source:
        assert (source.name, source.live, source.fps, source.warnings) == ("bundle", False, None, ())
        assert source.description == "the bundle's evaluation set (3 files, PNG, in memory)"
        names = [frame.name for frame in islice(source.frames(), 7)]
        assert names == ["p0.png", "p1.png", "p2.png", "p0.png", "p1.png", "p2.png", "p0.png"]
        assert source.decode(next(source.frames())).shape == (64, 64, 3)


def test_bundle_without_images_is_refused_with_a_remedy():
    with pytest.raises(InputError, match=r"give other frames with source"):
        sources.open("bundle", None)
