"""Pruned detectors before any training, by family and head: mAP on images that neither chose nor compensated.

    python -m benchmarks.halves --weights yolo11n.pt yolo26n.pt --data coco128/data.yaml --macs 0.8,0.65

The training images are divided into two halves, every other image. Each network is pruned twice: chosen and compensated
on one half, judged on the other. The matches of both halves are joined to one mAP, with a bootstrap interval over the
images. A network with two heads is pruned for each head of --head, and both heads of the result are judged. Finished
networks stay in --work and are not pruned again, so a run may be interrupted; to repeat a cell, delete its file. Writes
benchmarks/results/halves.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from edgeprune_device import clock
from edgeprune_device.files import write_atomic
from edgeprune_device.machine.environment import Environment
from edgeprune_device.vision import evaluation
from edgeprune_device.vision.accuracy import ImageMatches, Matches, match_image
from torch import nn

from edgeprune import versions
from edgeprune.data import dataset, samples
from edgeprune.measuring.accuracy import interval
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint, head
from edgeprune.model.count import count
from edgeprune.model.threads import use_all_cores
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.prune import PruneRequest, prune_network

RESULTS = Path(__file__).parent / "results"
#: Multiple of the kept channel counts, as for GPUs.
MULTIPLE = 8


@dataclass(frozen=True)
class Job:
    """data: the data set; imgsz: the side of the image, px; work: the folder of the pruned networks."""

    data: dataset.Dataset
    imgsz: int
    work: Path

    @cached_property
    def halves(self) -> tuple[list[Path], list[Path]]:
        pictures = sorted(self.data.train)
        return pictures[::2], pictures[1::2]

    def samples(self, half: int) -> samples.Samples:
        chosen = samples.pick(self.halves[half], samples.affordable(self.imgsz))
        return samples.read(self.data, chosen, self.imgsz).to(torch.device("cpu"))

    def matches(self, model: nn.Module, which: str | None, half: int) -> list[ImageMatches]:
        """The matches of one head on the images of a half."""
        head.select(model, which)
        session, names = TorchSession(model, self.imgsz), list(self.data.names)
        matched = []
        for path in self.halves[half]:
            image = evaluation.detect(
                session, str(path), path.name, imgsz=self.imgsz, classes=len(names), kind=session.kind
            )
            matched.append(match_image(image.rows, self.data.truth(path, image.box.shape), names, path.name))
        return matched


def pruned(job: Job, weights: Path, which: str | None, macs: float, half: int) -> tuple[nn.Module, float]:
    """(the network that was chosen and compensated on a half, its share of the MACs)."""
    source = checkpoint.load(weights)
    head.select(source.model, which)
    file = job.work / f"{weights.stem}-{which or 'head'}-{macs:g}-{half}.pt"
    if not file.exists():
        start = time.monotonic()
        ask = PruneRequest(Budget("macs", macs), MULTIPLE, job.imgsz)
        cut = prune_network(source.model, criterion="energy", ask=ask, samples=job.samples(half))
        job.work.mkdir(parents=True, exist_ok=True)
        checkpoint.save(file, cut.model, like=source)
        print(f"{file.name}: {time.monotonic() - start:.0f} s", flush=True)
    model = checkpoint.load(file).model
    size = (job.imgsz, job.imgsz)
    return model, count(model, size).macs / count(source.model, size).macs


def figures(job: Job, weights: Path, which: str | None, macs: float) -> dict[str, Any]:
    """The row of one network at one budget; 1: unpruned."""
    networks, shares = [], []
    for half in (0, 1):
        if macs == 1:
            model, share = checkpoint.load(weights).model, 1.0
        else:
            model, share = pruned(job, weights, which, macs, half)
        networks.append(model)
        shares.append(share)
    row: dict[str, Any] = {"weights": weights.name, "head": which, "macs_asked": macs, "macs": shares, "map50_95": {}}
    for judged in head.HEADS if head.two_heads(networks[0]) else (None,):
        images = [image for half in (0, 1) for image in job.matches(networks[half], judged, 1 - half)]
        joined = Matches.of(images, list(job.data.names))
        row["map50_95"][judged or "head"] = {"value": joined.accuracy().map50_95, "interval": interval(joined)}
    return row


def main() -> None:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.halves", description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, nargs="+", required=True, help="detectors (.pt)")
    parser.add_argument("--data", type=Path, required=True, help="data.yaml; its training images are used")
    parser.add_argument(
        "--macs", default="0.9,0.8,0.65,0.5", help="fractions of the MACs to keep (default %(default)s)"
    )
    parser.add_argument("--head", nargs="+", default=list(head.HEADS), choices=head.HEADS, help="heads to prune for")
    parser.add_argument("--imgsz", type=int, default=640, help="network input, px (default %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/halves"), help="folder of the pruned networks")
    args = parser.parse_args()
    use_all_cores()
    job = Job(dataset.load(args.data), args.imgsz, args.work)
    rows = []
    for weights in args.weights:
        two = head.two_heads(checkpoint.load(weights).model)
        rows.append(figures(job, weights, None, 1))
        for macs in map(float, args.macs.split(",")):
            for which in args.head if two else (None,):
                rows.append(figures(job, weights, which, macs))
                print(json.dumps(rows[-1]), flush=True)
    results = {
        "schema_version": 1, "created": clock.wall(), "machine": Environment.read().to_json(),
        "packages": versions.of_packages(), "cores": len(os.sched_getaffinity(0)), "data": args.data.parent.name,
        "images": len(job.data.train), "imgsz": args.imgsz, "rows": rows,
    }  # fmt: skip
    write_atomic(RESULTS / "halves.json", json.dumps(results, indent=1) + "\n")
    write_atomic(RESULTS / "halves.md", page(results))
    print(page(results))


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# Pruned detectors before any training",
        "",
        f"{results['data']}, {results['images']} images in two halves, {results['imgsz']} px: chosen and compensated "
        "on one half, judged on the other; both halves joined. mAP50-95, its 95 % bootstrap interval, and the share "
        f"of the unpruned network's figure. {results['created']}.",
        "",
        "| network | pruned for | MACs | judged head | mAP50-95 | interval | kept |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    uncut = {row["weights"]: row["map50_95"] for row in results["rows"] if row["macs_asked"] == 1}
    for row in results["rows"]:
        macs = sum(row["macs"]) / len(row["macs"])
        for judged, figure in row["map50_95"].items():
            low, high = figure["interval"]
            kept = figure["value"] / uncut[row["weights"]][judged]["value"]
            lines.append(
                f"| {row['weights']} | {row['head'] or '-'} | {macs:.0%} | {judged} | {figure['value']:.3f} | "
                f"{low:.3f} to {high:.3f} | {kept:.0%} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
