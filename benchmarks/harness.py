"""Measures the overhead and the repeatability of `edgeprune bench`: `python -m benchmarks.harness BUNDLE`.

1. Overhead: with runtime `null`, the wall time per frame that belongs to no stage.
2. Comparison with a bare loop that times ONNX Runtime's `run` on the same inputs, alternately with `bench`, with one
   thread: the ratio of the medians of inference. In the bare loop only `run` uses the caches; in its second form the
   same decode, letterbox and NMS run between the calls, untimed.
3. Five consecutive runs of the command: the spread of the medians, and the verdicts.
4. The process: the time of `import edgeprune_device` and `edgeprune --version`, and the resident memory without a
   runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeprune_device.benchmark import run
from edgeprune_device.benchmark.options import BenchmarkOptions
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision import preprocess
from edgeprune_device.vision.detect import detections
from edgeprune_device.vision.evaluation import EvaluationSet

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, write `results/harness.{json,md}`, and print the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harness", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, help="a bundle, whose FP32 model is run")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement (default 8)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of bench and bare loop (default 7)")
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle, allow_untrusted=True)
    results = {
        "schema_version": 1,
        "machine": Environment.read().to_json(),
        "bundle": {"name": bundle.manifest.name, "imgsz": list(bundle.manifest.imgsz)},
        "process": process(),
        "harness": harness(bundle, args.seconds),
        "bare": bare(bundle, args.seconds, args.rounds),
        "repeats": repeats(args.bundle, args.seconds),
    }
    text = page(results)
    write_atomic(RESULTS / "harness.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / "harness.md", text)
    print(text)


def process() -> dict:
    """Time and memory of fresh processes, the median of seven."""
    imports, commands, resident = [], [], []
    measure = (
        "import time; t = time.perf_counter(); import edgeprune_device.benchmark.run; t = time.perf_counter() - t; "
        "print(t, next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmRSS')))"
    )
    for _ in range(7):
        done = subprocess.run([sys.executable, "-c", measure], check=True, capture_output=True, text=True)
        seconds, kibibytes = done.stdout.split()
        imports.append(float(seconds))
        resident.append(int(kibibytes) * 1024)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgeprune_device", "--version"], check=True, capture_output=True)
        commands.append(time.perf_counter() - began)
    return {
        "import_s": statistics.median(imports),
        "version_s": statistics.median(commands),
        "resident_bytes": statistics.median(resident),
    }


def harness(bundle: Bundle, seconds: float) -> dict:
    """The microseconds per frame that belong to no stage, with runtime null."""
    report = run.run_benchmark(bundle, BenchmarkOptions(runtime="null", precision="fp32", seconds=seconds))
    frames = report.stages["end_to_end"]["samples"]
    inside = sum(sum(report.stages[name]["samples_ns"]) for name in ("decode", "pre", "infer", "post"))
    wall_ns = frames / report.fps_end_to_end * 1e9
    ends = [begin + took for begin, took in zip(report.begins_ns, report.stages["end_to_end"]["samples_ns"])]
    between = [begin - end for begin, end in zip(report.begins_ns[1:], ends)]
    return {
        "frames": frames,
        "overhead_us": (wall_ns - inside) / frames / 1e3,
        "overhead_p50_us": statistics.median(between) / 1e3,  # without the time that other programs take
    }


def bare(bundle: Bundle, seconds: float, rounds: int) -> dict:
    """p50 of inference, ms: `bench`, the bare loop, and the bare loop with the other stages between the calls."""
    import onnxruntime

    manifest = bundle.manifest
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(bundle.read(manifest.models["fp32"]["payload"]), options)
    name = session.get_inputs()[0].name
    pictures = list(EvaluationSet.read(bundle.read(manifest.evaluation["payload"])))
    inputs = [preprocess.letterbox(preprocess.decode(p.data), manifest.imgsz, manifest.layout) for p in pictures]
    nms = dict(manifest.nms)

    def loop(between: bool) -> float:
        took, until, i = [], time.perf_counter() + seconds, 0
        while time.perf_counter() < until:
            x, box = inputs[i % len(inputs)]
            if between:
                x, box = preprocess.letterbox(
                    preprocess.decode(pictures[i % len(inputs)].data), manifest.imgsz, manifest.layout
                )
            began = time.perf_counter_ns()
            out = session.run(None, {name: x})
            took.append(time.perf_counter_ns() - began)
            if between:
                box.undo(detections(out, manifest.output, classes=len(manifest.classes), **nms))
            i += 1
        return statistics.median(took) / 1e6

    rows = []
    for _ in range(rounds):
        report = run.run_benchmark(
            bundle, BenchmarkOptions(runtime="ort", precision="fp32", threads=1, seconds=seconds, with_accuracy=False)
        )
        rows.append({"bench": report.stages["infer"]["p50_ms"], "bare": loop(False), "between": loop(True)})
    return {
        "rounds": rows,
        "bench_over_bare": statistics.median(row["bench"] / row["bare"] for row in rows),
        "bench_over_between": statistics.median(row["bench"] / row["between"] for row in rows),
    }


def repeats(path: Path, seconds: float) -> list:
    """Five consecutive runs of the command."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(5):
            file = Path(folder) / f"{i}.json"
            command = [sys.executable, "-m", "edgeprune_device", "bench", str(path), "--report", str(file)]
            command += ["--allow-untrusted", "--no-accuracy", "--no-spool", "--seconds", str(seconds)]
            command += ["--runtime", "ort", "--precision", "fp32", "--threads", "1"]
            env = {**os.environ, "EDGEPRUNE_HOME": folder}
            subprocess.run(command, check=True, capture_output=True, env=env)
            report = json.loads(file.read_text())
            p50 = {name: report["stages"][name]["p50_ms"] for name in ("infer", "end_to_end")}
            rows.append({**p50, "verdict": report["verdict"], "other_load": report["other_load"]})
    return rows


