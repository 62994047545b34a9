import pytest

from edgeprune.comparison.per_class import FEW_BOXES, worst


def classes(**found):
    return [{"name": name, "boxes": boxes, "map50_95": ap} for name, (boxes, ap) in found.items()]


BEFORE = classes(person=(300, 0.245), car=(200, 0.589), boat=(FEW_BOXES - 1, 0.9), bus=(40, None))


@pytest.mark.parametrize(
    ("after", "found"),
    [
        (classes(person=(300, 0.176), car=(200, 0.6), boat=(29, 0.1), bus=(40, 0.5)), ("person", 0.245, 0.176)),
        (classes(person=(300, 0.244), car=(200, 0.5), boat=(29, 0.1), bus=(40, 0.5)), ("car", 0.589, 0.5)),
        (classes(person=(300, 0.2448), car=(200, 0.59)), None),  # as shown, the same
        (classes(person=(300, None)), None),
        ([], None),
        (None, None),
    ],
)
def test_the_class_that_lost_most_of_those_with_boxes_enough(after, found):
    assert worst(BEFORE, after) == found


def test_of_one_class_only_the_map_says_it():
    assert worst(classes(person=(300, 0.3)), classes(person=(300, 0.2))) is None
    assert worst(None, BEFORE) is None
