"""`edgeprune run` as a process: lines, releases, crashes, hangs, kills. Models that misbehave are fakes
(`fakes/misbehaving`); cameras are GStreamer's live test source."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BOXES, png
from edgeprune_device import schema
from edgeprune_device.service.protocol import FRAMES
from edgeprune_device.service.worker import _Worker as Worker
from fakes.service import LIVE, MISBEHAVING, Root, Service, alive, children

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_gstreamer = pytest.mark.needs("gst-launch-1.0")


@pytest.fixture
def root(tmp_path, manifest):
    return Root(tmp_path / "root", manifest)


@pytest.fixture
def folder(tmp_path):
    """Forty pictures."""
    made = tmp_path / "pictures"
    made.mkdir()
    for i in range(40):
        (made / f"{i:03d}.png").write_bytes(png(np.full((48, 80, 3), i, np.uint8)))
    return made


@pytest.fixture
def serve(tmp_path, root):
    """serve("--source", …) -> the service on the root, with a short window."""

    def made(*arguments, **kwargs):
        return Service(tmp_path, "--root", root.path, "--window", "1", *arguments, **kwargs)

    return made


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_bundle_runs_on_its_own_pictures_and_ends(bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    with Service(tmp_path, bundle.path, "--runtime", "ort", fake=False) as service:
        assert service.process.wait(60) == 0
    lines = service.lines()
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert [line["source"] for line in lines] == ["p0.png", "p1.png", "p2.png"]
    assert {line["release"] for line in lines} == {bundle.sha256[:16]}
    assert lines[0]["width"] == lines[0]["height"] == 64
    found = sorted((d["class"], d["name"], d["score"], d["box"]) for d in lines[0]["detections"])
    wanted = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h, _ in BOXES]
    assert [d[:3] for d in found] == [(0, "person", 0.9), (1, "car", 0.9)]
    assert [d[3] for d in found] == wanted
    assert lines[0]["boot_s"] <= lines[1]["boot_s"] <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_folder_is_read_once_in_pixels_of_its_pictures(root, folder, serve):
    release = root.add("first", b"ok")
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    lines = service.lines()
    assert [line["source"] for line in lines] == sorted(str(path) for path in folder.iterdir())
    # 20, 20, 10, 10 of 64 px, in a picture of 80 x 48 px: scale 0.8, 13 rows of padding above.
    assert lines[0]["detections"] == [{"class": 0, "name": "person", "score": 0.75, "box": [18.8, 2.5, 31.2, 15.2]}]
    assert root.state(release) == "good"  # a folder that was finished confirms it
    assert root.releases.counter == release.counter
    said = service.status()
    assert (said["state"], said["reason"], said["release"]) == ("stopped", None, release.identity)


def test_conf_is_the_least_score(root, folder, serve):
    root.add("first", b"ok")
    with serve("--source", folder, "--conf", "0.8") as service:
        assert service.process.wait(60) == 0
    assert all(line["detections"] == [] for line in service.lines()) and len(service.lines()) == 40


@pytest.mark.needs("ffmpeg")
def test_a_video_is_read_once(root, tmp_path, serve):
    clip = tmp_path / "clip.avi"
    source = ["-f", "lavfi", "-i", "testsrc=size=80x48:rate=10", "-frames:v", "7"]
    subprocess.run(["ffmpeg", "-v", "error", *source, "-c:v", "mjpeg", "-pix_fmt", "yuvj420p", str(clip)], check=True)
    root.add("first", b"ok")
    with serve("--source", clip) as service:
        assert service.process.wait(60) == 0
    assert [line["source"] for line in service.lines()] == [f"{clip} frame {i}" for i in range(7)]


def test_whoever_reads_the_output_may_go_away(bundle, folder, tmp_path):
    with Service(tmp_path, bundle.path, "--source", folder, "--runtime", "null", stdout=subprocess.PIPE) as service:
        json.loads(service.process.stdout.readline().decode())
        service.process.stdout.close()
        assert service.process.wait(30) in (0, 141)  # the pipe may have taken all of it before
    assert "Traceback" not in service.words()


def test_a_reader_that_pauses_loses_nothing_and_is_no_hang(bundle, tmp_path, folder):
    for i in range(40, 1000):
        os.link(str(folder / "000.png"), str(folder / f"{i:04d}.png"))
    with Service(
        tmp_path, bundle.path, "--source", folder, "--runtime", "null", "--watchdog", "1", stdout=subprocess.PIPE
    ) as service:
        service.process.stdout.readline()
        time.sleep(4)  # the pipe is full meanwhile, and the worker waits longer than its watchdog
        rest = service.process.stdout.read().decode().splitlines()
        assert service.process.wait(30) == 0
    assert [json.loads(line)["frame"] for line in rest] == list(range(1, 1000))
    assert "hung" not in service.words()


# --- releases --------------------------------------------------------------------------------------------------------


@needs_gstreamer
def test_a_release_on_trial_that_runs_well_is_confirmed(root, serve):
    release = root.add("first", b"ok")
    with serve("--source", LIVE) as service:
        service.until(lambda: root.state(release) == "good")
        said = service.until_running()
        assert (said["restarts"], said["lost_lines"], said["reason"]) == (0, 0, None)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert now - 5 < said["last_frame_boot_s"] <= said["boot_s"] <= now
        before = said["frames"]
        service.until(lambda: service.status()["frames"] > before)  # written again and again
        begin = time.monotonic()
        assert service.end() == 0
        assert time.monotonic() - begin < 5
    last = service.status()  # of the worker that has ended, what it did
    assert last["state"] == "stopped" and last["frames"] == len(service.lines()) and last["last_frame_boot_s"]
    assert root.releases.get(release.identity).starts == 1
    assert "confirm" not in service.status() and service.lines()


@pytest.mark.parametrize(
    "model, why",
    [
        pytest.param(b"crash while loading", "SIGSEGV", marks=pytest.mark.slow),
        (b"crash at frame 2", "SIGSEGV"),
        (b"fail while loading", "cannot load it"),
        pytest.param(b"fail at frame 0", "illegal memory access", marks=pytest.mark.slow),
    ],
)
def test_a_release_that_crashes_gives_way_to_the_former_one(root, folder, serve, model, why):
    former = root.add("former", b"ok", state="good")
    fresh = root.add("new", model)
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    assert root.current() == "former"
    record = root.releases.get(fresh.identity)
    assert record.state == "bad" and why in record.reason and record.starts == 3
    assert service.lines()[-1]["release"] == former.identity
    frames = [line["frame"] for line in service.lines()]
    assert frames == sorted(frames) and len(frames) >= 40


def test_garbage_that_is_signed_gives_way_to_the_former_one(root, folder, serve, tiny_onnx):
    """The real ONNX Runtime, and a model that is none."""
    pytest.importorskip("onnxruntime")
    root.add("former", tiny_onnx, state="good")
    fresh = root.add("new", b"\x08\x07garbage" * 100)
    with serve("--source", folder, "--runtime", "ort", fake=False) as service:
        assert service.process.wait(60) == 0
    assert root.current() == "former" and root.state(fresh) == "bad"
    assert "cannot load" in root.releases.get(fresh.identity).reason


def test_a_release_that_hangs_is_killed_and_gives_way(root, folder, serve):
    """Also where the window is no longer than the watchdog: silence is not health."""
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"hang at frame 1")
    with serve("--source", folder, "--watchdog", "1") as service:
        assert service.process.wait(60) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad" and "hung" in record.reason
    assert service.words().count("hung (no frame for 1 s) and was killed") >= 3


@pytest.mark.parametrize("state", ["trial", "good"])
def test_a_damaged_bundle_never_reaches_the_runtime(root, folder, serve, state):
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"crash while loading", state=state)
    root.damage(fresh)
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad" and "SHA-256" in record.reason
    assert record.starts == 0 and "SIGSEGV" not in service.words()


def test_a_current_that_means_nothing_gives_way(root, folder, serve):
    former = root.add("former", b"ok", state="good")
    (root.path / "current").unlink()
    (root.path / "current").symlink_to("releases/0123456789abcdef")
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    assert root.current() == "former" and service.lines()[0]["release"] == former.identity


def test_releases_are_not_condemned_by_a_trust_store_that_is_gone(root, folder, serve, tmp_path):
    former, fresh = root.add("former", b"ok", state="good"), root.add("new", b"ok", state="good")
    with serve("--source", folder, env={"EDGEPRUNE_HOME": str(tmp_path / "another")}) as service:
        said = service.until(lambda: (service.status() or {}).get("state") == "stopped" and service.status())
        assert "not trusted here" in said["reason"]
        assert service.end() == 0
    assert root.current() == "new" and root.state(former) == root.state(fresh) == "good"
    assert service.words().count("cannot take over") == 1


def test_without_a_fallback_a_release_stays_and_is_started_again(root, folder, serve):
    only = root.add("only", b"crash while loading")
    with serve("--source", folder) as service:
        service.until(lambda: (service.status() or {}).get("restarts", 0) >= 4)
        said = service.status()
        assert said["release"] == only.identity and "SIGSEGV" in said["reason"]
        assert service.end() == 0
    assert root.current() == "only" and root.state(only) == "trial"
    assert service.words().count("no good one to fall back to") >= 1


def test_without_any_release_it_waits_for_the_first(root, folder, serve):
    with serve("--source", folder) as service:
        said = service.until(lambda: (service.status() or {}).get("state") == "stopped" and service.status())
        assert "no release yet" in said["reason"] and said["release"] is None
        root.add("first", b"ok")
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(30) == 0
    assert len(service.lines()) == 40


@needs_gstreamer
def test_sighup_switches(root, serve):
    root.add("old", b"ok", state="good")
    with serve("--source", LIVE) as service:
        service.until_running("old", root.releases)
        fresh = root.add("new", b"ok")
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: root.state(fresh) == "good")
        assert len(service.workers()) == 1
        assert service.end() == 0
    frames = [line["frame"] for line in service.lines()]
    assert frames == list(range(len(frames)))  # counted on
    assert service.lines()[-1]["release"] == fresh.identity
    assert service.status()["restarts"] == 0


# --- crashes, hangs and kills ----------------------------------------------------------------------------------------


@needs_gstreamer
def test_a_worker_killed_at_random_moments_comes_again(root, serve):
    root.add("good", b"ok", state="good")
    dice = random.Random(6)
    with serve("--source", LIVE) as service:
        for _ in range(3):
            service.until(service.workers)
            time.sleep(dice.uniform(0, 1.5))
            killed = service.workers()
            assert len(killed) <= 1
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        service.until_running(frames=3)
        assert len(service.workers()) == 1
        assert service.end() == 0
    frames = [line["frame"] for line in service.lines()]
    assert frames == sorted(frames) and root.current() == "good"
    assert "perhaps because memory ran out" in service.words()


@needs_gstreamer
def test_a_supervisor_that_is_killed_takes_its_worker_along(root, serve):
    root.add("good", b"ok", state="good")
    with serve("--source", LIVE) as service:
        service.until_running()
        family = service.workers()
        family += [pid for worker in family for pid in children(worker)]
        assert len(family) == 2  # the worker, and its camera's program
        service.process.kill()
        service.process.wait()
        service.until(lambda: not any(map(alive, family)), seconds=5)
    with serve("--source", LIVE) as service:  # the next one finds nothing in its way
        service.until_running()
        assert len(service.workers()) == 1


@needs_gstreamer
def test_two_services_do_not_share_a_root(root, serve, tmp_path):
    root.add("good", b"ok", state="good")
    (tmp_path / "second").mkdir()
    with serve("--source", LIVE) as service:
        service.until_running()
        with Service(tmp_path / "second", "--root", root.path, "--source", LIVE) as other:
            assert other.process.wait(30) == 2
        assert "another edgeprune run is at work there" in other.words()
        assert service.status()["pid"] == service.process.pid


SITE = """
import os, signal
_left = [int(os.environ["KILL_AT"])]
def _counted(change):
    def wrapped(source, target, *args, **kwargs):
        if not str(target).endswith("status.json"):  # which is no state, and is written every second
            if _left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            _left[0] -= 1
        return change(source, target, *args, **kwargs)
    return wrapped
