"""The `edgeprune compare` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from edgeprune.options import COMPARISON_JSON, HTML, CompareOptions, add, given, limited

HELP = "measure several models alternately in one run and compare them; --html writes a report"


def configure(parser: ArgumentParser) -> None:
    """Add the arguments and options of `edgeprune compare`."""
    parser.add_argument(
        "items", nargs="+", metavar="ITEM",
        help="a .pt or .onnx file, a bundle (.epb), a bench report (.json) or the ID of a collected report; the word "
        "'reports' selects all collected reports",
    )  # fmt: skip
    add(parser, CompareOptions)
    HTML.add(parser)
    COMPARISON_JSON.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune compare` with parsed arguments, and print the result."""
    from edgeprune_device.files import check_writable

    from edgeprune.api.compare import compare

    for path in (args.html, args.json):
        if path:
            check_writable(path)
    options = given(args, CompareOptions)
    if not (args.html or args.json):
        options["pictures"] = 0
    result = compare(*args.items, **options)
    if args.json:
        result.save_json(args.json)
    print(result)
    if args.html:
        with limited(options):  # the gallery decodes again
            print(f"page: {result.save_html(args.html)}")
