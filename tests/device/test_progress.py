import subprocess
import sys

import pytest
from edgeprune_device import progress
from fakes.screen import Session

# -- a line that is overwritten ----------------------------------------------------------------------------------------
LINE = """
import sys, time
from edgeprune_device.progress import Line
with Line() as line:
    for i in range(4):
        line("drone7: %d %% of a bundle with a name that is much longer than such a terminal is wide" % (25 * i))
        time.sleep(0.22)
print("done")
"""


@pytest.mark.parametrize("columns", [40, 200])
def test_a_line_is_drawn_over_itself_and_leaves_nothing(columns):
    session = Session(LINE, columns=columns)
    assert session.end() == 0
    assert len(session.frames()) == 5 and "75 %" in session.frames()[3]
    assert all(len(frame) < columns for frame in session.frames())
    assert session.screen() == ["done"]


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "1"}])
def test_no_line_where_it_cannot_be_drawn_over(env):
    session = Session(LINE, **env)
    assert session.end() == 0 and session.raw == b"done\r\n"


def test_no_line_in_a_pipe():
    done = subprocess.run([sys.executable, "-c", LINE], capture_output=True, timeout=60)
    assert done.stdout == b"done\n" and done.stderr == b""


def test_whoever_draws_the_last_line_is_given_what_a_line_says(monkeypatch, capsys):
    said = []
    monkeypatch.setattr(progress, "owner", said.append)
    with progress.Line() as line:
        line("half")
    assert said == ["half"] and capsys.readouterr().err == ""
