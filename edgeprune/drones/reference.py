"""`--on user@jetson`: a reference device builds and measures a bundle's engines, which then go into the bundle.

An engine is native code for one TensorRT and one GPU, so only a device with both can build it. The host sends the
bundle unchanged. The device's agent verifies it, builds (`edgeprune engine`) and measures (`edgeprune bench`). The host
fetches the plans, the agent's descriptions of them, and signed reports:

    ~/.cache/edgeprune/on/ID     there ($XDG_CACHE_HOME): bundle.epb, results in out/, and for each job
                                 JOB.pid, .out, .err and finally .rc; removed after success or failure

A job continues when the link breaks, and a second run of the command finds the job or its result. The results are
untrusted until their size, format, hashes and the report's signature have been checked. No check can prove that the
machine code in a plan is harmless: the user of a reference device trusts it as much as this host.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeprune_device import clock, files, schema, strict_json, table, version
from edgeprune_device.agent import HOME_COMMAND
from edgeprune_device.engine import Engine
from edgeprune_device.errors import EdgepruneError, GateError, InputError, SignatureError, reason
from edgeprune_device.hint import unknown
from edgeprune_device.option import named
from edgeprune_device.options import PRECISIONS
from edgeprune_device.progress import Say
from edgeprune_device.reports.report import BenchReport
from edgeprune_device.target import Target
from edgeprune_device.trust import keys
from edgeprune_device.trust.bundle import Bundle

from edgeprune import cache, versions
from edgeprune.drones.ssh import Link, LinkError, shown
from edgeprune.drones.store import Receipt, Store

__all__ = ["Built", "Reference", "ReferenceBuild", "ReferenceDevice", "build", "keep", "meet", "run", "with_engines"]

#: Further options of the measurement.
BENCH: tuple[str, ...] = ()
RUNTIMES = ("trt", "rtx")
_MOST_PLAN_BYTES = 2 << 30
_MOST_REPORT_BYTES = 1 << 26
_LOOK_S = 20  # the longest wait for a job in one round trip
_JOB_S = 12 * 3600.0  # the device itself ends the build of an engine after six hours
_LABEL = 60  # characters of a device's name in the names of its engines

#: Prints the path of the agent, from setup or on the PATH, and the folder for these builds.
_FIND = f"""
for agent in "$HOME/{HOME_COMMAND}" "$(command -v edgeprune)"; do
  if [ -x "$agent" ]; then printf '%s\\n' "$agent" "${{XDG_CACHE_HOME:-$HOME/.cache}}/edgeprune/on"; exit 0; fi
