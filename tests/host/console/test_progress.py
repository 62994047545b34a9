import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeprune_device import terminal
from edgeprune_device.terminal import Look, cells
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.console import progress
from edgeprune.console.progress import Reporter, render

sys.path.append(str(Path(__file__).parents[2] / "device"))
from fakes.screen import Session

#: A build with two stages; the argument names the function to call in the second.
BUILD = """
import os, signal, subprocess, sys, time, warnings
from edgeprune.console.progress import Reporter
from edgeprune_device.errors import GateError
from edgeprune_device.progress import Line

def main(act):
    reporter = Reporter()
    reporter.plan(3)
    reporter.skip("baseline")
    with reporter.stage("plan") as step:
        step(0.5, "energy: choosing channels")
    reporter.done("304 of 1504 channels removed, ranked by energy, and more words until the line has to break")
    with reporter.stage("finetune") as step:
        for i in range(30):
            step((i + 1) / 30, "epoch %d/3  loss %.3f" % (i // 10 + 1, 2 - i / 30))
            time.sleep(float(os.environ.get("STEP_S", "0.02")))
            if i == 15:
                act(reporter)
    reporter.done("mAP50-95 0.250 (original 0.247)")
    print("the card")

def others(reporter):
    reporter.warn("12 of 20 training images have no labelled box")
    reporter.say("a word")
    warnings.showwarning = lambda message, *rest: print(message, file=sys.stderr)
    warnings.warn("a library warns")
    print("a library", end="")
    print(" prints")

def failing(reporter):
    raise GateError("INT8 loses too much")

def waiting(reporter):
    print("ready")
    time.sleep(60)

def sending(reporter):
    with Line() as line:
        for i in range(3):
            line("drone7: %d %% of 6.0 MB" % i)
            time.sleep(0.5)

def forking(reporter):
    for _ in range(20):
        child = os.fork()
        if not child:
            print("from a worker", file=sys.stderr)
            os._exit(0)
        os.waitpid(child, 0)

try:
    main(globals()[sys.argv[1]] if len(sys.argv) > 1 else lambda reporter: None)
except KeyboardInterrupt:
    print("edgeprune: interrupted", file=sys.stderr)
    sys.exit(130)
except GateError:
    sys.exit(1)
"""
PLAN = "[2/3] plan       0:00  304 of 1504 channels removed, ranked by energy, and more words until the"


def test_each_stage_leaves_one_line_and_the_running_one_is_redrawn():
    session = Session(BUILD, STEP_S="0.06")
    assert session.end() == 0
    shown = session.screen()
    assert shown[0] == "[1/3] baseline         done before, kept"
    assert shown[1:3] == [PLAN, f"{'':23}line has to break"]
    assert shown[3].startswith("[3/3] finetune   0:0") and shown[3].endswith("mAP50-95 0.250 (original 0.247)")
    assert shown[4:] == ["the card"]
    drawn = [frame for frame in session.frames() if "epoch" in frame]
    assert 2 <= len(drawn) <= 6  # thirty steps in 1.8 s, drawn twice a second
    assert all("━" in frame and " %  epoch " in frame and len(frame) < 100 for frame in drawn)
    assert b"\x1b[?25" not in session.raw  # the cursor is never hidden


@pytest.mark.parametrize("columns", [24, 40, 76, 100, 200])
def test_progress_fits_every_terminal_width(columns):
    session = Session(BUILD, "others", columns=columns)
    assert session.end() == 0
    drawn = [frame for frame in session.frames() if " %" in frame]
    assert drawn and all(len(frame) < columns for frame in drawn)
    assert any("━" in frame for frame in drawn) == (columns > 76)
    shown = session.screen()
    assert not any(" %" in line for line in shown) and shown[-1] == "the card"
    if columns >= 76:
        first = shown.index("warning: 12 of 20 training images have no labelled box")
        assert shown[first + 1 : first + 4] == ["a word", "a library warns", "a library prints"]


