import subprocess
import sys

import pytest
from edgeprune_device import progress
from fakes.screen import Session

# -- a line that is redrawn ------------------------------------------------------------------------------------------
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
def test_line_is_redrawn_and_leaves_nothing(columns):
    session = Session(LINE, columns=columns)
    assert session.end() == 0
    assert len(session.frames()) == 5 and "75 %" in session.frames()[3]
    assert all(len(frame) < columns for frame in session.frames())
    assert session.screen() == ["done"]


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "1"}])
def test_no_line_on_a_terminal_that_cannot_redraw(env):
    session = Session(LINE, **env)
    assert session.end() == 0 and session.raw == b"done\r\n"


def test_no_line_in_a_pipe():
    done = subprocess.run([sys.executable, "-c", LINE], capture_output=True, timeout=60)
    assert done.stdout == b"done\n" and done.stderr == b""


def test_owner_of_the_last_line_receives_the_text(monkeypatch, capsys):
    texts = []
    monkeypatch.setattr(progress, "owner", texts.append)
    with progress.Line() as line:
        line("half")
    assert texts == ["half"] and capsys.readouterr().err == ""


def test_a_part_of_the_work_moves_its_part_of_the_bar():
    seen = []
    progress.part(lambda done, text: seen.append((done, text)), 0.5, 0.75, "round 2")(0.5, "layer 3/6")
    progress.part(lambda done, text: seen.append((done, text)), 0.0, 0.5)(1.0, "all")
    assert seen == [(0.625, "round 2, layer 3/6"), (0.5, "all")]
