"""The `edgeprune compare` command."""

from __future__ import annotations

from pathlib import Path

from edgeprune.commands import options

HELP = "several models side by side, measured in one run in turns; --html draws it"


def configure(parser) -> None:
    """Add the arguments and options of `edgeprune compare`."""
    parser.add_argument(
        "items", nargs="+", metavar="ITEM",
        help="a .pt, .onnx, bundle (.epb) or bench report (.json), the id of a collected report, or reports: all",
    )  # fmt: skip
    options.data(parser, required=False, text="as for build: mAP and objects found on its val pictures")
    options.imgsz(parser)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads for the timing (default 1)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="turns of the timing (default 40)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as one self-contained page too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON too")
    options.pictures(parser)
    options.quiet(parser)


def run(args) -> None:
    """Run `edgeprune compare` with parsed arguments, and print the result."""
    from edgeprune_device.errors import InputError
    from edgeprune_device.files import check_writable

    from edgeprune.api.compare import compare

    if args.html and args.html.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html {args.html}: a page ends in .html")
    if args.json and args.json.suffix.lower() != ".json":  # without this check `--json best.pt` would overwrite weights
        raise InputError(f"--json {args.json}: JSON ends in .json")
    for path in (args.html, args.json):
        if path:
            check_writable(path)
    result = compare(
        *args.items, data=args.data, imgsz=args.imgsz, threads=args.threads, rounds=args.rounds,
        pictures=args.pictures if args.html or args.json else min(args.pictures, 0), quiet=args.quiet,
    )  # fmt: skip
    if args.json:
        result.save_json(args.json)
    print(result)
    if args.html:
        print(f"page: {result.save_html(args.html)}")
