"""What the service costs over a bare loop of the same stages: `python -m benchmarks.device.service BUNDLE`.

In turns, in one run, one thread, the FP32 model, the same picture files:

- bare: decode, letterbox, inference, NMS in one process, and nothing else
- line: the same, with the detections as one line by json.dumps, appended to a file
- service: `edgeprune run`, supervisor and worker, its lines appended to a file

The time of a frame is that of some frames in a row, divided; the median of all such runs is a turn's figure, so that
what another process takes meanwhile counts little. The loops begin after a warm-up. Runtime null runs no network: what
is then left is all overhead's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeprune_device.bundle import Bundle
from edgeprune_device.environment import Environment
from edgeprune_device.evaluation import EvaluationSet
from edgeprune_device.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results"
WARM_UP = 30  # frames
CHUNKS = {"ort": 20, "null": 200}  # frames in a row
WAYS = ("bare", "line", "service")


def main() -> None:
    """Measure, write `results/service.{json,md}`, print the latter."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device.service", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path, nargs="?", help="a bundle; its FP32 model is run")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each; default 9")
    parser.add_argument("--loop", nargs=3, metavar=("WAY", "RUNTIME", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.loop:
        loop(args.bundle, *args.loop)
        return
    bundle = Bundle.open(args.bundle, allow_untrusted=True)
    found = {
        "schema_version": 1,
        "machine": Environment.read().to_json(),
        "bundle": {"name": bundle.manifest.name, "imgsz": list(bundle.manifest.imgsz)},
    }
    with tempfile.TemporaryDirectory() as folder:
        for runtime, frames in (("ort", 620), ("null", 4040)):
            pictures = Path(folder) / runtime
            spread(bundle, pictures, frames)
            found[runtime] = turns(args.bundle, runtime, pictures, args.rounds)
        found["supervisor"] = supervisor(args.bundle, Path(folder) / "null")
    text = page(found)
    write_atomic(RESULTS / "service.json", json.dumps(found, indent=1) + "\n")
    write_atomic(RESULTS / "service.md", text)
    print(text)


def spread(bundle: Bundle, folder: Path, frames: int) -> None:
    """The bundle's pictures over and over, as so many files."""
    pictures = list(EvaluationSet.read(bundle.read(bundle.manifest.evaluation["payload"])))
    folder.mkdir()
    for i in range(frames):
        picture = pictures[i % len(pictures)]
        (folder / f"{i:06d}{Path(picture.name).suffix}").write_bytes(picture.data)


def turns(bundle: Path, runtime: str, pictures: Path, rounds: int) -> dict:
    """{"rounds": [{way: ms a frame}], "line_over_bare", "service_over_bare", "service_over_line"}: medians of pairs."""
    rows = []
    for i in range(rounds):
        ways = WAYS if i % 2 == 0 else WAYS[::-1]
        row = {way: turn(way, bundle, runtime, pictures) for way in ways}
        rows.append({way: row[way] for way in WAYS})
        print(f"{runtime}: " + ", ".join(f"{way} {ms:.3f} ms" for way, ms in rows[-1].items()), file=sys.stderr)
    pairs = (("line", "bare"), ("service", "bare"), ("service", "line"))
    ratios = {f"{a}_over_{b}": statistics.median(row[a] / row[b] for row in rows) for a, b in pairs}
    return {"rounds": rows, **ratios}


def turn(way: str, bundle: Path, runtime: str, pictures: Path) -> float:
    """Milliseconds a frame."""
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
        moments = [json.loads(line)["boot_s"] for line in text.splitlines()]
    else:
        moments = json.loads(text.splitlines()[-1])
    step = CHUNKS[runtime]
    kept = moments[WARM_UP::step]
    return statistics.median(b - a for a, b in itertools.pairwise(kept)) / step * 1e3


def loop(path: Path, way: str, runtime: str, folder: str) -> None:
    """One bare loop; prints when each frame began, s."""
    from edgeprune_device import runtimes, vision

    bundle = Bundle.open(path, allow_untrusted=True)
    manifest = bundle.manifest
    settings = runtimes.Settings(threads=1, shapes=manifest.shapes)
    session = runtimes.open(bundle.read(manifest.models["fp32"]["payload"]), runtime, settings)
    pictures = [(str(file), file.read_bytes()) for file in sorted(Path(folder).iterdir())]
    prepare, names, nms = vision.Preprocessor(manifest.imgsz), manifest.classes, dict(manifest.nms)
    moments, number = [], 0
    output = open(os.devnull if way == "bare" else f"{tempfile.mkdtemp()}/lines", "ab", buffering=0)  # noqa: SIM115
    for name, data in pictures:
        moments.append(time.clock_gettime(time.CLOCK_BOOTTIME))
        image = vision.decode(data, name)
        x, box = prepare(image)
        found = box.undo(vision.detections(session.infer(x), classes=len(names), **nms))
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
                    for x1, y1, x2, y2, s, c in found.tolist()
                ],
            }
            output.write(json.dumps(line).encode() + b"\n")
            number += 1
    print(json.dumps(moments))


