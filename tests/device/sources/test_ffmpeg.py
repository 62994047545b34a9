"""The ffmpeg decoder, with a fake ffmpeg."""

import os

import pytest
from edgeprune_device import sources
from edgeprune_device.errors import DeviceError, InputError
from edgeprune_device.sources import ffmpeg, video

from .clips import children_of, soon


def test_a_video_that_breaks_off_says_why(fake_ffmpeg):
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


def test_a_decoder_that_hangs_is_given_up(fake_ffmpeg, monkeypatch):
    monkeypatch.setattr(video, "_TIMEOUT_S", 0.5)
    path = fake_ffmpeg("out.write(b'P6\\n32'); time.sleep(600)")
    before = children_of(os.getpid())
    with pytest.raises(DeviceError, match=r"a\.mp4: no frame from ffmpeg 9\.9"):
        sources.open(path)
    assert soon(lambda: set(children_of(os.getpid())) <= set(before))


def test_a_video_without_frames_does_not_go_round_for_ever(fake_ffmpeg):
    with pytest.raises(InputError, match="no frame could be decoded"):
        sources.open(fake_ffmpeg("pass"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"streams": []}', '{"streams": [{"avg_frame_rate": "0/0"}]}'])
def test_a_video_that_does_not_say_its_pace(text):
    assert ffmpeg._fps(text) is None
