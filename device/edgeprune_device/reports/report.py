"""The report of a benchmark: written as JSON, read back on the host, printed as a table."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, fields, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from nacl.signing import SigningKey, VerifyKey

from edgeprune_device import schema, strict_json, table
from edgeprune_device.clock import BootTime
from edgeprune_device.errors import InputError
from edgeprune_device.machine.environment import Environment
from edgeprune_device.probes import summary
from edgeprune_device.probes.series import Series
from edgeprune_device.reports import percentiles
from edgeprune_device.trust import keys, signature
from edgeprune_device.vision.accuracy import Accuracy

__all__ = ["DEVICE_STAGES", "END_TO_END", "MOST_BYTES", "BenchReport", "parse"]

END_TO_END = "end_to_end"
#: Parts of "infer" from the GPU's clock: copy to the device, network, copy back.
DEVICE_STAGES = ("h2d", "gpu", "d2h")
NOT_MEASURED = "not measured"
MOST_BYTES = 1 << 29  # of one report; ten hours at 100 frames a second take 0.3 GB
_KNOWN_MEMORY_BYTES = 4 << 30  # for such a report
_SPINS = ", spinning"  # the threads
_RELEASES = {"l4t": "L4T", "jetpack": "JetPack"}


@dataclass(frozen=True)
class BenchReport:
    """The report of one bundle, one precision, one runtime, one machine, one run. None: not measured.

    Attributes:
        created: Wall clock of the device, which may be wrong.
        edgeprune_version: Version of edgeprune on the device.
        clock: Time of the device since boot.
        device: {hostname, serial, key_fingerprint}.
        bundle: {name, sha256, target, key_fingerprint, trusted}.
        precision: Precision of the model.
        model: {payload, sha256, size_bytes}.
        runtime: {name, description, threads, spinning, trial_ms}; older reports lack the last two (see `Session` and
            `benchmark.trial`).
        environment: The machine.
        board: See `machine.board.Board`.
        preflight: See `machine.preflight.Preflight`.
        mode: Mode of the run.
        source: {name, description} of the frames.
        settings: The requested settings (seconds, imgsz, …).
        warmup: {frames, seconds, settled}.
        interrupted: Whether the run was shorter than requested, because of Ctrl-C or `failure`.
        failure: Message of the camera or GPU that failed, else None.
        load_ms: Time from the model's bytes to the ready session, ms.
        first_inference_ms: Time of the very first inference, ms.
        begins_ns: Start of each frame, ns.
        stages: {stage: a `percentiles.summary` and samples_ns: [every sample]}, including "end_to_end" (start of the
            first stage to end of the last one) and, with a GPU, `DEVICE_STAGES`.
        camera: {fps, deadline_ms, arrived, dropped, late, processed, missed, age: as a stage} of mode "camera", else
            None.
        drift: See `percentiles.drift`.
        fps_end_to_end: Frames over the wall time of the whole loop.
        fps_inference: 1 / p50 of inference alone, frames/s.
        other_load: {before, during}: share of all cores that other programs used.
        power: Power and energy.
        thermal: The temperatures of each zone.
        clocks: The rates of each clock.
        throttling: See `edgeprune_device.probes.summary.throttling`.
        series: Samples of all sensors.
        accuracy: Accuracy measured here, on the bundle's evaluation set.
        host_accuracy: {map50, map50_95, small_map50_95} from the host for this precision.
        map50_95_delta: mAP50-95 here minus the host's.
        peak_rss_bytes: Peak memory of the process including the evaluation.
        memory_drop_bytes: Decrease of the machine's free memory during the run.
        parity: {reference, pictures, anchors, unmatched, box_px, score}, see `benchmark.parity.RuntimeParity`.
        verdict: {state, reasons}, see `edgeprune_device.benchmark.verdict`.
        warnings: Remarks on the figures, one line each.
        signature: {key, value}, see `edgeprune_device.trust.signature`; None if not signed yet.
        schema_version: Version of the schema.
    """

    created: str
    edgeprune_version: str
    clock: BootTime
    device: Mapping[str, Any]
    bundle: Mapping[str, Any]
    precision: str
    model: Mapping[str, Any]
    runtime: Mapping[str, Any]
    environment: Environment
    board: Optional[Mapping[str, Any]]
    preflight: Optional[Mapping[str, Any]]
    mode: str
    source: Mapping[str, str]
    settings: Mapping[str, Any]
    warmup: Mapping[str, Any]
    interrupted: bool
    failure: Optional[str]
    load_ms: float
    first_inference_ms: float
    begins_ns: Tuple[int, ...]
    stages: Mapping[str, Mapping[str, Any]]
    camera: Optional[Mapping[str, Any]]
    drift: Optional[Mapping[str, float]]
    fps_end_to_end: float
    fps_inference: Optional[float]
    other_load: Mapping[str, Optional[float]]
    power: Optional[summary.Power]
    thermal: Optional[Mapping[str, summary.Temperature]]
    clocks: Optional[Mapping[str, summary.Rate]]
    throttling: Optional[Mapping[str, Any]]
    series: Optional[Mapping[str, Any]]
    accuracy: Optional[Accuracy]
    host_accuracy: Optional[Mapping[str, Optional[float]]]
    map50_95_delta: Optional[float]
    peak_rss_bytes: Optional[int]
    memory_drop_bytes: Optional[int]
    parity: Optional[Mapping[str, Any]]
    verdict: Mapping[str, Any]
    warnings: Tuple[str, ...] = ()
    signature: Optional[Mapping[str, str]] = None
    schema_version: int = 2

    @classmethod
    def from_json(cls, data: Dict[str, Any], what: str = "report") -> BenchReport:
        """Read a report from a parsed JSON object, without verifying its signature (see `verify`).

        Args:
            data: The object.
            what: Start of the error message.

        Raises:
            InputError: The object does not fit the schema.
        """
        given = dict(schema.check("report", data, what))
        given["environment"] = Environment.from_json(given["environment"])
        given["accuracy"] = None if given["accuracy"] is None else Accuracy.from_json(given["accuracy"])
        given["warnings"], given["begins_ns"] = tuple(given["warnings"]), tuple(given["begins_ns"])
        if given["series"] is not None:
            Series.from_json(given["series"], f"{what}: series")  # checks that its columns are as long as its times
        return cls(**given)

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "report") -> BenchReport:
        """Read a report from the bytes of its file, without verifying its signature (see `verify`).

        Args:
            data: The bytes.
            what: Begins the error's message.

        Raises:
            InputError: The bytes are no report, or too many; see `parse`.
        """
        return cls.from_json(parse(data, what), what)

    def to_json(self) -> Dict[str, Any]:
        """A JSON object that fits `schema/report.json`."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        lists = {"warnings": list(self.warnings), "begins_ns": list(self.begins_ns)}
        accuracy = None if self.accuracy is None else self.accuracy.to_json()
        return {**data, **lists, "environment": self.environment.to_json(), "accuracy": accuracy}

    def sign(self, key: SigningKey) -> BenchReport:
        """Return this report with a signature."""
        return replace(self, signature=signature.sign(self.to_json(), key)["signature"])

    def verify(self, what: str = "report") -> VerifyKey:
        """Verify the signature.

        Args:
            what: Start of the error message.

        Returns:
            The key that signed it; the caller must know its owner.

        Raises:
            SignatureError: The report is unsigned, or was changed after it was signed.
        """
        return signature.verify(self.to_json(), what)

    def to_bytes(self) -> bytes:
        """Canonical JSON: the spool's file, whose SHA-256 is the report's id."""
        return strict_json.canonical(self.to_json())

    def csv(self) -> str:
        """One line per frame: its start, s since the first frame, and ms of each stage; for a camera also the age."""
        columns = {name: stage["samples_ns"] for name, stage in self.stages.items()}
        if self.camera:
            columns["age"] = self.camera["age"]["samples_ns"]
        out = io.StringIO()
        out.write(",".join(["begin_s", *(f"{name}_ms" for name in columns)]) + "\n")
        for begin, *row in zip(self.begins_ns, *columns.values()):
            cells = [f"{(begin - self.begins_ns[0]) / 1e9:.6f}", *(f"{ns / 1e6:.6f}" for ns in row)]
            out.write(",".join(cells) + "\n")
        return out.getvalue()

    def table(self) -> str:
        """The report as aligned plain text."""
        parts = [self._head(), self._timing(), self._totals(), self._sensors(), self._accuracy(), self._judgement()]
        return "\n".join(parts) + "\n"

    def _head(self) -> str:
        env, bundle, board = self.environment, self.bundle, self.board or {}
        trust = "" if bundle["trusted"] else " (NOT TRUSTED)"
        packages = ", ".join(f"{name} {version}" for name, version in env.packages.items() if version)
        rows = [
            ("bundle", f"{bundle['name']} for {bundle['target']}, sha256 {bundle['sha256'][:16]}"),
            ("signed by", f"{bundle['key_fingerprint']}{trust}"),
            ("model", f"{self.precision}, {self.model['payload']}, {self.model['size_bytes'] / 1e6:.2f} MB"),
            ("runtime", self.runtime["description"] + (_SPINS if self.runtime.get("spinning") else "")),
            *([("chosen by", _trial(self.runtime["trial_ms"]))] if self.runtime.get("trial_ms") else []),
            ("frames", f"{self.source['description']}; mode {self.mode}"),
            ("machine", f"{env.cpu or 'unknown CPU'}, {env.cores} cores, {_gigabytes(env.memory_bytes)}, {env.os}"),
            ("software", f"Python {env.python}, {packages}"),
        ]
        if board.get("model"):
            releases = [f"{title} {board[key]}" for key, title in _RELEASES.items() if board[key]]
            rows.insert(-2, ("board", ", ".join([board["model"], *releases])))
        mode = (self.preflight or {}).get("power_mode")
        if mode:
            rows.append(("power mode", mode["name"]))
        return _aligned(rows)

    def _timing(self) -> str:
        columns = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "min_ms", "max_ms")
        rows: List[Sequence[str]] = [("", *(name[:-3] + " ms" for name in columns), "samples")]
        timings = {**self.stages, **({"age of a result": self.camera["age"]} if self.camera else {})}
        for name, stage in timings.items():
            values = ["-" if stage[c] is None else f"{stage[c]:.2f}" for c in columns]
            rows.append((name.replace("_", " "), *values, str(stage["samples"])))
        lines = table.rows(rows, figures=True)
        if any(stage[c] is None for stage in timings.values() for c in columns):
            needed = ", ".join(f"p{p} needs {n}" for p, n in percentiles.SAMPLES_NEEDED.items() if p > 50)
            lines.append(f"  (-: too few samples; {needed}; measure for longer)")
        if set(DEVICE_STAGES) & set(self.stages):
            lines.append("  (h2d, gpu, d2h: parts of infer, from the GPU's clock)")
        lines.append("  (p90, p95, p99: upper bounds of the true percentile in 99 of 100 runs of independent samples)")
        correlated = [name for name, stage in timings.items() if percentiles.is_correlated(stage)]
        if correlated:
            names = ", ".join(name.replace("_", " ") for name in correlated)
            lines.append(f"  (correlated samples in {names}: their percentiles are less certain)")
        return "\n" + "\n".join(lines) + "\n"

    def _totals(self) -> str:
        state = "settled" if self.warmup["settled"] else "NOT SETTLED"
        memory = NOT_MEASURED if self.peak_rss_bytes is None else f"{self.peak_rss_bytes / 1e6:.0f} MB of this process"
        if self.memory_drop_bytes is not None:
            memory += f"; {self.memory_drop_bytes / 1e6:.0f} MB less free on the machine"
        rows = [
            ("FPS", f"{self.fps_end_to_end:.1f} end to end, {_number(self.fps_inference, '.1f')} inference only"),
            ("load", f"{self.load_ms:.0f} ms; first inference {self.first_inference_ms:.1f} ms"),
            ("warm-up", f"{self.warmup['frames']} frames, {self.warmup['seconds']:.1f} s, {state}"),
            ("drift", self._drift()),
            ("other load", ", ".join(f"{_share(share)} {when}" for when, share in self.other_load.items())),
            ("peak memory", memory),
            ("parity", NOT_MEASURED if self.parity is None else _parity(self.parity)),
        ]
        if self.camera:
            rows.insert(1, ("camera", _camera(self.camera)))
        return _aligned(rows)

    def _drift(self) -> str:
        d = self.drift
        if d is None:
            return f"{NOT_MEASURED} (too short)"
        went = f"median frame {d['first_ms']:.2f} -> {d['last_ms']:.2f} ms"
        return f"{d['change']:+.1%}: {went} between the first and the last {d['window_s']:.0f} s"

    def _sensors(self) -> str:
        rows = [("power", self._power())]
        zones = (
            f"{name} {_whole(z['start_c'])} -> {_whole(z['end_c'])}, max {_whole(z['max_c'])}"
            for name, z in (self.thermal or {}).items()
        )
        rates = (
            f"{name} {_whole(c['mean_hz'], 1e6)} ({_whole(c['min_hz'], 1e6)} to {_whole(c['max_hz'], 1e6)})"
            for name, c in (self.clocks or {}).items()
        )
        rows.append(("temp. C", "; ".join(zones) or NOT_MEASURED))
        rows.append(("clocks MHz", "; ".join(rates) or NOT_MEASURED))
        held = NOT_MEASURED
        if self.throttling:
            seen = {**self.throttling["events"], **self.throttling["states"]}
            held = ", ".join(f"{name} {count}" for name, count in seen.items() if count) or "none"
            held += f" ({sum(count is not None for count in seen.values())} indicators watched)"
        rows.append(("throttling", held))
        return _aligned(rows)

    def _power(self) -> str:
        p = self.power
        if p is None:
            return NOT_MEASURED
        rails = [f"{name} {rail['load_mw'] / 1e3:.2f} W" for name, rail in p["rails"].items() if rail["load_mw"]]
        named = "; ".join([p["source"], *([", ".join(rails)] if rails else [])])
        if p["load_mw"] is None:
            return f"{NOT_MEASURED} as a whole ({named})"
        idle = f"idle {NOT_MEASURED}" if p["idle_mw"] is None else f"idle {p['idle_mw'] / 1e3:.2f} W"
        net = "" if p["mj_per_frame_net"] is None else f", {p['mj_per_frame_net']:.1f} net"
        return (
            f"{p['load_mw'] / 1e3:.2f} W under load, {idle}; "
            f"{_number(p['mj_per_frame_gross'], '.1f')} mJ per frame{net} ({named})"
        )

    def _accuracy(self) -> str:
        host, here = self.host_accuracy or {}, self.accuracy
        rows: List[Sequence[str]] = [("", "here", "host", "delta")]
        for key, title in (("map50_95", "mAP50-95"), ("map50", "mAP50"), ("small_map50_95", "small mAP50-95")):
            a, b = getattr(here, key, None), host.get(key)
            delta = None if a is None or b is None or self.map50_95_delta is None else a - b
            rows.append((title, _number(a, ".4f"), _number(b, ".4f"), _number(delta, "+.4f")))
        lines = table.rows(rows, figures=True)
        if here is not None:
            lines.append(f"  on {here.pictures} images, {here.boxes} boxes ({here.small_boxes} small)")
            classes = [("class", "boxes", "mAP50-95", "mAP50")]
            classes += [
                (entry.name, str(entry.boxes), _number(entry.map50_95, ".4f"), _number(entry.map50, ".4f"))
                for entry in here.per_class
                if entry.boxes
            ]
            lines += ["", *table.rows(classes, figures=True)]
        return "\n" + "\n".join(lines) + "\n"

    def _judgement(self) -> str:
        rows = [("verdict", self.verdict["state"])]
        rows += [("", f"- {reason}") for reason in self.verdict["reasons"]]
        return _aligned([*rows, *(("warning", text) for text in self.warnings)])


