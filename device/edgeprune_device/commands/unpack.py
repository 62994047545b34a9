"""The command `edgeprune unpack`."""

from __future__ import annotations

import os
import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune_device.commands import add_bundle, find_bundle
from edgeprune_device.errors import InputError, reason
from edgeprune_device.option import File, Option, named

if TYPE_CHECKING:
    from edgeprune_device.trust.bundle import Bundle

OUT = Option("out", File(), "folder to create (default: a folder with the bundle's name)", metavar="FOLDER")
HELP = "verify a bundle and write its files into a new folder"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add_bundle(parser, "bundle to unpack (default: the only *.epb here, else the newest runs/*/*.epb)")
    OUT.add(parser)


def run(args: Namespace) -> None:
    """Verify the bundle, then unpack it."""
    from edgeprune_device.printable import printable
    from edgeprune_device.trust.bundle import Bundle

    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    folder = args.out or Path(bundle.manifest.name)
    unpack(bundle, folder)
    print(f"{printable(str(folder))}: {len(bundle.payloads)} files and manifest.json, {_signer(bundle)}")


def unpack(bundle: Bundle, folder: Path) -> None:
    """Write all payloads, byte for byte, and manifest.json into a folder, which appears complete or not at all.

    Args:
        bundle: The bundle.
        folder: The new folder.

    Raises:
        InputError: The path exists and is not an empty folder, a payload is named manifest.json, or the folder cannot
            be written.
    """
    from edgeprune_device import strict_json
    from edgeprune_device.files import sync_folder, write_atomic

    folder = Path(folder)
    _check_free(folder)
    if any(name.lower() == "manifest.json" for name in bundle.payloads):
        raise InputError(
            f"{bundle.path}: cannot be unpacked, because a payload has the name of unpack's own file, manifest.json"
        )
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name[:80]}.", suffix=".tmp", dir=str(folder.parent)))
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({reason(error)})") from error
    try:
        for name in bundle.payloads:
            bundle.extract(name, temporary / name)
        write_atomic(temporary / "manifest.json", strict_json.pretty(bundle.manifest.to_json()))
        temporary.chmod(0o755)
        _check_free(folder)  # a file may have appeared in the meantime; rename itself replaces only an empty folder
        os.rename(str(temporary), str(folder))
        sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({reason(error)})") from error
    finally:
        shutil.rmtree(str(temporary), ignore_errors=True)


def _check_free(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: already exists and is not a folder; give another path with {named('out')}")
    if folder.is_dir() and os.listdir(str(folder)):
        raise InputError(f"{folder}: not empty; give a new folder with {named('out')}")


def _signer(bundle: Bundle) -> str:
    return f"signed by {bundle.key_fingerprint}" + ("" if bundle.trusted else ", which is NOT TRUSTED here")
