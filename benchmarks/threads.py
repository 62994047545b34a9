"""Compares threads that spin with threads that yield, in forward passes and whole builds, alone and under load.

    python -m benchmarks.threads                    forward passes: about seven minutes
    python -m benchmarks.threads --builds 2         also whole builds of the demo: eight, an hour or more
    python -m benchmarks.threads --builds 1 -- --epochs 1     options after -- are passed to `edgeprune build`

A pass runs the built-in demo (YOLOv8n, 320 px) in PyTorch and in ONNX Runtime with --threads threads. "yields" is
edgeprune's setting; "spins" is both libraries' default, set with the user's variables (libgomp's count is 300,000). The
other load is nothing, a busy loop on one core, one on each core, or a second process with endless spinning passes. A
pass every 100 ms shows the CPU time of the wait for the next frame. All take turns in separate processes, round by
round; the load of other programs counts those that this script did not start. Builds also take turns, alone and beside
a busy loop. Run it on an otherwise idle machine. It writes benchmarks/results/threads.{json,md}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeprune_device import clock
from edgeprune_device.files import write_atomic
from edgeprune_device.machine import cpu_load
from edgeprune_device.machine.environment import Environment

from edgeprune import versions
from edgeprune.model import threads

RESULTS = Path(__file__).parent / "results"
SIZE = 320
CORES = len(os.sched_getaffinity(0))
LIBRARIES = {"torch": "PyTorch", "ort": "ONNX Runtime"}
#: The environment variables for edgeprune; empty: edgeprune decides.
WAYS = {"spins": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"}, "yields": {}}
PACE_S = 0.1
#: name -> (title, plain loops, another that spins, seconds between the starts of passes)
LOADS = {
    "quiet": ("nothing", 0, False, 0.0),
    "paced": ("nothing; one pass every 100 ms", 0, False, PACE_S),
    "one": ("one busy loop", 1, False, 0.0),
    "all": (f"{CORES} busy loops", CORES, False, 0.0),
    "spinner": ("a second process with spinning threads", 0, True, 0.0),
}


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of passes; 0: none (default 5)")
    parser.add_argument("--passes", type=int, default=25, help="most passes in each turn (default 25)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each turn after three passes (default 4)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each pass (default 2)")
    parser.add_argument("--builds", type=int, default=0, help="rounds of whole builds (default 0: none)")
    parser.add_argument("build", nargs="*", metavar="-- OPTION", help="more options for `edgeprune build`")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # exit normally, so that its child processes end, too
    results = {
        "schema_version": 1,
        "created": clock.wall(),
        "machine": Environment.read().to_json(),
        "packages": versions.of_packages(),
        "load_average": os.getloadavg(),
        "threads": args.threads,
        "passes": passes(args) if args.rounds else None,
        "builds": builds(args.builds, args.build) if args.builds else None,
        "build_options": args.build,
    }
    text = page(results)
    write_atomic(RESULTS / "threads.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / "threads.md", text)
    print(text)


def environment(way: str, **more: str) -> dict[str, str]:
    """This process's environment with the variables for this wait policy."""
    own = {name: value for name, value in os.environ.items() if name not in threads.DECIDES}
    return {**own, **WAYS[way], **more}


# -- other load --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def plain_loops(count: int) -> Iterator[None]:
    """Programs that keep one core busy each."""
    loop_ = f"import os\nwhile os.getppid() == {os.getpid()}:\n for _ in range(10**7): pass"  # ends with this process
    loops = [subprocess.Popen([sys.executable, "-c", loop_]) for _ in range(count)]
    try:
        time.sleep(0.5 if count else 0)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextlib.contextmanager
def seen(row: dict) -> Iterator[None]:
    """Add to the row the share of all cores that other programs used during the block."""
    before = cpu_load.read()
    yield
    row["others"] = cpu_load.others(before, cpu_load.read())


