"""Real pictures, videos made here by ffmpeg, and GStreamer's own live test source; no camera was at hand."""

import glob
import io
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import sources
from edgeprune_device.errors import DeviceError, InputError, RuntimeUnavailable
from edgeprune_device.sources import camera, ffmpeg, gstreamer, opencv, pictures, video, y4m
from edgeprune_device.sources.program import Program, last_words
from edgeprune_device.sources.reader import Reader
from edgeprune_device.sources.source import Frame, Source
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.evaluation import EvaluationSet
from hypothesis import given
from hypothesis import strategies as st
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


@pytest.fixture(
    params=[
        pytest.param(opencv, id="opencv"),
        pytest.param(ffmpeg, id="ffmpeg", marks=pytest.mark.needs("ffmpeg", "ffprobe")),
        pytest.param(gstreamer, id="gstreamer", marks=needs_gstreamer),
    ]
)
def decoder(request, monkeypatch):
    """Each decoder that is here, alone."""
    if request.param.available():
        pytest.skip(request.param.available())
    monkeypatch.setattr(video, "DECODERS", (request.param,))
    return request.param


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Seven frames of one colour each, 80x48, 10 fps, Motion JPEG: a codec that all three decoders have."""
    return make_clip(tmp_path_factory.mktemp("clip") / "colours.avi", [solid(colour) for colour in COLOURS])


@pytest.fixture
def long_clip(tmp_path):
    """More than fits into a pipe and the frames ahead: its decoder has to wait."""
    return make_clip(tmp_path / "long.avi", [solid(COLOURS[i % 7], 640, 480) for i in range(20)])


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


# Which source a text means


def test_the_bundle_is_the_default(labelled_pictures):
    truth = EvaluationSet.read(EvaluationSet.pack(labelled_pictures))
    with sources.open(bundle_pictures=truth) as source:
        assert (source.name, source.live, source.fps, source.warnings) == ("bundle", False, None, ())
        assert source.description == "the bundle's evaluation set (3 files, PNG, in memory)"
        names = [frame.name for frame in islice(source.frames(), 7)]
        assert names == ["p0.png", "p1.png", "p2.png", "p0.png", "p1.png", "p2.png", "p0.png"]
        assert source.decode(next(source.frames())).shape == (64, 64, 3)


def test_a_bundle_without_pictures_asks_for_other_frames():
    with pytest.raises(InputError, match="--source"):
        sources.open("bundle", None)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("bundle", "bundle"),
        ("csi", "camera"),
        ("csi:1", "camera"),
        ("/dev/video0", "camera"),
        ("/dev/v4l/by-id/usb-cam", "camera"),
        ("videotestsrc ! identity", "camera"),
        ("folder", "pictures"),
        ("folder/a.JPG", "pictures"),
        ("folder/*.jpg", "pictures"),
        ("flight.mp4", "video"),
        ("odd [1].mp4", "video"),
    ],
)
def test_the_kind_is_seen_from_the_text(text, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name in ("folder/a.JPG", "flight.mp4", "odd [1].mp4"):
        (tmp_path / name).touch()
    takers = [name for name in sources.KINDS if sources._module(name).takes(text)]
    assert takers[0] == kind


def test_a_kind_can_be_named(tmp_path):
    save(tmp_path / "frame.mp4", format="PNG")  # a picture, whatever its suffix
    with sources.open(f"pictures:{tmp_path / 'frame.mp4'}") as source:
        assert source.name == "pictures" and "PNG" in source.description


@pytest.mark.parametrize("text", ["nowhere", "nowhere.mp4", "bundle2", ""])
def test_what_is_no_source_is_told_what_would_be_one(text):
    with pytest.raises(InputError, match="give bundle, a folder") as caught:
        sources.open(text)
    assert "\n" not in str(caught.value)


# Pictures


def test_pictures_of_a_folder_come_by_name_and_over_again(tmp_path):
    for i, name in enumerate(("b.png", "a.jpg", "c.JPEG")):
        save(tmp_path / name, solid(COLOURS[i]))
    (tmp_path / "labels.txt").write_text("0 0 0 1 1")
    (tmp_path / "._a.jpg").write_bytes(b"what macOS leaves")
    with sources.open(str(tmp_path)) as source:
        assert source.description == f"pictures in {tmp_path} (3 files, JPEG and PNG, in memory)"
        frames = list(islice(source.frames(), 4))
        assert [Path(frame.name).name for frame in frames] == ["a.jpg", "b.png", "c.JPEG", "a.jpg"]
        assert [colour_index(source.decode(frame)) for frame in frames] == [1, 0, 2, 1]


def test_pictures_are_read_beforehand(tmp_path):
    save(tmp_path / "a.png")
    source = sources.open(str(tmp_path))
    (tmp_path / "a.png").unlink()
    assert source.decode(next(source.frames())).shape == (48, 80, 3) and source.warnings == ()


def test_pictures_that_are_too_many_for_memory_are_read_one_by_one_and_it_is_said(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_MEMORY_BYTES", 10)
    source = sources.open(str(tmp_path))
    assert "read frame by frame" in source.description and "disk" in source.warnings[0]
    frame = next(source.frames())
    assert source.decode(frame).shape == (48, 80, 3)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png"):
        source.decode(frame)


def test_a_glob_and_one_file(tmp_path):
    (tmp_path / "deep").mkdir()
    save(tmp_path / "deep" / "a.png")
    save(tmp_path / "b [1].png")
    assert next(sources.open(f"{tmp_path}/**/a.png").frames()).name == str(tmp_path / "deep" / "a.png")
    assert "1 file, PNG" in sources.open(f"{tmp_path}/b [1].png").description  # the file, not the pattern
    with pytest.raises(InputError, match="matches"):
        sources.open(f"{tmp_path}/*.jpg")


def test_a_folder_without_pictures_is_told_where_they_may_be(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="no picture in this folder"):
        sources.open(str(tmp_path))


def test_a_broken_picture_is_named(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.png: not a picture"):
        sources.open(str(tmp_path))
    whole = save(tmp_path / "b.png", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])  # its head is fine
    source = sources.open(str(tmp_path))
    frames = list(islice(source.frames(), 2))
    assert source.decode(frames[0]).shape == (48, 80, 3)
    with pytest.raises(InputError, match=r"b\.png"):
        source.decode(frames[1])


def test_turned_and_16_bit_pictures_come_as_the_detector_was_trained_on_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    save(tmp_path / "a.jpg", exif=exif.tobytes())
    Image.fromarray(np.full((48, 80), 0x4321, np.uint16)).save(str(tmp_path / "b.png"))
    source = sources.open(str(tmp_path))
    turned, deep = (source.decode(frame) for frame in islice(source.frames(), 2))
    assert turned.shape == (80, 48, 3)
    assert deep.shape == (48, 80, 3) and (deep == 0x43).all()


# Videos


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


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """use(body): a fake ffmpeg that writes its frames as `body` says, by `frame(colour)` and `out`."""
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


# Y4M


@given(st.integers(16, 70), st.integers(16, 40), st.booleans(), st.integers(1, 3), st.integers(0, 255))
def test_both_layouts_of_y4m_are_understood(width, height, padded, count, seed):
    images = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    data = b"YUV4MPEG2 C444 W%d H%d Ip F30000:1001 A1:1\n" % (width, height)
    for image in images:
        rows = np.full((3, height, -(-width // 4) * 4 if padded else width), 99, np.uint8)
        rows[:, :, :width] = image[:, :, [1, 2, 0]].transpose(2, 0, 1)
        data += b"FRAME\n" + rows.tobytes()
    stream = y4m.Stream(io.BufferedReader(io.BytesIO(data)), "test")
    assert (stream.width, stream.height, round(stream.fps, 2)) == (width, height, 29.97)
    seen = [y4m.rgb(planes) for planes in stream]
    assert len(seen) == count and all((a == b).all() for a, b in zip(seen, images))


def test_planes_become_pixels_without_opencv(monkeypatch):
    monkeypatch.setattr(preprocess, "uses_opencv", lambda: False)
    planes = np.arange(3 * 20 * 30, dtype=np.uint8).reshape(3, 20, 30)[:, :, :29]
    image = y4m.rgb(planes)
    assert image.flags.c_contiguous and (image == planes[[2, 0, 1]].transpose(1, 2, 0)).all()


@given(st.binary(max_size=200), st.booleans())
def test_what_is_no_y4m_is_refused_and_never_a_frame(data, with_head):
    head = b"YUV4MPEG2 C444 W16 H16 F30:1\nFRAME\n" if with_head else b""
    try:
        frames = list(y4m.Stream(io.BufferedReader(io.BytesIO(head + data)), "test"))
    except (EOFError, DeviceError):
        return
    assert frames == []  # 16 x 16 px have 768 bytes


@pytest.mark.parametrize(
    "tags", ["C444 W8 H64", "C444 W64 H99999", "C420 W64 H64", "W64 H64", "C444 W64", "C444 W64 Hx", "C444 W64 H64 F3"]
)
def test_y4m_of_another_kind_is_refused_by_name(tags):
    with pytest.raises(DeviceError, match=r"^cam: "):
        y4m.Stream(io.BufferedReader(io.BytesIO(f"YUV4MPEG2 {tags}\n".encode())), "cam")


# A reader and a program


def test_a_reader_waits_for_its_taker_or_drops_for_him():
    def numbers():
        yield from range(100)
        raise InputError("the end")

    waiting = Reader(numbers(), capacity=3)
    assert [waiting.take(5) for _ in range(100)] == list(range(100)) and waiting.dropped == 0
    with pytest.raises(InputError, match="the end"):
        waiting.take(5)
    newest = Reader(numbers(), capacity=1, newest=True)
    assert soon(lambda: newest.arrived == 100) and newest.dropped == 99
    assert newest.peek(5) == newest.take(5) == 99
    for _ in range(2):
        with pytest.raises(InputError, match="the end"):
            newest.take(5)


def test_a_reader_that_is_closed_ends_its_thread_and_its_iterator():
    ended = threading.Event()

    def numbers():
        try:
            number = 0
            while True:
                yield number
                number += 1
        finally:
            ended.set()

    before = threading.active_count()
    reader = Reader(numbers(), capacity=2)
    assert reader.take(5) == 0
    reader.close()
    assert ended.wait(5) and soon(lambda: threading.active_count() <= before)


def test_a_reader_gives_up_after_the_time_that_was_asked():
    go_on = threading.Event()

    def stuck():
        go_on.wait()
        yield 1

    reader = Reader(stuck(), capacity=1)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        reader.take(0.2)
    assert time.monotonic() - began >= 0.2
    go_on.set()
    assert reader.take(5) == 1


def test_a_program_writes_to_its_own_pipe_and_what_it_says_is_kept():
    program = Program()
    say = "echo one; echo >&2 'last word'; printf frames >&3; exit 4"
    with program.run(["sh", "-c", say]) as stream:
        assert stream.read() == b"frames"
        assert (program.code(), program.words()) == (4, "last word")
    with program.run(["sh", "-c", "true"]) as stream:
        assert (stream.read(), program.code(), program.words()) == (b"", 0, "it said nothing")


def test_a_program_is_killed_at_the_end_of_its_block_and_none_starts_after_close():
    program = Program()
    before = children_of(os.getpid())
    with program.run(["sleep", "600"]):
        assert soon(lambda: len(children_of(os.getpid())) == len(before) + 1)
    assert children_of(os.getpid()) == before
    program.close()
    with pytest.raises(RuntimeError, match="closed"), program.run(["sleep", "600"]):
        pass


def test_last_words_are_the_cause_and_not_what_follows_from_it():
    """As GStreamer 1.22 says it."""
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
    assert last_words([]) == "it said nothing"


# Cameras, by GStreamer's own live test source

LIVE = "videotestsrc is-live=true pattern=red ! video/x-raw,width=322,height=242,framerate=50/1"


@needs_gstreamer
def test_a_camera_gives_the_newest_frame_and_counts_the_others():
    with sources.open(LIVE) as source:
        assert (source.name, source.live, source.fps) == ("camera", True, 50.0)
        assert source.description.startswith(f"camera {LIVE}, 322x242, 50 fps, by GStreamer")
        time.sleep(0.5)  # some 25 frames nobody takes
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
def test_a_camera_of_any_size_has_its_colours_in_their_places(size, with_opencv, monkeypatch):
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
def test_a_cameras_password_does_not_go_into_the_report(monkeypatch):
    text = "rtspsrc location=rtsp://pilot:hush@10.0.0.2/a user-id=pilot user-pw=hush token='very hush' ! decodebin"
    monkeypatch.setattr(camera, "elements", lambda _: [["videotestsrc", "num-buffers=9"]])
    with camera.open(text) as source:
        assert "hush" not in source.description and "pilot" not in source.description
        assert source.description.startswith("camera rtspsrc location=rtsp://...@10.0.0.2/a user-id=... user-pw=...")


@needs_gstreamer
def test_a_camera_that_ends_says_so_after_its_last_frame():
    with sources.open(f"{LIVE} ! identity eos-after=3") as source:
        with pytest.raises(DeviceError, match=r"the camera ended after [23] frames"):
            for _ in range(4):
                source.next(5)
        with pytest.raises(DeviceError, match="ended"):
            source.next(5)


@needs_gstreamer
def test_a_camera_that_stops_delivering_is_given_up():
    before = set(children_of(os.getpid()))
    with sources.open(LIVE) as source:
        (child,) = set(children_of(os.getpid())) - before
        os.kill(child, signal.SIGSTOP)  # as a driver that hangs: neither a frame nor an end
        with pytest.raises(DeviceError, match=r"no frame from the camera for 0\.3 s"):
            for _ in range(100):  # what it had written before is still delivered
                source.next(0.3)
    assert soon(lambda: set(children_of(os.getpid())) <= before)


def test_a_camera_that_never_delivers_is_given_up_with_its_last_words(tmp_path, monkeypatch):
    """A fake gst-launch-1.0, which speaks on its standard output as NVIDIA's camera element does."""
    fake_program(tmp_path, "gst-launch-1.0", "import time; print('GST_ARGUS: no signal', flush=True); time.sleep(600)")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(camera, "_START_S", 1.0)
    before = set(children_of(os.getpid()))
    with pytest.raises(DeviceError, match=r"for 1 s \(GStreamer: GST_ARGUS: no signal\); check that it is plugged in"):
        sources.open("csi")
    assert soon(lambda: set(children_of(os.getpid())) <= before)


