"""An installation in a separate process, which continues when the terminal or the SSH link that started it is gone.

    ROOT/.installations/TICKET.jsonl     its log, one JSON object a line: the request, then the steps, then the result

The starting process follows that file and ends with the installation's exit code. A second start with the same ticket
follows the same installation, or finds its result. A different request is refused while an installation is at work.
Ctrl-C in the starting process ends the installation; a broken link does not. The worker holds a lock on its file until
its process ends, so that others can see that it is alive.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import signal
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

from edgeprune_device.errors import EdgepruneError, InputError
from edgeprune_device.releases import Release, Releases

__all__ = ["run"]

_KEPT = 10
_POLL_S = 0.1
_PATIENCE_S = 0.5  # `_written` also holds the lock for a moment
_BUG = 70


def run(
    releases: Releases,
    act: Callable[[Callable[[str, str], None]], Release],
    *,
    request: List[str],
    ticket: Optional[str],
    as_json: bool,
) -> int:
    """Run an installation in a separate process and follow it.

    Args:
        releases: The releases.
        act: The installation; it is called with a function say(step, text).
        request: The request, to recognise the same one again.
        ticket: Name of the log; None: a random one.
        as_json: Print JSON instead of text.

    Returns:
        The exit code of the installation.

    Raises:
        InputError: Another installation is at work, or this one was killed.
    """
    folder = releases.root / ".installations"
    try:
        folder.mkdir(exist_ok=True, mode=0o755)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({str(error.strerror).lower()})") from error
    log = folder / f"{ticket or secrets.token_hex(8)}.jsonl"
    worker = 0
    if not _ended(log) and not _written(log):
        if releases.at_work():
            log = _other(folder, request)
        else:
            worker = _start(releases, act, request, log)
    return _follow(releases, log, worker, as_json)


def _start(releases: Releases, act, request: List[str], log: Path) -> int:
    """Start the worker, which writes `log`; its pid, or 0 where another process has started it at the same moment."""
    for old in sorted(log.parent.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        old.unlink()
    with open(log, "a", encoding="ascii", buffering=1) as stream:
        if not _locked(stream):
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
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(null, number)
            code = _work(releases, act, stream)
        finally:
            os._exit(code)  # without the exit handlers of the parent


def _work(releases: Releases, act, stream) -> int:
    def write(data: Dict[str, Any]) -> None:
        with suppress(OSError):  # a full disk: the installation reports it in its result, if that fits
            print(json.dumps(data), file=stream)

    release: Optional[Release] = None
    code, error = 0, None
    try:
        release = act(lambda step, text: write({"step": step, "text": text}))
    except BlockingIOError:
        code, error = InputError.exit_code, "another installation is at work here; try again when it has ended"
    except EdgepruneError as failure:
        code, error = failure.exit_code, " ".join(str(failure).split())
    except KeyboardInterrupt:
        code, error = 130, "interrupted"
    except OSError as failure:
        words = str(failure.strerror or failure).lower()
        code, error = InputError.exit_code, f"{failure.filename or releases.root}: {words}"
    except BaseException as failure:
        code = _BUG
        at = traceback.extract_tb(failure.__traceback__)[-1]
        error = f"this is a bug, please report it: {type(failure).__name__}: {failure} ({at.filename}:{at.lineno})"
    current = None
    with suppress(InputError):
        current = releases.current()
    write(
        {
            "result": {
                "exit": code,
                "error": error,
                "release": None if release is None else {**release.to_json(), "identity": release.identity},
                "current": None if current is None else current.identity,
            }
        }
    )
    return code


def _follow(releases: Releases, log: Path, worker: int, as_json: bool) -> int:
    with open(log, encoding="ascii") as stream, _ctrl_c_ends(worker):
        part = ""
        while True:
            alive = _alive(log, worker)  # before reading, so that its last lines are read
            while True:
                part += stream.readline()
                if not part.endswith("\n"):
                    break
                said, part = json.loads(part), ""
                if "result" in said:
                    return _show_result(said["result"], as_json)
                if "step" in said:
                    _show_step(said, as_json)
            if not alive:
                raise InputError(
                    f"{releases.root}: the installation was killed before it ended; what was in use is in use: run the "
                    "same command again, and it goes on"
                )
            time.sleep(_POLL_S)


@contextmanager
def _ctrl_c_ends(worker: int) -> Iterator[None]:
    """Let the first Ctrl-C end the worker that this process has started; the worker then reports how it ended."""

    def interrupt(*_) -> None:
        signal.signal(signal.SIGINT, before)
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    if worker:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show_step(said: Dict[str, Any], as_json: bool) -> None:
    print(json.dumps(said) if as_json else f"{said['step']:<11} {said['text']}", flush=True)


def _show_result(result: Dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps({"result": result}), flush=True)
    if result["error"]:
        print(f"edgeprune: error: {result['error']}", file=sys.stderr)
    elif not as_json:
        release = result["release"]
        state = "in use, and good" if release["state"] == "good" else f"in use, and on {release['state']}"
        print(f"{release['identity']} ({release['name']}) is {state}", flush=True)
    return int(result["exit"])


def _other(folder: Path, request: List[str]) -> Path:
    """The log of the installation that is at work. InputError: it has another request."""
    for log in folder.glob("*.jsonl"):
        if _request(log) == request and _written(log):
            return log
    raise InputError("another installation is at work here; try again when it has ended")


def _request(log: Path) -> Optional[List[str]]:
    with suppress(OSError, ValueError), open(log, encoding="ascii") as stream:
        return json.loads(stream.readline()).get("request")
    return None


def _ended(log: Path) -> bool:
    """Whether the log holds a result."""
    with suppress(OSError):
        return re.search(r'^\{"result": .*\}\n\Z', log.read_text(encoding="ascii"), re.MULTILINE) is not None
    return False


def _alive(log: Path, worker: int) -> bool:
    if worker:
        return os.waitpid(worker, os.WNOHANG) == (0, 0)
    return _written(log)


def _written(log: Path) -> bool:
    """Whether a worker writes the log at this moment."""
    try:
        with open(log, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _locked(stream) -> bool:
    """Take the lock, which the worker inherits. False: another process has it."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(0.02)
