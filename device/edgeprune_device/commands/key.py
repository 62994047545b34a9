"""edgeprune key"""

from __future__ import annotations

HELP = "this device's report key, made on first use: its fingerprint, and the line that enrols it on a host"


def configure(parser) -> None:
    """Options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Print the public half; the private one is never shown."""
    from edgeprune_device import keys, strict_json

    key = keys.load_or_create("report").verify_key
    path = keys.home() / "keys" / "report.pub"
    shown = {"fingerprint": keys.fingerprint(key), "public": bytes(key).hex(), "path": str(path)}
    if args.json:
        print(strict_json.pretty(shown), end="")
        return
    for name, value in shown.items():
        print(f"{name:<13}{value}")
    print("\nedgeprune setup enrols it; by hand: this file as devices/NAME.pub in the host's ~/.config/edgeprune")
