"""The link to a drone: this system's own OpenSSH client, one connection for everything, patient when the radio fails.

OpenSSH decides about logins: the user's configuration, keys, agent and known hosts apply, host keys are checked as
usual, and a password is asked for once, on the terminal. On the drone a POSIX shell with tail, wc, cat, dd, mv, sync
and sha256sum is enough. A drone's answers are untrusted: this module limits their size, and the caller checks their
meaning.

    with Link("user@drone") as link:                      # or user@drone:2222, or an alias of ~/.ssh/config
        link.run('cat -- "$1"', "/etc/hostname")          # b"drone\\n"
        link.get(remote, local, size_bytes, sha256)       # goes on where a broken link or the last attempt stopped
        link.put(local, remote)

Over a radio that loses packets, one TCP connection uses a small part of the bandwidth, and several use all of it:
`another` makes more connections, where a login needs no person.

EDGEPRUNE_SSH names another ssh, with options, e.g. "ssh -F other_config".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from edgeprune_device import files
from edgeprune_device.errors import EdgepruneError, InputError, SignatureError
from edgeprune_device.printable import printable
from edgeprune_device.progress import Line

__all__ = ["Link", "LinkError", "RemoteError", "SshSession", "explain", "parse", "program", "shown"]

RETRIES = 8
_OPTIONS = {
    # A dead link is noticed after some 15 s: three keep-alive messages without an answer, one every five seconds.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ConnectTimeout": "15",
    # These override lines of the user's configuration: those for a terminal would disturb, one that keeps connections
    # open would outlive this process, and one that makes ssh quiet would hide the reason of a failure.
    "ControlPersist": "no",
    "LogLevel": "INFO",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
}
_LOGIN_S = 45  # ssh itself waits forever if the link dies between the key exchange and the login
_LOGIN_BY_HAND_S = 150  # a person may look for a password; a server gives up after 120 s
_STILL_S = 120  # a card that hangs stops tail and dd forever, while sshd goes on answering; a slow radio moves data
_LONGEST_PAUSE_S = 30
_LOOK_S = 3  # during a pause, the drone is tried this often
#: A connection's first packet is sent again after 1, 3, 7 and 15 s. For a drone that was reached before, the timeout
#: covers 7 s: the link may come back at any moment.
_CONNECT_AGAIN_S = 8
_CHUNK_BYTES = 1 << 16
_ANSWER_BYTES = 4 << 20
_GREETING_BYTES = 1 << 18  # what a login shell may print before our own first line
_LAST_WORDS_S = 0.5  # a limit, since a proxy command or the connection's own ssh may hold the pipe
_RC_LINK = 255  # ssh's own failure; no script here ends with it
_LONGEST_FOLDER = 70  # characters; a socket's path has at most 107, and ssh adds to it

_WHOLE = 'whole() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -c1-64)" = "$2" ]; }\n'
#: Prints, of the file $1 with the hash $2: "whole", or the number of bytes that are there.
_HELD = f"""{_WHOLE}mkdir -p -- "${{1%/*}}" || exit 1
if whole "$1" "$2"; then echo whole
elif [ -f "$1.part" ]; then wc -c <"$1.part"
else echo 0; fi
"""
_WRITE = 'exec dd of="$1.part" bs="$3" seek="$2" conv=notrunc status=none'
#: The file may have its name already: another process sent the same, or this one before the link broke.
_FINISH = f"""{_WHOLE}if whole "$1.part" "$2"; then
  sync "$1.part" 2>/dev/null || sync
  mv -f -- "$1.part" "$1" || :
