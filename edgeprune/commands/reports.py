"""The `edgeprune reports` command."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from edgeprune_device.option import File, Option
from edgeprune_device.options import JSON

if TYPE_CHECKING:
    from edgeprune.drones.store import Stored

_CSV = Option("csv", File(), "write the table as CSV", metavar="FILE")
HELP = "list the reports collected from drones, the latest first"

_COLUMNS = (
    "id", "device", "measured", "bundle", "precision", "runtime", "mode", "power mode", "infer p50 ms", "e2e p50 ms",
    "e2e p99 ms", "fps", "mJ/frame", "mAP50-95", "delta", "verdict",
)  # fmt: skip


def configure(parser: ArgumentParser) -> None:
    """Add the arguments and options of `edgeprune reports`."""
    _CSV.add(parser)
    JSON.add(parser)


def run(args: Namespace) -> None:
    """Run `edgeprune reports` with parsed arguments, and print the result."""
    import csv
    import io
    import sys

    from edgeprune_device import strict_json, table
    from edgeprune_device.errors import EdgepruneError, GateError
    from edgeprune_device.files import check_writable, write_atomic

    from edgeprune.drones.store import Store

    if args.csv:
        check_writable(args.csv)
    store, rows, broken = Store(), [], []
    for stored in store.entries():
        try:
            rows.append(row(stored))
        except (EdgepruneError, OSError) as error:
            broken.append(str(error))
    if args.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _inert(value) for key, value in line.items()} for line in rows)
        write_atomic(args.csv, text.getvalue())
    if args.json:
        print(strict_json.pretty({"folder": str(store.folder), "reports": rows}), end="")
    elif rows:
        shown = [["id", *_COLUMNS[1:]], *([_cell(key, line[key]) for key in _COLUMNS] for line in rows)]
        print("\n".join(table.rows(shown, figures=True)))
    else:
        print(f"no reports in {store.folder}; fetch them with edgeprune collect user@drone")
    for problem in broken:
        print(f"edgeprune: {problem}", file=sys.stderr)
    if broken:
        raise GateError(f"{len(broken)} of {len(rows) + len(broken)} reports cannot be read (see above)")


def row(stored: Stored) -> dict[str, Any]:
    """Make one line of the table from a stored report; a figure that was not measured is None.

    Args:
        stored: an entry of the store of reports.

    Raises:
        EdgepruneError: the report cannot be read, as in `Stored.read`.
    """
    report, receipt = stored.read(), stored.receipt
    accuracy, infer = report.accuracy, report.stages.get("infer", {})
    whole, mode = report.stages["end_to_end"], (report.preflight or {}).get("power_mode")
    return {
        "id": stored.id,
        "device": (receipt.device if receipt else None) or report.device["hostname"],
        "measured": (receipt.measured_at if receipt else None) or f"{report.created}?",
        "bundle": report.bundle["name"],
        "precision": report.precision,
        "runtime": report.runtime["name"],
        "mode": report.mode,
        "power mode": mode["name"] if mode else None,
        "infer p50 ms": infer.get("p50_ms"),
        "e2e p50 ms": whole["p50_ms"],
        "e2e p99 ms": whole["p99_ms"],
        "fps": report.fps_end_to_end,
        "mJ/frame": report.power["mj_per_frame_gross"] if report.power else None,
        "mAP50-95": accuracy.map50_95 if accuracy else None,
        "delta": report.map50_95_delta,
        "verdict": report.verdict["state"],
    }


def _inert(value: Any) -> Any:
    """Quote a text from the device that a spreadsheet would read as a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@" else value


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "id":
        return str(value)[:12]
    if isinstance(value, float):
        return f"{value:.4f}" if key in ("mAP50-95", "delta") else f"{value:.2f}"
    return str(value)
