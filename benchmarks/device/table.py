"""The result as a Markdown page."""

from __future__ import annotations

HEAD = (
    "| network, px | frame | boxes (anchors above the threshold) | Ultralytics, µs: pre + post "
    "| edgeprune, µs: pre + post | times as fast (5…95 %) | edgeprune without OpenCV, µs: pre + post "
    "| times as fast (5…95 %) |"
)


def line(row: dict) -> str:
    height, width = row["frame"]
    ours, alone = "ours", "ours without OpenCV"
    return (
        f"| {row['network']} {row['size']} | {width}x{height} | {row['detections']} ({row['candidates']}) "
        f"| {_both(row, 'Ultralytics')} | {_both(row, ours)} | {_factor(row, ours)} "
        f"| {_both(row, alone)} | {_factor(row, alone)} |"
    )


def of(result: dict) -> str:
    rows, versions = result["rows"], ", ".join(f"{k} {v}" for k, v in result["versions"].items())
    thresholds = ", ".join(f"{k} {v:g}" for k, v in result["thresholds"].items())
    lines = [
        "# Pre- and post-processing compared with Ultralytics'",
        "",
        "*pre* is letterbox and normalisation, *post* is decoding of the raw output and NMS. Both implementations run "
        f"alternately, with one thread, for {result['rounds']} rounds; {thresholds}. Times are medians. *Times as "
        "fast* is the median over the rounds, with the 5 % and 95 % quantiles in brackets. Ultralytics needs OpenCV, "
        "so edgeprune without OpenCV is also compared with Ultralytics with OpenCV.",
        "",
        f"{result['machine']}, CPU {result['cpus']}, load average {result['load_average'][0]:.1f} before, "
        f"{result['load_average'][1]:.1f} after. {versions}. Commit {result['commit']}.",
        "",
        HEAD,
        "| --- " * (HEAD.count("|") - 1) + "|",
        *map(line, rows),
        "",
    ]
    for name in ("ours", "ours without OpenCV"):
        for count in sorted({row["detections"] for row in rows}):
            of_count = sorted((row["factor"][name], *_where(row)) for row in rows if row["detections"] == count)
            slowest, middle, best = of_count[0], of_count[len(of_count) // 2], of_count[-1]
            lines.append(
                f"- {name.replace('ours', 'edgeprune')}, {count} boxes: {middle[0]:.2f} times as fast in the median; "
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
