"""--on: engines and figures of a reference device, over real SSH.

The "Jetson" is this machine with a separate home folder, and its TensorRT and libcudart are the fakes of
tests/device/fakes. The tests prove the transfers and the checks, not NVIDIA's builder and no speed.
"""

import hashlib
import io
import json
import shutil
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from edgeprune_device import cli
from edgeprune_device.engine import Engine
from edgeprune_device.errors import GateError, InputError
from edgeprune_device.trust import keys, signature
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet
from nacl.signing import SigningKey
from PIL import Image

import edgeprune as ep
from edgeprune.console.progress import Reporter
from edgeprune.drones import reference, ssh
from edgeprune.drones.store import Store
from edgeprune.workflow import stages
from edgeprune.workflow.build import run_build
from edgeprune.workflow.card import card

from ..builds import request
from ..loopback import Drone
from ..small import dataset, save, short

sys.path.append(str(Path(__file__).parents[2] / "device"))
from fakes import fake_tensorrt as fake
from fakes import models
from fakes.cudart import compile_cudart
from fakes.reports import make_report, timing

pytestmark = pytest.mark.needs("ssh", "sshd")
DEVICE_TESTS = Path(__file__).parents[2] / "device"

#: The agent there: edgeprune with the fakes for TensorRT and libcudart, and an environment that a test writes.
AGENT = """#!/bin/sh
. "{folder}/environment"
export PYTHONPATH="{fakes}/modules" EDGEPRUNE_LIBCUDART="{cudart}" FAKE_TENSORRT_LOG="{folder}/builds.jsonl"
exec "{python}" "{folder}/agent.py" "$@"
"""
MAIN = """
import os, sys
sys.path[:] = [path for path in sys.path if path != {folder!r}] + [{tests!r}, {fakes!r}]
import fake_tensorrt
from fakes.cudart import FakeCudart
fake_tensorrt.cudart = FakeCudart(os.environ["EDGEPRUNE_LIBCUDART"])
from edgeprune_device import cli
code = cli.main()
{then}
sys.exit(code)
"""


class Jetson:
    """A loopback drone with such an agent; the drone and this host know each other's keys."""

    def __init__(self, folder, cudart):
        self.board = Drone(folder, "/usr/bin:/bin")
        self.folder, self.home = folder, self.board.home
        self._cudart = cudart
        self.agent = self.home / ".local/share/edgeprune/agent/bin/edgeprune"
        self.agent.parent.mkdir(parents=True)
        self.scratch = self.home / ".cache/edgeprune/on"

    def install(self, release="10.3.0", then="", **environment):
        """`then`: Python that corrupts the agent's result. release None: an agent without TensorRT."""
        names = {"EDGEPRUNE_ENGINES": self.home / "engines", **environment}
        names.update({"FAKE_TENSORRT": release} if release else {})
        (self.folder / "environment").write_text("".join(f'export {k}="{v}"\n' for k, v in names.items()))
        fakes = str(DEVICE_TESTS / "fakes")
        (self.folder / "agent.py").write_text(
            MAIN.format(tests=str(DEVICE_TESTS), fakes=fakes, folder=str(self.folder), then=then)
        )
        text = AGENT.format(folder=self.folder, fakes=fakes, cudart=self._cudart, python=sys.executable)
        if release is None:
            text = f'#!/bin/sh\nexec "{sys.executable}" -m edgeprune_device "$@"\n'
        self.agent.write_text(text)
        self.agent.chmod(0o755)

    def enrol(self, name="orin"):
        """Exchange keys in both directions, as setup does."""
        done = self.board.ssh(f"{self.agent} keys export --report")
        keys.enrol(name, keys.public(done.stdout.strip(), "test"))
        folder = self.home / ".config/edgeprune/trusted"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "host.pub").write_text(bytes(keys.load_or_create().verify_key).hex() + "\n")

    def builds(self):
        """The engines that the fake builder has built there."""
        path = self.folder / "builds.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def left(self):
        """The files of --on that are left there."""
        return list(self.scratch.iterdir()) if self.scratch.exists() else []


