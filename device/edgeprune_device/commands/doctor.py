"""edgeprune doctor"""

from __future__ import annotations

HELP = "what is missing on this machine, and how to get it"


def configure(parser) -> None:
    """Options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Examine, show; GateError where something that is needed is missing."""
    from edgeprune_device import doctor, strict_json, version
    from edgeprune_device.errors import GateError
    from edgeprune_device.printable import printable

    found = doctor.examine()
    if args.json:
        print(strict_json.pretty({"edgeprune": version(), "checks": [check.to_json() for check in found]}), end="")
    else:
        width = max(len(check.name) for check in found) + 2
        for check in found:
            print(f"{check.state:<9}{check.name:<{width}}{printable(check.found)}")
            if check.advice:
                print(f"{'':<9}{'':<{width}}-> {printable(check.advice)}")
    missing = [check.name for check in found if check.state == "missing"]
    if missing:
        raise GateError(f"missing here: {', '.join(missing)}")