done
"""
#: Runs the command from $4 on as job $2 in the folder $1, even if the link breaks, and waits for it, at most $3 s.
#: Prints its exit status and its last lines, or nothing. A job that died, for instance with the board, starts again.
_JOB = """
cd "$1" || exit 1
folder=$1 job=$2 left=$3
shift 3
works() { { tr '\\0' '\\n' <"/proc/$(cat "$job.pid")/cmdline" | grep -qxF "$folder"; } 2>/dev/null; }
if [ ! -e "$job.rc" ] && ! works; then
  echo started >>"$job.tries"
  [ "$(wc -l <"$job.tries")" -le 3 ] || { echo "the job died three times for an unknown reason" >&2; exit 1; }
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
        name: The name under which it is enrolled here.
    """

    path: str
    folder: str
    name: str


@dataclass(frozen=True)
class Built:
    """The result of one precision.

    Attributes:
        precision: The precision.
        engine: The engine with its plan; None if none was built.
        runtime: The runtime for the engine.
        report: The report of its measurement.
        reason: The reason for a missing engine or report.
    """

    precision: str
    engine: Engine | None = None
    runtime: str | None = None
    report: BenchReport | None = None
    reason: str | None = None

    @classmethod
    def from_json(cls, entry: dict[str, Any], bundle: Bundle, what: str) -> Built:
        """Read an entry of `edgeprune engine --json`, which is untrusted.

        Args:
            entry: The entry.
            bundle: The bundle that the engine was built from.
            what: Begins the message of an error.

        Returns:
            The engine without its plan, or the reason why there is none.

        Raises:
            InputError: The entry is malformed.
            SignatureError: The engine was not built from the bundle's file.
        """
        precision = str(entry.get("precision"))
        model = bundle.manifest.models.get(precision) if precision in PRECISIONS else None
        if not model or not model["payload"]:
            raise InputError(f"{what}: precision {shown(repr(precision))}: not in the bundle")
        if "plan_sha256" not in entry:
            return cls(precision, reason=shown(str(entry.get("reason")), 900))
        known = set(schema.load("engine")["properties"])
        engine = Engine.from_json({key: value for key, value in entry.items() if key in known}, f"{what}: {precision}")
        key, runtime = entry.get("key"), entry.get("runtime")
        if not isinstance(key, str) or not re.fullmatch("[0-9a-f]{64}", key) or runtime not in RUNTIMES:
            raise InputError(f"{what}: invalid key or runtime of the engine; update the agent (edgeprune setup)")
        if engine.onnx_sha256 != bundle.payloads[model["payload"]].sha256:
            raise SignatureError(f"{what}: {precision}: not built from the bundle's ONNX file")
        if engine.size_bytes > _MOST_PLAN_BYTES:
            raise InputError(
                f"{what}: {precision}: engine too large (found {engine.size_bytes} bytes, expected at most "
                f"{_MOST_PLAN_BYTES})"
            )
        if engine.sm is None or engine.device is None:
            raise InputError(f"{what}: {precision}: the GPU of the engine is missing from the answer")
        return cls(precision, replace(engine, key=key, adopted_from=None), runtime)

    def figures(self) -> list[str]:
        """The cells of a table: MB, build time in seconds, p50 of the inference, FPS, mAP, verdict."""
        if self.engine is None or self.report is None:
            return ["-"] * 6
        figures = _figures(self.report)
        accuracy = "-" if figures["map50_95"] is None else f"{figures['map50_95']:.3f}"
        accuracy += "" if figures["map50_95_delta"] is None else f" ({figures['map50_95_delta']:+.3f})"
        engine = [f"{self.engine.size_bytes / 1e6:.1f}", f"{self.engine.build_seconds:.1f}"]
        return [*engine, f"{figures['infer_p50_ms']:.2f}", f"{figures['fps_end_to_end']:.1f}", accuracy,
                figures["verdict"]]  # fmt: skip


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
        pairs = zip(self.built, self.entries().values())
        return {entry["payload"]: built.engine.plan for built, entry in pairs if built.engine and entry["payload"]}

    def note(self) -> str:
        """One line, such as "orin (Orin, TensorRT 10.3.0): int8-fp16 4.2 ms, fp16 none (…)"."""
        took = {b.precision: b.report.stages["infer"]["p50_ms"] for b in self.built if b.report}
        figures = [f"{precision} {ms:.1f} ms" for precision, ms in took.items()]
        figures += [f"no {b.precision} ({b.reason})" for b in self.built if not b.report]
        return f"{self.device} ({self.engine.device}, {self.engine.builder}): {', '.join(figures)}"

    @property
    def engine(self) -> Engine:
        """The first engine; all engines share its builder and its GPU."""
        return next(built.engine for built in self.built if built.engine)

    def warnings(self) -> list[str]:
        """The problems, one line each."""
        lines = [f"{self.address}: {built.precision}: {built.reason}" for built in self.built if built.engine is None]
        wanted = Target.load(self.target).sm if self.target in Target.names() else None
        if wanted is not None and self.engine.sm != wanted:
            is_one = f"{self.address} is {self.engine.device} (SM {self.engine.sm})"
            lines.append(
                f"{is_one}, but target {self.target} has SM {wanted}; the target's devices cannot use these engines"
            )
        return lines

    def table(self) -> str:
        """The engines as a table, and a line about the device."""
        head = ["precision", "MB", "build s", "infer p50 ms", "FPS", "mAP50-95", "verdict"]
        lines = table.rows([head, *([built.precision, *built.figures()] for built in self.built)])
        engine = self.engine
        where = f"{self.device} ({self.address})"
        return "\n".join([*lines, f"device   {where}: {engine.builder} on {engine.device} (SM {engine.sm})"])

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


@dataclass(frozen=True)
class ReferenceBuild:
    """The build and the measurement of a verified bundle's engines on a device.

    Attributes:
        link: The link to the device.
        device: The device.
        bundle: The bundle.
        folder: A folder of this host for partial transfers; give the same folder again to continue after a failed link.
        say: Called with the progress, as text.
        precision: Option of `edgeprune engine` there.
        cuda: Option of `edgeprune engine` there.
        options: Further options of `edgeprune engine` there.
    """

    link: Link
    device: ReferenceDevice
    bundle: Bundle
    folder: Path
    say: Say
    precision: str = "all"
    cuda: str = "auto"
    options: tuple[str, ...] = ()

    @cached_property
    def there(self) -> str:
        """The folder of this build on the device; the same build has the same folder."""
        build = [version(), self.bundle.sha256, self.precision, self._cuda, *self.options, *BENCH]
        return f"{self.device.folder}/{hashlib.sha256(strict_json.canonical(build)).hexdigest()[:32]}"

    def run(self) -> Reference:
        """Build and measure the engines; see `build`."""
        with self._scratch():
            self._say(f"sending {self.bundle.path.name}, {self.bundle.path.stat().st_size / 1e6:.1f} MB")
            self.link.put(self.bundle.path, f"{self.there}/bundle.epb")
            self.link.run('mkdir -p -- "$1/out"', self.there)
            built = [self._measured(engine) for engine in self._engines()]
        if not any(each.engine for each in built):
            raise GateError("; ".join(f"{self.link.target}: {each.precision}: {each.reason}" for each in built))
        target = self.bundle.manifest.target
        return Reference(self.device.name, self.link.target, self.bundle.sha256, target, tuple(built))

    def job(self, name: str, command: Sequence[str], doing: str) -> tuple[int, str]:
        """Run a command once in the folder there, even if this is called several times.

        Args:
            name: The name of the job.
            command: The command.
            doing: The text of the progress, such as "building".

        Returns:
            (its exit status, its last line).

        Raises:
            InputError: The command did not end in time, or was killed repeatedly.
            LinkError: The link failed for good; the job continues there.
        """
        began = time.monotonic()
        while time.monotonic() - began < _JOB_S:
            self._say(f"{doing}, {time.monotonic() - began:.0f} s")
            answer = self.link.run(
                _JOB, self.there, name, str(_LOOK_S), *command, limit_bytes=1 << 14, timeout_s=_LOOK_S + 60
            )
            code, _, words = answer.decode("utf-8", "replace").partition("\n")
            if re.fullmatch("[0-9]{1,3}", code):
                lines = [line for line in words.splitlines() if line.strip()]
                last = lines[-1].removeprefix("edgeprune: error: ") if lines else f"exit status {code}"
                return int(code), shown(last, 900)
            if answer.strip():
                raise InputError(f"{self.link.target}: {doing}: invalid exit status (found {shown(code)!r})")
        raise InputError(
            f"{self.link.target}: {doing}: not finished within {_JOB_S / 3600:.0f} hours; run the command again to "
            "continue"
        )

    @property
    def _cuda(self) -> str:
        return f"--cuda={self.cuda}"

    def _say(self, text: str) -> None:
        self.say(f"{self.link.target}: {text}")

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[None]:
        """Remove the device's folder at the end, unless the same command can continue with its content."""
        try:
            yield
        except LinkError:
            raise
        except EdgepruneError:
            self._remove()
            raise
        self._remove()  # the results on this host are complete

    def _remove(self) -> None:
        with contextlib.suppress(EdgepruneError):
            self.link.run('rm -rf -- "$1"', self.there)

    def _engines(self) -> list[Built]:
        """The results of `edgeprune engine` there for each precision, with the engines' descriptions but not their
        plans.
        """
        command = [self.device.path, "engine", "bundle.epb", "--precision", self.precision, "--out", "out", "--json"]
        code, words = self.job("engine", [*command, self._cuda, *self.options], "building")
        answer = self.link.run('cat -- "$1"', f"{self.there}/engine.out")
        if not answer.strip():
            raise (GateError if code == 1 else InputError)(f"{self.link.target}: {words}")
        what = f"{self.link.target}: edgeprune engine"
        entries = strict_json.loads(answer, what)
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{what}: unexpected answer (expected a list of engines)")
        built = [Built.from_json(entry, self.bundle, what) for entry in entries]
        if len({each.precision for each in built}) != len(built):
            raise InputError(f"{what}: unexpected answer (a precision is listed twice)")
        return built

    def _measured(self, built: Built) -> Built:
        """Measure one engine there, then fetch the report and the plan."""
        if built.engine is None or built.runtime is None:
            return built
        precision = built.precision
        command = [self.device.path, "bench", "bundle.epb", "--precision", precision, "--runtime", built.runtime]
        command += ["--no-spool", "--report", f"out/{precision}.report.json", self._cuda, *BENCH]
        code, words = self.job(f"bench.{precision}", command, f"measuring {precision}")
        if code:
            return Built(precision, reason=shown(f"built, but not measured: {words}", 900))
        report = self._report(built)
        return replace(built, engine=self._with_plan(built.engine), report=report)

    def _report(self, built: Built) -> BenchReport:
        """Fetch and verify the report on an engine."""
        what = f"{self.link.target}: report on {built.precision}"
        remote = f"{self.there}/out/{built.precision}.report.json"
        answer = self.link.run(_DESCRIBE, remote, limit_bytes=1000)
        match = re.fullmatch(rb"\s*([0-9]{1,12})\n([0-9a-f]{64})  -\n", answer)
        if not match or int(match[1]) > _MOST_REPORT_BYTES:
            raise InputError(f"{what}: missing, or too large (expected at most {_MOST_REPORT_BYTES} bytes)")
        path = self.folder / f"{built.precision}.report.json"
        self.link.get(remote, path, int(match[1]), match[2].decode("ascii"))
        report = BenchReport.from_bytes(path.read_bytes(), what)
        name, _ = keys.enrolled().get(keys.fingerprint(report.verify(what)), (None, None))
        if name != self.device.name:
            raise SignatureError(f"{what}: not signed by {self.device.name}, which sent the report")
        model = self.bundle.payloads[self.bundle.manifest.models[built.precision]["payload"]]
        subject = (report.bundle["sha256"], report.model["sha256"], report.precision, report.runtime["name"])
        if subject != (self.bundle.sha256, model.sha256, built.precision, built.runtime):
            raise SignatureError(f"{what}: not a report on this bundle's engine")
        if report.interrupted or report.stages.get("infer", {}).get("p50_ms") is None:
            raise InputError(f"{what}: no inference latency, or the run was interrupted; run the command again")
        return report

    def _with_plan(self, engine: Engine) -> Engine:
        """Fetch the plan of an engine."""
        self._say(f"fetching the {engine.precision} engine, {engine.size_bytes / 1e6:.1f} MB")
        path = self.folder / f"{engine.precision}.plan"
        if not path.is_file() or files.sha256(path) != engine.plan_sha256:
            remote = f"{self.there}/out/{self.bundle.manifest.name}.{engine.precision}.plan"
            self.link.get(remote, path, engine.size_bytes, engine.plan_sha256)
        plan = path.read_bytes()
        if hashlib.sha256(plan).hexdigest() != engine.plan_sha256:
            raise SignatureError(f"{path}: changed on this disk; run the same command again")
        return replace(engine, plan=plan)


