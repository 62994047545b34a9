"""The service's worker: verifies the bundle, opens its model, and writes a line for every frame.

The supervisor starts it, sends its order (`protocol`), and kills it when it hangs. The worker always ends with its
supervisor. A lost camera is reopened here, so that the model stays loaded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, Optional, Sequence, Tuple

from edgeprune_device import deadline, option, pipeline
from edgeprune_device.errors import EdgepruneError, InputError, RuntimeUnavailable
from edgeprune_device.service import protocol
from edgeprune_device.service.pace import Pace
from edgeprune_device.service.protocol import DEADLINE, DECODING, FRAMES, LAST, LOADING, LOST, SOURCE, Pulse, SentOrder

if TYPE_CHECKING:  # imported later, where a failure can be reported
    import numpy as np

    from edgeprune_device.releases import Release
    from edgeprune_device.runtimes import Session
    from edgeprune_device.service.detections import Lines
    from edgeprune_device.service.sinks import Sink
    from edgeprune_device.sources import Frame, Source
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.trust.manifest import Manifest
    from edgeprune_device.vision.evaluation import EvaluationSet
    from edgeprune_device.vision.preprocess import Letterbox

    # A frame, its shape, the network's input, its letterbox, and when decoding began; then ns of decode and of pre.
    _Prepared = Tuple[Frame, Tuple[int, ...], np.ndarray, Letterbox, int, int, int]

    _Infer = Callable[[np.ndarray], Sequence[np.ndarray]]

__all__ = ["COMMAND", "main"]

COMMAND = "from edgeprune_device.service.worker import main; main()"
#: A worker that loads for longer than this without using the CPU has hung, s.
LOAD_S = 120.0
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 10.0)  # between attempts to open a source; the last one repeats
_QUIET_NS = 60 * 10**9  # after this long without a loss, the next one is reported again
_SOURCE_IS_THERE_S = 10.0  # after frames for this long, the pauses start from the first again


class _End(Exception):
    """Ends the worker with an exit code and a reason."""

    def __init__(self, code: int, error: object):
        super().__init__(str(error))
        self.code = code


class _Interrupted(BaseException):
    """The worker was told to end while it was waiting."""


class _NoFrames(Exception):
    """The source gives no frame; the message gives the reason."""


def main() -> None:
    """Run one order from standard input, then end the process."""
    order = json.loads(sys.stdin.readline())
    # Native libraries print to descriptor 1, so it becomes standard error, and the lines get another descriptor.
    stdout = os.dup(1)
    os.dup2(2, 1)
    worker = _Worker(order, stdout)
    signal.signal(signal.SIGTERM, worker.on_sigterm)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code = protocol.FINISHED
    why: Optional[str] = None
    try:
        with option.as_flags():  # errors name options as flags: only a command starts a worker
            worker.run()
    except _Interrupted:
        pass
    except _End as end:
        code, why = end.code, str(end)
    except BrokenPipeError:
        code, why = protocol.BROKEN_PIPE, "the program that reads the output has ended"
    except MemoryError:
        code, why = 1, "not enough memory"
    except Exception as error:
        if os.environ.get("EDGEPRUNE_DEBUG") == "1":
            raise
        code, why = 70, f"unexpected {type(error).__name__}: {error}; please report this bug"
    if why is not None:
        worker.tell(end=" ".join(why.split())[:1000])
    sys.stderr.flush()
    # All output is written. Native libraries can crash during the interpreter's shutdown, which is skipped.
    os._exit(code)


def _prepare(source: Source, manifest: Manifest, cells: memoryview) -> Callable[[Frame], _Prepared]:
    """The stages decode and pre, for the thread that runs them ahead."""
    from edgeprune_device.vision.preprocess import Preprocessor

    decode, letterbox, clock = source.decode, Preprocessor(manifest.imgsz, manifest.layout), time.monotonic_ns

    def prepare(frame: Frame) -> _Prepared:
        cells[DECODING] = 1
        a = clock()
        image = decode(frame)
        b = clock()
        cells[DECODING] = 0
        try:
            x, box = letterbox(image)
        except EdgepruneError as error:
            raise _End(protocol.UNFIT, error) from error
        return frame, image.shape, x, box, a, b - a, clock() - b

    return prepare


class _Worker:
    def __init__(self, order: SentOrder, stdout: int):
        self._order, self._stdout = order, stdout
        self._pulse = Pulse(order["pulse"])
        self._cells = self._pulse.cells
        self._watchdog_ns = int(order["watchdog_s"] * 1e9)
        self._release: Optional[Release] = None  # None: a bundle runs
        self._ends = False  # the supervisor has told it to end
        self._waits = False  # waiting, and may be interrupted at once
        self._lost_ns = -(10**12)  # when a line was last lost

    def on_sigterm(self, *_: Any) -> None:
        """Handle the signal to end: at once if the worker is waiting, else after this frame."""
        self._ends = True
        if self._waits:
            raise _Interrupted

    def tell(self, **what: Any) -> None:
        """Send a message to the supervisor."""
        with suppress(OSError):  # the supervisor is gone, and this process ends with it
            os.write(self._order["messages"], json.dumps(what).encode("ascii") + b"\n")

    def run(self) -> None:
        """Serve until the source has ended. Raises `_End`, `_Interrupted` or BrokenPipeError."""
        from edgeprune_device.service import sinks
        from edgeprune_device.vision import preprocess

        order = self._order
        self._interruptible()
        self._loads()
        bundle = self._bundle()
        try:
            sink = sinks.open(order["output"], order["listener"], self._beat, self._stdout)
        except InputError as error:
            raise _End(protocol.UNREADY if order["patient"] else protocol.BAD_USE, error) from error
        runtime, precision = self._chosen(bundle)
        self.tell(step="loading", text=f"loading {bundle.manifest.name}, {precision} on {runtime}")
        sys.stdin.readline()  # the supervisor answers after it has recorded this start
        try:
            session = self._session(bundle, runtime, precision)
        except RuntimeUnavailable as error:
            raise _End(protocol.UNREADY, error) from error
        except EdgepruneError as error:
            raise _End(protocol.UNFIT, error) from error
        for warning in session.warnings:
            self.tell(note=warning)
        try:
            with preprocess.limited(order["max_megapixels"]):
                self._serve(bundle, session, sink)
        finally:
            self._waits = False
            with suppress(EdgepruneError):  # a failed GPU may fail here, too
                session.close()
            sink.close()

    def _bundle(self) -> Bundle:
        """Open the bundle and verify it, before any parser reads its content."""
        from edgeprune_device.releases import Releases
        from edgeprune_device.trust.bundle import Bundle

        order = self._order
        try:
            if order["root"] is None or order["release"] is None:
                return Bundle.open(str(order["bundle"]), allow_untrusted=order["allow_untrusted"])
            releases = Releases(order["root"])
            self._release = releases.get(order["release"])
            return releases.open(self._release)
        except EdgepruneError as error:
            raise _End(protocol.REFUSED, error) from error

    def _chosen(self, bundle: Bundle) -> Tuple[str, str]:
        """Choose (runtime, precision)."""
        from edgeprune_device import runtimes
        from edgeprune_device.benchmark import trial
        from edgeprune_device.benchmark.precision import choose_precision
        from edgeprune_device.hint import unknown

        order = self._order
        if order["runtime"] not in ("auto", *runtimes.names()):
            # The command line refuses such a name: it stands in the release's record, and another release may run.
            code = protocol.BAD_USE if order["release"] is None else protocol.REFUSED
            raise _End(code, unknown("runtime: unknown name", order["runtime"], ["auto", *runtimes.names()]))
        try:
            runtime, measured = trial.choose(
                bundle, order["runtime"], order["precision"], order["threads"], order["limit_s"]
            )
        except RuntimeUnavailable as error:
            raise _End(protocol.UNREADY, error) from error
        except EdgepruneError as error:
            raise _End(self._without_model(), error) from error
        if measured is not None:  # the supervisor keeps it for the workers after this one
            self.tell(note=str(measured), chosen=runtime)
        try:
            return runtime, choose_precision(bundle.manifest, runtime, order["precision"])
        except EdgepruneError as error:
            raise _End(self._without_model(), error) from error

    def _without_model(self) -> int:
        """The exit code if the bundle lacks a model of the order's precision."""
        wanted = self._order["precision"]
        # No restart helps if the release's record names it. An option of the command line condemns no good release.
        recorded = self._release is not None and wanted != "auto" and wanted == self._release.precision
        return protocol.REFUSED if recorded else protocol.UNFIT

    def _session(self, bundle: Bundle, runtime: str, precision: str) -> Session:
        from edgeprune_device import runtimes
        from edgeprune_device.engine import offer
        from edgeprune_device.vision import tasks

        manifest = bundle.manifest
        entry = manifest.models[precision]
        settings = runtimes.RuntimeSettings(
            threads=self._order["threads"],
            shapes=tasks.get(manifest.task).shapes(manifest),
            precision=precision,
            fp32_nodes=tuple(entry.get("fp32_nodes", ())),
            cuda=self._order["cuda"],
            offers=offer.of(bundle, precision),
            progress=self._builds,
        )
        limit_s = runtimes.load_limit(runtime, self._order["limit_s"])
        with deadline.limited(limit_s, "loading the model", self._late):
            return runtimes.open(bundle.read(entry["payload"]), runtime, settings)

    def _late(self, code: int, message: str) -> None:
        """End this process, whose main thread is inside the runtime."""
        self.tell(end=message)
        os._exit(protocol.UNFIT)

    def _serve(self, bundle: Bundle, session: Session, sink: Sink) -> None:
        """Process frames until the source ends; a lost live source is reopened."""
        from edgeprune_device import sources
        from edgeprune_device.service.detections import Lines
        from edgeprune_device.vision import tasks

        task = tasks.get(bundle.manifest.task)
        lines = Lines(bundle.sha256[:16], bundle.manifest.classes, task)
        pictures = self._pictures(bundle)
        failures, why = 0, ""
        while True:
            self._loads()
            begun = time.monotonic()
            self._cells[SOURCE] = 1
            try:
                try:
                    source = sources.open(self._order["source"], pictures, once=True)
                except EdgepruneError as error:
                    self._never(error)
                    raise _NoFrames(str(error)) from error
                with source:
                    self.tell(step="reading", text=source.description)
                    self._frames(source, bundle.manifest, session, lines, sink)
                    return
            except _NoFrames as gone:
                if time.monotonic() - begun > _SOURCE_IS_THERE_S and self._cells[LAST] > begun * 1e9:
                    failures = 0
                why = str(gone)
            pause = _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
            failures += 1
            self._cells[DEADLINE] = time.monotonic_ns() + int(pause * 1e9) + self._watchdog_ns
            self._cells[LOADING] = 0
            self.tell(step="waiting", text=why)
            self._interruptible()
            time.sleep(pause)

    def _never(self, error: EdgepruneError) -> None:
        """Raise `_End` for an error that waiting cannot fix."""
        order = self._order
        if isinstance(error, RuntimeUnavailable):
            raise _End(protocol.UNREADY, error) from error
        wrong = isinstance(error, InputError) and " ! " in order["source"]
        if wrong or (isinstance(error, InputError) and not order["patient"] and not self._cells[FRAMES]):
            raise _End(protocol.BAD_USE, error) from error

    def _pictures(self, bundle: Bundle) -> Optional[EvaluationSet]:
        """The bundle's own images, if they are the source."""
        from edgeprune_device.vision.evaluation import EvaluationSet

        if self._order["source"] != "bundle" or bundle.manifest.evaluation is None:
            return None
        name = bundle.manifest.evaluation["payload"]
        return EvaluationSet.read(bundle.read(name), f"{bundle.path}: {name}") if name else None

    def _frames(self, source: Source, manifest: Manifest, session: Session, lines: Lines, sink: Sink) -> None:
        """Process frames in a loop. It looks up every name once; the first frame may take longer."""
        from edgeprune_device.vision import tasks

        cells, watchdog_ns, clock = self._cells, self._watchdog_ns, time.monotonic_ns
        supply, live = self._supply(source)
        infer, write = self._limited(session.infer), sink.write
        classes, kind = len(manifest.classes), manifest.output
        task = tasks.get(manifest.task)
        detections, undo = task.detections, task.undo
        nms = dict(manifest.nms)
        nms["conf"] = nms["conf"] if self._order["conf"] is None else self._order["conf"]
        number = self._order["first"] + cells[FRAMES]
        pace = Pace(cells, source, self.tell)
        prepare = _prepare(source, manifest, cells)
        with pipeline.Ahead(supply, prepare, latest=live, overlap=self._order["overlap"]) as ahead:
            while True:
                self._waits = True
                if self._ends:
                    return
                cells[SOURCE] = 1
                try:
                    frame, shape, x, box, begin, decode_ns, pre_ns = ahead.take()
                except (StopIteration, EOFError):
                    return
                except EdgepruneError as error:
                    if not live:
                        raise _End(protocol.SOURCE_BROKE, error) from error
                    raise _NoFrames(str(error)) from error
                self._waits = False
                cells[SOURCE] = 0
                try:
                    c = clock()
                    outputs = infer(x)
                    infer = session.infer
                    d = clock()
                    dets = undo(detections(outputs, kind, classes=classes, **nms), box)
                    e = clock()
                except EdgepruneError as error:
                    raise _End(protocol.UNFIT, error) from error
                # Counted before it is written: if this worker is killed in between, the next one skips a number and
                # does not repeat one.
                cells[FRAMES] += 1
                at_ns = frame.due_ns or begin
                times = decode_ns, pre_ns, d - c, e - d, e - at_ns
                lost = write(lines(number, frame.name, at_ns, shape, times, dets))
                number += 1
                if lost:
                    self._lost(lost, sink.problem, e)
                pace.add(times)
                cells[LAST] = e
                cells[DEADLINE] = e + watchdog_ns
                cells[LOADING] = 0

    def _limited(self, infer: _Infer) -> _Infer:
        """The first inference, which may take longer than others, but has a limit."""

        def first(x: np.ndarray) -> Sequence[np.ndarray]:
            with deadline.limited(self._order["limit_s"], "the first inference", self._late):
                return infer(x)

        return first

    def _supply(self, source: Source) -> Tuple[Callable[[], Frame], bool]:
        """(the function that gives the next frame, whether the source is live)."""
        if not source.live:
            return source.frames().__next__, False
        patience_s = self._order["watchdog_s"] / 2  # a stopped camera must not look like a hung worker
        return lambda: source.next(patience_s), True

    def _lost(self, lost: int, problem: Optional[str], now_ns: int) -> None:
        """Count lost lines, and send one note as long as the loss continues."""
        self._cells[LOST] += lost
        if now_ns - self._lost_ns > _QUIET_NS:
            self.tell(note=f"detections are lost: {problem}")
        self._lost_ns = now_ns

    def _loads(self) -> None:
        """Announce that the worker may take long from now on if it uses the CPU."""
        self._cells[DEADLINE] = time.monotonic_ns() + int(LOAD_S * 1e9)
        self._cells[LOADING] = 1

    def _builds(self, fraction: float, text: str) -> None:
        self._loads()
        self.tell(step="loading", text=f"building the engine: {fraction:.0%}" + (f" ({text})" if text else ""))

    def _beat(self) -> None:
        """Announce that the worker is waiting and has not hung."""
        self._cells[DEADLINE] = time.monotonic_ns() + self._watchdog_ns
        if self._ends:
            raise _Interrupted

    def _interruptible(self) -> None:
        self._waits = True
        if self._ends:
            raise _Interrupted
