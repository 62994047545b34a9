"""Comparisons for the page: a whole build of the demo with invented figures, and other cases."""

import copy
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from edgeprune.demo import NAMES, render

RUNTIME = "ONNX Runtime 1.23.2, CPU"
GPU_FILE = "made for a GPU but timed on this CPU, so its latency does not predict the target's"
HOSTILE = "</script><img src=x onerror=alert(1)>\"'&\u202e"

#: name: (MB, p50 ms, mAP50-95, mAP50, small, share of objects kept, false alarms an image)
_MODELS = {
    "original": (6.52, 9.84, 0.2612, 0.4710, 0.1243, 1.0, 0.4),
    "pruned": (4.31, None, 0.2233, 0.4122, 0.0951, 0.78, 1.6),
    "tuned": (4.31, None, 0.2586, 0.4689, 0.1210, 0.95, 0.5),
    "fp32": (8.43, 7.12, 0.2586, 0.4689, 0.1210, 0.95, 0.5),
    "fp16": (4.27, 7.95, 0.2585, 0.4687, 0.1209, 0.95, 0.5),
    "int8": (2.31, 4.05, 0.2571, 0.4665, 0.1198, 0.92, 0.6),
    "int8-fp16": (2.29, 9.31, 0.2573, 0.4668, 0.1199, 0.92, 0.6),
}


