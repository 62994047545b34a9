"""The summary: the change of each figure, and the result of every gate."""

from __future__ import annotations

from dataclasses import dataclass

from edgeprune.comparison.page import figures, parts
from edgeprune.comparison.page.figures import NOT_MEASURED, FigureChange, number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, p50, place, same_pictures, same_run, setting, speedup
from edgeprune.comparison.row import Row
from edgeprune.measuring import per_class

#: A gate's word, sign and style class, by whether it passed.
_STATES = {True: ("passed", "✓", "good"), False: ("failed", "✕", "bad"), None: ("not judged", "–", "quiet")}


@dataclass(frozen=True)
class Figure:
    """One figure before and after.

    Attributes:
        name: name of the figure.
        unit: unit for `figures.show`.
        before: value of the first item.
        after: value of the other item.
        change: the change; None if the two cannot be compared.
        note: remark below the figure.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    change: FigureChange | None
    note: str | None = None


def compared(view: PageView, first: Row, item: Row) -> list[Figure]:
    """The summary's figures of `item` beside those of `first`; only figures of one run have a change."""
    pictures, timed = same_pictures(first, item), _timed(view, first, item)
    macs, macs_of = view.network(item, lambda row: row.macs)
    params, params_of = view.network(item, lambda row: row.parameters)
    one_machine = first.recorded == item.recorded and first.machine == item.machine
    size = figures.share(first.size_bytes, item.size_bytes, "smaller", "larger")
    fewer_macs = figures.share(first.macs, macs, "fewer", "more")
    fewer_params = figures.share(first.parameters, params, "fewer", "more")
    energy = figures.share(first.mj_per_frame, item.mj_per_frame, "less", "more") if one_machine else None
    return [
        Figure("Model size", "bytes", first.size_bytes, item.size_bytes, size),
        Figure("MACs", "count", first.macs, macs, fewer_macs, _counted(macs_of)),
        Figure("Parameters", "count", first.parameters, params, fewer_params, _counted(params_of)),
        _latency(first, item, timed),
        _fps(first, item, timed),
        _accuracy("mAP50-95", first.map50_95, item.map50_95, pictures),
        _accuracy("mAP50-95, small objects", first.small_map50_95, item.small_map50_95, pictures),
        Figure("Energy per frame", "mj", first.mj_per_frame, item.mj_per_frame, energy),
    ]


def _timed(view: PageView, first: Row, item: Row) -> Row:
    """The item whose latency represents the delivered network.

    It is the item itself. If its latency on this machine has a caveat, it is the same network in FP32.
    """
    plain = view.item("fp32")
    known = p50(item) is not None and not item.caveat
    if known or not view.is_build or plain is None or not same_run(first, plain):
        return item
    return plain


def _latency(first: Row, item: Row, timed: Row) -> Figure:
    if timed is not item:
        caveat = f"; {item.name}: {item.caveat}" if item.caveat else ""
        note = f"{timed.name}, the same network, on this machine's CPU{caveat}"
        change = figures.times(speedup(first, timed))
        return Figure(f"Latency, p50, of {timed.name}", "ms", p50(first), p50(timed), change, note)
    change = None if item.caveat else figures.times(speedup(first, item))
    reason = item.caveat or (None if same_run(first, item) else _apart(first, item))
    return Figure("Latency, p50", "ms", p50(first), p50(item), change, reason)


def _fps(first: Row, item: Row, timed: Row) -> Figure:
    """FPS end to end if it was measured, otherwise FPS of the inference, as the name states."""
    name, before, after = "FPS, end to end", first.fps_end_to_end, timed.fps_end_to_end
    if number(after) is None and number(timed.fps_inference_only) is not None:
        name, before, after = "FPS, inference only", first.fps_inference_only, timed.fps_inference_only
    name += "" if timed is item else f", of {timed.name}"
    comparable = same_run(first, timed) and not timed.caveat
    change = figures.share(before, after, "fewer", "more", good="more") if comparable else None
    return Figure(name, "fps", before, after, change)


