"""The service's supervisor: starts the worker, watches it, starts it again, and gives account.

What crashes, hangs or fails is started again after growing pauses, for ever; `keeper` says with which release. What is
missing, a camera, a disk, a GPU, is never the model's fault. Imports no numpy: it stays small, and nothing that a
driver does to the worker reaches it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

from edgeprune_device import clock
from edgeprune_device.errors import InputError, SignatureError
from edgeprune_device.printable import printable
from edgeprune_device.releases import Release, Releases
from edgeprune_device.service import protocol, sinks, status
from edgeprune_device.service.child import Child
from edgeprune_device.service.keeper import Keeper
from edgeprune_device.service.notify import Notify

__all__ = ["ServiceOptions", "run"]

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # after a crash; the last one for ever
_TICK_S = 1.0
_END_S = 5.0  # for a worker to end well
_LOCK_S = 5.0  # for a predecessor's worker to be gone
_MOST_SAID = 1000  # texts that are kept, to be said once
_STOPPED_S = 10.0  # between looks for a release where there is none


@dataclass(frozen=True)
class ServiceOptions:
    """What `edgeprune run` was asked for. Either `root` or `bundle`, whose SHA-256 begins with `identity`.

    - `watchdog_s`: a worker that is silent for so long hangs; `window_s`: a release that ran well for so long is good
    - "auto" for `precision` or `runtime`: what the release was accepted with, else the best
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


