"""edgeprune pack"""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "make an arm64 container of a base image and a bundle"


def configure(parser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="an .epb file that `edgeprune build` wrote")
    parser.add_argument("--format", choices=("oci",), default="oci", help="(default oci, an OCI archive)")
    parser.add_argument(
        "--base", type=Path, required=True, metavar="PATH",
        help="the image to build on: an OCI layout, a folder or a tar archive (skopeo copy SOURCE oci-archive:base.tar)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the tar archive to write")
    parser.add_argument(
        "--root", default="/opt/edgeprune", metavar="FOLDER", help="of the releases (default /opt/edgeprune)"
    )
    parser.add_argument(
        "--source", help="make the service the container's entry point, on this camera, video or folder"
    )
    parser.add_argument("--output", help="where its detections go: -, a file or unix:PATH (default -)")
    parser.add_argument("--no-agent", action="store_true", help="the base has an agent already")
    parser.add_argument("--allow-untrusted", action="store_true", help="also a bundle whose key is not trusted here")


def run(args) -> None:
    import sys

    from edgeprune_device.bundle import Bundle

    from edgeprune.deploy import oci

    settings = options.settings(args)
    bundle = Bundle.open(args.bundle, allow_untrusted=args.allow_untrusted)
    oci.pack(bundle, args.base, args.out, settings, lambda text: print(text, file=sys.stderr, flush=True))
