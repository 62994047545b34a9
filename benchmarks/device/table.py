"""The result as a Markdown page."""

from __future__ import annotations

from statistics import median

from benchmarks.device.ways import OURS

HEAD = (
    "| network, px | frame | boxes (anchors above the threshold) | Ultralytics, µs: pre + post "
    + "".join(f"| {name}, µs: pre + post | times as fast (5…95 %) " for name in OURS)
    + "|"
)


def line(row: dict) -> str:
    height, width = row["frame"]
    return (
        f"| {row['network']} {row['size']} | {width}x{height} | {row['detections']} ({row['candidates']}) "
        f"| {_both(row, 'Ultralytics')} "
        + "".join(f"| {_both(row, name)} | {_factor(row, name)} " for name in OURS)
        + "|"
    )


def of(result: dict) -> str:
    rows, versions = result["rows"], ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    thresholds = ", ".join(f"{k} {v:g}" for k, v in result["thresholds"].items())
    lines = [
        "# Pre- and post-processing compared with Ultralytics'",
        "",
        "*pre* is letterbox and normalisation, *post* is decoding of the raw output and NMS. All implementations run "
        f"alternately, with one thread, for {result['rounds']} rounds; {thresholds}. Times are medians. *Times as "
        "fast* is the median over the rounds, with the 5 % and 95 % quantiles in brackets. Ultralytics needs OpenCV, "
        "so edgeprune without OpenCV is also compared with Ultralytics with OpenCV. *float* has the input and output "
        "of the stock files, *variant* those of the device variants, whose graph does the normalisation and the choice "
        "of the best 300 anchors; this work is then not part of the times.",
        "",
        f"{result['machine']}, CPU {result['cpus']}, load average {result['load_average'][0]:.1f} before, "
        f"{result['load_average'][1]:.1f} after. {versions}. Commit {result['commit']}.",
        "",
        HEAD,
        "| --- " * (HEAD.count("|") - 1) + "|",
        *map(line, rows),
        "",
    ]
    for name in OURS:
        factors, lows = ([row[key][name] for row in rows] for key in ("factor", "factor_5_95"))
        lines.append(
            f"- edgeprune, {name}: {median(factors):.2f} times as fast in the median of all {len(rows)} cases; the 5 % "
            f"quantile is above 1 in {sum(low > 1 for low, _ in lows)} of them."
        )
        for count in sorted({row["detections"] for row in rows}):
            of_count = sorted((row["factor"][name], *_where(row)) for row in rows if row["detections"] == count)
            slowest, middle, best = of_count[0], of_count[len(of_count) // 2], of_count[-1]
            lines.append(
                f"- edgeprune, {name}, {count} boxes: {middle[0]:.2f} times as fast in the median; "
                f"lowest {slowest[0]:.2f} ({' '.join(slowest[1:])}), highest {best[0]:.2f} ({' '.join(best[1:])})."
            )
    lines.append("")
    seen = {}
    for row in rows:
        seen[f"{row['network']} {row['size']}, {row['detections']}"] = f"{row['output']} ({row['candidates']} anchors)"
    made = "; ".join(f"{k}: {v}" for k, v in seen.items())
    lines.append(
        f"Outputs for each network and number of boxes, with the number of anchors above the threshold: {made}."
    )
    return "\n".join(lines) + "\n"


def _where(row: dict) -> tuple[str, str]:
    return f"{row['network']} {row['size']},", "{1}x{0}".format(*row["frame"])


def _both(row: dict, name: str) -> str:
    return f"{row['pre_us'][name]:.0f} + {row['post_us'][name]:.0f}"


def _factor(row: dict, name: str) -> str:
    low, high = row["factor_5_95"][name]
    return f"{row['factor'][name]:.2f} ({low:.2f}…{high:.2f})"