def run(options: ServiceOptions) -> int:
    """Until it is told to end, or the source has ended: the exit code. Raises what ends it in the first seconds."""
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
        self._did = (0, 0, 0)  # frames, when the last one was, lost lines: of the worker that has ended
        self._identity: Optional[str] = options.identity or None
        self._state, self._reason, self._since_s = "starting", None, status.boot_s()
        self._frames = self._restarts = self._failures = 0
        self._written_s, self._pinged_s, self._ready = -1e9, -1e9, False
        self._said: Set[str] = set()  # what is said once
        self._counted = False  # this start
        self._before, self._flows_s = 0, 0.0  # frames until the source was opened; since when they flow, 0: they do not
        self._wake, self._poll = -1, select.poll()
        self._tick_s = min(_TICK_S, options.watchdog_s / 3, (self._notify.watchdog_s or 60.0) / 4)

    # --- the whole ---------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """See `run` of this module."""
        with self._signals():
            try:
                while not self._ends:
                    if self._again:
                        self._again, self._failures = False, 0
                        self._said.clear()
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
        """One worker's life, and what follows from it."""
        self._counted, self._before, self._flows_s = False, 0, 0.0
        self._did = (0, 0, 0)
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
                # By the last frame, not by the clock: one that hangs is silent for a while before it is known to.
                if self._flows_s and child.last_ns / 1e9 - self._flows_s >= self._options.window_s:
                    self._failures = 0
                    release = self._confirm(release)
                if child.code is None and child.hangs():
                    hung = True
                    break
            told = child.code is None and not hung
            self._end(child, hung)
            ending = self._hear(child, release) or ending
        finally:
            self._poll.unregister(child.messages)
            child.close()
            self._frames += child.frames
            self._did, self._child = (child.frames, child.last_ns, child.lost), None
        if not told:
            self._judge(child, release, hung, ending)

    def _order(self, release: Optional[Release]) -> Dict[str, Any]:
        options = self._options
        precision, runtime = options.precision, options.runtime
        if release is not None:  # what its accuracy was measured with
            precision = (release.precision or "auto") if precision == "auto" else precision
            runtime = (release.runtime or "auto") if runtime == "auto" else runtime
        return {
            "root": None if release is None else str(self._root),
            "release": None if release is None else release.identity,
            "bundle": None if options.bundle is None else str(options.bundle),
            "allow_untrusted": options.allow_untrusted,
            "patient": release is not None,  # a service waits for what is missing; a command says so
            "source": options.source,
            "output": options.output,
            "listener": self._listener,
            "precision": precision,
            "runtime": runtime,
            "cuda": options.cuda,
            "conf": options.conf,
            "threads": options.threads,
            "watchdog_s": options.watchdog_s,
            "first": self._frames,
        }

    def _hear(self, child: Child, release: Optional[Release]) -> str:
        """What the worker said; its last words."""
        last = ""
        for said in child.hear():
            step, text = said.get("step"), printable(said.get("text") or said.get("note") or said.get("end") or "")
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
                self._say(f"reads {text}")
            elif step == "waiting":
                child.look()
                self._flows_s = 0.0
                if self._counted and not child.frames:
                    self._count(release, -1)
                if (self._state, self._reason) != ("waiting", text):
                    self._say(f"waits for the source: {text}")
                self._enter("waiting", text)
            elif "note" in said:
                self._say(text)
            else:
                last = text
        return last

    def _watch(self, child: Child) -> None:
        """Renew the state by the frames."""
        child.look()
        if self._state == "starting" and child.frames > self._before:
            self._flows_s = time.monotonic()
            self._enter("running", None)
            self._notify.send(STATUS=f"running release {self._identity}")
        self._tell()

    def _end(self, child: Child, hung: bool) -> None:
        """When it returns, the worker is no more."""
        until = time.monotonic() + _END_S
        if child.code is None and not hung:
            child.terminate()
        while child.code is None:
            if hung or time.monotonic() > until:
                child.kill()
            # systemd hears nothing meanwhile where it hung: a process that not even SIGKILL ends is the kernel's.
            self._wait(0.2)
            if not hung:
                self._tell()

    def _judge(self, child: Child, release: Optional[Release], hung: bool, words: str) -> None:
        """What follows from how the worker ended by itself."""
        code = child.code
        if hung:
            silent = f"no frame for {self._options.watchdog_s:g} s" if child.frames else "it loads, and does nothing"
            why = f"the worker hung ({silent}) and was killed"
        else:
            why = words or child.death()
        if hung or code < 0:
            code = -1
        if code == protocol.FINISHED:
            if child.frames:
                self._confirm(release)
            self._finish(0)
        elif code == protocol.BROKEN_PIPE:
            self._finish(protocol.BROKEN_PIPE)
        elif code in (protocol.BAD_USE, protocol.SOURCE_BROKE):
            self._reason = why
            raise InputError(why)
        elif release is None and code == protocol.REFUSED:
            raise SignatureError(why)
        elif release is None and code in (protocol.UNREADY, protocol.UNFIT) and not self._frames:
            raise InputError(why)
        elif code == protocol.UNREADY:
            if self._counted:
                self._count(release, -1)
            self._say(f"waits: {why}")
            self._pause(self._next_pause_s(), "waiting", why)
        elif release is not None and code == protocol.REFUSED:
            if self._keeper.fall_back(release, why):
                self._failures = 0
                self._pause(_PAUSES_S[0], "starting", why)
            else:
                self._pause(self._next_pause_s(), "stopped", why)
        else:
            self._restarts += 1
            if not self._counted:  # it did not even come to the model
                self._count(release, 1)
            pause_s = self._next_pause_s()
            self._say(f"{why}; starts again in {pause_s:g} s")
            self._pause(pause_s, "starting", why)

    def _count(self, release: Optional[Release], starts: int) -> None:
        self._counted = starts > 0
        if release is not None:
            self._keeper.count(release, starts)

    def _confirm(self, release: Optional[Release]) -> Optional[Release]:
        """It runs well. Where that cannot be written down, it is tried again after one more window."""
        if release is None or release.state != "trial":
            return release
        self._flows_s = time.monotonic()
        return self._keeper.confirm(release)

    def _finish(self, code: int) -> None:
        self._result, self._ends = code, True

    def _next_pause_s(self) -> float:
        self._failures += 1
        return _PAUSES_S[min(self._failures, len(_PAUSES_S)) - 1]

    # --- what others see ---------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        with suppress(OSError):  # a terminal that has gone
            print(f"edgeprune run: {' '.join(text.split())}", file=sys.stderr, flush=True)

    def _say_once(self, text: str) -> None:
        if text not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(text)
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
        """To systemd that all is well, and status.json; each when it is due."""
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
            self._say_once(f"{path}: cannot be written ({str(error.strerror).lower()})")

    def _account(self) -> Dict[str, Any]:
        child, now_s = self._child, status.boot_s()
        frames, last_ns, lost = (child.frames, child.last_ns, child.lost) if child else self._did
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
            "reason": None if self._reason is None else printable(self._reason)[:1000],
            "since_boot_s": self._since_s,
        }

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _pause(self, seconds: float, state: str, reason: Optional[str]) -> None:
        """Without a worker; a signal ends it."""
        self._enter(state, reason)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not (self._ends or self._again):
            self._wait(min(self._tick_s, max(until - time.monotonic(), 0.0)))
            self._tell()

    def _wait(self, seconds: float) -> None:
        """So long, or until a signal comes, a worker ends or says something."""
        for descriptor, event in self._poll.poll(seconds * 1e3):
            if descriptor == self._wake:
                with suppress(BlockingIOError):
                    os.read(self._wake, 1 << 10)
            elif not event & select.POLLIN:
                time.sleep(0.01)  # its pipe is closed, and in a moment it has ended

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def ends(*_: Any) -> None:
            self._ends = True

        def again(*_: Any) -> None:
            self._again = True

        handlers: List[Tuple[int, Any]] = [(signal.SIGTERM, ends), (signal.SIGINT, ends)]
        if self._keeper is not None:
            handlers.append((signal.SIGHUP, again))
        elif signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not where somebody has it ignored, as nohup does
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
    """A lock that the worker inherits: it is free when both are gone. None: the disk does not let it be taken."""
    path = root / "run" / "lock"
    try:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        descriptor = os.open(str(path), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:
        yield None  # status.json cannot be written either, which is said
        return
    try:
        until = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(f"{root}: another edgeprune run is at work there ({path} is locked)") from None
                time.sleep(0.1)
        yield descriptor
    finally:
        os.close(descriptor)