@pytest.fixture(scope="module")
def cudart(tmp_path_factory):
    return compile_cudart(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def jetson(tmp_path, cudart, monkeypatch):
    """A working Jetson."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reference, "BENCH", ("--seconds", "0.05", "--warmup", "0.05", "--idle", "0.1"))
    device = Jetson(tmp_path / "jetson", cudart)
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {device.board.config}")
    device.install()
    device.enrol()
    yield device
    device.board.close()


@pytest.fixture
def make_bundle(tmp_path):
    """make(…): a bundle of tiny detectors, as `build` writes it for a Jetson."""

    def make(files=None, target="jetson-orin", key=None):
        files = files or {p: models.detector(p) for p in ("fp32", "int8-fp16")}
        truth = np.array([[0, 8, 8, 24, 24]], float)
        pictures = []
        for i in range(3):
            stream = io.BytesIO()
            Image.fromarray(np.full((64, 64, 3), 250 - 20 * i, np.uint8)).save(stream, "PNG")
            pictures.append((f"p{i}.png", stream.getvalue(), truth))
        manifest = {
            "name": "tiny", "counter": keys.next_counter(), "created": "2026-11-22T23:40:00Z",
            "edgeprune_version": "0.1.0", "target": target, "classes": ["person", "car"], "imgsz": [64, 64],
            "letterbox": {"pad": 114, "stride": 32}, "nms": {"conf": 0.25, "iou": 0.7, "max_det": 300},
            "output": "raw", "lineage": {"ratio": 0.2},
            "models": {p: {"payload": f"model.{p}.onnx", "fp32_nodes": [models.TAIL]} for p in files},
            "engines": {"fp16.sm86": {"payload": None, "reason": "a check only"}},
            "evaluation": {"payload": "evaluation.zip", "pictures": 3, "boxes": 3},
        }  # fmt: skip
        payloads = {f"model.{p}.onnx": data for p, data in files.items()}
        payloads["evaluation.zip"] = EvaluationSet.pack(pictures)
        return Bundle.write(tmp_path / "tiny.epb", manifest, payloads, key or keys.load_or_create())

    return make


def edgeprune(capfd, *args):
    code = cli.main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return code, out, err


def engine(capfd, bundle, *more):
    """`edgeprune engine BUNDLE --on drone`."""
    return edgeprune(capfd, "engine", bundle.path, "--on", "drone", "--cuda", "ctypes", *more)


def refused(capfd, jetson, bundle, *words, code=1):
    """The engine command prints these words in one line, writes nothing, and leaves nothing on the device."""
    got, out, err = engine(capfd, bundle)
    assert (got, out) == (code, ""), err
    assert len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert sorted(p.name for p in bundle.path.parent.glob("*.epb")) == ["tiny.epb"]
    assert jetson.left() == [] and Store().entries() == []


def test_the_signed_bundle_contains_the_devices_engines_and_figures(jetson, make_bundle, capfd, tmp_path):
    bundle = make_bundle()
    code, out, err = engine(capfd, bundle)
    assert code == 0, err
    assert "orin (drone): TensorRT 10.3.0 on Fake Orin (SM 8.7)" in out and "warning" not in err
    written = Bundle.open(tmp_path / "tiny.orin.epb")
    assert written.key_fingerprint == keys.fingerprint(keys.load_or_create().verify_key)
    assert written.manifest.counter > bundle.manifest.counter
    assert list(written.manifest.engines) == ["fp16.sm86", "fp32.orin", "int8-fp16.orin"]
    for name in bundle.payloads:
        assert written.read(name) == bundle.read(name)
    reports = {stored.id: stored.read() for stored in Store().entries()}
    for precision in ("fp32", "int8-fp16"):
        entry = written.manifest.engines[f"{precision}.orin"]
        plan = written.read(entry["payload"])
        assert plan.startswith(fake.MAGIC) and plan.endswith(models.detector(precision))
        assert (entry["builder"], entry["for"]) == ("TensorRT 10.3.0", "Fake Orin (SM 8.7)")
        report = reports[entry["bench"]["report"]]
        assert report.precision == precision and report.bundle["sha256"] == bundle.sha256
        assert entry["bench"]["infer_p50_ms"] == report.stages["infer"]["p50_ms"] > 0
        assert entry["bench"]["runtime"].startswith("TensorRT 10.3.0, Fake Orin")
        assert entry["bench"]["bundle_sha256"] == bundle.sha256 and entry["bench"]["device"] == "orin"
        assert entry["bench"]["map50_95"] == report.accuracy.map50_95
    assert jetson.left() == [] and list((tmp_path / "cache/edgeprune/on").iterdir()) == []
    # Another Jetson of the same kind uses the engines and builds nothing.
    assert len(jetson.builds()) == 2
    jetson.install(EDGEPRUNE_ENGINES=jetson.home / "another")
    shutil.copy(str(written.path), str(jetson.home))
    done = jetson.board.ssh(f"{jetson.agent} engine tiny.orin.epb --precision all --cuda ctypes --json")
    engines = json.loads(done.stdout)
    assert [e["adopted_from"] for e in engines] == [written.key_fingerprint] * 2 and len(jetson.builds()) == 2
    # A Jetson with another JetPack builds both.
    jetson.install("8.6.1", EDGEPRUNE_ENGINES=jetson.home / "older")
    done = jetson.board.ssh(f"{jetson.agent} engine tiny.orin.epb --precision all --cuda ctypes --json")
    (description,) = json.loads(done.stdout)
    assert description["precision"] == "fp32" and description["adopted_from"] is None and len(jetson.builds()) == 3
    assert (
        "built by TensorRT 10.3.0 on Fake Orin (SM 8.7)) does not run on TensorRT 8.6.1" in description["warnings"][0]
    )


@pytest.mark.slow
def test_a_second_run_replaces_the_engines_of_the_first(jetson, make_bundle, capfd, tmp_path):
    first = make_bundle()
    assert engine(capfd, first)[0] == 0
    both = Bundle.open(tmp_path / "tiny.orin.epb")
    code, out, _ = engine(capfd, both, "--precision", "fp32", "--rebuild", "--json")
    answer = json.loads(out)
    assert code == 0 and answer["bundle"] == str(both.path) and list(answer["engines"]) == ["fp32.orin"]
    again = Bundle.open(both.path)
    assert list(again.manifest.engines) == list(both.manifest.engines) and set(again.payloads) == set(both.payloads)
    assert again.manifest.engines["int8-fp16.orin"] == both.manifest.engines["int8-fp16.orin"]
    assert again.manifest.engines["fp32.orin"]["bench"]["bundle_sha256"] == both.sha256


def test_a_repeatedly_broken_link_causes_no_second_build(jetson, make_bundle, capfd, tmp_path, monkeypatch):
    hasty = types.SimpleNamespace(sleep=lambda seconds: time.sleep(min(seconds, 0.2)), monotonic=time.monotonic)
    monkeypatch.setattr(ssh, "time", hasty)
    bundle = make_bundle()
    jetson.board.proxy.budgets = [9000] * 6 + [None]
    code, _, err = engine(capfd, bundle)
    assert code == 0, err
    assert jetson.board.proxy.connections > 3 and "trying again" in err
    assert len(jetson.builds()) == 2 and Bundle.open(tmp_path / "tiny.orin.epb")
    assert jetson.left() == []


@pytest.mark.slow
def test_the_same_command_continues_after_the_link_failed_for_good(jetson, make_bundle, capfd, monkeypatch, tmp_path):
    bundle, job = make_bundle(), reference.ReferenceBuild.job

    def cut(self, name, *rest):
        done = job(self, name, *rest)
        if name == "bench.fp32":  # the radio fails after everything was built and measured
            raise ssh.LinkError("drone: no answer")
        return done

    monkeypatch.setattr(reference.ReferenceBuild, "job", cut)
    code, _, err = engine(capfd, bundle)
    assert code == 2 and "no answer" in err and len(jetson.left()) == 1
    (folder,) = (tmp_path / "cache/edgeprune/on").iterdir()
    assert [p.name for p in folder.glob("*.plan")] == ["int8-fp16.plan"]
    monkeypatch.setattr(reference.ReferenceBuild, "job", job)
    jetson.install(FAKE_TENSORRT_BUILD="refuse")  # the results exist, so nothing is built or measured again
    code, _, err = engine(capfd, bundle)
    assert code == 0, err
    assert len(jetson.builds()) == 2 and jetson.left() == [] and not folder.exists()


def test_a_refused_precision_does_not_affect_the_others(jetson, make_bundle, capfd, tmp_path):
    node = models.node("Unheard", ["images"], "output0", "/model.3/Unheard")
    files = {"fp32": models.detector(), "fp16": models.model([node], [], 17)}
    code, out, err = engine(capfd, make_bundle(files))
    assert code == 0, err
    entry = Bundle.open(tmp_path / "tiny.orin.epb").manifest.engines["fp16.orin"]
    assert entry["payload"] is None and "model.fp16.onnx: refused by TensorRT 10.3.0: Unheard" in entry["reason"]
    assert "warning: drone: fp16: " in err and "refused by TensorRT" in err
    assert ["fp16", *"------"] in [line.split() for line in out.splitlines()]


def test_no_bundle_is_written_if_no_engine_can_be_built(jetson, make_bundle, capfd):
    jetson.install(FAKE_TENSORRT_BUILD="refuse")
    refused(capfd, jetson, make_bundle(), "drone: int8-fp16: ", "cannot build an engine from", "drone: fp32: ")
    jetson.install(FAKE_TENSORRT_BUILD="kill")
    refused(capfd, jetson, make_bundle({"fp32": models.detector()}), "was killed (SIGKILL), probably because memory",
            code=2)  # fmt: skip


def test_an_engine_that_cannot_be_measured_is_not_packed(jetson, make_bundle, capfd, tmp_path):
    spoil = "if 'int8-fp16' in sys.argv and sys.argv[1] == 'bench': print('the GPU hangs', file=sys.stderr); code = 2"
    jetson.install(then=spoil)
    code, _, err = engine(capfd, make_bundle())
    assert code == 0 and "int8-fp16: built, but not measured: the GPU hangs" in err
    engines = Bundle.open(tmp_path / "tiny.orin.epb").manifest.engines
    assert engines["int8-fp16.orin"]["payload"] is None and engines["fp32.orin"]["payload"]


def test_missing_parts_of_the_device_are_reported_before_anything_is_sent(jetson, make_bundle, capfd):
    bundle = make_bundle()
    (jetson.home / ".config/edgeprune/trusted/host.pub").unlink()
    refused(capfd, jetson, bundle, "is not trusted on the device", "run edgeprune setup drone", code=2)
    jetson.enrol()
    (keys.home() / "devices/orin.pub").unlink()
    refused(capfd, jetson, bundle, "is not enrolled here", "enrol the key with edgeprune setup drone", code=2)
    jetson.enrol()
    jetson.install(None)
    refused(capfd, jetson, bundle, "drone: no engine can be built on the device (TensorRT is not installed", code=2)
    jetson.agent.unlink()
    refused(capfd, jetson, bundle, "no edgeprune agent on the device; install it with edgeprune setup drone", code=2)
    assert jetson.builds() == []


def test_an_untrusted_bundle_is_not_signed_again(jetson, make_bundle, capfd):
    bundle = make_bundle(key=SigningKey.generate())
    refused(capfd, jetson, bundle, "not trusted on this machine")
    code, _, err = engine(capfd, bundle, "--allow-untrusted")
    assert code == 2 and "needs a trusted bundle" in err and jetson.builds() == []


def test_a_target_that_differs_from_the_device_is_a_warning(jetson, make_bundle, capfd):
    code, _, err = engine(capfd, make_bundle(target="jetson-xavier"), "--precision", "fp32")
    assert code == 0 and "warning: drone is Fake Orin (SM 8.7), but target jetson-xavier has SM 7.2" in err


REPORT_KEY = SigningKey(b"d" * 32)
REPLAY = """#!/bin/sh
here="{folder}"
case "$1" in
  info) cat "$here/info.json";;
  keys) cat "$here/report.pub";;
  engine) cp "$here/plan" out/tiny.fp32.plan; cat "$here/engine.json";;
  bench) cp "$here/report.json" out/fp32.report.json || exit 0;;