def page(results: dict) -> str:
    """The results as Markdown."""
    machine, process_, bare_ = results["machine"], results["process"], results["bare"]
    infer = [row["infer"] for row in results["repeats"]]
    whole = [row["end_to_end"] for row in results["repeats"]]
    lines = [
        "# Overhead and repeatability of `edgeprune bench`",
        "",
        f"`python -m benchmarks.harness`, {results['bundle']['name']} at {results['bundle']['imgsz'][1]} px, FP32; "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}.",
        "",
        "| quantity | measured |",
        "| --- | --- |",
        f"| time per frame outside all stages, runtime `null` | {results['harness']['overhead_us']:.1f} µs, "
        f"median {results['harness']['overhead_p50_us']:.1f} µs |",
        f"| import of all modules that `bench` needs | {process_['import_s'] * 1e3:.0f} ms |",
        f"| `edgeprune --version`, whole process | {process_['version_s'] * 1e3:.0f} ms |",
        f"| resident memory, without a runtime | {process_['resident_bytes'] / 1e6:.0f} MB |",
        f"| p50 of inference in `bench`, divided by that of a bare ONNX Runtime loop, {len(bare_['rounds'])} turns "
        f"| {bare_['bench_over_bare']:.4f} |",
        f"| the same, with decode, letterbox and NMS in the bare loop | {bare_['bench_over_between']:.4f} |",
        f"| p50 of inference in five consecutive runs, ms | {', '.join(f'{v:.2f}' for v in infer)} |",
        f"| spread of these (max / min - 1) | {max(infer) / min(infer) - 1:.1%} |",
        f"| p50 end to end in the same runs, ms | {', '.join(f'{v:.2f}' for v in whole)} |",
        f"| spread of these | {max(whole) / min(whole) - 1:.1%} |",
        "",
        "Verdicts of the five runs:",
        "",
    ]
    for row in results["repeats"]:
        load = {when: "an unknown share" if v is None else f"{v:.1%}" for when, v in row["other_load"].items()}
        reasons = "".join(f"; {reason}" for reason in row["verdict"]["reasons"])
        lines.append(
            f"- {row['verdict']['state']}: other programs used {load['before']} of all cores before the run and "
            f"{load['during']} during it{reasons}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
