"""`--on user@jetson`: a reference device builds a bundle's engines and measures them, and the bundle carries them.

An engine is native code of one TensorRT for one GPU, so only such a device can build it. The bundle is sent there as it
is. The device's own agent verifies it, builds (`edgeprune engine`) and measures (`edgeprune bench`). Plans, the agent's
descriptions of them, and signed reports come back:

    ~/.cache/edgeprune/on/ID     there ($XDG_CACHE_HOME): bundle.epb, results in out/, and of each job
                                 JOB.pid, .out, .err and at last .rc; removed when all is here, or has failed

A job goes on when the link breaks, and the same command run again finds the job or its result. The results are
untrusted until their size, form, hashes and the report's signature have been checked. It cannot be checked that the
machine code in a plan does no harm: the user of a reference device trusts it as much as this host.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeprune_device import clock, files, schema, strict_json, version
from edgeprune_device.engine import PRECISIONS, Engine
from edgeprune_device.errors import EdgepruneError, GateError, InputError, SignatureError
from edgeprune_device.hint import did_you_mean
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.target import Target
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle

from edgeprune import cache, versions
from edgeprune.drones.ssh import Link, LinkError, shown
from edgeprune.drones.store import Receipt, Store

__all__ = ["Built", "Reference", "ReferenceDevice", "build", "meet", "run", "with_engines"]

#: Further options of the measurement.
BENCH: tuple[str, ...] = ()
RUNTIMES = ("trt", "rtx")
_MOST_PLAN_BYTES = 2 << 30
_MOST_REPORT_BYTES = 1 << 26
_LOOK_S = 20  # how long one round trip waits for a job
_JOB_S = 12 * 3600.0  # the device itself ends the build of an engine after six hours
_LABEL = 60  # characters of a device's name that its engines have in theirs

#: Prints the agent, as setup or another installation left it, and the folder for these builds.
_FIND = """
for agent in "$HOME/.local/share/edgeprune/agent/bin/edgeprune" "$(command -v edgeprune)"; do
  if [ -x "$agent" ]; then printf '%s\\n' "$agent" "${XDG_CACHE_HOME:-$HOME/.cache}/edgeprune/on"; exit 0; fi
done
"""
#: Runs the job $2 in the folder $1 by the command from $4 on, even if the link breaks, and waits for it, $3 s at most.
#: Prints its exit status and its last lines, or nothing. If it died, for instance with the board, it is begun again.
_JOB = """
cd "$1" || exit 1
folder=$1 job=$2 left=$3
shift 3
works() { { tr '\\0' '\\n' <"/proc/$(cat "$job.pid")/cmdline" | grep -qxF "$folder"; } 2>/dev/null; }
if [ ! -e "$job.rc" ] && ! works; then
  echo started >>"$job.tries"
  [ "$(wc -l <"$job.tries")" -le 3 ] || { echo "it was ended there three times, by whom it does not say" >&2; exit 1; }
  sh -c '
    trap "" HUP
    cd "$1" || exit 1
    job=$2
    shift 2
    "$@" >"$job.out" 2>"$job.err"
    echo "$?" >"$job.new"
    sync
    mv "$job.new" "$job.rc"
  ' edgeprune "$folder" "$job" "$@" </dev/null >/dev/null 2>&1 &
  echo "$!" >"$job.pid"