def meet(link: Link, signer: str) -> ReferenceDevice:
    """Find the device's agent, and check that host and device know each other's keys.

    Args:
        link: The link to the device.
        signer: The fingerprint of the key that signs the bundle; the device must trust it.

    Raises:
        InputError: The device has no agent or cannot build engines, or a key is not known.
        LinkError: The link failed for good.
    """
    answer = link.run(_FIND, limit_bytes=1 << 14).decode("utf-8", "replace").splitlines()
    if not answer:
        raise InputError(
            f"{link.target}: no edgeprune agent on the device; install it with edgeprune setup {link.target}"
        )
    if len(answer) != 2 or not all(path.startswith("/") and path.isprintable() for path in answer):
        raise InputError(
            f"{link.target}: invalid path of the agent (found {shown(' '.join(answer))!r}); install the agent again "
            f"with edgeprune setup {link.target}"
        )
    path, folder = answer
    loaded = strict_json.loads(link.run('exec "$1" info --json', path, timeout_s=600), f"{link.target}: edgeprune info")
    info: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    _check_runtimes(info.get("runtimes"), link.target)
    name = _enrolled_name(link, path)
    trusted = info.get("trusted_keys")
    if not isinstance(trusted, list) or signer not in trusted:
        raise InputError(
            f"{link.target}: {signer}, the key that signs this bundle, is not trusted on the device; run edgeprune "
            f"setup {link.target}"
        )
    return ReferenceDevice(path, folder, name)


