"""The command `edgeprune engine`."""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.commands import add_bundle, add_cuda, find_bundle, host

HELP = "build a bundle's TensorRT engines on this machine, for bench and for trtexec --loadEngine"


def configure(parser) -> None:
    """Add the options."""
    add_bundle(parser, "default: the only *.epb here, else the newest runs/*/*.epb")
    parser.add_argument(
        "--precision",
        help="auto (the fastest that its TensorRT takes), all, or a list such as fp16,int8; default auto; --on: all",
    )
    add_cuda(parser)
    parser.add_argument("--rebuild", action="store_true", help="build anew what is in the cache")
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        help="a folder for copies of the raw plans and their metadata; with --on the new bundle, by default beside it",
    )
    parser.add_argument(
        "--on",
        metavar="user@jetson",
        help="on the host: let this device build and measure, and write a bundle that brings its engines and figures",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args) -> None:
    """Verify the bundle, build its engines or take them from the cache, and show them; or let another device do it."""
    if args.on is not None:
        return host("on").run(args)
    return _here(args)


def _here(args) -> None:
    from edgeprune_device import cuda, files, strict_json
    from edgeprune_device.engine import cache
    from edgeprune_device.errors import DeviceError, GateError, InputError, SignatureError
    from edgeprune_device.trust.bundle import Bundle

    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    if args.out is not None and not args.out.is_dir():
        raise InputError(f"{args.out}: no such folder; make it first")
    runtime, library = _library()
    precisions = _precisions(bundle.manifest, runtime, args.precision or "auto")
    with cuda.open(args.cuda) as gpu:
        device = gpu.device()
    kept, rows, refused = cache.Cache(), [], {}
    for precision in precisions:
        try:
            engine = _engine(bundle, precision, library, kept, device, args)
        except (DeviceError, GateError) as error:
            if len(precisions) == 1 or isinstance(error, SignatureError):
                raise
            refused[precision] = error  # of this file: the others may be all that is needed
            continue
        if args.out is not None:
            name = f"{bundle.manifest.name}.{precision}"
            files.write_atomic(args.out / f"{name}.plan", engine.plan)
            files.write_atomic(args.out / f"{name}.json", strict_json.pretty(engine.to_json()))
        rows.append(engine)
    if args.json:
        more = [{"path": str(e.path) if e.path else None, "cached": e.cached, "key": e.key} for e in rows]
        described = [{**e.to_json(), **m, "runtime": runtime} for e, m in zip(rows, more)]
        described += [{"precision": precision, "reason": str(error)} for precision, error in refused.items()]
        print(strict_json.pretty(described), end="")
    elif rows:
        print(_table(rows, device), end="")
    if refused:
        first = next(iter(refused.values()))
        raise type(first)("; ".join(map(str, refused.values())))


def _engine(bundle, precision: str, library: str, kept, device, args):
    from edgeprune_device.engine import Request, offer
    from edgeprune_device.progress import Line

    entry = bundle.manifest.models[precision]
    request = Request(
        bundle.read(entry["payload"]),
        precision,
        fp32_nodes=tuple(entry.get("fp32_nodes", ())),
        workspace_bytes=args.workspace * 10**6 if args.workspace else None,
        library=library,
        cuda=args.cuda,
        name=f"{bundle.path}: {entry['payload']}",
    )
    with Line() as say:

        def show(share, what):
            say(f"{precision}: {share:.0%} ({what})")

        offers = offer.of(bundle, precision)
        return kept.engine(request, device, offers=offers, rebuild=args.rebuild, progress=show)


def _library():
    """(runtime, NVIDIA's module) of the first runtime that can build here.

    RuntimeUnavailable, with TensorRT's reason, where there is none.
    """
    from edgeprune_device.errors import RuntimeUnavailable
    from edgeprune_device.runtimes import rtx, trt

    why = trt.available()
    if why is None:
        return "trt", trt.LIBRARY
    if rtx.available() is None:
        return "rtx", rtx.LIBRARY
    raise RuntimeUnavailable(f"no engine can be built here: {why}")


def _precisions(manifest, runtime: str, asked: str):
    from edgeprune_device import runtimes
    from edgeprune_device.benchmark.precision import choose_precision, int8_is_for_cpu

    if asked == "all":
        known = runtimes.order(runtime, int8_for_cpu=int8_is_for_cpu(manifest))
        return [p for p in known if manifest.models.get(p, {}).get("payload")]
    return list(dict.fromkeys(choose_precision(manifest, runtime, p) for p in asked.split(",")))


def _table(engines, device) -> str:
    rows = [("precision", "MB", "parse s", "build s", "", "layers kept FP32", "plan")]
    for e in engines:
        times = f"{e.parse_seconds:.1f}", f"{e.build_seconds:.1f}"
        where = str(e.path) if e.path else "-"
        size = f"{e.size_bytes / 1e6:.1f}"
        how = "adopted" if e.adopted_from else "cached" if e.cached else "built"
        rows.append((e.precision, size, *times, how, str(e.fp32_layers), where))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.append(f"by {engines[0].builder} for {device.name} (SM {device.sm})")
    lines += [f"{e.precision}: {warning}" for e in engines for warning in e.warnings]
    return "\n".join(lines) + "\n"
