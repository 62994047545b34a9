"""`edgeprune run` as a process: the lines that it writes, and their source."""

import json
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BOXES
from edgeprune_device import schema
from edgeprune_device.service.detections import Lines
from edgeprune_device.service.protocol import FRAMES
from edgeprune_device.service.worker import _Worker as Worker
from fakes.service import LIVE, Service

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_gstreamer = pytest.mark.needs("gst-launch-1.0")

# --- lines -----------------------------------------------------------------------------------------------------------


def test_bundle_runs_on_its_own_images_and_ends(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    with Service(tmp_path, bundle.path, "--runtime", "ort", fake=False) as service:
        assert service.process.wait(60) == 0
    lines = service.lines()
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert [line["source"] for line in lines] == ["p0.png", "p1.png", "p2.png"]
    assert {line["release"] for line in lines} == {bundle.sha256[:16]}
    assert lines[0]["width"] == lines[0]["height"] == 64
    detections = sorted((d["class"], d["name"], d["score"], d["box"]) for d in lines[0]["detections"])
    wanted = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h, _ in BOXES]
    assert [d[:3] for d in detections] == [(0, "person", 0.9), (1, "car", 0.9)]
    assert [d[3] for d in detections] == wanted
    assert lines[0]["boot_s"] <= lines[1]["boot_s"] <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_folder_is_read_once_with_boxes_in_pixels_of_its_images(root, folder, serve):
    release = root.add("first", b"ok")
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    lines = service.lines()
    assert [line["source"] for line in lines] == sorted(str(path) for path in folder.iterdir())
    # 20, 20, 10, 10 of 64 px, in an image of 80 x 48 px: scale 0.8, 13 rows of padding above.
    assert lines[0]["detections"] == [{"class": 0, "name": "person", "score": 0.75, "box": [18.8, 2.5, 31.2, 15.2]}]
    assert root.state(release) == "good"  # a finished folder confirms the release
    assert root.releases.counters == {release.key_fingerprint: release.counter}
    status = service.status()
    assert (status["state"], status["reason"], status["release"]) == ("stopped", None, release.identity)


def test_conf_is_the_score_threshold(root, folder, serve):
    root.add("first", b"ok")
    with serve("--source", folder, "--conf", "0.8") as service:
        assert service.process.wait(60) == 0
    assert all(line["detections"] == [] for line in service.lines()) and len(service.lines()) == 40


