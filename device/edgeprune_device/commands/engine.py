"""edgeprune engine"""

from __future__ import annotations

from pathlib import Path

from edgeprune_device.commands import add_bundle, add_cuda, find_bundle

HELP = "build a bundle's TensorRT engines on this machine, for bench and for trtexec --loadEngine"


def configure(parser) -> None:
    """Options."""
    add_bundle(parser, "default: the only *.epb here, else the newest runs/*/*.epb")
    parser.add_argument(
        "--precision",
        default="auto",
        help="auto (the fastest that this TensorRT takes), all, or a list such as fp16,int8; default auto",
    )
    add_cuda(parser)
    parser.add_argument("--rebuild", action="store_true", help="build anew what is in the cache")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="copy the raw plans and their metadata there")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args) -> None:
    """Verify, build or take from the cache, show."""
    from edgeprune_device import cuda, files, strict_json
    from edgeprune_device.bundle import Bundle
    from edgeprune_device.engine import Request, cache
    from edgeprune_device.errors import InputError
    from edgeprune_device.progress import Line

    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    if args.out is not None and not args.out.is_dir():
        raise InputError(f"{args.out}: no such folder; make it first")
    runtime, library = _library()
    precisions = _precisions(bundle.manifest, runtime, args.precision)
    with cuda.open(args.cuda) as gpu:
        device = gpu.device()
    kept, rows = cache.Cache(), []
    for precision in precisions:
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

            def show(share, what, precision=precision, say=say):
                say(f"{precision}: {share:.0%} ({what})")

            engine = kept.engine(request, device, rebuild=args.rebuild, progress=show)
        if args.out is not None:
            name = f"{bundle.manifest.name}.{precision}"
            files.write_atomic(args.out / f"{name}.plan", engine.plan)
            files.write_atomic(args.out / f"{name}.json", strict_json.pretty(engine.to_json()))
        rows.append(engine)
    if args.json:
        described = [{**e.to_json(), "path": str(e.path) if e.path else None, "cached": e.cached} for e in rows]
        print(strict_json.pretty(described), end="")
    else:
        print(_table(rows, device), end="")


def _library():
    """(runtime, NVIDIA's module) of the first that can build here. RuntimeUnavailable, with TensorRT's reason, else."""
    from edgeprune_device.errors import RuntimeUnavailable
    from edgeprune_device.runtimes import rtx, trt

    why = trt.available()
    if why is None:
        return "trt", trt.LIBRARY
    if rtx.available() is None:
        return "rtx", rtx.LIBRARY
    raise RuntimeUnavailable(f"no engine can be built here: {why}")


def _precisions(manifest, runtime: str, asked: str):
    from edgeprune_device import benchmark, runtimes

    if asked == "all":
        known = runtimes.order(runtime, int8_for_cpu=benchmark.int8_is_for_cpu(manifest))
        return [p for p in known if manifest.models.get(p, {}).get("payload")]
    return list(dict.fromkeys(benchmark.choose_precision(manifest, runtime, p) for p in asked.split(",")))


def _table(engines, device) -> str:
    rows = [("precision", "MB", "parse s", "build s", "", "layers kept FP32", "plan")]
    for e in engines:
        times = f"{e.parse_seconds:.1f}", f"{e.build_seconds:.1f}"
        where = str(e.path) if e.path else "-"
        size = f"{e.size_bytes / 1e6:.1f}"
        rows.append((e.precision, size, *times, "cached" if e.cached else "built", str(e.fp32_layers), where))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.append(f"by {engines[0].builder} for {device.name} (SM {device.sm})")
    lines += [f"{e.precision}: {warning}" for e in engines for warning in e.warnings]
    return "\n".join(lines) + "\n"