esac
"""


@pytest.fixture
def puppet(tmp_path, monkeypatch, make_bundle):
    """answer(…): an enrolled device that replays recorded answers instead of building anything. A function may first
    change its description, its engine and its report; answer(…) returns the bundle."""
    monkeypatch.setenv("EDGEPRUNE_HOME", str(tmp_path / "host"))
    monkeypatch.setenv("EDGEPRUNE_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    board = Drone(tmp_path / "puppet", "/usr/bin:/bin")
    monkeypatch.setenv("EDGEPRUNE_SSH", f"ssh -F {board.config}")
    keys.enrol("orin", REPORT_KEY.verify_key)
    bundle, plan, folder = make_bundle({"fp32": models.detector()}), b"no engine, but of its size", board.folder
    agent = board.home / ".local/share/edgeprune/agent/bin/edgeprune"
    agent.parent.mkdir(parents=True)
    agent.write_text(REPLAY.format(folder=folder))
    agent.chmod(0o755)
    built = Engine(
        "TensorRT 10.3.0", bundle.payloads["model.fp32.onnx"].sha256, "fp32", ("STRONGLY_TYPED",), 0, 1.0, 2.0,
        len(plan), hashlib.sha256(plan).hexdigest(), "8.7", "Orin",
    )  # fmt: skip

    def answer(change=lambda answers: None, key=REPORT_KEY):
        report = make_report(
            bundle={"name": "tiny", "sha256": bundle.sha256, "target": "jetson-orin", "key_fingerprint": "SHA256:x",
                    "trusted": True},
            model={"payload": "model.fp32.onnx", "sha256": built.onnx_sha256, "size_bytes": 1},
            runtime={"name": "trt", "description": "TensorRT 10.3.0, Orin", "threads": None},
        ).sign(REPORT_KEY).to_json()  # fmt: skip
        answers = types.SimpleNamespace(
            info={"runtimes": {"trt": "available"}, "trusted_keys": [bundle.key_fingerprint]},
            public=bytes(REPORT_KEY.verify_key).hex(),
            engines=[{**built.to_json(), "key": "5" * 64, "runtime": "trt"}],
            plan=plan,
            report=report,
        )
        change(answers)
        (folder / "info.json").write_text(json.dumps(answers.info))
        (folder / "report.pub").write_text(answers.public + "\n")
        (folder / "engine.json").write_text(json.dumps(answers.engines))
        (folder / "plan").write_bytes(answers.plan)
        if answers.report is not None:
            report = answers.report if key is REPORT_KEY else signature.sign(answers.report, key)
            (folder / "report.json").write_text(json.dumps(report))
        return bundle

    answer.left = lambda: list((board.home / ".cache/edgeprune/on").glob("*"))
    yield answer
    board.close()


def engine_says(**change):
    """A change of the device's answer about its engine."""
    return lambda answers: answers.engines[0].update(change)


