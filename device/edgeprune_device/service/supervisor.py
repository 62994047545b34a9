"""The service's supervisor: starts the worker, watches it, restarts it, and reports its state.

A worker that crashes, hangs or fails is restarted after growing pauses, without limit; `keeper` chooses the release. A
missing camera, disk or GPU never counts against the model. The supervisor imports no numpy, so it stays small, and
driver failures in the worker do not affect it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from edgeprune_device import clock, files
from edgeprune_device.errors import InputError, SignatureError, reason
from edgeprune_device.options import MAX_MEGAPIXELS, SERVICE_LIMIT
from edgeprune_device.printable import printable
from edgeprune_device.releases import Release, Releases
from edgeprune_device.service import protocol, sinks, status
from edgeprune_device.service.child import Child
from edgeprune_device.service.keeper import Keeper
from edgeprune_device.service.notify import Notify
from edgeprune_device.service.pace import PaceStatus
from edgeprune_device.service.protocol import Order
from edgeprune_device.service.status import Status

__all__ = ["ServiceOptions", "run"]

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # after a crash; the last one repeats
_TICK_S = 1.0
_END_S = 5.0  # for a worker to end by itself
_LOCK_S = 5.0  # for the worker of a previous service to end
_MOST_PRINTED = 1000  # texts that are remembered, so that each is printed once
_STOPPED_S = 10.0  # between checks for a release while there is none


@dataclass(frozen=True)
class ServiceOptions:
    """Options of `edgeprune run`. Either `root` or `bundle` is given.

    Attributes:
        source: Source of frames, see `sources.open`.
        output: Output of the lines, see `sinks`.
        root: Root of the releases.
        bundle: A bundle to run as it is.
        identity: First 16 hexadecimal digits of the bundle's SHA-256.
        allow_untrusted: Accept the bundle of an untrusted key.
        precision: Precision of the model; "auto": the one that the release was accepted with, else the best.
        runtime: Name of the runtime; "auto": the one that the release was accepted with, else the best.
        cuda: CUDA backend, see `edgeprune_device.cuda.names`.
        conf: Lowest score of a detection; None: the bundle's.
        threads: CPU threads of the runtime; None: its own choice.
        watchdog_s: Time after which a silent worker counts as hung, s.
        window_s: Time after which a release that runs well is good, s.
        limit_s: Time limit for loading the model, and for its first inference, s.
        max_megapixels: Largest image to decode.
    """

    source: str
    output: str
    root: Optional[Path] = None
    bundle: Optional[Path] = None
    identity: str = ""
    allow_untrusted: bool = False
    precision: str = "auto"
    runtime: str = "auto"
    cuda: str = "auto"
    conf: Optional[float] = None
    threads: Optional[int] = None
    watchdog_s: float = 20.0
    window_s: float = 30.0
    limit_s: float = SERVICE_LIMIT.default
    max_megapixels: int = MAX_MEGAPIXELS.default


def run(options: ServiceOptions) -> int:
    """Run the service until a signal ends it, or the source ends.

    Args:
        options: How to run it.

    Returns:
        The exit code.

    Raises:
        InputError: The output, the source or an option can never work; or with `bundle` the model cannot run here.
        SignatureError: The bundle does not verify.
    """
    sinks.check(options.output)
    with ExitStack() as stack:
        lock = stack.enter_context(_only_one(options.root)) if options.root else None
        listener = None
        if options.output.startswith(sinks.SOCKET):
            listener = stack.enter_context(sinks.listening(options.output))
        return _Supervisor(options, lock, listener.fileno() if listener else None).run()


class _Supervisor:
    def __init__(self, options: ServiceOptions, lock: Optional[int], listener: Optional[int]):
        self._options, self._lock, self._listener = options, lock, listener
        self._root = None if options.root is None else options.root.absolute()
        self._keeper = Keeper(Releases(self._root), options.window_s, self._say_once) if self._root else None
        self._notify = Notify()
        self._boot_id = clock.now()["boot_id"]
        self._ends = self._again = False
        self._result: Optional[int] = None
        self._child: Optional[Child] = None
        # Of the ended worker: frames, time of the last frame, lost lines, pace.
        self._did: Tuple[int, int, int, Optional[PaceStatus]] = (0, 0, 0, None)
        self._identity: Optional[str] = options.identity or None
        self._state, self._since_s = "starting", status.boot_s()
        self._reason: Optional[str] = None
        self._frames = self._restarts = self._failures = 0
        self._written_s, self._pinged_s, self._ready = -1e9, -1e9, False
        self._printed: Set[str] = set()  # texts already printed
        self._chosen: Dict[Optional[str], str] = {}  # {release: the runtime that a worker chose by measurement}
        self._counted = False  # whether this start is counted
        self._overlap = True  # False: workers decode and infer in turn, to find out which of the two fails
        # Frames before the source opened, and the time of the first one after it, or 0.
        self._before, self._flows_s = 0, 0.0
        self._wake, self._poll = -1, select.poll()
        self._tick_s = min(_TICK_S, options.watchdog_s / 3, (self._notify.watchdog_s or 60.0) / 4)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """See `run` of this module."""
        with self._signals():
            try:
                while not self._ends:
                    if self._again:
                        self._again, self._failures, self._overlap = False, 0, True
                        self._printed.clear()
                        if self._keeper:
                            self._keeper.forget()
                    release, why = self._keeper.choose(self._reason) if self._keeper else (None, "")
                    if self._keeper and release is None:
                        self._identity = None
                        self._pause(_STOPPED_S, "stopped", why)
                        continue
                    self._live(release)
                return self._result or 0
            finally:
                self._enter("stopped", None if self._ends else self._reason)
                self._notify.send(STOPPING=1)

    def _live(self, release: Optional[Release]) -> None:
        """Start one worker, watch it until it ends, and react to its end."""
        self._counted, self._before, self._flows_s = False, 0, 0.0
        self._did = (0, 0, 0, None)
        self._identity = release.identity if release else self._options.identity
        self._enter("starting", self._reason)
        child = self._child = Child(self._order(release), [d for d in (self._listener, self._lock) if d is not None])
        self._poll.register(child.messages, select.POLLIN)
        hung, ending = False, ""
        try:
            while child.code is None and not (self._ends or self._again):
                self._wait(self._tick_s)
                ending = self._hear(child, release) or ending
                self._watch(child)
                # Judge by the last frame, not by the clock, because a hang is detected only after a while.
                if self._flows_s and child.last_ns / 1e9 - self._flows_s >= self._options.window_s:
                    self._failures, self._overlap = 0, True
                    release = self._confirm(release)
                if child.code is None and child.hangs():
                    hung = True
                    break
            asked_to_end = child.code is None and not hung
            self._end(child, hung)
            ending = self._hear(child, release) or ending
        finally:
            self._poll.unregister(child.messages)
            child.close()
            self._frames += child.frames
            self._did, self._child = (child.frames, child.last_ns, child.lost, child.pace), None
        if not asked_to_end:
            self._judge(child, release, hung, ending)

    def _order(self, release: Optional[Release]) -> Order:
        options = self._options
        precision, runtime = options.precision, options.runtime
        if release is not None:  # the settings with which its accuracy was measured
            precision = (release.precision or "auto") if precision == "auto" else precision
            runtime = (release.runtime or "auto") if runtime == "auto" else runtime
        if runtime == "auto":
            runtime = self._chosen.get(self._identity, runtime)
        return {
            "root": None if release is None else str(self._root),
            "release": None if release is None else release.identity,
            "bundle": None if options.bundle is None else str(options.bundle),
            "allow_untrusted": options.allow_untrusted,
            "patient": release is not None,  # a service waits for a missing part; a command reports it
            "source": options.source,
            "output": options.output,
            "listener": self._listener,
            "precision": precision,
            "runtime": runtime,
            "cuda": options.cuda,
            "conf": options.conf,
            "threads": options.threads,
            "watchdog_s": options.watchdog_s,
            "limit_s": options.limit_s,
            "max_megapixels": options.max_megapixels,
            "first": self._frames,
            "overlap": self._overlap,
        }

    def _hear(self, child: Child, release: Optional[Release]) -> str:
        """Handle the worker's messages, and return its last one."""
        last = ""
        for message in child.hear():
            step = message.get("step")
            text = printable(message.get("text") or message.get("note") or message.get("end") or "")
            if step == "loading":
                if not self._counted:
                    self._count(release, 1)
                    child.go()
                self._notify.send(STATUS=text)
            elif step == "reading":
                if not self._counted:
                    self._count(release, 1)
                child.look()
                self._before = child.frames
                self._enter("starting", None)
                self._say(f"reading {text}")
            elif step == "waiting":
                child.look()
                self._flows_s = 0.0
                if not child.frames:
                    self._uncount(release)
                if (self._state, self._reason) != ("waiting", text):
                    self._say(f"waiting for the source: {text}")
                self._enter("waiting", text)
            elif "note" in message:
                if "chosen" in message:
                    self._chosen[self._identity] = message["chosen"]
                self._say(text)
            else:
                last = text
        return last

    def _watch(self, child: Child) -> None:
        """Update the state from the number of frames."""
        child.look()
        if self._state == "starting" and child.frames > self._before:
            self._flows_s = time.monotonic()
            self._enter("running", None)
            self._notify.send(STATUS=f"running release {self._identity}")
        self._tell()

    def _end(self, child: Child, hung: bool) -> None:
        """End the worker, and return once it has ended."""
        until = time.monotonic() + _END_S
        if child.code is None and not hung:
            child.terminate()
        while child.code is None:
            if hung or time.monotonic() > until:
                child.kill()
            # After a hang systemd gets no message: a process that survives SIGKILL is stuck in the kernel.
            self._wait(0.2)
            if not hung:
                self._tell()

    def _judge(self, child: Child, release: Optional[Release], hung: bool, words: str) -> None:
        """React to a worker that ended by itself."""
        code = None if hung else child.code
        why = self._cause(child, hung, words)
        if code == protocol.FINISHED:
            if child.frames:
                self._confirm(release)
            self._finish(0)
        elif code == protocol.BROKEN_PIPE:
            self._finish(protocol.BROKEN_PIPE)
        elif code in (protocol.BAD_USE, protocol.SOURCE_BROKE):
            self._uncount(release)
            self._reason = why
            raise InputError(why)
        elif release is None and code == protocol.REFUSED:
            raise SignatureError(why)
        elif release is None and code in (protocol.UNREADY, protocol.UNFIT) and not self._frames:
            raise InputError(why)
        elif code == protocol.UNREADY:
            self._uncount(release)
            self._say(f"waiting: {why}")
            self._pause(self._next_pause_s(), "waiting", why)
        elif release is not None and self._keeper is not None and code == protocol.REFUSED:
            if self._keeper.fall_back(release, why):
                self._failures = 0
                self._pause(_PAUSES_S[0], "starting", why)
            else:
                self._pause(self._next_pause_s(), "stopped", why)
        else:
            self._restarts += 1
            if child.at_source:  # an image that is slow to decode, or a decoder that crashes
                self._uncount(release)
            elif child.decoding and self._overlap:  # the decoder or the model: the next worker shows which
                self._overlap = False
                self._uncount(release)
            elif not self._counted:  # it ended before the model was loaded
                self._count(release, 1)
            pause_s = self._next_pause_s()
            self._say(f"{why}; restarting in {pause_s:g} s")
            self._pause(pause_s, "waiting" if child.at_source else "starting", why)

    def _cause(self, child: Child, hung: bool, words: str) -> str:
        """Return why the worker ended, in one line; `words` is the reason that it gave itself."""
        if not hung:
            return (words or child.death()) + (" while it read the source" if child.at_source and not words else "")
        silent = f"no frame for {self._options.watchdog_s:g} s" if child.frames else "no progress while loading"
        if child.at_source:
            silent = f"no image from the source for {self._options.watchdog_s:g} s"
        return f"the worker hung ({silent}) and was killed"

    def _uncount(self, release: Optional[Release]) -> None:
        """Take this start back, because the release is not the reason for its end."""
        if self._counted:
            self._count(release, -1)

    def _count(self, release: Optional[Release], starts: int) -> None:
        self._counted = starts > 0
        if release is not None and self._keeper is not None:
            self._keeper.count(release, starts)

    def _confirm(self, release: Optional[Release]) -> Optional[Release]:
        """Confirm a release that runs well. If the state cannot be written, try again after another window."""
        if self._keeper is None or release is None or release.state != "trial":
            return release
        self._flows_s = time.monotonic()
        return self._keeper.confirm(release)

    def _finish(self, code: int) -> None:
        self._result, self._ends = code, True

    def _next_pause_s(self) -> float:
        self._failures += 1
        return _PAUSES_S[min(self._failures, len(_PAUSES_S)) - 1]

    # --- status and messages -----------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        with suppress(OSError):  # the terminal is gone
            print(f"edgeprune run: {' '.join(text.split())}", file=sys.stderr, flush=True)

    def _say_once(self, text: str) -> None:
        if text not in self._printed and len(self._printed) < _MOST_PRINTED:
            self._printed.add(text)
            self._say(text)

    def _enter(self, state: str, reason: Optional[str]) -> None:
        if (state, reason) != (self._state, self._reason):
            self._since_s = status.boot_s()
            if state != "running":
                self._notify.send(STATUS=f"{state}: {reason}" if reason else state)
        self._state, self._reason = state, reason
        if not self._ready and state in ("running", "waiting", "stopped"):
            self._ready = True
            self._notify.send(READY=1)
        self._written_s = -1e9
        self._tell()

    def _tell(self) -> None:
        """Send systemd's watchdog message and write status.json, each when it is due."""
        now = time.monotonic()
        if self._notify.watchdog_s and now >= self._pinged_s + self._notify.watchdog_s / 4:
            self._pinged_s = now
            self._notify.send(WATCHDOG=1)
        if self._root is None or now < self._written_s + _TICK_S * 0.9:
            return
        self._written_s = now
        path = self._root / "run" / "status.json"
        try:
            status.write(path, self._account())
        except OSError as error:
            self._say_once(f"{path}: cannot be written ({reason(error)})")

    def _account(self) -> Status:
        child, now_s = self._child, status.boot_s()
        frames, last_ns, lost, pace = (child.frames, child.last_ns, child.lost, child.pace) if child else self._did
        last_s = round(now_s - (time.monotonic_ns() - last_ns) / 1e9, 3) if last_ns else None
        return {
            "pid": os.getpid(),
            "boot_id": self._boot_id,
            "boot_s": now_s,
            "release": self._identity,
            "state": self._state,
            "frames": frames,
            "last_frame_boot_s": last_s,
            "restarts": self._restarts,
            "lost_lines": lost,
            "pace": pace,
            "reason": None if self._reason is None else printable(self._reason)[:1000],
            "since_boot_s": self._since_s,
        }

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _pause(self, seconds: float, state: str, reason: Optional[str]) -> None:
        """Wait without a worker; a signal ends the wait."""
        self._enter(state, reason)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (self._ends or self._again):
            self._wait(min(self._tick_s, max(until - time.monotonic(), 0.0)))
            self._tell()

    def _wait(self, seconds: float) -> None:
        """Wait for `seconds`, or until a signal comes, a worker ends or sends a message."""
        for descriptor, event in self._poll.poll(seconds * 1e3):
            if descriptor == self._wake:
                with suppress(BlockingIOError):
                    os.read(self._wake, 1 << 10)
            elif not event & select.POLLIN:
                time.sleep(0.01)  # the pipe is closed; the worker ends in a moment

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ends(*_: Any) -> None:
            self._ends = True

        def again(*_: Any) -> None:
            self._again = True

        handlers: List[Tuple[int, Any]] = [(signal.SIGTERM, ends), (signal.SIGINT, ends)]
        if self._keeper is not None:
            handlers.append((signal.SIGHUP, again))
        elif signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # unless it is ignored, as under nohup
            handlers.append((signal.SIGHUP, ends))
        handlers.append((signal.SIGCHLD, lambda *_: None))
        self._wake, writes = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(writes, False)
        before = [(number, signal.signal(number, handler)) for number, handler in handlers]
        former = signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        self._poll.register(self._wake, select.POLLIN)
        try:
            yield
        finally:
            signal.set_wakeup_fd(former)
            for number, handler in before:
                signal.signal(number, handler)
            os.close(self._wake)
            os.close(writes)


@contextmanager
def _only_one(root: Path) -> Iterator[Optional[int]]:
    """Hold a lock that the worker inherits, so that it is released only after both have ended.

    Yields None if the file system does not permit a lock.
    """
    path = root / "run" / status.LOCK
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        descriptor = os.open(str(path), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None  # status.json cannot be written either, which is reported
        return
    try:
        if not files.lock(descriptor, _LOCK_S):
            raise InputError(f"{root}: in use by another edgeprune run ({path} is locked); stop that process first")
        yield descriptor
    finally:
        os.close(descriptor)
