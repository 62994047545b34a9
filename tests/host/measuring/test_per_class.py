import pytest

from edgeprune.measuring.per_class import FEW_BOXES, worst


def classes(**entries):
    return [{"name": name, "boxes": boxes, "map50_95": ap} for name, (boxes, ap) in entries.items()]


BEFORE = classes(person=(300, 0.245), car=(200, 0.589), boat=(FEW_BOXES - 1, 0.9), bus=(40, None))


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (classes(person=(300, 0.176), car=(200, 0.6), boat=(29, 0.1), bus=(40, 0.5)), ("person", 0.245, 0.176)),
        (classes(person=(300, 0.244), car=(200, 0.5), boat=(29, 0.1), bus=(40, 0.5)), ("car", 0.589, 0.5)),
        (classes(person=(300, 0.2448), car=(200, 0.59)), None),  # equal in three digits
        (classes(person=(300, None)), None),
        ([], None),
        (None, None),
    ],
)
def test_worst_is_the_class_that_lost_most_among_those_with_enough_boxes(after, expected):
    assert worst(BEFORE, after) == expected


def test_worst_is_none_for_a_single_class():
    assert worst(classes(person=(300, 0.3)), classes(person=(300, 0.2))) is None
    assert worst(None, BEFORE) is None


def test_the_name_of_a_class_reaches_no_terminal_raw():
    before, after = (
        [{"name": name, "boxes": 99, "map50": v, "map50_95": v} for name in ("a\u202eb\x1b", "c")] for v in (0.9, 0.1)
    )
    assert worst(before, after) == ("a?b?", 0.9, 0.1)
