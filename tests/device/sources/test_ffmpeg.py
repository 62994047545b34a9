"""Tests of the ffmpeg decoder with a fake ffmpeg."""

import os

import pytest
from edgeprune_device import sources
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.sources import ffmpeg, video

from .clips import children_of, soon


def test_error_of_a_cut_off_video_gives_the_reason(fake_ffmpeg):
    path = fake_ffmpeg("""
    frame((1, 2, 3))
    print("file:a.mp4: the disk is gone", file=sys.stderr)
    sys.exit(1)
    """)
    with sources.open(path) as source:
        assert round(source.fps, 2) == 29.97 and "by ffmpeg 9.9" in source.description
        frames = source.frames()
        assert source.decode(next(frames)).tolist() == [[[1, 2, 3]] * 32] * 32
        with pytest.raises(InputError, match="the disk is gone"):
            source.decode(next(frames))


def test_hanging_decoder_times_out(fake_ffmpeg, monkeypatch):
    monkeypatch.setattr(video, "_TIMEOUT_S", 0.5)
    path = fake_ffmpeg("out.write(b'P6\\n32'); time.sleep(600)")
    before = children_of(os.getpid())
    with pytest.raises(DeviceError, match=r"a\.mp4: no frame from ffmpeg 9\.9"):
        sources.open(path)
    assert soon(lambda: set(children_of(os.getpid())) <= set(before))


def test_video_without_frames_is_not_repeated_endlessly(fake_ffmpeg):
    with pytest.raises(InputError, match="no frame could be decoded"):
        sources.open(fake_ffmpeg("pass"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"streams": []}', '{"streams": [{"avg_frame_rate": "0/0"}]}'])
def test_video_without_a_frame_rate_has_none(text):
    assert ffmpeg._fps(text) is None


def test_too_large_frames_are_refused_before_memory_is_allocated(fake_ffmpeg):
    with pytest.raises(InputError, match=r"its frame: the image is too large to decode \(found 30000x30000 px"):
        sources.open(fake_ffmpeg("out.write(b'P6\\n30000 30000\\n255\\n'); time.sleep(600)"))
