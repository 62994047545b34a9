import io
import os

import pytest
from edgeprune_device import terminal
from edgeprune_device.terminal import Look, cells, clipped, look
from fakes.screen import Screen, Session
from hypothesis import given
from hypothesis import strategies as st


class Stream(io.StringIO):
    """A stream that is a terminal, or reports that it is not."""

    encoding = "utf-8"

    def __init__(self, terminal=True):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


TODAY = {"TERM": "xterm-256color", "LANG": "en_US.UTF-8"}


@pytest.mark.parametrize(
    "is_terminal, environ, colour, live, unicode",
    [
        (True, {}, True, True, True),
        (False, {}, False, False, False),
        (True, {"NO_COLOR": "1"}, False, True, True),
        (True, {"NO_COLOR": ""}, True, True, True),  # no-color.org: not empty
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, True, True),
        (False, {"FORCE_COLOR": "1"}, True, False, False),  # coloured logs without redrawn lines
        (False, {"CLICOLOR_FORCE": "1"}, True, False, False),
        (False, {"CLICOLOR_FORCE": "0"}, False, False, False),
        (True, {"CLICOLOR": "0"}, False, True, True),
        (True, {"FORCE_COLOR": "0"}, False, True, True),
        (True, {"TERM": "dumb"}, False, False, False),
        (True, {"TERM": ""}, False, False, False),
        (True, {"TERM": "dumb", "FORCE_COLOR": "1"}, True, False, False),
        (True, {"TERM": "linux"}, True, True, False),  # the kernel's console, whose font has no heavy lines
        (True, {"TERM": "vt100", "LANG": "C"}, True, True, False),  # a serial line
        (True, {"CI": "true"}, True, False, True),  # a CI job may have a terminal, but keeps every line
        (True, {"CI": "false"}, True, True, True),
        (True, {"LANG": "C"}, True, True, False),
        (True, {"LANG": ""}, True, True, False),
        (True, {"LC_ALL": "POSIX"}, True, True, False),
        (True, {"LC_CTYPE": "de_DE.utf8", "LANG": "C"}, True, True, True),
        (True, {"LC_CTYPE": "C.UTF-8", "LANG": "C"}, True, True, False),  # set by Python 3.7 and later themselves
        (True, {"LC_ALL": "C.UTF-8", "LANG": "C"}, True, True, True),
    ],
)
def test_features_of_a_stream(is_terminal, environ, colour, live, unicode):
    assert look(Stream(is_terminal), {**TODAY, **environ}) == Look(colour, live, unicode)


def test_stream_that_is_closed_or_not_utf8_gets_ascii():
    ascii_stream = Stream()
    ascii_stream.encoding = "ascii"
    assert not look(ascii_stream, TODAY).unicode
    closed = io.StringIO()
    closed.close()
    assert look(closed, TODAY) == look(None, TODAY) == Look()


def test_styles_and_ascii_replacements():
    assert Look(colour=True).style("bad", "bold", "red") == "\x1b[1;31mbad\x1b[0m"
    assert Look().style("bad", "bold", "red") == "bad" and Look(colour=True).style("", "red") == ""
    assert Look().text("a → b … ±1.5 µs, grün") == "a -> b ... +-1.5 us, grün"
    assert Look(unicode=True).text("a → b …") == "a → b …"


def test_columns_of_a_terminal_a_pipe_and_a_serial_line(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert terminal.columns(io.StringIO()) == 80
    for text, width in (("132", 132), ("0", 80), ("wide", 80), ("-4", 80)):
        monkeypatch.setenv("COLUMNS", text)
        assert terminal.columns(io.StringIO()) == width
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))  # as reported by a serial console
    monkeypatch.setenv("COLUMNS", "97")
    with open(os.devnull) as stream:
        assert terminal.columns(stream) == 97
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((40, 20)))
    with open(os.devnull) as stream:
        assert terminal.columns(stream) == 40


@given(st.text(alphabet="ab中е́…", max_size=30), st.integers(0, 40), st.sampled_from(["...", "…"]))
def test_clipped_text_fits_and_is_a_prefix(text, width, mark):
    short = clipped(text, width, mark)
    assert cells(short) <= width
    assert short == text if cells(text) <= width else text.startswith(short[: -len(mark)] if width >= len(mark) else "")


def test_cells_of_wide_and_combining_characters():
    assert cells("abc") == 3 and cells("中文") == 4 and cells("е́") == 1


def test_background_job_is_recognised(monkeypatch):
    with open(os.devnull) as stream:
        assert terminal.foreground(stream)  # no terminal, hence no prompt
        monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp() + 1)
        assert not terminal.foreground(stream)


# -- the command on a terminal -----------------------------------------------------------------------------------------
COMMAND = "import sys; from edgeprune_device.cli import main; sys.exit(main(sys.argv[1:]))"


def test_error_on_a_terminal_is_red_with_the_same_text():
    session = Session(COMMAND, "bnch", columns=60)
    assert session.end() == 2
    assert b"edgeprune: \x1b[1;31merror:\x1b[0m unknown command" in session.raw
    assert "".join(session.screen()).startswith("edgeprune: error: unknown command 'bnch'; did you mean bench?")
    plain = Session(COMMAND, "bnch", NO_COLOR="1")
    assert plain.end() == 2 and b"\x1b" not in plain.raw


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_help_fits_every_terminal(columns):
    session = Session(COMMAND, "--help", columns=columns)
    assert session.end() == 0
    lines = session.frames()
    assert all(len(line) <= min(columns, 100) for line in lines), max(lines, key=len)
    assert any(line.startswith("  bench ") for line in lines)
    if columns >= 80:  # argparse does not wrap a list of choices
        text = Session(COMMAND, "bench", "--help", columns=columns)
        assert text.end() == 0 and all(len(line) <= min(columns, 100) for line in text.frames())


def test_fake_screen_wraps_and_refuses_unknown_sequences():
    screen = Screen(5)
    screen.feed("abcdefg\rX\x1b[K\r\n\x1b[1;31mred\x1b[0m")
    assert screen.lines() == ["abcde", "X", "red"]
    for text in ("\x1b[2J", "\x1b[?25l", "\x07"):
        with pytest.raises(AssertionError):
            screen.feed(text)