def parse(data: bytes, what: str) -> Any:
    """Parse the file of a report. Its size limit depends on the signer, who is determined first.

    Args:
        data: The bytes. From `spool`: canonical JSON; a formatted file is limited as one of a stranger.
        what: Begins the error's message.

    Raises:
        InputError: The bytes are no JSON, or are too large for a report, or for one of a device that is not enrolled.
    """
    if len(data) > MOST_BYTES:
        raise InputError(f"{what}: too large for a report (found {len(data)} bytes, expected at most {MOST_BYTES})")
    try:
        return strict_json.loads(data, what)
    except strict_json.TooLarge:
        key = signature.signer(data)
        if key is None or keys.fingerprint(key) not in {**keys.enrolled(), **keys.own("report")}:
            raise
    return strict_json.loads(data, what, _KNOWN_MEMORY_BYTES)


def _camera(camera: Mapping[str, Any]) -> str:
    rate = "rate of the source" if camera["fps"] is None else f"{camera['fps']:g} fps"
    deadline = _number(camera["deadline_ms"], ".1f")
    missed = "no deadline" if camera["missed"] is None else f"{camera['missed']} results later than {deadline} ms"
    late = f", {camera['late']} late from the source" if camera["late"] else ""
    processed, dropped = camera["processed"], camera["dropped"]
    return f"{rate}: {camera['arrived']} frames arrived{late}, {processed} processed, {dropped} dropped; {missed}"


