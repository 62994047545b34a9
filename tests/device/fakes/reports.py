"""A handmade bench report, for tests of its readers. Its figures are invented."""

from edgeprune_device.machine.environment import Environment
from edgeprune_device.reports import percentiles
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.vision.accuracy import Accuracy, ClassAccuracy


def timing(*ms):
    ns = [int(value * 1e6) for value in ms]
    return {**percentiles.summary(ns), "samples_ns": ns}


def make_report(**change):
    per_class = (ClassAccuracy(0, "person", 5, 0.75, 0.5, 5, 0.5), ClassAccuracy(1, "car", 0, None, None, 0, None))
    fields = {
        "created": "2026-11-22T23:40:00Z",
        "edgeprune_version": "0.1.0",
        "clock": {
            "boot_id": "01234567-89ab-cdef-0123-456789abcdef", "boottime_s": 1234.5, "synchronized": False,
        },
        "device": {"hostname": "drone7", "serial": None, "key_fingerprint": "SHA256:y"},
        "bundle": {
            "name": "tiny", "sha256": "a" * 64, "target": "cpu", "key_fingerprint": "SHA256:x", "trusted": True,
        },
        "precision": "fp32",
        "model": {"payload": "model.fp32.onnx", "sha256": "b" * 64, "size_bytes": 1_500_000},
        "runtime": {"name": "ort", "description": "onnxruntime 1", "threads": None},
        "environment": Environment.read(),
        "board": None,
        "preflight": None,
        "mode": "single",
        "source": {"name": "bundle", "description": "the bundle's 3 images"},
        "settings": {"seconds": 1.0},
        "warmup": {"frames": 9, "seconds": 0.5, "settled": True},
        "interrupted": False,
        "failure": None,
        "load_ms": 12.0,
        "first_inference_ms": 20.0,
        "begins_ns": (1_000_000_000, 1_012_500_000),
        "stages": {"infer": timing(10, 11), "end_to_end": timing(12.5, 12.5)},
        "camera": None,
        "drift": None,
        "fps_end_to_end": 80.0,
        "fps_inference": 100.0,
        "other_load": {"before": 0.0, "during": 0.01},
        "power": None,
        "thermal": None,
        "clocks": None,
        "throttling": None,
        "series": None,
        "accuracy": Accuracy(0.75, 0.5, None, 3, 5, 0, per_class),
        "host_accuracy": {"map50": 0.75, "map50_95": 0.52, "small_map50_95": None},
        "map50_95_delta": -0.02,
        "peak_rss_bytes": 123_000_000,
        "memory_drop_bytes": None,
        "parity": None,
        "verdict": {"state": "degraded", "reasons": ["only tried by hand"]},
        "warnings": ("busy",),
    }  # fmt: skip
    return BenchReport(**{**fields, **change})