def _check_runtimes(answer: object, what: str) -> None:
    runtimes = answer if isinstance(answer, dict) else {}
    if "available" not in [runtimes.get(name) for name in RUNTIMES]:
        why = shown(str(runtimes.get("trt", "no reason given")), 600)
        raise InputError(f"{what}: no engine can be built on the device ({why})")


def _enrolled_name(link: Link, path: str) -> str:
    """The name under which the device's report key is enrolled here."""
    public = link.run('exec "$1" keys export --report', path, limit_bytes=1 << 14).decode("ascii", "replace").strip()
    key = keys.public(public, f"{link.target}: edgeprune keys export --report")
    fingerprint = keys.fingerprint(key)
    name, known = keys.enrolled().get(fingerprint, (None, None))
    if name is None or known != key:
        raise InputError(
            f"{link.target}: the report key {fingerprint} is not enrolled here, so the reports cannot be verified; "
            f"enrol the key with edgeprune setup {link.target}"
        )
    return name


def build(
    link: Link,
    bundle: Bundle,
    folder: Path,
    *,
    precision: str = "all",
    cuda: str = "auto",
    options: Sequence[str] = (),
    say: Say = lambda text: None,
) -> Reference:
    """Let the device build and measure the engines of a verified bundle.

    Args:
        link: The link to the device.
        bundle: The bundle.
        folder: A folder of this host for partial transfers.
        precision: Option of `edgeprune engine` there.
        cuda: Option of `edgeprune engine` there.
        options: Further options of `edgeprune engine` there.
        say: Called with the progress, as text.

    Raises:
        LinkError: The link failed for good; the same call continues where it stopped.
        InputError: The device cannot build engines, or its answer is malformed.
        GateError: No engine could be built; the message gives the reasons.
        SignatureError: A result does not match its hash, its signature or the bundle.
    """
    device = meet(link, bundle.key_fingerprint)
    return ReferenceBuild(link, device, bundle, folder, say, precision, cuda, tuple(options)).run()