fi
if whole "$1" "$2"; then echo whole; else rm -f -- "$1.part"; fi
"""

_T = TypeVar("_T")


class LinkError(EdgepruneError):
    """The drone cannot be reached, or not any more.

    Attributes:
        lasting: True: another attempt is useless. False: it may succeed. None: it may succeed if the drone was reached
            before.
    """

    def __init__(self, text: str, lasting: bool | None = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class RemoteError(InputError):
    """A command failed on the drone.

    Attributes:
        code: Its exit status.
        reason: Its last line of output on the standard error.
    """

    def __init__(self, text: str, code: int, reason: str) -> None:
        super().__init__(text)
        self.code, self.reason = code, reason


def parse(target: str) -> tuple[str, int | None]:
    """Split the address of a drone into host and port.

    Example: "user@drone:2222" -> ("user@drone", 2222); the port is None where none is given. "user@[fe80::1]:22" works,
    too.

    Raises:
        InputError: ssh could not take it for a host, or would take it for an option.
    """
    user, host = r"[^@\s/:-][^@\s/:]*", r"\[[0-9A-Fa-f:.%\w]+\]|[^:@\s\[\]/-][^:@\s\[\]/]*"
    match = re.fullmatch(f"((?:{user}@)?)({host})(?::([0-9]{{1,5}}))?", target)
    port = int(match[3]) if match and match[3] else None
    if not match or not target.isprintable() or (port is not None and not 0 < port < 65536):
        raise InputError(f"{target!r}: not a drone; give user@drone, user@drone:port or a name of your ssh config")
    return match[1] + match[2].strip("[]"), port


def program() -> list[str]:
    """The ssh command: EDGEPRUNE_SSH, or ssh.

    Raises:
        InputError: EDGEPRUNE_SSH cannot be parsed.
    """
    try:
        return shlex.split(os.environ.get("EDGEPRUNE_SSH") or "ssh")
    except ValueError as error:
        raise InputError(f"EDGEPRUNE_SSH: {str(error).lower()}") from error


#: (pattern in ssh's output, message, `LinkError.lasting`). The first match counts.
_REASONS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed",
     "its host key is not the one that is known here: it was flashed anew, or somebody sits in between; compare the "
     "fingerprint on its own screen, then ssh-keygen -R {host}, and ssh {target} once", True),
    (r"Host key verification failed|No .* host key is known for",
     "its host key is not known here: ssh {target} once, compare the fingerprint it shows, and say yes", True),
    (r"Permission denied|Too many authentication failures|No more authentication methods",
     "it refuses the login: no such user there, or no key or password that it takes; ssh-copy-id {target} puts your "
     "key there", True),
    (r"no matching .* found|no mutual signature|[Bb]ad configuration option|Bad owner or permissions|"
     r"Can't open user config|illegal option|unknown option", "ssh says: {line}", True),
    (r"Session open refused", "its SSH server lets one connection do one thing only: set MaxSessions 10 there", True),
    (r"Could not resolve hostname", "no such host is known here, nor in your ssh config", None),
    (r"No route to host|Network is unreachable", "there is no route to it; is the link up?", None),
    (r"Connection refused", "no SSH server answers there", None),
    (r"timed out|Timeout, server|not responding", "no answer", False),
    (r"closed by|Connection closed|Connection reset|Broken pipe|kex_exchange|mux_client",
     "the link broke", False),
)  # fmt: skip


def explain(said: str, target: str) -> LinkError:
    """The error for the output of ssh: one line that tells what to do.

    Args:
        said: The output.
        target: The drone.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if not line.startswith("Warning:")), "the link broke")
    for pattern, words, lasting in _REASONS:
        if re.search(pattern, said):
            host = target.rpartition("@")[2]
            return LinkError(f"{target}: {words.format(target=target, host=host, line=shown(last))}", lasting)
    return LinkError(f"{target}: {shown(last)}")


def shown(text: str, most: int = 200) -> str:
    """Untrusted text, cut to `most` characters, without characters that move the terminal's cursor."""
    return printable(text.rstrip()[:most])