def _parity(parity: Mapping[str, Any]) -> str:
    alone = f", {parity['unmatched']} boxes in only one of the two" if parity["unmatched"] else ""
    on = f"({parity['anchors']} anchors of {parity['pictures']} images{alone})"
    if parity["box_px"] is None or parity["score"] is None:
        return f"no boxes to compare with {parity['reference']} {on}"
    return f"boxes within {parity['box_px']:.3g} px, scores within {parity['score']:.2g} of {parity['reference']} {on}"


def _number(value: Optional[float], form: str) -> str:
    return NOT_MEASURED if value is None else format(value, form)


def _share(value: Optional[float]) -> str:
    return NOT_MEASURED if value is None else f"{value:.0%} of all cores"


def _whole(value: Optional[float], unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.0f}"


def _trial(times_ms: Mapping[str, Optional[float]]) -> str:
    figures = (f"{name} {'failed' if ms is None else f'{ms:.2f} ms'}" for name, ms in times_ms.items())
    return f"inference time, median: {', '.join(figures)}"


def _gigabytes(size: Optional[int]) -> str:
    return "memory unknown" if size is None else f"{size / 2**30:.1f} GiB"


def _aligned(rows: Sequence[Tuple[str, str]]) -> str:
    """Align names and values in two columns; long values are wrapped."""
    lines = []
    for name, value in rows:
        for i, part in enumerate(textwrap.wrap(value, 108, break_long_words=False, break_on_hyphens=False) or [""]):
            lines.append(f"{'' if i else name:<12}{part}")
    return "\n".join(lines)
