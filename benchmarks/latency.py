"""Evaluates the latency model: its error on held-out architectures, and the accuracy of plans by latency budget.

    python benchmarks/latency.py --weights best.pt --data data.yaml --out runs/latency

It fits the model to the demo and to --weights. Then, for each share of the latency, it makes a plan by latency budget,
and plans by MACs budgets, of which it uses the one with the same *measured* latency. All are timed alternately with
the unpruned network. Both plans are ranked by output energy, pruned, compensated and evaluated before any fine-tuning.
Finished parts stay in --out and are not repeated. It writes benchmarks/results/latency.json and latency.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from edgeprune_device.files import write_atomic

from edgeprune import demo
from edgeprune.data import dataset, samples
from edgeprune.measuring.accuracy import bootstrap, evaluate
from edgeprune.measuring.sessions import TorchSession
from edgeprune.model import checkpoint
from edgeprune.pruning import budget, cost, criteria, latency, prune
from edgeprune.pruning.budget import Budget
from edgeprune.pruning.channels import trace
from edgeprune.pruning.latency import Latency
from edgeprune.pruning.plan import PrunePlan
from edgeprune.pruning.timing.ort import Ort

RESULTS = Path(__file__).parent / "results"
MULTIPLE = 8
MIN_BOXES = 30


def fitted(weights: Path, architectures: int, out: Path) -> Latency:
    path = out / f"fit-{weights.stem}.json"
    if not path.exists():
        source = checkpoint.load(weights)
        fit = latency.fit(source.model, trace(source.model), source.imgsz, architectures=architectures)
        write_atomic(path, json.dumps(fit.to_json(), indent=1) + "\n")
    return Latency(**json.loads(path.read_text()))


class Comparison:
    """A latency budget compared with a MACs budget on one model."""

    def __init__(self, weights: Path, data: Path, fit: Latency, out: Path) -> None:
        self.source, self.out = checkpoint.load(weights), out
        self.data = dataset.load(data, task=self.source.task)
        self.model, self.size, self.fit = self.source.model, fit.imgsz, fit
        self.channels = trace(self.model)
        solve, _ = samples.split(self.data.train, self.size)
        self.samples = samples.read(self.data, solve, self.size)
        self.scores = self._scores()
        boxes = self.data.boxes(self.data.val)
        self.judged = {i for i, n in enumerate(boxes) if n >= MIN_BOXES}
        session = TorchSession(self.model, self.size)
        _, self.original = evaluate(session, self.data, self.data.val, self.size)

    def _scores(self) -> np.ndarray:
        path = self.out / "scores.npy"
        if not path.exists():
            np.save(path, criteria.load("energy")(self.model, self.channels, self.samples))
        return np.load(path)

    def keep(self, asked: Budget) -> np.ndarray:
        counted = self.fit.cost(self.channels) if asked.kind == "latency" else None
        return budget.choose(self.channels, self.scores, asked, multiple=MULTIPLE, cost=counted)

    def counts(self, keep: np.ndarray) -> np.ndarray:
        return np.array([keep[g.atoms].sum() for g in self.channels.groups], dtype=float)

    def at(self, share: float) -> dict:
        """The row of one latency share: the latency plan, and the MACs plan with the same latency."""
        mine = self.keep(Budget("latency", share))
        uncut = np.ones(self.channels.atoms, dtype=bool)
        model = self.fit.cost(self.channels)
        full = model.of(self.counts(uncut))
        goal = self._time({"uncut": uncut, "mine": mine}, rounds=30)["mine"]
        others = {}  # MACs plans that the model predicts to be close; a measurement selects the equally fast one
        for value in np.arange(max(share - 0.14, 0.2), min(share + 0.04, 0.99), 0.01):
            keep = self.keep(Budget("macs", float(value)))
            if abs(model.of(self.counts(keep)) / full - goal) < 0.03:
                others[f"{value:.2f}"] = keep
        times = self._time({"uncut": uncut, "mine": mine, **others}, rounds=30)
        nearest = min(others, key=lambda name: abs(times[name] - times["mine"]))
        times = self._time({"uncut": uncut, "mine": mine, nearest: others[nearest]}, rounds=60)
        row = {"share": share, "macs_budget": float(nearest)}
        matches = {}
        for name, keep in (("latency", mine), ("macs", others[nearest])):
            matches[name], macs = self._evaluate(keep)
            row[name] = {
                "latency": times["mine" if name == "latency" else nearest],
                "predicted": float(model.of(self.counts(keep)) / full),
                "macs": macs,
                "map50_95": self._score(matches[name].accuracy()),
                "all_classes": matches[name].accuracy().map50_95,
            }
        row["difference"] = bootstrap(matches["latency"], matches["macs"], self._score)
        return row

    def _time(self, plans: dict[str, np.ndarray], rounds: int) -> dict[str, float]:
        """The latencies as shares of the first plan's."""
        files = {n: latency.onnx(self.model, self.channels, self.counts(k), self.size) for n, k in plans.items()}
        ms = Ort(rounds=rounds)(files)
        first = ms[next(iter(ms))]
        return {name: value / first for name, value in ms.items()}

    def _evaluate(self, keep: np.ndarray):
        plan = PrunePlan.of(self.channels, keep, budget="benchmark", criterion="energy")
        pruned = prune.cut(self.model, self.channels, plan, self.samples).model
        _, matches = evaluate(TorchSession(pruned, self.size), self.data, self.data.val, self.size)
        macs = cost.macs(self.channels)
        return matches, float(macs.of(self.counts(keep)) / macs.of(self.counts(np.ones_like(keep))))

    def _score(self, accuracy) -> float:
        return float(np.mean([c.map50_95 or 0.0 for c in accuracy.per_class if c.index in self.judged]))

    def about(self) -> dict:
        return {
            "original": self._score(self.original.accuracy()),
            "classes": [self.data.names[i] for i in sorted(self.judged)], "pictures": len(self.data.val),
        }  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--weights", type=Path, required=True)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--architectures", type=int, default=30)
    p.add_argument(
        "--shares", default="0.8,0.7,0.6", help="shares of the unpruned network's latency; empty: only the fits"
    )
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    fits = {path.stem: fitted(path, args.architectures, args.out) for path in (demo.WEIGHTS, args.weights)}
    result = {"fits": {k: v.to_json() for k, v in fits.items()}, "weights": args.weights.name, "rows": []}
    comparison = None
    for share in [float(v) for v in args.shares.split(",") if v]:
        path = args.out / f"share-{share:g}.json"
        if not path.exists():
            comparison = comparison or Comparison(args.weights, args.data, fits[args.weights.stem], args.out)
            row = {**comparison.about(), **comparison.at(share)}
            write_atomic(path, json.dumps(row, indent=1) + "\n")
        result["rows"].append(json.loads(path.read_text()))
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / "latency.json", json.dumps(result, indent=1) + "\n")
    write_atomic(RESULTS / "latency.md", table(result))
    print(table(result))


