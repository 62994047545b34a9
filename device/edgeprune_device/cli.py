"""The `edgeprune` command. Sub-commands are entry points of the group `edgeprune.commands`, loaded when called.

A command is a module with `HELP` (one line), `configure(parser)` and `run(args) -> int | None`. It imports large
libraries inside `run`, so that `edgeprune --help` stays fast and imports no torch.

Exit codes: 0 success; 1 a gate failed (accuracy, parity, signature); 2 bad use or bad input; 70 a bug in edgeprune; 130
interrupted; 141 the reader of the output closed it (`| head`).
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
from importlib import metadata
from typing import Any, Dict, List, NoReturn, Optional, Sequence, Tuple

from edgeprune_device import option, terminal, version
from edgeprune_device.errors import EdgepruneError, InputError, Interrupted, reason
from edgeprune_device.hint import did_you_mean, unknown
from edgeprune_device.printable import printable

__all__ = ["Parser", "commands", "main"]

GROUP = "edgeprune.commands"
#: The groups of the help, in the order of use. Listed commands that are not installed here run on the host. The
#: commands of a plug-in are in no group and come last.
_GROUPS = (
    ("prune and export on the host", ("build", "analyze", "prune", "finetune", "export", "compare", "targets")),
    ("deploy to drones and collect their reports", (
        "setup", "deploy", "releases", "rollback", "pack", "keys", "collect", "reports",
    )),
    ("run on the drone; bench, info, doctor and unpack run anywhere", (
        "bench", "run", "install", "engine", "unit", "spool", "info", "doctor", "unpack",
    )),
)  # fmt: skip
_WIDEST = 100  # columns of help: longer lines are hard to read
_NAMES = tuple(name for _, names in _GROUPS for name in names)
EXIT_BUG, EXIT_INTERRUPTED, EXIT_PIPE = 70, 130, 141


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports an error in one line, as an InputError, with similar known names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)  # an abbreviation in a script breaks with the next option
        kwargs.setdefault("formatter_class", _Formatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise InputError instead of printing the usage and exiting."""
        message = message[len("argument ") :] if message.startswith("argument --") else message
        raise InputError(f"{message} (see {self.prog} --help)")

    def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments, and suggest similar names for an unknown option.

        Args:
            argv: The arguments without the command's name.

        Raises:
            InputError: The arguments are invalid.
        """
        try:
            args, rest = self.parse_known_args(argv)
        except InputError:
            # If a required option is missing because it was mistyped, report the mistyped option.
            options = [text for text in argv if text[:2] == "--" and text != "--"]
            mistyped = [text for text in options if text.split("=")[0] not in self._option_string_actions]
            if mistyped and self._near(mistyped[0]):
                self._refuse(mistyped)
            raise
        if rest:
            self._refuse(rest)
        return args

    def _near(self, text: str) -> str:
        return did_you_mean(text.split("=")[0], self._option_string_actions) if text[:1] == "-" else ""

    def _refuse(self, words: Sequence[str]) -> None:
        near = self._near(words[0])
        self.error(f"unrecognized arguments: {' '.join(words)}{'; ' if near else ''}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Add similar names to argparse's message about an invalid choice."""
        if action.choices is not None and value not in action.choices:
            names = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, unknown("invalid choice", str(value), names))


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **kwargs: Any) -> None:
        kwargs.setdefault("width", min(terminal.columns(sys.stdout), _WIDEST) - 2)
        super().__init__(prog, **kwargs)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit code; raises no exception.

    Args:
        argv: The arguments; None: those of this process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a class name must not fail on an ASCII terminal
    try:
        with option.as_flags():
            code = _dispatch(argv)
        sys.stdout.flush()  # a full disk behind a redirection fails here, while it can still be reported
        return code
    except KeyboardInterrupt:
        _complain("finished work is kept", kind="interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit, so it needs a valid target.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Interrupted as error:  # requested by the user, not an error
        _complain(str(error), kind="interrupted")
        return error.exit_code
    except EdgepruneError as error:
        _complain(str(error))
        return error.exit_code
    except MemoryError:
        _complain("not enough memory; close other programs, or use a smaller size or batch")
        return InputError.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{reason(error)}")
        return InputError.exit_code
    except Exception as error:
        if os.environ.get("EDGEPRUNE_DEBUG") == "1":
            traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        _complain(
            f"unexpected {type(error).__name__}: {text}; please report this bug (EDGEPRUNE_DEBUG=1 prints the "
            "traceback)"
        )
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


def _load(name: str) -> Any:
    installed = commands()
    if name not in installed:
        if name in _NAMES:
            raise InputError(f"{name}: runs only on the host; install edgeprune there (pip install edgeprune)")
        near = did_you_mean(name, {*installed, *_NAMES})
        what = "option" if name.startswith("-") else "command"
        raise InputError(f"unknown {what} {name!r}{'; ' if near else ''}{near} (see edgeprune --help)")
    try:
        return installed[name].load()
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        raise InputError(f"{name}: cannot be loaded ({missing} is missing: {error}); reinstall edgeprune") from error


def _help() -> str:
    look, width = terminal.look(sys.stdout), min(terminal.columns(sys.stdout), _WIDEST)
    installed = commands()
    column = max(map(len, installed), default=0) + 2
    lines = [f"{look.style('usage:', 'bold')} edgeprune COMMAND [options]", ""]
    lines += _wrapped(
        "Prunes Ultralytics YOLO detectors, deploys them to drones and measures them on the drones.", width
    )
    for title, names in _grouped(installed):
        lines += ["", *(look.style(line, "bold") for line in _wrapped(f"{title}:", width))]
        for name in names:
            first, *more = _wrapped(_summary(installed[name]), width - column - 2)
            lines.append(f"  {look.style(name, 'cyan')}{' ' * (column - len(name))}{first}")
            lines += [f"{'':{column + 2}}{line}" for line in more]
    missing = [name for name in _NAMES if name not in installed]
    if missing:
        lines += ["", *_wrapped(f"on the host (pip install edgeprune): {', '.join(missing)}", width)]
    more_help = "edgeprune COMMAND --help shows the options of a command, edgeprune --version the version."
    lines += ["", *_wrapped(more_help, width)]
    codes = "0 success, 1 a gate failed (accuracy, parity, signature), 2 bad use or input, 70 a bug, 130 interrupted"
    return "\n".join([*lines, *_wrapped(f"exit codes: {codes}", width, indent=12)])


def _grouped(installed: Dict[str, metadata.EntryPoint]) -> List[Tuple[str, List[str]]]:
    """(title, names of the installed commands) of each group; those of plug-ins come last."""
    known = [(title, [name for name in names if name in installed]) for title, names in _GROUPS]
    others = sorted(set(installed).difference(*(names for _, names in _GROUPS)))
    return [(title, names) for title, names in [*known, ("others", others)] if names]


def _wrapped(text: str, width: int, indent: int = 0) -> List[str]:
    return textwrap.wrap(text, max(width, 20 + indent), subsequent_indent=" " * indent) or [""]


def _summary(point: metadata.EntryPoint) -> str:
    try:
        return str(point.load().HELP)
    except Exception as error:  # a broken plug-in must not affect the others
        return f"(cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())[:80]})"


def _complain(text: str, *, kind: str = "error") -> None:
    """Print one line on standard error."""
    look = terminal.look(sys.stderr)
    colour = "red" if kind == "error" else "yellow"
    text = printable(look.text(" ".join(text.split())))
    if text.startswith((f"{kind}; ", f"{kind}: ")):
        text = text[len(kind) + 2 :]
    print(f"edgeprune: {look.style(f'{kind}:', 'bold', colour)} {text}", file=sys.stderr)
