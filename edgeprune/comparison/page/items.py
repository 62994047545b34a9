"""The section with the full table: every figure of every item, and how it was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgeprune.comparison.page import figures, parts
from edgeprune.comparison.page.figures import FigureChange, number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, p50, place, same_pictures, setting, speedup
from edgeprune.comparison.row import Row
from edgeprune.model.head import NOTES

_HEAD = (
    "Item", "Size", "Parameters", "MACs", "p50", "Speed", "FPS", "mAP50-95", "Small", "mAP50", "Found", "mJ",
    "Channels", "Input", "p90", "Inference FPS", "Run",
)  # fmt: skip
#: The costs that both tables show: (name, figure, unit).
_COSTS: tuple[tuple[str, Callable[[Row], int | None], str], ...] = (
    ("size", lambda row: row.size_bytes, "bytes"),
    ("parameters", lambda row: row.parameters, "count"),
    ("MACs", lambda row: row.macs, "count"),
)


def section(view: PageView) -> Markup:
    """Render the table and the notes on the measurement."""
    return join(
        parts.table("All items", _HEAD, [_row(view, item) for item in view.items], class_="items"),
        parts.quiet(
            "The small figure is the change against ",
            tag("b", view.first.name),
            "; – means not measured. Speed is measured alternately if possible, so that all models run under the same ",
            "load. FPS is end to end, one image at a time. Small is the mAP50-95 of small objects. Found is the ",
            "number of detections with confidence 0.25 or more. mJ is the energy per frame. Input is the side "
            "of a square, or height x width, px.",
        ),
        _notes(view),
    )  # fmt: skip


def _row(view: PageView, item: Row) -> Markup:
    first = view.first
    other = item is not first
    pictures = other and same_pictures(first, item)

    def cost(figure: Callable[[Row], int | None], unit: str) -> Markup:
        value, on = view.network(item, figure)
        change = figures.share(figure(first), value, "less", "more") if other else None
        return _cell(value, unit, _percent(change), mark="°" if on else None)

    def precision(before: float | None, after: float | None) -> Markup:
        return _cell(after, "map", figures.accuracy(before, after) if pictures else None)

    name = join(item.name, [tag("span", flag, class_="flag") for flag in flags(item)])
    return parts.row(
        name, *(cost(figure, unit) for _, figure, unit in _COSTS), _cell(p50(item), "ms"), _speed(first, item),
        _cell(item.fps_end_to_end, "fps"), precision(first.map50_95, item.map50_95),
        precision(first.small_map50_95, item.small_map50_95), precision(first.map50, item.map50),
        _cell(item.objects_found, "int"), _cell(item.mj_per_frame, "mj"), cost(lambda row: row.channels, "int"),
        _cell(item.imgsz, "px"), _cell(item.latency_ms["p90"] if item.latency_ms else None, "ms"),
        _cell(item.fps_inference_only, "fps"), item.verdict or "–",
    )  # fmt: skip


def _speed(first: Row, item: Row) -> Markup:
    factor = speedup(first, item)
    change = figures.times(factor)
    if change is None:
        return tag("td", "–")
    sense = "quiet" if item.caveat else parts.SENSES[change.sense]
    return tag("td", tag("span", f"{factor:.2f}×", class_=sense))


def flags(item: Row) -> list[str]:
    """The labels beside an item's name that qualify its figures."""
    return [word for flag, word in ((item.recorded, "recorded"), (item.caveat, "see note")) if flag]


def _percent(change: FigureChange | None) -> FigureChange | None:
    """Shorten a change for a cell: −20 %."""
    if change is None or change.text == "unchanged":
        return change and FigureChange("±0 %", "same")
    amount, _, direction = change.text.partition(" % ")
    return FigureChange(f"{figures.MINUS if direction == 'less' else '+'}{amount} %", change.sense)


def _cell(
    value: float | Sequence[int] | None, unit: str, change: FigureChange | None = None, mark: str | None = None
) -> Markup:
    if number(value) is None and not isinstance(value, Sequence):
        return tag("td", tag("span", "–", aria_hidden="true"), tag("span", figures.NOT_MEASURED, class_="hidden"))
    words = show(value, unit).removesuffix(" FPS").removesuffix(" mJ")
    small = tag("small", change.text, class_=parts.SENSES[change.sense]) if change else None
    return tag("td", words, mark, small)