def test_unchanged_answers_are_accepted(puppet, capfd, tmp_path):
    code, _, err = engine(capfd, puppet())
    assert (code, err) == (0, "")
    written = Bundle.open(tmp_path / "tiny.orin.epb")
    assert written.read("model.fp32.orin.plan") == b"no engine, but of its size"
    assert written.manifest.engines["fp32.orin"]["bench"]["verdict"] == "degraded"


@pytest.mark.parametrize(
    "change, words, code",
    [
        (
            lambda answers: vars(answers).update(plan=answers.plan[::-1]),
            "damaged (the content does not match its SHA-256 after two transfers); check the drone's disk",
            1,
        ),
        (
            lambda answers: vars(answers).update(plan=answers.plan[:-1]),
            "damaged (the content does not match its SHA-256 after two transfers); check the drone's disk",
            1,
        ),
        (engine_says(onnx_sha256="0" * 64), "not built from the bundle's ONNX file", 1),
        (engine_says(size_bytes=1 << 32), "engine too large", 2),
        (engine_says(size_bytes=-1), "size_bytes", 2),
        (engine_says(builder="\x1b[2J"), "builder", 2),
        (engine_says(sm=None), "the GPU of the engine is missing", 2),
        (engine_says(key="../../x"), "update the agent", 2),
        (engine_says(runtime="null"), "update the agent", 2),
        (lambda answers: answers.engines[0].pop("key"), "update the agent", 2),
        (engine_says(precision="../x"), "not in the bundle", 2),
        (engine_says(precision=["fp32"]), "not in the bundle", 2),
        (lambda answers: answers.engines.append(answers.engines[0]), "a precision is listed twice", 2),
        (lambda answers: vars(answers).update(engines={"engines": answers.engines}), "expected a list of engines", 2),
        (lambda answers: answers.engines.clear(), "expected a list of engines", 2),
        (lambda answers: answers.report.update(fps_end_to_end=1e6), "invalid signature", 1),
        (lambda answers: vars(answers).update(report=[answers.report]), "must be a JSON object", 2),
        (lambda answers: vars(answers).update(report=None), "missing, or too large", 2),
        (lambda answers: vars(answers).update(info=["trt"]), "no engine can be built on the device", 2),
        (lambda answers: answers.info.update(trusted_keys=7), "is not trusted on the device", 2),
        (lambda answers: vars(answers).update(public="\x1b[2J"), "not a public key", 2),
    ],
)
def test_a_devices_answers_are_untrusted(puppet, capfd, tmp_path, change, words, code):
    bundle = puppet(change)
    got, out, err = engine(capfd, bundle)
    assert (got, out) == (code, "") and len(err.splitlines()) == 1 and words in err and "\x1b" not in err, err
    assert not (tmp_path / "tiny.orin.epb").exists() and puppet.left() == [] and Store().entries() == []


