"""What the service costs over a bare loop of the same stages: `python -m benchmarks.device.service BUNDLE`.

In turns, in one run, one thread, the FP32 model, the same picture files:

- bare: decode, letterbox, inference, NMS in one process, and nothing else
- line: the same, with the detections as one line by json.dumps, appended to a file
- service: `edgeprune run`, supervisor and worker, its lines appended to a file

Two figures of each turn. By the clock: the time of some frames in a row, divided, the fastest tenth of these, after a
warm-up. By the processor: what all processes of a long run took, less those of a short one, by frame; other programs
disturb it less, and the supervisor is in it. Runtime null runs no network: what is then left is all overhead's.
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

from edgeprune_device.bundle import Bundle
from edgeprune_device.environment import Environment
from edgeprune_device.evaluation import EvaluationSet
from edgeprune_device.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results"
WARM_UP = 30  # frames
CHUNKS = {"ort": 30, "null": 200}  # frames in a row
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
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        short = Path(folder) / "short"
        spread(bundle, short, WARM_UP)
        for runtime, frames in (("ort", 620), ("null", 4040)):
            pictures = Path(folder) / runtime
            spread(bundle, pictures, frames)
            found[runtime] = turns(args.bundle, runtime, pictures, short, args.rounds)
        found["supervisor"] = supervisor(args.bundle, Path(folder) / "null")
    found["load"] = [before, os.getloadavg()[0]]
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


def turns(bundle: Path, runtime: str, pictures: Path, short: Path, rounds: int) -> dict:
    """{"rounds": [{way: {"ms", "cpu_ms"}}], "line_over_bare": {"ms", "cpu_ms"}, …}: a frame's, and medians of pairs."""
    rows = []
    for i in range(rounds):
        ways = WAYS if i % 2 == 0 else WAYS[::-1]
        row = {way: turn(way, bundle, runtime, pictures, short) for way in ways}
        rows.append({way: row[way] for way in WAYS})
        print(f"{runtime}: {json.dumps(rows[-1])}", file=sys.stderr)
    found = {"rounds": rows}
    for a, b in (("line", "bare"), ("service", "bare"), ("service", "line")):
        found[f"{a}_over_{b}"] = {
            kind: statistics.median(row[a][kind] / row[b][kind] for row in rows) for kind in ("ms", "cpu_ms")
        }
    return found


def turn(way: str, bundle: Path, runtime: str, pictures: Path, short: Path) -> dict:
    """{"ms", "cpu_ms"} of a frame."""
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
    """When each frame began, s."""
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
        found = box.undo(vision.detections(session.infer(x), manifest.output, classes=len(names), **nms))
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
            seconds = 30.0
            time.sleep(seconds)
            ticks = cpu_load.parse_process(stat.read_text())[1] - before
            status = Path(f"/proc/{process.pid}/status").read_text()
            process.send_signal(signal.SIGTERM)
    share = ticks / os.sysconf("SC_CLK_TCK") / seconds
    return {"resident_bytes": int(status.split("VmRSS:")[1].split()[0]) * 1024, "cpu_share": share}


def page(found: dict) -> str:
    """The results as Markdown."""
    machine, watcher = found["machine"], found["supervisor"]

    def cells(make):
        return " | ".join(make(found[runtime], kind) for runtime in CHUNKS for kind in ("ms", "cpu_ms"))

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
        "# What `edgeprune run` costs over a bare loop",
        "",
        f"`python -m benchmarks.device.service`, {found['bundle']['name']} at {found['bundle']['imgsz'][1]} px, FP32, "
        f"1 thread, {len(found['ort']['rounds'])} turns; {machine['cpu']}, {machine['cores']} cores, Python "
        f"{machine['python']}. Other programs ran on these cores meanwhile (load average "
        f"{found['load'][0]:.1f} before, {found['load'][1]:.1f} after): the processor's time is the better figure.",
        "",
        "| ms a frame, median of turns | ONNX Runtime, clock | processor | null, clock | processor |",
        "| --- | --- | --- | --- | --- |",
        f"| bare: decode, letterbox, inference, NMS | {cells(time_of('bare'))} |",
        f"| line: the same, and a line by json.dumps | {cells(time_of('line'))} |",
        f"| service: `edgeprune run`, both processes | {cells(time_of('service'))} |",
        f"| **service / bare**, median of pairs | {cells(ratio('service', 'bare'))} |",
        f"| its least and most | {cells(spread_of('service', 'bare'))} |",
        f"| service / line, median of pairs | {cells(ratio('service', 'line'))} |",
        f"| its least and most | {cells(spread_of('service', 'line'))} |",
        "",
        f"The supervisor, while nothing happens: {watcher['resident_bytes'] / 1e6:.0f} MB resident, "
        f"{watcher['cpu_share']:.2%} of a core.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