fi
for pause in 0.1 0.2 0.4; do [ -e "$job.rc" ] || sleep "$pause" 2>/dev/null; done
while [ ! -e "$job.rc" ] && [ "$left" -gt 0 ] && works; do sleep 1; left=$((left - 1)); done
if [ -e "$job.rc" ]; then cat "$job.rc"; tail -c 3000 "$job.err"; fi
"""
_DESCRIBE = """
if [ -f "$1" ]; then wc -c <"$1"; sha256sum <"$1"; fi
"""


@dataclass(frozen=True)
class ReferenceDevice:
    """A device that can build engines.

    Attributes:
        path: Its `edgeprune`.
        folder: Its folder for these builds.
        name: The name that it is enrolled here by.
    """

    path: str
    folder: str
    name: str


@dataclass(frozen=True)
class Built:
    """The result of one precision.

    Attributes:
        precision: The precision.
        engine: The engine with its plan; None where none was built.
        runtime: The runtime that runs it.
        report: The report of its measurement.
        reason: Why there is no engine or no report.
    """

    precision: str
    engine: Engine | None = None
    runtime: str | None = None
    report: BenchReport | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Reference:
    """The results of a reference device.

    Attributes:
        device: Its name here.
        address: Its address for ssh.
        bundle_sha256: The bundle's SHA-256.
        target: The bundle's target.
        built: The result of each precision.
    """

    device: str
    address: str
    bundle_sha256: str
    target: str
    built: tuple[Built, ...]

    def entries(self) -> dict[str, dict[str, Any]]:
        """The entries for a manifest's `engines`, by name, such as "int8-fp16.orin"."""
        label = self.device[:_LABEL]
        return {f"{built.precision}.{label}": self._entry(built, label) for built in self.built}

    def plans(self) -> dict[str, bytes]:
        """Name of the payload -> the plan."""
        entries = self.entries().values()
        return {entry["payload"]: built.engine.plan for built, entry in zip(self.built, entries) if entry["payload"]}

    def note(self) -> str:
        """One line, such as "orin (Orin, TensorRT 10.3.0): int8-fp16 4.2 ms, fp16 none (…)"."""
        took = {b.precision: b.report.stages["infer"]["p50_ms"] for b in self.built if b.report}
        figures = [f"{precision} {ms:.1f} ms" for precision, ms in took.items()]
        figures += [f"no {b.precision} ({b.reason})" for b in self.built if not b.report]
        return f"{self.device} ({self.engine.device}, {self.engine.builder}): {', '.join(figures)}"

    @property
    def engine(self) -> Engine:
        """The first engine. Its builder and its GPU are those of all of them."""
        return next(built.engine for built in self.built if built.engine)

    def warnings(self) -> list[str]:
        """The problems, one line each."""
        found = [f"{self.address}: {built.precision}: {built.reason}" for built in self.built if built.engine is None]
        wanted = Target.load(self.target).sm if self.target in Target.names() else None
        if wanted is not None and self.engine.sm != wanted:
            is_one = f"{self.address} is {self.engine.device} (SM {self.engine.sm})"
            found.append(f"{is_one}, and target {self.target} has SM {wanted}: no such device will use these engines")
        return found

    def _entry(self, built: Built, label: str) -> dict[str, Any]:
        engine, report = built.engine, built.report
        if engine is None or report is None:
            return {"payload": None, "builder": None, "for": None, "reason": shown(built.reason or "", 900)}
        return {
            "payload": f"model.{built.precision}.{label}.plan",
            "builder": engine.builder,
            "for": f"{engine.device} (SM {engine.sm})",
            "key": engine.key,
            "engine": engine.to_json(),
            "bench": {"device": self.device, "bundle_sha256": self.bundle_sha256, **_figures(report)},
        }