os.replace, os.symlink = _counted(os.replace), _counted(os.symlink)
"""


@pytest.mark.parametrize(
    "model, wanted, changes",
    [
        (b"ok", "new", 3),  # a start, the counter, good
        (b"", "former", 3),  # damaged: bad, and current in two steps
        pytest.param(b"crash while loading", "former", 6, marks=pytest.mark.slow),
    ],
)
def test_a_power_cut_before_every_change_of_the_disk_leaves_a_release_that_runs(
    root, folder, serve, tmp_path, model, wanted, changes
):
    """Supervisor and worker are killed before the k-th change, for every k; the next start goes on from there."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    former, fresh = root.add("former", b"ok", state="good"), root.add("new", model or b"damaged")
    if not model:
        root.damage(fresh)
    pristine = tmp_path / "pristine"
    root.path.rename(pristine)
    path = os.pathsep.join([str(tmp_path / "site"), str(MISBEHAVING)])
    for k in range(changes + 1):
        shutil.rmtree(str(root.path), ignore_errors=True)
        shutil.copytree(str(pristine), str(root.path), symlinks=True)
        with serve("--source", folder, fake=False, env={"KILL_AT": str(k), "PYTHONPATH": path}) as service:
            code = service.process.wait(60)
        assert code == (-signal.SIGKILL if k < changes else 0)
        assert {release.identity for release in root.releases.all()} == {former.identity, fresh.identity}
        assert root.current() in ("former", "new")
        with serve("--source", folder) as service:
            assert service.process.wait(60) == 0
        assert root.current() == wanted and root.releases.current().state == "good"
        root.releases.open(root.releases.current())