# -- forward passes ----------------------------------------------------------------------------------------------------
class Runner:
    """A process that runs passes on request: {passes, seconds, pace_s} -> {ms: [of each], cpu_ms: of one}."""

    def __init__(self, library: str, way: str, model: Path, count: int) -> None:
        command = [
            sys.executable,
            "-c",
            "from benchmarks.threads import serve; serve()",
            library,
            str(model),
            str(count),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(way),
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        self.state = json.loads(self._process.stdout.readline())

    def tell(self, **order) -> None:
        print(json.dumps(order), file=self._process.stdin, flush=True)

    def ask(self, **order) -> dict:
        self.tell(**order)
        return json.loads(self._process.stdout.readline())

    @contextlib.contextmanager
    def going(self) -> Iterator[None]:
        """Run endless passes in the block; the process is stopped outside of it."""
        self._process.send_signal(signal.SIGCONT)
        try:
            time.sleep(0.5)
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve() -> None:
    """A `Runner`'s process."""
    library, model, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    run = {"torch": torch_pass, "ort": ort_pass}[library](model, count)
    for _ in range(3):
        run()
    print(json.dumps({name: os.environ.get(name) for name in threads.DECIDES}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        took: list[float] = []
        began, spent = time.perf_counter(), time.process_time()
        while len(took) < min(order["passes"], 3) or (
            len(took) < order["passes"] and time.perf_counter() - began < order["seconds"]
        ):
            start = time.perf_counter()
            run()
            took.append((time.perf_counter() - start) * 1e3)
            time.sleep(max(order["pace_s"] - (time.perf_counter() - start), 0))
        print(json.dumps({"ms": took, "cpu_ms": (time.process_time() - spent) * 1e3 / len(took)}), flush=True)


def torch_pass(_: Path, count: int) -> Callable[[], object]:
    import torch

    from edgeprune import demo
    from edgeprune.model import checkpoint
    from edgeprune.model.prepare import prepare

    network = prepare(checkpoint.load(demo.WEIGHTS).model, (SIZE, SIZE))
    torch.set_num_threads(count)
    x = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

    def run() -> object:
        with torch.inference_mode():
            return network(x)

    return run


def ort_pass(model: Path, count: int) -> Callable[[], object]:
    import numpy as np
    from edgeprune_device import runtimes

    session = runtimes.open(model, "ort", runtimes.RuntimeSettings(count))
    x = np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)
    return lambda: session.infer(x)


def passes(args: argparse.Namespace) -> list[dict]:
    """[{library, way, load, rounds: [{ms: [of each pass], cpu_ms, others}]}]"""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        model = Path(folder) / "model.onnx"
        export = (
            "import sys; import onnx; from edgeprune import demo; from edgeprune.model import checkpoint; "
            "from edgeprune.exporting.to_onnx import to_onnx; "
            f"onnx.save(to_onnx(checkpoint.load(demo.WEIGHTS).model, ({SIZE}, {SIZE})), sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", export, str(model)], check=True)

        def started(library: str, way: str) -> Runner:
            runner = Runner(library, way, model, args.threads)
            stack.callback(runner.close)
            return runner

        spinners = {library: started(library, "spins") for library in LIBRARIES}
        for spinner in spinners.values():
            spinner.tell(passes=10**9, seconds=10**9, pace_s=0.0)
            with spinner.going():
                pass
        cells = [
            {"library": library, "way": way, "load": load, "rounds": []}
            for load in LOADS for library in LIBRARIES for way in WAYS
        ]  # fmt: skip
        runners = {(library, way): started(library, way) for library in LIBRARIES for way in WAYS}
        for i in range(args.rounds):
            for cell in cells if i % 2 == 0 else reversed(cells):  # alternate the order
                _, loops, spinning, pace_s = LOADS[cell["load"]]
                row: dict = {}
                beside = spinners[cell["library"]].going() if spinning else plain_loops(loops)
                with beside, seen(row):
                    row |= runners[cell["library"], cell["way"]].ask(
                        passes=args.passes, seconds=args.seconds, pace_s=pace_s
                    )
                cell["rounds"].append(row)
            print(f"round {i + 1} of {args.rounds}", file=sys.stderr, flush=True)
        return cells


# -- builds ------------------------------------------------------------------------------------------------------------
def builds(turns: int, options: list[str]) -> list[dict]:
    """[{way, load, rounds: [{seconds, stages: {name: s}, others}]}]"""
    cells = [{"way": way, "load": load, "rounds": []} for load in ("quiet", "one") for way in WAYS]
    with tempfile.TemporaryDirectory() as folder:
        own = {"EDGEPRUNE_HOME": f"{folder}/home", "XDG_CACHE_HOME": f"{folder}/cache"}
        scenes = "import edgeprune; edgeprune.embedded_demo()"  # made once, outside of the timing
        subprocess.run([sys.executable, "-c", scenes], check=True, env=environment("yields", **own))
        for i in range(turns):
            for cell in cells if i % 2 == 0 else reversed(cells):
                out = Path(folder) / f"{cell['way']}-{cell['load']}-{i}"
                command = [sys.executable, "-m", "edgeprune", "build", "--ratio", "0.2", "--target", "jetson-orin"]
                command += [*options, "--out", str(out), "--quiet"]
                row: dict = {}
                with plain_loops(LOADS[cell["load"]][1]), seen(row):
                    began = time.perf_counter()
                    done = subprocess.run(command, capture_output=True, text=True, env=environment(cell["way"], **own))
                    row["seconds"] = time.perf_counter() - began
                if done.returncode not in (0, 1):  # 1: a failed gate, possible after a short training
                    raise SystemExit(done.stderr)
                stages = json.loads((out / "build.json").read_text())["stages"]
                row["stages"] = {stage["name"]: stage["seconds"] for stage in stages}
                cell["rounds"].append(row)
                print(f"build {cell['way']}, {cell['load']}: {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    return cells


# -- the page ----------------------------------------------------------------------------------------------------------
def page(results: dict) -> str:
    """The results as Markdown."""
    machine, rows = results["machine"], [*(results["passes"] or []), *(results["builds"] or [])]
    others = [row["others"] for cell in rows for row in cell["rounds"] if row["others"] is not None]
    lines = [
        "# Spinning and yielding threads",
        "",
        f"`python -m benchmarks.threads`, {results['created'][:10]}; {machine['cpu']}, {machine['cores']} cores, "
        f"torch {results['packages']['torch']}, onnxruntime {results['packages']['onnxruntime']}. "
        f"Load average before: {results['load_average'][0]:.1f}. "
        + (
            f"Other programs used {statistics.median(others):.0%} of all cores (median; at most {max(others):.0%})."
            if others
            else "The load of other programs is not known."
        ),
        "",
    ]
    if results["passes"]:
        lines += passes_table(results)
    if results["builds"]:
        lines += builds_table(results)
    return "\n".join(lines)


def passes_table(results: dict) -> list[str]:
    cells = {(c["load"], c["library"], c["way"]): c["rounds"] for c in results["passes"]}
    columns = [(library, way) for library in LIBRARIES for way in WAYS]
    rounds = len(next(iter(cells.values())))
    lines = [
        f"Time of one forward pass of YOLOv8n, {SIZE} px, {results['threads']} threads, in ms: median of the medians "
        f"of {rounds} rounds, with the lowest and the highest median in brackets.",
        "",
        "| other load | " + " | ".join(f"{LIBRARIES[library]} {way}" for library, way in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for load, (title, *_) in LOADS.items():
        words = []
        for library, way in columns:
            medians = [statistics.median(row["ms"]) for row in cells[load, library, way]]
            words.append(f"{statistics.median(medians):.1f} ({min(medians):.1f} to {max(medians):.1f})")
        lines.append(f"| {title} | " + " | ".join(words) + " |")
    lines += ["", "CPU time of one pass and of the wait after it, in ms: median of the rounds.", "", *lines[2:4]]
    for load, (title, *_) in LOADS.items():
        words = [f"{statistics.median(row['cpu_ms'] for row in cells[(load, *column)]):.1f}" for column in columns]
        lines.append(f"| {title} | " + " | ".join(words) + " |")
    return [*lines, ""]


def builds_table(results: dict) -> list[str]:
    took = {(c["way"], c["load"]): [row["seconds"] for row in c["rounds"]] for c in results["builds"]}
    command = " ".join(["edgeprune build --ratio 0.2 --target jetson-orin", *results["build_options"]])
    lines = [
        f"Time of a whole build, `{command}`, in s: median of {len(took['spins', 'quiet'])} turns, with every turn in "
        "brackets.",
        "",
        "| threads | idle machine | beside one busy loop | times as long |",
        "| --- | --- | --- | --- |",
    ]
    for way in WAYS:
        quiet, busy = took[way, "quiet"], took[way, "one"]
        words = [f"{statistics.median(s):.0f} ({', '.join(f'{v:.0f}' for v in s)})" for s in (quiet, busy)]
        ratio = statistics.median(b / q for b, q in zip(busy, quiet, strict=True))
        lines.append(f"| {way} | " + " | ".join(words) + f" | {ratio:.2f} |")
    return [*lines, ""]


if __name__ == "__main__":
    main()
