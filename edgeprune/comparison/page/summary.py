"""The summary: the change of each figure, and the result of every gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeprune.comparison import per_class
from edgeprune.comparison.page import figures, parts
from edgeprune.comparison.page.figures import NOT_MEASURED, FigureChange, number, show
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView, p50, place, same_pictures, same_run, setting, speedup

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
    before: Any
    after: Any
    change: FigureChange | None
    note: str | None = None


def compared(view: PageView, first: dict, item: dict) -> list[Figure]:
    """The summary's figures of `item` beside those of `first`; only figures of one run have a change."""
    pictures, timed = same_pictures(first, item), _timed(view, first, item)
    macs, macs_of = view.network(item, "macs")
    params, params_of = view.network(item, "parameters")
    return [
        _share("Model size", "bytes", first.get("size_bytes"), item.get("size_bytes"), "smaller", "larger"),
        _share("MACs", "count", first.get("macs"), macs, "fewer", "more", note=_counted(macs_of)),
        _share("Parameters", "count", first.get("parameters"), params, "fewer", "more", note=_counted(params_of)),
        _latency(first, item, timed),
        _fps(first, item, timed),
        _accuracy("mAP50-95", "map50_95", first, item, pictures),
        _accuracy("mAP50-95, small objects", "small_map50_95", first, item, pictures),
        _share(
            "Energy per frame", "mj", first.get("mj_per_frame"), item.get("mj_per_frame"), "less", "more",
            comparable=first.get("recorded") == item.get("recorded") and first.get("machine") == item.get("machine"),
        ),
    ]  # fmt: skip


def _share(name, unit, before, after, less, more, *, good="less", note=None, comparable=True) -> Figure:
    change = figures.share(before, after, less, more, good=good) if comparable else None
    return Figure(name, unit, before, after, change, note)


def _timed(view: PageView, first: dict, item: dict) -> dict:
    """The item whose latency represents the delivered network.

    It is the item itself, or, for a file that this machine cannot judge, the same network in FP32.
    """
    plain = view.item("fp32")
    known = p50(item) is not None and not item.get("caveat")
    if known or not view.is_build or plain is None or not same_run(first, plain):
        return item
    return plain


def _latency(first: dict, item: dict, timed: dict) -> Figure:
    if timed is not item:
        note = f"{timed['name']}, the same network, on this machine's CPU"
        note += f"; {item['name']}: {item['caveat']}" if item.get("caveat") else ""
        change = figures.times(speedup(first, timed))
        return Figure(f"Latency, p50, of {timed['name']}", "ms", p50(first), p50(timed), change, note)
    caveat = item.get("caveat")
    change = None if caveat else figures.times(speedup(first, item))
    note = caveat or (None if same_run(first, item) else _apart(first, item))
    return Figure("Latency, p50", "ms", p50(first), p50(item), change, note)


def _fps(first: dict, item: dict, timed: dict) -> Figure:
    """FPS end to end if it was measured, else FPS of the inference, which the name then states."""
    kinds = (("fps_end_to_end", "FPS, end to end"), ("fps_inference_only", "FPS, inference alone"))
    key, name = next((kind for kind in kinds if number(timed.get(kind[0])) is not None), kinds[0])
    name += "" if timed is item else f", of {timed['name']}"
    comparable = same_run(first, timed) and not timed.get("caveat")
    return _share(
        name, "fps", first.get(key), timed.get(key), "fewer", "more", good="more", comparable=comparable
    )


def _accuracy(name: str, key: str, first: dict, item: dict, comparable: bool) -> Figure:
    change = figures.accuracy(first.get(key), item.get(key)) if comparable else None
    other = not comparable and number(first.get(key)) is not None and number(item.get(key)) is not None
    return Figure(name, "map", first.get(key), item.get(key), change, "of other pictures" if other else None)


def _counted(on: str | None) -> str | None:
    return None if on is None else f"counted on {on}, the same network"


def _apart(first: dict, item: dict) -> str | None:
    if setting(first) is None or setting(item) is None:
        return None
    return "measured elsewhere, or otherwise"


# -- top of the page --------------------------------------------------------------------------------------------------
def verdict(view: PageView) -> Markup:
    """Render one large line: whether the gates passed, and the main changes."""
    gates = view.data.get("gates") or []
    failed = [gate for gate in gates if gate.get("passed") is False]
    open_ = [gate for gate in gates if gate.get("passed") is None]
    if failed:
        state = False
        words = f"{len(failed)} of {len(gates)} gates failed: {'; '.join(g['name'] for g in failed)}"
    elif gates and len(open_) < len(gates):
        state, judged = True, len(gates) - len(open_)
        words = f"{'All ' if not open_ else ''}{judged} gate{'s' if judged != 1 else ''} passed"
        words += f", {len(open_)} not judged" if open_ else ""
    else:
        state = None
        recorded = bool(view.items) and all(item.get("recorded") for item in view.items)
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
    first, item = view.first, view.delivered
    if first is None or item is None:
        return None
    words = {
        "Model size": "{}", "MACs": "{} MACs", "Latency, p50": "{}", "Latency, p50, of fp32": "{} (fp32)",
        "mAP50-95": "mAP50-95 {}",
    }  # fmt: skip
    said = [
        words[figure.name].format(figure.change.text)
        for figure in compared(view, first, item)
        if figure.name in words and figure.change and figure.change.sense != "same"
    ]
    lost = per_class.worst(first.get("per_class"), item.get("per_class")) if same_pictures(first, item) else None
    if lost:
        said.append(f"worst class {lost[0]} {figures.signed(lost[2] - lost[1])}")
    return join(tag("b", item["name"]), " against ", tag("b", first["name"]), f": {', '.join(said)}.") if said else None


