"""Each decoder alone, and videos for them."""

import os
import subprocess
import textwrap

import pytest
from edgeprune_device.sources import ffmpeg, gstreamer, opencv, video

from .clips import COLOURS, fake_program, needs_gstreamer, solid


@pytest.fixture(
    params=[
        pytest.param(opencv, id="opencv"),
        pytest.param(ffmpeg, id="ffmpeg", marks=pytest.mark.needs("ffmpeg", "ffprobe")),
        pytest.param(gstreamer, id="gstreamer", marks=needs_gstreamer),
    ]
)
def decoder(request, monkeypatch):
    """Each installed decoder, as the only one."""
    if request.param.available():
        pytest.skip(request.param.available())
    monkeypatch.setattr(video, "DECODERS", (request.param,))
    return request.param


@pytest.fixture(scope="session")
def make_clip():
    """make_clip(path, images, fps=10): a video of these images, from ffmpeg; the fixture marks its tests `needs`."""

    def make(path, images, fps=10):
        height, width = images[0].shape[:2]
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        command = ["ffmpeg", "-v", "error", "-y", *raw, "-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p", str(path)]
        subprocess.run(command, input=b"".join(image.tobytes() for image in images), check=True)
        return path

    return make


@pytest.fixture(scope="session")
def clip(tmp_path_factory, make_clip):
    """Seven frames of one colour each, 80x48, 10 fps, Motion JPEG: a codec that all three decoders have."""
    return make_clip(tmp_path_factory.mktemp("clip") / "colours.avi", [solid(colour) for colour in COLOURS])


@pytest.fixture
def long_clip(tmp_path, make_clip):
    """A clip longer than the pipe and the frames decoded ahead, so that its decoder has to wait."""
    return make_clip(tmp_path / "long.avi", [solid(COLOURS[i % 7], 640, 480) for i in range(20)])


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """use(body): a fake ffmpeg that runs `body`, which writes frames with `frame(colour)` and `out`."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(video, "DECODERS", (ffmpeg,))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    def use(body):
        start = """
        import os, sys, time
        if "-version" in sys.argv:
            sys.exit(print("ffmpeg version 9.9-fake"))
        out = os.fdopen(3, "wb", 0)
        frame = lambda colour: out.write(b"P6\\n32 32\\n255\\n" + bytes(colour) * 1024)
        """
        fake_program(tmp_path, "ffmpeg", textwrap.dedent(start) + textwrap.dedent(body))
        fake_program(tmp_path, "ffprobe", 'print(\'{"streams": [{"avg_frame_rate": "30000/1001"}]}\')')
        return str(tmp_path / "a.mp4")

    return use