def supervisor(bundle: Path, pictures: Path) -> dict:
    """Of the process that watches: resident memory, and the share of a core that it uses while nothing happens."""
    from edgeprune_device import cpu_load

    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "edgeprune_device", "run", "--root", root, "--source", "/nowhere"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            time.sleep(5)
            stat = Path(f"/proc/{process.pid}/stat")
            before = cpu_load.parse_process(stat.read_text())[1]
            seconds = 60.0
            time.sleep(seconds)
            ticks = cpu_load.parse_process(stat.read_text())[1] - before
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.send_signal(signal.SIGTERM)
    share = ticks / os.sysconf("SC_CLK_TCK") / seconds
    return {"resident_bytes": int(status.split("VmRSS:")[1].split()[0]) * 1024, "cpu_share": share}


def median_of(turned: dict, way: str) -> float:
    """Milliseconds a frame, over the turns."""
    return statistics.median(row[way] for row in turned["rounds"])


def page(found: dict) -> str:
    """The results as Markdown."""
    machine, ort, null, watcher = found["machine"], found["ort"], found["null"], found["supervisor"]
    less_us = [(median_of(found[name], "service") - median_of(found[name], "bare")) * 1e3 for name in CHUNKS]
    over = [ort["service_over_bare"], null["service_over_bare"]]
    median = {runtime: {way: median_of(found[runtime], way) for way in WAYS} for runtime in CHUNKS}

    def spread_of(rows, a, b):
        ratios = sorted(row[a] / row[b] for row in rows)
        return f"{ratios[0]:.3f} to {ratios[-1]:.3f}"

    lines = [
        "# What `edgeprune run` costs over a bare loop",
        "",
        f"`python -m benchmarks.device.service`, {found['bundle']['name']} at {found['bundle']['imgsz'][1]} px, FP32, "
        f"1 thread, {len(ort['rounds'])} turns; {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}.",
        "",
        "| ms a frame, median of turns | ONNX Runtime | runtime null |",
        "| --- | --- | --- |",
        f"| bare: decode, letterbox, inference, NMS | {median['ort']['bare']:.2f} | {median['null']['bare']:.3f} |",
        f"| line: the same, and a line by json.dumps | {median['ort']['line']:.2f} | {median['null']['line']:.3f} |",
        f"| service: `edgeprune run` | {median['ort']['service']:.2f} | {median['null']['service']:.3f} |",
        f"| **service / bare**, median of pairs | **{over[0]:.3f}** | {over[1]:.3f} |",
        f"| its least and most | {spread_of(ort['rounds'], 'service', 'bare')} "
        f"| {spread_of(null['rounds'], 'service', 'bare')} |",
        f"| service / line, median of pairs | {ort['service_over_line']:.3f} | {null['service_over_line']:.3f} |",
        f"| its least and most | {spread_of(ort['rounds'], 'service', 'line')} "
        f"| {spread_of(null['rounds'], 'service', 'line')} |",
        "",
        f"Service less bare: {less_us[0]:.0f} us a frame with ONNX Runtime and what it detects, "
        f"{less_us[1]:.0f} us with null, which detects nothing.",
        f"The supervisor, while nothing happens: {watcher['resident_bytes'] / 1e6:.0f} MB resident, "
        f"{watcher['cpu_share']:.2%} of a core.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