def table(result: dict) -> str:
    lines = [
        "# Latency budgets",
        "",
        "Error of the latency model for architectures outside the fit (three-fold cross-validation):",
        "",
        "| model | input | architectures | unpruned, ms | median error | 90th percentile | runtime |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, fit in result["fits"].items():
        lines.append(
            f"| {name} | {fit['imgsz']} px | {fit['architectures']} | {fit['full_ms']:.1f} | {fit['error_median']:.1%} "
            f"| {fit['error_p90']:.1%} | {fit['runtime']} |"
        )
    if result["rows"]:
        first = result["rows"][0]
        lines += [
            "",
            f"The next table compares latency budgets for {result['weights']} with MACs budgets that give the same "
            "measured latency. Channels were chosen by the criterion `energy` and compensated, without fine-tuning. "
            f"mAP50-95 is in points on {first['pictures']} validation images, over {', '.join(first['classes'])} "
            f"(unpruned: {100 * first['original']:.2f}). Latency and MACs are fractions of those of the unpruned "
            "network. Differences have the 95 % interval of a paired bootstrap over images in brackets.",
            "",
            "| latency budget | its latency (predicted), MACs | its mAP | MACs budget: latency, MACs | its mAP "
            "| difference |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for row in result["rows"]:
        mine, other, (mean, low, high) = row["latency"], row["macs"], row["difference"]
        lines.append(
            f"| {row['share']:g} | {mine['latency']:.3f} ({mine['predicted']:.3f}), {mine['macs']:.3f} "
            f"| {100 * mine['map50_95']:.2f} | {other['latency']:.3f}, {other['macs']:.3f} "
            f"| {100 * other['map50_95']:.2f} | {100 * mean:+.2f} ({100 * low:+.2f} … {100 * high:+.2f}) |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
