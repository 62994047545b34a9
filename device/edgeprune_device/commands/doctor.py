"""The command `edgeprune doctor`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.options import JSON

HELP = "check this machine for missing parts and show how to install them"

_COLOURS = {"ok": "green", "note": "yellow", "missing": "red", "damaged": "red"}


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    JSON.add(parser)


def run(args: Namespace) -> None:
    """Examine this machine and show the result.

    Raises:
        GateError: A required part is missing or damaged.
    """
    import sys

    from edgeprune_device import doctor, strict_json, terminal, version
    from edgeprune_device.errors import GateError
    from edgeprune_device.printable import printable

    checks = doctor.examine()
    if args.json:
        print(strict_json.pretty({"edgeprune": version(), "checks": [check.to_json() for check in checks]}), end="")
    else:
        width, look = max(len(check.name) for check in checks) + 2, terminal.look(sys.stdout)
        for check in checks:
            state = look.style(f"{check.state:<9}", _COLOURS.get(check.state, "bold"))
            print(f"{state}{check.name:<{width}}{printable(check.detail)}")
            if check.advice:
                print(f"{'':<9}{'':<{width}}-> {printable(check.advice)}")
    wrong = {state: [check.name for check in checks if check.state == state] for state in ("missing", "damaged")}
    states = [f"{state} on this machine: {', '.join(names)}" for state, names in wrong.items() if names]
    if states:
        raise GateError("; ".join(states))
