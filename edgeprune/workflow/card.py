"""The summary at the end of `build`: figures before and after, gates, files, and the next commands."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeprune_device import table, terminal
from edgeprune_device.terminal import Look

from edgeprune.console.text import NOT_MEASURED, clock, number
from edgeprune.measuring import per_class
from edgeprune.model.head import NOTES
from edgeprune.workflow.record import gates

#: The figures before and after: (title, key in the record, format, (word for less, word for more)).
_SIZES: tuple[tuple[str, str, Callable[[float], str], tuple[str, str]], ...] = (
    ("parameters", "parameters", lambda v: f"{v / 1e6:.2f} M", ("fewer", "more")),
    ("MACs", "macs", lambda v: f"{v / 1e9:.2f} G", ("fewer", "more")),
    ("channels", "channels", lambda v: f"{v:,}", ("fewer", "more")),
    ("checkpoint", "size_bytes", lambda v: f"{v / 1e6:.2f} MB", ("smaller", "larger")),
)
_CLASS = 20  # columns for a class name
_ACCURACIES = (("mAP50-95", "map50_95"), ("mAP50", "map50"), ("small objects", "small_map50_95"))
_FILES = ("file", "size MB", "ms p50", "mAP50-95", "mAP50", "small", "against FP32")
#: Columns of the table of files in the order in which a narrow terminal drops them.
_LEAST = (5, 4, 2, 1)
_NO_CHANGE = ("the same", "+0.000", "-0.000")
_VERDICTS = {True: ("passed", ("green",)), False: ("FAILED", ("bold", "red")), None: ("not judged", ("yellow",))}


def show(record: Mapping[str, Any], out: Path) -> None:
    """Print the card in the width and colours that standard output supports.

    Args:
        record: the record of a finished build.
        out: the folder of the build.
    """
    width = terminal.columns(sys.stdout) if sys.stdout.isatty() else None
    print(card(record, out, terminal.look(sys.stdout), width))


def card(record: Mapping[str, Any], out: Path, look: Look = Look(), width: int | None = None) -> str:  # noqa: B008
    """Render the card as text.

    A figure that was not measured is left out, or is NOT_MEASURED in a table.

    Args:
        record: the content of build.json of a finished build.
        out: the folder of the build.
        look: the colours and characters to use; plain by default.
        width: columns of the terminal; tables leave out columns that do not fit. None: no limit.
    """
    stages = {stage["name"]: stage for stage in record["stages"]}
    options = record["inputs"]["options"]
    seconds = sum(stage["seconds"] for stage in record["stages"])
    sections = [
        [f"{look.style(options['name'], 'bold')}: {options['budget']} for {options['target']}, in {clock(seconds)}"],
        list(_glance(record["models"], look, width)),
        list(_files(record["models"], look, width)),
        [look.style("gates", "bold"), *_gates(record, look, width)],
        *_warnings(record, look),
        [line for note in _notes(record) for line in _wrapped(note, width)],
        [*_reference(stages.get("reference")), *_made(record, out, stages, look)],
        list(_next(out / stages["pack"]["bundle"], look, width)),
    ]
    return look.text("\n".join(["", *"\n\n".join("\n".join(lines) for lines in sections if lines).split("\n")]))


def _trained(models: Mapping[str, Any]) -> str:
    return "qat" if "qat" in models else "tuned"


# -- before and after --------------------------------------------------------------------------------------------------
def _glance(models: Mapping[str, Any], look: Look, width: int | None) -> Iterator[str]:
    name = _trained(models)
    before, after, fp32 = models["original"], models[name], models["fp32"]
    before = {**before, "size_bytes": before.get("stripped_size_bytes") or before["size_bytes"]}
    rows: list[tuple[str, str, str, str, bool]] = []
    for title, key, text, words in _SIZES:
        a, b = before[key], after[key]
        if a and b:
            rows.append((title, text(a), text(b), f"{_times(a / b, words)} ({b / a:.0%})", b < a))
    took = fp32["latency_ms"]
    if took and before["latency_ms"]:
        speed = _fast(took["speedup"])
        times = (f"{t['p50']:.1f} ms" for t in (before["latency_ms"], took))
        rows.append(("latency, FP32", *times, speed, took["speedup"] > 1))
    frames = before.get("fps_end_to_end"), fp32.get("fps_end_to_end")
    if all(frames):
        change = _fast(frames[1] / frames[0])
        rows.append(("FPS, FP32", *(f"{fps:.1f}" for fps in frames), change, frames[1] > frames[0]))
    for title, key in _ACCURACIES:
        a, b = before[key], after[key]
        if a is not None and b is not None:
            rows.append((title, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}", b >= a))
    if lost := per_class.worst(before.get("per_class"), after.get("per_class")):
        worst, a, b = lost
        title = f"worst class: {terminal.clipped(worst, _CLASS)}"
        rows.append((title, f"{a:.3f}", f"{b:.3f}", f"{b - a:+.3f}", False))
    cells = [("", "original", name), *(row[:3] for row in rows)]
    lines = table.rows(cells, figures=True)
    yield look.style(lines[0], "dim")
    for line, (*_, change, better) in zip(lines[1:], rows):
        # A lower accuracy is not a fault, but must be visible.
        colour = [] if change in _NO_CHANGE else ["green" if better else "yellow"]
        spare = width is None or len(line) + 2 + len(change) <= width
        yield f"{line}  {look.style(change, *colour) if spare else ''}".rstrip()


def _times(ratio: float, words: tuple[str, str]) -> str:
    if f"{ratio:.2f}" == "1.00":
        return _NO_CHANGE[0]
    return f"{ratio:.2f}x {words[0]}" if ratio > 1 else f"{1 / ratio:.2f}x {words[1]}"


def _fast(ratio: float) -> str:
    return _NO_CHANGE[0] if f"{ratio:.2f}" == "1.00" else f"{ratio:.2f}x as fast"


# -- the files ---------------------------------------------------------------------------------------------------------
def _files(models: Mapping[str, Any], look: Look, width: int | None) -> Iterator[str]:
    rows = [_FILES, *(_file(entry, models["fp32"]) for name, entry in models.items() if name != "original")]
    for column in _LEAST:
        if width is None or max(map(len, table.rows(rows, figures=True))) <= width:
            break
        rows = [(*row[:column], *row[column + 1 :]) for row in rows]
    head, *lines = table.rows(rows, figures=True)
    yield look.style(head, "dim")
    yield from lines


def _file(entry: Mapping[str, Any], fp32: Mapping[str, Any]) -> tuple[str, ...]:
    took, a, b = entry["latency_ms"], fp32["map50_95"], entry["map50_95"]
    against = NOT_MEASURED
    if entry is not fp32 and entry["path"].endswith(".onnx") and a is not None and b is not None:
        against = f"{b - a:+.4f}"
    return (
        entry["path"],
        number(entry["size_bytes"], 2, 1e6),
        number(took["p50"], 1) if took else NOT_MEASURED,
        *(number(entry[key], 3) for key in ("map50_95", "map50", "small_map50_95")),
        "" if entry is fp32 or not entry["path"].endswith(".onnx") else against,
    )


# -- gates ------------------------------------------------------------------------------------------------------------
def _gates(record: Mapping[str, Any], look: Look, width: int | None) -> Iterator[str]:
    for gate in gates(record):
        word, style = _VERDICTS[gate["passed"]]
        limit = f", limit: {gate['limit']}" if gate["limit"] else ""
        indent = len(word) + 4
        first, *more = _wrapped(f"{gate['name']}: {gate['found']}{limit}", width, indent)
        yield f"  {look.style(word, *style)}  {first}"
        yield from (f"{'':{indent}}{line}" for line in more)


def _wrapped(text: str, width: int | None, indent: int = 0) -> list[str]:
    """Wrap text between words if the width is known.

    Lines for pasting are not wrapped, because the line breaks would be pasted, too.
    """
    return [text] if width is None else textwrap.wrap(text, max(width - indent, 20), break_long_words=False) or [""]


def _warnings(record: Mapping[str, Any], look: Look) -> Iterator[list[str]]:
    if shared := record["pictures"]["train_in_val"]:
        text = f"{shared} validation images are also training images, so no mAP of this build can be trusted."
        yield [f"{look.style('WARNING:', 'bold', 'red')} {text}"]


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    pictures, models = record["pictures"], record["models"]
    total = pictures.get("val_total", pictures["val"])
    chosen = f"{pictures['val']} of {total} validation images, evenly spread" if total > pictures["val"] else ""
    images = chosen or f"{pictures['val']} validation images"
    yield f"mAP: {images}, {pictures['val_boxes']} boxes; COCO, conf 0.001, IoU 0.7."
    spreads = {name: entry.get("map50_95_interval") for name, entry in models.items()}
    if any(spreads.values()):
        texts = [f"{name} {spread[0]:.3f} to {spread[1]:.3f}" for name, spread in spreads.items() if spread]
        yield f"95 % intervals of mAP50-95: {', '.join(texts)}."
    if bare := pictures.get("unlabelled", {}).get("val"):
        yield f"{bare:,} validation images have no label file."
    if head := models["original"].get("head"):
        yield f"mAP measured with {NOTES.get(head, head)}."
    if models["fp32"]["latency_ms"]:
        yield (
            "ms: inference alone on this machine's CPU, 1 thread, ONNX Runtime, measured alternately; not the target's."
        )
    if models["fp32"].get("fps_end_to_end"):
        yield "FPS: on the same CPU, end to end: decode, letterbox, inference and boxes of a validation image."
    epochs = sum(stage.get("epochs", 0) for stage in record["stages"])
    many = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    yield (
        f"{many} of training can raise an unconverged original too; the fair control is `edgeprune finetune` of the "
        "original."
    )


def _reference(stage: Mapping[str, Any] | None) -> Iterator[str]:
    """The figures that the reference device measured on its engines."""
    for name, entry in stage["engines"].items() if stage else ():
        if entry["payload"] is None:
            yield f"engine   {name}: none ({entry['reason']})"
            continue
        b = entry["bench"]
        accuracy = "not measured" if b["map50_95"] is None else f"{b['map50_95']:.3f}"
        yield (
            f"engine   {name}: {b['infer_p50_ms']:.2f} ms p50 inference, {b['fps_end_to_end']:.1f} FPS end to end, "
            f"mAP50-95 {accuracy}, by {entry['builder']} on {entry['for']}; {b['verdict']}"
        )


# -- results, and the next commands ------------------------------------------------------------------------------------
def _made(record: Mapping[str, Any], out: Path, stages: Mapping[str, Any], look: Look) -> Iterator[str]:
    packed = stages["pack"]
    yield f"bundle   {look.style(str(out / packed['bundle']), 'bold')}  (signed by {packed['signed_by']})"
    if record.get("page"):
        yield f"page     {look.style(str(out / record['page']), 'bold')}  (opens in any browser)"


def _next(bundle: Path, look: Look, width: int | None) -> Iterator[str]:
    """The next commands, ready to paste into a shell: the purpose of each follows in a comment."""
    path = shlex.quote(str(bundle))
    commands = (
        (f"edgeprune bench {path}", "measure it on this machine"),
        ("edgeprune setup user@drone", "once: installs the agent, exchanges keys"),
        (f"edgeprune deploy {path} user@drone", "measures it there before the switch"),
        ("edgeprune collect user@drone", "fetches its signed reports"),
    )
    for i, (command, purpose) in enumerate(commands):
        comment = f"  # {purpose}"
        if width is not None and 9 + len(command) + len(comment) > width:
            comment = ""
        yield f"{'next' if not i else '':<9}{look.style(command, 'cyan')}{look.style(comment, 'dim')}"
