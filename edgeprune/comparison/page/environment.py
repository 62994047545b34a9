"""The sections of machine, data set, files and build, and of the commands that repeat the measurement."""

from __future__ import annotations

from edgeprune.comparison.page import parts
from edgeprune.comparison.page.figures import NOT_MEASURED, number
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView


def reproduce(view: PageView) -> Markup:
    """Render the shell lines that measure the same."""
    commands = view.data.get("reproduce") or []
    if not commands:
        return parts.quiet("No command was recorded.")
    return tag("div", [tag("pre", tag("code", line), tabindex="0", class_="command") for line in commands])


def section(view: PageView) -> Markup:
    """Render the machine, the data set, the files and the build."""
    return join(_machine(view), _data(view), _files(view), _build(view))


def _machine(view: PageView) -> Markup:
    machine = view.data.get("machine") or {}
    memory = number(machine.get("memory_bytes"))
    pairs = [
        ("Processor", machine.get("cpu")), ("Cores", machine.get("cores")),
        ("Memory", None if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("System", machine.get("os")), ("Python", machine.get("python")), ("Measured", view.data.get("created")),
    ]  # fmt: skip
    packages = machine.get("packages") or {}
    versions = [tag("li", tag("b", name), " ", version or "not installed") for name, version in packages.items()]
    return join(
        tag("h3", "Machine"), _pairs(pairs),
        join(tag("h3", "Packages"), tag("ul", versions, class_="packages")) if versions else None,
    )  # fmt: skip


def _pairs(pairs: list[tuple]) -> Markup:
    known = [(name, value) for name, value in pairs if value is not None]
    return tag("dl", [[tag("dt", name), tag("dd", value)] for name, value in known], class_="pairs")


def _data(view: PageView) -> Markup:
    data = view.data.get("data")
    if not data:
        return join(tag("h3", "Data set"), parts.quiet("None: no accuracy was measured on this machine."))
    shared = data.get("train_in_val")
    pairs = [
        ("Path", data.get("path")), ("Pictures", _count(data.get("pictures"))), ("Boxes", _count(data.get("boxes"))),
        ("Trained on, too", "none of them" if shared == 0 else _count(shared)), ("sha256", _hash(data.get("sha256"))),
    ]  # fmt: skip
    return join(tag("h3", "Data set"), _pairs(pairs))


def _count(value) -> str | None:
    return None if number(value) is None else f"{value:,}"


def _hash(value: str | None) -> Markup | str:
    return tag("code", value, class_="hash") if value else "not known"


def _files(view: PageView) -> Markup:
    rows = [
        parts.row(
            item["name"], tag("td", tag("code", item.get("path") or "–", class_="hash"), class_="words"),
            f"{item['size_bytes']:,}" if number(item.get("size_bytes")) is not None else NOT_MEASURED,
            tag("td", _hash(item.get("sha256")), class_="words"),
        )
        for item in view.items
    ]  # fmt: skip
    return join(
        tag("h3", "Files"), parts.table("Files", ("Item", parts.left("Path"), "Bytes", parts.left("sha256")), rows)
    )


def _build(view: PageView) -> Markup | None:
    more = view.data.get("more")
    if not more:
        return None
    rescued = more.get("rescued")  # None: no INT8 was made
    pairs = [
        ("Bundle", more.get("bundle")), ("Signed by", more.get("signed_by")),
        ("Kept from INT8", None if rescued is None else ", ".join(rescued) or "no layer"),
    ]  # fmt: skip
    stages = [s for s in more.get("stages") or [] if number(s.get("seconds")) is not None]
    whole = sum(s["seconds"] for s in stages)
    longest = max((s["seconds"] for s in stages), default=0) or 1
    rows = [parts.row(s["name"], _seconds(s["seconds"]), tag("td", _bar(s["seconds"] / longest))) for s in stages]
    table = parts.table("Stages of the build", ("Stage", "Took", parts.left("Of the longest")), rows, class_="took")
    return join(
        tag("h3", "Build"), _pairs(pairs),
        parts.folded(f"Stages, {_seconds(whole)} in all", table) if stages else None,
    )  # fmt: skip


def _bar(share: float) -> Markup:
    now = tag("rect", y=1, width=f"{100 * share:.1f}%", height=8, class_="now")
    return tag("svg", now, width="100%", height=10, aria_hidden="true")


def _seconds(seconds: float) -> str:
    """Format seconds: 48.2 s, 3 min 20 s."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"