def test_progress_fits_after_a_resize():
    session = Session(BUILD, "others", columns=120, STEP_S="0.06").until("epoch 1/3")
    session.resize(50)
    assert session.end() == 0
    _, after = session.raw.decode().rsplit("a library prints", 1)
    assert all(len(row) < 50 for row in after.replace("\r", "\n").split("\n") if "\x1b" not in row)
    assert session.screen()[-1] == "the card" and not any("epoch 3" in line for line in session.screen())


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"LANG": "C"}, {"TERM": "vt100", "LC_ALL": "POSIX"}])
def test_progress_respects_no_color_and_ascii_locales(env):
    session = Session(BUILD, "others", **env)
    assert session.end() == 0
    assert (b"\x1b[" in session.raw.replace(b"\x1b[K", b"")) == ("NO_COLOR" not in env)
    assert session.raw.isascii() == ("NO_COLOR" not in env)
    assert any(("━" if "NO_COLOR" in env else "=") in frame for frame in session.frames())


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"CI": "true", "NO_COLOR": "1"}])
def test_dumb_terminals_and_ci_get_plain_lines(env):
    session = Session(BUILD, "others", **env)
    assert session.end() == 0 and b"\x1b" not in session.raw and b"\r" not in session.raw.replace(b"\r\n", b"")
    shown = session.screen()
    assert "[3/3] finetune" in shown and "a library prints" in shown and shown[-1] == "the card"


