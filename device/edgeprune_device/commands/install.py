"""The command `edgeprune install`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune_device.commands import add, find_bundle
from edgeprune_device.option import Flag, Option, Text, named
from edgeprune_device.options import (
    ALLOW_OLDER,
    ALLOW_UNTRUSTED,
    HEALTH,
    INSTALL_MAX_DROP,
    JSON,
    KEEP,
    LIMIT,
    OUTPUT,
    PRECISION,
    RELEASES,
    RUNTIME,
    SOURCE,
    UNIT,
)

if TYPE_CHECKING:
    from edgeprune_device.releases import Releases

#: Options that describe how to install, see `InstallOptions`.
SETTINGS = (
    PRECISION,
    RUNTIME,
    INSTALL_MAX_DROP,
    KEEP,
    HEALTH,
    LIMIT,
    UNIT,
    SOURCE.but(help="write edgeprune.service, which runs the release on this camera, video or folder", default=None),
    OUTPUT.but(help="with --source: destination of its detections: -, a file, or unix:PATH (default: -, the journal)",
               default=None),
    ALLOW_UNTRUSTED,
    ALLOW_OLDER,
)  # fmt: skip
OPTIONS = (
    Option("incoming", Text(), "instead of BUNDLE: install the upload with this hash from edgeprune deploy",
           metavar="SHA256"),
    RELEASES,
    *SETTINGS,
    Option("ticket", Text(), "ID of this installation: a second request with the same ID only follows the first",
           metavar="TEXT"),
    Option("abort", Flag(), "abort the installation in progress; the release in use stays in use",
           default=False),
    JSON.but(help="print one JSON object per step, with the result last"),
)  # fmt: skip
HELP = "install a bundle on this device: verify it, measure it, switch to it, and roll back on failure"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="?", type=Path,
        help="bundle to install (default: the only *.epb here, else the newest runs/*/*.epb)",
    )  # fmt: skip
    add(parser, OPTIONS)


def run(args: Namespace) -> int:
    """Start the installation in a separate process, follow it, and return its exit code."""
    import re

    from edgeprune_device import printable
    from edgeprune_device.errors import InputError
    from edgeprune_device.hint import no_such_file
    from edgeprune_device.installation import detached, install, root
    from edgeprune_device.installation.options import InstallOptions
    from edgeprune_device.releases import Releases

    if args.output is not None and args.source is None:
        raise InputError(f"{named('output')}: needs {named('source')}, which writes the unit; give both, or neither")
    if args.source is not None and args.unit is not None:
        raise InputError(
            f"{named('source')} writes edgeprune.service, but {named('unit')} names another unit; give one of the two"
        )
    if args.incoming is not None and args.bundle is not None:
        raise InputError(f"BUNDLE and {named('incoming')}: cannot be combined; give one of the two")
    if args.incoming is not None and not re.fullmatch("[0-9a-f]{64}", args.incoming):
        raise InputError(
            f"{named('incoming', printable.printable(args.incoming[:80]))}: invalid value (expected a SHA-256, 64 "
            "hexadecimal digits)"
        )
    if args.ticket is not None and not re.fullmatch("[0-9A-Za-z]{8,64}", args.ticket):
        raise InputError(f"{named('ticket')}: invalid value (expected 8 to 64 letters and digits)")
    releases = Releases(args.root)
    if args.abort:
        if args.bundle is not None or args.incoming is not None:
            raise InputError(f"{named('abort', True)}: cannot be combined with a bundle; leave out one of the two")
        _abort(releases, args.json)
        return 0
    options = InstallOptions(
        precision=args.precision,
        runtime=args.runtime,
        max_drop=args.max_drop,
        keep=args.keep,
        health_s=args.health,
        limit_s=args.limit,
        unit=args.unit,
        source=args.source,
        output=args.output,
        allow_untrusted=args.allow_untrusted,
        allow_older=args.allow_older,
    )
    if args.incoming is not None:
        source = releases.root / "incoming" / args.incoming
    else:
        source = Path(find_bundle(args.bundle)).absolute()
        if not source.is_file():
            raise InputError(no_such_file(source))
    root.make_root(releases.root)
    return detached.run(
        releases,
        lambda say: install.install(releases, source, options, say),
        request=[str(source), *map(str, vars(options).values())],
        ticket=args.ticket,
        as_json=args.json,
    )


def _abort(releases: Releases, as_json: bool) -> None:
    """Abort the installation in progress, and print the release in use."""
    import json

    from edgeprune_device.installation import detached, judge

    ended, now = detached.abort(releases), judge.current(releases)
    if as_json:
        print(json.dumps({"aborted": ended, "current": None if now is None else now.identity}))
        return
    print(f"installation aborted; release in use: {now or 'none'}" if ended else "no installation is in progress")
