"""Tests of cameras with GStreamer's live test source; no camera was available."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
from edgeprune_device import sources
from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.sources import camera
from edgeprune_device.vision import preprocess

from .clips import LIVE, TOLERANCE, children_of, fake_program, needs_gstreamer, soon


@needs_gstreamer
def test_camera_gives_the_newest_frame_and_counts_the_others():
    with sources.open(LIVE) as source:
        assert (source.name, source.live, source.fps) == ("camera", True, 50.0)
        assert source.description.startswith(f"camera {LIVE}, 322x242, 50 fps, by GStreamer")
        time.sleep(0.5)  # about 25 frames that are not taken
        frames = []
        for _ in range(3):
            frames.append(source.next(5))
            assert time.monotonic_ns() - frames[-1].due_ns < 5e9
        arrived, dropped = source.arrived, source.dropped
        assert dropped >= 3 and arrived - dropped in (3, 4)  # one more may be waiting
        numbers = [int(frame.name.split()[-1]) for frame in frames]
        assert numbers[0] >= 3 and sorted(set(numbers)) == numbers
        assert 0 < frames[0].due_ns < frames[1].due_ns < frames[2].due_ns
        image = source.decode(frames[0])
        assert image.shape == (242, 322, 3) and np.abs(image.astype(int) - (255, 0, 0)).max() <= TOLERANCE
        assert next(source.frames()).name > ""


@needs_gstreamer
@pytest.mark.parametrize("size", [(64, 48), (66, 50), (33, 17)])
@pytest.mark.parametrize("with_opencv", [True, False])
def test_camera_frames_of_any_size_have_the_right_colours(size, with_opencv, monkeypatch):
    if with_opencv and not preprocess.uses_opencv():
        pytest.skip("needs OpenCV")
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: with_opencv)
    bars = f"videotestsrc is-live=true pattern=smpte75 ! video/x-raw,format=RGB,width={size[0]},height={size[1]}"
    with sources.open(bars) as source:
        image = source.decode(source.next(5)).astype(int)
    assert image.shape == (size[1], size[0], 3)
    # 75 % bars: grey, yellow, cyan, green, magenta, red, blue; one row above the middle, one column in each.
    row = image[size[1] // 4, [size[0] * (2 * i + 1) // 14 for i in range(7)]]
    expected = 191 * np.array([(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)])
    assert np.abs(row - expected).max() <= 2, row


@needs_gstreamer
def test_password_of_a_camera_is_not_in_the_description(monkeypatch):
    text = "rtspsrc location=rtsp://pilot:hush@10.0.0.2/a user-id=pilot user-pw=hush token='very hush' ! decodebin"
    monkeypatch.setattr(camera, "elements", lambda _: [["videotestsrc", "num-buffers=9"]])
    with camera.open(text) as source:
        assert "hush" not in source.description and "pilot" not in source.description
        assert source.description.startswith("camera rtspsrc location=rtsp://...@10.0.0.2/a user-id=... user-pw=...")


@needs_gstreamer
def test_end_of_a_camera_is_reported_after_its_last_frame():
    with sources.open(f"{LIVE} ! identity eos-after=3") as source:
        with pytest.raises(DeviceError, match=r"the camera ended after [23] frames"):
            for _ in range(4):
                source.next(5)
        with pytest.raises(DeviceError, match="ended"):
            source.next(5)


@needs_gstreamer
def test_camera_that_stops_giving_frames_times_out():
    before = set(children_of(os.getpid()))
    with sources.open(LIVE) as source:
        (child,) = set(children_of(os.getpid())) - before
        os.kill(child, signal.SIGSTOP)  # like a hanging driver: neither a frame nor an end
        with pytest.raises(DeviceError, match=r"no frame from the camera for 0\.3 s"):
            for _ in range(100):  # frames written before are still delivered
                source.next(0.3)
    assert soon(lambda: set(children_of(os.getpid())) <= before)


def test_camera_without_frames_times_out_with_its_last_message(tmp_path, monkeypatch):
    """A fake gst-launch-1.0 that prints to its standard output, as NVIDIA's camera element does."""
    fake_program(tmp_path, "gst-launch-1.0", "import time; print('GST_ARGUS: no signal', flush=True); time.sleep(600)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(camera, "_START_S", 1.0)
    before = set(children_of(os.getpid()))
    with pytest.raises(
        DeviceError, match=r"for 1 s \(GStreamer: GST_ARGUS: no signal\); check that the camera is plugged in"
    ):
        sources.open("csi")
    assert soon(lambda: set(children_of(os.getpid())) <= before)


def test_gstreamer_that_fails_and_then_hangs_is_killed(tmp_path, monkeypatch):
    """Uses a fake; the real program sometimes does this."""
    body = "import time; print('ERROR: from element cam: it broke', flush=True); time.sleep(600)"
    fake_program(tmp_path, "gst-launch-1.0", body)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(DeviceError, match=r"gave no frame .GStreamer: ERROR: from element cam: it broke"):
        sources.open("csi")  # would otherwise wait 30 s for a frame


def test_messages_of_a_camera_are_not_taken_for_frames(tmp_path, monkeypatch):
    """The same fake, which then writes frames."""
    fake_program(
        tmp_path,
        "gst-launch-1.0",
        """
        import os, sys, time
        print("GST_ARGUS: Creating output stream", sys.argv[1:], flush=True)
        out = os.fdopen(3, "wb", 0)
        out.write(b"YUV4MPEG2 C444 W32 H32 Ip F0:1 A1:1\\n")
        while True:
            out.write(b"FRAME\\n" + bytes([7]) * 1024 + bytes([8]) * 1024 + bytes([9]) * 1024)
            time.sleep(0.02)
        """,
    )
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with sources.open("csi:1") as source:
        assert source.fps is None and "unknown fps" in source.description
        assert (source.decode(source.next(5)) == (9, 7, 8)).all()


@needs_gstreamer
@pytest.mark.parametrize(
    "text, error, message",
    [
        ("videotestsrc ! nosuchelement", InputError, 'no element "nosuchelement"'),
        ("videotestsrc nosuch=1 ! identity", InputError, "no property"),
        ("videotestsrc ! ! identity", InputError, "beside a '!'"),
        (" ! identity", InputError, "beside a '!'"),
        ("videotestsrc ! identity name='a", InputError, "no closing quotation"),
        ("v4l2src device=/dev/video99 ! decodebin", DeviceError, "Cannot identify device"),
        ("audiotestsrc ! identity", InputError, "could not link"),
    ],
)
def test_error_of_an_invalid_pipeline_is_one_line_with_the_reason(text, error, message):
    if text.startswith("v4l2src") and "v4l2" not in gst_plugins():
        pytest.skip("needs GStreamer's v4l2src")
    with pytest.raises(error) as caught:
        sources.open(text)
    assert message in str(caught.value) and "\n" not in str(caught.value) and text.strip() in str(caught.value)


def gst_plugins():
    return subprocess.run(["gst-inspect-1.0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()


@needs_gstreamer
def test_pipeline_is_never_run_by_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sources.open(f"{LIVE} ! identity name='$(touch a)`touch b`' ! identity name=x;touch<c") as source:
        assert source.next(5)
    assert list(tmp_path.glob("?")) == []


def test_camera_names_become_gstreamer_elements(tmp_path):
    assert camera.elements("csi")[0] == ["nvarguscamerasrc", "sensor-id=0"]
    assert camera.elements("csi:2")[0] == ["nvarguscamerasrc", "sensor-id=2"]
    opencv_style = "v4l2src ! video/x-raw, width=640 ! videoconvert ! appsink drop=1"
    assert camera.elements(opencv_style) == [["v4l2src"], ["video/x-raw,", "width=640"], ["videoconvert"]]
    with pytest.raises(InputError, match=r"no such camera \(found"):
        camera.elements("/dev/video987")


def test_missing_gstreamer_error_names_the_packages_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeUnavailable, match=r"gst-launch-1\.0 is not installed; apt-get install gstreamer1\.0-tools"
    ):
        sources.open("csi")


def test_missing_y4menc_error_names_the_package_to_install(tmp_path, monkeypatch):
    """A fake that prints the message of GStreamer 1.22."""
    body = "import sys; sys.exit(print('WARNING: erroneous pipeline: no element \"y4menc\"'))"
    fake_program(tmp_path, "gst-launch-1.0", body)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeUnavailable, match="plugins-good"):
        sources.open("csi")
