"""Compares a GPU with the CPU of the same machine, in at most eight minutes: `python -m benchmarks.gpu`.

1. A build of the built-in demo with one epoch, on each device: the kept channels (Jaccard index), MACs, mAP, and the
   time of each stage. The GPU trains in mixed precision.
2. The evaluation of a .pt file on each device: images per second and mAP50-95.
3. Every runtime and CUDA backend of this machine, with the FP32, FP16 and INT8 files of the GPU's build: the difference
   of its detections to those of ONNX Runtime on the CPU, and its latency. TensorRT for RTX builds and runs engines.

If a part cannot run, the result states the reason. Writes `results/gpu.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edgeprune_device import clock, cuda, runtimes
from edgeprune_device.errors import EdgepruneError
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.runtimes import RuntimeSettings
from edgeprune_device.vision import evaluation

import edgeprune as ep
from edgeprune import demo, versions
from edgeprune.data import dataset, samples
from edgeprune.demo.dataset import SIZE
from edgeprune.measuring.accuracy import evaluate, true_boxes
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.model.device import choose

RESULTS = Path(__file__).parent / "results"
#: Images for the accuracy, and for each runtime.
IMAGES, COMPARED = 200, 32
PRECISIONS = ("fp32", "fp16", "int8")
ON_GPU = ("trt", "rtx", "ort-cuda", "ort-tensorrt")


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="auto", help="the GPU, as `edgeprune build --device` takes it")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", help="without suffix (default results/gpu)")
    args = parser.parse_args()
    device = choose(args.device)
    if device.text == "cpu":
        sys.exit("benchmarks.gpu: no GPU on this machine (torch.cuda sees none)")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(device.text, Path(folder))
    results = {
        "schema_version": 1, "created": clock.wall(), "gpu": device.description,
        "machine": Environment.read().to_json(), "packages": versions.of_packages(),
        "seconds": round(time.monotonic() - begin), **results,
    }  # fmt: skip
    write_atomic(args.out.with_suffix(".json"), json.dumps(results, indent=1) + "\n")
    write_atomic(args.out.with_suffix(".md"), page(results))
    print(page(results))


def measure(gpu: str, folder: Path, *, epochs: int = 1, images: int = IMAGES) -> dict[str, Any]:
    """Run all parts: {part: its figures, or {"failed": the reason}}."""
    data = ep.embedded_demo()[1]
    parts: dict[str, Callable[[], Any]] = {
        "build": lambda: builds(gpu, folder, data, epochs, images),
        "evaluation": lambda: evaluations(gpu, data, images),
        "runtimes": lambda: on_runtimes(folder / "gpu", data),
    }
    results = {}
    for name, part in parts.items():
        try:
            results[name] = part()
        except Exception as error:  # a part that fails must not hide the others
            results[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return results


def builds(gpu: str, folder: Path, data: Path, epochs: int, images: int) -> dict[str, Any]:
    """Build the demo on the CPU and on the GPU."""
    records, kept = {}, {}
    for name, device in (("cpu", "cpu"), ("gpu", gpu)):
        build = ep.build(
            target="jetson-orin", weights=demo.WEIGHTS, data=data, ratio=0.2, epochs=epochs, batch=4, val_images=images,
            device=device, max_drop=0.05, out=folder / name, quiet=True,
        )  # fmt: skip
        records[name] = build.record
        kept[name] = ep.PrunePlan.load(build.out / "plan.json")
    models = {name: record["models"] for name, record in records.items()}
    return {
        "jaccard": jaccard(kept["cpu"], kept["gpu"]),
        "macs": {name: made["pruned"]["macs"] for name, made in models.items()},
        "map50_95": {
            name: {model: entry["map50_95"] for model, entry in made.items()} for name, made in models.items()
        },
        "seconds": {name: {s["name"]: s["seconds"] for s in record["stages"]} for name, record in records.items()},
    }


def jaccard(a: ep.PrunePlan, b: ep.PrunePlan) -> float:
    """The Jaccard index of the kept channels of two plans of one network."""
    ours, theirs = (
        {(name, channel) for name, channels in plan.keep.items() for channel in channels} for plan in (a, b)
    )
    return len(ours & theirs) / len(ours | theirs)


def evaluations(gpu: str, data_yaml: Path, images: int) -> dict[str, Any]:
    """Images per second and mAP50-95 of the demo's network on each device, after one warm-up image."""
    data = dataset.load(data_yaml)
    model = checkpoint.load(demo.WEIGHTS).model
    results = {}
    for name, device in (("cpu", "cpu"), ("gpu", gpu)):
        session = TorchSession(model, SIZE, choose(device).torch)
        evaluate(session, data, data.val[:1], SIZE)
        start = time.monotonic()
        chosen = samples.pick(data.val, images)
        accuracy, _ = evaluate(session, data, chosen, SIZE)
        seconds = time.monotonic() - start
        results[name] = {"images_per_second": len(chosen) / seconds, "map50_95": accuracy.map50_95}
    return results


