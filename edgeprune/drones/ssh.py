"""The link to a drone: this system's OpenSSH client, one shared connection, and retries when the radio fails.

OpenSSH decides about logins: the user's configuration, keys, agent and known hosts apply, host keys are checked as
usual, and ssh asks for a password once, on the terminal. On the drone a POSIX shell with tail, wc, cat, dd, mv, sync
and sha256sum is enough. A drone's answers are untrusted: this module limits their size, and the caller checks their
meaning.

    with Link("user@drone") as link:                      # or user@drone:2222, or an alias of ~/.ssh/config
        link.run('cat -- "$1"', "/etc/hostname")          # b"drone\\n"
        link.get(remote, local, size_bytes, sha256)       # continues where a broken link or the last attempt stopped
        link.put(local, remote)

Over a radio that loses packets, one TCP connection uses a small part of the bandwidth, and several use all of it.
`another` makes more connections if the login needs no password.

EDGEPRUNE_SSH selects another ssh, with options, e.g. "ssh -F other_config".
"""

from __future__ import annotations

import contextlib
import fcntl
import math
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
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import IO, TypeVar

from edgeprune_device import files
from edgeprune_device.errors import EdgepruneError, InputError, SignatureError, reason
from edgeprune_device.printable import printable
from edgeprune_device.progress import Line, Say

__all__ = ["Link", "LinkError", "RemoteError", "SshSession", "explain", "parse", "program", "shown"]

RETRIES = 8
_OPTIONS = {
    # ssh notices a dead link after about 15 s: three keep-alive messages without an answer, one every five seconds.
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ConnectTimeout": "15",
    # These override the user's configuration: terminal settings would corrupt the output, a kept connection would
    # outlive this process, and a quiet ssh would hide the reason of a failure.
    "ControlPersist": "no",
    "LogLevel": "INFO",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "ClearAllForwardings": "yes",
    # A drone is untrusted: it gets neither the user's agent, which signs for every host, nor the user's display, and
    # connecting to it starts no local program.
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "GSSAPIDelegateCredentials": "no",
    "PermitLocalCommand": "no",
    "Tunnel": "no",
}
_SHELL = "'`\"$\\;&<>|(){}"  # characters that ssh refuses in a user and a host from 9.6 on: ProxyCommand may hold both
_LOGIN_S = 45  # ssh itself waits forever if the link dies between the key exchange and the login
_LOGIN_BY_HAND_S = 150  # the user may look for a password; a server gives up after 120 s
_LEAST_BYTES_S = 512  # on average over _STILL_S; one byte a second would never end
_STILL_S = 120  # a hanging card stops tail and dd forever while sshd still answers; a slow radio transfers some data
_LONGEST_PAUSE_S = 30
_LOOK_S = 3  # the interval of connection attempts during a pause
#: TCP sends a connection's first packet again after 1, 3, 7 and 15 s. For a drone that was reached before, the timeout
#: covers 7 s, because the link may come back at any moment.
_CONNECT_AGAIN_S = 8
_CHUNK_BYTES = 1 << 16
_ANSWER_BYTES = 4 << 20
_GREETING_BYTES = 1 << 18  # the most that a login shell may print before our first line
_LAST_WORDS_S = 0.5  # limited, because a proxy command or the shared connection's ssh may hold the pipe open
_RC_LINK = 255  # ssh's own failure; no script here ends with it
_LONGEST_FOLDER = 70  # characters; a socket's path has at most 107, and ssh adds to it

_WHOLE = 'whole() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -c1-64)" = "$2" ]; }\n'
#: Prints "whole" if the file $1 has the hash $2, else the number of bytes that have arrived.
_HELD = f"""{_WHOLE}mkdir -p -- "${{1%/*}}" || exit 1
if whole "$1" "$2"; then echo whole
elif [ -f "$1.part" ]; then wc -c <"$1.part"
else echo 0; fi
"""
_WRITE = 'exec dd of="$1.part" bs="$3" seek="$2" conv=notrunc status=none'
#: The file may be complete already: another process sent it, or this one did before the link broke.
_FINISH = f"""{_WHOLE}if whole "$1.part" "$2"; then
  sync "$1.part" 2>/dev/null || sync
  mv -f -- "$1.part" "$1" || :
fi
if whole "$1" "$2"; then echo whole; else rm -f -- "$1.part"; fi
"""

