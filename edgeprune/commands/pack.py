"""The `edgeprune pack` command: it gives a container an entry point, as `deploy --source` writes a unit."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from edgeprune_device.option import Choice, File, Option

from edgeprune.commands import deployment

_OWN = (
    Option("format", Choice(("oci",)), "container format: {names}, an OCI archive", default="oci"),
    Option("base", File(), "base image: an OCI layout, as a folder or a tar archive (skopeo copy SOURCE "
           "oci-archive:base.tar)", metavar="PATH", required=True),
    Option("out", File(), "the tar archive to write", metavar="FILE", required=True),
)  # fmt: skip
HELP = "build an arm64 container image from a base image and a bundle"


def configure(parser: ArgumentParser) -> None:
    """Add the arguments and options of `edgeprune pack`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="an .epb file that `edgeprune build` wrote")
    for option in (*_OWN, *deployment.ANY):
        option.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune pack` with parsed arguments, and print the result."""
    import sys

    from edgeprune_device.trust.bundle import Bundle

    from edgeprune.drones.deploy import oci

    settings = deployment.settings(args)
    bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
    oci.pack(bundle, args.base, args.out, settings, lambda text: print(text, file=sys.stderr, flush=True))
