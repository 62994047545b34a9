"""The result as a Markdown page."""

from __future__ import annotations


def of(result: dict) -> str:
    made, rows = result["made"], result["rows"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    lines = [
        f"{result['weights']}, {result['imgsz']} px, {result['pictures']} pictures that no file was made with, "
        f"{result['boxes']} boxes ({result['data']}). Differences in points; in brackets 95 % of a paired "
        f"bootstrap over pictures. Latency: one thread, in turns. {result['machine']}. {versions}. Commit "
        f"{result['commit']}.",
        "",
        "| file | run by | mAP50-95 | minus FP32 | minus FP16 | small | ms p50 | x FP32 | parsed, built by NVIDIA's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        took, nvidia = row["latency_ms"], row["nvidia"]
        small = row["small_map50_95"]
        lines.append(
            f"| {row['name']} | {row['runtime']} | {100 * row['map50_95']:.2f} | {_signed(row['minus']['fp32'])} "
            f"| {_signed(row['minus']['ours fp16'])} | {'-' if small is None else f'{100 * small:.2f}'} "
            f"| {took['p50'] if took else 'not measured'} | {took['speedup'] if took else '-'} | {_taken(nvidia)} |"
        )
    lines.append("")
    for data, said in made.items():
        for target in ("jetson-orin", "cpu"):
            int8 = said[target]
            rescued = ", ".join(r["layer"] for r in int8["rescued"]) or "none"
            lines.append(
                f"- {data}, {target}: calibration {int8['method']}, {int8['share_of_macs']:.1%} of MACs in INT8, "
                f"{int8['weight_bits']}-bit weights, "
                f"{len(int8['rescued'])} layers not in INT8 (limit {result['max_drop']:g} "
                f"on {said['selection_pictures']} training pictures): {rescued}"
            )
    parity = result["fp16_parity"]
    lines.append(
        f"- FP16 against FP32, {parity['anchors']} answers of at least 0.25: boxes within "
        f"{parity['max_box_px']:.3f} px (99.9 %: {parity['p999_box_px']:.3f}), scores within {parity['max_score']:.4f} "
        f"(99.9 %: {parity['p999_score']:.4f})"
    )
    return "\n".join(lines) + "\n"


def _signed(triple) -> str:
    return f"{100 * triple[0]:+.2f} ({100 * triple[1]:+.2f} … {100 * triple[2]:+.2f})"


def _words(reason: str) -> str:
    """The operator that NVIDIA's parser does not like."""
    return " ".join(reason.split("refuses it: ")[-1].split()[:2])


def _taken(nvidia: dict | None) -> str:
    if nvidia is None:
        return "-"
    return f"{nvidia['seconds']:.1f} s" if nvidia["seconds"] is not None else f"no: {_words(nvidia['reason'])}"
