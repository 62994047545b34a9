"""`edgeprune run` as a process: releases, crashes, hangs, kills. Misbehaving models are fakes (`fakes/misbehaving`).
The cameras are GStreamer's live test source."""

import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from fakes import models
from fakes.service import LIVE, MISBEHAVING, Service, alive, children

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_gstreamer = pytest.mark.needs("gst-launch-1.0")


# --- releases --------------------------------------------------------------------------------------------------------


@needs_gstreamer
def test_release_on_trial_that_runs_well_is_confirmed(root, serve):
    release = root.add("first", b"ok")
    with serve("--source", LIVE) as service:
        service.until(lambda: root.state(release) == "good")
        status = service.until_running()
        assert (status["restarts"], status["lost_lines"], status["reason"]) == (0, 0, None)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert now - 5 < status["last_frame_boot_s"] <= status["boot_s"] <= now
        before = status["frames"]
        service.until(lambda: service.status()["frames"] > before)  # the status is updated
        begin = time.monotonic()
        assert service.end() == 0
        assert time.monotonic() - begin < 5
    last = service.status()  # the figures of the ended worker
    assert last["state"] == "stopped" and last["frames"] == len(service.lines()) and last["last_frame_boot_s"]
    assert root.releases.get(release.identity).starts == 1
    assert "confirm" not in service.status() and service.lines()


@pytest.mark.parametrize(
    "model, why",
    [
        pytest.param(b"crash while loading", "SIGSEGV", marks=pytest.mark.slow),
        (b"crash at frame 2", "SIGSEGV"),
        (b"fail while loading", "cannot be loaded by"),
        pytest.param(b"fail at frame 0", "illegal memory access", marks=pytest.mark.slow),
    ],
)
def test_crashing_release_is_replaced_by_the_former_one(root, folder, serve, model, why):
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


def test_signed_garbage_is_replaced_by_the_former_release(root, folder, serve, tiny_onnx):
    """Uses the real ONNX Runtime and bytes that are not a model."""
    pytest.importorskip("onnxruntime")
    root.add("former", tiny_onnx, state="good")
    fresh = root.add("new", b"\x08\x07garbage" * 100)
    with serve("--source", folder, "--runtime", "ort", fake=False) as service:
        assert service.process.wait(60) == 0
    assert root.current() == "former" and root.state(fresh) == "bad"
    assert "cannot be loaded" in root.releases.get(fresh.identity).reason


def test_hanging_release_is_killed_and_replaced(root, folder, serve):
    """Holds also if the window is as short as the watchdog: silence is not health."""
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"hang at frame 1")
    with serve("--source", folder, "--watchdog", "1") as service:
        assert service.process.wait(60) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad" and "hung" in record.reason
    assert service.words().count("hung (no frame for 1 s) and was killed") >= 3


@pytest.mark.parametrize("state", ["trial", "good"])
def test_damaged_bundle_never_reaches_the_runtime(root, folder, serve, state):
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"crash while loading", state=state)
    root.damage(fresh)
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad" and "SHA-256" in record.reason
    assert record.starts == 0 and "SIGSEGV" not in service.words()


def test_release_whose_model_never_ends_falls_back(root, folder, serve, tiny_onnx):
    """It uses the processor without end, as a worker does that builds an engine."""
    root.add("former", tiny_onnx, state="good")
    fresh = root.add("new", models.endless(-1.0))
    with serve("--source", folder, "--limit", "1", fake=False) as service:
        assert service.process.wait(100) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad"
    assert "the first inference did not finish within 1 s" in record.reason


@pytest.mark.parametrize("state", ["trial", "good"])
def test_record_with_unknown_runtime_falls_back(root, folder, serve, state):
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"ok", state=state)
    root.releases.write(replace(root.releases.get(fresh.identity), runtime="of-the-future"))
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad" and "of-the-future" in record.reason


@pytest.mark.parametrize("state", ["trial", "good"])
def test_record_with_a_precision_that_its_bundle_lacks_falls_back(root, folder, serve, state):
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"ok", state=state)
    root.releases.write(replace(root.releases.get(fresh.identity), precision="int8"))
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    record = root.releases.get(fresh.identity)
    assert root.current() == "former" and record.state == "bad" and record.starts == 0
    assert "bundle new: no int8 model" in record.reason


def test_precision_of_the_command_line_condemns_no_good_release(root, folder, serve):
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"ok", state="good")
    with serve("--source", folder, "--precision", "int8") as service:
        service.until(lambda: service.words().count("new: no int8 model") >= 2)
        assert service.end() == 0
    assert root.current() == "new" and root.state(fresh) == "good"


def test_invalid_current_link_is_replaced(root, folder, serve):
    former = root.add("former", b"ok", state="good")
    (root.path / "current").unlink()
    (root.path / "current").symlink_to("releases/0123456789abcdef")
    with serve("--source", folder) as service:
        assert service.process.wait(60) == 0
    assert root.current() == "former" and service.lines()[0]["release"] == former.identity