class Link:
    """A link to one drone. It connects when it is first used; use it with `with`.

    Args:
        target: As `parse` takes it.
        retries: The number of failures in a row, without any bytes moved, after which it gives up.
        say: Called with each failure, as one line.
        shared: True: one connection serves every command. False: each command has a connection of its own, without any
            question to a person.

    Attributes:
        target: As given.
        name: The host, without the user.
    """

    def __init__(
        self,
        target: str,
        *,
        retries: int = RETRIES,
        say: Callable[[str], None] | None = None,
        shared: bool = True,
    ) -> None:
        host, port = parse(target)
        self.target = target
        #: Without the user, e.g. "drone".
        self.name = host.rpartition("@")[2]
        self._address = [*(["-p", str(port)] if port else []), "--", host]
        self._retries = retries
        self._say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        self._mark = f"edgeprune {secrets.token_hex(8)}".encode("ascii")
        self._folder: Path | None = None
        self._master: SshSession | None = None
        self._masters = 0
        self._reached = False
        self._shared = shared
        self._login: SshSession | None = None
        self._closed = False

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, for good. Another thread than the one that uses it may call this."""
        self._closed = True
        if (login := self._login) is not None:
            login.stop()
        master, self._master = self._master, None
        if master is not None:
            master.close()
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def connect(self) -> None:
        """Connect now, so that the following calls cost round trips only.

        Raises:
            LinkError: The drone cannot be reached.
        """
        self.patiently(self._connected)

    def another(self) -> Link:
        """A link to the same drone, with a TCP connection of its own for each command.

        It asks no person anything: where a login needs a person, it raises a LinkError whose `lasting` is True.
        """
        return Link(self.target, retries=0, say=lambda text: None, shared=False)

    def talk(self, script: str, *arguments: str) -> SshSession:
        """Run a POSIX shell script, once, whose input and output the caller handles. Use the session with `with`.

        Raises:
            LinkError: The drone cannot be reached now; within `patiently` that is tried again.
        """
        return self._session(script, arguments)

    def follow(self, script: str, *arguments: str, line: Callable[[bytes], None], input: bytes = b"") -> None:
        """Run a POSIX shell script for as long as it takes, and pass on each line that it prints as it comes.

        Where the link breaks, the script is run again. Lines that it then repeats, word for word from the beginning,
        are not passed on.

        Args:
            script: The script.
            *arguments: "$1", "$2", ….
            line: Called with each line.
            input: The standard input.

        Raises:
            LinkError: The link failed for good.
            RemoteError: The exit status is not 0.
            InputError: The output is too long.
        """
        said: list[bytes] = []

        def once():
            with self._session(script, arguments) as session:
                session.feed(input)
                number = total = 0
                while text := session.stdout.readline(_CHUNK_BYTES):
                    total += len(text)
                    if total > _ANSWER_BYTES:
                        raise InputError(f"{self.target}: says more than {_ANSWER_BYTES} bytes")
                    if said[number : number + 1] != [text]:
                        said[number:] = [text]
                        line(text)
                    number += 1
                session.end()

        self.patiently(once, lambda: len(said) * _CHUNK_BYTES)

    def run(
        self, script: str, *arguments: str, input: bytes = b"", limit_bytes: int = _ANSWER_BYTES, timeout_s: float = 120
    ) -> bytes:
        """Run a POSIX shell script on the drone, and return its output.

        Where the link breaks, the script is run again, perhaps while the first run is still at work: it must be written
        for that.

        Args:
            script: The script.
            *arguments: "$1", "$2", ….
            input: The standard input.
            limit_bytes: The longest output.
            timeout_s: The time limit, s.

        Raises:
            LinkError: The link failed for good.
            RemoteError: The exit status is not 0.
            InputError: The output was longer than `limit_bytes`, or the script took longer than `timeout_s`.
        """
        return self.patiently(lambda: self._answer(script, arguments, input, limit_bytes, timeout_s))

    def get(self, remote: str, local: Path, size_bytes: int, sha256: str) -> None:
        """Fetch a file whose size and hash are known. Partial content lies beside `local` until the rest has arrived.

        Args:
            remote: The path on the drone.
            local: The path here.
            size_bytes: The file's size.
            sha256: The file's hash, hexadecimal.

        Raises:
            LinkError: The link failed for good; the same call goes on from there.
            SignatureError: The content does not match its size and hash, twice; `local` then holds that content.
            InputError: `local` cannot be written, or another process is fetching it.
            RemoteError: The file is gone.
        """
        part = local.with_name(f".{local.name}.part")
        with _held(part) as stream:
            for last in (False, True):
                self.patiently(lambda: self._fetch(remote, stream, size_bytes), lambda: _size(stream))
                whole = files.sha256(part) == sha256
                if whole or last:
                    with _writing(local, stream):
                        os.fsync(stream.fileno())
                        os.replace(part, local)
                        files.sync_folder(local.parent)
                if whole:
                    return
                if not last:
                    stream.truncate(0)
        raise SignatureError(f"{self.target}: {remote}: damaged: it is not what its hash says")

    def put(self, local: Path, remote: str) -> None:
        """Send a file; its folder is made. Partial content lies beside it on the drone until the rest has arrived.

        Args:
            local: The path here.
            remote: The path on the drone.

        Raises:
            LinkError: The link failed for good; the same call goes on from there.
            RemoteError: There is no room or no permission.
            SignatureError: The file on the drone's disk is not the file that was sent, twice.
        """
        digest = files.sha256(local)
        for _ in range(2):
            at = [0]
            if self.patiently(lambda at=at: self._send(local, remote, digest, at), lambda at=at: at[0]):
                return
        raise SignatureError(f"{self.target}: {remote}: is not what was sent, twice; does its disk fail?")

    # --- one try of each --------------------------------------------------------------------------------------------

    def _answer(self, script: str, arguments, input: bytes, limit_bytes: int, timeout_s: float) -> bytes:
        with self._session(script, arguments) as session, session.ending_within(timeout_s, self.target):
            session.feed(input)
            answer = session.stdout.read(limit_bytes + 1)
            if len(answer) > limit_bytes:
                raise InputError(f"{self.target}: answers more than the {limit_bytes} bytes that were expected at most")
            session.end()
        return answer

    def _fetch(self, remote: str, stream: IO[bytes], size_bytes: int) -> None:
        """Append the missing bytes of `size_bytes` to `stream`."""
        at = _size(stream)
        if at > size_bytes:  # a part of something else
            stream.truncate(0)
            at = 0
        with (
            self._session('exec tail -c "+$2" -- "$1"', (remote, str(at + 1))) as session,
            session.moving() as moved,
            Line() as line,
        ):
            session.feed(b"")
            while at <= size_bytes:
                data = session.stdout.read1(_CHUNK_BYTES)
                moved()
                if not data:
                    session.end()
                    break
                with _writing(Path(stream.name), stream):
                    stream.write(data[: size_bytes - at])
                    stream.flush()
                at += len(data)
                line(f"{self.name}: {at / max(size_bytes, 1):.0%} of {size_bytes / 1e6:.1f} MB")

    def _send(self, local: Path, remote: str, digest: str, at: list[int]) -> bool:
        """Send the bytes that the drone lacks.

        Args:
            local: The path here.
            remote: The path on the drone.
            digest: The file's hash.
            at: Set to the offset that sending begins at.

        Returns:
            False where the partial file there was of another content; it was removed.
        """
        size = local.stat().st_size
        held = self._answer(_HELD, (remote, digest), b"", 100, 120).strip()
        if held == b"whole":
            return True
        block = min(int(held) if re.fullmatch(rb"[0-9]{1,15}", held) else 0, size) // _CHUNK_BYTES
        at[0] = sent = block * _CHUNK_BYTES
        # Each dd writes at its own offset: an earlier one, alive behind a broken link, writes the same bytes there.
        with (
            open(local, "rb") as source,
            self._session(_WRITE, (remote, str(block), str(_CHUNK_BYTES))) as session,
            session.moving() as moved,
        ):
            source.seek(sent)
            with Line() as line:
                while (data := source.read(_CHUNK_BYTES)) and session.write(data):
                    moved()
                    sent += len(data)
                    line(f"{self.name}: {local.name[:50]} {sent / size:.0%} of {size / 1e6:.1f} MB")
            session.feed(b"")
            session.end()
        return self._answer(_FINISH, (remote, digest), b"", 100, 600).strip() == b"whole"

    # --- the connection ---------------------------------------------------------------------------------------------

    def patiently(self, act: Callable[[], _T], moved: Callable[[], int] = lambda: 0) -> _T:
        """Call `act`, again while the link fails, after growing pauses or as soon as the drone is back.

        Args:
            act: The attempt.
            moved: The number of bytes moved so far; where it grew, the count of failures starts anew.

        Returns:
            The result of `act`.

        Raises:
            LinkError: Another attempt is useless, or all attempts failed.
        """
        failures, before = 0, moved()
        while True:
            try:
                return act()
            except LinkError as error:
                self._drop()  # the connection may not have noticed yet that it is dead
                # No route, no name, no server: for a drone that was reached before, the radio or a reboot is the cause.
                if error.lasting or (error.lasting is None and not self._reached):
                    raise
                failures = failures + 1 if moved() - before < _CHUNK_BYTES else 1
                before = moved()
                if failures > self._retries:
                    raise LinkError(
                        f"{error}; gave up after {self._retries + 1} tries: the same command goes on where it stopped"
                    ) from error
                pause = min(2 ** (failures - 1), _LONGEST_PAUSE_S)
                self._say(f"{error}; trying again in {pause} s ({failures} of {self._retries})")
                self._wait(pause)

    def _wait(self, pause_s: float) -> None:
        """Wait until the pause is over, or a drone that was reached before answers again."""
        while pause_s > 0:
            time.sleep(min(pause_s, _LOOK_S))
            pause_s -= _LOOK_S
            if pause_s > 0 and self._reached:
                with contextlib.suppress(LinkError):
                    return self._connected()

    def _session(self, script: str, arguments=()) -> SshSession:
        """A script that runs on the drone, over the one connection where that is shared."""
        if not self._shared:
            return self._start(["-o", "ControlMaster=no", "-o", "BatchMode=yes"], script, arguments)
        self._connected()
        # The last option: if the connection were gone, ssh would make one of its own, and ask for the password.
        return self._start(["-o", "ControlMaster=no", "-o", "ProxyCommand=false"], script, arguments)

    def _connected(self) -> None:
        if self._master is not None and self._master.alive:
            return
        self._drop()
        if self._folder is None:
            self._folder = _private_folder()
        self._masters += 1
        # It reads until this process ends or dies, and holds the connection as long.
        master = self._start(["-o", "ControlMaster=yes"], "exec cat >/dev/null", (), login=True)
        self._master, self._reached = master, True

    def _drop(self) -> None:
        master, self._master = self._master, None
        if master is not None:
            master.kill()

    def _start(self, options: list[str], script: str, arguments, login: bool = False) -> SshSession:
        settings = {**_OPTIONS, "ControlPath": str(self._folder / f"s{self._masters}") if self._shared else "none"}
        if self._reached or not self._shared:
            settings["ConnectTimeout"] = str(_CONNECT_AGAIN_S)
        argv = [*program(), *options, *(word for pair in settings.items() for word in ("-o", "=".join(pair)))]
        # A login shell may print something of its own first: the script's output begins after the mark.
        words = ("sh", "-c", f"echo '{self._mark.decode('ascii')}'\n{script}", "edgeprune", *arguments)
        process = SshSession([*argv, *self._address, " ".join(map(shlex.quote, words))], self.target)
        try:
            self._login = process
            if self._closed:
                raise LinkError(f"{self.target}: closed", lasting=True)
            limit = _LOGIN_BY_HAND_S if sys.stdin is not None and sys.stdin.isatty() else _LOGIN_S
            with process.ending_within(limit, None):
                process.skip_to(self._mark)
        except BaseException:
            process.kill()
            raise
        finally:
            self._login = None
        return process


class SshSession:
    """One ssh process, and a command at its other end. `with` kills it unless it has ended.

    Attributes:
        stdout: The command's output.
    """

    def __init__(self, argv: list[str], target: str) -> None:
        self._target = target
        try:
            self._popen = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise InputError(
                f"{argv[0]}: cannot be started ({str(error.strerror).lower()}); apt install openssh-client, or set "
                "EDGEPRUNE_SSH"
            ) from error
        self.stdout = self._popen.stdout
        self._said = b""
        # A thread, because a pipe that is not read would stop the other end.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> SshSession:
        return self

    def __exit__(self, *exc) -> None:
        self.kill()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._popen.poll() is None

    def write(self, data: bytes) -> bool:
        """Write to the standard input. False: the other end reads no more; `end` raises the reason."""
        try:
            self._popen.stdin.write(data)
            self._popen.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Write the whole standard input, and close it."""
        self.write(data)
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()

    def skip_to(self, mark: bytes) -> None:
        """Read the output up to and including the line `mark`.

        Raises:
            InputError: The login shell prints too much before it, or runs no commands.
        """
        skipped = 0
        while line := self.stdout.readline(_CHUNK_BYTES):
            if line.strip() == mark:
                return
            skipped += len(line)
            if skipped > _GREETING_BYTES:
                raise InputError(f"{self._target}: its shell prints without end before it runs a command")
        self.end()
        raise InputError(f"{self._target}: its shell runs no commands (ssh {self._target} true); use another user")

    def end(self) -> None:
        """Wait until the process has ended.

        Raises:
            LinkError: ssh failed.
            RemoteError: The command's exit status is not 0.
        """
        code = self._popen.wait()
        self._listener.join(_LAST_WORDS_S)
        said = self._said.decode("utf-8", "replace")
        if code == _RC_LINK or code < 0:
            raise explain("Connection timed out" if code < 0 else said, self._target)
        if code:
            lines = [line for line in said.splitlines() if line.strip()]
            reason = shown(lines[-1]) if lines else f"exit status {code}"
            raise RemoteError(f"{self._target}: {_why(reason)}", code, reason)

    @contextlib.contextmanager
    def ending_within(self, seconds: float, what: str | None) -> Iterator[None]:
        """Kill the process if the block takes longer than `seconds`.

        Args:
            seconds: The time limit.
            what: Begins the InputError of the timeout; None leaves it a LinkError.
        """
        late = threading.Event()

        def stop():
            late.set()
            self._popen.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            yield
        except LinkError as error:
            if late.is_set() and what:
                raise InputError(f"{what}: a command there did not end within {seconds:g} s") from error
            raise
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def moving(self) -> Iterator[Callable[[], None]]:
        """Kill the process, which raises a LinkError, unless the block calls the yielded function at least every
        `_STILL_S`.
        """
        moved, over = threading.Event(), threading.Event()

        def watch():
            while moved.wait(_STILL_S):
                moved.clear()
                if over.is_set():
                    return
            self._popen.kill()

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield moved.set
        finally:
            over.set()
            moved.set()

    def close(self) -> None:
        """Let the process end: it reads no more."""
        with contextlib.suppress(OSError):
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1)
        self.kill()

    def stop(self) -> None:
        """Kill the process, from another thread than the one that uses it."""
        self._popen.kill()

    def kill(self) -> None:
        """Kill the process, and close its pipes."""
        self._popen.kill()
        self._popen.wait()
        for stream in (self._popen.stdin, self._popen.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self._listener.join(_LAST_WORDS_S)

    def _listen(self) -> None:
        with self._popen.stderr as stream:
            while data := stream.read1(1 << 12):
                self._said = (self._said + data)[-(1 << 14) :]


def _why(reason: str) -> str:
    if "No space left" in reason or "Disk quota" in reason:
        return f"its disk is full ({reason}): free some space there, and run the same command again"
    return reason


def _private_folder() -> Path:
    """A folder for the connection's socket, whose path must be short for the kernel."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if base and len(base) <= _LONGEST_FOLDER and os.access(base, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="edgeprune-", dir=base))
    raise InputError("there is no folder for the connection's socket: set TMPDIR to one with a short path")


def _size(stream: IO[bytes]) -> int:
    return os.fstat(stream.fileno()).st_size


@contextlib.contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """Open and lock `part` for appending."""
    while True:
        try:
            stream = open(part, "ab")  # noqa: SIM115  closed below
        except OSError as error:
            raise InputError(f"{part}: cannot be written ({str(error.strerror).lower()})") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{part}: another edgeprune is fetching this at the moment; wait for it") from error
            if _is(part, stream):  # else another process has just finished it and given it its name
                yield stream
                return


def _is(path: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _writing(path: Path, stream: IO[bytes]) -> Iterator[None]:
    """Turn a failed write into an InputError. Nothing partial is left: not even the part, which would keep the disk
    full.
    """
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(stream.fileno(), 0)
            os.unlink(stream.name)
        raise InputError(
            f"{path}: cannot be written ({str(error.strerror).lower()}); the drone keeps what it has"
        ) from error
