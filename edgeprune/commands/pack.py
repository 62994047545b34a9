"""The `edgeprune pack` command: it gives a container an entry point, as `deploy --source` writes a unit."""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "make an arm64 container of a base image and a bundle"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune pack`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="an .epb file that `edgeprune build` wrote")
    parser.add_argument("--format", choices=("oci",), default="oci", help="(default oci, an OCI archive)")
    parser.add_argument(
        "--base", type=Path, required=True, metavar="PATH",
        help="what to build on: an OCI layout, a folder or a tar archive (skopeo copy SOURCE oci-archive:base.tar)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tar archive to write")
    options.deployment(parser)


def run(args) -> None:
    """Run `edgeprune pack` with parsed arguments, and print the result."""
    import sys

    from edgeprune_device.trust.bundle import Bundle

    from edgeprune.drones.deploy import oci

    settings = options.settings(args)
    bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
    oci.pack(bundle, args.base, args.out, settings, lambda text: print(text, file=sys.stderr, flush=True))
