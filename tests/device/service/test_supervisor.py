"""`edgeprune run` as a process: releases, crashes, hangs, kills. Models that misbehave are fakes (`fakes/misbehaving`);
cameras are GStreamer's live test source."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from fakes.service import LIVE, MISBEHAVING, Service, alive, children

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
needs_gstreamer = pytest.mark.needs("gst-launch-1.0")


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


# --- systemd ---------------------------------------------------------------------------------------------------------


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
