"""Measures FP32 and INT8 alternately with each CPU runtime, on one thread: `python -m benchmarks.runtimes FOLDER`.

FOLDER contains `model.fp32.onnx` and `model.int8.onnx` from `edgeprune export --target cpu`. A session with one thread
computes in the caller's thread, so its CPU time is that of the inference, without other programs. The table gives the
CPU time and the wall time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
from edgeprune_device import runtimes
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment

RESULTS = Path(__file__).parent / "results"
FILES = ("fp32", "int8")
WARMUP = 3


def main() -> None:
    """Measure, write `results/runtimes.{json,md}`, and print the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runtimes", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="what `edgeprune export --target cpu` wrote")
    parser.add_argument("--rounds", type=int, default=40, help="turns; default 40")
    args = parser.parse_args()
    names = [name for name, why in runtimes.available().items() if why is None and runtimes.on_cpu(name)]
    rows, size = measure(args.folder, names, args.rounds)
    machine = Environment.read()
    results = {"schema_version": 1, "machine": machine.to_json(), "imgsz": size, "rounds": args.rounds, "rows": rows}
    text = page(results)
    write_atomic(RESULTS / "runtimes.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / "runtimes.md", text)
    print(text)


def measure(folder: Path, names: list[str], rounds: int) -> tuple[list[dict], list[int]]:
    """Returns [{runtime, description, file, cpu_ms, wall_ms}] with medians, and the (h, w) of the input."""
    one = runtimes.RuntimeSettings(threads=1)
    sessions = {(n, f): runtimes.open(folder / f"model.{f}.onnx", n, one) for n in names for f in FILES}
    shape = next(iter(sessions.values())).input_shape
    x = np.random.default_rng(0).random(shape).astype(np.float32)
    cpu: dict = {key: [] for key in sessions}
    wall: dict = {key: [] for key in sessions}
    for i in range(WARMUP + rounds):
        for key, session in sessions.items():
            began, used = time.perf_counter(), time.thread_time()
            session.infer(x)
            if i >= WARMUP:
                cpu[key].append((time.thread_time() - used) * 1e3)
                wall[key].append((time.perf_counter() - began) * 1e3)
    rows = [
        {
            "runtime": name,
            "description": session.description,
            "file": file,
            "cpu_ms": statistics.median(cpu[name, file]),
            "cpu_min_ms": min(cpu[name, file]),
            "wall_ms": statistics.median(wall[name, file]),
            "over_fp32": statistics.median(a / b for a, b in zip(cpu[name, "fp32"], cpu[name, file])),
        }
        for (name, file), session in sessions.items()
    ]
    return rows, [int(d) for d in shape[2:]]


def page(results: dict) -> str:
    """The results as Markdown."""
    machine = results["machine"]
    features = ", ".join(machine["cpu_features"])
    lines = [
        "# Runtimes on a CPU",
        "",
        f"`python -m benchmarks.runtimes`, {results['imgsz'][1]} px, one thread, {results['rounds']} alternating "
        f"rounds; {machine['cpu']} ({features}), {machine['cores']} cores, load average "
        f"{machine['load_average_1min']}.",
        "",
        "| runtime | file | median CPU time, ms | lowest CPU time, ms | median wall time, ms | speed, FP32 = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        lines.append(
            f"| {row['description']} | {row['file']} | {row['cpu_ms']:.1f} | {row['cpu_min_ms']:.1f} "
            f"| {row['wall_ms']:.1f} | {row['over_fp32']:.2f}x |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
