"""Videos made here by ffmpeg, with each decoder."""

import os
import shutil
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import sources
from edgeprune_device.errors import InputError, RuntimeUnavailable
from edgeprune_device.sources import ffmpeg, video
from edgeprune_device.vision import preprocess

from .clips import COLOURS, children_of, colour_index, make_clip, solid, soon


def test_each_frame_of_a_video_comes_in_its_order_and_then_again(decoder, clip):
    with sources.open(str(clip)) as source:
        assert (source.name, source.live, source.fps, source.warnings) == ("video", False, 10.0, ())
        assert source.description.startswith(f"video {clip}, 80x48, 10 fps, by ")
        frames = list(islice(source.frames(), 17))
        assert [colour_index(source.decode(frame)) for frame in frames] == [*range(7), *range(7), *range(3)]
        assert frames[16].name == f"{clip} frame 16" and frames[0].due_ns == 0
        assert source.warnings == ("the video of 7 frames was repeated; its decoder starts anew each time",)


def test_frames_of_a_video_can_be_left_out(decoder, clip):
    with sources.open(str(clip)) as source:
        frames = list(islice(source.frames(), 6))
        assert [colour_index(source.decode(frames[i])) for i in (1, 5)] == [1, 5]
        assert colour_index(source.decode(frames[5])) == 5  # once more


def test_a_video_is_found_whatever_its_name_is(decoder, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.avi", "a:b c.avi", "q'\"$(touch pwned)! %03d.avi"):
        shutil.copy(str(clip), name)
        with sources.open(f"video:{name}") as source:
            assert colour_index(source.decode(next(source.frames()))) == 0
    assert not Path("pwned").exists()


@pytest.mark.needs("ffmpeg")  # to make it
def test_a_turned_video_comes_upright(decoder, tmp_path):
    """As phones and some gimbals record it: the container says that the picture lies on its side."""
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


def test_what_is_no_video_is_told_in_one_line(decoder, tmp_path):
    for content in (b"", b"no video at all\n" * 100, bytes(range(256)) * 64):
        (tmp_path / "a.mp4").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.mp4: not a video that can be decoded here \(\w+") as caught:
            sources.open(str(tmp_path / "a.mp4"))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such video file"):
        sources.open(f"video:{tmp_path}")


def test_a_decoder_that_cannot_leaves_it_to_the_next(clip, monkeypatch):
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


def test_without_any_decoder_it_is_told_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: False)
    with pytest.raises(RuntimeUnavailable, match=r"OpenCV is not installed; ffmpeg is not .* apt-get install ffmpeg"):
        sources.open(str(tmp_path / "a.mp4"))


# Whatever happens to us, nothing goes on behind us


def test_nothing_is_left_after_close(decoder, long_clip):
    before, threads = set(children_of(os.getpid())), threading.active_count()
    source = sources.open(str(long_clip))
    source.decode(next(source.frames()))
    source.close()
    source.close()
    assert soon(lambda: set(children_of(os.getpid())) <= before and threading.active_count() <= threads)