def warnings(view: PageView) -> Markup:
    """Render the warnings that qualify all figures of the page."""
    found = []
    if view.untrusted:
        count = view.untrusted
        found.append(
            f"{count} validation picture{'s are training pictures' if count != 1 else ' is a training picture'} too: "
            "no mAP on this page can be trusted."
        )
    for item in view.items:
        if item.get("verdict") not in (None, "clean"):
            found.append(f"{item['name']}: its run was {item['verdict']}; the figure may not be quoted.")
    return join([tag("p", tag("b", "Warning. "), words, class_="notice warn") for words in found])


def section(view: PageView) -> Markup:
    """Render the figures as tiles, the gates, and the figures recorded on devices."""
    first, item = view.first, view.delivered
    if first is None:
        return tag("p", "Nothing was compared.", class_="quiet")
    if item is None:
        tiles = [_alone(f) for f in compared(view, first, first)]
        lead = tag("p", "One item: ", tag("b", first["name"]), ". There is nothing to compare it with.")
    else:
        tiles = [_tile(f) for f in compared(view, first, item)]
        names = (tag("b", first["name"]), ". After: ", tag("b", item["name"]))
        lead = tag("p", "Before: ", *names, " (recorded). " if item.get("recorded") else ". ", _how(item))
    return join(tag("div", lead, class_="lead"), tag("dl", tiles, class_="tiles"), _gates(view), _recorded(view, item))


def _how(item: dict) -> str | None:
    if setting(item) is None:
        return None
    return f"Latency is inference alone on {place(setting(item))}."


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
            tag("span", "no change stated" if after is not None else "–", class_="change quiet"),
            class_="changed",
        ),
        tag("dd", figure.note, class_="note") if figure.note else None,
    )  # fmt: skip


def _alone(figure: Figure) -> Markup:
    missing = " missing" if number(figure.before) is None else ""
    return tag("div", tag("dt", figure.name), tag("dd", show(figure.before, figure.unit), class_=f"after{missing}"))


def _bars(figure: Figure) -> Markup | None:
    """Draw the figure before and after as two bars in one scale."""
    before, after = number(figure.before), number(figure.after)
    if before is None or after is None or max(before, after) <= 0 or figure.change is None:
        return None
    widths = (100 * max(value, 0) / max(before, after) for value in (before, after))
    bars = (tag("rect", y=6 * i, width=f"{w:.1f}%", height=4, class_=c)
            for i, (w, c) in enumerate(zip(widths, ("was", "now"))))  # fmt: skip
    return tag("dd", tag("svg", list(bars), width="100%", height=10, aria_hidden="true"), class_="bars")


def _gates(view: PageView) -> Markup | None:
    gates = view.data.get("gates") or []
    if not gates:
        return None
    rows = []
    for gate in gates:
        word, sign, kind = _STATES[gate.get("passed")]
        mark = tag("span", sign, class_="sign", aria_hidden="true")
        rows.append(
            tag(
                "tr",
                tag("td", mark, " ", word, class_=f"state {kind}"),
                tag("th", gate["name"], scope="row"),
                tag("td", gate.get("limit") or "–", class_="limit"),
                tag("td", gate.get("found") or NOT_MEASURED, class_="found"),
                class_="failed" if gate.get("passed") is False else None,
            )
        )
    table = parts.table("Gates", ("Verdict", "Gate", "Limit", "Found"), rows, class_="gates")
    return join(tag("h3", "Gates", id="gates"), table)


def _recorded(view: PageView, shown: dict | None) -> Markup | None:
    """List the figures that devices reported, one line each, because a build on another machine cannot measure them."""
    reports = [item for item in view.items if item.get("recorded") and item is not shown]
    if not reports:
        return None
    lines = [
        tag(
            "li", tag("b", item["name"]), " on ", item.get("machine") or "a machine that is not stated", ": ",
            ", ".join(_known(item)) or NOT_MEASURED, f"; {item['verdict']} run" if item.get("verdict") else None, ".",
        )
        for item in reports
    ]  # fmt: skip
    return join(tag("h3", "Recorded on devices", id="recorded"), tag("ul", lines, class_="records"))


def _known(item: dict) -> list[str]:
    """The measured figures of an item, in words."""
    said = (
        (p50(item), "ms", "{} p50 inference"),
        (item.get("fps_end_to_end"), "fps", "{} end to end"),
        (item.get("map50_95"), "map", "mAP50-95 {}"),
        (item.get("mj_per_frame"), "mj", "{} per frame"),
    )
    return [words.format(show(value, unit)) for value, unit, words in said if number(value) is not None]