_T = TypeVar("_T")


class LinkError(EdgepruneError):
    """The drone cannot be reached, or the link to it broke.

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
        reason: Its last line on standard error.
    """

    def __init__(self, text: str, code: int, reason: str) -> None:
        super().__init__(text)
        self.code, self.reason = code, reason


def parse(target: str) -> tuple[str, int | None]:
    """Split the address of a drone into host and port.

    Example: "user@drone:2222" -> ("user@drone", 2222); the port is None if none is given. "user@[fe80::1]:22" works,
    too.

    Raises:
        InputError: The text is not a host, or ssh would read it as an option.
    """
    user, host = r"[^@\s/:-][^@\s/:]*", r"\[[0-9A-Fa-f:.%\w]+\]|[^:@\s\[\]/-][^:@\s\[\]/]*"
    match = re.fullmatch(f"((?:{user}@)?)({host})(?::([0-9]{{1,5}}))?", target)
    port = int(match[3]) if match and match[3] else None
    readable = target.isprintable() and not set(target) & set(_SHELL)
    if not match or not readable or (port is not None and not 0 < port < 65536):
        raise InputError(
            f"{target!r}: not a drone (expected user@drone, user@drone:port or a name from your ssh config)"
        )
    return match[1] + match[2].strip("[]"), port


def program() -> list[str]:
    """The ssh command: EDGEPRUNE_SSH, or ssh.

    Raises:
        InputError: EDGEPRUNE_SSH cannot be parsed.
    """
    try:
        return shlex.split(os.environ.get("EDGEPRUNE_SSH") or "ssh")
    except ValueError as error:
        raise InputError(f"EDGEPRUNE_SSH: invalid command ({str(error).lower()})") from error


#: (pattern in ssh's output, message, `LinkError.lasting`). The first match counts.
_REASONS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key for .* has changed",
     "the host key has changed, because the drone was flashed again or another machine answers; compare the "
     "fingerprint on the drone's own screen, then run ssh-keygen -R {host}, and ssh {target} once", True),
    (r"Host key verification failed|No .* host key is known for",
     "unknown host key; run ssh {target} once, compare the fingerprint, and answer yes", True),
    (r"Permission denied|Too many authentication failures|No more authentication methods",
     "login refused (unknown user, or no accepted key or password); ssh-copy-id {target} installs your key",
     True),
    (r"no matching .* found|no mutual signature|[Bb]ad configuration option|Bad owner or permissions|"
     r"Can't open user config|illegal option|unknown option", "ssh failed: {line}", True),
    (r"Session open refused",
     "the SSH server allows one session per connection; set MaxSessions 10 in the drone's sshd_config", True),
    (r"Could not resolve hostname", "unknown host; check the name and your ssh config", None),
    (r"No route to host|Network is unreachable", "no route to this host; check that the link is up", None),
    (r"Connection refused", "no SSH server answers; start sshd on the drone, or check the port", None),
    (r"timed out|Timeout, server|not responding", "no answer; check that the drone is on and the link is up", False),
    (r"closed by|Connection closed|Connection reset|Broken pipe|kex_exchange|mux_client",
     "the link broke", False),
)  # fmt: skip


def explain(output: str, target: str) -> LinkError:
    """The error for the output of ssh, in one line with a remedy.

    Args:
        output: The output.
        target: The drone.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if not line.startswith("Warning:")), "the link broke")
    for pattern, words, lasting in _REASONS:
        if re.search(pattern, output):
            host = target.rpartition("@")[2]
            return LinkError(f"{target}: {words.format(target=target, host=host, line=shown(last))}", lasting)
    return LinkError(f"{target}: {shown(last)}")


def shown(text: str, most: int = 200) -> str:
    """Untrusted text, cut to `most` characters, without characters that move the terminal's cursor."""
    return printable(text.rstrip()[:most])