ANOTHER_BUNDLE = {"name": "tiny", "sha256": "0" * 64, "target": "cpu", "key_fingerprint": "x", "trusted": True}


@pytest.mark.parametrize(
    "change, words",
    [
        ({"bundle": ANOTHER_BUNDLE}, "not a report on this bundle's engine"),
        (
            {"model": {"payload": "model.fp32.onnx", "sha256": "0" * 64, "size_bytes": 1}},
            "not a report on this bundle's engine",
        ),
        ({"runtime": {"name": "ort", "description": "a CPU", "threads": None}}, "not a report on this bundle's engine"),
        ({"precision": "fp16"}, "not a report on this bundle's engine"),
        ({"interrupted": True}, "no inference latency"),
        ({"stages": {"end_to_end": timing(1, 1)}}, "no inference latency"),
    ],
)
def test_a_genuine_report_on_another_subject_is_refused(puppet, capfd, change, words):
    """The device has signed the report, for example an old report from when it was faster."""

    def replay(answers):
        answers.report = signature.sign({**answers.report, **change}, REPORT_KEY)

    code, out, err = engine(capfd, puppet(replay))
    assert code in (1, 2) and out == "" and words in err and len(err.splitlines()) == 1


def test_a_report_of_another_device_is_refused(puppet, capfd):
    other = SigningKey(b"x" * 32)
    code, _, err = engine(capfd, puppet(key=other))
    assert code == 1 and "not signed by orin, which sent the report" in err
    keys.enrol("nano", other.verify_key)
    code, _, err = engine(capfd, puppet(key=other))
    assert code == 1 and "not signed by orin, which sent the report" in err