# --- the source ------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_missing_is_waited_for_and_costs_no_start(root, folder, serve):
    fresh = root.add("new", b"ok")
    away = folder.with_name("away")
    folder.rename(away)
    with serve("--source", folder) as service:
        said = service.until(lambda: (service.status() or {}).get("state") == "waiting" and service.status())
        assert str(folder) in said["reason"]
        service.until(lambda: root.releases.get(fresh.identity).starts == 0)
        worker = service.workers()
        time.sleep(1.5)
        assert service.workers() == worker  # the model stays loaded
        away.rename(folder)
        assert service.process.wait(30) == 0
    assert len(service.lines()) == 40 and root.state(fresh) == "good"
    assert service.words().count("waits for the source") == 1


@needs_gstreamer
def test_a_camera_that_goes_away_is_opened_again(root, serve):
    fresh = root.add("new", b"ok")
    with serve("--source", f"{LIVE} ! identity eos-after=10") as service:
        service.until(lambda: sum(line["source"] == "camera frame 3" for line in service.lines()) >= 3)
        assert service.status()["restarts"] == 0 and len(service.workers()) == 1
        assert service.end() == 0
    frames = [line["frame"] for line in service.lines()]
    assert frames == list(range(len(frames)))
    assert "the camera ended after" in service.words()
    assert root.releases.get(fresh.identity).starts == 1


