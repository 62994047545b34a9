"""What a bench run found: written as JSON, read back on the host, printed as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from edgeprune_device import schema
from edgeprune_device.accuracy import Accuracy
from edgeprune_device.environment import Environment

__all__ = ["DEVICE_STAGES", "END_TO_END", "BenchReport"]

END_TO_END = "end_to_end"
#: Parts of "infer" by the GPU's own clock: the copy there, the network, the copy back.
DEVICE_STAGES = ("h2d", "gpu", "d2h")
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class BenchReport:
    """One bundle, one precision, one runtime, one machine. None: not measured.

    - `bundle`: {name, sha256, target, key_fingerprint, trusted}; `model`: {payload, sha256, size_bytes}
    - `runtime`: {name, description, threads}; `settings`: what was asked for (seconds, pictures, imgsz, conf, …)
    - `warmup`: {frames, seconds, settled}; `load_ms`: bytes to ready session; `first_inference_ms`: the very first
    - `stages`: {stage: {samples, min_ms, mean_ms, p50_ms, p90_ms, p99_ms, max_ms, samples_ns: [every sample]}}, with
      "end_to_end" (first stage's start to last stage's end) among them, and `DEVICE_STAGES` where a GPU takes the time
    - `fps_end_to_end`: frames over the wall time of the whole loop; `fps_inference`: 1 / p50 of inference alone
    - `accuracy`: measured here, on the bundle's evaluation set; `host_accuracy`: {map50, map50_95, small_map50_95} that
      the host states for this precision; `map50_95_delta`: here minus host
    - `peak_rss_bytes`: of the whole process, evaluation included
    - `parity`: {reference, pictures, anchors, unmatched, box_px, score}, see `edgeprune_device.parity.Parity`
    """

    created: str
    edgeprune_version: str
    bundle: Mapping[str, Any]
    precision: str
    model: Mapping[str, Any]
    runtime: Mapping[str, Any]
    environment: Environment
    settings: Mapping[str, Any]
    warmup: Mapping[str, Any]
    load_ms: float
    first_inference_ms: float
    stages: Mapping[str, Mapping[str, Any]]
    fps_end_to_end: float
    fps_inference: Optional[float]
    accuracy: Optional[Accuracy]
    host_accuracy: Optional[Mapping[str, Optional[float]]]
    map50_95_delta: Optional[float]
    peak_rss_bytes: Optional[int]
    warnings: Tuple[str, ...] = ()
    parity: Optional[Mapping[str, Any]] = None
    schema_version: int = 1

    @classmethod
    def from_json(cls, data: dict, what: str = "report") -> BenchReport:
        """From a parsed JSON object; `what` begins the InputError."""
        fields = dict(schema.check("report", data, what))
        fields["environment"] = Environment.from_json(fields["environment"])
        fields["accuracy"] = None if fields["accuracy"] is None else Accuracy.from_json(fields["accuracy"])
        fields["warnings"] = tuple(fields["warnings"])
        return cls(**fields)

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/report.json`."""
        data = {**asdict(self), "environment": self.environment.to_json(), "warnings": list(self.warnings)}
        data["accuracy"] = None if self.accuracy is None else self.accuracy.to_json()
        return data

    def table(self) -> str:
        """For people: aligned plain text, one screen."""
        parts = [self._head(), self._timing(), self._totals(), self._accuracy()]
        parts += [f"warning: {text}" for text in self.warnings]
        return "\n".join(parts) + "\n"

    def _head(self) -> str:
        env, bundle = self.environment, self.bundle
        trust = "" if bundle["trusted"] else " (NOT TRUSTED)"
        packages = ", ".join(f"{name} {version}" for name, version in env.packages.items() if version)
        return _aligned(
            [
                ("bundle", f"{bundle['name']} for {bundle['target']}, sha256 {bundle['sha256'][:16]}"),
                ("signed by", f"{bundle['key_fingerprint']}{trust}"),
                ("model", f"{self.precision}, {self.model['payload']}, {self.model['size_bytes'] / 1e6:.2f} MB"),
                ("runtime", self.runtime["description"]),
                ("machine", f"{env.cpu or 'unknown CPU'}, {env.cores} cores, {_gigabytes(env.memory_bytes)}, {env.os}"),
                ("software", f"Python {env.python}, {packages}"),
            ]
        )

    def _timing(self) -> str:
        columns = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms", "max_ms")
        rows: List[Sequence[str]] = [("", *(name[:-3] + " ms" for name in columns), "samples")]
        for name, stage in self.stages.items():
            values = ["-" if stage[c] is None else f"{stage[c]:.2f}" for c in columns]
            rows.append((name.replace("_", " "), *values, str(stage["samples"])))
        lines = _grid(rows)
        if any(stage[c] is None for stage in self.stages.values() for c in columns):
            lines.append("  (-: too few samples; p90 needs 64, p99 needs 662: a longer --seconds gives them)")
        if set(DEVICE_STAGES) & set(self.stages):
            lines.append("  (h2d, gpu, d2h: parts of infer, by the GPU's own clock)")
        return "\n" + "\n".join(lines) + "\n"

    def _totals(self) -> str:
        state = "settled" if self.warmup["settled"] else "NOT SETTLED"
        return _aligned(
            [
                ("FPS", f"{self.fps_end_to_end:.1f} end to end, {_number(self.fps_inference, '.1f')} inference only"),
                ("load", f"{self.load_ms:.0f} ms; first inference {self.first_inference_ms:.1f} ms"),
                ("warm-up", f"{self.warmup['frames']} frames, {self.warmup['seconds']:.1f} s, {state}"),
                ("peak memory", NOT_MEASURED if self.peak_rss_bytes is None else f"{self.peak_rss_bytes / 1e6:.0f} MB"),
                ("parity", NOT_MEASURED if self.parity is None else self._parity()),
            ]
        )

    def _parity(self) -> str:
        p = self.parity
        alone = f", {p['unmatched']} boxes in one of the two alone" if p["unmatched"] else ""
        on = f"({p['anchors']} anchors of {p['pictures']} pictures{alone})"
        if p["box_px"] is None:
            return f"nothing to compare with {p['reference']} {on}"
        return f"boxes within {p['box_px']:.3g} px, scores within {p['score']:.2g} of {p['reference']} {on}"

    def _accuracy(self) -> str:
        host, here = self.host_accuracy or {}, self.accuracy
        rows: List[Sequence[str]] = [("", "here", "host", "delta")]
        for key, title in (("map50_95", "mAP50-95"), ("map50", "mAP50"), ("small_map50_95", "small mAP50-95")):
            a, b = getattr(here, key, None), host.get(key)
            delta = None if a is None or b is None or self.map50_95_delta is None else a - b
            rows.append((title, _number(a, ".4f"), _number(b, ".4f"), _number(delta, "+.4f")))
        lines = _grid(rows)
        if here is not None:
            lines.append(f"  on {here.pictures} pictures, {here.boxes} boxes ({here.small_boxes} small)")
            classes = [("class", "boxes", "mAP50-95", "mAP50")]
            classes += [
                (entry.name, str(entry.boxes), _number(entry.map50_95, ".4f"), _number(entry.map50, ".4f"))
                for entry in here.per_class
                if entry.boxes
            ]
            lines += ["", *_grid(classes)]
        return "\n" + "\n".join(lines)


def _number(value: Optional[float], form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _gigabytes(size: Optional[int]) -> str:
    return "memory unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _aligned(rows: Sequence[Tuple[str, str]]) -> str:
    return "\n".join(f"{name:<12}{value}" for name, value in rows)


def _grid(rows: Sequence[Sequence[str]]) -> List[str]:
    """First column left, the others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
