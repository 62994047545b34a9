"""The command `edgeprune targets`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune_device.options import JSON

HELP = "list the target devices"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    JSON.add(parser)


def run(args: Namespace) -> None:
    """Print every target."""
    from edgeprune_device import strict_json, table
    from edgeprune_device.target import Target

    targets = [Target.load(name) for name in Target.names()]
    if args.json:
        print(strict_json.pretty([target.to_json() for target in targets]), end="")
        return
    rows = [("target", "device", "SM", "TensorRT", "models")]
    for target in targets:
        releases = ", ".join(release.tensorrt for release in target.jetpacks)
        rows.append((target.name, target.title, target.sm or "-", releases or "-", ", ".join(target.precisions)))
    print("\n".join(table.rows(rows)))
    print(
        "\nFor a target of your own, copy one of these (edgeprune targets --json), change it, and give --target "
        "FILE.json"
    )
