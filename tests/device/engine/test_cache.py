"""The engine cache: hit and miss, and that TensorRT never sees a plan which this machine has not built."""

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


def test_the_second_time_nothing_is_built(builds, tmp_path):
    first = Cache().engine(request(), ORIN)
    assert not first.cached and first.sm == "8.7" and first.device == "Orin" and first.plan.startswith(fake.MAGIC)
    second = Cache().engine(request(), ORIN)
    assert second.cached and second == first and second.plan == first.plan and len(builds()) == 1
    assert second.path == first.path and second.path.read_bytes() == first.plan  # raw: trtexec reads it
    assert json.loads(second.path.with_suffix(".json").read_text())["engine"] == first.to_json()
    assert stat.S_IMODE(os.stat(str(Cache().folder)).st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in tmp_path.glob("engines/*.plan"))
    assert Cache().engine(request(), ORIN, rebuild=True).cached is False and len(builds()) == 2


def test_everything_that_an_engine_depends_on_makes_another_one(builds, fake_tensorrt):
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


def test_what_makes_no_difference_does_not_build_again(builds):
    kept = Cache()
    kept.engine(request("fp16"), ORIN)
    assert kept.engine(request("fp16", fp32_nodes=("/a", "/b")), ORIN).cached  # typed: they stand in the file
    limited = kept.engine(request("fp16", workspace_bytes=256 << 20), ORIN)
    assert not limited.cached and "another --workspace" in limited.warnings[0]
    # An engine that was built with little memory serves whoever asks for nothing else.
    assert kept.engine(request("fp16"), ORIN).workspace_bytes == 256 << 20
    assert len(builds()) == 2


def test_a_board_with_another_number_of_multiprocessors_builds_its_own(builds):
    kept = Cache()
    kept.engine(request(), ORIN)
    assert not kept.engine(request(), Device("Orin", "8.7", True, 8)).cached  # a card cloned from an AGX to a Nano
    assert len(builds()) == 2 and len(list(kept.folder.glob("timing-*"))) == 2


def test_the_timing_cache_serves_every_model_of_this_release_and_gpu(builds, fake_tensorrt):
    kept = Cache()
    kept.engine(request(), ORIN)
    kept.engine(request("fp16"), ORIN)
    (path,) = kept.folder.glob("timing-*")
    assert path.name == "timing-TensorRT_10.3.0-Orin-8.7-16.cache"
    path.write_bytes(path.read_bytes()[:-1] + b"!")  # changed: it never reaches the native library
    kept.engine(request("int8"), ORIN)
    fake_tensorrt("10.12.0.36")
    kept.engine(request(), ORIN)
    assert [told["timed"] for told in builds()] == ["fresh", "cached", "fresh", "fresh"]
    assert len(list(kept.folder.glob("timing-*"))) == 2


def test_what_was_signed_for_something_else_is_no_timing_cache(builds):
    kept = Cache()
    kept.engine(request(), ORIN)
    (path,) = kept.folder.glob("timing-*")
    path.write_bytes(bytes(keys.load_or_create().sign(fake.TIMING + b"10.3.0")))
    kept.engine(request("fp16"), ORIN)
    assert [told["timed"] for told in builds()] == ["fresh", "fresh"]


def test_a_folder_that_was_there_keeps_its_mode(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)  # as /tmp or /data of a machine on which edgeprune runs as root
    engine = Cache(shared).engine(request(), ORIN)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755 and stat.S_IMODE(engine.path.stat().st_mode) & 0o077 == 0


def test_a_file_that_changes_meanwhile_is_not_kept_under_the_old_ones_name(tmp_path, monkeypatch):
    path, build = tmp_path / "m.onnx", process.build
    path.write_bytes(models.detector())

    def change(*given, **more):
        path.write_bytes(models.detector("int8"))
        return build(*given, **more)

    monkeypatch.setattr(process, "build", change)
    with pytest.raises(InputError, match=r"m\.onnx: was changed while its engine was built"):
        Cache().engine(Request(path, "int8", cuda="ctypes"), ORIN)
    assert not list(Cache().folder.glob("*.plan"))


def test_a_lock_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    (Cache().folder / "build.lock").mkdir()
    with pytest.raises(InputError, match=r"build\.lock: cannot be locked \(is a directory\); set EDGEPRUNE_ENGINES"):
        Cache().engine(request(), ORIN)