def _accuracy(name: str, before: float | None, after: float | None, comparable: bool) -> Figure:
    change = figures.accuracy(before, after) if comparable else None
    other = not comparable and number(before) is not None and number(after) is not None
    return Figure(name, "map", before, after, change, "on different images" if other else None)


def _counted(on: str | None) -> str | None:
    return None if on is None else f"counted on {on}, the same network"


def _apart(first: Row, item: Row) -> str | None:
    if setting(first) is None or setting(item) is None:
        return None
    return "measured on another machine or runtime"


# -- top of the page --------------------------------------------------------------------------------------------------
def verdict(view: PageView) -> Markup:
    """Render one large line: whether the gates passed, and the main changes."""
    gates = view.facts.gates
    failed = [gate for gate in gates if gate["passed"] is False]
    open_ = [gate for gate in gates if gate["passed"] is None]
    state: bool | None
    if failed:
        state = False
        words = f"{len(failed)} of {len(gates)} gates failed: {'; '.join(g['name'] for g in failed)}"
    elif gates and len(open_) < len(gates):
        state, judged = True, len(gates) - len(open_)
        words = f"{'All ' if not open_ else ''}{judged} gate{'s' if judged != 1 else ''} passed"
        words += f", {len(open_)} not judged" if open_ else ""
    else:
        state = None
        recorded = bool(view.items) and all(item.recorded for item in view.items)
        how = "Recorded figures side by side" if recorded else "Measured side by side"
        words = "Gates were not judged" if gates else f"{how}; no gate was set"
    _, sign, kind = _STATES[state]
    return tag(
        "div",
        tag("p", tag("span", sign, class_="sign", aria_hidden="true"), tag("strong", words)),
        tag("p", won) if (won := _won(view)) else None,
        class_=f"verdict {kind}",
    )


def _won(view: PageView) -> Markup | None:
    """The gains and losses in one sentence."""
    item = view.delivered
    if item is None:
        return None
    first = view.first
    words = {
        "Model size": "{}", "MACs": "{} MACs", "Latency, p50": "{}", "Latency, p50, of fp32": "{} (fp32)",
        "mAP50-95": "mAP50-95 {}",
    }  # fmt: skip
    changes = [
        words[figure.name].format(figure.change.text)
        for figure in compared(view, first, item)
        if figure.name in words and figure.change and figure.change.sense != "same"
    ]
    lost = per_class.worst(first.per_class, item.per_class) if same_pictures(first, item) else None
    if lost:
        changes.append(f"worst class {lost[0]} {figures.signed(lost[2] - lost[1])}")
    if not changes:
        return None
    return join(tag("b", item.name), " against ", tag("b", first.name), f": {', '.join(changes)}.")


def warnings(view: PageView) -> Markup:
    """Render the warnings that qualify all figures of the page."""
    messages = []
    if view.untrusted:
        count = view.untrusted
        messages.append(
            f"{count} validation image{'s are also training images' if count != 1 else ' is also a training image'}: "
            "no mAP on this page can be trusted."
        )
    for item in view.items:
        if item.verdict not in (None, "clean"):
            messages.append(f"{item.name}: the verdict of its run is {item.verdict}; do not quote its figures.")
    return join([tag("p", tag("b", "Warning. "), words, class_="notice warn") for words in messages])


def section(view: PageView) -> Markup:
    """Render the figures as tiles, the gates, and the figures recorded on devices."""
    if not view.items:
        return tag("p", "Nothing was compared.", class_="quiet")
    first, item = view.first, view.delivered
    if item is None:
        tiles = [_alone(f) for f in compared(view, first, first)]
        lead = tag("p", "One item: ", tag("b", first.name), ", without another item to compare with.")
    else:
        tiles = [_tile(f) for f in compared(view, first, item)]
        names = (tag("b", first.name), ". After: ", tag("b", item.name))
        lead = tag("p", "Before: ", *names, " (recorded). " if item.recorded else ". ", _how(item))
    return join(tag("div", lead, class_="lead"), tag("dl", tiles, class_="tiles"), _gates(view), _recorded(view, item))