@pytest.fixture
def in_folder(jetson, make_bundle, tmp_path):
    """A build whose folder exists on the device; its `say` collects the messages in a list."""
    messages = []
    with ssh.Link("drone", say=lambda text: None) as link:
        device = reference.ReferenceDevice(str(jetson.agent), str(jetson.scratch), "orin")
        build = reference.ReferenceBuild(link, device, make_bundle(), tmp_path, messages.append)
        Path(build.there).mkdir(parents=True)
        yield build, messages


def test_a_job_that_died_with_the_board_starts_again_at_most_twice(in_folder):
    build, _ = in_folder
    once = "if [ -e seen ]; then echo well >&2; exit 3; fi; touch seen; kill -9 $PPID"
    assert build.job("once", ["sh", "-c", once], "x") == (3, "well")
    with pytest.raises(InputError, match="the job died three times"):
        build.job("dies", ["sh", "-c", "kill -9 $PPID"], "x")
    assert (Path(build.there) / "once.tries").read_text().count("\n") == 2


def test_a_job_runs_once_for_repeated_requests(in_folder, monkeypatch):
    monkeypatch.setattr(reference, "_LOOK_S", 1)
    build, messages = in_folder
    command = ["sh", "-c", "echo x >>count; sleep 3; cat count >&2"]
    assert build.job("slow", command, "sleeping") == (0, "x")
    assert build.job("slow", command, "sleeping") == (0, "x")
    assert len(messages) >= 3 and messages[0] == "drone: sleeping, 0 s"


