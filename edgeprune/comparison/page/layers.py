"""The section on the channels kept per layer: every convolution before and after, in network order."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgeprune.comparison.page import parts, svg
from edgeprune.comparison.page.html import Markup, join, tag
from edgeprune.comparison.page.view import PageView

#: {convolution: its output channels}
Layers = Mapping[str, int]


def section(view: PageView) -> Markup:
    """Render the section: one chart for each network that differs from the original."""
    before = view.first.layers
    if not before:
        return parts.quiet("The layers of ", tag("b", view.first.name), " are unknown.")
    networks = _networks(view, before)
    if not networks:
        return parts.quiet("No item differs from ", tag("b", view.first.name), " in the channels of a layer.")
    (names, after), *rest = networks
    others = [_one(view, before, *network, key=f"layers-{i}") for i, network in enumerate(rest, 1)]
    shared = [name for name in before if name in after]
    return join(
        _one(view, before, names, after, key="layers-0"),
        parts.folded("Every layer", _list(shared, before, after)) if shared else None,
        parts.folded(f"{len(rest)} more network{'s' if len(rest) != 1 else ''}", others) if others else None,
    )


def _networks(view: PageView, before: Layers) -> list[tuple[list[str], Layers]]:
    """The networks that differ from the original, each with the names of its items; the delivered one first."""
    networks: list[tuple[list[str], Layers]] = []
    for item in view.items[1:]:
        after = item.layers
        if not after or after == before:
            continue
        for names, other in networks:
            if other == after:
                names.append(item.name)
                break
        else:
            networks.append(([item.name], after))
    delivered = view.delivered.name if view.delivered else None
    return sorted(networks, key=lambda network: delivered not in network[0])


def _one(view: PageView, before: Layers, names: list[str], after: Layers, key: str) -> Markup:
    shared = [name for name in before if name in after]
    who = ", ".join(names)
    if not shared:
        return parts.quiet(tag("b", who), " shares no layer name with ", tag("b", view.first.name), ".")
    kept = {name: after[name] / before[name] for name in shared if before[name]}
    total = sum(before[n] for n in shared), sum(after[n] for n in shared)
    least = min(kept, key=lambda name: kept[name])
    untouched = sum(1 for name in shared if after[name] == before[name])
    others = len(set(before) | set(after)) - len(shared)
    words = (
        f"{total[1]:,} of {total[0]:,} output channels kept ({_kept(*total)}) in {len(shared)} convolutions; "
        f"{untouched} of them unchanged. Largest reduction: {least}, {after[least]} of {before[least]} kept."
    )
    if others:
        words += f" {others} more convolutions exist in only one of the two networks and are not shown."
    return join(
        tag("p", tag("b", who), " against ", tag("b", view.first.name), ": ", words),
        svg.both(lambda width, id_: _skyline(shared, before, after, width, id_, words), key),
        parts.legend([(parts.swatch("var(--accent)"), "kept"), (parts.swatch("currentColor", hollow=True), "before")]),
    )


def _skyline(names: list[str], before: Layers, after: Layers, width: float, key: str, desc: str) -> Markup:
    """Draw one column per convolution: the outline is the original, the filling the kept channels."""
    narrow = width < 600
    left, top, height, foot = 40, 22, 170 if narrow else 210, 36
    most = max(max(before[n], after[n]) for n in names)
    y = svg.scale(0, most, top + height, top)
    pitch = (width - left) / len(names)
    thick = pitch - (1 if pitch < 7 else 3)
    base = top + height
    drawn = [svg.text(0, 11, "output channels")]
    for tick in svg.ticks(0, most, 4):
        drawn.append(svg.line(left, y(tick), width, y(tick), opacity=0.13 if tick else 0.45))
        drawn.append(svg.text(left - 6, y(tick) + 4, svg.plain(tick), anchor="end", quiet=True))
    for i, name in enumerate(names):
        x = left + i * pitch + (pitch - thick) / 2
        was, now = before[name], after[name]
        title = tag("title", f"{name}: {was} → {now} ({_kept(was, now)})")
        outline = svg.rect(
            x, y(was), thick, base - y(was), fill="currentColor", fill_opacity=0.1, stroke="currentColor",
            stroke_opacity=0.5, stroke_width=0.75,
        )  # fmt: skip
        drawn.append(tag("g", title, outline, svg.rect(x, y(now), thick, base - y(now), fill="var(--accent)")))
    drawn.append(_blocks(names, left, pitch, base, width))
    return svg.chart(width, base + foot, key, "Channels kept per layer", desc, *drawn)


def _blocks(names: list[str], left: float, pitch: float, base: float, width: float) -> Markup:
    """Draw ticks where a block of the network begins, with its name if there is space."""
    drawn, free = [], 0.0
    for i, name in enumerate(names):
        if i and _block(name) == _block(names[i - 1]):
            continue
        x = left + i * pitch
        words = _block(name).rpartition(".")[2]
        drawn.append(svg.line(x, base, x, base + 5, opacity=0.5))
        if x >= free and x + svg.width_of(words, 11) < width:
            drawn.append(svg.text(x + 1, base + 16, words, font_size=11, quiet=True))
            free = x + svg.width_of(words, 11) + 6
    words = "blocks, in network order"
    drawn.append(svg.text(width, base + 32, words, anchor="end", font_size=11, quiet=True))
    return join(drawn)


def _block(name: str) -> str:
    """The block of a layer: model.2.m.0.cv1.conv -> model.2; a name of another form is its own block."""
    match = re.match(r"[A-Za-z_]+\.\d+", name)
    return match[0] if match else name.partition(".")[0]


def _kept(before: int, after: int) -> str:
    return f"{100 * after / before:.0f} %" if before else "–"


def _list(names: list[str], before: Layers, after: Layers) -> Markup:
    """Render the figures as one table per block, with a bar in each row."""
    most = max(max(before[n], after[n]) for n in names)
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(_block(name), []).append(name)
    groups = []
    for block, members in blocks.items():
        rows = [
            parts.row(
                name.removeprefix(block).removeprefix(".").removesuffix(".conv") or name,
                f"{was} → {now}", _kept(was, now), tag("td", _bar(was, now, most)), class_="cut" if now < was else None,
            )
            for name in members
            for was, now in [(before[name], after[name])]
        ]  # fmt: skip
        groups.append(tag("table", tag("caption", block), tag("tbody", rows), class_="layer"))
    return tag("div", groups, class_="columns")


def _bar(before: int, after: int, most: int) -> Markup:
    was = tag("rect", y=0.5, width=f"{100 * before / most:.1f}%", height=9, class_="was")
    now = tag("rect", y=0.5, width=f"{100 * after / most:.1f}%", height=9, class_="now")
    return tag("svg", was, now, width="100%", height=10, aria_hidden="true")
