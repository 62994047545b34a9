"""Measures the time to read a large data set: the first time, and again with the cached check of images and labels.

    python -m benchmarks.reading                          25,000 images: about a minute
    python -m benchmarks.reading --images 10000 --copies  each image is a separate file

The data set is generated from a real one (../shared/data/coco128). Its label files are copies. Its images are links, so
each real image is decoded only once; with --copies they are separate files, which take 70 kB each. A fifth of the
images are validation images.

Each pass is a separate process that runs `edgeprune.data.dataset.load` and computes the hash and the overlap of the
splits, as a build does. The memory is the peak of this process and of the largest of its child processes. Writes
benchmarks/results/reading.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from edgeprune_device import clock
from edgeprune_device.files import write_atomic
from edgeprune_device.machine import cpu_load
from edgeprune_device.machine.environment import Environment

from edgeprune import versions

RESULTS = Path(__file__).parent / "results"
SOURCE = Path(__file__).parents[2] / "shared" / "data" / "coco128"
READINGS = ("first", "again", "again")


def main() -> None:
    """Generate the data set, read it, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reading", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=25_000, help="of the set (default 25,000)")
    parser.add_argument("--copies", action="store_true", help="copy the images (default: link them)")
    parser.add_argument("--source", type=Path, default=SOURCE, help="a real set: its folder (default coco128)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgeprune-reading-") as folder:
        data = generate(Path(folder) / "set", args.source, args.images, args.copies)
        time.sleep(3)  # files that were just written are not cached
        readings = [{"reading": name, **measured(data, Path(folder) / "cache")} for name in READINGS]
    results = {
        "schema_version": 1,
        "created": clock.wall(),
        "machine": Environment.read().to_json(),
        "packages": versions.of_packages(),
        "cores": len(os.sched_getaffinity(0)),
        "source": args.source.name,
        "images": args.images,
        "copies": args.copies,
        "readings": readings,
    }
    text = page(results)
    name = "reading-copies" if args.copies else "reading"
    write_atomic(RESULTS / f"{name}.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / f"{name}.md", text)
    print(text)


def generate(folder: Path, source: Path, count: int, copies: bool) -> Path:
    """Write the data set, with a fifth of the images as the validation split, and return its data.yaml."""
    names = (source / "data.yaml").read_text()
    pictures = sorted(p for p in (source / "images").rglob("*.jpg"))
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    for i in range(count):
        picture, split = pictures[i % len(pictures)], "val" if i % 5 == 4 else "train"
        place = folder / "images" / split / f"{i:06d}.jpg"
        if copies:
            shutil.copyfile(picture, place)
        else:
            place.symlink_to(picture.resolve())
        label = Path(str(picture).replace("/images/", "/labels/")).with_suffix(".txt")
        if label.is_file():
            shutil.copyfile(label, folder / "labels" / split / f"{i:06d}.txt")
    data = folder / "data.yaml"
    data.write_text("train: images/train\nval: images/val\n" + names[names.index("names:") :])
    return data


def measured(data: Path, cache: Path) -> dict:
    """Read once in a separate process: the seconds, the memory, and the share of the cores that other programs used."""
    before = cpu_load.read()
    command = [sys.executable, "-c", "from benchmarks.reading import read; read()", str(data)]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )  # fmt: skip
    return {**json.loads(answer.stdout), "others": cpu_load.others(before, cpu_load.read())}


def read() -> None:
    """Read the data set in the command line, and print the seconds and bytes."""
    from edgeprune.data import dataset

    start = time.perf_counter()
    data = dataset.load(sys.argv[1])
    loaded = time.perf_counter()
    data.sha256, data.overlap()
    end = time.perf_counter()
    times = os.times()
    peak = [resource.getrusage(who).ru_maxrss << 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = {
        "load_s": loaded - start,
        "hash_and_overlap_s": end - loaded,
        "all_s": end - start,
        "cpu_s": sum(times[:4]),
    }
    print(json.dumps({**seconds, "peak_bytes": peak[0], "peak_bytes_of_a_process": peak[1]}))


def page(results: dict) -> str:
    """The results as Markdown."""
    machine = results["machine"]
    kind = "copies of" if results["copies"] else "links to"
    lines = [
        f"# Reading {results['images']:,} images",
        "",
        f"The data set consists of {kind} the images in {results['source']}. A pass runs `dataset.load`, hashes the "
        "data set and looks for images in both splits. The CPU time is that of all processes, including their imports. "
        "The last column is the share of all cores that other programs used.",
        "",
        f"{machine['cpu']}, {results['cores']} cores, {results['created']}.",
        "",
        "| pass | s | of which load, s | CPU time, s | peak memory of this process, MB | of the largest other process, "
        "MB | other programs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["readings"]:
        others = "unknown" if row["others"] is None else f"{row['others']:.0%}"
        lines.append(
            f"| {row['reading']} | {row['all_s']:.1f} | {row['load_s']:.1f} | {row['cpu_s']:.1f} | "
            f"{row['peak_bytes'] / 1e6:.0f} | {row['peak_bytes_of_a_process'] / 1e6:.0f} | {others} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