@pytest.mark.needs("ffmpeg")
def test_video_is_read_once(root, tmp_path, serve):
    clip = tmp_path / "clip.avi"
    source = ["-f", "lavfi", "-i", "testsrc=size=80x48:rate=10", "-frames:v", "7"]
    subprocess.run(["ffmpeg", "-v", "error", *source, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", str(clip)], check=True)
    root.add("first", b"ok")
    with serve("--source", clip) as service:
        assert service.process.wait(60) == 0
    assert [line["source"] for line in service.lines()] == [f"{clip} frame {i}" for i in range(7)]


def test_reader_of_the_output_may_disconnect(bundle, folder, tmp_path):
    with Service(tmp_path, bundle.path, "--source", folder, "--runtime", "null", stdout=subprocess.PIPE) as service:
        json.loads(service.process.stdout.readline().decode())
        service.process.stdout.close()
        assert service.process.wait(30) in (0, 141)  # the pipe may have buffered all output before
    assert "Traceback" not in service.words()


def test_pausing_reader_loses_nothing_and_is_not_a_hang(bundle, tmp_path, folder):
    for i in range(40, 1000):
        os.link(str(folder / "000.png"), str(folder / f"{i:04d}.png"))
    with Service(
        tmp_path, bundle.path, "--source", folder, "--runtime", "null", "--watchdog", "1", stdout=subprocess.PIPE
    ) as service:
        service.process.stdout.readline()
        time.sleep(4)  # the pipe fills up, and the worker waits longer than its watchdog
        rest = service.process.stdout.read().decode().splitlines()
        assert service.process.wait(30) == 0
    assert [json.loads(line)["frame"] for line in rest] == list(range(1, 1000))
    assert "hung" not in service.words()


# --- the source ------------------------------------------------------------------------------------------------------


def test_service_waits_for_a_missing_folder_without_counting_a_start(root, folder, serve):
    fresh = root.add("new", b"ok")
    away = folder.with_name("away")
    folder.rename(away)
    with serve("--source", folder) as service:
        status = service.until(lambda: (service.status() or {}).get("state") == "waiting" and service.status())
        assert str(folder) in status["reason"]
        service.until(lambda: root.releases.get(fresh.identity).starts == 0)
        worker = service.workers()
        time.sleep(1.5)
        assert service.workers() == worker  # the model stays loaded
        away.rename(folder)
        assert service.process.wait(30) == 0
    assert len(service.lines()) == 40 and root.state(fresh) == "good"
    assert service.words().count("waiting for the source") == 1


@needs_gstreamer
def test_lost_camera_is_reopened(root, serve):
    fresh = root.add("new", b"ok")
    with serve("--source", f"{LIVE} ! identity eos-after=10") as service:
        service.until(lambda: sum(line["source"] == "camera frame 3" for line in service.lines()) >= 3)
        assert service.status()["restarts"] == 0 and len(service.workers()) == 1
        assert service.end() == 0
    frames = [line["frame"] for line in service.lines()]
    assert frames == list(range(len(frames)))
    assert "the camera ended after" in service.words()
    assert root.releases.get(fresh.identity).starts == 1


def test_damaged_image_ends_the_service_after_the_lines_of_the_images_before_it(bundle, folder, tmp_path):
    """The image is decoded while the network works on the one before it."""
    damaged = folder / "017.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    with Service(tmp_path, bundle.path, "--source", folder, "--runtime", "null") as service:
        assert service.process.wait(60) == 2
    assert [line["frame"] for line in service.lines()] == list(range(17))
    error = [line for line in service.words().splitlines() if "error:" in line]
    assert len(error) == 1 and error[0].startswith(f"edgeprune: error: {damaged}: not an image that can be decoded")


def test_sigterm_ends_a_folder_in_the_middle_with_whole_lines(bundle, tmp_path, folder):
    for i in range(40, 5000):
        os.link(str(folder / "000.png"), str(folder / f"{i:04d}.png"))
    with Service(tmp_path, bundle.path, "--source", folder, "--runtime", "null") as service:
        service.until(lambda: service.output.stat().st_size > 0)
        assert service.end() == 0
    frames = [line["frame"] for line in service.lines()]
    assert frames == list(range(len(frames))) and 0 < len(frames) < 5000


# --- a single worker -------------------------------------------------------------------------------------------------


def black(number):
    return np.zeros((32, 32, 3), np.uint8)


def nothing(x):
    return [np.zeros((1, 5, 10), np.float32)]


def process(decode=black, infer=nothing, write=lambda line: 0, count=1, due_ns=0, cells=None):
    """Process `count` frames with these stages in a worker of this process."""
    frames = [SimpleNamespace(name=f"{i}.png", data=i, due_ns=due_ns) for i in range(count)]
    source = SimpleNamespace(live=False, fps=None, frames=lambda: iter(frames), decode=lambda frame: decode(frame.data))
    session = SimpleNamespace(infer=infer)
    nms = {"conf": 0.25, "iou": 0.7, "max_det": 10}
    described = SimpleNamespace(task="detect", output="raw", layout="float32-nchw", imgsz=32, classes=["a"], nms=nms)
    worker = object.__new__(Worker)
    worker._cells = dict.fromkeys(range(16), 0) if cells is None else cells
    worker._watchdog_ns, worker._ends = 10**9, False
    worker._order = {"first": 0, "conf": None, "limit_s": 60.0, "overlap": True}
    sink = SimpleNamespace(write=write, problem="")
    worker._frames(source, described, session, Lines("9f86d081884c7d65", ["a"]), sink)


def test_frame_is_counted_before_it_is_written():
    """After a worker was killed in between, the next one must not repeat a number."""

    class Killed(Exception):
        pass

    def killed(line):
        raise Killed

    cells = dict.fromkeys(range(16), 0)
    with pytest.raises(Killed):
        process(write=killed, cells=cells)
    assert cells[FRAMES] == 1


def test_next_image_is_decoded_while_the_network_works():
    """Each meeting passes only if the decoder and the network are at work at the same time."""
    meeting, lines = threading.Barrier(2), []

    def decode(number):
        if number:
            meeting.wait(60)
        return np.full((32, 32, 3), number, np.uint8)

    def infer(x):
        if x[0, 0, 0, 0] < np.float32(7) / np.float32(255):  # the last image is not followed by another one
            meeting.wait(60)
        return nothing(x)

    process(decode, infer, lambda line: lines.append(json.loads(line)) and 0, count=8)
    assert [(line["frame"], line["source"]) for line in lines] == [(i, f"{i}.png") for i in range(8)]


@pytest.mark.parametrize("waited_s", [0, 5])
def test_age_counts_from_the_time_of_the_frame_and_includes_every_stage(waited_s):
    lines = []
    due_ns = time.monotonic_ns() - waited_s * 10**9 if waited_s else 0
    process(write=lambda line: lines.append(json.loads(line)) and 0, count=5, due_ns=due_ns)
    assert len(lines) == 5
    for line in lines:
        schema.check("detections", line, "line")
        assert line["age_ms"] >= max(sum(line["ms"].values()) - 0.01, waited_s * 1e3)


def test_threads_of_the_worker_yield(bundle, monkeypatch):
    """The drone's other programs need the cores, and spinning costs power."""
    pytest.importorskip("onnxruntime")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    worker = object.__new__(Worker)
    worker._order = {"threads": 2, "cuda": "auto", "limit_s": 60.0}
    with worker._session(bundle, "ort", "fp32") as session:
        assert session.spinning is False
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # a setting in the unit takes precedence
    with worker._session(bundle, "ort", "fp32") as session:
        assert session.spinning is True
