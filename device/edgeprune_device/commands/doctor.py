"""The command `edgeprune doctor`."""

from __future__ import annotations

HELP = "what is missing on this machine, and how to get it"

_COLOURS = {"ok": "green", "note": "yellow", "missing": "red"}


def configure(parser) -> None:
    """Add the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Examine this machine and show the result.

    Raises:
        GateError: A required part is missing.
    """
    import sys

    from edgeprune_device import doctor, strict_json, terminal, version
    from edgeprune_device.errors import GateError
    from edgeprune_device.printable import printable

    found = doctor.examine()
    if args.json:
        print(strict_json.pretty({"edgeprune": version(), "checks": [check.to_json() for check in found]}), end="")
    else:
        width, look = max(len(check.name) for check in found) + 2, terminal.look(sys.stdout)
        for check in found:
            state = look.style(f"{check.state:<9}", _COLOURS.get(check.state, "bold"))
            print(f"{state}{check.name:<{width}}{printable(check.found)}")
            if check.advice:
                print(f"{'':<9}{'':<{width}}-> {printable(check.advice)}")
    missing = [check.name for check in found if check.state == "missing"]
    if missing:
        raise GateError(f"missing here: {', '.join(missing)}")
