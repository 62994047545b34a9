"""The section of the full table: every item with every figure, and below it how each was measured."""

from __future__ import annotations

from edgeprune.comparison.page import figures, parts
from edgeprune.comparison.page.figures import FigureChange, number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, p50, place, same_pictures, setting, speedup
from edgeprune.model.head import NOTE

_HEAD = (
    "Item", "Size", "Parameters", "MACs", "p50", "Speed", "FPS", "mAP50-95", "Small", "mAP50", "Found", "mJ",
    "Channels", "Input", "p90", "FPS alone", "Run",
)  # fmt: skip


def section(view: PageView) -> Markup:
    """Render the table and the notes on the measurement."""
    return join(
        parts.table("All items", _HEAD, [_row(view, item) for item in view.items], class_="items"),
        parts.quiet(
            "Small print under a figure is its change against ",
            tag("b", view.first["name"]),
            "; – is not measured. Speed is measured in turns where it could be, so that both meet the same machine. ",
            "FPS is end to end, one picture after another; FPS alone is of the inference. Small is mAP50-95 of small ",
            "objects; found are objects of confidence 0.25 and more; mJ is energy per frame; Input is the side in px.",
        ),
        _notes(view),
    )  # fmt: skip


def _row(view: PageView, item: dict) -> Markup:
    first = view.first
    other = item is not first
    pictures = other and same_pictures(first, item)

    def cost(key: str, unit: str) -> Markup:
        value, on = view.network(item, key)
        change = figures.share(first.get(key), value, "less", "more") if other else None
        return _cell(value, unit, _percent(change), mark="°" if on else None)

    def precision(key: str) -> Markup:
        return _cell(item.get(key), "map", figures.accuracy(first.get(key), item.get(key)) if pictures else None)

    name = join(item["name"], [tag("span", flag, class_="flag") for flag in flags(item)])
    return parts.row(
        name, cost("size_bytes", "bytes"), cost("parameters", "count"), cost("macs", "count"), _cell(p50(item), "ms"),
        _speed(first, item), _cell(item.get("fps_end_to_end"), "fps"), precision("map50_95"),
        precision("small_map50_95"), precision("map50"), _cell(item.get("objects_found"), "int"),
        _cell(item.get("mj_per_frame"), "mj"), cost("channels", "int"), _cell(item.get("imgsz"), "int"),
        _cell((item.get("latency_ms") or {}).get("p90"), "ms"), _cell(item.get("fps_inference_only"), "fps"),
        item.get("verdict") or "–",
    )  # fmt: skip


def _speed(first: dict, item: dict) -> Markup:
    change = figures.times(speedup(first, item))
    if change is None:
        return tag("td", "–")
    sense = "quiet" if item.get("caveat") else parts.SENSES[change.sense]
    return tag("td", tag("span", f"{speedup(first, item):.2f}×", class_=sense))


def flags(item: dict) -> list[str]:
    """The labels beside an item's name that qualify its figures."""
    return [word for key, word in (("recorded", "recorded"), ("caveat", "see note")) if item.get(key)]


def _percent(change: FigureChange | None) -> FigureChange | None:
    """Shorten a change for a cell: −20 %."""
    if change is None or change.text == "unchanged":
        return change and FigureChange("±0 %", "same")
    amount, _, direction = change.text.partition(" % ")
    return FigureChange(f"{figures.MINUS if direction == 'less' else '+'}{amount} %", change.sense)


def _cell(value, unit: str, change: FigureChange | None = None, mark: str | None = None) -> Markup:
    if number(value) is None:
        return tag("td", tag("span", "–", aria_hidden="true"), tag("span", figures.NOT_MEASURED, class_="hidden"))
    words = show(value, unit).removesuffix(" FPS").removesuffix(" mJ")
    small = tag("small", change.text, class_=parts.SENSES[change.sense]) if change else None
    return tag("td", words, mark, small)