def _how(item: Row) -> str | None:
    where = setting(item)
    return None if where is None else f"Latency is inference only, on {place(where)}."


def _tile(figure: Figure) -> Markup:
    after = number(figure.after)
    change = figure.change
    return tag(
        "div",
        tag("dt", figure.name),
        tag("dd", show(figure.after, figure.unit), class_="after" if after is not None else "after missing"),
        tag("dd", "before ", tag("b", show(figure.before, figure.unit)), class_="before"),
        _bars(figure),
        tag(
            "dd",
            tag("span", change.text, class_=f"change {parts.SENSES[change.sense]}") if change else
            tag("span", "not comparable" if after is not None else "–", class_="change quiet"),
            class_="changed",
        ),
        tag("dd", figure.note, class_="note") if figure.note else None,
    )  # fmt: skip


def _alone(figure: Figure) -> Markup:
    missing = " missing" if number(figure.before) is None else ""
    return tag("div", tag("dt", figure.name), tag("dd", show(figure.before, figure.unit), class_=f"after{missing}"))


def _bars(figure: Figure) -> Markup | None:
    """Draw the figure before and after as two bars on one scale."""
    before, after = number(figure.before), number(figure.after)
    if before is None or after is None or max(before, after) <= 0 or figure.change is None:
        return None
    widths = (100 * max(value, 0) / max(before, after) for value in (before, after))
    bars = (tag("rect", y=6 * i, width=f"{w:.1f}%", height=4, class_=c)
            for i, (w, c) in enumerate(zip(widths, ("was", "now"))))  # fmt: skip
    return tag("dd", tag("svg", list(bars), width="100%", height=10, aria_hidden="true"), class_="bars")


def _gates(view: PageView) -> Markup | None:
    gates = view.facts.gates
    if not gates:
        return None
    rows = []
    for gate in gates:
        word, sign, kind = _STATES[gate["passed"]]
        mark = tag("span", sign, class_="sign", aria_hidden="true")
        rows.append(
            tag(
                "tr",
                tag("td", mark, " ", word, class_=f"state {kind}"),
                tag("th", gate["name"], scope="row"),
                tag("td", gate["limit"] or "–", class_="limit"),
                tag("td", gate["found"] or NOT_MEASURED, class_="found"),
                class_="failed" if gate["passed"] is False else None,
            )
        )
    table = parts.table("Gates", ("Verdict", "Gate", "Limit", "Found"), rows, class_="gates")
    return join(tag("h3", "Gates", id="gates"), table)


def _recorded(view: PageView, shown: Row | None) -> Markup | None:
    """List the figures that devices reported, one line each; a build on another machine cannot measure them."""
    reports = [item for item in view.items if item.recorded and item is not shown]
    if not reports:
        return None
    lines = [
        tag(
            "li", tag("b", item.name), " on ", item.machine or "an unknown machine", ": ",
            ", ".join(_known(item)) or NOT_MEASURED, f"; {item.verdict} run" if item.verdict else None, ".",
        )
        for item in reports
    ]  # fmt: skip
    return join(tag("h3", "Recorded on devices", id="recorded"), tag("ul", lines, class_="records"))


def _known(item: Row) -> list[str]:
    """The measured figures of an item, in words."""
    facts = (
        (p50(item), "ms", "{} p50 inference"),
        (item.fps_end_to_end, "fps", "{} end to end"),
        (item.map50_95, "map", "mAP50-95 {}"),
        (item.mj_per_frame, "mj", "{} per frame"),
    )
    return [words.format(show(value, unit)) for value, unit, words in facts if number(value) is not None]
