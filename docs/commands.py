"""Writes commands.md, the command reference, from the parsers themselves: python docs/commands.py"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from edgeprune_device import cli

HEAD = """# Commands

<!-- Made by docs/commands.py from the command line's own parsers; a test fails when it is stale. -->

`edgeprune COMMAND --help` prints the same. `python -m edgeprune` is the same program.

| exit code | what it says |
| --- | --- |
| 0 | done |
| 1 | a gate failed: accuracy, parity, signature |
| 2 | bad use or bad input, in one line that says what to do |
| 70 | a bug in edgeprune; `EDGEPRUNE_DEBUG=1` shows the traceback |
| 130 | interrupted; `--resume` goes on where a command has it |
| 141 | the reader of the output went away (`| head`) |

"""

def page() -> str:
    """The whole page."""
    found = cli.commands()
    parts = []
    for title, names in cli._grouped(found):
        parts.append(f"## {_sentence(title)}\n\n" + "\n".join(section(name, found[name].value) for name in names))
    return HEAD + "\n".join(parts)


def section(name: str, module_name: str) -> str:
    """One command: what it is for, how it is called, its options as the parser has them."""
    module = importlib.import_module(module_name)
    parser = cli.Parser(prog=f"edgeprune {name}", add_help=False)
    module.configure(parser)
    actions = [a for a in parser._actions if a.help is not argparse.SUPPRESS]
    lines = [f"### edgeprune {name}", "", f"{_sentence(module.HELP)}", "", "```text", _usage(parser), "```", ""]
    if actions:
        lines += ["| option | what it does |", "| --- | --- |"]
        lines += [f"| {_called(a)} | {_help(a, parser)} |" for a in actions]
        lines.append("")
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```", ""]
    return "\n".join(lines)


def _usage(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=84)
    return parser.format_usage().removeprefix("usage: ").replace("\n       ", "\n").strip()


def _called(action: argparse.Action) -> str:
    value = action.metavar or ("" if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}")
    if not action.option_strings:
        return f"`{value or action.dest}`"
    takes = action.nargs != 0
    value = (value or action.dest.upper()) if takes else ""
    value = f"[{value}]" if action.nargs == "?" else value
    return " ".join(f"`{f'{option} {value}'.strip()}`" for option in action.option_strings).replace("|", "\\|")


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = " ".join((action.help or "").split())
    text = text % {**vars(action), "prog": parser.prog} if "%" in text else text
    choices = action.choices and action.option_strings and "{" not in str(action.metavar or "{")
    if choices:
        text += f" ({', '.join(map(str, action.choices))})"
    default = action.default
    plain = default is not None and default is not argparse.SUPPRESS and not isinstance(default, bool)
    if plain and action.option_strings and "default" not in text and str(default):
        text += f" (default {default})"
    if action.required and action.option_strings:
        text += " **Required.**"
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    Path(__file__).with_name("commands.md").write_text(page())