def on_runtimes(folder: Path, data_yaml: Path) -> list[dict[str, Any]]:
    """Measure each runtime, CUDA backend and precision: mAP50-95 and median latency, or the reason for the failure."""
    data = dataset.load(data_yaml)
    items = [(p.name, str(p), true_boxes(data, p)) for p in samples.pick(data.val, COMPARED)]
    known = runtimes.available()
    rows = []
    for runtime in ("ort", *ON_GPU):
        backends = [name for name, why in cuda.available().items() if why is None] if runtime in ("trt", "rtx") else []
        for precision in PRECISIONS:
            for backend in backends or ["auto"]:
                row = {"runtime": runtime, "precision": precision, "cuda": backend}
                path = folder / f"model.{precision}.onnx"
                if known.get(runtime):
                    row["failed"] = known[runtime]
                else:
                    row.update(_run(path, runtime, RuntimeSettings(precision=precision, cuda=backend), items, data))
                rows.append(row)
    return rows


def _run(path: Path, runtime: str, settings: RuntimeSettings, items: Any, data: dataset.Dataset) -> dict[str, Any]:
    try:
        start = time.monotonic()
        with runtimes.open(path, runtime, settings) as session:
            opened = time.monotonic() - start
            accuracy, detections = evaluation.evaluate(session, items, imgsz=SIZE, classes=list(data.names), kind="raw")
            x = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
            times = []
            for _ in range(110):
                begin = time.perf_counter()
                session.infer(x)
                times.append(time.perf_counter() - begin)
            return {
                "description": session.description, "open_s": opened, "map50_95": accuracy.map50_95,
                "detections": sum(map(len, detections)), "p50_ms": float(np.median(times[10:])) * 1e3,
            }  # fmt: skip
    except EdgepruneError as error:
        return {"failed": str(error)}


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [f"# {results['gpu']} compared with the CPU of the same machine", ""]
    lines += [f"{results['machine']['cpu']}, {results['created']}, {results['seconds']} s in all.", ""]
    build, judged = results["build"], results["evaluation"]
    lines += ["## Build of the demo", ""]
    if "failed" in build:
        lines += [f"Did not run: {build['failed']}", ""]
    else:
        share = build["macs"]["gpu"] / build["macs"]["cpu"] - 1
        lines += [f"Kept channels: Jaccard {build['jaccard']:.4f}. MACs: {share:+.3%}.", ""]
        lines += ["| stage | CPU, s | GPU, s |", "| --- | --- | --- |"]
        lines += [
            f"| {name} | {s} | {build['seconds']['gpu'].get(name)} |" for name, s in build["seconds"]["cpu"].items()
        ]
        lines += ["", "| model | CPU, mAP50-95 | GPU, mAP50-95 |", "| --- | --- | --- |"]
        lines += [
            f"| {name} | {_number(value)} | {_number(build['map50_95']['gpu'].get(name))} |"
            for name, value in build["map50_95"]["cpu"].items()
        ]
        lines += [""]
    lines += ["## Evaluation of a .pt file", ""]
    if "failed" in judged:
        lines += [f"Did not run: {judged['failed']}", ""]
    else:
        lines += ["| device | images a second | mAP50-95 |", "| --- | --- | --- |"]
        lines += [f"| {n} | {e['images_per_second']:.1f} | {e['map50_95']:.5f} |" for n, e in judged.items()] + [""]
    lines += ["## Runtimes", ""]
    if isinstance(results["runtimes"], dict):
        return "\n".join([*lines, f"Did not run: {results['runtimes']['failed']}", ""])
    lines += ["| runtime | precision | CUDA backend | ms p50 | mAP50-95 |", "| --- | --- | --- | --- | --- |"]
    for row in results["runtimes"]:
        figures = row.get("failed") or f"{row['p50_ms']:.2f} | {_number(row['map50_95'])}"
        lines.append(f"| {row['runtime']} | {row['precision']} | {row['cuda']} | {figures} |")
    return "\n".join([*lines, ""])


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