def meet(link: Link, signer: str) -> ReferenceDevice:
    """Find the device's agent, and check that the two sides know each other's keys.

    Args:
        link: The link to the device.
        signer: The fingerprint of the key that signs the bundle, which the device has to trust.

    Raises:
        InputError: There is no agent, it cannot build engines, or a key is not known.
        LinkError: The link failed for good.
    """
    answer = link.run(_FIND, limit_bytes=1 << 14).decode("utf-8", "replace").splitlines()
    again = f"edgeprune setup {link.target}"
    if not answer:
        raise InputError(f"{link.target}: there is no edgeprune: {again} installs it")
    if len(answer) != 2 or not all(path.startswith("/") and path.isprintable() for path in answer):
        raise InputError(f"{link.target}: does not say where its edgeprune is ({shown(' '.join(answer))})")
    path, folder = answer
    info = strict_json.loads(link.run('exec "$1" info --json', path, timeout_s=600), f"{link.target}: edgeprune info")
    info = info if isinstance(info, dict) else {}
    runtimes = info.get("runtimes") if isinstance(info.get("runtimes"), dict) else {}
    if "available" not in [runtimes.get(name) for name in RUNTIMES]:
        why = shown(str(runtimes.get("trt", "it does not say why")), 600)
        raise InputError(f"{link.target}: no engine can be built there: {why}")
    public = link.run('exec "$1" keys export --report', path, limit_bytes=1 << 14).decode("ascii", "replace").strip()
    key = keys.public(public, f"{link.target}: edgeprune keys export --report")
    fingerprint = keys.fingerprint(key)
    name, known = keys.enrolled().get(fingerprint, (None, None))
    if name is None or known != key:
        raise InputError(
            f"{link.target}: its report key {fingerprint} is not enrolled here, so nothing that it measures can be "
            f"believed: {again} enrols it"
        )
    trusted = info.get("trusted_keys")
    if not isinstance(trusted, list) or signer not in trusted:
        raise InputError(f"{link.target}: does not trust {signer}, which signs this bundle: {again} lets it")
    return ReferenceDevice(path, folder, name)