def test_missing_trust_store_does_not_mark_releases_bad(root, folder, serve, tmp_path):
    former, fresh = root.add("former", b"ok", state="good"), root.add("new", b"ok", state="good")
    with serve("--source", folder, env={"EDGEPRUNE_HOME": str(tmp_path / "another")}) as service:
        status = service.until(lambda: (service.status() or {}).get("state") == "stopped" and service.status())
        assert "not trusted on this machine" in status["reason"]
        assert service.end() == 0
    assert root.current() == "new" and root.state(former) == root.state(fresh) == "good"
    assert service.words().count("cannot be used as the fallback") == 1


def test_release_without_a_fallback_stays_and_is_restarted(root, folder, serve):
    only = root.add("only", b"crash while loading")
    with serve("--source", folder) as service:
        service.until(lambda: (service.status() or {}).get("restarts", 0) >= 4)
        status = service.status()
        assert status["release"] == only.identity and "SIGSEGV" in status["reason"]
        assert service.end() == 0
    assert root.current() == "only" and root.state(only) == "trial"
    assert service.words().count("no good release is left to fall back to") >= 1


def test_service_without_a_release_waits_for_the_first(root, folder, serve):
    with serve("--source", folder) as service:
        status = service.until(lambda: (service.status() or {}).get("state") == "stopped" and service.status())
        assert "no release yet" in status["reason"] and status["release"] is None
        root.add("first", b"ok")
        service.process.send_signal(signal.SIGHUP)
        assert service.process.wait(30) == 0
    assert len(service.lines()) == 40


@needs_gstreamer
def test_sighup_switches_the_release(root, serve):
    root.add("old", b"ok", state="good")
    with serve("--source", LIVE) as service:
        service.until_running("old", root.releases)
        fresh = root.add("new", b"ok")
        service.process.send_signal(signal.SIGHUP)
        service.until(lambda: root.state(fresh) == "good")
        assert len(service.workers()) == 1
        assert service.end() == 0
    frames = [line["frame"] for line in service.lines()]
    assert frames == list(range(len(frames)))  # numbers continue
    assert service.lines()[-1]["release"] == fresh.identity
    assert service.status()["restarts"] == 0


# --- crashes, hangs and kills ----------------------------------------------------------------------------------------


@needs_gstreamer
def test_worker_killed_at_random_moments_is_restarted(root, serve):
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
def test_killed_supervisor_ends_its_worker(root, serve):
    root.add("good", b"ok", state="good")
    with serve("--source", LIVE) as service:
        service.until_running()
        family = service.workers()
        family += [pid for worker in family for pid in children(worker)]
        assert len(family) == 2  # the worker, and its camera's program
        service.process.kill()
        service.process.wait()
        service.until(lambda: not any(map(alive, family)), seconds=5)
    with serve("--source", LIVE) as service:  # the next service is not blocked
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
        assert "in use by another edgeprune run" in other.words()
        assert service.status()["pid"] == service.process.pid