def test_a_pipe_gets_plain_lines_in_ascii():
    done = subprocess.run([sys.executable, "-c", BUILD, "others"], capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout == b"a library prints\nthe card\n"
    err = done.stderr
    assert err.isascii() and b"\x1b" not in err and b"\r" not in err
    lines = err.decode().splitlines()
    assert lines[:3] == [
        "[1/3] baseline         done before, kept", "[2/3] plan",
        f"{PLAN} line has to break",
    ]  # fmt: skip
    assert lines[3] == "[3/3] finetune" and lines[-1].startswith("[3/3] finetune   0:0")


def test_tee_records_the_same_output(tmp_path):
    shell = f'{sys.executable} -c "$1" others 2>&1 | tee {tmp_path}/log'
    done = subprocess.run(["bash", "-c", shell, "bash", BUILD], capture_output=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "log").read_bytes() == done.stdout
    assert b"warning: 12 of 20" in done.stdout and b"\x1b" not in done.stdout


def test_ctrl_c_reports_the_stopped_stage_and_ends_the_line(own_signals):
    session = Session(BUILD, "waiting", STEP_S="0.06").until("ready")
    session.type(b"\x03")
    assert session.end() == 130
    *_, stopped, last = session.screen()
    assert stopped.startswith("[3/3] finetune   0:0") and stopped.endswith("stopped at 53 %: epoch 2/3  loss 1.500")
    assert last == "edgeprune: interrupted" and session.raw.endswith(b"interrupted\r\n")
    assert b"\x1b[?25" not in session.raw


def test_failed_gate_is_reported_with_its_stage():
    session = Session(BUILD, "failing")
    assert session.end() == 1
    assert session.screen()[-1].endswith("failed at 53 %: epoch 2/3  loss 1.500")


def test_transfer_progress_appears_in_the_stage_line():
    session = Session(BUILD, "sending")
    assert session.end() == 0
    assert any("[3/3] finetune" in frame and "drone7: 1 % of 6.0 MB" in frame for frame in session.frames())
    assert not any("drone7" in line for line in session.screen())


def test_forked_worker_prints_without_the_lock():
    session = Session(BUILD, "forking")
    assert session.end(timeout_s=30) == 0 and session.raw.count(b"from a worker") == 20


def test_paused_terminal_does_not_block_the_work(tmp_path):
    """After Ctrl-S the steps continue; only the drawing waits."""
    code = BUILD.replace("if i == 15:", f"open({str(tmp_path / 'step')!r}, 'w').write(str(i))\n            if i == 15:")
    session = Session(code).until("epoch")
    session.type(b"\x13")
    for _ in range(100):
        time.sleep(0.1)
        if (tmp_path / "step").read_text() == "29":
            break
    else:
        raise AssertionError("the paused terminal blocked the work")
    session.type(b"\x11")
    assert session.end() == 0 and session.screen()[-1] == "the card"


def test_background_job_does_not_draw(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "look", lambda stream: Look(live=True))
    monkeypatch.setattr(terminal, "foreground", lambda stream: False)
    monkeypatch.setattr(progress, "_DRAWN_EVERY_S", 0.01)
    reporter = Reporter()
    with reporter.stage("compare") as step:
        step(0.5, "half")
        time.sleep(0.2)
    assert capsys.readouterr().err == ""


def test_closed_terminal_does_not_end_the_work(monkeypatch):
    class Gone:
        encoding = "utf-8"

        def isatty(self):
            return True

        def write(self, text):
            raise OSError(5, "Input/output error")

        def fileno(self):
            raise OSError

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    reporter = Reporter()
    reporter.say("hello")
    with reporter.stage("compare") as step:
        step(0.5, "half")
    reporter.warn("still here")


def test_quiet_prints_only_warnings(capsys):
    reporter = Reporter(quiet=True)
    reporter.plan(2)
    reporter.skip("baseline")
    with reporter.stage("prune") as step:
        step(0.5, "half")
    reporter.done("it went well")
    reporter.say("a word")
    reporter.warn("look here")
    assert capsys.readouterr().err == "warning: look here\n"


def test_long_stage_prints_every_ten_seconds_and_later_every_minute(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_DRAWN_EVERY_S", 0.001)
    now = 0.0

    def clock():
        nonlocal now
        now += 0.5
        return now

    monkeypatch.setattr(progress.time, "monotonic", clock)
    with Reporter().stage("finetune") as step:
        step(0.1, "epoch 1/10")
        while now < 400:
            os.sched_yield()
    times = [line.split()[1] for line in capsys.readouterr().err.splitlines()[1:]]
    seconds = [int(minutes) * 60 + int(rest) for minutes, rest in (text.split(":") for text in times)]
    gaps = [b - a for a, b in zip([0, *seconds], seconds)]
    assert 9 <= len(gaps) <= 13
    assert all(10 <= gap <= 14 for gap in gaps[:4]) and all(60 <= gap <= 64 for gap in gaps[7:])


def test_unnumbered_stage_leaves_no_line_but_its_result(capsys):
    reporter = Reporter()
    with reporter.stage("compare"):
        pass
    reporter.done("a note")
    assert capsys.readouterr().err.splitlines() == ["compare", "a note"]


def test_standard_streams_are_restored_after_an_error(monkeypatch):
    before = sys.stdout, sys.stderr
    monkeypatch.setattr(terminal, "look", lambda stream: Look(live=True))
    with pytest.raises(ZeroDivisionError), Reporter().stage("compare"):
        assert sys.stderr is not before[1] and sys.stderr.isatty() == before[1].isatty()
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before and progress.progress.owner is None


@given(
    st.integers(20, 220), st.floats(0, 1), st.text(alphabet="ab 中е́…:/%1", max_size=80),
    st.booleans(), st.booleans(), st.sampled_from(["[4/8]", "[10/12]", ""]),
)  # fmt: skip
def test_progress_line_never_reaches_the_last_column(width, fraction, what, colour, unicode, number):
    stage = progress._Stage(number, "finetune")
    stage(fraction, what)
    line = render(stage, width, Look(colour, True, unicode))
    plain = "".join(part.split("m", 1)[-1] if i else part for i, part in enumerate(line.split("\x1b[")))
    assert cells(plain) <= width and "finetune" in plain and "\n" not in line


def test_narrow_terminals_drop_parts_in_order(monkeypatch):
    stage = progress._Stage("[4/8]", "finetune")
    stage(0.42, "epoch 5/10  loss 1.234")
    stage.began -= 72
    monkeypatch.setattr(progress._Stage, "left_s", 130.0)
    look = Look(live=True)
    assert render(stage, 119, look) == (
        "[4/8] finetune   1:12  =========>.............   42 %  epoch 5/10  loss 1.234, 2 min left"
    )
    assert render(stage, 70, look) == "[4/8] finetune   1:12   42 %  epoch 5/10  loss 1.234, 2 min left"
    assert render(stage, 60, look) == "[4/8] finetune   1:12   42 %  epoch 5/10  los..., 2 min left"
    assert render(stage, 39, look) == "[4/8] finetune 42 % 2 min left epoch..."
    assert render(stage, 0, look) == "[4/8] finetune   1:12   42 %  epoch 5/10  loss 1.234, 2 min left"


def test_killed_process_leaves_the_terminal_usable():
    """Progress changes no terminal mode, so SIGKILL leaves nothing to restore."""
    session = Session(BUILD, "waiting", STEP_S="0.06").until("ready")
    os.kill(session._pid, signal.SIGKILL)
    assert session.end() == -signal.SIGKILL and b"\x1b[?" not in session.raw


def test_stages_before_the_plan_are_not_counted(capsys):
    reporter = Reporter()
    with reporter.stage("images"):
        pass
    reporter.plan(2)
    with reporter.stage("baseline"):
        pass
    reporter.done("done")
    assert "[1/2] baseline" in capsys.readouterr().err
