"""Tests of the values that an option accepts, and of its errors."""

import argparse
import math

import numpy as np
import pytest
from edgeprune_device.cli import Parser
from edgeprune_device.errors import InputError
from edgeprune_device.option import Choice, File, Flag, Names, Number, Option, Text, Whole, as_flags, named


@pytest.mark.parametrize(
    ("kind", "value", "checked"),
    [
        (Whole(1), 3, 3),
        (Whole(1), np.int64(3), 3),
        (Number(0, 1), 0, 0.0),
        (Number(0, 1), 1, 1.0),
        (Number(0, 1, "[)"), np.float32(0.5), 0.5),
        (Choice(("a", "b")), "b", "b"),
        (Names(("a", "b")), "b, a", ("b", "a")),
        (Names(("a", "b")), ["b"], ("b",)),
        (Text(), "x", "x"),
        (Flag(), True, True),
    ],
)
def test_value_in_the_range_is_returned_in_its_own_type(kind, value, checked):
    result = Option("name", kind, "help").check(value)
    assert result == checked and type(result) is type(checked)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Whole(1), 0),
        (Whole(1), 2.0),
        (Whole(1), True),
        (Whole(1, 5), 6),
        (Number(0, 1), math.nan),
        (Number(0, 1), -0.1),
        (Number(0, 1), "0.5"),
        (Number(0, 1, "()"), 0),
        (Number(0, 1, "[)"), 1),
        (Number(0), math.inf),
        (Choice(("a",)), "c"),
        (Names(("a",)), ()),
        (Names(("a",)), "a,c"),
        (Text(), " "),
        (Text(), "a\0b"),
        (File((".pt",)), "x.onnx"),
        (File(), "a\0b"),
        (Flag(), 1),
    ],
)
def test_error_of_an_invalid_value_gives_found_and_expected(kind, value):
    with pytest.raises(InputError, match=r"^some_name: invalid value \(found '.*', expected .+\)"):
        Option("some_name", kind, "help").check(value)


def test_none_is_accepted_only_without_a_default():
    assert Option("a", Whole(), "help").check(None) is None
    with pytest.raises(InputError):
        Option("a", Whole(), "help", default=1).check(None)


def test_message_names_the_option_as_the_user_wrote_it():
    option = Option("max_drop", Number(0, 1), "help", default=0.1)
    assert named("max_drop", 5) == "max_drop=5"
    with as_flags():
        assert (named("max_drop", 5), named("no_agent", True)) == ("--max-drop 5", "--no-agent")
        assert named("out", "my runs/a'b") == """--out 'my runs/a'"'"'b'"""  # for a shell
        with pytest.raises(
            InputError, match=r"^--max-drop: invalid value \(found '5', expected a number in \[0, 1\]\)"
        ):
            option.check(5)
    with pytest.raises(InputError, match=r"^max_drop: "):
        option.check(5)


def test_command_line_and_python_refuse_with_the_same_message(monkeypatch):
    parser = Parser(prog="edgeprune x")
    Option("max_drop", Number(0, 1), "help", default=0.1, metavar="X").add(parser)
    assert parser.parse_all([]).max_drop == 0.1
    with pytest.raises(InputError, match=r"--max-drop: invalid value \(found 'nan', expected a number in \[0, 1\]\)"):
        parser.parse_all(["--max-drop", "nan"])
    with pytest.raises(InputError, match=r"--max-drop: invalid value .found 'much'"):
        parser.parse_all(["--max-drop", "much"])


def test_unknown_word_gets_a_suggestion():
    with pytest.raises(InputError, match="did you mean fp16"):
        Option("precision", Choice(("fp16", "int8")), "help").check("fp61")


def test_help_contains_words_range_and_default():
    text = Option("kind", Choice(lambda: ("a", "b")), "which: {names}", default="a").text
    assert text == "which: a, b (default a)"
    assert Option("x", Number(0, 1, "(]"), "share", default=0.5).text == "share (in (0, 1], default 0.5)"
    assert Option("x", Flag(), "switch", default=False).text == "switch"


def test_option_without_a_value_has_its_bare_value():
    parser = argparse.ArgumentParser()
    Option("qat", Whole(), "help", default=0, bare=2).add(parser)
    assert [parser.parse_args(words).qat for words in ([], ["--qat"], ["--qat", "5"])] == [0, 2, 5]