def _notes(view: PageView) -> Markup:
    """Describe how each item was measured, and the limits of its figures; equal descriptions share a line."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for item in view.items:
        groups.setdefault((_measured(view, item), item.caveat), []).append(item.name)
    lines = [
        (
            tag("dt", ", ".join(names)),
            tag("dd", measured),
            tag("dd", tag("b", "Note: "), caveat, class_="warn") if caveat else None,
        )
        for (measured, caveat), names in groups.items()
    ]
    noted = any(item.caveat for item in view.items)
    return parts.folded("How each item was measured", tag("dl", lines, class_="pairs"), opened=noted)


def _measured(view: PageView, item: Row) -> str:
    notes = []
    where = setting(item)
    if where is not None:
        rounds = item.latency_ms["rounds"] if item.latency_ms else None
        notes.append(f"latency: {place(where)}" + (f", {rounds:,.0f} samples" if rounds else ""))
    if item.measured_with:
        notes.append(item.measured_with if item.recorded else f"accuracy: {item.measured_with}")
    if item.pictures is not None:
        notes.append(f"{item.pictures:,} image{'s' if item.pictures != 1 else ''}")
    if item.head and number(item.map50_95) is not None:
        notes.append(f"mAP measured with {NOTES.get(item.head, item.head)}")
    networks = (view.network(item, lambda row: row.parameters), view.network(item, lambda row: row.macs),
                view.network(item, lambda row: row.channels))  # fmt: skip
    counted = [on for _, on in networks if on]
    if counted:
        notes.append(f"° counted on {counted[0]}, the same network")
    return "; ".join(notes) or "nothing was measured, only the file was read"


# -- for a notebook ----------------------------------------------------------------------------------------------------
def fragment(view: PageView) -> Markup:
    """Render a small table, before -> after of every item, in the text colours of the notebook."""
    head = ["", *(name for name, _, _ in _COSTS), "p50", "mAP50-95", "small"]
    cell = "padding:.25em .6em;text-align:right;vertical-align:top;white-space:nowrap;"
    cell += "border-bottom:1px solid rgba(128,128,128,.35);"
    left = cell.replace("right", "left")
    rows = [tag("tr", [tag("th", words, scope="col", style=cell + "font-weight:600") for words in head])]
    for item in view.items:
        cells = [tag("th", item.name, [f" ({flag})" for flag in flags(item)], scope="row", style=left)]
        cells += [tag("td", words, style=cell) for words in _arrows(view, item)]
        rows.append(tag("tr", cells))
    look = "font-size:.88em;border-collapse:collapse;font-variant-numeric:tabular-nums;"
    look += "color:inherit;background:transparent"
    table = tag("table", tag("thead", rows[:1]), tag("tbody", rows[1:]), style=look)
    title = tag("p", tag("b", view.title), _outcome(view), style="margin:.3em 0")
    notes = dict.fromkeys(item.caveat for item in view.items if item.caveat)
    if (latency := view.first.latency_ms) and latency["runtime"]:
        notes[f"p50: inference only, {latency['runtime']}"] = None
    footnote = tag("p", tag("small", "; ".join(notes)), style="margin:.3em 0") if notes else None
    return tag("div", title, tag("div", table, style="overflow-x:auto"), footnote, style="color:inherit")


def _arrows(view: PageView, item: Row) -> list[Markup]:
    """Render each figure as "before → after" with its change below; those of the first item without a change."""
    first = view.first

    def arrow(before: float | None, after: float | None, unit: str, change: FigureChange | None) -> Markup:
        if item is first or change is None or number(before) is None or number(after) is None:
            return join(show(after, unit))
        was, now = show(before, unit), show(after, unit)
        if was.partition(" ")[2] == now.partition(" ")[2]:
            was = was.partition(" ")[0]
        return join(f"{was} → {now}", tag("br"), tag("small", change.text))

    cells = []
    for _, figure, unit in _COSTS:
        before, after = figure(first), view.network(item, figure)[0]
        cells.append(arrow(before, after, unit, _percent(figures.share(before, after, "less", "more"))))
    faster = None if item.caveat else speedup(first, item)
    cells.append(arrow(p50(first), p50(item), "ms", FigureChange(f"{faster:.2f}×", "same") if faster else None))
    for was, now in ((first.map50_95, item.map50_95), (first.small_map50_95, item.small_map50_95)):
        cells.append(arrow(was, now, "map", figures.accuracy(was, now) if same_pictures(first, item) else None))
    return cells


def _outcome(view: PageView) -> str | None:
    gates = view.facts.gates
    failed = [gate["name"] for gate in gates if gate["passed"] is False]
    if failed:
        return f" – {len(failed)} of {len(gates)} gates failed: {'; '.join(failed)}"
    judged = [gate for gate in gates if gate["passed"]]
    return f" – {len(judged)} of {len(gates)} gates passed" if gates else None