def test_gstreamer_that_fails_and_then_hangs_is_not_waited_for(tmp_path, monkeypatch):
    """A fake; the real one does so now and then."""
    body = "import time; print('ERROR: from element cam: it broke', flush=True); time.sleep(600)"
    fake_program(tmp_path, "gst-launch-1.0", body)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(DeviceError, match=r"gave no frame .GStreamer: ERROR: from element cam: it broke"):
        sources.open("csi")  # would wait half a minute for a frame


def test_what_a_camera_says_is_not_taken_for_frames(tmp_path, monkeypatch):
    """The same fake, which then delivers."""
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
        assert source.fps is None and "its fps unknown" in source.description
        assert (source.decode(source.next(5)) == (9, 7, 8)).all()


@needs_gstreamer
@pytest.mark.parametrize(
    "text, error, said",
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
def test_a_pipeline_that_cannot_work_says_why_in_one_line(text, error, said):
    if text.startswith("v4l2src") and "v4l2" not in gst_plugins():
        pytest.skip("needs GStreamer's v4l2src")
    with pytest.raises(error) as caught:
        sources.open(text)
    assert said in str(caught.value) and "\n" not in str(caught.value) and text.strip() in str(caught.value)


def gst_plugins():
    return subprocess.run(["gst-inspect-1.0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode()


@needs_gstreamer
def test_a_pipeline_never_meets_a_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with sources.open(f"{LIVE} ! identity name='$(touch a)`touch b`' ! identity name=x;touch<c") as source:
        assert source.next(5)
    assert list(tmp_path.glob("?")) == []


def test_what_the_names_of_cameras_mean(tmp_path):
    assert camera.elements("csi")[0] == ["nvarguscamerasrc", "sensor-id=0"]
    assert camera.elements("csi:2")[0] == ["nvarguscamerasrc", "sensor-id=2"]
    opencv_style = "v4l2src ! video/x-raw, width=640 ! videoconvert ! appsink drop=1"
    assert camera.elements(opencv_style) == [["v4l2src"], ["video/x-raw,", "width=640"], ["videoconvert"]]
    with pytest.raises(InputError, match="no such camera; there is"):
        camera.elements("/dev/video987")


def test_a_camera_without_gstreamer_is_told_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeUnavailable, match=r"gst-launch-1\.0 is not installed; apt-get install gstreamer1\.0-tools"
    ):
        sources.open("csi")


def test_gstreamer_without_y4menc_is_told_what_to_install(tmp_path, monkeypatch):
    """A fake that says what GStreamer 1.22 says then."""
    body = "import sys; sys.exit(print('WARNING: erroneous pipeline: no element \"y4menc\"'))"
    fake_program(tmp_path, "gst-launch-1.0", body)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(RuntimeUnavailable, match="plugins-good"):
        sources.open("csi")


# Whatever happens to us, nothing goes on behind us

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
def test_programs_end_with_us_even_after_kill_9(kind, stopped, request):
    text = LIVE if kind == "camera" else str(request.getfixturevalue("long_clip"))
    environment = {**os.environ, "EDGEPRUNE_OPENCV": "0"}  # so that ffmpeg decodes
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


def test_nothing_is_left_after_close(decoder, long_clip):
    before, threads = set(children_of(os.getpid())), threading.active_count()
    source = sources.open(str(long_clip))
    source.decode(next(source.frames()))
    source.close()
    source.close()
    assert soon(lambda: set(children_of(os.getpid())) <= before and threading.active_count() <= threads)


# A pace


class Clock:
    """A clock that only sleeping, and the test, move on."""

    def __init__(self):
        self.now_ns, self.slept_s = 10**12, []

    def __call__(self):
        return self.now_ns

    def sleep(self, seconds):
        self.slept_s.append(seconds)
        self.now_ns += int(np.ceil(seconds * 1e9))

    def work(self, ms):
        self.now_ns += int(ms * 1e6)


class Numbers(Source):
    """Frames 0, 1, 2 …; `decode` gives the number."""

    name, description = "numbers", "numbers"

    def frames(self):
        number = 0
        while True:
            yield Frame(str(number), number, 0)
            number += 1

    def decode(self, frame):
        return frame.data


def test_at_a_pace_that_is_kept_no_frame_is_dropped():
    clock = Clock()
    paced = sources.Paced(Numbers(), 20, clock, clock.sleep)
    assert (paced.live, paced.fps, paced.description) == (True, 20, "numbers, paced at 20 fps")
    begin, seen = clock(), []
    for _ in range(10):
        frame = paced.next(1)
        seen.append((paced.decode(frame), frame.due_ns - begin, clock() - begin))
        clock.work(ms=30)
    assert seen == [(i, i * 50_000_000, i * 50_000_000) for i in range(10)]
    assert (paced.arrived, paced.dropped, paced.late) == (10, 0, 0)
    assert clock.slept_s == pytest.approx([0.02] * 9)  # slept once a frame, and not polled


def test_at_a_pace_that_is_too_fast_the_newest_frame_is_taken_and_the_others_are_counted():
    clock = Clock()
    paced = sources.Paced(Numbers(), 20, clock, clock.sleep)
    begin, seen = clock(), []
    for work_ms in (120, 0, 60, 260, 0):
        frame = paced.next(1)
        seen.append((frame.data, (frame.due_ns - begin) // 10**6, (clock() - begin) // 10**6))
        clock.work(work_ms)
    #               number, due, taken at: ms
    assert seen == [(0, 0, 0), (2, 100, 120), (3, 150, 150), (4, 200, 210), (9, 450, 470)]
    assert (paced.arrived, paced.dropped) == (10, 5)


@given(st.floats(0.5, 1000), st.lists(st.floats(0, 5000), min_size=1, max_size=30))
def test_every_due_frame_is_either_taken_or_dropped(fps, work_ms):
    clock = Clock()
    paced = sources.Paced(Numbers(), fps, clock, clock.sleep)
    last = -1
    for taken, ms in enumerate(work_ms, 1):
        frame = paced.next(1)
        assert frame.data > last and frame.due_ns <= clock() < frame.due_ns + 1e9 / fps + 2
        assert paced.arrived == frame.data + 1 == taken + paced.dropped
        last = frame.data
        clock.work(ms)


def test_a_source_that_is_slower_than_its_pace_is_late_and_it_shows():
    """A video whose decoder takes 70 ms where 50 are allowed: its clock is moved by its own decoding."""
    clock, turn = Clock(), threading.Semaphore(0)

    class Slow(Numbers):
        streamed = True

        def decode(self, frame):
            assert frame.data == 0 or turn.acquire(timeout=10)  # one frame each time the test asks
            clock.work(ms=70 if frame.data else 5000)  # the first takes long: a decoder has to start
            return frame.data

    paced = sources.Paced(Slow(), 20, clock, clock.sleep)
    begin, seen = clock() + 5_000_000_000, []
    for _ in range(4):
        frame = paced.next(10)
        seen.append((paced.decode(frame), (frame.due_ns - begin) // 10**6, paced.late))
        turn.release()
    assert seen == [(0, 0, 0), (1, 70, 1), (2, 140, 2), (3, 210, 3)]  # due when it is ready: its age is ours
    assert paced.dropped == 0


def test_a_video_at_a_pace_has_each_frame_ready_when_it_is_due(decoder, clip):
    with sources.Paced(sources.open(str(clip)), 40) as paced:
        assert paced.description.endswith("decoded ahead by a thread, paced at 40 fps")
        last = -1
        for i in range(12):
            frame = paced.next(10)
            now = time.monotonic_ns()
            number = int(frame.name.split()[-1])
            assert frame.due_ns <= now and number > last
            assert colour_index(paced.decode(frame)) == number % len(COLOURS)
            last = number
            time.sleep(0.1 if i % 2 else 0)  # 4 frames are due meanwhile
        assert paced.dropped >= 6 and paced.arrived - paced.dropped in (12, 13)
        assert paced.warnings and "repeated" in paced.warnings[0]


def test_a_video_that_breaks_off_breaks_off_at_a_pace_too(fake_ffmpeg):
    with sources.Paced(sources.open(fake_ffmpeg("frame((9, 9, 9)); sys.exit('gone')")), 100) as paced:
        paced.next(10)
        with pytest.raises(InputError, match="gone"):
            paced.next(10)


def test_a_paced_video_that_hangs_is_given_up(fake_ffmpeg):
    with sources.Paced(sources.open(fake_ffmpeg("frame((9, 9, 9)); time.sleep(600)")), 100) as paced:
        paced.next(10)
        with pytest.raises(DeviceError, match=r"no frame for 0\.2 s"):
            paced.next(0.2)
