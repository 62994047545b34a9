"""The sections on machine, data set, files and build, and on the commands that repeat the measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeprune.comparison.page import parts
from edgeprune.comparison.page.figures import NOT_MEASURED, number
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView


def reproduce(view: PageView) -> Markup:
    """Render the shell commands that repeat the measurement."""
    if not view.facts.reproduce:
        return parts.quiet("No command was recorded.")
    lines = [tag("pre", tag("code", line), tabindex="0", class_="command") for line in view.facts.reproduce]
    return tag("div", lines)


def section(view: PageView) -> Markup:
    """Render the machine, the data set, the files and the build."""
    return join(_machine(view), _data(view), _files(view), _build(view))


def _machine(view: PageView) -> Markup:
    machine = view.facts.machine
    memory = number(machine["memory_bytes"])
    pairs = [
        ("Processor", machine["cpu"]), ("Cores", machine["cores"]),
        ("Memory", None if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("System", machine["os"]), ("Python", machine["python"]), ("Measured", view.facts.created),
    ]  # fmt: skip
    versions = [
        tag("li", tag("b", name), " ", version or "not installed") for name, version in machine["packages"].items()
    ]
    return join(
        tag("h3", "Machine"), _pairs(pairs),
        join(tag("h3", "Packages"), tag("ul", versions, class_="packages")) if versions else None,
    )  # fmt: skip


def _pairs(pairs: Sequence[tuple[str, Any]]) -> Markup:
    known = [(name, value) for name, value in pairs if value is not None]
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in known], class_="pairs")


def _data(view: PageView) -> Markup:
    data = view.facts.data
    if not data:
        return join(tag("h3", "Data set"), parts.quiet("None: no accuracy was measured on this machine."))
    shared = data["train_in_val"]
    pairs = [
        ("Path", data["path"]), ("Images", _count(data["pictures"], data.get("total"))),
        ("Boxes", f"{data['boxes']:,}"),
        ("Also training images", "none" if shared == 0 else f"{shared:,}"), ("sha256", _hash(data["sha256"])),
        ("Without a label file", _by_split(data.get("unlabelled"))),
        ("Unusable and left out", _by_split(data.get("damaged"))),
    ]  # fmt: skip
    return join(tag("h3", "Data set"), _pairs(pairs))


def _count(images: int, total: int | None) -> str:
    return f"{images:,}" if total in (None, images) else f"{images:,} of {total:,}, evenly spread"


def _by_split(counts: Mapping[str, int] | None) -> str | None:
    """Numbers of training and validation images; None in the JSON of a version that did not count them."""
    if not counts:
        return None
    return f"{counts['train']:,} training and {counts['val']:,} validation images"


def _hash(value: str | None) -> Markup | str:
    return tag("code", value, class_="hash") if value else "unknown"


def _files(view: PageView) -> Markup:
    rows = [
        parts.row(
            item.name, tag("td", tag("code", item.path or "–", class_="hash"), class_="words"),
            NOT_MEASURED if item.size_bytes is None else f"{item.size_bytes:,}",
            tag("td", _hash(item.sha256), class_="words"),
        )
        for item in view.items
    ]  # fmt: skip
    return join(
        tag("h3", "Files"), parts.table("Files", ("Item", parts.left("Path"), "Bytes", parts.left("sha256")), rows)
    )


def _build(view: PageView) -> Markup | None:
    more = view.facts.more
    if not more:
        return None
    rescued = more["rescued"]  # None if no INT8 file was made
    pairs = [
        ("Bundle", more["bundle"]), ("Signed by", more["signed_by"]),
        ("Layer fallback", None if rescued is None else ", ".join(rescued) or "no layer"),
    ]  # fmt: skip
    stages = more["stages"]
    whole = sum(s["seconds"] for s in stages)
    longest = max((s["seconds"] for s in stages), default=0) or 1
    rows = [parts.row(s["name"], _seconds(s["seconds"]), tag("td", _bar(s["seconds"] / longest))) for s in stages]
    table = parts.table(
        "Stages of the build", ("Stage", "Time", parts.left("Relative to the longest")), rows, class_="took"
    )
    return join(
        tag("h3", "Build"), _pairs(pairs),
        parts.folded(f"Stages, {_seconds(whole)} in total", table) if stages else None,
    )  # fmt: skip


def _bar(share: float) -> Markup:
    now = tag("rect", y=1, width=f"{100 * share:.1f}%", height=8, class_="now")
    return tag("svg", now, width="100%", height=10, aria_hidden="true")


def _seconds(seconds: float) -> str:
    """Format seconds: 48.2 s, 3 min 20 s."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"
