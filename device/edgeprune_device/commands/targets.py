"""The command `edgeprune targets`."""

from __future__ import annotations

HELP = "list the devices a bundle can be made for"


def configure(parser) -> None:
    """Add the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    """Print every target."""
    from edgeprune_device import strict_json
    from edgeprune_device.target import Target

    targets = [Target.load(name) for name in Target.names()]
    if args.json:
        print(strict_json.pretty([target.to_json() for target in targets]), end="")
        return
    rows = [("target", "device", "SM", "TensorRT", "models")]
    for target in targets:
        releases = ", ".join(release.tensorrt for release in target.jetpacks)
        rows.append((target.name, target.title, target.sm or "-", releases or "-", ", ".join(target.precisions)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("\nyour own: copy one of these as JSON (edgeprune targets --json), change it, and give --target FILE.json")