# --- sinks, from outside ---------------------------------------------------------------------------------------------


@needs_gstreamer
def test_a_full_disk_is_said_once_and_counted(root, serve):
    root.add("good", b"ok", state="good")
    with serve("--source", LIVE, "--output", "/dev/full") as service:
        service.until(lambda: service.status() and service.status()["lost_lines"] > 20)
        assert service.status()["state"] == "running" and service.status()["restarts"] == 0
        assert service.end() == 0
    assert service.words().count("lines are lost: no space left on device") == 1


@needs_gstreamer
def test_clients_of_the_socket_read_whole_lines_across_a_crash(root, serve, tmp_path):
    root.add("good", b"ok", state="good")
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()  # its file stays, as after a kill
    with serve("--source", LIVE, "--output", f"unix:{path}") as service:
        service.until_running()
        with socket.socket(socket.AF_UNIX) as client, client.makefile("r") as stream:
            client.connect(str(path))
            first = [schema.check("detections", json.loads(stream.readline()), "line") for _ in range(3)]
            assert [line["frame"] - first[0]["frame"] for line in first] == [0, 1, 2]
            os.kill(service.workers()[0], signal.SIGKILL)
            for line in stream:
                json.loads(line)
        with socket.socket(socket.AF_UNIX) as client, client.makefile("r") as stream:
            client.connect(str(path))  # at once: the listening socket is the supervisor's
            assert json.loads(stream.readline())["frame"] > first[-1]["frame"]
        assert service.end() == 0
    assert not path.exists()


# --- systemd ---------------------------------------------------------------------------------------------------------


@needs_gstreamer
@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(root, serve, tmp_path, abstract):
    root.add("good", b"spin while loading", state="good")
    name = f"\0edgeprune-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(30)
        env = {"NOTIFY_SOCKET": name.replace("\0", "@"), "WATCHDOG_USEC": "1000000"}
        with serve("--source", LIVE, env=env) as service:
            heard, times = [], []
            while "READY=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
                times.append(time.monotonic())
            assert service.until_running()
            assert heard.count("WATCHDOG=1") >= 4  # also while it loads, for four seconds
            assert np.diff(times).max() < 1
            assert any(text.startswith("STATUS=loads good, fp32 on ort") for text in heard)
            heard = []
            while "STATUS=running release" not in " ".join(heard):
                heard += listener.recv(4096).decode().split("\n")
            assert service.end() == 0
            while "STOPPING=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
            assert "READY=1" not in heard


def test_a_service_that_only_waits_is_ready(root, folder, serve, tmp_path):
    root.add("good", b"ok", state="good")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        with serve("--source", "/nowhere", env={"NOTIFY_SOCKET": str(tmp_path / "notify")}):
            heard = []
            while "READY=1" not in heard:
                heard += listener.recv(4096).decode().split("\n")
    assert any(text.startswith("STATUS=waiting: /nowhere") for text in heard)