def build(
    link: Link,
    bundle: Bundle,
    folder: Path,
    *,
    precision: str = "all",
    cuda: str = "auto",
    options: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> Reference:
    """Let the device build and measure the engines of a verified bundle.

    Args:
        link: The link to the device.
        bundle: The bundle.
        folder: A folder of this host for partial transfers; after a link that failed for good, the same one goes on.
        precision: Of `edgeprune engine` there.
        cuda: Of `edgeprune engine` there.
        options: Further options of `edgeprune engine` there.
        say: Called with the progress, as text.

    Raises:
        LinkError: The link failed for good; the same call goes on where it stopped.
        InputError: The device cannot build, or its answer is malformed.
        GateError: No engine could be built; the message has the reasons.
        SignatureError: A result does not match its hash, its signature or the bundle.
    """
    agent = meet(link, bundle.key_fingerprint)
    cuda = f"--cuda={cuda}"
    asked = [version(), bundle.sha256, precision, cuda, *options, *BENCH]
    there = f"{agent.folder}/{hashlib.sha256(strict_json.canonical(asked)).hexdigest()[:32]}"
    with _scratch(link, there):
        say(f"{link.target}: sending {bundle.path.name}, {bundle.path.stat().st_size / 1e6:.1f} MB")
        link.put(bundle.path, f"{there}/bundle.epb")
        link.run('mkdir -p -- "$1/out"', there)
        engines = _engines(link, agent, there, bundle, precision, [cuda, *options], say)
        built = [_come(link, agent, there, bundle, each, cuda, folder, say) for each in engines]
    if not any(each.engine for each in built):
        raise GateError("; ".join(f"{link.target}: {each.precision}: {each.reason}" for each in built))
    return Reference(agent.name, link.target, bundle.sha256, bundle.manifest.target, tuple(built))


def with_engines(bundle: Bundle, reference: Reference, path: Path) -> Bundle:
    """Write `bundle` anew with the results of a device, signed by this host; its former engines of the same names are
    dropped.

    Args:
        bundle: The bundle.
        reference: The results.
        path: The file to write.

    Raises:
        InputError: It cannot be written.
        SignatureError: `bundle` has changed meanwhile.
    """
    manifest = bundle.manifest.to_json()
    del manifest["payloads"]
    entries = reference.entries()
    replaced = {(bundle.manifest.engines.get(name) or {}).get("payload") for name in entries}
    payloads: dict[str, bytes | Path] = {n: bundle.read(n) for n in bundle.payloads if n not in replaced}
    payloads.update(reference.plans())
    manifest.update(
        counter=keys.next_counter(),
        created=clock.wall(),
        edgeprune_version=versions.edgeprune(),
        engines={**manifest["engines"], **entries},
    )
    return Bundle.write(path, manifest, payloads, keys.load_or_create())


def run(args) -> None:
    """Run `edgeprune engine BUNDLE --on user@jetson`.

    Args:
        args: The parsed options of the command.

    Raises:
        InputError: An option is wrong, or a file cannot be written; and the errors of `build`.
    """
    import sys

    from edgeprune_device.commands import find_bundle
    from edgeprune_device.progress import Line

    if args.allow_untrusted:
        raise InputError("--on signs the bundle anew with this host's key: only for a bundle that is trusted here")
    bundle = Bundle.open(find_bundle(args.bundle))
    options = [*([f"--workspace={args.workspace}"] if args.workspace else []), *(["--rebuild"] if args.rebuild else [])]
    precision = args.precision or "all"
    unknown = [p for p in precision.split(",") if p not in (*PRECISIONS, "auto", "all")]
    if unknown:
        near = did_you_mean(unknown[0], PRECISIONS)
        hint = f"{near} " if near else ""
        raise InputError(f"unknown precision {unknown[0]!r}; {hint}known: auto, all, {', '.join(PRECISIONS)}")
    files.check_writable(args.out or bundle.path.with_suffix(".on.epb"))

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with Line() as line, Link(args.on, say=say) as link, _folder(bundle, args.on) as folder:
        reference = build(link, bundle, folder, precision=precision, cuda=args.cuda, options=options, say=line)
        label = reference.device[:_LABEL]
        out = args.out or bundle.path.with_name(f"{bundle.path.stem.removesuffix(f'.{label}')}.{label}.epb")
        written = with_engines(bundle, reference, out)
        keep(reference)
    if args.json:
        entries = reference.entries()
        print(strict_json.pretty({"bundle": str(out), "device": reference.device, "engines": entries}), end="")
    else:
        print(_table(reference))
        print(f"bundle   {out} ({out.stat().st_size / 1e6:.1f} MB), signed by {written.key_fingerprint}")
    for text in reference.warnings():
        print(f"warning: {text}", file=sys.stderr)


def keep(reference: Reference) -> None:
    """Put the reports into the store, as `collect` does, so that `reports` and `compare` find them by their ids."""
    store = Store()
    for built in reference.built:
        if built.report:
            store.put(built.report.to_bytes(), Receipt(reference.address, reference.device, clock.wall(), None, None))


# --- on the device ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _scratch(link: Link, there: str) -> Iterator[None]:
    """Remove the device's folder at the end, unless the same command can go on with its content."""
    try:
        yield
    except LinkError:
        raise
    except EdgepruneError:
        with contextlib.suppress(EdgepruneError):
            link.run('rm -rf -- "$1"', there)
        raise
    with contextlib.suppress(EdgepruneError):  # the results on this host are whole
        link.run('rm -rf -- "$1"', there)


def _engines(link, agent, there, bundle, precision, options, say) -> list[Built]:
    """The results of `edgeprune engine` there, for each precision; of an engine only its description."""
    command = ["engine", "bundle.epb", "--precision", precision, "--out", "out", "--json", *options]
    code, words = _work(link, there, "engine", [agent.path, *command], "building", say)
    answer = link.run('cat -- "$1"', f"{there}/engine.out")
    if not answer.strip():
        raise (GateError if code == 1 else InputError)(f"{link.target}: {words}")
    what = f"{link.target}: edgeprune engine"
    said = strict_json.loads(answer, what)
    if not isinstance(said, list) or not said or not all(isinstance(entry, dict) for entry in said):
        raise InputError(f"{what}: answers something else than a list of engines")
    built = [_said(entry, bundle, what) for entry in said]
    if len({each.precision for each in built}) != len(built):
        raise InputError(f"{what}: says one precision twice")
    return built


def _said(entry: dict, bundle: Bundle, what: str) -> Built:
    precision = entry.get("precision")
    model = bundle.manifest.models.get(precision) if precision in PRECISIONS else None
    if not model or not model["payload"]:
        raise InputError(f"{what}: {shown(repr(precision))} is none of the bundle's models")
    if "plan_sha256" not in entry:
        return Built(precision, reason=shown(str(entry.get("reason")), 900))
    known = set(schema.load("engine")["properties"])
    engine = Engine.from_json({key: value for key, value in entry.items() if key in known}, f"{what}: {precision}")
    key, runtime = entry.get("key"), entry.get("runtime")
    if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key) or runtime not in RUNTIMES:
        raise InputError(f"{what}: does not say what --on needs: renew its agent (edgeprune setup)")
    if engine.onnx_sha256 != bundle.payloads[model["payload"]].sha256:
        raise SignatureError(f"{what}: {precision}: was built from another ONNX file than the bundle's")
    if engine.size_bytes > _MOST_PLAN_BYTES:
        raise InputError(f"{what}: {precision}: {engine.size_bytes} bytes are no engine of a detector")
    if engine.sm is None or engine.device is None:
        raise InputError(f"{what}: {precision}: does not say for which GPU it was built")
    return Built(precision, replace(engine, key=key, adopted_from=None), runtime)