def with_engines(bundle: Bundle, reference: Reference, path: Path) -> Bundle:
    """Write a copy of `bundle` with the results of a device, signed by this host; engines of the same names are
    replaced.

    Args:
        bundle: The bundle.
        reference: The results.
        path: The file to write.

    Raises:
        InputError: The file cannot be written.
        SignatureError: `bundle` has changed since it was opened.
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


def run(args: Namespace) -> None:
    """Run `edgeprune engine BUNDLE --on user@jetson`.

    Args:
        args: The parsed options of the command.

    Raises:
        InputError: An option is invalid, or a file cannot be written; also the errors of `build`.
    """
    import sys

    from edgeprune_device.commands import find_bundle
    from edgeprune_device.progress import Line

    if args.allow_untrusted:
        raise InputError(
            f"{named('on')}: needs a trusted bundle, because it signs the result with this host's key; leave out "
            f"{named('allow_untrusted')}"
        )
    bundle = Bundle.open(find_bundle(args.bundle))
    options = [*([f"--workspace={args.workspace}"] if args.workspace else []), *(["--rebuild"] if args.rebuild else [])]
    precision = args.precision or "all"
    known = ("auto", "all", *PRECISIONS)
    for word in precision.split(","):
        if word not in known:
            raise InputError(unknown(f"{named('precision')}: unknown precision", word, known))
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
        print(reference.table())
        print(f"bundle   {out} ({out.stat().st_size / 1e6:.1f} MB), signed by {written.key_fingerprint}")
    for text in reference.warnings():
        print(f"warning: {text}", file=sys.stderr)


def keep(reference: Reference) -> None:
    """Put the reports into the store, as `collect` does; `reports` and `compare` then find them by their ids."""
    store = Store()
    for built in reference.built:
        if built.report:
            store.put(built.report.to_bytes(), Receipt(reference.address, reference.device, clock.wall(), None, None))


@contextlib.contextmanager
def _folder(bundle: Bundle, target: str) -> Iterator[Path]:
    """The folder for partial transfers, which is removed after they are complete."""
    base = cache.folder("on")
    folder = base / hashlib.sha256(strict_json.canonical([bundle.sha256, target])).hexdigest()[:32]
    try:
        files.make_folder(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({reason(error)}); set XDG_CACHE_HOME") from error
    try:
        yield folder
    except (LinkError, KeyboardInterrupt):
        raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _figures(report: BenchReport) -> dict[str, Any]:
    """The measured figures and their conditions. The host's store holds the whole report under its id."""
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
        "load_mw": report.power["load_mw"] if report.power else None,
        "verdict": report.verdict["state"],
    }
