"""Pictures and videos of one colour each, made here by ffmpeg, fake programs, and what became of them."""

import glob
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The colours of a video's frames, in order; far apart, as a codec changes them a little.
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


def make_clip(path, images, fps=10):
    height, width = images[0].shape[:2]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    command = ["ffmpeg", "-v", "error", "-y", *raw, "-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p", str(path)]
    subprocess.run(command, input=b"".join(image.tobytes() for image in images), check=True)
    return path


def colour_index(image):
    """Which of COLOURS the whole picture has."""
    distance = np.abs(image.astype(int)[None] - np.array(COLOURS)[:, None, None]).max(axis=(1, 2, 3))
    assert distance.min() <= TOLERANCE, distance
    return int(distance.argmin())


def save(path, image=None, **options):
    Image.fromarray(solid((10, 20, 30)) if image is None else image).save(str(path), **options)
    return path


def fake_program(folder, name, body):
    """A fake of a program on PATH: a Python script."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(0o755)


def children_of(pid):
    """Process ids of the living children, by /proc."""
    found = []
    for stat in glob.glob("/proc/[0-9]*/stat"):
        try:
            state, parent = Path(stat).read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended
        if int(parent) == pid and state != "Z":
            found.append(int(stat.split("/")[2]))
    return found


def soon(condition, seconds=10.0):
    """Whether it becomes true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


LIVE = "videotestsrc is-live=true pattern=red ! video/x-raw,width=322,height=242,framerate=50/1"