@needs_gstreamer
def test_the_supervisor_is_small(root, serve):
    root.add("good", b"ok", state="good")
    with serve("--source", LIVE) as service:
        service.until_running()
        maps = Path(f"/proc/{service.process.pid}/maps").read_text()
        assert "numpy" not in maps and "PIL" not in maps
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 48_000  # kB, of which Python itself is 10,000


# --- bad use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--root", "ROOT/nowhere"], "no such folder of releases"),
        (["--root", "ROOT", "--source", ""], "--source is empty"),
        (["--root", "ROOT", "--output", ""], "--output is empty"),
        (["--root", "ROOT", "--output", "ROOT"], "is a folder"),
        (["--root", "ROOT", "--output", "ROOT/nowhere/a.jsonl"], "does not exist"),
        (["--root", "ROOT", "--output", "unix:"], "a socket's path has"),
        (["--root", "ROOT", "--output", f"unix:/{'a' * 120}"], "a socket's path has"),
        (["--root", "ROOT", "--output", "unix:BUNDLE"], "is there already and is no socket"),
        (["--root", "ROOT", "--precision", "fp4"], "invalid choice"),
        (["--root", "ROOT", "--conf", "1.5"], "must lie between 0 and 1"),
        (["--root", "ROOT", "--conf", "nan"], "must be a number above 0"),
        (["--root", "ROOT", "--threads", "0"], "must be a whole number above 0"),
        (["--root", "ROOT", "--watchdog", "0.1"], "must be 1 or more"),
        (["--root", "ROOT", "--window", "-1"], "must be a number above 0"),
        (["--root", "ROOT", "--allow-untrusted"], "goes with BUNDLE"),
        (["--root", "ROOT", "BUNDLE"], "not both"),
        (["ROOT/nowhere.epb"], "no such file"),
        (["BUNDLE", "--runtime", "tpu"], "unknown runtime 'tpu'"),
        (["BUNDLE", "--runtime", "null", "--precision", "int8"], "has no int8 model (the accuracy gate failed)"),
        (["BUNDLE", "--runtime", "null", "--source", "/nowhere"], "no such source"),
        pytest.param(
            ["BUNDLE", "--runtime", "null", "--source", "a ! ! b"], "an element is missing", marks=needs_gstreamer
        ),
    ],
)
def test_bad_use_is_one_line_and_exit_2(root, bundle, tmp_path, arguments, words):
    named = [a.replace("ROOT", str(root.path)).replace("BUNDLE", str(bundle.path)) for a in arguments]
    with Service(tmp_path, *named, fake=False) as service:
        assert service.process.wait(30) == 2
    said = service.words()
    assert words in said and said.count("\n") == 1 and said.startswith("edgeprune: error: ")
    assert service.output.read_bytes() == b""


def test_a_bundle_of_a_stranger_needs_the_option(bundle, tmp_path):
    env = {"EDGEPRUNE_HOME": str(tmp_path / "another")}
    for option, code in (([], 1), (["--allow-untrusted"], 0)):
        with Service(tmp_path, bundle.path, "--runtime", "null", *option, env=env) as service:
            assert service.process.wait(30) == code
    assert len(service.lines()) == 3 and "not trusted here" in service.words()


def test_a_frame_is_counted_before_it_is_written():
    """Whoever comes after a worker that was killed between the two must not give a number twice."""

    class Killed(Exception):
        pass

    def killed(line):
        raise Killed

    one = SimpleNamespace(name="a.png", due_ns=None)
    source = SimpleNamespace(live=False, frames=lambda: iter([one]), decode=lambda _: np.zeros((32, 32, 3), np.uint8))
    session = SimpleNamespace(infer=lambda x: [np.zeros((1, 5, 10), np.float32)])
    described = SimpleNamespace(output="raw", imgsz=32, classes=["a"], nms={"conf": 0.25, "iou": 0.7, "max_det": 10})
    worker = object.__new__(Worker)
    worker._cells, worker._watchdog_ns, worker._ends = dict.fromkeys(range(16), 0), 10**9, False
    worker._order = {"first": 0, "conf": None}
    with pytest.raises(Killed):
        worker._frames(source, described, session, lambda *_: b"", SimpleNamespace(write=killed, problem=""))
    assert worker._cells[FRAMES] == 1


def test_its_threads_yield(bundle, monkeypatch):
    """The drone's other programs need the cores, and spinning costs power."""
    pytest.importorskip("onnxruntime")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    worker = object.__new__(Worker)
    worker._order = {"threads": 2, "cuda": "auto"}
    with worker._session(bundle, "ort", "fp32") as session:
        assert session.spinning is False
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # the unit's owner knows better
    with worker._session(bundle, "ort", "fp32") as session:
        assert session.spinning is True
