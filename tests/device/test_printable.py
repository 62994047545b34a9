from edgeprune_device.printable import printable
from hypothesis import given
from hypothesis import strategies as st


@given(st.text())
def test_printable_text_is_one_line_of_the_same_length_without_escapes(text):
    shown = printable(text)
    assert shown.isprintable() and len(shown) == len(text)
    assert all(a == b for a, b in zip(text, shown) if a.isprintable())


def test_escapes_are_replaced():
    assert printable("a\x1b[2Jb\n\u202ec é") == "a?[2Jb??c é"