def _notes(view: PageView) -> Markup:
    """Describe how each item was measured, and the limits of its figures; equal descriptions share a line."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for item in view.items:
        groups.setdefault((_measured(view, item), item.get("caveat")), []).append(item["name"])
    lines = [
        (
            tag("dt", ", ".join(names)),
            tag("dd", measured),
            tag("dd", tag("b", "Note: "), caveat, class_="warn") if caveat else None,
        )
        for (measured, caveat), names in groups.items()
    ]
    noted = any(item.get("caveat") for item in view.items)
    return parts.folded("How each item was measured", tag("dl", lines, class_="pairs"), opened=noted)


def _measured(view: PageView, item: dict) -> str:
    said = []
    if setting(item) is not None:
        rounds = number(item["latency_ms"].get("rounds"))
        said.append(f"latency: {place(setting(item))}" + (f", {rounds:,.0f} samples" if rounds else ""))
    if item.get("measured_with"):
        said.append(f"accuracy: {item['measured_with']}" if not item.get("recorded") else item["measured_with"])
    if number(item.get("pictures")) is not None:
        said.append(f"{item['pictures']:,} picture{'s' if item['pictures'] != 1 else ''}")
    if item.get("head") and number(item.get("map50_95")) is not None:
        said.append(f"mAP is that of {NOTE}")
    counted = [on for key in ("parameters", "macs", "channels") if (on := view.network(item, key)[1])]
    if counted:
        said.append(f"° counted on {counted[0]}, the same network")
    return "; ".join(said) or "nothing but its file is known"


# -- for a notebook ----------------------------------------------------------------------------------------------------
_COLUMNS = (("size", "size_bytes", "bytes"), ("parameters", "parameters", "count"), ("MACs", "macs", "count"))


def fragment(view: PageView) -> Markup:
    """Render a small table, before -> after of every item, in the text colours of the notebook."""
    head = ["", *(name for name, _, _ in _COLUMNS), "p50", "mAP50-95", "small"]
    cell = "padding:.25em .6em;text-align:right;vertical-align:top;white-space:nowrap;"
    cell += "border-bottom:1px solid rgba(128,128,128,.35);"
    left = cell.replace("right", "left")
    rows = [tag("tr", [tag("th", words, scope="col", style=cell + "font-weight:600") for words in head])]
    for item in view.items:
        cells = [tag("th", item["name"], [f" ({flag})" for flag in flags(item)], scope="row", style=left)]
        cells += [tag("td", words, style=cell) for words in _arrows(view, item)]
        rows.append(tag("tr", cells))
    look = "font-size:.88em;border-collapse:collapse;font-variant-numeric:tabular-nums;"
    look += "color:inherit;background:transparent"
    table = tag("table", tag("thead", rows[:1]), tag("tbody", rows[1:]), style=look)
    title = tag("p", tag("b", view.data.get("title") or "Comparison"), _outcome(view), style="margin:.3em 0")
    notes = dict.fromkeys(item["caveat"] for item in view.items if item.get("caveat"))
    if (timed := (view.first or {}).get("latency_ms")) and timed.get("runtime"):
        notes[f"p50: inference alone, {timed['runtime']}"] = None
    told = tag("p", tag("small", "; ".join(notes)), style="margin:.3em 0") if notes else None
    return tag("div", title, tag("div", table, style="overflow-x:auto"), told, style="color:inherit")


def _arrows(view: PageView, item: dict) -> list[Markup]:
    """Render each figure as "before → after" with its change below; those of the first item without a change."""
    first = view.first

    def arrow(before, after, unit: str, change: FigureChange | None) -> Markup:
        if item is first or change is None or number(before) is None or number(after) is None:
            return join(show(after, unit))
        was, now = show(before, unit), show(after, unit)
        if was.partition(" ")[2] == now.partition(" ")[2]:
            was = was.partition(" ")[0]
        return join(f"{was} → {now}", tag("br"), tag("small", change.text))

    said = []
    for _, key, unit in _COLUMNS:
        before, after = first.get(key), view.network(item, key)[0]
        said.append(arrow(before, after, unit, _percent(figures.share(before, after, "less", "more"))))
    faster = None if item.get("caveat") else speedup(first, item)
    said.append(arrow(p50(first), p50(item), "ms", FigureChange(f"{faster:.2f}×", "same") if faster else None))
    for key in ("map50_95", "small_map50_95"):
        change = figures.accuracy(first.get(key), item.get(key)) if same_pictures(first, item) else None
        said.append(arrow(first.get(key), item.get(key), "map", change))
    return said


def _outcome(view: PageView) -> str | None:
    gates = view.data.get("gates") or []
    failed = [gate["name"] for gate in gates if gate.get("passed") is False]
    if failed:
        return f" – {len(failed)} of {len(gates)} gates failed: {'; '.join(failed)}"
    judged = [gate for gate in gates if gate.get("passed")]
    return f" – {len(judged)} of {len(gates)} gates passed" if gates else None
