"""The service's worker: verifies the bundle, opens its model, and writes a line for every frame.

The supervisor starts it, sends its order (`protocol`), and kills it when it hangs. The worker ends with its supervisor
in every case. A camera that goes away is opened again here, so that the model stays loaded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from edgeprune_device.errors import EdgepruneError, InputError, RuntimeUnavailable
from edgeprune_device.service import protocol
from edgeprune_device.service.protocol import DEADLINE, FRAMES, LAST, LOADING, LOST, Pulse

__all__ = ["COMMAND", "main"]

COMMAND = "from edgeprune_device.service.worker import main; main()"
#: A worker that loads for longer than this, s, without using the processor, hangs.
LOAD_S = 120.0
_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 10.0)  # between tries to open a source; the last one for ever
_QUIET_NS = 60 * 10**9  # a loss after so long without one is reported again
_SOURCE_IS_THERE_S = 10.0  # after frames for so long the pauses start again from the first


class _End(Exception):
    """Ends the worker with an exit code and a reason."""

    def __init__(self, code: int, error: object):
        super().__init__(str(error))
        self.code = code


class _Told(BaseException):
    """The worker was told to end while it waited."""


class _NoFrames(Exception):
    """The source gives no frame; the message says why."""


def main() -> None:
    """Run one order from standard input, then end the process."""
    order = json.loads(sys.stdin.readline())
    # Native libraries print to descriptor 1, so it becomes standard error, and the lines get another descriptor.
    stdout = os.dup(1)
    os.dup2(2, 1)
    worker = _Worker(order, stdout)
    signal.signal(signal.SIGTERM, worker.told)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    code, why = protocol.FINISHED, None
    try:
        worker.run()
    except _Told:
        pass
    except _End as end:
        code, why = end.code, str(end)
    except BrokenPipeError:
        code, why = protocol.BROKEN_PIPE, "nobody reads the output any more"
    except MemoryError:
        code, why = 1, "not enough memory"
    except Exception as error:
        if os.environ.get("EDGEPRUNE_DEBUG") == "1":
            raise
        code, why = 70, f"this is a bug, please report it: {type(error).__name__}: {error}"
    if why is not None:
        worker.tell(end=" ".join(why.split())[:1000])
    sys.stderr.flush()
    # All is written. Native libraries can still crash when the interpreter shuts them down.
    os._exit(code)


class _Worker:
    def __init__(self, order: Dict[str, Any], stdout: int):
        self._order, self._stdout = order, stdout
        self._pulse = Pulse(order["pulse"])
        self._cells = self._pulse.cells
        self._watchdog_ns = int(order["watchdog_s"] * 1e9)
        self._ends = False  # the supervisor has told it to end
        self._waits = False  # it waits, and may be interrupted at once
        self._lost_ns = -(10**12)  # when a line was lost last

    def told(self, *_: Any) -> None:
        """Handle the signal to end: at once where the worker waits, else after this frame."""
        self._ends = True
        if self._waits:
            raise _Told

    def tell(self, **what: Any) -> None:
        """Send a message to the supervisor."""
        with suppress(OSError):  # it is gone, and so will this process be
            os.write(self._order["messages"], json.dumps(what).encode("ascii") + b"\n")

    def run(self) -> None:
        """Serve until the source has ended. Raises `_End`, `_Told` or BrokenPipeError."""
        from edgeprune_device.service import sinks

        order = self._order
        self._interruptible()
        self._loads()
        bundle = self._bundle()
        try:
            sink = sinks.open(order["output"], order["listener"], self._beat, self._stdout)
        except InputError as error:
            raise _End(protocol.UNREADY if order["patient"] else protocol.BAD_USE, error) from error
        runtime, precision = self._chosen(bundle)
        self.tell(step="loading", text=f"loads {bundle.manifest.name}, {precision} on {runtime}")
        sys.stdin.readline()  # the supervisor has written down that this release is started
        try:
            session = self._session(bundle, runtime, precision)
        except RuntimeUnavailable as error:
            raise _End(protocol.UNREADY, error) from error
        except EdgepruneError as error:
            raise _End(protocol.UNFIT, error) from error
        for warning in session.warnings:
            self.tell(note=warning)
        try:
            self._serve(bundle, session, sink)
        finally:
            self._waits = False
            with suppress(EdgepruneError):  # a GPU that failed may fail at that, too
                session.close()
            sink.close()

    def _bundle(self) -> Any:
        """Open the bundle and verify it, before any parser reads its content."""
        from edgeprune_device.releases import Releases
        from edgeprune_device.trust.bundle import Bundle

        order = self._order
        try:
            if order["root"] is None:
                return Bundle.open(order["bundle"], allow_untrusted=order["allow_untrusted"])
            releases = Releases(order["root"])
            return releases.open(releases.get(order["release"]))
        except EdgepruneError as error:
            raise _End(protocol.REFUSED, error) from error

    def _chosen(self, bundle: Any) -> Tuple[str, str]:
        """(runtime, precision)."""
        from edgeprune_device import runtimes
        from edgeprune_device.benchmark.precision import choose_precision

        order = self._order
        if order["runtime"] not in ("auto", *runtimes.names()):
            known = ", ".join(runtimes.names())
            raise _End(protocol.BAD_USE, f"unknown runtime {order['runtime']!r}; known: auto, {known}")
        try:
            runtime = runtimes.choose(order["runtime"])
        except RuntimeUnavailable as error:
            raise _End(protocol.UNREADY, error) from error
        try:
            return runtime, choose_precision(bundle.manifest, runtime, order["precision"])
        except EdgepruneError as error:
            raise _End(protocol.UNFIT, error) from error

    def _session(self, bundle: Any, runtime: str, precision: str) -> Any:
        from edgeprune_device import runtimes
        from edgeprune_device.engine import offer

        manifest = bundle.manifest
        entry = manifest.models[precision]
        settings = runtimes.RuntimeSettings(
            threads=self._order["threads"],
            shapes=manifest.shapes,
            precision=precision,
            fp32_nodes=tuple(entry.get("fp32_nodes", ())),
            cuda=self._order["cuda"],
            offers=offer.of(bundle, precision),
            progress=self._builds,
        )
        return runtimes.open(bundle.read(entry["payload"]), runtime, settings)

    def _serve(self, bundle: Any, session: Any, sink: Any) -> None:
        """Process frames until the source ends; a live source that goes away is opened again."""
        from edgeprune_device import sources
        from edgeprune_device.service.detections import Lines

        lines = Lines(bundle.sha256[:16], bundle.manifest.classes)
        pictures = self._pictures(bundle)
        failures, said = 0, ""
        while True:
            self._loads()
            begun = time.monotonic()
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
                said = str(gone)
            pause = _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
            failures += 1
            self._cells[DEADLINE] = time.monotonic_ns() + int(pause * 1e9) + self._watchdog_ns
            self._cells[LOADING] = 0
            self.tell(step="waiting", text=said)
            self._interruptible()
            time.sleep(pause)

    def _never(self, error: EdgepruneError) -> None:
        """Raise `_End` for an error that waiting cannot solve."""
        order = self._order
        if isinstance(error, RuntimeUnavailable):
            raise _End(protocol.UNREADY, error) from error
        wrong = isinstance(error, InputError) and " ! " in order["source"]
        if wrong or (isinstance(error, InputError) and not order["patient"] and not self._cells[FRAMES]):
            raise _End(protocol.BAD_USE, error) from error

    def _pictures(self, bundle: Any) -> Any:
        """The bundle's own images, where they are the source."""
        from edgeprune_device.vision.evaluation import EvaluationSet

        if self._order["source"] != "bundle" or bundle.manifest.evaluation is None:
            return None
        name = bundle.manifest.evaluation["payload"]
        return EvaluationSet.read(bundle.read(name), f"{bundle.path}: {name}") if name else None

    def _frames(self, source: Any, manifest: Any, session: Any, lines: Callable[..., bytes], sink: Any) -> None:
        """The loop over the frames. It looks up every name once; the first frame may take longer."""
        from edgeprune_device.vision.postprocess import detections
        from edgeprune_device.vision.preprocess import Preprocessor

        cells, watchdog_ns, clock = self._cells, self._watchdog_ns, time.monotonic_ns
        supply, live = self._supply(source)
        decode, infer, write = source.decode, session.infer, sink.write
        prepare, classes, kind = Preprocessor(manifest.imgsz), len(manifest.classes), manifest.output
        nms = dict(manifest.nms)
        nms["conf"] = nms["conf"] if self._order["conf"] is None else self._order["conf"]
        number = self._order["first"] + cells[FRAMES]
        while True:
            self._waits = True
            if self._ends:
                return
            try:
                frame = supply()
                self._waits = False
                a = clock()
                image = decode(frame)
            except (StopIteration, EOFError):
                return
            except EdgepruneError as error:
                if not live:
                    raise _End(protocol.SOURCE_BROKE, error) from error
                raise _NoFrames(str(error)) from error
            try:
                b = clock()
                x, box = prepare(image)
                c = clock()
                outputs = infer(x)
                d = clock()
                found = box.undo(detections(outputs, kind, classes=classes, **nms))
                e = clock()
            except EdgepruneError as error:
                raise _End(protocol.UNFIT, error) from error
            # Counted before it is written: if this worker is killed in between, the next one leaves a number out, and
            # never gives one twice.
            cells[FRAMES] += 1
            lost = write(lines(number, frame.name, frame.due_ns or a, image.shape, (a, b, c, d, e), found))
            number += 1
            if lost:
                self._lost(lost, sink.problem, e)
            cells[LAST] = e
            cells[DEADLINE] = e + watchdog_ns
            cells[LOADING] = 0

    def _supply(self, source: Any) -> Tuple[Callable[[], Any], bool]:
        """(the function that gives the next frame, whether the source is live)."""
        if not source.live:
            frames: Iterator[Any] = source.frames()
            return frames.__next__, False
        patience_s = self._order["watchdog_s"] / 2  # a camera that stops is no worker that hangs
        return lambda: source.next(patience_s), True

    def _lost(self, lost: int, problem: str, now_ns: int) -> None:
        """Count lost lines, and send a note once as long as the loss continues."""
        self._cells[LOST] += lost
        if now_ns - self._lost_ns > _QUIET_NS:
            self.tell(note=f"lines are lost: {problem}")
        self._lost_ns = now_ns

    def _loads(self) -> None:
        """Announce that the worker may take long from now on, as long as it uses the processor."""
        self._cells[DEADLINE] = time.monotonic_ns() + int(LOAD_S * 1e9)
        self._cells[LOADING] = 1

    def _builds(self, share: float, what: Optional[str]) -> None:
        self._loads()
        self.tell(step="loading", text=f"builds the engine, {share:.0%}" + (f" ({what})" if what else ""))

    def _beat(self) -> None:
        """Announce that the worker waits and does not hang."""
        self._cells[DEADLINE] = time.monotonic_ns() + self._watchdog_ns
        if self._ends:
            raise _Told

    def _interruptible(self) -> None:
        self._waits = True
        if self._ends:
            raise _Told
