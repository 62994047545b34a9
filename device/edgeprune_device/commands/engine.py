"""The command `edgeprune engine`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, List, Sequence, Tuple

from edgeprune_device.commands import add, add_bundle, find_bundle, host
from edgeprune_device.option import File, Flag, Option, Text
from edgeprune_device.options import CUDA, JSON, WORKSPACE

if TYPE_CHECKING:
    from edgeprune_device.cuda import Device
    from edgeprune_device.engine import Engine
    from edgeprune_device.engine.cache import Cache
    from edgeprune_device.trust.bundle import Bundle
    from edgeprune_device.trust.manifest import Manifest

OPTIONS = (
    Option("precision", Text(), "auto (the fastest that this TensorRT supports), all, or a list such as fp16,int8 "
           "(default: auto; all with --on)", metavar="LIST"),
    CUDA,
    WORKSPACE,
    Option("rebuild", Flag(), "rebuild engines that are already cached", default=False),
    Option("out", File(), "existing folder for copies of the raw plans and their metadata; with --on: path of the new "
           "bundle (default: beside the input bundle)", metavar="PATH"),
    Option("on", Text(), "on the host: build and measure on this device, and write a bundle with the results",
           metavar="user@jetson"),
    JSON.but(help="print JSON instead of a table"),
)  # fmt: skip

HELP = "build a bundle's TensorRT engines on this machine, for bench and for trtexec --loadEngine"


def configure(parser: ArgumentParser) -> None:
    """Add the options."""
    add_bundle(parser, "bundle to build engines of (default: the only *.epb here, else the newest runs/*/*.epb)")
    add(parser, OPTIONS)


def run(args: Namespace) -> None:
    """Verify the bundle, build its engines or take them from the cache, and show them; or let another device do it."""
    if args.on is not None:
        host("on").run(args)
    else:
        _here(args)


def _here(args: Namespace) -> None:
    from edgeprune_device import cuda, files, strict_json
    from edgeprune_device.engine import cache
    from edgeprune_device.errors import DeviceError, GateError, InputError, SignatureError
    from edgeprune_device.trust.bundle import Bundle

    bundle = Bundle.open(find_bundle(args.bundle), allow_untrusted=args.allow_untrusted)
    if args.out is not None and not args.out.is_dir():
        raise InputError(f"{args.out}: no such folder; create it first")
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
            refused[precision] = error  # only this file failed; the others may suffice
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


def _engine(bundle: Bundle, precision: str, library: str, kept: Cache, device: Device, args: Namespace) -> Engine:
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

        def show(share: float, what: str) -> None:
            say(f"{precision}: {share:.0%} ({what})")

        offers = offer.of(bundle, precision)
        return kept.engine(request, device, offers=offers, rebuild=args.rebuild, progress=show)


def _library() -> Tuple[str, str]:
    """Find the first runtime that can build engines here: (runtime, NVIDIA's module).

    Raises RuntimeUnavailable, with TensorRT's reason, if there is none.
    """
    from edgeprune_device.errors import RuntimeUnavailable
    from edgeprune_device.runtimes import rtx, trt

    why = trt.available()
    if why is None:
        return "trt", trt.LIBRARY
    if rtx.available() is None:
        return "rtx", rtx.LIBRARY
    raise RuntimeUnavailable(f"TensorRT: no engine can be built here ({why})")


def _precisions(manifest: Manifest, runtime: str, asked: str) -> List[str]:
    from edgeprune_device import runtimes
    from edgeprune_device.benchmark.precision import choose_precision, int8_is_for_cpu

    if asked == "all":
        known = runtimes.order(runtime, int8_for_cpu=int8_is_for_cpu(manifest))
        return [p for p in known if manifest.models.get(p, {}).get("payload")]
    return list(dict.fromkeys(choose_precision(manifest, runtime, p) for p in asked.split(",")))


def _table(engines: Sequence[Engine], device: Device) -> str:
    from edgeprune_device import table

    rows = [("precision", "MB", "parse s", "build s", "", "layers kept FP32", "plan")]
    for e in engines:
        times = f"{e.parse_seconds:.1f}", f"{e.build_seconds:.1f}"
        where = str(e.path) if e.path else "-"
        size = f"{e.size_bytes / 1e6:.1f}"
        how = "adopted" if e.adopted_from else "cached" if e.cached else "built"
        rows.append((e.precision, size, *times, how, str(e.fp32_layers), where))
    lines = table.rows(rows)
    lines.append(f"by {engines[0].builder} for {device.name} (SM {device.sm})")
    lines += [f"{e.precision}: {warning}" for e in engines for warning in e.warnings]
    return "\n".join(lines) + "\n"
