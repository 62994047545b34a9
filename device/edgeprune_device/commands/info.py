"""The command `edgeprune info`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, Iterator

from edgeprune_device.commands import add_bundle
from edgeprune_device.options import JSON
from edgeprune_device.printable import printable

HELP = "show the runtimes of this machine, or the verified contents of a bundle"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add_bundle(parser, "a bundle to verify and show; without one, this machine is shown")
    JSON.add(parser)


def run(args: Namespace) -> None:
    """Print this machine or a bundle."""
    from edgeprune_device import strict_json

    data = describe_machine() if args.bundle is None else describe_bundle(args.bundle, args.allow_untrusted)
    if args.json:
        print(strict_json.pretty(data), end="")
    else:
        print("\n".join(_lines(_readable(data))))


def describe_machine() -> Dict[str, Any]:
    """Describe this machine.

    Returns:
        A JSON object: versions, machine, board, sensors with their current values (null if a sensor gives none),
            preflight, the conditions that distort a benchmark, runtimes ("available" or the reason why not), and keys.
    """
    from edgeprune_device import probes, runtimes, version
    from edgeprune_device.machine import board, preflight
    from edgeprune_device.machine.environment import Environment
    from edgeprune_device.trust import keys

    state = preflight.read()
    return {
        "edgeprune": version(),
        "machine": Environment.read().to_json(),
        "board": board.read().to_json(),
        "sensors": {channel.key: {"value": channel.read(), "unit": channel.unit} for channel in probes.discover()},
        "preflight": state.to_json(),
        "warnings": [*state.notes(), *state.warnings()],
        "runtimes": {name: reason or "available" for name, reason in runtimes.available().items()},
        "home": str(keys.home()),
        "own_key": next(iter(keys.own()), None),
        "trusted_keys": sorted(keys.trusted()),
    }


def describe_bundle(path: Path, allow_untrusted: bool) -> Dict[str, Any]:
    """Verify a bundle and describe it.

    Returns:
        A JSON object.
    """
    from edgeprune_device.trust.bundle import Bundle

    bundle = Bundle.open(path, allow_untrusted=allow_untrusted)
    return {
        "path": str(bundle.path),
        "sha256": bundle.sha256,
        "signed_by": bundle.key_fingerprint,
        "trusted": bundle.trusted,
        "manifest": bundle.manifest.to_json(),
    }


def _readable(data: Dict[str, Any]) -> Dict[str, Any]:
    """Replace the sensors and the preflight state with readable text; a bundle's contents stay unchanged."""
    from edgeprune_device.machine.preflight import Preflight

    if "preflight" not in data:
        return data
    sensors = {
        key: "no reading" if sensor["value"] is None else f"{sensor['value']:.12g} {sensor['unit']}"
        for key, sensor in data["sensors"].items()
    }
    return {**data, "sensors": sensors, "preflight": Preflight.from_json(data["preflight"]).described()}


def _lines(value: Any, indent: str = "") -> Iterator[str]:
    """A JSON value as indented text."""
    if isinstance(value, dict) and value:
        width = max(len(_plain(key)) for key in value) + 2
        for key, item in value.items():
            if isinstance(item, (dict, list)) and item and not _flat(item):
                yield f"{indent}{_plain(key)}"
                yield from _lines(item, indent + "  ")
            else:
                yield f"{indent}{_plain(key):<{width}}{_text(item)}"
    else:
        for item in value if isinstance(value, list) else [value]:
            yield f"{indent}{_text(item)}"


def _flat(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return not any(isinstance(item, (dict, list)) for item in items) and (isinstance(value, list) or len(value) <= 4)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_plain(key)} {_text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else _plain(value)


def _plain(value: object) -> str:
    return printable(str(value))  # a bundle's strings are not trusted
