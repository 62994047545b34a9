"""The result as a Markdown page."""

from __future__ import annotations

HEAD = (
    "| network, px | frame | boxes (candidates) | Ultralytics µs: pre + post | ours µs: pre + post | factor (5…95 %) "
    "| ours without OpenCV µs | factor (5…95 %) |"
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
        "Letterbox and normalisation (pre) plus decoding of the raw output and NMS (post), one thread each, in turns, "
        f"{result['rounds']} rounds; {thresholds}. µs: medians; factor: the median over rounds of how many times as "
        "fast as Ultralytics' own ours is, in brackets its 5 % and 95 % quantiles. Without OpenCV ours is compared "
        f"with Ultralytics with it, which cannot do without. {result['machine']}, CPU {result['cpus']}, load average "
        f"{result['load_average'][0]:.1f} before, {result['load_average'][1]:.1f} after. {versions}. Commit "
        f"{result['commit']}.",
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
                f"- {name}, {count} boxes: {slowest[0]:.2f} (least: {' '.join(slowest[1:])}), "
                f"{middle[0]:.2f} (median), {best[0]:.2f} (most: {' '.join(best[1:])})"
            )
    lines.append("")
    seen = {}
    for row in rows:
        seen[f"{row['network']} {row['size']}, {row['detections']}"] = f"{row['output']} ({row['candidates']} anchors)"
    made = "; ".join(f"{k}: {v}" for k, v in seen.items())
    lines.append(f"Outputs, and how many anchors are above the threshold: {made}.")
    return "\n".join(lines) + "\n"


def _where(row: dict) -> tuple[str, str]:
    return f"{row['network']} {row['size']},", "{1}x{0}".format(*row["frame"])


def _both(row: dict, name: str) -> str:
    return f"{row['pre_us'][name]:.0f} + {row['post_us'][name]:.0f}"


def _factor(row: dict, name: str) -> str:
    low, high = row["factor_5_95"][name]
    return f"{row['factor'][name]:.2f} ({low:.2f}…{high:.2f})"