def build(folder: Path, pictures: int = 3, size: int = 480) -> dict:
    """A build's comparison, its images written to `folder`."""
    rng = np.random.default_rng(7)
    whole = _layers(rng)
    cut = {k: v if k == "model.0.conv" else max(8, int(v * s) // 8 * 8)
           for (k, v), s in zip(whole.items(), rng.uniform(0.45, 1.0, len(whole)))}  # fmt: skip
    items = [_item(name, {"original": whole, "fp16": None}.get(name, cut), rng) for name in _MODELS]
    items.append(_report(rng))
    return {
        "schema_version": 2,
        "title": "demo: 20 % of the channels, jetson-orin",
        "kind": "build",
        "created": "2026-11-29T09:30:00Z",
        "reproduce": [
            "edgeprune build --ratio 0.2 --target jetson-orin --out runs/demo",
            "edgeprune compare runs/demo/pruned.pt runs/demo/tuned.pt runs/demo/model.int8.onnx --html report.html",
        ],
        "data": {"path": "runs/demo/dataset/data.yaml", "sha256": "9f" * 32, "pictures": 100, "boxes": 1143,
                 "train_in_val": 0},
        "machine": {
            "cpu": "Intel(R) Xeon(R) Platinum 8488C", "cores": 2, "memory_bytes": 8 * 2**30,
            "os": "Debian GNU/Linux 12 (bookworm)", "python": "3.11.2",
            "packages": {"edgeprune": "0.1.0", "torch": "2.9.0", "ultralytics": "8.4.1", "onnx": "1.19.1",
                         "onnxruntime": "1.23.2", "onnxsim": "0.4.36", "numpy": "2.3.4", "tensorrt-rtx-cu13": None},
        },
        "items": items,
        "gates": [
            {"name": "Pruned equals masked", "limit": "1e-9 relative", "found": "3.1e-13", "passed": True},
            {"name": "FP32 file gives the network's outputs", "limit": "1e-4", "found": "2.1e-06", "passed": True},
            {"name": "FP16 keeps mAP50-95", "limit": "loses at most 0.003", "found": "0.259 -> 0.259 (-0.0001)",
             "passed": True},
            {"name": "INT8 keeps mAP50-95", "limit": "loses at most 0.003", "found": "0.259 -> 0.257 (-0.0015)",
             "passed": True},
            {"name": "INT8 is faster on the target", "limit": "1.0x of FP16", "found": None, "passed": None},
        ],
        "gallery": {"conf": 0.25, "iou": 0.5, "first": "original", "last": "int8",
                    "pictures": sorted((_picture(folder, 3_000_000 + i, size, rng) for i in range(pictures)),
                                       key=lambda shot: -shot["lost"])},
        "classes": list(NAMES),
        "more": {
            "stages": [{"name": n, "seconds": s} for n, s in (("channels", 2.1), ("prune", 31.7), ("finetune", 402.5),
                                                                ("export", 12.4), ("quantize", 61.0), ("pack", 0.8))],
            "rescued": ["model.22.cv2.0.2"], "bundle": "runs/demo/demo.epb", "signed_by": "host (SHA256:kq3v…)",
        },
    }  # fmt: skip


def compare(folder: Path, items: int = 12, classes: int = 80, pictures: int = 2, samples: int = 10_000) -> dict:
    """A large comparison: many items with long names, many classes, a network of 110 layers."""
    rng = np.random.default_rng(3)
    whole = build(folder, pictures)
    names = [f"airfield survey vehicle class number {i}" if i % 9 == 4 else f"class-{i}" for i in range(classes)]
    layers = {f"model.{i // 5}.m.{i % 5}.cv1.conv": int(rng.choice([32, 64, 128, 256])) for i in range(110)}
    rows = []
    for i in range(items):
        name = f"run-{i:02d}-yolo11s-visdrone-with-a-rather-long-name.int8.onnx" if i % 4 == 1 else f"m{i}.pt"
        row = _item("original", layers, rng, ms=30.0 / (1 + 0.15 * i), score=0.40 - 0.013 * i)
        row["name"] = row["path"] = name
        if i:
            row["layers"] = {k: max(8, int(v * (1 - 0.05 * i) // 8 * 8)) for k, v in layers.items()}
        took = row["latency_ms"]["p50"]
        row["latency_ms"]["samples"] = np.round(took * rng.lognormal(0, 0.08, samples), 3).tolist()
        row["per_class"] = [{"name": n, "boxes": int(b), "map50": 0.5, "map50_95": float(a)} for n, b, a in
                            zip(names, rng.geometric(0.01, classes), rng.uniform(0, 0.7, classes))]  # fmt: skip
        rows.append(row)
    detected = [shot["found"] for shot in whole["gallery"]["pictures"]]
    for shot, seen in zip(whole["gallery"]["pictures"], detected):
        shot["found"] = {rows[0]["name"]: seen["original"], rows[-1]["name"]: seen["int8"]}
    whole["gallery"].update(first=rows[0]["name"], last=rows[-1]["name"])
    return {**whole, "kind": "compare", "title": ", ".join(r["name"] for r in rows), "items": rows, "gates": [],
            "classes": names, "more": None}  # fmt: skip


def bare() -> dict:
    """One item, no data set: no mAP, no gallery, no gate."""
    item = {key: None for key in _item("original", None, np.random.default_rng(0))}
    item |= {"name": "best.pt", "path": "best.pt", "size_bytes": 6_520_112, "recorded": False}
    return {
        "schema_version": 2, "title": "best.pt", "kind": "compare", "created": "2026-11-29T09:30:00Z", "reproduce": [],
        "data": None, "machine": {"cpu": None, "cores": None, "memory_bytes": None, "os": None, "python": None,
                                  "packages": {}},
        "items": [item], "gates": [], "gallery": None, "classes": [], "more": None,
    }  # fmt: skip


def reports() -> dict:
    """Only two bench reports, from two machines."""
    rng = np.random.default_rng(1)
    rows = [_report(rng), {**_report(rng), "name": "cc12:fp16 *", "machine": "NVIDIA Jetson AGX Orin"}]
    return {**bare(), "title": "two reports", "items": rows}


def hostile(folder: Path) -> dict:
    """Every name is an attack on the page, and one figure is not a number."""
    comparison = build(folder, 1)
    comparison = _renamed(copy.deepcopy(comparison))
    comparison["items"][1]["latency_ms"] = {
        "p50": float("nan"), "p90": float("inf"), "speedup": float("nan"), "rounds": 1, "threads": 1,
        "runtime": HOSTILE, "samples": [float("nan"), 1.0],
    }  # fmt: skip
    return comparison


def _renamed(value):
    """Append an attack to every text, except for lookup keys and for paths, which are opened."""
    if isinstance(value, dict):
        keep = ("path", "kind", "created")
        return {(k if k in _KEYS else k + HOSTILE): v if k in keep else _renamed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_renamed(v) for v in value]
    return value + HOSTILE if isinstance(value, str) else value


def _item(name: str, layers: dict | None, rng, *, ms: float | None = None, score: float | None = None) -> dict:
    size, took, accuracy, at50, small, _, _ = _MODELS[name]
    took, accuracy = ms or took, score or accuracy
    counted = name in ("original", "pruned", "tuned", "fp32")
    file = {"original": "best.pt", "pruned": "pruned.pt", "tuned": "tuned.pt"}.get(name, f"model.{name}.onnx")
    latency = took and {
        "p50": took, "p90": round(took * 1.06, 2), "speedup": None if name == "original" else round(9.84 / took, 3),
        "rounds": 40, "threads": 1, "runtime": RUNTIME,
        "samples": np.round(took * rng.lognormal(0, 0.03, 40), 3).tolist(),
    }  # fmt: skip
    return {
        "name": name, "path": f"runs/demo/{file}", "sha256": hashlib.sha256(name.encode()).hexdigest(),
        "imgsz": 320, "size_bytes": int(size * 1e6),
        "parameters": (3_006_623 if name == "original" else 2_041_877) if counted else None,
        "macs": (1_021_337_600 if name == "original" else 764_512_000) if counted else None,
        "channels": (5_248 if name == "original" else 4_198) if counted else None,
        "layers": layers, "latency_ms": latency,
        "stages_ms": took and {"decode": 1.61, "pre": 0.92, "infer": took, "post": 0.55},
        "fps_inference_only": took and round(1000 / took, 1), "fps_end_to_end": took and round(1000 / (took + 3.1), 1),
        "map50": at50, "map50_95": accuracy, "small_map50_95": small,
        "per_class": [{"name": n, "boxes": b, "map50": min(1, 1.8 * v), "map50_95": round(v, 4)} for n, b, v in
                      zip(NAMES, (611, 44, 402, 64, 22), accuracy * rng.uniform(0.97, 1.02, 5) * _EASE)],
        "pictures": 100, "objects_found": int(700 * accuracy / 0.26), "measured_with": "edgeprune, PyTorch on this CPU"
        if file.endswith(".pt") else f"edgeprune, {RUNTIME}", "mj_per_frame": None, "verdict": None, "recorded": False,
        "machine": None, "caveat": GPU_FILE if name in ("fp16", "int8-fp16") else None,
    }  # fmt: skip


_EASE = np.array([0.6, 0.5, 1.4, 1.2, 1.3])  # for each class


def _report(rng) -> dict:
    """The figures of another run, on a board."""
    item = _item("int8", None, rng)
    ms = np.round(6.2 * rng.lognormal(0, 0.02, 1500), 3)
    return {
        **item, "name": "a41f03b2c7d9:int8 *", "path": "a41f03b2c7d9.json", "imgsz": None, "parameters": None,
        "macs": None, "channels": None, "pictures": 20, "map50_95": 0.2498, "map50": 0.4511, "small_map50_95": 0.118,
        "latency_ms": {"p50": 6.21, "p90": 6.43, "speedup": None, "rounds": 1500, "threads": None,
                       "runtime": "TensorRT 10.3.0", "samples": ms.tolist()},
        "stages_ms": {"decode": 3.1, "pre": 1.2, "infer": 6.21, "post": 0.8}, "fps_inference_only": 160.9,
        "fps_end_to_end": 88.4, "mj_per_frame": 91.3, "verdict": "clean", "recorded": True, "caveat": None,
        "machine": "NVIDIA Jetson Orin Nano", "measured_with":
            "recorded by bench on NVIDIA Jetson Orin Nano, 2026-11-20T10:00:00Z, clean, signed by drone-7",
    }  # fmt: skip


def _layers(rng) -> dict:
    """Approximately YOLOv8n's 63 convolutions."""
    widths = {"model.0.conv": 16, "model.1.conv": 32}
    for block, width, depth in ((2, 32, 1), (4, 64, 2), (6, 128, 2), (8, 256, 1)):
        widths |= {f"model.{block}.cv1.conv": width, f"model.{block}.cv2.conv": width}
        for i in range(depth):
            widths |= {f"model.{block}.m.{i}.cv{j}.conv": width // 2 for j in (1, 2)}
        if block < 8:
            widths[f"model.{block + 1}.conv"] = width * 2
    widths |= {"model.9.cv1.conv": 128, "model.9.cv2.conv": 256}
    for block, width in ((12, 128), (15, 64), (18, 128), (21, 256)):
        widths |= {f"model.{block}.cv1.conv": width, f"model.{block}.cv2.conv": width}
        widths |= {f"model.{block}.m.0.cv{j}.conv": width // 2 for j in (1, 2)}
        if block in (15, 18):
            widths[f"model.{block + 1}.conv"] = width
    for branch, width, last in (("cv2", 64, 64), ("cv3", 64, 5)):
        for level in range(3):
            widths |= {f"model.22.{branch}.{level}.{j}.conv": width for j in (0, 1)}
            widths[f"model.22.{branch}.{level}.2"] = last
    return widths


def _picture(folder: Path, seed: int, size: int, rng) -> dict:
    """A scene of the demo, with invented detections of each model."""
    pixels, boxes = render(seed, size)
    path = folder / f"scene-{seed:08d}.jpg"
    Image.fromarray(pixels).save(path, quality=92)
    truth = [[int(c), *_corners(size, *sides)] for c, *sides in boxes.tolist()]
    luck = rng.uniform(size=len(truth))
    luck[:2], luck[2:3] = 0.83, 0.99  # objects that INT8 loses, and objects that only INT8 finds
    sure = rng.uniform(0.3, 0.92, len(truth))
    detected = {}
    for name, (*_, kept, alarms) in _MODELS.items():
        if name not in ("original", "pruned", "tuned", "int8"):
            continue
        shift = rng.normal(0, 0.6, (len(truth), 4))
        seen = np.flatnonzero((luck < 0.86 * kept) | ((luck == 0.99) & (name == "int8")))
        rows = [[truth[i][0], round(float(sure[i]), 3), *np.round(np.array(truth[i][1:]) + shift[i], 1).tolist()]
                for i in seen]  # fmt: skip
        for _ in range(rng.poisson(alarms)):
            x, y = rng.uniform(0, size - 40, 2)
            rows.append([int(rng.integers(5)), 0.27, round(x, 1), round(y, 1), round(x + 22, 1), round(y + 16, 1)])
        detected[name] = rows
    lost, gained = (luck < 0.86) & (luck >= 0.86 * 0.92), luck == 0.99
    return {"name": path.name, "path": str(path), "width": size, "height": size, "truth": truth,
            "lost": int(lost.sum()), "gained": int(gained.sum()), "found": detected}  # fmt: skip


def _corners(size: int, x: float, y: float, w: float, h: float) -> list[float]:
    return [round(size * v, 1) for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]


def _keys(value) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {k for v in value.values() for k in _keys(v)}
    return {k for v in value for k in _keys(v)} if isinstance(value, list) else set()


_KEYS = _keys(bare()) | _keys(
    {"latency_ms": {"p50": 0, "p90": 0, "speedup": 0, "rounds": 0, "threads": 0, "runtime": 0, "samples": 0},
     "stages_ms": {"decode": 0, "pre": 0, "infer": 0, "post": 0}, "boxes": 0, "train_in_val": 0, "limit": 0, "found": 0,
     "passed": 0, "conf": 0, "iou": 0, "first": 0, "last": 0, "pictures": 0, "width": 0, "height": 0, "truth": 0,
     "lost": 0, "gained": 0, "stages": 0, "seconds": 0, "rescued": 0, "bundle": 0, "signed_by": 0}
)  # fmt: skip