def test_an_engine_that_only_prefers_is_found_again(builds, fake_tensorrt, monkeypatch):
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
    """Another machine's engine, whole and signed by that machine."""
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
    """An engine that this machine has built, under the name of another one."""
    other = Cache().engine(request("fp16"), ORIN)
    for suffix in (".plan", ".json"):
        shutil.copy(str(other.path.with_suffix(suffix)), str(engine.path.with_suffix(suffix)))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (tampered, "is not the plan that was built here"),
        (cut_off, "is not the plan that was built here"),
        (plan_gone, "no such file"),
        (metadata_gone, "was left unfinished"),
        (metadata_cut_off, "not valid JSON"),
        (metadata_changed, "is not signed by this machine"),
        (not_an_object, "is no engine's metadata"),
        (signature_not_hex, "is not signed by this machine"),
        (foreign, "is not signed by this machine"),
        (another_engines, "belongs to another engine"),
    ],
)
def test_what_was_not_built_here_is_built_anew_and_said(builds, spoil, words):
    engine = Cache().engine(request(), ORIN)
    spoil(engine)
    before = len(builds())
    again = Cache().engine(request(), ORIN)
    assert again.plan.endswith(models.detector()) and len(builds()) == before + 1 and not again.cached
    assert words in again.warnings[0] and "built anew" in again.warnings[0]
    found = Cache().engine(request(), ORIN)
    assert found.cached and found.plan == again.plan and found.warnings == engine.warnings  # and now it is whole


def test_a_new_key_of_the_machine_trusts_no_older_engine(home):
    Cache().engine(request(), ORIN)
    shutil.rmtree(str(home))
    again = Cache().engine(request(), ORIN)
    assert not again.cached and "is not signed by this machine" in again.warnings[0]


def test_a_failed_build_leaves_nothing(monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_BUILD", "refuse")
    with pytest.raises(GateError, match="Could not find any implementation"):
        Cache().engine(request(), ORIN)
    assert [path.name for path in Cache().folder.iterdir()] == ["build.lock"]


def test_a_power_cut_between_plan_and_metadata_leaves_no_engine(monkeypatch, builds):
    write = cache.write_atomic

    def cut(path, data, mode):
        if path.suffix == ".json":
            raise KeyboardInterrupt
        return write(path, data, mode)

    monkeypatch.setattr(cache, "write_atomic", cut)
    with pytest.raises(KeyboardInterrupt):
        Cache().engine(request(), ORIN)
    monkeypatch.setattr(cache, "write_atomic", write)
    assert "was left unfinished" in Cache().engine(request(), ORIN).warnings[0] and len(builds()) == 2


def test_a_full_disk_costs_the_cache_and_not_the_engine(monkeypatch):
    def full(path, data, mode):
        raise InputError(f"{path}: cannot be written (no space left on device)")

    monkeypatch.setattr(cache, "write_atomic", full)
    engine = Cache().engine(request(), ORIN)
    assert engine.plan and engine.path is None and "not kept for the next time" in engine.warnings[0]
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
    said = sorted(process.communicate(timeout=120)[0].split()[-1] for process in started)
    assert said == [b"False", b"True", b"True"] and len(builds()) == 1


def test_who_waits_for_another_build_says_so(monkeypatch):
    import fcntl

    kept, said = Cache(), []
    with open(kept.folder / "build.lock", "ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        flock = fcntl.flock

        def wait(handle, how):
            if not how & fcntl.LOCK_NB:
                flock(stream, fcntl.LOCK_UN)  # the other one is done
            return flock(handle, how)

        monkeypatch.setattr(fcntl, "flock", wait)
        engine = kept.engine(request(), ORIN, progress=lambda share, what: said.append(what))
    assert said[0] == "waiting: another process builds an engine" and engine.size_bytes


def test_where_the_engines_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEPRUNE_ENGINES", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache.folder() == tmp_path / "a"
    monkeypatch.delenv("EDGEPRUNE_ENGINES")
    assert cache.folder() == tmp_path / "b" / "edgeprune" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache.folder() == tmp_path / "c" / ".cache" / "edgeprune" / "engines"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="set EDGEPRUNE_ENGINES elsewhere"):
        Cache(tmp_path / "file")


def test_nothing_is_built_while_the_metadata_is_only_read(monkeypatch):
    Cache().engine(request(), ORIN)
    monkeypatch.setattr(process, "build", lambda *a, **k: pytest.fail("built"))
    assert Cache().engine(request(), ORIN).cached
