"""The `edgeprune` command. Sub-commands are entry points of the group `edgeprune.commands`, loaded when called.

A command is a module with `HELP` (one line), `configure(parser)` and `run(args) -> int | None`; it imports what is
heavy inside `run`, so that `edgeprune --help` stays quick and imports no torch.

Exit codes: 0 done; 1 a gate failed (accuracy, parity, signature); 2 bad use or bad input; 70 a bug in edgeprune;
130 interrupted; 141 the reader of the output went away (`| head`).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from importlib import metadata
from typing import Dict, List, Optional, Sequence

from edgeprune_device import version
from edgeprune_device.errors import EdgepruneError, InputError

__all__ = ["Parser", "commands", "main"]

GROUP = "edgeprune.commands"
# What the host distribution brings; on a drone the answer is where to find them.
HOST_COMMANDS = (
    "build", "analyze", "prune", "finetune", "export", "compare", "setup", "deploy", "pack", "collect", "reports",
)  # fmt: skip
_ON_DEVICE = ("engine", "bench", "run", "install", "releases", "rollback", "info", "doctor", "unit", "unpack", "spool")
_ORDER = (*HOST_COMMANDS, "targets", "keys", *_ON_DEVICE)
EXIT_BUG, EXIT_INTERRUPTED, EXIT_PIPE = 70, 130, 141


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake in one line, as an InputError."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("allow_abbrev", False)  # an abbreviation in a script breaks with the next option
        super().__init__(*args, **kwargs)

    def error(self, message: str):
        """Raises InputError instead of printing the usage and leaving."""
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, and offer the near names for an option that does not exist."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            options = list(self._option_string_actions)
            near = difflib.get_close_matches(unknown[0].split("=")[0], options, n=2) if unknown[0][:1] == "-" else []
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return args


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit code; no exception leaves."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a class name must not break an ASCII terminal
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # a full disk behind a redirection shows here, while it can still be said
        return code
    except KeyboardInterrupt:
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit; give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except EdgepruneError as error:
        _complain(str(error))
        return error.exit_code
    except MemoryError:
        _complain("not enough memory; close other programs, or use a smaller size or batch")
        return InputError.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{str(error.strerror or error).lower()}")
        return InputError.exit_code
    except Exception as error:
        if os.environ.get("EDGEPRUNE_DEBUG") == "1":
            traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        _complain(f"this is a bug, please report it: {type(error).__name__}: {text} (traceback: EDGEPRUNE_DEBUG=1)")
        return EXIT_BUG


def commands() -> Dict[str, metadata.EntryPoint]:
    """{name: entry point} of every installed sub-command."""
    points = metadata.entry_points()
    # Python 3.8 and 3.9 return a plain dict of groups.
    group = points.select(group=GROUP) if hasattr(points, "select") else points.get(GROUP, ())
    return {point.name: point for point in group}


def _dispatch(argv: List[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"edgeprune {version()}")
        return 0
    module = _load(name)
    parser = Parser(prog=f"edgeprune {name}", description=module.HELP)
    module.configure(parser)
    try:
        args = parser.parse_all(argv[1:])
    except SystemExit as leave:  # --help has printed its text
        return int(leave.code or 0)
    return module.run(args) or 0


def _load(name: str):
    found = commands()
    if name not in found:
        if name in HOST_COMMANDS:
            raise InputError(f"{name} runs on the host: pip install edgeprune")
        near = difflib.get_close_matches(name, {*found, *HOST_COMMANDS}, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        what = "option" if name.startswith("-") else "command"
        raise InputError(f"unknown {what} {name!r}{hint} (see edgeprune --help)")
    try:
        return found[name].load()
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        raise InputError(f"{name} cannot be loaded: {missing} is missing ({error}); reinstall edgeprune") from error


def _help() -> str:
    found = commands()
    names = sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    width = max(map(len, names), default=0) + 2
    lines = ["usage: edgeprune COMMAND [options]", ""]
    lines += [
        "Prunes YOLO detectors for drones, and proves it on the drone.",
        "",
        "commands:",
        *(f"  {name:<{width}}{_summary(found[name])}" for name in names),
    ]
    missing = [name for name in HOST_COMMANDS if name not in found]
    if missing:
        lines += ["", f"on the host (pip install edgeprune): {', '.join(missing)}"]
    lines += ["", "edgeprune COMMAND --help shows a command's options; edgeprune --version the version.", ""]
    lines += ["exit codes: 0 done, 1 a gate failed (accuracy, parity, signature), 2 bad use or input, 70 a bug,"]
    return "\n".join([*lines, "            130 interrupted"])


def _summary(point: metadata.EntryPoint) -> str:
    try:
        return point.load().HELP
    except Exception as error:  # a broken plug-in must not take the others with it
        return f"(cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:80]})"


def _complain(text: str) -> None:
    print(f"edgeprune: error: {' '.join(text.split())}", file=sys.stderr)
