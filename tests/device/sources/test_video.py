"""Tests of each decoder with videos made by ffmpeg."""

import os
import shutil
import threading
from importlib.machinery import ModuleSpec
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import sources
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.sources import ffmpeg, opencv, video
from edgeprune_device.vision import preprocess

from .clips import COLOURS, children_of, colour_index, solid, soon


def test_frames_of_a_video_come_in_order_and_are_repeated(decoder, clip):
    with sources.open(str(clip)) as source:
        assert (source.name, source.live, source.fps, source.warnings) == ("video", False, 10.0, ())
        assert source.description.startswith(f"video {clip}, 80x48, 10 fps, by ")
        frames = list(islice(source.frames(), 17))
        assert [colour_index(source.decode(frame)) for frame in frames] == [*range(7), *range(7), *range(3)]
        assert frames[16].name == f"{clip} frame 16" and frames[0].due_ns == 0
        assert source.warnings == ("the video of 7 frames was repeated; its decoder restarts each time",)


def test_frames_of_a_video_can_be_skipped(decoder, clip):
    with sources.open(str(clip)) as source:
        frames = list(islice(source.frames(), 6))
        assert [colour_index(source.decode(frames[i])) for i in (1, 5)] == [1, 5]
        assert colour_index(source.decode(frames[5])) == 5  # decoded a second time


def test_video_with_any_name_is_opened(decoder, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.avi", "a:b c.avi", "q'\"$(touch pwned)! %03d.avi"):
        shutil.copy(str(clip), name)
        with sources.open(f"video:{name}") as source:
            assert colour_index(source.decode(next(source.frames()))) == 0
    assert not Path("pwned").exists()


def test_rotated_video_is_decoded_upright(decoder, tmp_path, make_clip):
    """Phones and some gimbals record this way: the container states that the image is rotated."""
    image = solid(COLOURS[0])
    image[:, 40:] = COLOURS[2]  # left red, right blue: upright, red is above
    path = make_clip(tmp_path / "turned.mov", [image] * 3)
    data = path.read_bytes()
    matrix = data.index(b"tkhd") + 4 + 40
    quarter = np.array([0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    path.write_bytes(data[:matrix] + quarter + data[matrix + 36 :])
    with sources.open(str(path)) as source:
        seen = source.decode(next(source.frames()))
    assert seen.shape == (80, 48, 3) and f"{48}x{80}" in source.description
    assert colour_index(seen[:36]) == 0 and colour_index(seen[44:]) == 2


def test_file_that_is_not_a_video_is_refused_in_one_line(decoder, tmp_path):
    for content in (b"", b"no video at all\n" * 100, bytes(range(256)) * 64):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mp4: not a video that can be decoded here \(\w+") as caught:
            sources.open(str(tmp_path / "a.mp4"))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such video file"):
        sources.open(f"video:{tmp_path}")


def test_next_decoder_is_tried_after_a_failure(clip, monkeypatch):
    class Unable:
        available = staticmethod(lambda: None)

        class Clip:
            description = "unable"

            def __init__(self, path):
                pass

            def images(self):
                raise InputError("not mine")
                yield

            def close(self):
                pass

    monkeypatch.setattr(video, "DECODERS", (Unable, ffmpeg))
    with sources.open(str(clip)) as source:
        assert "by ffmpeg" in source.description
    monkeypatch.setattr(video, "DECODERS", (Unable, Unable))
    with pytest.raises(InputError, match=r"\(unable: not mine; unable: not mine\)"):
        sources.open(str(clip))


def test_missing_decoder_error_names_the_packages_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: False)
    monkeypatch.setattr(opencv, "find_spec", lambda name: None)
    monkeypatch.delenv("EDGEPRUNE_OPENCV", raising=False)
    with pytest.raises(RuntimeUnavailable, match=r"OpenCV is not installed; ffmpeg is not .* apt-get install ffmpeg"):
        sources.open(str(tmp_path / "a.mp4"))


def test_reason_why_opencv_is_not_used(monkeypatch):
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: False)
    monkeypatch.setattr(opencv, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.delenv("EDGEPRUNE_OPENCV", raising=False)
    assert "installed but cannot be imported" in opencv.available()
    monkeypatch.setenv("EDGEPRUNE_OPENCV", "0")
    assert opencv.available() == "OpenCV is disabled (EDGEPRUNE_OPENCV=0)"
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: True)
    assert opencv.available() is None


# Nothing keeps running after close.


def test_close_leaves_no_process_or_thread(decoder, long_clip):
    before, threads = set(children_of(os.getpid())), threading.active_count()
    source = sources.open(str(long_clip))
    source.decode(next(source.frames()))
    source.close()
    source.close()
    assert soon(lambda: set(children_of(os.getpid())) <= before and threading.active_count() <= threads)


def test_video_with_too_large_frames_is_refused(decoder, tmp_path, make_clip):
    path = make_clip(tmp_path / "a.avi", [solid(COLOURS[0], 1280, 800)] * 2)
    with preprocess.limited(1), pytest.raises(InputError, match=r"too large to decode \(found 1280x800 px"):
        sources.open(str(path))
    with sources.open(str(path)) as source:
        assert source.decode(next(source.frames())).shape == (800, 1280, 3)
