import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest
from edgeprune_device import cli, strict_json
from edgeprune_device.errors import InputError
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.reports.spool import Spool
from edgeprune_device.trust import keys

from .calls import QUICK, edgeprune


def test_allow_untrusted_prints_a_warning(capsys, bundle, home):
    (home / "keys" / "host.key").unlink()
    args = ["bench", str(bundle.path), "--runtime", "null", "--allow-untrusted", *QUICK]
    code, out, _ = edgeprune(capsys, *args)
    assert code == 0 and "NOT TRUSTED" in out and "warning     the bundle is signed by" in out


def test_bench_writes_the_report_and_prints_a_table(capsys, bundle, tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "report.json"
    code, out, _ = edgeprune(capsys, "bench", str(bundle.path), "--report", str(path), *QUICK)
    report = BenchReport.from_json(json.loads(path.read_text()), str(path))
    assert code == 0 and out.startswith(report.table()) and report.accuracy.map50_95 == pytest.approx(1)
    code, out, _ = edgeprune(capsys, "bench", str(bundle.path), "--json", "--no-accuracy", "--check", *QUICK)
    read = BenchReport.from_json(json.loads(out))
    assert code == 0 and read.accuracy is None and read.parity["box_px"] == 0


def test_interrupted_run_is_kept_and_marked(capsys, bundle, monkeypatch):
    from edgeprune_device.runtimes import null

    zeros, began = null.NullSession.infer, time.monotonic()

    def infer(self, x):
        if time.monotonic() > began + 1.5:
            raise KeyboardInterrupt
        return zeros(self, x)

    monkeypatch.setattr(null.NullSession, "infer", infer)
    code, out, err = edgeprune(capsys, "bench", str(bundle.path), "--runtime", "null", "--warmup", "0.1")
    assert code == 130 and "contains the frames measured before the interruption" in err and "so it is shorter" in out
    assert len(Spool().entries()) == 1


def test_device_failure_keeps_earlier_measurements(capsys, bundle, monkeypatch):
    from edgeprune_device.errors import DeviceError
    from edgeprune_device.runtimes import null

    zeros, began = null.NullSession.infer, time.monotonic()

    def infer(self, x):
        if time.monotonic() > began + 1.5:
            raise DeviceError("cudaMemcpyAsync: an illegal memory access was encountered")
        return zeros(self, x)

    def close(self):
        raise DeviceError("cudaFree: an illegal memory access was encountered")

    monkeypatch.setattr(null.NullSession, "infer", infer)
    monkeypatch.setattr(null.NullSession, "close", close)
    code, out, err = edgeprune(capsys, "bench", str(bundle.path), "--runtime", "null", "--warmup", "0.1")
    assert code == 2 and "illegal memory access" in err and "contains the frames measured before the failure" in err
    assert "the run failed before its end: cudaMemcpyAsync" in out
    (entry,) = Spool().entries()
    report = BenchReport.from_json(strict_json.loads(Spool().read(entry.id), "r"))
    assert report.failure.startswith("cudaMemcpyAsync") and report.stages["infer"]["samples"] > 10


def test_report_is_kept_when_the_output_fails(bundle, tmp_path):
    """Covers `edgeprune bench | true` and a broken link."""
    command = [sys.executable, "-m", "edgeprune_device", "bench", str(bundle.path), "--runtime", "null", *QUICK]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as gone:
        assert subprocess.run(command, stdout=gone, stderr=subprocess.PIPE).returncode == cli.EXIT_PIPE
    assert len(Spool().entries()) == 1
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*command, "--report", str(tmp_path / "r.json")], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"no space left" in done.stderr
    assert len(Spool().entries()) == 2 and (tmp_path / "r.json").exists()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_closed_terminal_keeps_the_measurements(bundle, own_signals, number):
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "edgeprune_device", "bench", str(bundle.path), "--runtime", "null"]
    # Progress is drawn only on a terminal with a movable cursor, so this environment declares one.
    environ = {**os.environ, "TERM": "xterm", "CI": ""}
    command += ["--warmup", "0.1", "--seconds", "600"]
    with subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environ) as run:
        try:
            os.close(terminal)
            output = b""
            while b"measuring" not in output:
                assert select.select([controller], [], [], 60)[0], output
                output += os.read(controller, 4096)
            os.close(controller)
            for _ in range(2):  # the kernel and the shell
                run.send_signal(number)
            run.wait(30)
        finally:
            run.kill()
    (entry,) = Spool().entries()
    report = BenchReport.from_json(strict_json.loads(Spool().read(entry.id), "r"))
    assert report.interrupted and report.stages["infer"]["samples"] > 1


