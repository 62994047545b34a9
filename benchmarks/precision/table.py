"""The result as a Markdown page."""

from __future__ import annotations


def of(result: dict) -> str:
    made, rows = result["made"], result["rows"]
    versions = ", ".join(f"{k} {v}" for k, v in result["versions"].items() if v)
    lines = [
        f"# Precisions of {result['weights']}",
        "",
        f"Input size {result['imgsz']} px. Accuracy is measured on {result['pictures']} images of {result['data']} "
        f"({result['boxes']} boxes) that were not used to make the files. Differences are in mAP points, with the 95 % "
        "interval of a paired bootstrap over images in brackets. Latency is measured alternately, with one thread.",
        "",
        f"{result['machine']}. {versions}. Commit {result['commit']}.",
        "",
        "| file | runtime | mAP50-95 | difference to FP32 | difference to FP16 | mAP50-95, small objects | p50, ms "
        "| speed relative to FP32 | ONNX parser and builder of TensorRT for RTX |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        took, nvidia = row["latency_ms"], row["nvidia"]
        small, name = row["small_map50_95"], row["name"].replace("ours", "edgeprune")
        lines.append(
            f"| {name} | {row['runtime']} | {100 * row['map50_95']:.2f} | {_signed(row['minus']['fp32'])} "
            f"| {_signed(row['minus']['ours fp16'])} | {'-' if small is None else f'{100 * small:.2f}'} "
            f"| {took['p50'] if took else 'not measured'} | {took['speedup'] if took else '-'} | {_built(nvidia)} |"
        )
    lines.append("")
    for data, record in made.items():
        for target in ("jetson-orin", "cpu"):
            int8 = record[target]
            fallen_back = ", ".join(r["layer"] for r in int8["rescued"]) or "none"
            lines.append(
                f"- INT8 for {target}, {data}: calibration method {int8['method']}; {int8['share_of_macs']:.1%} of the "
                f"MACs in INT8; {int8['weight_bits']}-bit weights. Layer fallback, for a limit of "
                f"{result['max_drop']:g} on {record['selection_pictures']} training images: {fallen_back}."
            )
    parity = result["fp16_parity"]
    lines.append(
        f"- FP16 compared with FP32, for {parity['anchors']} anchors with a score of at least 0.25: the boxes differ "
        f"by at most {parity['max_box_px']:.3f} px (99.9 % of them by at most {parity['p999_box_px']:.3f} px), the "
        f"scores by at most {parity['max_score']:.4f} (99.9 % by at most {parity['p999_score']:.4f})."
    )
    return "\n".join(lines) + "\n"


def _signed(triple) -> str:
    return f"{100 * triple[0]:+.2f} ({100 * triple[1]:+.2f} … {100 * triple[2]:+.2f})"


def _words(reason: str) -> str:
    """The operator that the parser refuses."""
    return " ".join(reason.split("refuses it: ")[-1].split()[:2])


def _built(nvidia: dict | None) -> str:
    if nvidia is None:
        return "-"
    seconds = nvidia["seconds"]
    return f"built in {seconds:.1f} s" if seconds is not None else f"refused: {_words(nvidia['reason'])}"