class Link:
    """A link to one drone. It connects on first use; use it with `with`.

    Args:
        target: As `parse` takes it.
        retries: The number of consecutive failures without transferred bytes after which it gives up.
        say: Called with each failure, as one line.
        shared: True: one connection serves every command. False: each command has its own connection, which never asks
            the user anything.

    Attributes:
        target: As given.
        name: The host, without the user.
    """

    def __init__(
        self,
        target: str,
        *,
        retries: int = RETRIES,
        say: Say | None = None,
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

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection for good. Any thread may call this."""
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
        """A link to the same drone, with a separate TCP connection for each command.

        It never asks the user: if the login needs a password, it raises a LinkError whose `lasting` is True.
        """
        return Link(self.target, retries=0, say=lambda text: None, shared=False)

    def talk(self, script: str, *arguments: str) -> SshSession:
        """Run a POSIX shell script once; the caller handles its input and output. Use the session with `with`.

        Raises:
            LinkError: The drone cannot be reached now; `patiently` tries again.
        """
        return self._session(script, arguments)

    def follow(
        self,
        script: str,
        *arguments: str,
        line: Callable[[bytes], None],
        input: bytes = b"",
        limit_s: float = math.inf,
    ) -> None:
        """Run a POSIX shell script within a limit, and pass on each line when it is printed.

        If the link breaks, the script runs again. Lines that it then repeats exactly from the beginning are not passed
        on.

        Args:
            script: The script.
            *arguments: "$1", "$2", ….
            line: Called with each line.
            input: The standard input.
            limit_s: The time limit over all, s.

        Raises:
            LinkError: The link failed for good.
            RemoteError: The exit status is not 0.
            InputError: The output is too long, or the script took longer than `limit_s`.
        """
        lines: list[bytes] = []
        until_s = time.monotonic() + limit_s

        def once() -> None:
            left_s = min(max(until_s - time.monotonic(), 0), threading.TIMEOUT_MAX)
            with self._session(script, arguments) as session, session.ending_within(left_s, self.target, limit_s):
                session.feed(input)
                number = total = 0
                while text := session.stdout.readline(_CHUNK_BYTES):
                    total += len(text)
                    if total > _ANSWER_BYTES:
                        raise InputError(f"{self.target}: the answer is longer than {_ANSWER_BYTES} bytes")
                    if lines[number : number + 1] != [text]:
                        lines[number:] = [text]
                        line(text)
                    number += 1
                session.end()

        self.patiently(once, lambda: len(lines) * _CHUNK_BYTES)

    def run(
        self, script: str, *arguments: str, input: bytes = b"", limit_bytes: int = _ANSWER_BYTES, timeout_s: float = 120
    ) -> bytes:
        """Run a POSIX shell script on the drone, and return its output.

        If the link breaks, the script runs again, perhaps while the first run is still active, so the script must allow
        that.

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
        """Fetch a file whose size and hash are known. Partial content stays beside `local` until the rest has arrived.

        Args:
            remote: The path on the drone.
            local: The path here.
            size_bytes: The file's size.
            sha256: The file's hash, hexadecimal.

        Raises:
            LinkError: The link failed for good; the same call continues from there.
            SignatureError: The content does not match its size and hash, twice; `local` then holds that content.
            InputError: `local` cannot be written, or another process is fetching it.
            RemoteError: The file no longer exists.
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
        raise self._damaged(remote)

    def put(self, local: Path, remote: str) -> None:
        """Send a file and create its folder. Partial content stays beside it on the drone until the rest has arrived.

        Args:
            local: The path here.
            remote: The path on the drone.

        Raises:
            LinkError: The link failed for good; the same call continues from there.
            RemoteError: Space or permission is missing on the drone.
            SignatureError: The file on the drone's disk is not the file that was sent, twice.
        """
        digest = files.sha256(local)
        for _ in range(2):
            if self._put(local, remote, digest):
                return
        raise self._damaged(remote)

    def _damaged(self, remote: str) -> SignatureError:
        return SignatureError(
            f"{self.target}: {remote}: damaged (the content does not match its SHA-256 after two transfers); check the "
            "drone's disk, then run the command again"
        )

    def _put(self, local: Path, remote: str, digest: str) -> bool:
        """Send a file with retries; False if the partial file there had different content."""
        at = [0]
        return self.patiently(lambda: self._send(local, remote, digest, at), lambda: at[0])

    # --- one try of each --------------------------------------------------------------------------------------------

    def _answer(self, script: str, arguments: Sequence[str], input: bytes, limit_bytes: int, timeout_s: float) -> bytes:
        with self._session(script, arguments) as session, session.ending_within(timeout_s, self.target):
            session.feed(input)
            answer = session.stdout.read(limit_bytes + 1)
            if len(answer) > limit_bytes:
                raise InputError(f"{self.target}: the answer is too long (expected at most {limit_bytes} bytes)")
            session.end()
        return answer

    def _fetch(self, remote: str, stream: IO[bytes], size_bytes: int) -> None:
        """Append the missing bytes of `size_bytes` to `stream`."""
        at = _size(stream)
        if at > size_bytes:  # part of another file
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
                moved(len(data))
                if not data:
                    session.end()
                    break
                with _writing(Path(stream.name), stream):
                    stream.write(data[: size_bytes - at])
                    stream.flush()
                at += len(data)
                line(f"{self.name}: {at / max(size_bytes, 1):.0%} of {size_bytes / 1e6:.1f} MB")

    def _send(self, local: Path, remote: str, digest: str, at: list[int]) -> bool:
        """Send the bytes that are missing on the drone.

        Args:
            local: The path here.
            remote: The path on the drone.
            digest: The file's hash.
            at: Receives the offset at which sending begins.

        Returns:
            False if the partial file there had different content; it was removed.
        """
        size = local.stat().st_size
        held = self._answer(_HELD, (remote, digest), b"", 100, 120).strip()
        if held == b"whole":
            return True
        block = min(int(held) if re.fullmatch(rb"[0-9]{1,15}", held) else 0, size) // _CHUNK_BYTES
        at[0] = sent = block * _CHUNK_BYTES
        # Each dd writes at its own offset. An earlier dd that still runs behind a broken link writes the same bytes.
        with (
            open(local, "rb") as source,
            self._session(_WRITE, (remote, str(block), str(_CHUNK_BYTES))) as session,
            session.moving() as moved,
        ):
            source.seek(sent)
            with Line() as line:
                while (data := source.read(_CHUNK_BYTES)) and session.write(data):
                    moved(len(data))
                    sent += len(data)
                    line(f"{self.name}: {local.name[:50]} {sent / size:.0%} of {size / 1e6:.1f} MB")
            session.feed(b"")
            session.end()
        return self._answer(_FINISH, (remote, digest), b"", 100, 600).strip() == b"whole"

    # --- the connection ---------------------------------------------------------------------------------------------

    def patiently(self, act: Callable[[], _T], moved: Callable[[], int] = lambda: 0) -> _T:
        """Call `act`, and repeat it while the link fails, after growing pauses or as soon as the drone is back.

        Args:
            act: The attempt.
            moved: The number of bytes transferred so far; if it grew, the count of failures starts again.

        Returns:
            The result of `act`.

        Raises:
            LinkError: Another attempt cannot succeed, or all attempts failed.
        """
        failures, before = 0, moved()
        while True:
            try:
                return act()
            except LinkError as error:
                self._drop()  # the connection may not have noticed yet that it is dead
                # No route, no name or no server: a drone that was reached before has lost its radio or reboots.
                if error.lasting or (error.lasting is None and not self._reached):
                    raise
                failures = failures + 1 if moved() - before < _CHUNK_BYTES else 1
                before = moved()
                if failures > self._retries:
                    raise LinkError(
                        f"{error}; gave up after {self._retries + 1} tries; run the same command again to continue"
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

    def _session(self, script: str, arguments: Sequence[str]) -> SshSession:
        """A script that runs on the drone, over the shared connection if there is one."""
        if not self._shared:
            return self._start(["-o", "ControlMaster=no", "-o", "BatchMode=yes"], script, arguments)
        self._connected()
        # The last option stops ssh from making its own connection, and asking for the password, if the shared one
        # broke.
        return self._start(["-o", "ControlMaster=no", "-o", "ProxyCommand=false"], script, arguments)

    def _connected(self) -> None:
        if self._master is not None and self._master.alive:
            return
        self._drop()
        if self._folder is None:
            self._folder = _private_folder()
        self._masters += 1
        # The script reads until this process ends, and keeps the connection open that long.
        master = self._start(["-o", "ControlMaster=yes"], "exec cat >/dev/null", ())
        self._master, self._reached = master, True

    def _drop(self) -> None:
        master, self._master = self._master, None
        if master is not None:
            master.kill()

    def _start(self, options: Sequence[str], script: str, arguments: Sequence[str]) -> SshSession:
        socket = str(self._folder / f"s{self._masters}") if self._shared and self._folder is not None else "none"
        settings = {**_OPTIONS, "ControlPath": socket}
        if self._reached or not self._shared:
            settings["ConnectTimeout"] = str(_CONNECT_AGAIN_S)
        argv = [*program(), *options, *(word for pair in settings.items() for word in ("-o", "=".join(pair)))]
        # A login shell may print text first: the script's output begins after the mark. The umask keeps other users
        # of the drone from writing to the files of a script.
        begin = f"echo '{self._mark.decode('ascii')}'\numask go-w"
        words = ("sh", "-c", f"{begin}\n{script}", "edgeprune", *arguments)
        process = SshSession([*argv, *self._address, " ".join(map(shlex.quote, words))], self.target)
        try:
            self._login = process
            if self._closed:
                raise LinkError(f"{self.target}: the connection is closed", lasting=True)
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
                f"{argv[0]}: cannot be started ({reason(error)}); apt install openssh-client, or set EDGEPRUNE_SSH"
            ) from error
        stdin, stdout, stderr = self._popen.stdin, self._popen.stdout, self._popen.stderr
        assert isinstance(stdin, BufferedWriter)
        assert isinstance(stdout, BufferedReader) and isinstance(stderr, BufferedReader)
        self._stdin, self.stdout, self._stderr = stdin, stdout, stderr
        self._errors = b""
        # A thread, because a pipe that is not read would stop the other end.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> SshSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._popen.poll() is None

    def write(self, data: bytes) -> bool:
        """Write to the standard input. False: the other end reads no more; `end` raises the reason."""
        try:
            self._stdin.write(data)
            self._stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def feed(self, data: bytes) -> None:
        """Write the whole standard input, and close it."""
        self.write(data)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()

    def skip_to(self, mark: bytes) -> None:
        """Read the output up to and including the line `mark`.

        Raises:
            InputError: The login shell prints too much before the mark, or runs no commands.
        """
        skipped = 0
        while line := self.stdout.readline(_CHUNK_BYTES):
            if line.strip() == mark:
                return
            skipped += len(line)
            if skipped > _GREETING_BYTES:
                raise InputError(
                    f"{self._target}: the login shell prints more than {_GREETING_BYTES} bytes before a command; "
                    "shorten its greeting"
                )
        self.end()
        raise InputError(
            f"{self._target}: the login shell runs no commands (try ssh {self._target} true); use another user"
        )

    def end(self) -> None:
        """Wait until the process has ended.

        Raises:
            LinkError: ssh failed.
            RemoteError: The command's exit status is not 0.
        """
        code = self._popen.wait()
        self._listener.join(_LAST_WORDS_S)
        errors = self._errors.decode("utf-8", "replace")
        if code == _RC_LINK or code < 0:
            raise explain("Connection timed out" if code < 0 else errors, self._target)
        if code:
            lines = [line for line in errors.splitlines() if line.strip()]
            reason = shown(lines[-1]) if lines else f"exit status {code}"
            raise RemoteError(f"{self._target}: {_why(reason)}", code, reason)

    @contextlib.contextmanager
    def ending_within(self, seconds: float, what: str | None, limit_s: float | None = None) -> Iterator[None]:
        """Kill the process if the block takes longer than `seconds`.

        Args:
            seconds: The time limit.
            what: Begins the InputError of the timeout; None leaves it a LinkError.
            limit_s: The whole limit, for the message, if `seconds` is only the rest of it.
        """
        late = threading.Event()

        def stop() -> None:
            late.set()
            self._popen.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        try:
            yield
        except LinkError as error:
            if late.is_set() and what:
                raise InputError(
                    f"{what}: a command on the drone did not finish within {limit_s or seconds:g} s"
                ) from error
            raise
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def moving(self) -> Iterator[Callable[[int], None]]:
        """Kill the process, which raises a LinkError, when less than `_LEAST_BYTES_S` moves, over `_STILL_S`.

        The block calls the yielded function with the number of bytes that it moved.
        """
        bytes_moved, over = [0], threading.Event()

        def watch() -> None:
            before = 0
            while not over.wait(_STILL_S):
                if bytes_moved[0] - before < _LEAST_BYTES_S * _STILL_S:
                    self._popen.kill()
                    return
                before = bytes_moved[0]

        def moved(count: int) -> None:
            bytes_moved[0] += count

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield moved
        finally:
            over.set()

    def close(self) -> None:
        """Close the process's input, which ends it."""
        with contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1)
        self.kill()

    def stop(self) -> None:
        """Kill the process; any thread may call this."""
        self._popen.kill()

    def kill(self) -> None:
        """Kill the process, and close its pipes."""
        self._popen.kill()
        self._popen.wait()
        for stream in (self._stdin, self.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self._listener.join(_LAST_WORDS_S)

    def _listen(self) -> None:
        with self._stderr as stream:
            while data := stream.read1(1 << 12):
                self._errors = (self._errors + data)[-(1 << 14) :]


def _why(reason: str) -> str:
    if "No space left" in reason or "Disk quota" in reason:
        return f"the drone's disk is full ({reason}); free some space, and run the same command again"
    return reason


def _private_folder() -> Path:
    """A folder for the connection's socket, whose path must be short for the kernel."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
        if base and len(base) <= _LONGEST_FOLDER and os.access(base, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="edgeprune-", dir=base))
    raise InputError("TMPDIR: no folder for the connection's socket; set TMPDIR to a folder with a short path")


def _size(stream: IO[bytes]) -> int:
    return os.fstat(stream.fileno()).st_size


@contextlib.contextmanager
def _held(part: Path) -> Iterator[IO[bytes]]:
    """Open and lock `part` for appending."""
    while True:
        try:
            stream = open(part, "ab")  # noqa: SIM115  closed below
        except OSError as error:
            raise InputError(f"{part}: cannot be written ({reason(error)})") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{part}: another edgeprune is fetching this file; wait until it has finished"
                ) from error
            if _is(part, stream):  # else another process has just completed and renamed it
                yield stream
                return


def _is(path: Path, stream: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _writing(path: Path, stream: IO[bytes]) -> Iterator[None]:
    """Turn a failed write into an InputError, and remove the partial file, which would keep the disk full."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(stream.fileno(), 0)
            os.unlink(stream.name)
        raise InputError(f"{path}: cannot be written ({reason(error)}); the drone keeps its copy") from error
