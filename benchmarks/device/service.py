"""Measures the overhead of the service over a bare loop: `python -m benchmarks.device.service BUNDLE`.

All run alternately, with one thread, the FP32 model and the same image files:

- bare: only decode, letterbox, inference and NMS, in one process
- line: the same, with the detections as one line from json.dumps, appended to a file
- service: `edgeprune run` with supervisor and worker, whose lines are appended to a file

Each turn gives two figures. Wall time: the time per frame in blocks of consecutive frames, the fastest tenth of the
blocks, after a warm-up. CPU time: the difference between all processes of a long and of a short run, per frame;
other programs disturb it less, and it includes the supervisor. Runtime null runs no network, so only overhead remains.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.trust.bundle import Bundle
from edgeprune_device.vision.evaluation import EvaluationSet

RESULTS = Path(__file__).parents[1] / "results"
WARM_UP = 30  # frames
CHUNKS = {"ort": 30, "null": 200}  # consecutive frames
WAYS = ("bare", "line", "service")


def main() -> None:
    """Measure, write `results/service.{json,md}`, and print the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device.service", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="a bundle; its FP32 model is run")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each; default 9")
    parser.add_argument("--loop", nargs=3, metavar=("WAY", "RUNTIME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        loop(args.bundle, *args.loop)
        return
    bundle = Bundle.open(args.bundle, allow_untrusted=True)
    results = {
        "schema_version": 1,
        "machine": Environment.read().to_json(),
        "bundle": {"name": bundle.manifest.name, "imgsz": list(bundle.manifest.imgsz)},
    }
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "short"
        spread(bundle, short, WARM_UP)
        for runtime, frames in (("ort", 620), ("null", 4040)):
            pictures = Path(folder) / runtime
            spread(bundle, pictures, frames)
            results[runtime] = turns(args.bundle, runtime, pictures, short, args.rounds)
        results["supervisor"] = supervisor(args.bundle, Path(folder) / "null")
    results["load"] = [before, os.getloadavg()[0]]
    text = page(results)
    write_atomic(RESULTS / "service.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / "service.md", text)
    print(text)


def spread(bundle: Bundle, folder: Path, frames: int) -> None:
    """Write the bundle's images repeatedly, as `frames` files."""
    pictures = list(EvaluationSet.read(bundle.read(bundle.manifest.evaluation["payload"])))
    folder.mkdir()
    for i in range(frames):
        picture = pictures[i % len(pictures)]
        (folder / f"{i:06d}{Path(picture.name).suffix}").write_bytes(picture.data)


def turns(bundle: Path, runtime: str, pictures: Path, short: Path, rounds: int) -> dict:
    """{"rounds": [{way: {"ms", "cpu_ms"}}], "line_over_bare": {"ms", "cpu_ms"}, …}: values per frame, and medians of
    pairs.
    """
    rows = []
    for i in range(rounds):
        ways = WAYS if i % 2 == 0 else WAYS[::-1]
        row = {way: turn(way, bundle, runtime, pictures, short) for way in ways}
        rows.append({way: row[way] for way in WAYS})
        print(f"{runtime}: {json.dumps(rows[-1])}", file=sys.stderr)
    results = {"rounds": rows}
    for a, b in (("line", "bare"), ("service", "bare"), ("service", "line")):
        results[f"{a}_over_{b}"] = {
            kind: statistics.median(row[a][kind] / row[b][kind] for row in rows) for kind in ("ms", "cpu_ms")
        }
    return results


def turn(way: str, bundle: Path, runtime: str, pictures: Path, short: Path) -> dict:
    """{"ms", "cpu_ms"} per frame."""
    spent_s, counts = [], []
    for folder in (short, pictures):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        moments = run(way, bundle, runtime, folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        counts.append(len(moments))
    step = CHUNKS[runtime]
    parts = [b - a for a, b in itertools.pairwise(moments[WARM_UP::step])]
    return {
        "ms": statistics.quantiles(parts, n=10)[0] / step * 1e3,
        "cpu_ms": (spent_s[1] - spent_s[0]) / (counts[1] - counts[0]) * 1e3,
    }


def run(way: str, bundle: Path, runtime: str, pictures: Path) -> list:
    """The start time of each frame, s."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.jsonl"
        with open(lines, "ab") as output:
            if way == "service":
                command = ["-m", "edgeprune_device", "run", str(bundle), "--allow-untrusted", "--source", str(pictures)]
                command += ["--runtime", runtime, "--precision", "fp32", "--threads", "1"]
            else:
                command = ["-m", "benchmarks.device.service", str(bundle), "--loop", way, runtime, str(pictures)]
            subprocess.run([sys.executable, *command], check=True, stdout=output, stderr=subprocess.DEVNULL)
        text = lines.read_text()
    if way == "service":
        return [json.loads(line)["boot_s"] for line in text.splitlines()]
    return json.loads(text.splitlines()[-1])


def loop(path: Path, way: str, runtime: str, folder: str) -> None:
    """Run one bare loop; print the start time of each frame, s."""
    from edgeprune_device import runtimes
    from edgeprune_device.vision import detect, preprocess

    bundle = Bundle.open(path, allow_untrusted=True)
    manifest = bundle.manifest
    settings = runtimes.RuntimeSettings(threads=1, shapes=detect.TASK.shapes(manifest))
    session = runtimes.open(bundle.read(manifest.models["fp32"]["payload"]), runtime, settings)
    pictures = [(str(file), file.read_bytes()) for file in sorted(Path(folder).iterdir())]
    prepare, names, nms = preprocess.Preprocessor(manifest.imgsz, manifest.layout), manifest.classes, dict(manifest.nms)
    moments, number = [], 0
    output = open(os.devnull if way == "bare" else f"{tempfile.mkdtemp()}/lines", "ab", buffering=0)  # noqa: SIM115
    for name, data in pictures:
        moments.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        image = preprocess.decode(data, name)
        x, box = prepare(image)
        boxes = box.undo(detect.detections(session.infer(x), manifest.output, classes=len(names), **nms))
        if way == "line":
            line = {
                "frame": number,
                "boot_s": round(moments[-1], 3),
                "source": name,
                "width": image.shape[1],
                "height": image.shape[0],
                "detections": [
                    {
                        "class": int(c),
                        "name": names[int(c)],
                        "score": round(s, 4),
                        "box": [round(x1, 1), round(y1, 1), round(x2, 1), round(y2, 1)],
                    }
                    for x1, y1, x2, y2, s, c in boxes.tolist()
                ],
            }
            output.write(json.dumps(line).encode() + b"\n")
            number += 1
    print(json.dumps(moments))


def supervisor(bundle: Path, pictures: Path) -> dict:
    """The supervisor's resident memory, and its share of a core while idle."""
    from edgeprune_device.machine import cpu_load

    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "edgeprune_device", "run", "--root", root, "--source", "/nowhere"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(5)
            stat = Path(f"/proc/{process.pid}/stat")
            before = cpu_load.parse_process(stat.read_text())[1]
            seconds = 30.0
            time.sleep(seconds)
            ticks = cpu_load.parse_process(stat.read_text())[1] - before
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.send_signal(signal.SIGTERM)
    share = ticks / os.sysconf("SC_CLK_TCK") / seconds
    return {"resident_bytes": int(status.split("VmRSS:")[1].split()[0]) * 1024, "cpu_share": share}


def page(results: dict) -> str:
    """The results as Markdown."""
    machine, watcher = results["machine"], results["supervisor"]

    def cells(make):
        return " | ".join(make(results[runtime], kind) for runtime in CHUNKS for kind in ("ms", "cpu_ms"))

    def time_of(way):
        return lambda turned, kind: f"{statistics.median(row[way][kind] for row in turned['rounds']):.3f}"

    def ratio(a, b):
        return lambda turned, kind: f"{turned[f'{a}_over_{b}'][kind]:.3f}"

    def spread_of(a, b):
        def text(turned, kind):
            ratios = sorted(row[a][kind] / row[b][kind] for row in turned["rounds"])
            return f"{ratios[0]:.3f} to {ratios[-1]:.3f}"

        return text

    lines = [
        "# Cost of `edgeprune run` compared with a bare loop",
        "",
        f"`python -m benchmarks.device.service`, {results['bundle']['name']} at {results['bundle']['imgsz'][1]} px, "
        f"FP32, 1 thread, {len(results['ort']['rounds'])} turns; {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}. Other programs ran on these cores at the same time (load average "
        f"{results['load'][0]:.1f} before, {results['load'][1]:.1f} after), so CPU time is the better figure.",
        "",
        "| ms per frame, median of the turns | ONNX Runtime, wall time | CPU time | `null`, wall time | CPU time |",
        "| --- | --- | --- | --- | --- |",
        f"| bare: decode, letterbox, inference, NMS | {cells(time_of('bare'))} |",
        f"| line: the same, and one line of JSON by json.dumps | {cells(time_of('line'))} |",
        f"| service: `edgeprune run`, both processes | {cells(time_of('service'))} |",
        f"| **service / bare**, median of the pairs | {cells(ratio('service', 'bare'))} |",
        f"| lowest and highest ratio | {cells(spread_of('service', 'bare'))} |",
        f"| service / line, median of the pairs | {cells(ratio('service', 'line'))} |",
        f"| lowest and highest ratio | {cells(spread_of('service', 'line'))} |",
        "",
        f"The idle supervisor takes {watcher['resident_bytes'] / 1e6:.0f} MB of resident memory and "
        f"{watcher['cpu_share']:.2%} of a core.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