def _come(link, agent, there, bundle, said: Built, cuda: str, folder: Path, say) -> Built:
    """Measure one engine there, then fetch the plan and the report."""
    if said.engine is None:
        return said
    precision = said.precision
    command = ["bench", "bundle.epb", "--precision", precision, "--runtime", said.runtime, "--no-spool"]
    command += ["--report", f"out/{precision}.report.json", cuda, *BENCH]
    job = f"bench.{precision}"
    code, words = _work(link, there, job, [agent.path, *command], f"measuring {precision}", say)
    if code:
        return Built(precision, reason=shown(f"built, but it could not be measured: {words}", 900))
    report = _report(link, agent, f"{there}/out/{precision}.report.json", bundle, said, folder)
    say(f"{link.target}: fetching the {precision} engine, {said.engine.size_bytes / 1e6:.1f} MB")
    path = folder / f"{precision}.plan"
    if not path.is_file() or files.sha256(path) != said.engine.plan_sha256:
        remote = f"{there}/out/{bundle.manifest.name}.{precision}.plan"
        link.get(remote, path, said.engine.size_bytes, said.engine.plan_sha256)
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != said.engine.plan_sha256:
        raise SignatureError(f"{path}: changed on this disk meanwhile; run the same command again")
    return replace(said, engine=replace(said.engine, plan=plan), report=report)


def _report(link, agent, remote: str, bundle: Bundle, said: Built, folder: Path) -> BenchReport:
    what = f"{link.target}: report on {said.precision}"
    told = re.fullmatch(rb"\s*([0-9]{1,12})\n([0-9a-f]{64})  -\n", link.run(_DESCRIBE, remote, limit_bytes=1000))
    if not told or int(told[1]) > _MOST_REPORT_BYTES:
        raise InputError(f"{what}: is not there, or too large")
    path = folder / f"{said.precision}.report.json"
    link.get(remote, path, int(told[1]), told[2].decode("ascii"))
    report = BenchReport.from_json(strict_json.loads(path.read_bytes(), what), what)
    name, _ = keys.enrolled().get(keys.fingerprint(report.verify(what)), (None, None))
    if name != agent.name:
        raise SignatureError(f"{what}: is not signed by {agent.name}, whose agent it comes from")
    model = bundle.payloads[bundle.manifest.models[said.precision]["payload"]]
    of = (report.bundle["sha256"], report.model["sha256"], report.precision, report.runtime["name"])
    if of != (bundle.sha256, model.sha256, said.precision, said.runtime):
        raise SignatureError(f"{what}: is about something else than this bundle's engine")
    if report.interrupted or report.stages.get("infer", {}).get("p50_ms") is None:
        raise InputError(f"{what}: has not the figures that it is for")
    return report


