"""The last thing `build` prints: what came out, before and after, and what to type next."""

from __future__ import annotations

from pathlib import Path

from edgeprune.text import aligned


def card(record: dict, out: Path) -> str:
    models = record["models"]
    head = ["", "params M", "GMACs", "channels", "size MB", "ms p50", "mAP50-95", "mAP50", "small"]
    rows = [head, *(_row(name, models[name]) for name in models)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    table = [aligned(row, widths) for row in rows]
    stages = {s["name"]: s for s in record["stages"]}
    bundle = out / stages["pack"]["bundle"]
    pictures = record["pictures"]
    epochs = sum(stage.get("epochs", 0) for stage in record["stages"])
    lines = [
        "",
        *table,
        "",
        f"mAP: {pictures['val']} validation pictures, {pictures['val_boxes']} boxes; COCO, conf 0.001, IoU 0.7.",
        f"ms: inference alone on this machine's CPU, 1 thread, ONNX Runtime; not the target's. {_speedup(models)}",
        f"{epochs} epochs of training can raise an unconverged original too; the fair control "
        "is `edgeprune finetune` of the original.",
        _pictures(pictures),
        *_reference(stages.get("reference")),
        f"bundle   {bundle}  (signed by {stages['pack']['signed_by']})",
        f"next     edgeprune bench {bundle}",
    ]
    return "\n".join(line for line in lines if line is not None)


def _reference(stage: dict | None) -> list[str]:
    """What the device that built the engines measured."""
    lines = []
    for name, entry in stage["engines"].items() if stage else ():
        if entry["payload"] is None:
            lines.append(f"engine   {name}: none ({entry['reason']})")
            continue
        b = entry["bench"]
        accuracy = "not measured" if b["map50_95"] is None else f"{b['map50_95']:.3f}"
        lines.append(
            f"engine   {name}: {b['infer_p50_ms']:.2f} ms p50 inference, {b['fps_end_to_end']:.1f} FPS end to end, "
            f"mAP50-95 {accuracy}, by {entry['builder']} on {entry['for']}; {b['verdict']}"
        )
    return lines


def _pictures(pictures: dict) -> str | None:
    if not pictures["train_in_val"]:
        return None
    shared = pictures["train_in_val"]
    return f"WARNING: {shared} validation pictures are training pictures too; no mAP here can be trusted."


def _speedup(models: dict) -> str:
    took = models["fp32"]["latency_ms"]
    return f"FP32 against the original, in turns: {took['speedup']:.2f}x." if took else ""


def _row(name: str, m: dict) -> list[str]:
    def number(value, scale=1.0, digits=2):
        return "-" if value is None else f"{value / scale:.{digits}f}"

    took = m["latency_ms"]
    return [
        name,
        number(m["parameters"], 1e6),
        number(m["macs"], 1e9),
        "-" if m["channels"] is None else str(m["channels"]),
        number(m.get("stripped_size_bytes") or m["size_bytes"], 1e6),
        "-" if took is None else number(took["p50"], digits=1),
        number(m["map50_95"], digits=3),
        number(m["map50"], digits=3),
        number(m["small_map50_95"], digits=3),
    ]