SITE = """
import os, signal
_left = [int(os.environ["KILL_AT"])]
def _counted(change):
    def wrapped(source, target, *args, **kwargs):
        if not str(target).endswith("status.json"):  # not part of the state, and written every second
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
        (b"ok", "new", 3),  # the start, the counter, good
        (b"", "former", 3),  # damaged: marked bad, and current changed in two steps
        pytest.param(b"crash while loading", "former", 6, marks=pytest.mark.slow),
    ],
)
def test_power_cut_before_every_change_of_the_disk_leaves_a_working_release(
    root, folder, serve, tmp_path, model, wanted, changes
):
    """Supervisor and worker are killed before the k-th change, for every k; the next start continues from there."""
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


# --- systemd ---------------------------------------------------------------------------------------------------------


@needs_gstreamer
def test_supervisor_uses_little_memory(root, serve):
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
        (["--root", "ROOT/nowhere"], "no such folder"),
        (["--root", "ROOT", "--source", ""], "--source: invalid value (found ''"),
        (["--root", "ROOT", "--output", ""], "--output: invalid value (found ''"),
        (["--root", "ROOT", "--output", "ROOT"], "is a folder"),
        (["--root", "ROOT", "--output", "ROOT/nowhere/a.jsonl"], "does not exist"),
        (["--root", "ROOT", "--output", "unix:"], "socket path too long or empty"),
        (["--root", "ROOT", "--output", f"unix:/{'a' * 120}"], "socket path too long or empty"),
        (["--root", "ROOT", "--output", "unix:BUNDLE"], "already exists and is not a socket"),
        (["--root", "ROOT", "--precision", "fp4"], "expected one of auto, fp32"),
        (["--root", "ROOT", "--conf", "1.5"], "expected a number in (0, 1)"),
        (["--root", "ROOT", "--conf", "nan"], "expected a number in (0, 1)"),
        (["--root", "ROOT", "--threads", "0"], "expected a whole number, at least 1"),
        (["--root", "ROOT", "--watchdog", "0.1"], "expected a number of at least 1"),
        (["--root", "ROOT", "--window", "-1"], "expected a number above 0"),
        (["--root", "ROOT", "--allow-untrusted"], "applies only to BUNDLE"),
        (["--root", "ROOT", "BUNDLE"], "cannot be combined"),
        (["ROOT/nowhere.epb"], "no such file"),
        (["BUNDLE", "--runtime", "tpu"], "--runtime: invalid value (found 'tpu'"),
        (["BUNDLE", "--runtime", "null", "--precision", "int8"], "no int8 model (the accuracy gate failed)"),
        (["BUNDLE", "--runtime", "null", "--source", "/nowhere"], "no such source"),
        pytest.param(
            ["BUNDLE", "--runtime", "null", "--source", "a ! ! b"], "an element is missing", marks=needs_gstreamer
        ),
    ],
)
def test_bad_use_is_one_line_and_exits_with_2(root, bundle, tmp_path, arguments, words):
    named = [a.replace("ROOT", str(root.path)).replace("BUNDLE", str(bundle.path)) for a in arguments]
    with Service(tmp_path, *named, fake=False) as service:
        assert service.process.wait(30) == 2
    message = service.words()
    assert words in message and message.count("\n") == 1 and message.startswith("edgeprune: error: ")
    assert service.output.read_bytes() == b""


def test_untrusted_bundle_needs_the_option(bundle, tmp_path):
    env = {"EDGEPRUNE_HOME": str(tmp_path / "another")}
    for option, code in (([], 1), (["--allow-untrusted"], 0)):
        with Service(tmp_path, bundle.path, "--runtime", "null", *option, env=env) as service:
            assert service.process.wait(30) == code
    assert len(service.lines()) == 3 and "not trusted on this machine" in service.words()


# --- failures not caused by the release ------------------------------------------------------------------------------


@pytest.fixture
def decoder(tmp_path):
    """decoder(CODE) -> the environment in which Pillow runs this code before it decodes an image of 81 x 48 px."""

    def environment(code):
        site = tmp_path / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(
            "import os, signal, time\n"
            "from PIL import ImageFile\n"
            "_load = ImageFile.ImageFile.load\n"
            "def load(self):\n"
            "    if self.size == (81, 48):\n"
            f"        {code}\n"
            "    return _load(self)\n"
            "ImageFile.ImageFile.load = load\n"
        )
        return {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))}

    return environment


def test_slow_image_does_not_count_against_the_release(root, folder, serve, decoder):
    """A release on trial has three starts. A fake decoder takes several times as long as the watchdog waits."""
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"ok")
    (folder / "001.png").write_bytes(png(np.zeros((48, 81, 3), np.uint8)))
    env = decoder("time.sleep(5)")
    with serve("--source", folder, "--watchdog", "1", "--window", "600", env=env) as service:
        service.until(lambda: service.status() and service.status()["restarts"] >= 3)
        status = service.status()
        assert "no image from the source for 1 s" in status["reason"] and status["state"] in ("waiting", "starting")
        assert service.end() == 0
    record = root.releases.get(fresh.identity)
    assert (record.state, record.starts, root.current()) == ("trial", 0, "new")


def test_damaged_image_does_not_count_against_the_release(root, folder, serve):
    """The service ends, and systemd restarts it more often than a release on trial may start."""
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"ok")
    image = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(image[: len(image) // 2])
    for _ in range(2):
        with serve("--source", folder, "--window", "600") as service:
            assert service.process.wait(60) == 2
    record = root.releases.get(fresh.identity)
    assert (record.state, record.starts, root.current()) == ("trial", 0, "new") and "001.png" in service.words()


def test_decoder_that_crashes_during_an_inference_does_not_count_against_the_release(root, folder, serve, decoder):
    """The first crash may be the model's, so the next worker decodes and infers in turn."""
    root.add("former", b"ok", state="good")
    fresh = root.add("new", b"spin at frame 0")
    (folder / "001.png").write_bytes(png(np.zeros((48, 81, 3), np.uint8)))
    # The network works when the decoder crashes.
    env = decoder("time.sleep(0.5); os.kill(os.getpid(), signal.SIGSEGV)")
    with serve("--source", folder, "--window", "600", env=env) as service:
        service.until(lambda: service.status() and service.status()["restarts"] >= 2)
        assert service.end() == 0
    record = root.releases.get(fresh.identity)
    assert (record.state, record.starts, root.current()) == ("trial", 0, "new")
    first, second = (line for line in service.words().splitlines() if "SIGSEGV" in line)
    assert "while it read the source" in second and "while it read the source" not in first
