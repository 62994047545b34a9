"""An installation in a separate process, which continues when the terminal or the SSH link that started it is gone.

    ROOT/.installations/TICKET.jsonl     its log, one JSON object per line: request, steps, result

The starting process follows that file and ends with the installation's exit code. A second start with the same ticket
follows the same installation, or finds its result. A different request is refused while an installation is in progress.
Ctrl-C and SIGTERM in the starting process end the installation, and so does `abort`; a broken link does not. The worker
holds a lock on its file until its process ends, so that others can see that it is alive.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, TypedDict

from edgeprune_device import files, strict_json
from edgeprune_device.errors import EdgepruneError, InputError, reason
from edgeprune_device.installation.options import SayStep
from edgeprune_device.printable import printable
from edgeprune_device.releases import Release, Releases

__all__ = ["Result", "abort", "run"]

#: Installs a release and reports each step.
Act = Callable[[SayStep], Release]

_KEPT = 10
_POLL_S = 0.1
_MOST_BYTES = 1 << 16  # largest line of a log; a longer one is damaged
_END_S = 20.0  # for an installation to end after a signal; its benchmark may take eight seconds
_PATIENCE_S = 0.5  # `_written` also holds the lock briefly
_BUG = 70


class Result(TypedDict):
    """The value of "result" in the last line of a log.

    Attributes:
        exit: Exit code.
        error: Message of the error; None: no error.
        release: Record of the release that was installed, with its "identity".
        current: ID of the release in use.
    """

    exit: int
    error: Optional[str]
    release: Optional[Dict[str, Any]]
    current: Optional[str]


def run(
    releases: Releases,
    act: Act,
    *,
    request: List[str],
    ticket: Optional[str],
    as_json: bool,
) -> int:
    """Run an installation in a separate process and follow it.

    Args:
        releases: The releases.
        act: The installation.
        request: The request, by which a repeated one is recognised.
        ticket: Name of the log; None: a random one.
        as_json: Print JSON instead of text.

    Returns:
        The exit code of the installation.

    Raises:
        InputError: Another installation is in progress, or this one was killed.
    """
    folder = releases.root / ".installations"
    try:
        folder.mkdir(exist_ok=True, mode=0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({reason(error)})") from error
    log = folder / f"{ticket or secrets.token_hex(8)}.jsonl"
    files.check_file(log)
    worker = 0
    if not _ended(log) and not _written(log):
        if releases.at_work():
            log = _other(folder, request)
        else:
            worker = _start(releases, act, request, log)
    return _follow(releases, log, worker, as_json)


def abort(releases: Releases) -> bool:
    """End the installation in progress: by SIGTERM, and by SIGKILL if that does not end it.

    Returns:
        Whether one was in progress.

    Raises:
        InputError: A command without a log holds the lock, or the process cannot be ended.
    """
    log = next((log for log in _logs(releases.root / ".installations") if _written(log)), None)
    if log is None:
        if releases.root.is_dir() and releases.at_work():
            raise InputError(
                f"{releases.root}: a rollback is in progress; wait until it has finished, or interrupt it in the "
                "terminal that started it"
            )
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = _worker(log)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        until_s = time.monotonic() + _END_S
        while time.monotonic() < until_s:
            if not _written(log):
                return True
            time.sleep(_POLL_S)
    raise InputError(f"{releases.root}: the installation cannot be ended (log: {log}); restart this device")


def _worker(log: Path) -> Optional[int]:
    """The process that writes a log. None: the log does not name it, or names a process that does not have it open."""
    pid = None
    with suppress(OSError), open(log, "rb") as stream:
        stream.readline(_MOST_BYTES)
        pid = _message(stream.readline(_MOST_BYTES)).get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 1:
        return None
    try:
        return pid if files.has_open(pid, log) else None
    except PermissionError as error:
        raise InputError(f"{log}: the installation belongs to another user; end it as that user or as root") from error
    except OSError:
        return None


def _start(releases: Releases, act: Act, request: List[str], log: Path) -> int:
    """Start the worker, which writes `log`; return its pid, or 0 if another process has just started it."""
    for old in sorted(_logs(log.parent), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        old.unlink()
    with open(log, "a", encoding="ascii", buffering=1, opener=files.opener) as stream:
        if not files.lock(stream.fileno(), _PATIENCE_S):  # the worker inherits the lock
            return 0
        stream.truncate(0)
        print(json.dumps({"request": request}), file=stream)
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = _BUG
        try:
            os.setsid()
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            for ends in (signal.SIGINT, signal.SIGTERM):
                signal.signal(ends, signal.default_int_handler)
            print(json.dumps({"pid": os.getpid()}), file=stream)
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            code = _work(releases, act, stream)
        finally:
            os._exit(code)  # skip the exit handlers of the parent


def _work(releases: Releases, act: Act, stream: IO[str]) -> int:
    def write(data: Dict[str, Any]) -> None:
        with suppress(OSError):  # a full disk: the installation reports it in its result, if that fits
            print(json.dumps(data), file=stream)

    release: Optional[Release] = None
    code = 0
    error: Optional[str] = None
    try:
        release = act(lambda step, text: write({"step": step, "text": printable(text)}))
    except BlockingIOError:
        code, error = (
            InputError.exit_code,
            f"{releases.root}: another installation is in progress; try again after it has finished",
        )
    except EdgepruneError as failure:
        code, error = failure.exit_code, " ".join(str(failure).split())
    except KeyboardInterrupt:
        code, error = 130, "interrupted"
    except OSError as failure:
        words = reason(failure)
        code, error = InputError.exit_code, f"{failure.filename or releases.root}: {words}"
    except BaseException as failure:
        code = _BUG
        at = traceback.extract_tb(failure.__traceback__)[-1]
        error = f"unexpected {type(failure).__name__}: {failure} ({at.filename}:{at.lineno}); please report this bug"
    current = None
    with suppress(InputError):
        current = releases.current()
    result: Result = {
        "exit": code,
        "error": None if error is None else printable(error),
        "release": None if release is None else {**release.to_json(), "identity": release.identity},
        "current": None if current is None else current.identity,
    }
    write({"result": result})
    return code


def _follow(releases: Releases, log: Path, worker: int, as_json: bool) -> int:
    with open(log, "rb") as stream, _ctrl_c_ends(worker):
        part = b""
        while True:
            alive = _alive(log, worker)  # checked before reading, so that the last lines are read
            while True:
                part += stream.readline(_MOST_BYTES)
                if not part.endswith(b"\n") and len(part) < _MOST_BYTES:
                    break
                message, part = _message(part), b""
                result = _result(message)
                if result is not None:
                    return _show_result(result, as_json)
                if "step" in message:
                    _show_step(message, as_json)
            if not alive:
                raise InputError(
                    f"{releases.root}: the installation was killed before it finished, or its log was damaged; the "
                    "release in use is unchanged; run the same command again to continue"
                )
            time.sleep(_POLL_S)


@contextmanager
def _ctrl_c_ends(worker: int) -> Iterator[None]:
    """Make the first Ctrl-C or SIGTERM end the worker that this process started; the worker then reports its end."""

    def interrupt(*_: Any) -> None:
        put_back()
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGTERM)

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if worker else {}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        put_back()


def _show_step(message: Dict[str, Any], as_json: bool) -> None:
    step, text = (printable(str(message.get(name))) for name in ("step", "text"))
    print(json.dumps(message) if as_json else f"{step:<11} {text}", flush=True)


def _show_result(result: Result, as_json: bool) -> int:
    release = result["release"]
    if as_json:
        print(json.dumps({"result": result}), flush=True)
    if result["error"]:
        print(f"edgeprune: error: {printable(result['error'])}", file=sys.stderr)
    elif release is not None and not as_json:
        state = "in use, and good" if release["state"] == "good" else f"in use, and on {release['state']}"
        print(printable(f"{release['identity']} ({release['name']}) is {state}"), flush=True)
    return int(result["exit"])


def _other(folder: Path, request: List[str]) -> Path:
    """Find the log of the installation in progress. InputError: its request is different."""
    for log in _logs(folder):
        if _request(log) == request and _written(log):
            return log
    raise InputError(f"{folder.parent}: another installation is in progress; try again after it has finished")


def _logs(folder: Path) -> List[Path]:
    """The logs of installations, without links, pipes and folders."""
    return [path for path in folder.glob("*.jsonl") if path.is_file() and not path.is_symlink()]


def _request(log: Path) -> Optional[List[str]]:
    with suppress(OSError), open(log, "rb") as stream:
        request: Optional[List[str]] = _message(stream.readline(_MOST_BYTES)).get("request")
        return request
    return None


def _ended(log: Path) -> bool:
    """Whether the log holds a result."""
    with suppress(OSError), open(log, "rb") as stream:
        return any(_result(_message(line)) is not None for line in iter(lambda: stream.readline(_MOST_BYTES), b""))
    return False


def _message(line: bytes) -> Dict[str, Any]:
    """The object in a line of a log; empty if the line is damaged."""
    with suppress(InputError):
        message = strict_json.loads(line, "log")
        if line.endswith(b"\n") and isinstance(message, dict):
            return message
    return {}


def _result(message: Dict[str, Any]) -> Optional[Result]:
    """The result in a message; None if it is missing or damaged."""
    result = message.get("result")
    if not isinstance(result, dict) or not {"exit", "error", "release", "current"} <= set(result):
        return None
    code, error, release = (result.get(name) for name in ("exit", "error", "release"))
    if not isinstance(code, int) or not isinstance(error, (str, type(None))) or (code == 0) != (error is None):
        return None
    if release is not None and not (isinstance(release, dict) and {"identity", "name", "state"} <= set(release)):
        return None
    return {"exit": code, "error": error, "release": release, "current": result["current"]}


def _alive(log: Path, worker: int) -> bool:
    if worker:
        return os.waitpid(worker, os.WNOHANG) == (0, 0)
    return _written(log)


def _written(log: Path) -> bool:
    """Whether a worker is writing the log now."""
    try:
        with open(log, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