def test_spool_failure_still_prints_the_report(capsys, bundle, tmp_path, monkeypatch):
    def put(self, report):
        raise InputError("the spool: no space left on device")

    monkeypatch.setattr(Spool, "put", put)
    path = tmp_path / "report.json"
    code, out, err = edgeprune(capsys, "bench", str(bundle.path), "--runtime", "null", "--report", str(path), *QUICK)
    report = BenchReport.from_json(json.loads(path.read_text()), str(path))
    assert code == 2 and out == report.table() and "no space left" in err


def test_full_spool_is_reported_before_the_run(capsys, bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_SPOOL", str(tmp_path / "file" / "spool"))
    began = time.monotonic()
    args = ["--runtime", "null", "--seconds", "60", "--warmup", "0.1"]
    code, _, err = edgeprune(capsys, "bench", str(bundle.path), *args)
    assert code == 2 and "EDGEPRUNE_SPOOL" in err and time.monotonic() - began < 20


def test_max_drop_fails_the_run(capsys, bundle, tmp_path, manifest, labelled_pictures, tiny_onnx):
    pytest.importorskip("onnxruntime")
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.vision.evaluation import EvaluationSet

    code, _, _ = edgeprune(capsys, "bench", str(bundle.path), "--max-drop", "0.01", *QUICK)
    assert code == 0
    # The truth of this set has no car, so half of the mAP is lost.
    shifted = [(name, data, [*truth, [0, 0, 0, 0, 0], [0, 9, 9, 9, 9]]) for name, data, truth in labelled_pictures]
    parts = {"model.fp32.onnx": tiny_onnx, "evaluation.zip": EvaluationSet.pack(shifted)}
    path = Bundle.write(tmp_path / "worse.epb", manifest, parts, keys.load_or_create()).path
    report = tmp_path / "r.json"
    code, out, err = edgeprune(capsys, "bench", str(path), "--max-drop", "0.01", "--report", str(report), *QUICK)
    assert code == 1 and "lower than on the host (limit --max-drop 0.01)" in err
    assert "mAP50-95" in out and report.exists()  # the figures are still reported
    code, _, _ = edgeprune(capsys, "bench", str(path), "--max-drop", "0.9", *QUICK)
    assert code == 0
    code, _, err = edgeprune(capsys, "bench", str(path), "--runtime", "null", "--max-drop", "0.01", *QUICK)
    assert code == 1 and "cannot be checked" in err


def test_max_drop_without_accuracy_names_the_reason(capsys, bundle):
    code, _, err = edgeprune(capsys, "bench", str(bundle.path), "--runtime", "null", "--max-drop", "0.1", *QUICK)
    assert code == 1 and "the accuracy was not measured (runtime null)" in err


def test_unwritable_report_path_fails_at_once(capsys, bundle, tmp_path):
    began = time.monotonic()
    code, _, err = edgeprune(
        capsys, "bench", str(bundle.path), "--seconds", "60", "--report", str(tmp_path / "x" / "r.json")
    )
    assert code == 2 and "does not exist" in err and time.monotonic() - began < 10


def test_bench_finds_the_bundle(capsys, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = edgeprune(capsys, "bench", "--runtime", "null", *QUICK)
    assert code == 0 and "tiny for cpu" in out
    monkeypatch.chdir("/")
    monkeypatch.chdir(tmp_path / "edgeprune-home")
    code, _, err = edgeprune(capsys, "bench")
    assert code == 2 and "BUNDLE: none found in this folder" in err
