"""Tests of the engine cache: hits and misses, and that TensorRT never gets a plan that was not built here."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace

import pytest
from edgeprune_device import strict_json
from edgeprune_device.cuda import Device
from edgeprune_device.engine import Request, cache, process
from edgeprune_device.engine.cache import Cache
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.trust import keys
from fakes import fake_tensorrt as fake
from fakes import models

ORIN = Device("Orin", "8.7", True, 16)


@pytest.fixture(autouse=True)
def release(fake_tensorrt):
    return fake_tensorrt("10.3.0")


def request(precision="fp32", **more):
    return Request(models.detector(precision), precision, cuda="ctypes", **more)


def test_second_request_builds_nothing(builds, tmp_path):
    first = Cache().engine(request(), ORIN)
    assert not first.cached and first.sm == "8.7" and first.device == "Orin" and first.plan.startswith(fake.MAGIC)
    second = Cache().engine(request(), ORIN)
    assert second.cached and second == first and second.plan == first.plan and len(builds()) == 1
    assert second.path == first.path and second.path.read_bytes() == first.plan  # the raw plan, which trtexec reads
    assert json.loads(second.path.with_suffix(".json").read_text())["engine"] == first.to_json()
    assert stat.S_IMODE(os.stat(str(Cache().folder)).st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in tmp_path.glob("engines/*.plan"))
    assert Cache().engine(request(), ORIN, rebuild=True).cached is False and len(builds()) == 2


def test_every_dependency_of_an_engine_is_part_of_its_key(builds, fake_tensorrt):
    kept = Cache()
    kept.engine(request(), ORIN)
    kept.engine(request("fp16"), ORIN)  # another file, another precision
    kept.engine(request(), replace(ORIN, name="Xavier"))
    kept.engine(request(), replace(ORIN, sm="7.2"))
    kept.engine(request("int8"), ORIN)
    kept.engine(request("int8", fp32_nodes=(models.TAIL,)), ORIN)
    fake_tensorrt("10.12.0.36")  # JetPack was updated
    kept.engine(request(), ORIN)
    fake_tensorrt("8.6.1")
    kept.engine(request(), ORIN)
    assert len(builds()) == 8 and len(list(kept.folder.glob("*.plan"))) == 8


def test_irrelevant_changes_do_not_build_again(builds):
    kept = Cache()
    kept.engine(request("fp16"), ORIN)
    assert kept.engine(request("fp16", fp32_nodes=("/a", "/b")), ORIN).cached  # the file of a typed network has them
    limited = kept.engine(request("fp16", workspace_bytes=256 << 20), ORIN)
    assert not limited.cached and "a different workspace" in limited.warnings[0]
    # An engine that was built with little memory is used for requests without a size.
    assert kept.engine(request("fp16"), ORIN).workspace_bytes == 256 << 20
    assert len(builds()) == 2


def test_board_with_another_number_of_multiprocessors_builds_its_own_engine(builds):
    kept = Cache()
    kept.engine(request(), ORIN)
    assert not kept.engine(request(), Device("Orin", "8.7", True, 8)).cached  # an SD card cloned from an AGX to a Nano
    assert len(builds()) == 2 and len(list(kept.folder.glob("timing-*"))) == 2


def test_timing_cache_is_shared_by_all_models_of_a_release_and_gpu(builds, fake_tensorrt):
    kept = Cache()
    kept.engine(request(), ORIN)
    kept.engine(request("fp16"), ORIN)
    (path,) = kept.folder.glob("timing-*")
    assert path.name == "timing-TensorRT_10.3.0-Orin-8.7-16.cache"
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # a changed file never reaches the native library
    kept.engine(request("int8"), ORIN)
    fake_tensorrt("10.12.0.36")
    kept.engine(request(), ORIN)
    assert [built["timed"] for built in builds()] == ["fresh", "cached", "fresh", "fresh"]
    assert len(list(kept.folder.glob("timing-*"))) == 2


def test_other_signed_data_is_not_accepted_as_a_timing_cache(builds):
    kept = Cache()
    kept.engine(request(), ORIN)
    (path,) = kept.folder.glob("timing-*")
    path.write_bytes(bytes(keys.load_or_create().sign(fake.TIMING + b"10.3.0")))
    kept.engine(request("fp16"), ORIN)
    assert [built["timed"] for built in builds()] == ["fresh", "fresh"]


def test_existing_folder_keeps_its_mode(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)  # like /tmp or /data on a machine on which edgeprune runs as root
    engine = Cache(shared).engine(request(), ORIN)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755 and stat.S_IMODE(engine.path.stat().st_mode) & 0o077 == 0


def test_file_that_changes_during_the_build_is_not_cached(tmp_path, monkeypatch):
    path, build = tmp_path / "m.onnx", process.build
    path.write_bytes(models.detector())

    def change(*given, **more):
        path.write_bytes(models.detector("int8"))
        return build(*given, **more)

    monkeypatch.setattr(process, "build", change)
    with pytest.raises(InputError, match=r"m\.onnx: changed while its engine was built"):
        Cache().engine(Request(path, "int8", cuda="ctypes"), ORIN)
    assert not list(Cache().folder.glob("*.plan"))


def test_lock_that_cannot_be_taken_is_one_line(tmp_path, monkeypatch):
    (Cache().folder / "build.lock").mkdir()
    with pytest.raises(InputError, match=r"build\.lock: cannot be locked \(is a directory\); set EDGEPRUNE_ENGINES"):
        Cache().engine(request(), ORIN)


def test_engine_that_only_prefers_fp32_is_cached(builds, fake_tensorrt, monkeypatch):
    fake_tensorrt("8.6.1")
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "disobey")
    asked = request("int8", fp32_nodes=(models.TAIL,))
    first = Cache().engine(asked, ORIN)
    again = Cache().engine(asked, ORIN)
    assert again.cached and "PREFER_PRECISION_CONSTRAINTS" in again.flags and again.warnings == first.warnings
    assert "only preferred" in again.warnings[0] and len(builds()) == 1


def tampered(engine):
    engine.path.write_bytes(engine.plan + b"x")


def cut_off(engine):
    engine.path.write_bytes(engine.plan[:-1])


def plan_gone(engine):
    engine.path.unlink()


def metadata_gone(engine):
    engine.path.with_suffix(".json").unlink()


def metadata_cut_off(engine):
    path = engine.path.with_suffix(".json")
    path.write_bytes(path.read_bytes()[:-20])


def metadata_changed(engine):
    path = engine.path.with_suffix(".json")
    data = json.loads(path.read_text())
    data["engine"]["warnings"] = ["all is well"]
    path.write_text(json.dumps(data))


def not_an_object(engine):
    engine.path.with_suffix(".json").write_text('["engine"]')


def signature_not_hex(engine):
    path = engine.path.with_suffix(".json")
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "signature": 5}))


def foreign(engine):
    """Store an intact engine that another machine signed."""
    from nacl.signing import SigningKey

    plan = engine.plan + b"evil"
    path = engine.path.with_suffix(".json")
    data = json.loads(path.read_text())
    data["engine"]["plan_sha256"] = hashlib.sha256(plan).hexdigest()
    signed = {"key": data["key"], "engine": data["engine"]}
    signature = SigningKey.generate().sign(strict_json.canonical(signed)).signature.hex()
    engine.path.write_bytes(plan)
    path.write_text(json.dumps({**signed, "signature": signature}))


def another_engines(engine):
    """Store an engine of this machine under the name of another one."""
    other = Cache().engine(request("fp16"), ORIN)
    for suffix in (".plan", ".json"):
        shutil.copy(str(other.path.with_suffix(suffix)), str(engine.path.with_suffix(suffix)))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (tampered, "damaged or changed"),
        (cut_off, "damaged or changed"),
        (plan_gone, "no such file"),
        (metadata_gone, "incomplete"),
        (metadata_cut_off, "not valid JSON"),
        (metadata_changed, "not signed by this machine"),
        (not_an_object, "invalid metadata"),
        (signature_not_hex, "not signed by this machine"),
        (foreign, "not signed by this machine"),
        (another_engines, "describes another engine"),
    ],
)
def test_invalid_stored_engine_is_built_again_with_a_warning(builds, spoil, words):
    engine = Cache().engine(request(), ORIN)
    spoil(engine)
    before = len(builds())
    again = Cache().engine(request(), ORIN)
    assert again.plan.endswith(models.detector()) and len(builds()) == before + 1 and not again.cached
    assert words in again.warnings[0] and "built again" in again.warnings[0]
    stored = Cache().engine(request(), ORIN)
    assert stored.cached and stored.plan == again.plan and stored.warnings == engine.warnings  # now it is valid


def test_new_key_of_the_machine_invalidates_older_engines(home):
    Cache().engine(request(), ORIN)
    shutil.rmtree(str(home))
    again = Cache().engine(request(), ORIN)
    assert not again.cached and "not signed by this machine" in again.warnings[0]


def test_failed_build_leaves_nothing(monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "refuse")
    with pytest.raises(GateError, match="Could not find any implementation"):
        Cache().engine(request(), ORIN)
    assert [path.name for path in Cache().folder.iterdir()] == ["build.lock"]


def test_power_cut_between_plan_and_metadata_leaves_no_engine(monkeypatch, builds):
    write = cache.write_atomic

    def cut(path, data, mode):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return write(path, data, mode)

    monkeypatch.setattr(cache, "write_atomic", cut)
    with pytest.raises(KeyboardInterrupt):
        Cache().engine(request(), ORIN)
    monkeypatch.setattr(cache, "write_atomic", write)
    assert "incomplete" in Cache().engine(request(), ORIN).warnings[0] and len(builds()) == 2


def test_engine_is_returned_even_if_the_disk_is_full(monkeypatch):
    def full(path, data, mode):
        raise InputError(f"{path}: cannot be written (no space left on device)")

    monkeypatch.setattr(cache, "write_atomic", full)
    engine = Cache().engine(request(), ORIN)
    assert engine.plan and engine.path is None and "is not cached" in engine.warnings[0]
    assert "no space left" in engine.warnings[0]


BUILD = """
import pathlib, sys
from edgeprune_device.cuda import Device
from edgeprune_device.engine import Request, cache
request = Request(pathlib.Path(sys.argv[1]), "fp32", cuda="ctypes")
print(cache.Cache().engine(request, Device("Orin", "8.7", True, 16)).cached)
"""


def test_processes_that_start_at_once_build_an_engine_once(builds, tmp_path):
    (tmp_path / "m.onnx").write_bytes(models.detector())
    command = [sys.executable, "-c", BUILD, str(tmp_path / "m.onnx")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    cached = sorted(process.communicate(timeout=120)[0].split()[-1] for process in started)
    assert cached == [b"False", b"True", b"True"] and len(builds()) == 1


def test_waiting_for_another_build_is_reported(monkeypatch):
    import fcntl

    kept, messages = Cache(), []
    with open(kept.folder / "build.lock", "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        flock = fcntl.flock

        def wait(handle, how):
            if not how & fcntl.LOCK_NB:
                flock(stream, fcntl.LOCK_UN)  # the other build has ended
            return flock(handle, how)

        monkeypatch.setattr(fcntl, "flock", wait)
        engine = kept.engine(request(), ORIN, progress=lambda share, what: messages.append(what))
    assert messages[0] == "waiting for another process that builds an engine" and engine.size_bytes


def test_folder_of_the_engines(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPRUNE_ENGINES", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.folder() == tmp_path / "a"
    monkeypatch.delenv("EDGEPRUNE_ENGINES")
    assert cache.folder() == tmp_path / "b" / "edgeprune" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache.folder() == tmp_path / "c" / ".cache" / "edgeprune" / "engines"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set EDGEPRUNE_ENGINES to another folder"):
        Cache(tmp_path / "file")


def test_reading_the_metadata_builds_nothing(monkeypatch):
    Cache().engine(request(), ORIN)
    monkeypatch.setattr(process, "build", lambda *a, **k: pytest.fail("built"))
    assert Cache().engine(request(), ORIN).cached
