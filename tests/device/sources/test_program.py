import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from edgeprune_device.sources.program import Program, last_words

from .clips import LIVE, children_of, needs_gstreamer, soon


def test_program_writes_to_its_own_pipe_and_its_messages_are_kept():
    program = Program()
    say = "echo one; echo >&2 'last word'; printf frames >&3; exit 4"
    with program.run(["sh", "-c", say]) as stream:
        assert stream.read() == b"frames"
        assert (program.code(), program.words()) == (4, "last word")
    with program.run(["sh", "-c", "true"]) as stream:
        assert (stream.read(), program.code(), program.words()) == (b"", 0, "no message")


def test_program_is_killed_at_the_end_of_its_block_and_none_starts_after_close():
    program = Program()
    before = children_of(os.getpid())
    with program.run(["sleep", "600"]):
        assert soon(lambda: len(children_of(os.getpid())) == len(before) + 1)
    assert children_of(os.getpid()) == before
    program.close()
    with pytest.raises(RuntimeError, match="closed"), program.run(["sleep", "600"]):
        pass


def test_last_message_is_the_cause_and_not_a_consequence():
    """Messages of GStreamer 1.22."""
    lines = """
ERROR: from element /GstPipeline:pipeline0/GstV4l2Src:v4l2src0: Cannot identify device '/dev/video0'.
Additional debug info:
../sys/v4l2/v4l2_calls.c(608): gst_v4l2_open (): /GstPipeline:pipeline0/GstV4l2Src:v4l2src0:
system error: No such file or directory
ERROR: pipeline doesn't want to preroll.
Failed to set pipeline to PAUSED.
""".splitlines()
    assert last_words(lines).endswith("Cannot identify device '/dev/video0'.")
    wrong = 'WARNING: erroneous pipeline: no element "foo"'
    assert last_words(["GST_ARGUS: Creating output stream\n", f"{wrong}\n", "x"]) == wrong
    assert last_words(["first", "a  b\n", "\n"]) == "a b"
    assert last_words([]) == "no message"


# Nothing keeps running after this process.

OPEN_AND_WAIT = """
import os, signal, sys, time
from edgeprune_device import sources
source = sources.open(sys.argv[1])
print("open", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["at work", "hanging"])
@pytest.mark.parametrize(
    "kind", [pytest.param("camera", marks=needs_gstreamer), pytest.param("video", marks=pytest.mark.needs("ffmpeg"))]
)
def test_programs_end_with_this_process_even_after_kill_9(kind, stopped, request):
    text = LIVE if kind == "camera" else str(request.getfixturevalue("long_clip"))
    environment = {**os.environ, "EDGEPRUNE_OPENCV": "0"}  # to make ffmpeg the decoder
    command = [sys.executable, "-c", OPEN_AND_WAIT, text]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as us:
        try:
            assert us.stdout.readline() == b"open\n"
            assert soon(lambda: children_of(us.pid))
            programs = children_of(us.pid)
            for pid in programs if stopped else ():
                os.kill(pid, signal.SIGSTOP)
        finally:
            us.kill()
    assert soon(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and is_alive(pid) for pid in programs))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