def test_an_unwritable_bundle_is_reported_before_the_build(jetson, make_bundle, capfd, tmp_path):
    code, _, err = engine(capfd, make_bundle(), "--out", tmp_path / "none" / "x.epb")
    assert code == 2 and "does not exist" in err and jetson.builds() == []


def test_invalid_options_are_reported_before_connecting(make_bundle, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_SSH", str(tmp_path / "none"))
    bundle = make_bundle()
    code, _, err = engine(capfd, bundle, "--precision", "fp61")
    assert code == 2 and "--precision: unknown precision (found 'fp61', expected auto, all, fp32, " in err
    code, _, err = edgeprune(capfd, "engine", bundle.path, "--on", "-oProxyCommand=x")
    assert code == 2 and "expected one argument" in err
    code, _, err = edgeprune(capfd, "engine", bundle.path, "--on=-oProxyCommand=x")
    assert code == 2 and "not a drone" in err
    code, _, err = edgeprune(capfd, "build", "--ratio", "0.2", "--target", "jetson-orin", "--on", "a b")
    assert code == 2 and "not a drone" in err


# --- build --on ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The smallest network and images that `build` accepts."""
    folder = tmp_path_factory.mktemp("inputs")
    save(short(), folder / "best.pt")
    dataset(folder / "data", train=8, val=4)
    return folder


@pytest.fixture
def build(inputs, tmp_path, monkeypatch, make_bundle):
    """build(on=…): a real build of a small network, or its resumption. The fake's parser knows no convolution, so the
    device gets tiny detectors of the same precisions in place of the build's ONNX files."""
    pack, out = stages._pack, tmp_path / "built"

    def packed(job, path, *rest):
        if path.name != "reference.epb":
            return pack(job, path, *rest)
        tiny = make_bundle({p: models.detector(p) for p in stages.PRECISIONS if p in job.record["models"]})
        tiny.path.replace(path)
        return Bundle.open(path)

    monkeypatch.setattr(stages, "_pack", packed)

    def run(**changes):
        asked = request(inputs, epochs=1, precision=("fp32",), criterion="bn_scale", **changes)
        return run_build(asked, out, Reporter(quiet=True), resume=out.exists())

    return run


def test_build_records_and_packs_the_devices_engines_and_figures(jetson, build, tmp_path, capfd):
    out = tmp_path / "built"
    # A failure on the device keeps the build's results, and the same command continues.
    jetson.install(FAKE_TENSORRT_BUILD="refuse")
    with pytest.raises(
        GateError, match=r"drone: .*model\.fp32\.onnx: TensorRT .* cannot build an engine from this file"
    ):
        build(on="drone")
    failed = json.loads((out / "build.json").read_text())
    assert failed["failed"]["stage"] == "reference" and failed["stages"][-1]["name"] == "engine"
    assert not (out / "small.epb").exists() and (out / "model.fp32.onnx").exists()
    jetson.install(None)
    with pytest.raises(InputError, match=r"no engine can be built on the device \(TensorRT is not installed"):
        build(on="drone")
    assert json.loads((out / "build.json").read_text())["stages"] == failed["stages"]
    jetson.install()
    record = build(on="drone")
    *before, stage, pack, page = record["stages"]
    assert before == failed["stages"] and [s["name"] for s in (stage, pack, page)] == ["reference", "pack", "page"]
    entry = stage["engines"]["fp32.orin"]
    engine = ep.Build.open(out).comparison.items[-1]
    assert engine.recorded and engine.machine == entry["for"] and engine.map50_95 == entry["bench"]["map50_95"]
    assert (stage["device"], stage["on"], list(stage["files"])) == ("orin", "drone", ["model.fp32.orin.plan"])
    assert entry["bench"]["infer_p50_ms"] > 0 and entry["bench"]["runtime"].startswith("TensorRT 10.3.0, Fake Orin")
    assert json.loads((out / "build.json").read_text()) == record
    bundle = Bundle.open(out / "small.epb")
    assert bundle.manifest.engines["fp32.orin"] == entry and "fp32.sm86" in bundle.manifest.engines
    assert bundle.read("model.fp32.orin.plan") == (out / "model.fp32.orin.plan").read_bytes()
    (stored,) = Store().entries()
    assert stored.id == entry["bench"]["report"] and jetson.left() == []
    text = card(record, out)
    assert "engine   fp32.orin: " in text and "by TensorRT 10.3.0 on Fake Orin (SM 8.7)" in text
    # The resumed build is complete. Without --on the bundle has no engines.
    assert build(on="drone") == record and len(jetson.builds()) == 1
    without = build(on=None)
    assert [s["name"] for s in without["stages"]][-3:] == ["engine", "pack", "page"]
    assert list(Bundle.open(out / "small.epb").manifest.engines) == ["fp32.sm86"]
    assert not (out / "model.fp32.orin.plan").exists()
    # With --on again, only the dependent stages run.
    assert build(on="drone")["stages"][:-3] == without["stages"][:-2]
    assert "fp32.orin" in Bundle.open(out / "small.epb").manifest.engines


def test_a_device_that_cannot_build_is_reported_before_training(jetson, build, tmp_path):
    jetson.install(None)
    with pytest.raises(InputError, match="no engine can be built on the device"):
        build(on="drone")
    assert [p.name for p in (tmp_path / "built").iterdir()] == []
    with pytest.raises(InputError, match="target cpu uses none; leave the option out"):
        build(on="drone", target="cpu")
    with pytest.raises(InputError, match="not a drone"):
        build(on="-oProxyCommand=x")


def test_the_device_gets_the_same_bundle_after_an_interruption(make_bundle, tmp_path, jetson):
    bundle = make_bundle()
    for precision in ("fp32", "int8-fp16"):
        (tmp_path / f"{precision}.onnx").write_bytes(models.detector(precision))
    record = {"models": {"original": {}, "fp32": {}, "int8-fp16": {}}}
    job = types.SimpleNamespace(record=record, delivered_path=lambda p: tmp_path / f"{p}.onnx")
    assert stages._packed_before(job, bundle.path).sha256 == bundle.sha256
    (tmp_path / "fp32.onnx").write_bytes(models.detector("fp32", opset=16))
    assert stages._packed_before(job, bundle.path) is None
    bundle.path.write_bytes(bundle.path.read_bytes()[:-1])
    assert stages._packed_before(job, bundle.path) is None
    assert stages._packed_before(job, tmp_path / "none.epb") is None
