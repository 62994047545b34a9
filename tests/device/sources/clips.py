"""Helpers: images of one colour, fake programs on PATH, and the state of child processes."""

import glob
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The colours of a video's frames, in order; far apart, because a codec changes them slightly.
COLOURS = [
    (230, 20, 30),
    (20, 220, 40),
    (30, 40, 225),
    (235, 230, 20),
    (20, 200, 210),
    (128, 128, 128),
    (250, 250, 250),
]
TOLERANCE = 8
needs_gstreamer = pytest.mark.needs("gst-launch-1.0")


def solid(colour, width=80, height=48):
    return np.full((height, width, 3), colour, np.uint8)


def colour_index(image):
    """The index in COLOURS of the image's colour."""
    distance = np.abs(image.astype(int)[None] - np.array(COLOURS)[:, None, None]).max(axis=(1, 2, 3))
    assert distance.min() <= TOLERANCE, distance
    return int(distance.argmin())


def save(path, image=None, **options):
    Image.fromarray(solid((10, 20, 30)) if image is None else image).save(str(path), **options)
    return path


def fake_program(folder, name, body):
    """Put a fake program, a Python script, on PATH."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(0o755)


def children_of(pid):
    """The process ids of the live children, from /proc."""
    pids = []
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            state, parent = Path(stat).read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # the process has ended
        if int(parent) == pid and state != "Z":
            pids.append(int(stat.split("/")[2]))
    return pids


def soon(condition, seconds=10.0):
    """Whether the condition becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


LIVE = "videotestsrc is-live=true pattern=red ! video/x-raw,width=322,height=242,framerate=50/1"