def _work(link, there: str, job: str, command: Sequence[str], doing: str, say) -> tuple[int, str]:
    """Run a job there; return (its exit status, its last line)."""
    began = time.monotonic()
    while time.monotonic() - began < _JOB_S:
        say(f"{link.target}: {doing}, {time.monotonic() - began:.0f} s")
        answer = link.run(_JOB, there, job, str(_LOOK_S), *command, limit_bytes=1 << 14, timeout_s=_LOOK_S + 60)
        code, _, words = answer.decode("utf-8", "replace").partition("\n")
        if re.fullmatch("[0-9]{1,3}", code):
            lines = [line for line in words.splitlines() if line.strip()]
            last = lines[-1].removeprefix("edgeprune: error: ") if lines else f"exit status {code}"
            return int(code), shown(last, 900)
        if answer.strip():
            raise InputError(f"{link.target}: does not say how it ended ({shown(code)})")
    raise InputError(f"{link.target}: {doing}: no end after {_JOB_S / 3600:.0f} hours")


# --- on the host -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(bundle: Bundle, target: str) -> Iterator[Path]:
    """The folder for partial transfers, removed when all is there."""
    base = cache.folder("on")
    folder = base / hashlib.sha256(strict_json.canonical([bundle.sha256, target])).hexdigest()[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({str(error.strerror).lower()}); set XDG_CACHE_HOME") from error
    try:
        yield folder
    except (LinkError, KeyboardInterrupt):
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _figures(report: BenchReport) -> dict[str, Any]:
    """The measured figures and their conditions. The whole report is in the host's store under its id."""
    board, mode = report.board or {}, (report.preflight or {}).get("power_mode") or {}
    gpu, accuracy = report.stages.get("gpu") or {}, report.accuracy
    return {
        "report": hashlib.sha256(report.to_bytes()).hexdigest(),
        "board": board.get("model"),
        "l4t": board.get("l4t"),
        "power_mode": mode.get("name"),
        "runtime": report.runtime["description"],
        "mode": report.mode,
        "infer_p50_ms": report.stages["infer"]["p50_ms"],
        "infer_p90_ms": report.stages["infer"]["p90_ms"],
        "gpu_p50_ms": gpu.get("p50_ms"),
        "end_to_end_p50_ms": report.stages["end_to_end"]["p50_ms"],
        "fps_end_to_end": report.fps_end_to_end,
        "map50_95": accuracy.map50_95 if accuracy else None,
        "map50_95_delta": report.map50_95_delta,
        "load_mw": (report.power or {}).get("load_mw"),
        "verdict": report.verdict["state"],
    }


def _table(reference: Reference) -> str:
    rows = [("precision", "MB", "build s", "infer p50 ms", "FPS", "mAP50-95", "verdict")]
    for built in reference.built:
        if built.engine and built.report:
            f = _figures(built.report)
            accuracy = "-" if f["map50_95"] is None else f"{f['map50_95']:.3f}"
            accuracy += "" if f["map50_95_delta"] is None else f" ({f['map50_95_delta']:+.3f})"
            figures = (f"{f['infer_p50_ms']:.2f}", f"{f['fps_end_to_end']:.1f}", accuracy, f["verdict"])
            engine = (f"{built.engine.size_bytes / 1e6:.1f}", f"{built.engine.build_seconds:.1f}")
            rows.append((built.precision, *engine, *figures))
        else:
            rows.append((built.precision, *["-"] * 6))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    engine = reference.engine
    where = f"{reference.device} ({reference.address})"
    lines.append(f"device   {where}: {engine.builder} on {engine.device} (SM {engine.sm})")
    return "\n".join(lines)
